//! An archive in a real PostgreSQL.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // a test's name says what it is about
#![cfg(feature = "postgres")]

mod server;

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use server::{PASSWORD, Server};
use weir_archive::database::{Database, Location, Postgres, Tls};
use weir_archive::query::{Filter, Reader};
use weir_consumer::testkit::{self, Harness};
use weir_consumer::{Consumer, Context, Delivery, Message, Publisher, Verdict, deliver};

fn archive(toml: &str, data_dir: &Path) -> Harness<Box<dyn Consumer>> {
    Harness::new(testkit::build(&weir_archive::kind(), toml, data_dir).unwrap())
}

/// What comes of a message: a verdict, and the text of the failure.
fn outcome(archive: &mut Harness<Box<dyn Consumer>>) -> (Verdict, String) {
    let verdict = archive.feed("org.example.a", "{}").unwrap_err();
    (verdict, archive.last_failure().unwrap().to_owned())
}

fn location(url: &str) -> Location {
    Location {
        url: url.to_owned().try_into().unwrap(),
        ..Location::default()
    }
}

fn postgres(location: &Location) -> Postgres {
    match location.connect(Path::new("")) {
        Ok(Database::Postgres(postgres)) => postgres,
        Ok(_) => panic!("not PostgreSQL"),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
#[ignore = "needs peers: make test"]
fn what_was_settled_is_in_the_database() {
    let server = Server::start(None);
    let url = server.database("archive");
    let mut archive = archive(&format!("url = '{url}'"), Path::new(""));
    let messages: [(&str, &[u8]); 4] = [
        ("org.example.a", br#"{"id": 7}"#),
        ("org.example.b", b"\xff\xfe"),
        ("org.example.c", b"one\0two \xc3\xa4"),
        ("", b""),
    ];
    let stored = archive.feed_batch(messages);
    assert_eq!(stored, Ok(()), "{:?}", archive.last_failure());
    let sql = |sql: &str| server.sql("archive", sql).unwrap();
    assert_eq!(
        sql("SELECT seq, hub, topic, encode(payload, 'escape') FROM weir.messages ORDER BY seq"),
        "1|weir|org.example.a|{\"id\": 7}\n\
         2|weir|org.example.b|\\377\\376\n\
         3|weir|org.example.c|one\\000two \\303\\244\n\
         4|weir||"
    );
    // What is no JSON, or none to PostgreSQL, is NULL and ends no query.
    for odd in [
        r#"{"a": "\u0000"}"#,
        r#""\ud800""#,
        "1e999999",
        &"[".repeat(100_000),
    ] {
        assert_eq!(archive.feed("odd", odd), Ok(()));
    }
    assert_eq!(
        sql(
            "SELECT seq, weir.payload_json(payload) ->> 'id', weir.payload_text(payload)
             FROM weir.messages WHERE topic LIKE 'org.%' ORDER BY seq"
        ),
        "1|7|{\"id\": 7}\n2||\n3||"
    );
    let json = "SELECT count(*) FROM weir.messages WHERE weir.payload_json(payload) IS NOT NULL";
    assert_eq!(sql(json), "1");

    // What the server can't store.
    let batch = [("good", ""), ("a\0b", ""), ("good too", "")];
    assert_eq!(archive.feed_batch(batch), Err(Verdict::DeadLetter));
    assert!(archive.last_failure().unwrap().contains("has a NUL"));
    assert_eq!(
        sql("SELECT count(*) FROM weir.messages WHERE topic LIKE 'good%'"),
        "0"
    );
    let refuse = "ALTER TABLE weir.messages ADD CHECK (topic <> 'bad')";
    sql(refuse);
    assert_eq!(archive.feed("bad", ""), Err(Verdict::DeadLetter));
    assert!(
        archive
            .last_failure()
            .unwrap()
            .contains("violates check constraint")
    );
    assert_eq!(archive.feed("good", ""), Ok(()));

    let build = || {
        testkit::build(
            &weir_archive::kind(),
            &format!("url = '{url}'"),
            Path::new(""),
        )
    };
    testkit::conformance(|| build().unwrap());
}

#[test]
#[ignore = "needs peers: make test"]
fn a_message_is_stored_once() {
    let server = Server::start(None);
    let url = server.database("archive");
    let build = |hub: &str| {
        let context = Context::new("archive", Path::new(""), Publisher::nowhere()).in_hub(hub);
        let toml = format!("url = '{url}'\nid = '/id'");
        let settings = weir_consumer::settings::Settings::from_toml(&toml, "test").unwrap();
        weir_archive::kind()
            .build_consumer(&settings, &context)
            .unwrap()
    };
    let message = |seq: u64, payload: &str| {
        Message::new(
            "t".into(),
            payload.to_owned().into(),
            UNIX_EPOCH + Duration::from_secs(7),
            seq,
        )
    };
    let first: Vec<Message> = (1..=3).map(|seq| message(seq, "{}")).collect();
    let again: Vec<Message> = (2..=5)
        .chain([3, 5])
        .map(|seq| message(seq, "{}"))
        .collect();
    let ids: Vec<Message> = [
        (6, r#"{"id": "a"}"#),
        (7, r#"{"id": "b"}"#),
        (8, r#"{"id": "a"}"#),
    ]
    .map(|(seq, payload)| message(seq, payload))
    .to_vec();
    let store = |hub: &str, batch: &[Message]| match deliver(&mut *build(hub), batch) {
        Delivery::Consumed => {}
        other => panic!("{other:?}"),
    };
    for batch in [&first, &again, &first, &ids] {
        store("one", batch);
    }
    store("other", &ids);
    store("other", &first);
    let rows = "SELECT hub, string_agg(seq::text, ' ' ORDER BY seq) FROM weir.messages
                GROUP BY hub ORDER BY hub";
    let rows = server.sql("archive", rows).unwrap();
    assert_eq!(rows, "one|1 2 3 4 5 6 7\nother|1 2 3");
}

#[test]
#[ignore = "needs peers: make test"]
fn two_hubs_that_come_at_once_make_one_archive() {
    let server = Server::start(None);
    let url = server.database("archive");
    let connect = || drop(postgres(&location(&url)));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(connect)).collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(
        server
            .sql("archive", "SELECT version FROM weir.archive")
            .unwrap(),
        "2"
    );
}

#[test]
#[ignore = "needs peers: make test"]
fn what_is_in_the_way_is_told() {
    let mut server = Server::start(None);
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, PASSWORD).unwrap();
    let with = |url: &str| {
        archive(
            &format!("url = '{url}'\npassword.file = {secret:?}"),
            dir.path(),
        )
    };

    // An operator can mend these while messages wait: without a new start it goes on.
    let mut tcp = with(&server.tcp("archive"));
    let (verdict, told) = outcome(&mut tcp);
    assert_eq!(verdict, Verdict::Retry);
    assert!(
        told.contains("database \"archive\" does not exist (3D000); make it with"),
        "{told}"
    );
    let socket = server.database("archive");
    std::fs::write(&secret, "hunter2").unwrap();
    let (verdict, told) = outcome(&mut tcp);
    assert_eq!(verdict, Verdict::Retry);
    assert!(
        told.contains("(28P01); look at the user in `url`"),
        "{told}"
    );
    assert!(!told.contains("hunter2"), "{told}");
    std::fs::remove_file(&secret).unwrap();
    assert!(outcome(&mut tcp).1.contains("can't read the secret in"));
    let (_, told) = outcome(&mut archive(
        &format!("url = '{}'", server.tcp("archive")),
        dir.path(),
    ));
    assert!(told.contains("password missing"), "{told}");
    std::fs::write(&secret, PASSWORD).unwrap();
    assert_eq!(tcp.feed("org.example.a", "{}"), Ok(()));

    // The server goes away and comes back.
    server.crash();
    let (verdict, told) = outcome(&mut tcp);
    assert_eq!(verdict, Verdict::Retry, "{told}");
    let (verdict, told) = outcome(&mut tcp);
    assert!(
        told.contains("error connecting to server: Connection refused"),
        "{told}"
    );
    assert_eq!(verdict, Verdict::Retry);
    server.go_on();
    assert_eq!(tcp.feed("org.example.a", "{}"), Ok(()));

    // A user without rights.
    server.sql("postgres", "CREATE USER other").unwrap();
    server.sql("postgres", "CREATE DATABASE theirs").unwrap();
    let other = socket
        .replace("weir@", "other@")
        .replace("/archive?", "/theirs?");
    let (verdict, told) = outcome(&mut with(&other));
    assert_eq!(verdict, Verdict::Retry);
    assert!(
        told.contains("(42501); let a database administrator"),
        "{told}"
    );

    // Nothing of these is touched, and the consumer stops.
    let halted = |sql: &str, name: &str| {
        let url = server.database(name);
        server.sql(name, sql).unwrap();
        let (verdict, told) = outcome(&mut with(&url));
        assert_eq!(verdict, Verdict::Halt, "{told}");
        let read = Reader::open(&location(&url), Path::new(""), Filter::default());
        assert_eq!(read.err().unwrap().to_string(), told);
        told
    };
    let told = halted(
        "CREATE SCHEMA weir; CREATE TABLE weir.messages (id int)",
        "of_others",
    );
    assert!(
        told.contains("the schema `weir` there is of something else"),
        "{told}"
    );
    let newer = "CREATE SCHEMA weir; CREATE TABLE weir.archive AS SELECT 3 AS version";
    let told = halted(newer, "newer");
    assert!(
        told.contains("an archive of version 3; this weir knows versions up to 2"),
        "{told}"
    );
    let latin = "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0";
    server.sql("postgres", latin).unwrap();
    let (verdict, told) = outcome(&mut with(&socket.replace("/archive?", "/latin?")));
    assert_eq!(verdict, Verdict::Halt);
    assert!(told.contains("is encoded in LATIN1"), "{told}");

    // A schema that an administrator has made is used.
    let prepared = server.database("prepared");
    server.sql("prepared", "CREATE SCHEMA weir").unwrap();
    assert_eq!(with(&prepared).feed("a", ""), Ok(()));
    let nothing = server.database("nothing");
    let read = Reader::open(&location(&nothing), Path::new(""), Filter::default());
    assert!(
        read.err()
            .unwrap()
            .to_string()
            .contains("there is no archive; a hub makes it")
    );
}

#[test]
#[ignore = "needs peers: make test"]
fn no_call_waits_longer_than_the_timeout() {
    let server = Server::start(None);
    let url = server.database("archive");
    let quick = format!("url = '{url}'\ntimeout = '300ms'");
    let mut archive = archive(&quick, Path::new(""));
    assert_eq!(archive.feed("a", ""), Ok(()));

    // Another holds the table; the server gives up.
    let lock = "BEGIN; LOCK weir.messages; SELECT pg_sleep(60)";
    let blocked = std::thread::scope(|scope| {
        let locking = scope.spawn(|| server.sql("archive", lock));
        let locked = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock'
                      AND relation = to_regclass('weir.messages') AND granted";
        while server.sql("archive", locked).unwrap() == "0" {
            std::thread::yield_now();
        }
        let blocked = outcome(&mut archive);
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE query LIKE 'BEGIN; LOCK%' AND pid <> pg_backend_pid()";
        server.sql("archive", end).unwrap();
        assert!(locking.join().unwrap().is_err());
        blocked
    });
    assert_eq!(blocked.0, Verdict::Retry);
    let told = &blocked.1;
    let either = [
        "canceling statement due to statement timeout",
        "no answer within 300ms",
    ];
    assert!(either.iter().any(|text| told.contains(text)), "{told}");
    assert_eq!(archive.feed("a", ""), Ok(()));

    // The server is there and says nothing, in the midst of a connection and before one.
    let mut stopped = archive;
    let pids = server.sql(
        "archive",
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'weir'",
    );
    let pids = pids.unwrap();
    let signal = |signal: &str| {
        for pid in pids.lines() {
            let kill = std::process::Command::new("kill")
                .args([signal, pid])
                .status();
            assert!(kill.unwrap().success());
        }
    };
    signal("-STOP");
    let (verdict, told) = outcome(&mut stopped);
    signal("-CONT");
    assert_eq!(verdict, Verdict::Retry);
    assert!(told.contains("no answer within 300ms"), "{told}");
    assert_eq!(stopped.feed("a", ""), Ok(()));
}

/// A peer that does this with a connection; answers the URL.
fn peer(with: impl Fn(std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(|stream| with(stream.unwrap())));
    format!("postgres://weir@127.0.0.1:{port}/archive")
}

#[test]
fn a_peer_that_is_no_postgresql_is_told() {
    let (keep, kept) = std::sync::mpsc::channel();
    let silent = peer(move |stream| keep.send(stream).unwrap());
    let lying = peer(|mut stream| {
        let mut asked = [0; 8];
        let _ = stream.read(&mut asked);
        let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let closing = peer(drop);
    for tls in ["prefer", "require", "disable"] {
        for (url, text) in [
            (&silent, "no answer within 200ms"),
            (&lying, ""),
            (&closing, ""),
        ] {
            let toml = format!("url = '{url}'\ntls = '{tls}'\ntimeout = '200ms'");
            let (verdict, told) = outcome(&mut archive(&toml, Path::new("")));
            assert_eq!(verdict, Verdict::Retry);
            assert!(told.starts_with(&**url) && told.contains(text), "{told}");
        }
    }
    drop(kept);
}

#[test]
#[ignore = "needs peers: make test"]
fn tls_is_used_and_with_require_the_server_proves_who_it_is() {
    let name = vec!["localhost".to_owned()];
    let certified = rcgen::generate_simple_self_signed(name).unwrap();
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let server = Server::start(Some((&certificate, &key)));
    server.database("archive");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), &certificate).unwrap();
    std::fs::write(dir.path().join("secret"), PASSWORD).unwrap();
    std::fs::write(dir.path().join("empty.pem"), "").unwrap();
    let ip = server.tcp("archive");
    let host = ip.replace("127.0.0.1", "localhost");
    let with = |url: &str, more: &str| {
        let toml = format!("url = '{url}'\npassword.file = 'secret'\n{more}");
        archive(&toml, dir.path())
    };
    let encrypted = || {
        let sql = "SELECT string_agg(DISTINCT ssl::text, ' ') FROM pg_stat_ssl
                   JOIN pg_stat_activity USING (pid) WHERE application_name = 'weir'";
        server.sql("archive", sql).unwrap()
    };
    for (url, more, expected) in [
        (&ip, "", "true"),
        (&ip, "tls = 'disable'", "false"),
        (&host, "tls = 'require'\nca = 'ca.pem'", "true"),
    ] {
        let mut archive = with(url, more);
        let stored = archive.feed("a", "");
        assert_eq!(stored, Ok(()), "{more}: {:?}", archive.last_failure());
        assert_eq!(encrypted(), expected, "{more}");
        drop(archive);
        while !encrypted().is_empty() {
            std::thread::yield_now(); // until the server has seen the end of the connection
        }
    }
    for (url, more, told) in [
        (&host, "tls = 'require'", "invalid peer certificate"),
        (&ip, "tls = 'require'\nca = 'ca.pem'", "not valid for name"),
        (
            &host,
            "tls = 'require'\nca = 'none.pem'",
            "can't use the certificates in",
        ),
        (
            &host,
            "tls = 'require'\nca = 'empty.pem'",
            "there is none in it",
        ),
    ] {
        let (verdict, said) = outcome(&mut with(url, more));
        assert_eq!(verdict, Verdict::Retry);
        assert!(said.contains(told), "{more}: {said}");
    }
    // A server without TLS, where it is required.
    let plain = Server::start(None);
    plain.database("archive");
    let (_, said) = outcome(&mut with(&plain.tcp("archive"), "tls = 'require'"));
    assert!(said.contains("server does not support TLS"), "{said}");
    let mut preferred = with(&plain.tcp("archive"), "tls = 'prefer'");
    assert_eq!(preferred.feed("a", ""), Ok(()));
    assert_eq!(location(&ip).tls, Tls::Prefer);
}

#[test]
#[ignore = "needs peers: make test"]
fn it_is_read_in_order_and_page_by_page() {
    let server = Server::start(None);
    let url = server.database("archive");
    let mut archive = archive(&format!("url = '{url}'"), Path::new(""));
    let messages = (0..25_000).map(|n| (format!("t.{}", n % 7), format!("{n}")));
    let messages: Vec<(String, String)> = messages.collect();
    for batch in messages.chunks(1000) {
        assert_eq!(archive.feed_batch(batch.iter().cloned()), Ok(()));
    }
    let large = vec![0xff; 9 << 20];
    for _ in 0..4 {
        assert_eq!(archive.feed("large", &large), Ok(()));
    }
    let read = |filter: Filter| {
        let mut reader = Reader::open(&location(&url), Path::new(""), filter).unwrap();
        let mut read = Vec::new();
        loop {
            let page = reader.page().unwrap();
            if page.is_empty() {
                return read;
            }
            assert!(page.iter().map(|m| m.payload.len()).sum::<usize>() < 26 << 20);
            read.extend(page);
        }
    };
    let all = read(Filter::default());
    assert_eq!(all.len(), 25_004);
    assert!(all.is_sorted_by_key(|m| (m.received_ns, m.seq)));
    assert!(all[25_003].payload == large);
    let newest = read(Filter {
        newest: true,
        topic: "t.1".into(),
        since_ns: Some(all[12_000].received_ns),
        ..Filter::default()
    });
    let expected: Vec<&str> = (messages.iter().enumerate().rev())
        .filter(|(n, (topic, _))| topic == "t.1" && all[*n].received_ns >= all[12_000].received_ns)
        .map(|(_, (_, payload))| payload.as_str())
        .collect();
    let found: Vec<&str> = (newest.iter())
        .map(|m| std::str::from_utf8(&m.payload).unwrap())
        .collect();
    assert_eq!(found, expected);
}
