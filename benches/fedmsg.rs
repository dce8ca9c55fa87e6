//! What validation costs: valid messages a second of CPU time, beside what the real fedmsg does in
//! the same minute. A report and no test; the peer is there after `make setup`.

#![allow(clippy::unwrap_used)] // a bench that can't go on ends

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use weir::fedmsg::canonical::canonical;
use weir::fedmsg::{Checker, Settings, Validator};

/// As in src/main.rs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How much each run spends.
const RUN: Duration = Duration::from_secs(3);
const PAIRS: usize = 3;
/// What is asked for, times the peer's.
const TARGET: f64 = 5.0;

/// What this thread has spent of a core, whoever else is at work on it.
fn spent() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// How often a second of this thread's.
fn rate(messages: &[(String, Vec<u8>)], mut each: impl FnMut(&str, &[u8])) -> f64 {
    let begin = spent();
    let mut count = 0;
    while spent() - begin < RUN {
        for (topic, payload) in messages {
            each(topic, payload);
        }
        count += messages.len();
    }
    count as f64 / (spent() - begin).as_secs_f64()
}

fn main() {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    let dir = tempfile::tempdir().unwrap();
    let says = |arguments: &[&str]| {
        let python = Command::new(peers.join("installed/venv/bin/python"))
            .arg(peers.join("fedmsg_says.py"))
            .args(&arguments[..1])
            .arg(dir.path())
            .args(&arguments[1..])
            .output();
        let output = python.expect("tests/peers/installed/venv is missing; run `make setup`");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    says(&["messages", "0", "1"]);
    let made = std::fs::read(dir.path().join("rate.json")).unwrap();
    let made: Vec<serde_json::Value> = serde_json::from_slice(&made).unwrap();
    let text = |one: &serde_json::Value, key: &str| one[key].as_str().unwrap().to_owned();
    let messages: Vec<(String, Vec<u8>)> = (made.iter())
        .map(|one| (text(one, "topic"), text(one, "payload").into_bytes()))
        .collect();
    let settings = Settings {
        ca: dir.path().join("ca.crt"),
        crl: dir.path().join("crl.pem"),
        ..Settings::default()
    };
    let mut checker = Checker::new(Arc::new(Validator::open(&settings).unwrap()), "bench");
    let size = messages
        .iter()
        .map(|(_, payload)| payload.len())
        .sum::<usize>()
        / messages.len();
    println!("validation of fedmsg messages, {size} bytes each, RSA-2048; a core\n");
    println!(
        "{:>12} {:>12} {:>7} {:>16}",
        "fedmsg", "weir", "ratio", "canonical only"
    );
    let mut ratios = Vec::new();
    for _ in 0..PAIRS {
        let theirs: f64 = says(&["rate"]).trim().parse().unwrap();
        let ours = rate(&messages, |topic, payload| {
            checker.check(topic, payload).expect("a valid message");
        });
        let text = rate(&messages, |_, payload| {
            std::hint::black_box(canonical(payload).expect("JSON"));
        });
        println!(
            "{theirs:>12.0} {ours:>12.0} {:>7.2} {text:>16.0}",
            ours / theirs
        );
        ratios.push(ours / theirs);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[PAIRS / 2];
    let verdict = if median >= TARGET {
        "reached"
    } else {
        "MISSED"
    };
    println!("\nmedian ratio {median:.2}, target >= {TARGET}: {verdict}");
}
