//! The real binary: exit codes, signals, what it prints, what it tells the service manager.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::*;

pub fn weir() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.stdin(Stdio::null()).env_remove("NOTIFY_SOCKET");
    // `journal.rs` is about what is kept; here nothing is to be left where the tests run.
    command.env("WEIR_JOURNAL__ENABLED", "false");
    command
}

fn run(args: &[&str]) -> Output {
    weir().args(args).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn configure(dir: &Path, toml: &str) -> PathBuf {
    let file = dir.join("weir.toml");
    std::fs::write(&file, toml).unwrap();
    file
}

/// A hub process and where it says that it answers.
pub struct Running {
    child: Child,
    pub http: String,
    log: Option<std::thread::JoinHandle<String>>,
}

/// A test that fails leaves no hub behind.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (found, http) = crossbeam_channel::bounded(1);
        let errors = BufReader::new(child.stderr.take().unwrap());
        let log = std::thread::spawn(move || {
            let mut all = String::new();
            for line in errors.lines().map_while(Result::ok) {
                if let Some(at) = line.strip_prefix("  status    http://") {
                    let _ = found.send(at.trim_end_matches("/status").to_owned());
                }
                all.push_str(&line);
                all.push('\n');
            }
            all
        });
        let http = http.recv_timeout(PATIENCE);
        match http {
            Ok(http) => Running {
                child,
                http,
                log: Some(log),
            },
            Err(_) => {
                let _ = child.kill();
                panic!("it did not start: {}", log.join().unwrap());
            }
        }
    }

    pub fn status(&self) -> Value {
        self.get("/status")
    }

    pub fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.http
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("application/json"), "{head}");
        serde_json::from_str(body).unwrap()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for its end; answers the exit code and what it said on both outputs.
    pub fn end(mut self) -> (Option<i32>, String, String) {
        let mut out = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        let code = self.child.wait().unwrap().code();
        let log = self.log.take().unwrap();
        (code, out, log.join().unwrap())
    }
}

fn hub_config(endpoint: &str, more: &str) -> String {
    format!(
        "[hub]\nname = 'test'\nhttp = '127.0.0.1:0'\n[[backend]]\nconnect = ['{endpoint}']\n\
         [consumers.null]\ntopics = 'org.example.'\n{more}"
    )
}

#[test]
fn a_hub_runs_answers_and_ends_with_a_ledger() {
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().unwrap();
        let bus = Bus::tcp();
        let file = configure(dir.path(), &hub_config(&bus.endpoint, ""));
        let hub = Running::start(weir().args(["hub", "--json", "--config"]).arg(&file));
        assert_eq!(bus.subscriptions(1), ["org.example."]);
        for _ in 0..100 {
            bus.publish("org.example.a", "{}");
        }
        eventually("consumed", || {
            hub.status()["consumers"][0]["consumed"] == 100
        });
        let status = hub.status();
        assert_eq!(status["hub"], "test");
        let consumer = &status["consumers"][0];
        for (key, value) in [
            ("name", Value::from("null")),
            ("received", 100.into()),
            ("waiting", 0.into()),
            ("in_flight", 0.into()),
            ("queue_messages", 0.into()),
            ("lag_seconds", 0.0.into()),
            ("dead_lettered", 0.into()),
        ] {
            assert_eq!(consumer[key], value, "{key}");
        }
        assert_eq!(consumer["dropped"]["overflow"], 0);
        hub.signal(signal);
        let (code, out, log) = hub.end();
        assert_eq!(code, Some(0), "{log}");
        let ledger: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(ledger["consumers"][0]["consumed"], 100);
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    // A consumer that waits an hour for its rate keeps the first signal's drain from ending.
    let toml =
        hub_config(&bus.endpoint, "rate = '1/h'\n").replace("[hub]", "[hub]\nstop_deadline = '1h'");
    let file = configure(dir.path(), &toml);
    let hub = Running::start(weir().args(["hub", "--config"]).arg(&file));
    bus.subscriptions(1);
    bus.publish("org.example.a", "1");
    bus.publish("org.example.a", "2");
    eventually("received", || hub.status()["consumers"][0]["received"] == 2);
    hub.signal("TERM");
    // The HTTP interface and the queue are still there while it drains.
    eventually("drained but for one", || {
        hub.status()["consumers"][0]["waiting"] == 1
    });
    // Another one, because the system makes one of two that are the same and not yet seen; of two
    // that are seen at once, either is the second.
    hub.signal("INT");
    let code = hub.end().0;
    assert!(matches!(code, Some(130 | 143)), "{code:?}");
}

#[test]
fn the_service_manager_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    let bus = Bus::tcp();
    let file = configure(dir.path(), &hub_config(&bus.endpoint, ""));
    let mut command = weir();
    command.args(["hub", "--config"]).arg(&file);
    command
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "30000");
    let hub = Running::start(&mut command);
    assert_eq!(told(), "READY=1");
    assert_eq!(told(), "WATCHDOG=1");
    assert_eq!(told(), "WATCHDOG=1");
    hub.signal("TERM");
    while told() != "STOPPING=1" {}
    assert_eq!(hub.end().0, Some(0));
}

#[test]
fn a_wrong_configuration_is_refused_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = configure(
        dir.path(),
        "[hub]\nname = ''\n[consumers.log]\ntopic = ''\n[consumers.archive]\ntopics = 1\n",
    );
    for command in ["hub", "config check", "config show"] {
        let mut args: Vec<&str> = command.split(' ').collect();
        args.extend(["--config", file.to_str().unwrap()]);
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let text = stderr(&output);
        for expected in [
            "weir.toml:2:8: hub.name",
            "did you mean `topics`?",
            "consumers.archive.topics",
            "[[backend]]",
        ] {
            assert!(
                text.contains(expected),
                "{command}: no {expected} in {text}"
            );
        }
    }
}

#[test]
fn usage_errors_exit_with_2_and_a_missing_file_says_how_to_begin() {
    assert_eq!(run(&["hub"]).status.code(), Some(2));
    assert_eq!(run(&["hubb"]).status.code(), Some(2));
    assert_eq!(
        run(&["publish", "--connect", "nowhere", "topic"])
            .status
            .code(),
        Some(2)
    );
    let output = run(&["hub", "--config", "/none/such.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("weir config sample"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_port_that_is_taken_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let bus = Bus::tcp();
    let file = configure(dir.path(), &hub_config(&bus.endpoint, ""));
    let assignment = format!("hub.http={address}");
    let output = run(&[
        "hub",
        "--config",
        file.to_str().unwrap(),
        "--set",
        &assignment,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&address), "{}", stderr(&output));
}

#[test]
fn the_sample_and_every_kinds_sample_make_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let mut toml = stdout(&run(&["config", "sample"]));
    for kind in stdout(&run(&["kinds"]))
        .lines()
        .filter_map(|line| line.split(' ').next())
    {
        if !kind.is_empty()
            && !toml.contains(&format!("\n[producers.{kind}]"))
            && !kind.starts_with('`')
        {
            let sample = stdout(&run(&["kinds", kind]));
            assert!(sample.contains(kind), "{kind}: {sample}");
            toml.push_str(&sample);
        }
    }
    let file = configure(dir.path(), &toml);
    let output = run(&["config", "check", "--config", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = run(&["config", "show", "--config", file.to_str().unwrap()]);
    assert!(stdout(&output).contains("# "), "{}", stdout(&output));
    assert!(run(&["kinds", "--json"]).status.success());
    assert_eq!(run(&["kinds", "arkive"]).status.code(), Some(2));
}

#[test]
fn config_check_looks_whether_the_interfaces_files_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("a.crt"), dir.path().join("a.key"));
    let toml = format!(
        "[hub]\nhttp_tls = {{ certificate = {certificate:?}, key = {key:?} }}\n\
         [[backend]]\nconnect = ['tcp://127.0.0.1:9940']\n[consumers.null]\ntopics = ''\n"
    );
    let file = configure(dir.path(), &toml);
    let check = || {
        let arguments = ["config", "check", "-c", file.to_str().unwrap()];
        weir()
            .args(arguments)
            .env("WEIR_JOURNAL__ENABLED", "true")
            .output()
            .unwrap()
    };
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    let refused = check();
    assert_eq!(refused.status.code(), Some(2));
    let told = stderr(&refused);
    assert!(told.contains("weir.toml:2:"), "{told}");
    assert!(
        told.contains("a.key of hub.http_tls: ") && told.contains("may read"),
        "{told}"
    );
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let good = check();
    assert!(good.status.success(), "{}", stderr(&good));
}

#[test]
fn publish_waits_for_a_subscriber_and_says_when_nobody_listened() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = ipc(dir.path(), "bus");
    let output = run(&[
        "publish",
        "--bind",
        &endpoint,
        "--wait",
        "50ms",
        "org.example.a",
        "{}",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("nobody listened"),
        "{}",
        stderr(&output)
    );

    let file = configure(dir.path(), &hub_config(&endpoint, ""));
    let hub = Running::start(weir().args(["hub", "--config"]).arg(&file));
    let mut publish = weir();
    publish
        .args(["publish", "--count", "3", "--wait", "60s", "--config"])
        .arg(&file);
    let mut child = publish
        .args(["org.example.a", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"{\"a\": 1}")
        .unwrap();
    assert!(child.wait().unwrap().success());
    eventually("received", || hub.status()["consumers"][0]["consumed"] == 3);
    // A topic that no consumer wants is a topic that nobody listens to.
    let file = file.to_str().unwrap();
    let output = run(&[
        "publish",
        "--wait",
        "300ms",
        "--config",
        file,
        "com.example",
        "{}",
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    hub.signal("TERM");
    assert_eq!(hub.end().0, Some(0));
}

#[test]
fn tail_prints_what_is_published() {
    let bus = Bus::tcp();
    let mut tail = weir();
    tail.args([
        "tail",
        "--count",
        "2",
        "--json",
        "--connect",
        &bus.endpoint,
        "org.",
    ]);
    let child = tail.stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(bus.subscriptions(1), ["org."]);
    bus.publish("org.a", "{\"id\": 1}");
    bus.publish("com.a", "not asked for");
    bus.publish("org.b", "text");
    let lines = stdout(&child.wait_with_output().unwrap());
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines[0],
        serde_json::json!({"topic": "org.a", "payload": {"id": 1}})
    );
    assert_eq!(
        lines[1],
        serde_json::json!({"topic": "org.b", "payload": "text"})
    );
}

#[test]
fn the_demo_ends_by_itself_with_a_clean_ledger() {
    let output = run(&["demo", "--for", "1s", "--speed", "600", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let first: Value = serde_json::from_str(stdout(&output).lines().next().unwrap()).unwrap();
    let names: Vec<&str> = first["consumers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["archive", "badges", "irc", "notify"]);
    assert!(
        stderr(&output).contains("every consumer has consumed every one"),
        "{}",
        stderr(&output)
    );
}

/// A log that nobody reads, or that can't be written, is the log's trouble and not the hub's.
#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    let file = configure(dir.path(), &hub_config(&bus.endpoint, ""));
    let mut hub = Running::start(weir().args(["hub", "--json", "--config"]).arg(&file));
    bus.subscriptions(1);
    // A second hub, whose standard error nobody reads, logs more than any pipe holds.
    let flood = "[hub]\nhttp = ''\n[[backend]]\nconnect = ['ENDPOINT']\n[consumers.log]\n\
                 topics = ''\nfile = '/dev/full'\nretry = { attempts = 1, delay = '1ms' }\n";
    let flooded = dir.path().join("flood.toml");
    std::fs::write(&flooded, flood.replace("ENDPOINT", &bus.endpoint)).unwrap();
    let mut other = weir();
    other.args(["hub", "--json", "--config"]).arg(&flooded);
    let mut other = other
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    bus.subscriptions(1);
    for _ in 0..5000 {
        bus.publish("org.example.a", "{}");
    }
    eventually("consumed", || {
        hub.status()["consumers"][0]["consumed"] == 5000
    });
    // The reader of the first one's log goes away.
    drop(hub.log.replace(std::thread::spawn(String::new)));
    let pid = other.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-s", "TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let mut ledger = String::new();
    other
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut ledger)
        .unwrap();
    assert!(other.wait().unwrap().success());
    let ledger: Value = serde_json::from_str(&ledger).unwrap();
    assert_eq!(ledger["consumers"][0]["waiting"], 0);
    hub.signal("HUP");
    assert_eq!(hub.end().0, Some(0));
}

#[test]
fn the_demo_ends_properly_when_nobody_reads_it() {
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut demo = weir();
    demo.args(["demo", "--for", "200ms", "--speed", "600"])
        .stdout(full);
    assert!(demo.status().unwrap().success());
}

#[test]
fn publish_sends_all_it_was_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = ipc(dir.path(), "bus");
    let more = "queue.messages = 100000\n";
    let file = configure(dir.path(), &hub_config(&endpoint, more));
    let hub = Running::start(weir().args(["hub", "--config"]).arg(&file));
    let file = file.to_str().unwrap();
    let output = run(&[
        "publish",
        "--count",
        "20000",
        "--wait",
        "60s",
        "-c",
        file,
        "org.example.a",
        "x",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    eventually("received", || {
        hub.status()["sources"][0]["received"] == 20_000
    });
    hub.signal("TERM");
    assert_eq!(hub.end().0, Some(0));
}

#[test]
fn shells_complete_and_every_command_has_a_page() {
    for (shell, words) in [
        ("bash", ["_weir()", "--filter"]),
        ("zsh", ["#compdef weir", "--filter"]),
        ("fish", ["complete -c weir", "-l filter"]),
    ] {
        let output = run(&["completions", shell]);
        assert!(output.status.success());
        let script = stdout(&output);
        assert!(words.iter().all(|word| script.contains(word)), "{script}");
    }
    assert_eq!(run(&["completions", "cmd"]).status.code(), Some(2));

    let dir = tempfile::tempdir().unwrap();
    let output = run(&["man", dir.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    for page in ["weir", "weir-top", "weir-hub", "weir-dead-list", "weir-man"] {
        let text = std::fs::read_to_string(dir.path().join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".TH "), "{page}: {text}");
    }
    let page = std::fs::read_to_string(dir.path().join("weir-top.1")).unwrap();
    assert!(
        page.contains("NO_COLOR") && page.contains(r"weir top \-\-config weir.toml"),
        "{page}"
    );
    let output = run(&["man", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("/nowhere/at/all"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn programs_are_told_of_every_mistake_and_of_what_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let begin = "[[backend]]\nconnect = ['inproc://x']\n[consumers.null]\ntopics = ''\n";
    let good = configure(dir.path(), begin);
    let check = |file: &Path| {
        let output = run(&[
            "config",
            "check",
            "--json",
            "--config",
            file.to_str().unwrap(),
        ]);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), said)
    };
    let (code, said) = check(&good);
    assert_eq!(
        (code, &said["good"], &said["consumers"]),
        (Some(0), &true.into(), &1.into())
    );
    let wrong = configure(dir.path(), &format!("{begin}wrokers = 2\nqueue = 7\n"));
    let (code, said) = check(&wrong);
    assert_eq!((code, &said["good"]), (Some(2), &false.into()));
    let mistakes = said["mistakes"].as_array().unwrap();
    assert_eq!(mistakes.len(), 2, "{said}");
    let keys: Vec<&str> = mistakes
        .iter()
        .map(|m| m["key"].as_str().unwrap())
        .collect();
    assert!(keys.contains(&"consumers.null.wrokers"), "{said}");
    assert!(
        mistakes[0]["at"].as_str().unwrap().contains("weir.toml:"),
        "{said}"
    );
    assert_eq!(check(Path::new("/nowhere.toml")).0, Some(2));

    let tail = crate::support::ipc(dir.path(), "bus");
    let listener = weir()
        .args(["tail", "--connect", &tail, "--count", "2", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = run(&[
        "publish", "--bind", &tail, "--count", "2", "--json", "org.a", "{}",
    ]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sent = serde_json::json!({ "topic": "org.a", "count": 2, "bytes": 2 });
    assert_eq!((said, stderr(&output).as_str()), (sent, ""));
    assert_eq!(
        stdout(&listener.wait_with_output().unwrap())
            .lines()
            .count(),
        2
    );
}
