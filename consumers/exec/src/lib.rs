//! The kind `exec`: hands each message to a child process, written in any language.
//!
//! Hub and child exchange lines of JSON; `docs/kinds/exec.md` is the protocol, with children to
//! begin with.
//!
//! What it promises:
//!
//! 1. A message is settled only as the child said, by name; what a lost child did not answer is sent
//!    to the next.
//! 2. Of a batch that failed in part, what the child has answered is not sent again.
//! 3. A child that ends, hangs or talks nonsense is replaced, after a pause that doubles while that
//!    happens again and again; a message that children are lost over is set aside.
//! 4. No child is left behind: with the consumer, all of the child's group ends, and with the process
//!    those of consumers that did not return in time ([`kill_children`]).
//! 5. Nothing that a child does makes the hub wait longer than the time-outs of its settings.
//!
//! What it leaves to others: keeping a child from what its user may do (`setpriv`, `bwrap`, a unit
//! of systemd around the hub), and ending it when the hub is killed: then the end of its standard
//! input tells it.

mod stderr;

mod protocol;

mod living;

mod process;

mod child;

use std::collections::{BTreeMap, HashMap};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use metrics::{counter, describe_counter};
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::{info, warn};
use weir_consumer::settings::{duration, size};
use weir_consumer::{Consumer, Context, Failure, Kind, Message, Result, Secret};

use child::{Broken, Child};
pub use living::kill_children;
use process::Limits;
use protocol::{Answer, Hello, Lines};
use stderr::{Stderr, Told};

/// What a child gets of the hub's environment unless it is to have all. The hub's secrets may be in
/// there too, so it is these and not all but some.
const INHERITED: [&str; 9] = [
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR",
];
/// What is between the hub and its service manager, and never a child's.
const NOT_INHERITED: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];
/// A pause that lasts no longer is waited for within a delivery; a longer one fails it, so that the
/// hub can be stopped meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);
const BATCH_MAX: usize = 10_000;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    command: Program,
    /// The hub's directory for data, when there is none.
    directory: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    secrets: BTreeMap<String, Secret>,
    inherit_environment: bool,
    /// The child's own.
    settings: Map<String, Value>,
    batch_max: NonZeroUsize,
    #[serde(deserialize_with = "duration")]
    start_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    timeout: Duration,
    #[serde(deserialize_with = "duration")]
    stop_timeout: Duration,
    restart: Restart,
    /// 0 is that there is no most.
    crashes_max: u32,
    #[serde(deserialize_with = "size")]
    line_max: usize,
    limits: LimitSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            command: Program::default(),
            directory: None,
            environment: BTreeMap::new(),
            secrets: BTreeMap::new(),
            inherit_environment: false,
            settings: Map::new(),
            batch_max: NonZeroUsize::MIN,
            start_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(3),
            restart: Restart::default(),
            crashes_max: 5,
            line_max: 16 << 20,
            limits: LimitSettings::default(),
        }
    }
}

/// A program and its arguments.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(from = "List")]
struct Program(Vec<String>);

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a list such as [\"python3\", \"worker.py\"]; there is no shell that would \
                 take a text apart"
)]
enum List {
    List(Vec<String>),
}

impl From<List> for Program {
    fn from(List::List(words): List) -> Self {
        Program(words)
    }
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Restart {
    #[serde(deserialize_with = "duration")]
    delay: Duration,
    #[serde(deserialize_with = "duration")]
    delay_max: Duration,
}

impl Default for Restart {
    fn default() -> Self {
        Restart {
            delay: Duration::from_millis(100),
            delay_max: Duration::from_secs(30),
        }
    }
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitSettings {
    memory: Option<Size>,
    cpu: Option<Time>,
    files: Option<NonZeroU64>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Size(#[serde(deserialize_with = "size")] usize);

#[derive(Debug, PartialEq, Deserialize)]
struct Time(#[serde(deserialize_with = "duration")] Duration);

struct Exec {
    settings: Settings,
    limits: Limits,
    context: Context,
    /// None before the first message or tick, and after it was lost.
    child: Option<Child>,
    /// Children that were lost in a row without having settled anything.
    losses: u32,
    /// No child is started before, and why: what became of the last.
    not_before: Option<(Instant, String)>,
    has_started: bool,
    /// What the child answered of a batch that the hub delivers again one by one.
    answers: HashMap<Key, Answer>,
    /// The message over which children were lost, and how many.
    suspect: Option<(Key, u32)>,
}

/// What tells a message from every other.
type Key = (u64, u64, bool);

fn key(message: &Message) -> Key {
    (message.seq(), message.received_ns(), message.replayed())
}

/// The kind `exec`.
pub fn kind() -> Kind {
    Kind::consumer("exec", build)
        .summary("hands each message to a child process, in any language")
        .sample(include_str!("../sample.toml"))
}

/// Checks settings, and nothing more: the child is started by the first message or tick.
fn build(settings: Settings, context: &Context) -> Result<Exec> {
    check(&settings).map_err(Failure::halt)?;
    describe_counter!("exec_restarts_total", "Children started after the first.");
    describe_counter!(
        "exec_lost_total",
        "Children that ended or were killed, by cause."
    );
    describe_counter!("exec_published_total", "Messages that children published.");
    describe_counter!(
        "exec_unpublished_total",
        "Messages of children that could not be published."
    );
    describe_counter!(
        "exec_stderr_left_out_total",
        "Lines of standard error that were too many for the log."
    );
    let limits = Limits {
        memory: (settings.limits.memory.as_ref()).map(|Size(bytes)| *bytes as u64),
        cpu: (settings.limits.cpu.as_ref()).map(|Time(time)| time.as_secs()),
        files: settings.limits.files.map(NonZeroU64::get),
    };
    Ok(Exec {
        settings,
        limits,
        context: context.clone(),
        child: None,
        losses: 0,
        not_before: None,
        has_started: false,
        answers: HashMap::new(),
        suspect: None,
    })
}

fn check(settings: &Settings) -> std::result::Result<(), String> {
    let command = &settings.command.0;
    match command.first() {
        None => {
            return Err(
                "`command` is missing: the program and its arguments, such as \
                        [\"python3\", \"worker.py\"]"
                    .into(),
            );
        }
        Some(program) if program.trim().is_empty() => {
            return Err("`command` begins with an empty text: the program comes first".into());
        }
        Some(_) => {}
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err("`command` has a character 0, which no argument can have".into());
    }
    for name in settings.environment.keys().chain(settings.secrets.keys()) {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!("{name:?} can't be the name of a variable"));
        }
        if settings.environment.contains_key(name) && settings.secrets.contains_key(name) {
            return Err(format!(
                "`environment` and `secrets` both have {name}; leave one of them out"
            ));
        }
    }
    if settings
        .environment
        .values()
        .any(|text| text.contains('\0'))
    {
        return Err("`environment` has a character 0, which no variable can have".into());
    }
    let times = [
        ("start_timeout", settings.start_timeout),
        ("timeout", settings.timeout),
        ("restart.delay", settings.restart.delay),
    ];
    for (name, time) in times {
        if time < Duration::from_millis(10) {
            return Err(format!("`{name}` is {time:?}; 10ms is the least"));
        }
    }
    if settings.restart.delay_max < settings.restart.delay {
        return Err("`restart.delay_max` is less than `restart.delay`".into());
    }
    if settings.batch_max.get() > BATCH_MAX {
        return Err(format!("`batch_max` is more than {BATCH_MAX}"));
    }
    if settings.line_max < 1 << 10 {
        return Err("`line_max` is less than 1KiB, too little for a line with a reason".into());
    }
    let limits = &settings.limits;
    if limits.memory.as_ref().is_some_and(|size| size.0 < 1 << 20) {
        return Err("`limits.memory` is less than 1MiB, in which no program runs".into());
    }
    if (limits.cpu.as_ref()).is_some_and(|time| time.0 < Duration::from_secs(1)) {
        return Err("`limits.cpu` is less than 1s, the least that the kernel counts".into());
    }
    if limits.files.is_some_and(|files| files.get() < 8) {
        return Err("`limits.files` is less than 8, with which no program starts".into());
    }
    Ok(())
}

impl Consumer for Exec {
    fn consume(&mut self, message: &Message) -> Result {
        let answered = self.answers.remove(&key(message));
        if let Some(answer) = answered {
            return answer.outcome();
        }
        self.deliver(&[message])?;
        let answer = self.answers.remove(&key(message));
        answer.map_or_else(|| Err(Failure::retry("no answer")), Answer::outcome)
    }

    fn batch_max(&self) -> usize {
        self.settings.batch_max.get()
    }

    fn consume_batch(&mut self, batch: &[Message]) -> Result {
        // Of an earlier batch some may have been skipped.
        self.answers.clear();
        let messages: Vec<&Message> = batch.iter().collect();
        self.deliver(&messages)?;
        let answer = |message| self.answers.get(&key(message));
        let is_consumed = |answer: Option<&Answer>| answer.is_some_and(|a| a.verdict.is_none());
        if messages.iter().all(|message| is_consumed(answer(message))) {
            self.answers.clear();
            return Ok(());
        }
        // Now the hub delivers them one by one. Also when one of them was answered with `halt`: so
        // those before it are settled first.
        Err(Failure::retry("not all of the batch were consumed"))
    }

    /// Keeps a child up, whether messages come or not.
    fn tick(&mut self) -> Result {
        self.answers.clear();
        let mut child = match self.child.take() {
            Some(child) => child,
            None if self.pause().is_some() => return Ok(()),
            None => self.start()?,
        };
        match child.tick() {
            Ok(answer) => {
                self.child = Some(child);
                answer.map_or(Ok(()), Answer::outcome)
            }
            Err(broken) => Err(self.lost(child, &broken)),
        }
    }
}

impl Exec {
    /// Has messages answered; the answers that came are kept even if the child was lost.
    fn deliver(&mut self, messages: &[&Message]) -> Result {
        // Taken out, and put back only after all went well.
        let mut child = match self.child.take() {
            Some(child) => child,
            None => self.start()?,
        };
        let answers = &mut self.answers;
        let outcome = child.deliver(messages, |message, answer| {
            answers.insert(key(message), answer);
        });
        match outcome {
            Ok(()) => {
                self.child = Some(child);
                Ok(())
            }
            Err(broken) => {
                let failure = self.lost(child, &broken);
                match messages {
                    // It is not the message's fault that the child was killed with the hub's process.
                    _ if living::is_over() => Err(failure),
                    [message] => Err(self.suspected(message, failure)),
                    _ => Err(failure),
                }
            }
        }
    }

    /// How long no child is to be started yet, and why.
    fn pause(&self) -> Option<(Duration, &str)> {
        let (until, why) = self.not_before.as_ref()?;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some((left, why))
    }

    fn start(&mut self) -> Result<Child> {
        if let Some((pause, _)) = self.pause() {
            std::thread::sleep(pause.min(PATIENCE));
            if let Some((left, why)) = self.pause() {
                // It may be the last that is said of a message before it is set aside.
                let text = format!("{why}; no child is started for another {left:.0?}");
                return Err(Failure::retry(text));
            }
        }
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(why) => {
                let pause = self.back_off(&why);
                let consumer = self.context.name();
                warn!(consumer, "{why}; tried again after {pause:?}");
                return Err(Failure::retry(why));
            }
        };
        let hello = Hello {
            weir: protocol::VERSION,
            hub: self.context.hub(),
            consumer: self.context.name(),
            batch_max: self.settings.batch_max.get(),
            settings: &self.settings.settings,
        };
        if let Err(broken) = child.greet(&hello, self.settings.start_timeout) {
            return Err(self.lost(child, &broken));
        }
        if std::mem::replace(&mut self.has_started, true) {
            counter!("exec_restarts_total").increment(1);
        }
        let (consumer, pid) = (self.context.name(), child.pid());
        info!(consumer, pid, "the child has started");
        Ok(child)
    }

    fn spawn(&self) -> std::result::Result<Child, String> {
        let settings = &self.settings;
        let data_dir = self.context.data_dir();
        let directory = match &settings.directory {
            Some(directory) => data_dir.join(directory),
            None => {
                // The child may be the first to need it.
                std::fs::create_dir_all(data_dir)
                    .map_err(|error| format!("can't make {}: {error}", data_dir.display()))?;
                data_dir.to_owned()
            }
        };
        let shown = directory.display();
        if !directory.is_dir() {
            return Err(format!(
                "the child can't run in {shown}: there is no such directory; make it, or change \
                 `directory`"
            ));
        }
        let (program, arguments) = match settings.command.0.split_first() {
            Some((program, arguments)) if program.contains('/') => {
                (directory.join(program), arguments)
            }
            Some((program, arguments)) => (program.into(), arguments),
            None => return Err("there is no `command`".into()),
        };
        let mut command = Command::new(&program);
        command.args(arguments).current_dir(&directory);
        if !settings.inherit_environment {
            command.env_clear();
            let inherited = INHERITED.map(|name| (name, std::env::var_os(name)));
            command.envs(
                inherited
                    .into_iter()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
        }
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command.envs(&settings.environment);
        for (name, secret) in &settings.secrets {
            command.env(name, secret.read(data_dir)?.expose());
        }
        let log = {
            let consumer = self.context.name().to_owned();
            Stderr::new(move |told| match told {
                // Marked, so that a child can't speak in the hub's name.
                Told::Line(line) => info!(consumer, "stderr: {line}"),
                Told::LeftOut(lines) => {
                    counter!("exec_stderr_left_out_total").increment(lines);
                    warn!(
                        consumer,
                        lines, "lines of the child's standard error were left out"
                    );
                }
            })
        };
        Child::start(
            &mut command,
            &self.limits,
            Lines::new(settings.line_max),
            log,
            self.context.name(),
            self.context.publisher(),
            settings.timeout,
        )
        .map_err(|error| {
            format!(
                "can't start the child {} in {shown}: {error}; see `command`",
                program.display()
            )
        })
    }

    /// A child is no more; what was not answered is to be tried again.
    fn lost(&mut self, child: Child, why: &Broken) -> Failure {
        if child.has_settled() {
            self.losses = 0;
        }
        let cause = match why {
            Broken::Ended => "ended",
            Broken::Silent { .. } => "silent",
            Broken::Wrong(_) => "protocol",
            Broken::Failed(_) => "failed",
        };
        counter!("exec_lost_total", "cause" => cause).increment(1);
        let why = child.end(why);
        let pause = self.back_off(&why);
        let consumer = self.context.name();
        warn!(consumer, "{why}; the next is started after {pause:?}");
        Failure::retry(why)
    }

    /// Puts the next start off; answers for how long.
    fn back_off(&mut self, why: &str) -> Duration {
        let restart = &self.settings.restart;
        let doubled = restart.delay.saturating_mul(1 << self.losses.min(30));
        let pause = doubled.min(restart.delay_max);
        self.losses = self.losses.saturating_add(1);
        self.not_before = Some((Instant::now() + pause, why.to_owned()));
        pause
    }

    /// A child was lost with no message but this: after so many, it is the message's fault.
    fn suspected(&mut self, message: &Message, failure: Failure) -> Failure {
        let crashes = match self.suspect {
            Some((suspect, crashes)) if suspect == key(message) => crashes + 1,
            _ => 1,
        };
        self.suspect = Some((key(message), crashes));
        let most = NonZeroU32::new(self.settings.crashes_max);
        if most.is_none_or(|most| crashes < most.get()) {
            return failure;
        }
        self.suspect = None;
        Failure::dead_letter(format!(
            "{crashes} children were lost over this message (`crashes_max`); the last time {failure}"
        ))
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            child.stop(self.settings.stop_timeout);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weir_consumer::testkit::{self, sample_settings};

    use super::*;

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: Settings = sample_settings(&kind()).parse().unwrap();
        let command = Program(vec!["python3".into(), "worker.py".into()]);
        let defaults = Settings::default();
        assert_eq!(
            sample,
            Settings {
                command,
                ..defaults
            }
        );
    }

    /// What is said of these settings.
    fn mistakes(toml: &str) -> Vec<String> {
        let built = testkit::build(&kind(), toml, Path::new("/nowhere"));
        let mistakes = built.err().unwrap_or_default();
        mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn bad_settings_are_refused_with_what_would_be_right() {
        let toml = "command = 'python3 worker.py'\nbatch_max = 0\ntimout = '1s'\n\
                    limits = { memory = 'much', cpu = 3 }\nsecrets = { A = 'hunter2' }\n\
                    settings = 'x'";
        assert_eq!(
            mistakes(toml),
            [
                "exec:1:11: command: expected a list such as [\"python3\", \"worker.py\"]; there \
                 is no shell that would take a text apart",
                "exec:2:13: batch_max: expected a whole number of at least 1, found the number 0",
                "exec:3:1: timout: unknown key; did you mean `timeout`?",
                "exec:4:21: limits.memory: expected a size such as \"64MiB\", found \"much\"",
                "exec:4:35: limits.cpu: expected a text in quotes, found the number 3",
                "exec:5:17: secrets.A: expected { file = \"PATH\" } or { env = \"NAME\" }, one of them: \
                 a secret does not stand in the configuration itself",
                "exec:6:12: settings: expected a section of keys, found the text \"x\"",
            ]
        );
    }

    #[test]
    fn settings_that_can_not_work_are_refused() {
        let cases = [
            ("", "`command` is missing"),
            ("command = []", "`command` is missing"),
            ("command = ['', 'a']", "begins with an empty text"),
            (
                "command = ['a', \"b\\u0000\"]",
                "a character 0, which no argument",
            ),
            ("environment = { 'A=B' = 'c' }", "\"A=B\" can't be the name"),
            ("environment = { '' = 'c' }", "\"\" can't be the name"),
            (
                "environment = { A = \"\\u0000\" }",
                "a character 0, which no variable",
            ),
            (
                "environment = { A = 'b' }\nsecrets = { A = { env = 'B' } }",
                "`environment` and `secrets` both have A",
            ),
            ("timeout = '0s'", "`timeout` is 0ns; 10ms is the least"),
            ("start_timeout = '1ms'", "`start_timeout` is 1ms"),
            ("restart = { delay = '0s' }", "`restart.delay` is 0ns"),
            (
                "restart = { delay_max = '50ms' }",
                "`restart.delay_max` is less than `restart.delay`",
            ),
            ("batch_max = 10001", "`batch_max` is more than 10000"),
            ("line_max = 100", "`line_max` is less than 1KiB"),
            (
                "limits = { memory = 1 }",
                "`limits.memory` is less than 1MiB",
            ),
            ("limits = { cpu = '999ms' }", "`limits.cpu` is less than 1s"),
            ("limits = { files = 7 }", "`limits.files` is less than 8"),
        ];
        for (toml, expected) in cases {
            let is_about_it = toml.is_empty() || toml.starts_with("command");
            let command = if is_about_it { "" } else { "command = ['a']\n" };
            let told = mistakes(&format!("{command}{toml}"));
            assert!(
                told.len() == 1 && told[0].contains(expected),
                "{toml}: {told:?}"
            );
        }
        assert_eq!(mistakes("command = ['a']"), [""; 0]);
    }

    #[test]
    fn the_pause_doubles_until_a_child_settles_something() {
        let settings = Settings {
            restart: Restart {
                delay: Duration::from_secs(1),
                delay_max: Duration::from_secs(5),
            },
            command: Program(vec!["a".into()]),
            ..Settings::default()
        };
        let (publisher, _) = testkit::recorder();
        let context = Context::new("exec", Path::new("/nowhere"), publisher);
        let mut exec = build(settings, &context).unwrap();
        let mut pauses = || exec.back_off("lost").as_secs();
        assert_eq!(
            [pauses(), pauses(), pauses(), pauses(), pauses()],
            [1, 2, 4, 5, 5]
        );
        exec.losses = u32::MAX;
        assert_eq!(exec.back_off("lost").as_secs(), 5);
    }
}
