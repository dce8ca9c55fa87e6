//! `weir check` and `weir forecast` as others call them, and the list of figures.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use weir::monitor::sample::families;

use crate::process::{Running, configure, stderr, stdout, weir};
use crate::support::*;

/// Two consumers: one takes everything, one so little that its second message waits for an hour.
fn start(dir: &Path, bus: &Bus) -> Running {
    let toml = format!(
        "[hub]\nname = 'test'\nhttp = '127.0.0.1:0'\n[[backend]]\nconnect = ['{}']\n\
         [consumers.archive]\nkind = 'null'\ntopics = 'org.'\n\
         [consumers.irc]\nkind = 'null'\ntopics = 'org.irc'\nrate = '1/h'\nburst = 1\n",
        bus.endpoint
    );
    let hub = Running::start(weir().args(["hub", "--config"]).arg(configure(dir, &toml)));
    bus.subscriptions(1); // the one covers the other
    hub
}

fn ask(command: &str, url: &str, options: &[&str]) -> Output {
    let mut weir = weir();
    weir.args([command, "--hub", url]).args(options);
    weir.output().unwrap()
}

fn check(url: &str, options: &[&str]) -> (Option<i32>, String) {
    let output = ask("check", url, options);
    (output.status.code(), stdout(&output))
}

/// A server that answers every request so.
fn peer(answer: impl Fn(std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            answer(stream);
        }
    });
    url
}

fn answering(answer: &'static str) -> String {
    peer(move |mut stream| {
        let _ = stream.write_all(answer.as_bytes());
    })
}

#[test]
fn a_check_tells_a_hub_that_is_well_from_one_that_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    let hub = start(dir.path(), &bus);
    let url = format!("http://{}", hub.http);
    let (code, text) = check(&url, &["--expect", "irc,archive"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.starts_with("WEIR OK - archive, irc ok | 'archive lag'=0s;300;1800;0 "),
        "{text}"
    );
    assert_eq!(text.lines().count(), 4, "{text}");

    let (code, text) = check(&url, &["--expect", "badges"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.starts_with("WEIR CRITICAL - hub: there is no consumer badges"),
        "{text}"
    );

    for _ in 0..3 {
        bus.publish("org.irc", "{}");
    }
    eventually("two wait", || {
        let status = hub.status();
        let (archive, irc) = (&status["consumers"][0], &status["consumers"][1]);
        archive["consumed"] == 3 && irc["queue_messages"] == 2
    });
    let (code, text) = check(&url, &["--depth-warning", "1"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.starts_with("WEIR WARNING - irc: depth 2; archive ok | "),
        "{text}"
    );
    assert!(text.contains(" 'irc depth'=2;1;;0 "), "{text}");
    assert_eq!(
        check(&url, &["--depth-warning", "1", "--depth-critical", "1"]).0,
        Some(2)
    );
    assert_eq!(
        check(&url, &["--depth-critical", "1", "--consumer", "archive"]).0,
        Some(0)
    );
    eventually("a lag", || {
        check(&url, &["--lag-critical", "1ms"]).0 == Some(2)
    });

    let (code, text) = check(&url, &["--depth-critical", "1", "--json"]);
    assert_eq!(code, Some(2));
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["status"], "critical");
    assert_eq!(
        json["consumers"][1]["problems"],
        serde_json::json!(["depth 2"])
    );

    hub.signal("TERM");
    hub.signal("INT");
    hub.end();
    let (code, text) = check(&url, &[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.starts_with("WEIR CRITICAL - no hub answers at http://"),
        "{text}"
    );
}

#[test]
fn a_check_called_in_a_wrong_way_is_unknown_and_says_so_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = configure(
        dir.path(),
        "[hub]\nname = ''\n[consumers.log]\ntopic = ''\n",
    );
    let url = "http://127.0.0.1:1";
    for args in [
        &["check"][..],
        &["--log-level", "info", "check", "--hubb", url],
        &["check", "--hub", "nowhere"],
        &["check", "--hub", url, "--lag-warning", "soon"],
        &[
            "check",
            "--hub",
            url,
            "--lag-warning",
            "2m",
            "--lag-critical",
            "1m",
        ],
        &["check", "--hub", url, "--health-warning", "sick"],
        &["check", "--hub", url, "--timeout", "0s"],
        &["check", "--config", wrong.to_str().unwrap()],
        &["check", "--config", "/none/such.toml"],
    ] {
        let output = weir().args(args).output().unwrap();
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
        assert!(text.starts_with("WEIR UNKNOWN - "), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(!text.contains('|'), "{args:?}: {text}");
        assert!(!stderr(&output).is_empty(), "{args:?}");
    }
    let help = weir().args(["check", "--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    // Of every other command 2 is still what it was.
    assert_eq!(
        weir().args(["tail", "--check"]).status().unwrap().code(),
        Some(2)
    );
}

#[test]
fn an_answer_that_is_none_of_a_hub_is_unknown_and_none_in_time_is_critical() {
    for strange in [
        "HTTP/1.1 200 OK\r\n\r\n{\"status\": \"ok\"}",
        "HTTP/1.1 404 Not Found\r\n\r\n",
        "HTTP/1.1 500 Internal Server Error\r\n\r\nno",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let (code, text) = check(&answering(strange), &[]);
        assert_eq!(code, Some(3), "{strange}: {text}");
    }
    let endless = peer(|mut stream| {
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    for url in [endless, silent_url] {
        let (code, text) = check(&url, &["--timeout", "100ms"]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("answered"), "{text}");
    }
}

#[test]
fn a_probe_asks_for_the_hub_alone() {
    let live = ["--probe", "live"];
    let ready = ["--probe", "ready"];
    let well = answering("HTTP/1.1 200 OK\r\n\r\n{\"status\":\"ok\"}");
    assert_eq!(
        check(&well, &live),
        (Some(0), "WEIR OK - the hub is live\n".into())
    );
    let stopping = "HTTP/1.1 503 Service Unavailable\r\n\r\n\
                    {\"status\":\"unready\",\"reason\":\"it is stopping\"}";
    let (code, text) = check(&answering(stopping), &ready);
    assert_eq!(code, Some(2));
    assert_eq!(
        text,
        "WEIR CRITICAL - the hub is not ready: it is stopping\n"
    );
    assert_eq!(
        check(&answering("HTTP/1.1 404 Not Found\r\n\r\n"), &live).0,
        Some(3)
    );
}

#[test]
fn a_running_hub_is_live_and_ready() {
    let dir = tempfile::tempdir().unwrap();
    let hub = start(dir.path(), &Bus::tcp());
    let url = format!("http://{}", hub.http);
    for (probe, said) in [("live", "live"), ("ready", "ready")] {
        let (code, text) = check(&url, &["--probe", probe]);
        assert_eq!(
            (code, text),
            (Some(0), format!("WEIR OK - the hub is {said}\n"))
        );
    }
}

#[test]
fn a_forecast_is_told_and_a_burst_reckoned_when_the_service_rate_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    let hub = start(dir.path(), &bus);
    let url = format!("http://{}", hub.http);
    let burst = ["--consumer", "archive", "--burst", "120/s", "--for", "10m"];
    let output = ask("forecast", &url, &burst);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("not been measured yet"),
        "{}",
        stderr(&output)
    );

    for _ in 0..100 {
        bus.publish("org.a", "{}");
    }
    eventually("measured", || {
        ask("forecast", &url, &burst).status.success()
    });
    let text = stdout(&ask("forecast", &url, &burst));
    assert!(
        text.starts_with("archive: if 120/s came for 10 min from now on\n"),
        "{text}"
    );
    let output = ask("forecast", &url, &[&burst[..], &["--json"]].concat());
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["burst_seconds"], 600.0);
    assert!(json["service_per_second"].as_f64().unwrap() > 0.0);

    let output = ask("forecast", &url, &["--consumer", "archive"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stdout(&output).starts_with("archive: ok, "),
        "{}",
        stdout(&output)
    );
    let output = ask("forecast", &url, &["--consumer", "archive", "--json"]);
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["name"], "archive");

    let output = ask("forecast", &url, &["--consumer", "arkive"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("did you mean `archive`?"),
        "{}",
        stderr(&output)
    );
    hub.signal("TERM");
    hub.signal("INT");
    hub.end();
}

/// The rows of the tables in docs/figures.md: name, sort, labels, what it says.
fn listed() -> Vec<[String; 4]> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/figures.md");
    let text = std::fs::read_to_string(page).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `weir_"));
    rows.map(|row| {
        let cells = row.trim_matches('|').split(" | ");
        let cells: Vec<String> = cells.map(|cell| cell.trim().replace('`', "")).collect();
        cells.try_into().unwrap()
    })
    .collect()
}

#[test]
fn every_figure_is_listed_for_people() {
    let exported: Vec<(String, String, String)> = families()
        .map(|family| {
            let sort = format!("{:?}", family.sort).to_lowercase();
            (family.name.into(), sort, family.help.into())
        })
        .collect();
    let listed: Vec<(String, String, String)> = (listed().into_iter())
        .map(|[name, sort, _, help]| (name, sort, help))
        .collect();
    assert_eq!(
        listed, exported,
        "docs/figures.md does not have what src/monitor/sample.rs has"
    );
}

#[test]
fn figures_have_the_labels_that_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    let hub = start(dir.path(), &bus);
    let figures = hub.get("/v1/figures")["figures"].clone();
    let listed: BTreeMap<String, String> = (listed().into_iter())
        .map(|[name, _, labels, _]| (name, labels))
        .collect();
    let figures = figures.as_array().unwrap();
    for figure in figures {
        let labels = figure["labels"].as_array().unwrap().iter();
        // `hub` has every one.
        let labels: Vec<&str> = labels
            .map(|label| label[0].as_str().unwrap())
            .skip(1)
            .collect();
        let name = figure["name"].as_str().unwrap();
        assert_eq!(listed.get(name), Some(&labels.join(", ")), "{name}");
    }
    assert!(figures.len() > 50);
    hub.signal("TERM");
    hub.end();
}
