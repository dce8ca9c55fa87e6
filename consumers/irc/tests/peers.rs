//! The kind beside real servers, which `tests/peers/setup` installs.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // a test's name says what it is about

mod servers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use weir_consumer::testkit::{Harness, build, conformance};
use weir_consumer::{Consumer, Verdict};

use servers::{Gate, Inspircd, Ngircd, Watcher, eventually};

/// The kind, with a connection to this port; `connection` has more settings of it.
fn irc(port: u16, dir: &Path, connection: &str, more: &str) -> Harness<Box<dyn Consumer>> {
    let toml = format!(
        "channels = ['#weir']\nformat = '{{{{ payload }}}}'\n{more}\n[connection]\n\
         server = '127.0.0.1:{port}'\nnick = 'weir'\n{connection}"
    );
    Harness::new(build(&weir_irc::kind(), &toml, dir).unwrap())
}

const FAST: &str = "tls = false\nline_rate = '1000/s'\nline_burst = 100";
const ALL: &str = "flood.policy = 'post'";

#[test]
#[ignore = "needs peers: make test"]
fn messages_are_read_by_those_in_the_channel() {
    let dir = tempfile::tempdir().unwrap();
    let server = Ngircd::start(dir.path(), "");
    let watcher = Watcher::join(server.port, "ann", "#weir");
    let mut irc = irc(server.port, dir.path(), FAST, ALL);
    let long = "wörd ".repeat(300);
    for text in [
        "hello",
        "two\nlines",
        "\u{3}04red",
        "a\r\nQUIT",
        long.trim(),
    ] {
        eventually("it is said", || irc.feed("t", text).is_ok());
    }
    let last = |said: &Vec<String>| said.last().is_some_and(|line| line.ends_with('…'));
    eventually("all is read", || last(&watcher.said("weir")));
    let said = watcher.said("weir");
    let expected = ["hello", "two", "lines", "\u{3}04red", "a", "QUIT"];
    assert_eq!(said[..6], expected);
    // Neither cut by the server, nor much shorter than it could be.
    assert_eq!(said.len(), 9, "{said:?}");
    assert!(said[6].ends_with("wörd") && said[6].len() > 380, "{said:?}");
    assert!(said[8].ends_with('…'), "{said:?}");

    // A farewell, and not only a connection that ends.
    drop(irc);
    eventually("it says that it goes", || {
        let lines = watcher.lines();
        lines
            .iter()
            .any(|line| line.starts_with(":weir!") && line.contains(" QUIT :\"weir\""))
    });
}

#[test]
#[ignore = "needs peers: make test"]
fn it_stands_what_every_consumer_has_to_stand() {
    let dir = tempfile::tempdir().unwrap();
    let server = Ngircd::start(dir.path(), "");
    let toml = format!(
        "channels = ['#weir']\nflood.policy = 'post'\n[connection]\nnick = 'weir'\n\
         server = '127.0.0.1:{}'\n{FAST}\ntimeout = '8s'",
        server.port
    );
    conformance(|| build(&weir_irc::kind(), &toml, dir.path()).unwrap());
}

/// A certificate for 127.0.0.1, and the lines of ngircd's configuration that use it.
fn tls(dir: &Path, of_an_authority: bool) -> (u16, String) {
    let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    if of_an_authority {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    let signing_key = rcgen::KeyPair::generate().unwrap();
    let signed = params.self_signed(&signing_key).unwrap();
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&certificate, signed.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    let ssl = format!(
        "[SSL]\nCertFile = {}\nKeyFile = {}\nPorts = {port}",
        certificate.display(),
        key.display()
    );
    (port, ssl)
}

#[test]
#[ignore = "needs peers: make test"]
fn tls_is_spoken_and_a_certificate_that_nobody_vouches_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (port, ssl) = tls(dir.path(), false);
    let server = Ngircd::start(dir.path(), &ssl);
    let watcher = Watcher::join(server.port, "ann", "#weir");
    let mut stranger = irc(port, dir.path(), "", "");
    assert_eq!(stranger.feed("t", "hello"), Err(Verdict::Retry));
    let told = stranger.last_failure().unwrap().to_owned();
    assert!(told.contains("certificate"), "{told}");
    drop(stranger);
    let mut plain = irc(
        server.port,
        dir.path(),
        "ca = 'cert.pem'\ntimeout = '500ms'",
        "",
    );
    assert_eq!(plain.feed("t", "hello"), Err(Verdict::Retry));
    let told = plain.last_failure().unwrap().to_owned();
    assert!(told.contains("is `tls` right for this port?"), "{told}");
    drop(plain);

    let mut irc = irc(port, dir.path(), "ca = 'cert.pem'", "");
    eventually("it is said", || irc.feed("t", "hello").is_ok());
    eventually("it is read", || watcher.said("weir") == ["hello"]);
}

#[test]
#[ignore = "needs peers: make test"]
fn a_certificate_that_is_one_of_an_authority_is_told_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let (port, ssl) = tls(dir.path(), true);
    let _server = Ngircd::start(dir.path(), &ssl);
    let mut irc = irc(port, dir.path(), "ca = 'cert.pem'", "");
    assert_eq!(irc.feed("t", "hello"), Err(Verdict::Retry));
    let told = irc.last_failure().unwrap();
    assert!(told.contains("make one with CA:FALSE"), "{told}");
}

#[test]
#[ignore = "needs peers: make test"]
fn the_pace_keeps_us_from_being_kicked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Inspircd::start(dir.path());
    let watcher = Watcher::join(server.port, "ann", "#weir");
    // What this server does with those who have no pace.
    let mut fast = irc(server.port, dir.path(), FAST, ALL);
    eventually("the one without a pace is thrown out", || {
        fast.feed("t", "fast").is_err() && fast.last_failure().unwrap().contains("Excess Flood")
    });
    drop(fast);
    let joins = || {
        let lines = watcher.lines().into_iter();
        let ours = lines.filter(|line| line.starts_with(":weir!") && line.contains(" JOIN "));
        ours.count()
    };
    let before = joins();
    let mut irc = irc(
        server.port,
        dir.path(),
        "tls = false\nline_rate = '1/s'",
        ALL,
    );
    let long = "x".repeat(700); // two lines
    for number in 0..10 {
        let text = format!("{number} {long}");
        eventually("it is said", || irc.feed("t", &text).is_ok());
    }
    let slow = || {
        watcher
            .said("weir")
            .iter()
            .filter(|line| line.contains("xxx"))
            .count()
    };
    eventually("all is read", || slow() == 20);
    assert_eq!(joins(), before + 1, "it was thrown out");
}

#[test]
#[ignore = "needs peers: make test"]
fn an_account_is_logged_in_to() {
    let dir = tempfile::tempdir().unwrap();
    let server = Inspircd::start(dir.path());
    let ann = server.register("ann", "hunter2");
    std::fs::write(dir.path().join("right"), "hunter2\n").unwrap();
    std::fs::write(dir.path().join("wrong"), "hunter3\n").unwrap();
    let login = |file: &str| {
        let account = format!("sasl = {{ account = 'ann', password = {{ file = '{file}' }} }}");
        irc(server.port, dir.path(), &format!("{FAST}\n{account}"), ALL)
    };
    let mut refused = login("wrong");
    eventually("it is refused", || match refused.feed("t", "1") {
        Err(Verdict::Halt) => true,
        other => panic!("{other:?}: {:?}", refused.last_failure()),
    });
    let told = refused.last_failure().unwrap();
    assert!(
        told.contains("the login as ann (SASL) is refused"),
        "{told}"
    );
    assert!(!told.contains("hunter"), "{told}");
    drop(refused);

    let mut irc = login("right");
    eventually("it is said", || irc.feed("t", "1").is_ok());
    ann.send("WHOIS weir");
    eventually("it is known as the account", || {
        ann.lines()
            .iter()
            .any(|line| line.contains(" 330 ann weir ann :"))
    });
    assert_eq!(ann.said("weir"), ["1"]);
}

#[test]
#[ignore = "needs peers: make test"]
fn a_kick_is_told_and_a_kill_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let oper = "[Operator]\nName = op\nPassword = op";
    let server = Ngircd::start(dir.path(), oper);
    let watcher = Watcher::join(server.port, "ann", "#weir");
    let mut irc = irc(server.port, dir.path(), FAST, ALL);
    eventually("it is said", || irc.feed("t", "1").is_ok());
    watcher.send("KICK #weir weir :too loud");
    eventually("it is told", || {
        irc.feed("t", "2").is_err() && irc.last_failure().unwrap().contains("too loud")
    });
    eventually("it is in again, and says it", || irc.feed("t", "2").is_ok());
    watcher.send("OPER op op\r\nKILL weir :go away");
    eventually("it is killed", || {
        watcher
            .lines()
            .iter()
            .any(|line| line.starts_with(":weir!") && line.contains(" QUIT :"))
    });
    eventually("it is back, and says it", || irc.feed("t", "3").is_ok());
    eventually("all is read", || {
        let said = watcher.said("weir");
        ["1", "2", "3"]
            .iter()
            .all(|text| said.iter().any(|said| said == text))
    });
}

#[test]
#[ignore = "needs peers: make test"]
fn a_channel_with_a_key_and_one_that_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let channels =
        "[Channel]\nName = #keyed\nModes = +k open\n[Channel]\nName = #closed\nModes = +i";
    let server = Ngircd::start(dir.path(), channels);
    let post = |target: &'static str| {
        let toml = format!(
            "channels = [{target}]\n[connection]\nnick = 'weir'\nserver = '127.0.0.1:{}'\n{FAST}",
            server.port
        );
        Harness::new(build(&weir_irc::kind(), &toml, dir.path()).unwrap())
    };
    std::fs::write(dir.path().join("open"), "open\n").unwrap();
    std::fs::write(dir.path().join("shut"), "shut\n").unwrap();
    let mut keyed = post("{ name = '#keyed', key = { file = 'open' } }");
    eventually("it is said", || keyed.feed("t", "1").is_ok());
    drop(keyed);
    for (target, code) in [
        ("{ name = '#keyed', key = { file = 'shut' } }", "(475)"),
        (
            "{ name = '#keyed', key = { file = 'away' } }",
            "can't read the secret in",
        ),
        ("'#keyed'", "(475)"),
        ("'#closed'", "(473)"),
    ] {
        let mut shut = post(target);
        eventually("it is told", || {
            assert_eq!(shut.feed("t", "1"), Err(Verdict::Retry));
            shut.last_failure().unwrap().contains(code)
        });
    }
}

/// Invariant 1, as far as it can be had: see the page for the instant that is left.
#[test]
#[ignore = "needs peers: make test"]
fn a_server_that_is_killed_loses_nothing() {
    const ROUNDS: usize = 4;
    const MESSAGES: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    let mut server = Ngircd::start(dir.path(), "");
    let gate = Gate::before(server.port);
    let mut irc = irc(gate.port, dir.path(), FAST, ALL);
    let stop = AtomicBool::new(false);
    let mut said = Vec::new();
    std::thread::scope(|scope| {
        let posting = scope.spawn(|| {
            let mut consumed = 0;
            while consumed < ROUNDS * MESSAGES {
                match irc.feed("t", format!("message {consumed}")) {
                    Ok(()) => consumed += 1,
                    Err(verdict) => assert_eq!(verdict, Verdict::Retry),
                }
            }
            stop.store(true, SeqCst);
        });
        for round in 1..=ROUNDS {
            // Whoever reads is there before the one who posts.
            let watcher = Watcher::join(server.port, "ann", "#weir");
            gate.set(true);
            eventually("half a round is said", || {
                watcher.said("weir").len() >= MESSAGES / 2 || stop.load(SeqCst)
            });
            if round == ROUNDS {
                eventually("all is said", || stop.load(SeqCst));
                let last = format!("message {}", ROUNDS * MESSAGES - 1);
                eventually("all is read", || watcher.said("weir").contains(&last));
                said.extend(watcher.said("weir"));
                break;
            }
            gate.set(false);
            server.kill();
            // What the server had sent before it died is read to its end.
            eventually("the reader is cut off", || watcher.is_cut_off());
            said.extend(watcher.said("weir"));
            server.start_again();
        }
        posting.join().unwrap();
    });
    let mut times: BTreeMap<&String, usize> = BTreeMap::new();
    for text in &said {
        *times.entry(text).or_default() += 1;
    }
    let missing: Vec<usize> = (0..ROUNDS * MESSAGES)
        .filter(|number| !times.contains_key(&format!("message {number}")))
        .collect();
    assert!(missing.is_empty(), "lost: {missing:?}");
    let twice = times.values().filter(|count| **count > 1).count();
    println!("{} messages, {twice} of them twice", ROUNDS * MESSAGES);
    assert!(twice <= 2 * ROUNDS, "{twice} came twice");
}
