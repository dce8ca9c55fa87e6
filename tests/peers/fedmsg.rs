//! The real fedmsg 1.1.7 and Python's own json beside weir's validation: verdict by verdict and text
//! by text, over what `fedmsg_says.py` makes.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde::Deserialize;
use weir::fedmsg::canonical::canonical;
use weir::fedmsg::{Checker, Settings, Validator};

/// Runs the script, which prints a line of JSON for each case.
fn says<T: for<'de> Deserialize<'de>>(arguments: &[&str]) -> Vec<T> {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    let python = peers.join("installed/venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing; run `make setup`",
        python.display()
    );
    let output = Command::new(python)
        .arg(peers.join("fedmsg_says.py"))
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Bytes, each as the character of its number.
fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|byte| byte as u8).collect()
}

#[test]
#[ignore = "needs peers: make test"]
fn canonical_texts_are_those_of_python() {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        canonical: Option<String>,
    }
    let cases: Vec<Case> = says(&["canonical", "30000", "1"]);
    let refused = cases.iter().filter(|case| case.canonical.is_none()).count();
    assert!(cases.len() > 60_000 && refused > 10_000 && refused < 40_000);
    for case in cases {
        let ours = canonical(&bytes(&case.text)).ok();
        let ours = ours.map(|text| String::from_utf8(text).unwrap());
        assert_eq!(ours, case.canonical, "{:?}", case.text);
    }
}

#[test]
#[ignore = "needs peers: make test"]
fn verdicts_are_those_of_the_real_fedmsg() {
    #[derive(Deserialize)]
    struct Case {
        topic: String,
        payload: String,
        nitpicky: bool,
        valid: bool,
        reason: Option<String>,
    }
    let dir = tempfile::tempdir().unwrap();
    let cases: Vec<Case> = says(&["messages", dir.path().to_str().unwrap(), "1500", "1"]);
    let policy = [
        ("org.example.prod.git.push", vec!["shell-a", "shéll"]),
        ("org.example.prod.wiki.edit", vec!["shell-b"]),
        ("org.example.prod.closed", vec![]),
    ];
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    let mut settings = Settings {
        ca: dir.path().join("ca.crt"),
        crl: dir.path().join("crl.pem"),
        routing_policy: policy
            .map(|(topic, names)| (topic.to_owned(), owned(names)))
            .into(),
        ..Settings::default()
    };
    let mut checkers = [false, true].map(|nitpicky| {
        settings.routing_nitpicky = nitpicky;
        Checker::new(Arc::new(Validator::open(&settings).unwrap()), "test")
    });
    let valid = cases.iter().filter(|case| case.valid).count();
    assert!(valid > 1000 && cases.len() - valid > 2000);
    for case in cases {
        let checker = &mut checkers[usize::from(case.nitpicky)];
        let found = checker.check(&case.topic, &bytes(&case.payload));
        assert_eq!(found.is_ok(), case.valid, "{found:?} {:?}", case.payload);
        if let (Some(reason), Err(refused)) = (case.reason, found) {
            assert_eq!(
                refused.reason.as_str(),
                reason,
                "{refused:?} {:?}",
                case.payload
            );
        }
    }
}
