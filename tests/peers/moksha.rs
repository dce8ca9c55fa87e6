//! The real `fedmsg-check` of fedmsg 1.1.7, told of a hub by fedmsg's own configuration.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir::backend::memory::{Feed, Memory};
use weir::{Config, Hub, Registry};
use weir_consumer::{Context, Failure, Kind, Message, from_fn};

#[derive(serde::Deserialize)]
struct NoSettings {}

/// A hub with a consumer that works, one that halts at its first message, and a producer.
fn hub(endpoint: &str) -> (Feed, Hub) {
    let halting = Kind::consumer("halting", |_: NoSettings, _: &Context| {
        Ok(from_fn(|_: &Message| Err(Failure::halt("for the test"))))
    });
    let config = format!(
        "hub.http = ''\njournal.enabled = false\n\
         [moksha]\nsocket = {endpoint:?}\ninterval = '200ms'\n\
         [publish]\nbind = ['tcp://127.0.0.1:*']\n\
         [consumers.works]\nkind = 'null'\ntopics = 'org.example.*'\n\
         [consumers.halting]\ntopics = ['org.', 'net.']\n\
         [producers.heartbeat]\ninterval = '50ms'\n"
    );
    let registry = Registry::builtin().with(halting);
    let config =
        Config::embedded(&config, &registry).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let (feed, backend) = Memory::new(100);
    let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
    (feed, hub)
}

/// Runs it in a directory whose `fedmsg.d` names the socket.
fn fedmsg_check(dir: &Path, endpoint: &str, arguments: &[&str]) -> Output {
    let program = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/peers/installed/venv/bin/fedmsg-check"
    );
    assert!(
        Path::new(program).exists(),
        "{program} is missing; run `make setup`"
    );
    let configured = dir.join("fedmsg.d");
    std::fs::create_dir_all(&configured).unwrap();
    // It refuses to run without endpoints of the bus, though it needs none.
    let config =
        format!("config = {{'endpoints': {{}}, 'moksha.monitoring.socket': {endpoint:?}}}\n");
    std::fs::write(configured.join("monitoring.py"), config).unwrap();
    Command::new(program)
        .args(["--timeout", "60"])
        .args(arguments)
        .env("FEDMSG_CONFIG", &configured)
        .env("LC_ALL", "C.UTF-8")
        .current_dir(dir)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_satisfied_by(endpoint: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (feed, hub) = hub(endpoint);
    let check = |arguments: &[&str]| fedmsg_check(dir.path(), endpoint, arguments);

    let good = check(&["-c", "works", "-c", "halting", "-p", "heartbeat"]);
    assert!(good.status.success(), "{good:?}");
    let printed = text(&good.stdout);
    let (verdict, json) = printed.split_once('\n').unwrap();
    assert_eq!(verdict, "All consumers and producers are active!");
    // It prints what it was sent.
    let sent: Value = serde_json::from_str(json).unwrap();
    let [halting, works] = [0, 1].map(|place| &sent["consumers"][place]);
    assert_eq!(
        (&works["name"], &works["topic"]),
        (&json!("works"), &json!("org.example."))
    );
    assert_eq!(halting["topic"], json!(["org.", "net."]));
    assert_eq!(sent["producers"][0]["frequency"], 0.05);

    let missing = check(&["-c", "works", "-c", "nobody"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    let said = text(&missing.stderr);
    assert!(said.contains("\"nobody\" is not active!"), "{said}");
    assert!(!said.contains("\"works\""), "{said}");
    let missing = check(&["-p", "works"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");

    let all = check(&[]);
    assert!(all.status.success(), "{all:?}");
    assert!(text(&all.stdout).contains("all will be shown"), "{all:?}");

    feed.send("org.example.a", "x").unwrap();
    while hub.status().consumers[0].failed == 0 {
        std::thread::yield_now();
    }
    // It reads the next frame that is sent, so the one made before the halt may still be it.
    let patience = Instant::now() + Duration::from_secs(60);
    let halted = loop {
        assert!(Instant::now() < patience, "a halted consumer is active");
        let checked = check(&["-c", "halting"]);
        if !checked.status.success() {
            break checked;
        }
    };
    assert_eq!(halted.status.code(), Some(1), "{halted:?}");
    let said = text(&halted.stderr);
    assert!(said.contains("\"halting\" is not initialized!"), "{said}");
    assert!(check(&["-c", "works"]).status.success());

    hub.stop();
    let gone = check(&["--timeout", "1", "-c", "works"]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    assert!(text(&gone.stderr).contains("Failed to receive"), "{gone:?}");
}

#[test]
#[ignore = "needs peers: make test"]
fn the_real_fedmsg_check_reads_an_ipc_socket() {
    let dir = tempfile::tempdir().unwrap();
    is_satisfied_by(&format!("ipc://{}", dir.path().join("socket").display()));
}

#[test]
#[ignore = "needs peers: make test"]
fn the_real_fedmsg_check_reads_a_tcp_socket() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    is_satisfied_by(&format!("tcp://{}", free.unwrap()));
}
