//! collectd itself: its plugins exec, unixsock, statsd and rrdtool; rrdtool draws what it kept.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use tempfile::TempDir;
use weir::backend::memory::{Feed, Memory};
use weir::{Config, Hub, Registry};
use weir_consumer::{Context, Kind, Message, from_fn};

/// Waits until something is there, for what can only be polled.
#[track_caller]
pub fn wait<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = get() {
            return found;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "still not: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A collectd in the foreground, ended when it is dropped.
pub struct Collectd {
    child: Child,
    dir: TempDir,
}

impl Drop for Collectd {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Collectd {
    /// A directory that others may enter, because the plugin exec runs as nobody, and whose name
    /// does not begin with a `.`, which the plugin rrdtool does not like.
    pub fn dir() -> TempDir {
        let dir = tempfile::Builder::new().prefix("weir-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        dir
    }

    pub fn start(dir: TempDir, more: &str) -> Self {
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "Hostname \"host.example.org\"\nFQDNLookup false\nInterval 1\nBaseDir \"{}\"\n\
             PIDFile \"{}\"\nTypesDB \"/usr/share/collectd/types.db\"\nLoadPlugin logfile\n\
             <Plugin logfile>\nLogLevel info\nFile \"{}\"\n</Plugin>\nLoadPlugin unixsock\n\
             <Plugin unixsock>\nSocketFile \"{}\"\nSocketGroup \"root\"\nSocketPerms \"0777\"\n\
             DeleteSocket true\n</Plugin>\n{more}",
            dir.path().display(),
            at("pid"),
            at("log"),
            at("s"),
        );
        std::fs::write(at("collectd.conf"), config).unwrap();
        let child = Collectd::spawn(dir.path());
        let collectd = Collectd { child, dir };
        collectd.ready();
        collectd
    }

    fn spawn(dir: &Path) -> Child {
        Command::new("collectd")
            .arg("-f")
            .arg("-C")
            .arg(dir.join("collectd.conf"))
            .stdout(Stdio::null())
            .spawn()
            .expect("collectd; run `make setup`")
    }

    #[track_caller]
    fn ready(&self) {
        wait("collectd answers", || self.ask("LISTVAL"));
    }

    fn stop(&mut self) {
        // SIGTERM, so that it ends the programs that it started.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-s", "TERM", &pid]).status();
        let _ = self.child.wait();
    }

    fn restart(&mut self) {
        self.stop();
        self.child = Collectd::spawn(self.dir.path());
        self.ready();
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The lines that a command is answered with; none if it is refused.
    fn ask(&self, command: &str) -> Option<Vec<String>> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .ok()?;
        writeln!(stream, "{command}").ok()?;
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let status = lines.next()?;
        let count: usize = status.split(' ').next()?.parse().ok()?;
        Some(lines.take(count).collect())
    }

    /// A value of this host: NaN if it is unknown, none if it was never heard of.
    pub fn value(&self, identifier: &str) -> Option<f64> {
        let lines = self.ask(&format!("GETVAL \"host.example.org/{identifier}\""))?;
        lines.first()?.split_once('=')?.1.parse().ok()
    }

    #[track_caller]
    fn is(&self, identifier: &str, expected: f64) {
        wait(&format!("{identifier} {expected}: {}", self.log()), || {
            (self.value(identifier) == Some(expected)).then_some(())
        });
    }

    #[track_caller]
    fn becomes(&self, identifier: &str, so: impl Fn(f64) -> bool) {
        wait(identifier, || {
            self.value(identifier).filter(|value| so(*value))
        });
    }
}

/// A hub that the test feeds, with one consumer that takes everything and one that is stuck.
struct Scene {
    feed: Feed,
    hub: Hub,
    release: Sender<()>,
}

impl Scene {
    fn start(http: &str, more: &str) -> Self {
        #[derive(serde::Deserialize)]
        struct NoSettings {}
        let (release, released) = crossbeam_channel::bounded::<()>(0);
        let stuck = Kind::consumer("stuck", move |_: NoSettings, _: &Context| {
            let released = released.clone();
            Ok(from_fn(move |_: &Message| {
                let _ = released.recv();
                metrics::counter!("posts").increment(1);
                Ok(())
            }))
        });
        let config = format!(
            "[hub]\nname = 'fedora'\nhttp = '{http}'\n[journal]\nenabled = false\n\
             [consumers.stuck]\ntopics = ''\nqueue.messages = 5\n[consumers.null]\ntopics = ''\n\
             {more}"
        );
        let registry = Registry::builtin().with(stuck);
        let config = Config::embedded(&config, &registry).unwrap();
        let (feed, backend) = Memory::new(100);
        let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
        Scene { feed, hub, release }
    }

    fn send(&self, count: usize) {
        for _ in 0..count {
            self.feed.send("t", "x").unwrap();
        }
    }

    fn stop(self) {
        drop(self.release);
        self.hub.stop();
    }
}

/// An address where nobody listens.
fn free() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    port.local_addr().unwrap().to_string()
}

/// Nine were sent: five are with the consumer that is stuck, four of them waiting.
#[track_caller]
fn assert_arrived(collectd: &Collectd) {
    collectd.is("weir_fedora-stuck/queue_length", 5.0);
    collectd.is("weir_fedora-stuck/queue_length-inflight", 1.0);
    collectd.is("weir_fedora-stuck/queue_length-capacity", 5.0);
    collectd.is("weir_fedora-null/queue_length", 0.0);
    collectd.is("weir_fedora-null/duration-lag", 0.0);
    collectd.becomes("weir_fedora-stuck/duration-lag", |lag| lag > 0.0);
    // Rates, known after two intervals.
    collectd.is("weir_fedora-stuck/derive-dropped_overflow", 0.0);
    collectd.is("weir_fedora-null/derive-consumed", 0.0);
}

#[test]
#[ignore = "needs peers: make test"]
fn the_plugin_exec_runs_weir_collectd() {
    let dir = Collectd::dir();
    // Where nobody may run it.
    let program = dir.path().join("weir");
    std::fs::copy(env!("CARGO_BIN_EXE_weir"), &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let user = Command::new("id").arg("-un").output().unwrap().stdout;
    let user = match String::from_utf8(user).unwrap().trim() {
        "root" => "nobody".to_owned(), // collectd runs nothing as root
        user => user.to_owned(),
    };
    let http = free();
    let exec = format!("Exec \"{user}\" \"{}\" \"collectd\"", program.display());
    let collectd = Collectd::start(
        dir,
        &format!(
            "LoadPlugin exec\n<Plugin exec>\n{exec} \"--hub\" \"http://{http}\"\n{exec} \"--hub\" \
             \"http://{http}\" \"--layout\" \"fedmsg\" \"--service\" \"fedmsg-hub\"\n</Plugin>\n"
        ),
    );
    let hub = Scene::start(&http, "");
    hub.send(9);
    assert_arrived(&collectd);
    collectd.is("fedmsg-hub/queue_length-stuck_backlog", 4.0);
    collectd.is("fedmsg-hub/gauge-stuck_exceptions", 0.0);
    hub.send(3);
    collectd.becomes("fedmsg-hub/gauge-null_in", |new| new > 0.0);
    hub.send(3);
    collectd.becomes("fedmsg-hub/gauge-null_out", |new| new > 0.0);
    hub.release.send(()).unwrap();
    collectd.becomes("fedmsg-hub/response_time-stuck_max", |time| time > 0.0);
    hub.send(1);
    collectd.is("weir_fedora-stuck/queue_length", 5.0);
    // Everything that is told is taken: collectd drops what it has no type for without a word.
    let output = Command::new(&program)
        .args(["collectd", "--once", "--host", "host.example.org"])
        .args(["--hub", &format!("http://{http}")])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.lines().count() > 50, "{told}");
    for line in told.lines() {
        let identifier = line.split(' ').nth(1).unwrap();
        wait(identifier, || {
            let all = collectd.ask("LISTVAL")?;
            let known = all
                .iter()
                .any(|known| known.split(' ').nth(1) == Some(identifier));
            known.then_some(())
        });
    }
    hub.stop();
    for unknown in [
        "weir_fedora-stuck/queue_length",
        "fedmsg-hub/queue_length-stuck_backlog",
    ] {
        collectd.becomes(unknown, f64::is_nan);
    }
    let hub = Scene::start(&http, "");
    collectd.is("weir_fedora-stuck/queue_length", 0.0);
    collectd.is("fedmsg-hub/queue_length-stuck_backlog", 0.0);
    hub.send(9);
    assert_arrived(&collectd);
    hub.stop();
    // A wrong line would be an error there.
    let log = collectd.log();
    for wrong in ["exec plugin: Unable", "arsing", "unknown type", "not found"] {
        assert!(!log.contains(wrong), "{log}");
    }
}

#[test]
#[ignore = "needs peers: make test"]
fn the_plugin_unixsock_is_told_by_the_hub() {
    let mut collectd = Collectd::start(Collectd::dir(), "");
    let more = |layout: &str| {
        format!(
            "[collectd]\nsocket = 'unixsock:{}'\nhost = 'host.example.org'\ninterval = '500ms'\n\
             layout = '{layout}'\n",
            collectd.socket().display()
        )
    };
    let (weir, fedmsg) = (more("weir"), more("fedmsg"));
    let hub = Scene::start("", &weir);
    hub.send(9);
    assert_arrived(&collectd);
    let old = Scene::start("", &fedmsg);
    old.send(9);
    collectd.is("fedora/queue_length-stuck_backlog", 4.0);
    old.send(3);
    collectd.becomes("fedora/gauge-null_in", |new| new > 0.0);
    old.release.send(()).unwrap();
    collectd.becomes("fedora/response_time-stuck_avg", |time| time > 0.0);
    // The next collectd hears of everything, too.
    collectd.restart();
    assert_arrived(&collectd);
    // What the consumer's author measures.
    hub.release.send(()).unwrap();
    collectd.is("weir_fedora-stuck/queue_length", 4.0);
    collectd.becomes("weir_fedora-stuck/derive-own_posts", |rate| rate >= 0.0);
    hub.stop();
    old.stop();
}

#[test]
#[ignore = "needs peers: make test"]
fn the_plugin_statsd_hears_the_hub() {
    let free = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let collectd = Collectd::start(
        Collectd::dir(),
        &format!(
            "LoadPlugin statsd\n<Plugin statsd>\nHost \"127.0.0.1\"\nPort \"{port}\"\n</Plugin>\n"
        ),
    );
    let hub = Scene::start("", &format!("[statsd]\naddress = '127.0.0.1:{port}'\n"));
    hub.send(9);
    let name = |rest: &str| format!("weir.fedora.consumer.{rest}");
    let gauge = |rest: &str| format!("statsd/gauge-{}", name(rest));
    collectd.is(&gauge("stuck.queue_messages"), 5.0);
    collectd.is(&gauge("stuck.inflight_messages"), 1.0);
    collectd.is(&gauge("stuck.state.working"), 1.0);
    collectd.is(&gauge("null.queue_messages"), 0.0);
    collectd.becomes(&gauge("stuck.lag_seconds"), |lag| lag > 0.0);
    let consumed = format!("statsd/derive-{}", name("null.consumed_total"));
    collectd.becomes(&consumed, |rate| rate >= 0.0);
    hub.stop();
}

#[test]
#[ignore = "needs peers: make test"]
fn rrdtool_draws_what_collectd_kept() {
    let dir = Collectd::dir();
    let rrd = dir.path().join("rrd");
    let collectd = Collectd::start(
        dir,
        &format!(
            "LoadPlugin rrdtool\n<Plugin rrdtool>\nDataDir \"{}\"\nCacheTimeout 0\n</Plugin>\n",
            rrd.display()
        ),
    );
    let hub = Scene::start(
        "",
        &format!(
            "[collectd]\nsocket = '{}'\nhost = 'host.example.org'\ninterval = '1s'\n",
            collectd.socket().display()
        ),
    );
    hub.send(9);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/collectd/graph");
    let run = |args: &[&str]| {
        let output = Command::new(script).args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap() + &said,
        )
    };
    let last = |consumer: &str, file: &str| {
        let file = rrd.join(format!(
            "host.example.org/weir_fedora-{consumer}/{file}.rrd"
        ));
        let output = Command::new("rrdtool")
            .args(["lastupdate"])
            .arg(file)
            .output();
        let text = String::from_utf8(output.expect("rrdtool; run `make setup`").stdout).unwrap();
        text.trim().rsplit(' ').next()?.parse::<f64>().ok()
    };
    for (consumer, depth) in [("stuck", 5.0), ("null", 0.0)] {
        wait("kept", || {
            (last(consumer, "queue_length") == Some(depth)).then_some(())
        });
    }
    wait("kept", || {
        last("stuck", "duration-lag").filter(|lag| *lag > 0.0)
    });
    let data = rrd.display().to_string();
    let out = collectd.dir.path().display().to_string();
    let (code, said) = run(&[
        "--data", &data, "--span", "1h", "--out", &out, "--size", "600x200",
    ]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said, format!("{out}/backlog.png\n{out}/lag.png\n"));
    for name in ["backlog.png", "lag.png"] {
        let png = std::fs::read(collectd.dir.path().join(name)).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&png[12..16], b"IHDR");
        let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        // The drawing and, around it, axes and legend.
        assert!((600..900).contains(&number(16)), "{}", number(16));
        assert!((200..500).contains(&number(20)), "{}", number(20));
        assert_eq!(&png[png.len() - 8..png.len() - 4], b"IEND");
    }
    let (code, said) = run(&["--data", &data, "--out", &out, "--log"]);
    assert_eq!(code, Some(0), "{said}");
    for (args, expected, exit) in [
        (
            &["--data", &data, "--hub", "other"][..],
            "there is fedora",
            1,
        ),
        (&["--data", &data, "--host", "other"], "host.example.org", 1),
        (&["--data", &out], "no figures of a weir hub", 1),
        (&["--data", "/nowhere"], "no directory /nowhere", 1),
        (
            &["--data", &data, "--out", "/nowhere"],
            "no directory /nowhere",
            1,
        ),
        (&["--colour"], "no option", 2),
        (&["--span"], "needs a value", 2),
        (&["--size", "big"], "expected WIDTHxHEIGHT", 2),
    ] {
        let (code, said) = run(args);
        assert_eq!(code, Some(exit), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    let (code, help) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(help.contains("--span"), "{help}");
    hub.stop();
}

#[test]
#[ignore = "needs peers: make test"]
fn the_example_is_right() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/collectd/collectd.conf");
    let text = std::fs::read_to_string(example).unwrap();
    // Also with everything that is commented out there: one `#` before what is no sentence.
    let all: String = text
        .lines()
        .map(|line| match line.trim_start().strip_prefix("# ") {
            Some(rest) if rest.trim_start().starts_with(|c: char| "<LEDS".contains(c)) => {
                let word = rest.trim_start().split([' ', '>']).next().unwrap();
                let keys = ["LoadPlugin", "<Plugin", "</Plugin", "Exec", "DeleteSocket"];
                let keys = [&keys[..], &["SocketFile", "SocketGroup", "SocketPerms"]].concat();
                let keys = [&keys[..], &["DeleteGauges", "DeleteCounters"]].concat();
                if keys.contains(&word) { rest } else { line }
            }
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert!(all.contains("\nLoadPlugin statsd\n"), "{all}");
    for text in [text, all] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("collectd.conf");
        std::fs::write(&file, text).unwrap();
        let output = Command::new("collectd")
            .arg("-t")
            .arg("-C")
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("rror"), "{said}");
    }
}
