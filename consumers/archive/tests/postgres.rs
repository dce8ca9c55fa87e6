//! An archive in a real PostgreSQL.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // a test's name says what it is about
#![cfg(feature = "postgres")]

mod server;

use std::path::Path;

use server::Server;
use weir_consumer::testkit::{self, Harness};
use weir_consumer::{Consumer, Verdict};

fn archive(toml: &str, data_dir: &Path) -> Harness<Box<dyn Consumer>> {
    Harness::new(testkit::build(&weir_archive::kind(), toml, data_dir).unwrap())
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
    let id = "SELECT weir.payload_json(payload) ->> 'id' FROM weir.messages ORDER BY seq LIMIT 1";
    assert_eq!(sql(id), "7");

    assert_eq!(archive.feed("a\0b", ""), Err(Verdict::DeadLetter));
    assert_eq!(archive.feed("a", ""), Ok(()));
    assert_eq!(sql("SELECT count(*) FROM weir.messages"), "5");
}
