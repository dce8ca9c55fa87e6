//! A hub that archives into a real PostgreSQL.

use std::process::Command;
use std::time::{Duration, Instant};

use weir::backend::memory::Memory;
use weir::{Config, Hub, Registry};

use crate::postgres::{PASSWORD, Server};

const MESSAGES: u64 = 30_000;

#[test]
#[ignore = "needs peers: make test"]
fn a_server_that_is_killed_under_load_loses_nothing_and_stores_nothing_twice() {
    let mut server = Server::start(None);
    server.database("archive");
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let config = format!(
        "[hub]\nhttp = ''\ndata_dir = {:?}\n[consumers.archive]\ntopics = ''\nurl = '{}'\n\
         password = {{ file = {password:?} }}\nbatch_max = 100\n\
         retry = {{ attempts = 0, delay = '10ms', delay_max = '200ms' }}\n",
        dir.path().join("data"),
        server.tcp("archive"),
    );
    let config = Config::embedded(&config, &Registry::builtin()).unwrap();
    let (bus, backend) = Memory::new(10_000);
    let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
    let feeding = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            bus.send("org.example.number", format!("{{\"n\": {number}}}"))
                .unwrap();
        }
        bus
    });
    let consumed = || hub.status().consumers[0].consumed;
    let patience = Instant::now() + Duration::from_secs(300);
    let until = |count: u64| {
        while consumed() < count {
            assert!(Instant::now() < patience, "{:?}", hub.status().consumers[0]);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for kill in 1..=4 {
        until(kill * MESSAGES / 6);
        server.crash();
        server.go_on();
    }
    until(MESSAGES);
    let retried = hub.status().consumers[0].retried;
    let _bus = feeding.join().unwrap();
    hub.stop();

    let sql = |sql: &str| server.sql("archive", sql).unwrap();
    let counts = "SELECT count(*), count(DISTINCT payload), min(seq), max(seq) FROM weir.messages";
    assert_eq!(sql(counts), format!("{MESSAGES}|{MESSAGES}|1|{MESSAGES}"));
    assert!(retried > 0, "no delivery met the server while it was away");
    println!("{retried} deliveries were tried again");

    let socket = format!(
        "postgres://weir@/archive?host={}&port={}",
        server.dir.path().display(),
        server.port
    );
    let query = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command
            .args(["archive", "query", "--url", &socket, "--json"])
            .args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(query(&[]).lines().count() as u64, MESSAGES);
    let last = query(&["--newest", "--limit", "1"]);
    assert!(last.contains(&format!("\"seq\":{MESSAGES},")), "{last}");
    let one = query(&["--json-path", "$.n == 4711", "--topic", "org.example."]);
    assert!(
        one.contains("\"seq\":4712,") && one.lines().count() == 1,
        "{one}"
    );
}
