//! Debian's Prometheus, which scrapes a running hub and answers questions on it; its `promtool`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir::backend::memory::Memory;
use weir::monitor::sample::families;
use weir::{Config, Hub, Registry};
use weir_consumer::{Context, Kind, Message, from_fn};

const PATIENCE: Duration = Duration::from_secs(60);

/// A program of the package: as `make setup` unpacked it, or as the system has it.
pub fn program(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let unpacked = root.join("tests/peers/installed/prometheus/usr/bin");
    match unpacked.join(name) {
        path if path.exists() => path,
        _ => name.into(),
    }
}

/// What a hub that has just been started can't say yet.
const ABSENT: [&str; 11] = [
    "weir_source_lag_seconds",
    "weir_source_clock_skew_seconds",
    "weir_producer_last_run_timestamp_seconds",
    "weir_consumer_drain_seconds",
    "weir_consumer_drain_low_seconds",
    "weir_consumer_drain_high_seconds",
    "weir_consumer_service_messages_per_second",
    "weir_consumer_forecast_error_ratio",
    "weir_consumer_forecast_contained_ratio",
    "weir_consumer_busy_ratio",
    "weir_consumer_last_success_timestamp_seconds",
];

/// Runs promtool on a file of ours; answers what it says. It must like it.
#[track_caller]
pub fn promtool(arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program("promtool"))
        .args(arguments)
        .arg(file)
        .output()
        .expect("promtool; run `make setup`");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    said
}

/// Names, help and format of a page as Prometheus' authors want them.
#[track_caller]
fn check_metrics(page: &str) {
    let mut check = Command::new(program("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool; run `make setup`");
    let mut input = check.stdin.take().unwrap();
    input.write_all(page.as_bytes()).unwrap();
    drop(input);
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn get(at: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    // 1.0, so that the answer comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    (head.split(' ').nth(1)? == "200").then(|| body.to_owned())
}

pub struct Server {
    child: Child,
    at: SocketAddr,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// One that scrapes this hub every second, by the alert rules of this repository.
    pub fn start(hub: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/collectd/alerts.yml");
        let config = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n\
             rule_files: ['{rules}']\n\
             scrape_configs:\n- job_name: weir\n  static_configs:\n  - targets: ['{hub}']\n"
        );
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(program("prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={at}"))
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .expect("prometheus; run `make setup`");
        Server { child, at, dir }
    }

    /// What it answers to a question: labels and values.
    pub fn ask(&self, question: &str) -> Option<Vec<(Value, f64)>> {
        let escaped: String = (question.bytes())
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let body = get(self.at, &format!("/api/v1/query?query={escaped}"))?;
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["status"], "success", "{answer}");
        let series = answer["data"]["result"].as_array().unwrap().iter();
        let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        Some(
            series
                .map(|one| (one["metric"].clone(), value(one)))
                .collect(),
        )
    }

    /// Waits until the answer is one number that is like this.
    #[track_caller]
    fn arrives(&self, question: &str, wanted: impl Fn(f64) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(question);
            if let Some([(labels, value)]) = answer.as_deref()
                && wanted(*value)
            {
                return labels.clone();
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
                panic!("{question}: {answer:?}\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
#[ignore = "needs peers: make test"]
fn prometheus_scrapes_a_hub_and_knows_its_lag_and_forecast() {
    #[derive(serde::Deserialize)]
    struct NoSettings {}
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let stuck = Kind::consumer("stuck", move |_: NoSettings, _: &Context| {
        let released = released.clone();
        Ok(from_fn(move |_: &Message| {
            let _ = released.recv();
            Ok(())
        }))
    });
    let counting = Kind::consumer("counting", |_: NoSettings, _: &Context| {
        Ok(from_fn(|_: &Message| {
            metrics::describe_counter!("posts", "What was posted.");
            metrics::counter!("posts", "channel" => "#weir").increment(2);
            Ok(())
        }))
    });
    let config = "hub.name = 'fedora'\nhub.http = '127.0.0.1:0'\njournal.enabled = false\n\
                  [consumers.stuck]\ntopics = ''\nqueue.messages = 5\n\
                  [consumers.counting]\ntopics = ''\nrate = '20/s'\nburst = 1\n";
    let registry = Registry::builtin().with(stuck).with(counting);
    let config = Config::embedded(config, &registry).unwrap();
    let (feed, backend) = Memory::new(10_000);
    let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
    let server = Server::start(hub.http().unwrap());
    // What had grown before the first scrape would be no growth to it.
    let dropped = "weir_consumer_dropped_total{consumer=\"stuck\", reason=\"overflow\"}";
    server.arrives(dropped, |messages| messages == 0.0);
    for _ in 0..2000 {
        feed.send("t", "x").unwrap();
    }
    let consumer = |name: &str, of: &str| format!("weir_consumer_{name}{{consumer=\"{of}\"}}");

    let labels = server.arrives("up", |up| up == 1.0);
    assert_eq!(labels["job"], "weir");
    let labels = server.arrives(&consumer("lag_seconds", "stuck"), |lag| lag > 0.0);
    assert_eq!(labels["hub"], "fedora");
    server.arrives(&consumer("queue_messages", "stuck"), |depth| depth == 5.0);
    server.arrives(dropped, |messages| messages == 1995.0);
    server.arrives(&consumer("received_total", "counting"), |all| all == 2000.0);
    let posted = server.arrives("posts_total", |posts| posts >= 2.0);
    assert_eq!(
        (&posted["consumer"], &posted["channel"]),
        (&"counting".into(), &"#weir".into())
    );
    let took = "histogram_quantile(0.99, weir_consumer_processing_seconds_bucket\
                {consumer=\"counting\"})";
    server.arrives(took, |seconds| seconds > 0.0);

    // 2000 messages at 20 a second.
    let likely = consumer("drain_seconds", "counting");
    server.arrives(&likely, |seconds| (1.0..1000.0).contains(&seconds));
    let low = consumer("drain_low_seconds", "counting");
    server.arrives(&format!("{low} <= bool {likely}"), |is| is == 1.0);
    let high = consumer("drain_high_seconds", "counting");
    server.arrives(&format!("{high} >= bool {likely}"), |is| is == 1.0);
    check_metrics(&get(hub.http().unwrap(), "/metrics").unwrap());
    // Who does not drain has no forecast, and everybody has one word of health.
    assert_eq!(server.ask(&consumer("drain_seconds", "stuck")).unwrap(), []);
    let health = "sum(weir_consumer_health{consumer=\"stuck\"})";
    server.arrives(health, |words| words == 1.0);
    let alert = "ALERTS{alertname=\"WeirConsumerDropped\", reason=\"overflow\"}";
    server.arrives(alert, |firing| firing == 1.0);
    drop(release);
    server.arrives(&consumer("lag_seconds", "stuck"), |lag| lag == 0.0);
    hub.stop();
    server.arrives("up", |up| up == 0.0);
}

#[test]
#[ignore = "needs peers: make test"]
fn promtool_likes_what_a_hub_with_everything_says() {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "hub.http = '127.0.0.1:0'\nhub.data_dir = {:?}\n[publish]\nbind = ['ipc://{}']\n\
         [[backend]]\nconnect = ['ipc://{}']\n[consumers.null]\ntopics = ''\n\
         [producers.heartbeat]\n[fedmsg]\nvalidate = true\nca = {:?}\n",
        dir.path().join("data"),
        dir.path().join("out").display(),
        dir.path().join("in").display(),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fedmsg/ca.crt"),
    );
    let config = Config::from_toml(&config, "test", &Registry::builtin());
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let hub = Hub::start(&config).unwrap();
    let page = get(hub.http().unwrap(), "/metrics").unwrap();
    hub.stop();
    for family in families().filter(|family| !ABSENT.contains(&family.name)) {
        let head = format!("# TYPE {} ", family.name);
        assert!(page.contains(&head), "there is no {}", family.name);
    }
    check_metrics(&page);
}

#[test]
#[ignore = "needs peers: make test"]
fn alerts_fire_when_they_should() {
    let collectd = Path::new(env!("CARGO_MANIFEST_DIR")).join("collectd");
    let said = promtool(&["check", "rules"], &collectd.join("alerts.yml"));
    assert!(said.contains("rules found"), "{said}");
    promtool(&["test", "rules"], &collectd.join("alerts-test.yml"));
}
