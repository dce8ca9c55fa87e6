//! Over `tests/fixtures/fedmsg`: messages that fedmsg 1.1.7 has signed and judged, and the
//! certificates (until 2100). `tests/peers/fedmsg.rs` makes them anew, and many more.

use super::*;

use serde_json::Value;

/// 2027, when all that was not made to be out of date is in date.
const NOW: i64 = 1_800_000_000;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/fedmsg")
        .join(name)
}

fn settings(ca: &str, crl: &str) -> Settings {
    let policy = [
        ("org.example.prod.git.push", vec!["shell-a", "shéll"]),
        ("org.example.prod.wiki.edit", vec!["shell-b"]),
        ("org.example.prod.closed", vec![]),
    ];
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    Settings {
        ca: fixture(ca),
        crl: match crl {
            "" => PathBuf::new(),
            crl => fixture(crl),
        },
        routing_policy: policy
            .map(|(topic, names)| (topic.to_owned(), owned(names)))
            .into(),
        ..Settings::default()
    }
}

fn checker(settings: &Settings) -> Checker {
    Checker::new(Arc::new(Validator::open(settings).unwrap()), "test")
}

struct Told {
    topic: String,
    payload: Vec<u8>,
    nitpicky: bool,
    expected: Result<(), String>,
}

fn told() -> Vec<Told> {
    let lines = std::fs::read_to_string(fixture("messages.jsonl")).unwrap();
    let told = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        Told {
            topic: text("topic").unwrap(),
            // Bytes, each as the character of its number.
            payload: text("payload")
                .unwrap()
                .chars()
                .map(|byte| byte as u8)
                .collect(),
            nitpicky: line["nitpicky"].as_bool().unwrap(),
            expected: match line["valid"].as_bool().unwrap() {
                true => Ok(()),
                false => Err(text("reason").unwrap()),
            },
        }
    };
    lines.lines().map(told).collect()
}

/// The first message with this verdict, without `nitpicky`.
fn first(expected: Result<(), &str>) -> Told {
    let expected = expected.map_err(str::to_owned);
    let all = told().into_iter();
    let mut those = all.filter(|told| !told.nitpicky && told.expected == expected);
    those.next().unwrap()
}

fn word(result: Result<(), Refused>) -> Result<(), String> {
    result.map_err(|refused| refused.reason.as_str().to_owned())
}

fn now(checker: &mut Checker, told: &Told) -> Result<(), String> {
    word(checker.check_at(&told.topic, &told.payload, NOW))
}

#[test]
fn verdicts_are_those_of_fedmsg() {
    let tolerant = settings("ca.crt", "crl.pem");
    let nitpicky = Settings {
        routing_nitpicky: true,
        ..tolerant.clone()
    };
    let mut checkers = [checker(&tolerant), checker(&nitpicky)];
    let mut reasons = std::collections::BTreeSet::new();
    for told in told() {
        let found = now(&mut checkers[usize::from(told.nitpicky)], &told);
        let payload = String::from_utf8_lossy(&told.payload);
        assert_eq!(found, told.expected, "{}: {payload}", told.topic);
        reasons.extend(told.expected.err());
    }
    let all = Reason::ALL.iter().filter(|reason| reason.of_validation());
    assert!(
        all.clone().count() == 7 && all.clone().all(|reason| reasons.contains(reason.as_str()))
    );
}

#[test]
fn what_is_out_of_date_is_so_by_the_clock_at_each_message() {
    let valid = first(Ok(()));
    let mut checker = checker(&settings("ca.crt", "crl.pem"));
    let (early, late) = (1_700_000_000, 4_200_000_000);
    for (when, expected) in [
        (NOW, Ok(())),
        (early, Err("expired")),
        (late, Err("expired")),
    ] {
        let found = word(checker.check_at(&valid.topic, &valid.payload, when));
        assert_eq!(found, expected.map_err(str::to_owned), "{when}");
    }
    for (ca, crl) in [("ca-expired.crt", "crl.pem"), ("ca.crt", "crl-expired.pem")] {
        let mut checker = self::checker(&settings(ca, crl));
        assert_eq!(
            now(&mut checker, &valid),
            Err("expired".into()),
            "{ca} {crl}"
        );
    }
}

#[test]
fn without_a_list_nobody_is_revoked() {
    let revoked = first(Err("revoked"));
    let mut checker = checker(&settings("ca.crt", ""));
    let found = now(&mut checker, &revoked);
    assert!(
        found.is_ok() || found == Err("not_allowed".into()),
        "{found:?}"
    );
}

#[test]
fn a_file_that_can_not_be_used_is_a_mistake_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    std::fs::File::create(&large)
        .unwrap()
        .set_len(FILE_MAX_TEST)
        .unwrap();
    for (ca, crl, key, expected) in [
        ("none.crt", "", "ca", "can't be read: No such file"),
        ("", "", "ca", "no regular file"), // the directory
        (
            "messages.jsonl",
            "",
            "ca",
            "has no `-----BEGIN CERTIFICATE-----`",
        ),
        ("crl.pem", "", "ca", "has no `-----BEGIN CERTIFICATE-----`"),
        ("leaf.crt", "", "ca", "the certificate of no authority"),
        ("two.crt", "", "ca", "has 2 of"),
        ("/dev/zero", "", "ca", "no regular file"),
        (large.to_str().unwrap(), "", "ca", "larger than 16 MiB"),
        ("ca.crt", "none.pem", "crl", "can't be read"),
        (
            "ca.crt",
            "ca.crt",
            "crl",
            "has no `-----BEGIN X509 CRL-----`",
        ),
        (
            "ca.crt",
            "crl-other.pem",
            "crl",
            "not a list that the CA in `ca` has signed",
        ),
    ] {
        let text = format!(
            "ca = {:?}\ncrl = {:?}\n",
            fixture(ca),
            match crl {
                "" => PathBuf::new(),
                crl => fixture(crl),
            }
        );
        let section = settings::Settings::from_toml(&text, "test").unwrap();
        let mistakes = Settings::from_settings(&section).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{ca} {crl}: {mistakes:?}");
        assert_eq!(mistakes[0].path, key, "{ca} {crl}");
        assert!(
            mistakes[0].text.contains(expected),
            "{ca} {crl}: {}",
            mistakes[0].text
        );
        let text = mistakes[0].text.split(": ").next().unwrap();
        assert!(text.ends_with(if key == "ca" { ca } else { crl }), "{text}");
    }
}

const FILE_MAX_TEST: u64 = (16 << 20) + 1;

#[test]
fn settings_that_can_do_nothing_are_mistakes() {
    let mistakes = |text: &str| {
        let section = settings::Settings::from_toml(text, "test").unwrap();
        let mistakes = Settings::from_settings(&section).err().unwrap_or_default();
        mistakes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(mistakes(""), [""; 0]);
    assert!(mistakes("validate = true")[0].contains("give `ca = "));
    assert!(mistakes("crl = 'x'")[0].contains("expected `ca` beside it"));
    let policy = |topic: &str| mistakes(&format!("routing_policy = {{ '{topic}' = ['a'] }}"));
    assert_eq!(policy("org.example.git.push"), [""; 0]);
    assert!(policy("org.example.*")[0].contains("whole topics"));
    assert!(mistakes("routing_polcy = {}")[0].contains("did you mean `routing_policy`?"));
    assert!(mistakes("routing_policy = { a = 'b' }")[0].contains("routing_policy"));
}

#[test]
fn files_that_change_are_in_force_and_what_can_not_be_used_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let put = |from: &str, to: &str| {
        // Another file, so that it is never half there.
        std::fs::copy(fixture(from), dir.path().join("new")).unwrap();
        std::fs::rename(dir.path().join("new"), dir.path().join(to)).unwrap();
    };
    put("ca.crt", "ca.crt");
    put("crl-none.pem", "crl.pem");
    let settings = Settings {
        ca: dir.path().join("ca.crt"),
        crl: dir.path().join("crl.pem"),
        ..Settings::default()
    };
    let validator = Arc::new(Validator::open(&settings).unwrap());
    let mut checker = Checker::new(validator.clone(), "test");
    let revoked = first(Err("revoked"));
    let mut found = || {
        validator.look();
        checker.refresh();
        now(&mut checker, &revoked)
    };
    let errors = || validator.reload_errors().load(Ordering::Relaxed);
    assert_eq!(found(), Ok(()));
    put("crl.pem", "crl.pem");
    assert_eq!((found(), errors()), (Err("revoked".into()), 0));
    put("messages.jsonl", "crl.pem");
    assert_eq!((found(), errors()), (Err("revoked".into()), 1));
    // Looked at once, not again and again.
    assert_eq!((found(), errors()), (Err("revoked".into()), 1));
    std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
    assert_eq!((found(), errors()), (Err("revoked".into()), 2));
    put("ca.crt", "ca.crt");
    put("crl-none.pem", "crl.pem");
    assert_eq!((found(), errors()), (Ok(()), 2));
}

#[test]
fn only_signers_that_are_vouched_for_are_remembered() {
    let mut checker = checker(&settings("ca.crt", "crl.pem"));
    for told in told() {
        let _ = now(&mut checker, &told);
    }
    let names: Vec<&str> = (checker.signers.values())
        .map(|signer| &*signer.name)
        .collect();
    assert!(!names.is_empty());
    let before = checker.signers.len();
    let untrusted = first(Err("untrusted"));
    assert_eq!(now(&mut checker, &untrusted), Err("untrusted".into()));
    assert_eq!(checker.signers.len(), before);
}

fn message(told: &Told, seq: u64) -> Message {
    Message::at_ns(
        told.topic.as_str().into(),
        told.payload.clone().into(),
        1,
        seq,
    )
}

#[test]
fn a_batch_is_judged_in_order_and_fits_up_to_the_first_that_is_refused() {
    let (good, bad) = (first(Ok(())), first(Err("bad_signature")));
    let mut checker = checker(&settings("ca.crt", "crl.pem"));
    let messages: Vec<Message> = [&good, &good, &bad, &bad, &good]
        .into_iter()
        .zip(1..)
        .map(|(told, seq)| message(told, seq))
        .collect();
    assert_eq!(checker.judge(&messages, 10), Judged::Fit(2));
    assert_eq!(checker.judge(&messages, 1), Judged::Fit(1));
    assert_eq!(checker.judge(&messages[1..], 10), Judged::Fit(1));
    let refused = Judged::Refused(Reason::BadSignature);
    assert_eq!(checker.judge(&messages[2..], 10), refused);
    // One was skipped by an operator.
    assert_eq!(checker.judge(&messages[4..], 10), Judged::Fit(1));
    // And again, as in a replay.
    assert_eq!(checker.judge(&messages[3..], 10), refused);
}

#[test]
fn what_one_worker_has_found_the_others_find() {
    let (good, validator) = (
        first(Ok(())),
        Arc::new(Validator::open(&settings("ca.crt", "crl.pem")).unwrap()),
    );
    let mut checker = Checker::new(validator.clone(), "test");
    validator.verdicts.note(7, 0, Err(Reason::Revoked)); // as nobody would find by themselves
    assert_eq!(
        checker.judge(&[message(&good, 7)], 1),
        Judged::Refused(Reason::Revoked)
    );
    // A dead letter's number may be another hub's.
    assert_eq!(checker.judge_again(&message(&good, 7)), Judged::Fit(1));
    // Claimed by one that does not come to an end.
    assert_eq!(validator.verdicts.claim(8, 0), Known::Nothing);
    assert_eq!(checker.judge(&[message(&good, 8)], 1), Judged::Fit(1));
    assert_eq!(validator.verdicts.claim(8, 0), Known::Verdict(Ok(())));
}

#[test]
fn one_certificate_written_in_many_ways_takes_bounded_room() {
    let good = first(Ok(()));
    let text = String::from_utf8(good.payload.clone()).unwrap();
    let mut checker = checker(&settings("ca.crt", "crl.pem"));
    // Python's base64 passes over blanks.
    let (before, after) = text.split_once("\"certificate\"").unwrap();
    let (colon, value) = after.split_once('"').unwrap();
    let mut write = |blanks: usize| {
        let blanks = " ".repeat(blanks);
        let payload = format!("{before}\"certificate\"{colon}\"{blanks}{value}");
        word(checker.check_at(&good.topic, payload.as_bytes(), NOW)).map(|()| checker.signers.len())
    };
    for blanks in 0..SIGNERS_MAX {
        assert_eq!(write(blanks), Ok(blanks + 1));
    }
    assert_eq!(write(SIGNERS_MAX), Ok(1));
    assert_eq!(write(CERTIFICATE_MAX), Err("malformed".into()));
}
