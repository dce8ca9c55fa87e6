//! A hub in a process of its own, a publisher, and what the journal says of it afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use weir::dead_letters::{DeadLetters, Filter, Letter};
use weir::journal::{Cursors, Journal, Read, Settings};
use zmq::{Socket, SocketType};

use crate::witness::{self, Record};

/// Which start of the hub this process is; without it, it is the test.
pub const RUN: &str = "CRASH_RUN";

/// Long enough for the slowest machine; only a test that fails waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

const TOPICS: [&str; 3] = ["t.0.x", "t.1.x", "t.2.x"];
/// As many keys do the messages have.
const KEYS: u64 = 7;

/// A consumer as the tests know it.
pub struct Role {
    pub name: &'static str,
    /// The prefix that it wants.
    pub topics: &'static str,
    pub order: Order,
    pub batch: usize,
    /// The rest of its section.
    pub settings: &'static str,
}

/// What order it promises.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Intake,
    PerKey,
    None,
}

impl Role {
    pub fn wants(&self, message: &Record) -> bool {
        topic(message.number).starts_with(self.topics)
    }
}

fn topic(number: u64) -> &'static str {
    TOPICS[number as usize % TOPICS.len()]
}

fn key(number: u64) -> u64 {
    number % KEYS
}

/// A message's payload, known by its number: mostly small, now and then large.
pub fn payload(number: u64, kills: bool) -> Vec<u8> {
    let chance = Chance(number).next();
    let length = match chance % 1000 {
        0 => 200_000,
        1..20 => 10_000,
        _ => chance % 300,
    };
    let pad = "abcdefg".repeat(length as usize / 7);
    let payload = json!({"n": number, "k": key(number), "kills": kills, "pad": pad});
    payload.to_string().into_bytes()
}

/// Random numbers that a seed repeats (SplitMix64).
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Waits until it holds, for what can only be polled.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory with a hub's data, its configuration, and its log over all its starts.
pub struct Scene {
    dir: TempDir,
    starts: u32,
}

impl Scene {
    pub fn new() -> Self {
        Scene {
            dir: tempfile::tempdir().unwrap(),
            starts: 0,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A publisher to which every hub of this scene connects.
    pub fn publisher(&self) -> Publisher {
        let socket = weir::backend::zmq::context()
            .socket(SocketType::PUSH)
            .unwrap();
        socket.set_linger(0).unwrap();
        socket.set_sndtimeo(PATIENCE.as_millis() as i32).unwrap();
        socket.bind(&self.endpoint()).unwrap();
        Publisher { socket, sent: 0 }
    }

    fn endpoint(&self) -> String {
        format!("ipc://{}", self.path().join("bus").display())
    }

    /// Writes the configuration for the starts to come.
    pub fn configure<'r>(&self, settings: &str, roles: impl IntoIterator<Item = &'r Role>) {
        let mut toml = format!(
            "hub.name = 'crash'\nhub.http = ''\nhub.data_dir = {:?}\n{settings}\n\
             [[backend]]\nsocket = 'pull'\nconnect = ['{}']\n",
            self.path(),
            self.endpoint()
        );
        for role in roles {
            let (name, topics, settings) = (role.name, role.topics, role.settings);
            toml += &format!(
                "[consumers.{name}]\nkind = 'witness'\ntopics = '{topics}'\nbatch = {}\n\
                 {settings}\n",
                role.batch
            );
        }
        fs::write(self.path().join("weir.toml"), toml).unwrap();
    }

    /// Starts the hub; it may not be up yet.
    pub fn start(&mut self) -> Hub {
        self.start_after("ulimit -c 0")
    }

    /// The same after a command to the shell that becomes the hub.
    pub fn start_after(&mut self, prelude: &str) -> Hub {
        self.starts += 1;
        let log = self.path().join("log");
        let log = File::options().append(true).create(true).open(log).unwrap();
        let script = format!("{prelude}; exec \"$@\"");
        let child = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["hub", "--json", "--config"])
            .arg(self.path().join("weir.toml"))
            .env(RUN, self.starts.to_string())
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Hub {
            child,
            control: self.path().join("control.sock"),
        }
    }

    /// Where each consumer would begin now.
    pub fn cursors(&self) -> BTreeMap<String, u64> {
        let loaded = Cursors::load(&self.path().join("journal")).unwrap();
        let cursors = loaded.cursors.unwrap_or_default();
        let position = |(name, cursor): (String, weir::journal::Cursor)| (name, cursor.position);
        cursors.consumers.into_iter().map(position).collect()
    }

    pub fn log(&self) -> String {
        let bytes = fs::read(self.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What was set aside.
    pub fn letters(&self) -> Vec<Letter> {
        let store = DeadLetters::read(&self.path().join("dead-letters.db")).unwrap();
        let Some(store) = store else {
            return Vec::new();
        };
        let mut letters: Vec<Letter> = Vec::new();
        loop {
            let after = letters.last().map_or(0, |letter| letter.id);
            let page = store.list(&Filter::default(), after, 1000).unwrap();
            if page.is_empty() {
                return letters;
            }
            letters.extend(page);
        }
    }

    /// All messages of the journal of a hub that has ended: none is missing, none changed.
    pub fn journal(&self) -> Vec<Record> {
        let (journal, recovered) =
            Journal::open(&self.path().join("journal"), &Settings::default(), 1).unwrap();
        assert_eq!(recovered.corrupt, [], "{recovered:?}");
        let mut reader = journal.reader(1);
        let mut all: Vec<Record> = Vec::new();
        let mut want = |topic: &str| Some(Arc::from(topic));
        loop {
            match reader.read(&mut want, 1024, 1 << 20, 0).unwrap() {
                Read::End => return all,
                Read::Gap { range, why } => panic!("{range:?} is missing: {why:?}"),
                Read::Messages(messages) => {
                    for message in messages.iter() {
                        let found = Record::of(message, 0).unwrap();
                        let before = all.last().map_or((0, None), |m| (m.seq, Some(m.number)));
                        assert_eq!(found.seq, before.0 + 1);
                        assert!(before.1 < Some(found.number), "{found:?} after {before:?}");
                        let kills = message.json().unwrap()["kills"] == true;
                        let sent = payload(found.number, kills);
                        assert_eq!(message.payload(), &sent, "{found:?}");
                        assert_eq!(message.topic(), topic(found.number));
                        all.push(found);
                    }
                }
            }
        }
    }

    /// Holds what this consumer has got against the journal: everything that it wants and that was
    /// not set aside has arrived, as it was taken in. Answers how often what came again.
    pub fn check(&self, role: &Role, journal: &[Record]) -> Delivered {
        let name = role.name;
        let wanted: Vec<Record> = journal.iter().copied().filter(|m| role.wants(m)).collect();
        let set_aside = self.letters().into_iter();
        let set_aside: BTreeSet<u64> = (set_aside.filter(|letter| letter.consumer == name))
            .map(|letter| letter.seq)
            .collect();
        let mut missing: BTreeSet<u64> = wanted.iter().map(|message| message.seq).collect();
        missing.retain(|seq| !set_aside.contains(seq));
        let records = witness::read(self.path(), name);
        let (mut again, mut again_max) = (0, 0);
        let mut highest = 0;
        for run in records.chunk_by(|a, b| a.run == b.run) {
            let mut again_now = 0;
            for record in run {
                let taken_in = journal.get(record.seq as usize - 1);
                let expected = taken_in.map(|message| Record {
                    run: record.run,
                    ..*message
                });
                assert_eq!(Some(*record), expected, "{name} got what was not taken in");
                assert!(role.wants(record), "{name} does not want {record:?}");
                again_now += u64::from(!missing.remove(&record.seq));
            }
            let seqs: Vec<u64> = run.iter().map(|record| record.seq).collect();
            match role.order {
                Order::Intake => {
                    let begin = wanted.partition_point(|message| message.seq < seqs[0]);
                    let expected = wanted[begin..].iter().map(|message| message.seq);
                    let expected = expected.filter(|seq| !set_aside.contains(seq));
                    let expected: Vec<u64> = expected.take(seqs.len()).collect();
                    assert_eq!(seqs, expected, "{name} in run {}", run[0].run);
                    let next = wanted.partition_point(|message| message.seq <= highest);
                    assert!(begin <= next + set_aside.len(), "{name} began with a gap");
                }
                Order::PerKey => {
                    let mut last = [0; KEYS as usize];
                    for record in run {
                        let last = &mut last[key(record.number) as usize];
                        assert!(*last < record.seq, "{name}: {record:?} behind {last}");
                        *last = record.seq;
                    }
                }
                Order::None => {
                    let different: BTreeSet<u64> = seqs.iter().copied().collect();
                    assert_eq!(different.len(), seqs.len(), "{name} in run {}", run[0].run);
                }
            }
            highest = highest.max(*seqs.iter().max().unwrap());
            again += again_now;
            again_max = again_max.max(again_now);
        }
        assert_eq!(missing, BTreeSet::new(), "{name} did not get these");
        Delivered {
            wanted: wanted.len(),
            records,
            again,
            again_max,
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("left to be looked at: {}", self.path().display());
        }
    }
}

/// What a consumer has got.
pub struct Delivered {
    pub wanted: usize,
    pub records: Vec<Record>,
    /// Deliveries beyond the first.
    pub again: u64,
    /// The most of them in one run.
    pub again_max: u64,
}

/// A publisher whose messages a hub pulls.
pub struct Publisher {
    socket: Socket,
    /// So many were sent; the next has this number.
    pub sent: u64,
}

impl Publisher {
    /// Sends the next message, as soon as there is a hub.
    pub fn send(&mut self, kills: bool) {
        let frames = [topic(self.sent).as_bytes(), &payload(self.sent, kills)];
        self.socket.send_multipart(frames, 0).unwrap();
        self.sent += 1;
    }

    /// Sends the next message if there is a hub that takes it.
    pub fn try_send(&mut self) -> bool {
        let frames = [topic(self.sent).as_bytes(), &payload(self.sent, false)];
        let sent = self.socket.send_multipart(frames, zmq::DONTWAIT).is_ok();
        self.sent += u64::from(sent);
        sent
    }
}

/// A hub's process; it ends with this.
pub struct Hub {
    child: Child,
    control: std::path::PathBuf,
}

impl Hub {
    /// What it says of itself; none if it is not up.
    pub fn try_status(&self) -> Option<Value> {
        self.ask("/status")
    }

    /// What it answers to `GET`, if it does.
    pub fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(&self.control).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }

    /// The same of one that is up, or will be.
    #[track_caller]
    pub fn status(&mut self) -> Value {
        let mut status = None;
        eventually("up", || {
            status = self.try_status();
            status.is_some() || self.has_ended()
        });
        status.expect("it has ended")
    }

    /// Its figures of one consumer.
    #[track_caller]
    pub fn consumer(&mut self, name: &str) -> Value {
        let status = self.status();
        let consumers = status["consumers"].as_array().unwrap();
        let found = consumers.iter().find(|consumer| consumer["name"] == name);
        found.unwrap().clone()
    }

    /// It is up, and nothing waits for any consumer.
    pub fn is_idle(&self) -> bool {
        self.try_status().is_some_and(|status| {
            let consumers = status["consumers"].as_array().unwrap();
            consumers.iter().all(|it| it["queue_messages"] == 0)
        })
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    pub fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        let status = kill.args(["-s", name, &self.pid()]).status();
        assert!(status.unwrap().success());
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        assert!(!self.has_ended(), "it ended by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end; the exit code, or none after a signal.
    #[track_caller]
    pub fn end(mut self) -> Option<i32> {
        eventually("ended", || self.has_ended());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
