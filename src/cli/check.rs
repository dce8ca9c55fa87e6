//! `weir check`: a plugin for Nagios, Icinga and whatever else runs such plugins.
//!
//! Promises:
//!
//! 1. The exit code is 0 (ok), 1 (warning), 2 (critical) or 3 (unknown), also when it was called in
//!    a wrong way (3), and standard output begins with one line that says why.
//! 2. What is not known is not ok: a figure that is not there, a word nobody knows, a hub without
//!    consumers.
//! 3. The worst decides: critical before warning before unknown, because what is known to be bad
//!    needs somebody more than what is not known.
//! 4. Nothing in an answer breaks the output: no `|`, no line end, no quote where none belongs.
//! 5. It ends in the time it was given.
//!
//! It remembers nothing from one call to the next, so it can't tell that something was lost since:
//! that is for rules on the counters (`weir_consumer_dropped_total`). The form is that of the
//! monitoring plugins' guidelines (monitoring-plugins.org/doc/guidelines.html).

use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ask::{Address, HubArgs, Unanswered};
use super::{Failure, meant, say, words};
use crate::forecast::{Drain, Health, Rates};
use crate::registry::Registry;

const LAG_WARNING: Duration = Duration::from_secs(5 * 60);
const LAG_CRITICAL: Duration = Duration::from_secs(30 * 60);
/// In percent of what the journal keeps; at 100 messages are lost.
const RETENTION: Limit = Limit {
    warning: Some(80.0),
    critical: Some(95.0),
};
/// More consumers than this that are ok are counted and not named.
const NAMED: usize = 5;

/// Says in one line and an exit code whether all is well: a plugin for Nagios and Icinga.
///
/// 0 ok, 1 warning, 2 critical, 3 unknown.
#[derive(Args)]
#[command(after_help = "\
Health is judged so unless told otherwise: stalled and halted are critical, falling_behind and
paused a warning, behind and ok are ok. Of a paused consumer lag and depth are not judged. Always
critical: no answer, no consumers, a journal that can't be written, more than 95 % of journal.keep
used by what waits for a consumer (80 %: warning).

Examples:
  weir check --config weir.toml
  weir check --hub http://127.0.0.1:8907 --expect archive,irc --dead-letters-warning 0
  weir check --config weir.toml --consumer irc --lag-warning 1h --lag-critical 6h
  weir check --config weir.toml --health-ok paused --health-warning behind
  weir check --config weir.toml --probe live                 for a livenessProbe")]
pub(super) struct Check {
    #[command(flatten)]
    hub: HubArgs,
    /// Judge only these consumers; they have to be there.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    consumer: Vec<String>,
    /// Consumers that have to be there, else it is critical.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    expect: Vec<String>,
    /// A longer lag is a warning [default: 5m].
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    lag_warning: Option<Duration>,
    /// A longer lag is critical [default: 30m].
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    lag_critical: Option<Duration>,
    /// A greater depth is a warning.
    #[arg(long, value_name = "N")]
    depth_warning: Option<u64>,
    /// A greater depth is critical.
    #[arg(long, value_name = "N")]
    depth_critical: Option<u64>,
    /// More dead letters are a warning.
    #[arg(long, value_name = "N")]
    dead_letters_warning: Option<u64>,
    /// More dead letters are critical.
    #[arg(long, value_name = "N")]
    dead_letters_critical: Option<u64>,
    /// Health that is all right.
    #[arg(long, value_name = "WORD,...", value_delimiter = ',', value_parser = healths())]
    health_ok: Vec<String>,
    /// Health that is a warning.
    #[arg(long, value_name = "WORD,...", value_delimiter = ',', value_parser = healths())]
    health_warning: Vec<String>,
    /// Health that is critical.
    #[arg(long, value_name = "WORD,...", value_delimiter = ',', value_parser = healths())]
    health_critical: Vec<String>,
    /// Ask only whether the hub's threads live, or whether it takes messages in: for Kubernetes.
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["expect", "consumer"])]
    probe: Option<Probe>,
    /// No answer in this time is critical.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = super::duration)]
    timeout: Duration,
    /// Print a JSON object instead.
    #[arg(long)]
    json: bool,
}

/// Questions for a supervisor, that no consumer's trouble makes a no of.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Probe {
    /// GET /healthz
    Live,
    /// GET /readyz
    Ready,
}

fn healths() -> PossibleValuesParser {
    Health::ALL.map(Health::as_str).into()
}

/// What the plugin says; the worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Unknown,
    Warning,
    Critical,
}

impl Grade {
    fn code(self) -> u8 {
        match self {
            Grade::Ok => 0,
            Grade::Warning => 1,
            Grade::Critical => 2,
            Grade::Unknown => 3,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Grade::Ok => "OK",
            Grade::Warning => "WARNING",
            Grade::Critical => "CRITICAL",
            Grade::Unknown => "UNKNOWN",
        }
    }
}

/// Above what a figure is bad.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Limit {
    warning: Option<f64>,
    critical: Option<f64>,
}

impl Limit {
    /// The limits given; `name` is for the error.
    fn new(name: &str, warning: Option<f64>, critical: Option<f64>) -> Result<Self, String> {
        match (warning, critical) {
            (Some(warning), Some(critical)) if warning > critical => Err(format!(
                "--{name}-warning is above --{name}-critical: it could never warn"
            )),
            _ => Ok(Limit { warning, critical }),
        }
    }

    /// With defaults for what was not given, never in the wrong order.
    fn or(self, warning: f64, critical: f64) -> Self {
        Limit {
            warning: (self.warning).or(Some(self.critical.unwrap_or(critical).min(warning))),
            critical: (self.critical).or(Some(self.warning.unwrap_or(warning).max(critical))),
        }
    }

    fn given(&self) -> bool {
        self.warning.is_some() || self.critical.is_some()
    }

    fn grade(&self, value: f64) -> Grade {
        let above = |limit: Option<f64>| limit.is_some_and(|limit| value > limit);
        match (above(self.critical), above(self.warning)) {
            (true, _) => Grade::Critical,
            (false, true) => Grade::Warning,
            (false, false) => Grade::Ok,
        }
    }
}

/// What is wanted of a hub.
#[derive(Clone, Debug, PartialEq)]
struct Limits {
    /// Those to judge; empty: all.
    consumers: Vec<String>,
    /// Those that have to be there, besides.
    expected: Vec<String>,
    lag: Limit,
    depth: Limit,
    dead_letters: Limit,
    health: [(Health, Grade); Health::ALL.len()],
}

/// What is read of a hub's status; all that an older hub may not tell can be missing.
#[derive(Debug, Deserialize)]
struct Seen {
    hub: String,
    uptime_seconds: f64,
    journal: Option<SeenJournal>,
    consumers: Vec<SeenConsumer>,
}

#[derive(Debug, Deserialize)]
struct SeenJournal {
    state: Option<String>,
    why: Option<String>,
}

#[derive(Debug, Deserialize)]
struct SeenConsumer {
    name: String,
    health: Option<String>,
    lag_seconds: Option<f64>,
    queue_messages: Option<f64>,
    dead_letters: Option<f64>,
    retention_used_ratio: Option<f64>,
    /// A [`Drain`], or what a newer hub knows.
    drain: Option<Value>,
    rates: Option<Rates>,
}

impl SeenConsumer {
    fn drain(&self) -> Drain {
        let drain = self.drain.clone().map(serde_json::from_value);
        drain.and_then(Result::ok).unwrap_or(Drain::Unknown)
    }
}

/// What is wrong with one thing, and how badly.
#[derive(Clone, Debug, PartialEq)]
struct Judgement {
    /// A consumer's name, or what else it is about.
    what: String,
    grade: Grade,
    problems: Vec<(Grade, String)>,
}

impl Judgement {
    fn new(what: &str) -> Self {
        Judgement {
            what: what.to_owned(),
            grade: Grade::Ok,
            problems: Vec::new(),
        }
    }

    fn add(&mut self, grade: Grade, problem: impl Into<String>) {
        if grade > Grade::Ok {
            self.grade = self.grade.max(grade);
            self.problems.push((grade, problem.into()));
        }
    }

    /// A figure that has to be there.
    fn missing(&mut self, figure: &str) {
        self.add(Grade::Unknown, format!("the hub does not tell {figure}"));
    }

    /// In words; empty if all is well.
    fn words(&self) -> String {
        let problems: Vec<&str> = self.problems.iter().map(|(_, text)| &**text).collect();
        problems.join(", ")
    }
}

/// All that is said.
#[derive(Clone, Debug, PartialEq)]
struct Report {
    grade: Grade,
    /// The line for people.
    head: String,
    /// More for people, one a consumer.
    lines: Vec<String>,
    perfdata: Vec<String>,
    consumers: Vec<Judgement>,
}

impl Report {
    /// One that says one thing.
    fn only(grade: Grade, head: impl Into<String>) -> Self {
        Report {
            grade,
            head: head.into(),
            lines: Vec::new(),
            perfdata: Vec::new(),
            consumers: Vec::new(),
        }
    }

    /// As monitoring systems read it.
    fn text(&self) -> String {
        let mut text = format!("WEIR {} - {}", self.grade.as_str(), plain(&self.head));
        if !self.perfdata.is_empty() {
            text = format!("{text} | {}", self.perfdata.join(" "));
        }
        for line in &self.lines {
            text = format!("{text}\n{}", plain(line));
        }
        text + "\n"
    }

    fn json(&self) -> Value {
        let consumer = |judged: &Judgement| {
            let problems: Vec<&str> = judged.problems.iter().map(|(_, text)| &**text).collect();
            json!({ "name": judged.what, "status": judged.grade, "problems": problems })
        };
        json!({
            "status": self.grade,
            "code": self.grade.code(),
            "text": self.head,
            "consumers": self.consumers.iter().map(consumer).collect::<Vec<_>>(),
            "perfdata": self.perfdata,
        })
    }

    /// Says it, and answers the exit code.
    fn tell(&self, as_json: bool) -> ExitCode {
        let text = match as_json {
            true => format!("{}\n", self.json()),
            false => self.text(),
        };
        let mut out = std::io::stdout().lock();
        // Nobody there to read it still sees the exit code.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        ExitCode::from(self.grade.code())
    }
}

/// One line that can't be mistaken for figures.
fn plain(text: &str) -> String {
    let one = |c: char| match c {
        '|' => '/',
        c if c.is_control() => ' ',
        c => c,
    };
    text.chars().map(one).collect()
}

/// One figure for graphs: `'label'=value[UOM];[warn];[crit];[min]`; `U` if it is not known.
fn perfdata(label: &str, value: Option<f64>, unit: &str, limit: Limit) -> String {
    let kept = |c: &char| !matches!(c, '\'' | '=' | '|') && !c.is_control();
    let label: String = label.chars().filter(kept).collect();
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    let number = |value: f64| round(value).to_string();
    let value = value.filter(|value| round(*value).is_finite());
    let value = value.map_or("U".into(), |value| number(value) + unit);
    let [warning, critical] =
        [limit.warning, limit.critical].map(|limit| limit.map(number).unwrap_or_default());
    format!("'{label}'={value};{warning};{critical};0")
}

/// What `weir check` says when it was called in a wrong way.
pub(super) fn misused(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let what = what.trim_start_matches("error: ");
    let _ = error.print();
    let head = format!("called in a wrong way: {what}");
    Report::only(Grade::Unknown, head).tell(false)
}

impl Check {
    /// Asks, judges and says it.
    pub(super) fn run(&self, registry: &Registry) -> ExitCode {
        let report = self.look(registry).unwrap_or_else(|failure| {
            say(&format!("weir: {}\n", failure.text));
            // All that is wrong, in the one line that is shown.
            let lines = failure
                .text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty());
            let text = lines.collect::<Vec<_>>().join(" ");
            Report::only(Grade::Unknown, &text)
        });
        report.tell(self.json)
    }

    fn look(&self, registry: &Registry) -> Result<Report, Failure> {
        let limits = self.limits().map_err(Failure::usage)?;
        if self.timeout.is_zero() {
            return Err(Failure::usage("--timeout: expected more than no time"));
        }
        let hub = self.hub.find(registry)?;
        if let Some(probe) = self.probe {
            return Ok(self.probe(&hub, probe));
        }
        let seen: Result<Seen, _> = ask(&hub, "/status", self.timeout);
        Ok(seen.map_or_else(unanswered, |seen| judge(&seen, &limits)))
    }

    fn probe(&self, hub: &Address, probe: Probe) -> Report {
        let (path, word) = match probe {
            Probe::Live => ("/healthz", "live"),
            Probe::Ready => ("/readyz", "ready"),
        };
        let answer: Result<Value, _> = ask(hub, path, self.timeout);
        match answer {
            Ok(said) if said["status"] == "ok" => {
                Report::only(Grade::Ok, format!("the hub is {word}"))
            }
            Ok(_) => {
                let head = format!("{hub} does not answer {path} as a hub does");
                Report::only(Grade::Unknown, head)
            }
            Err(Unanswered::Refused(why)) => {
                let said: Value = serde_json::from_str(&why).unwrap_or_default();
                let why = said["reason"].as_str().unwrap_or(&why);
                Report::only(Grade::Critical, format!("the hub is not {word}: {why}"))
            }
            Err(other) => unanswered(other),
        }
    }

    fn limits(&self) -> Result<Limits, String> {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        let number = |n: Option<u64>| n.map(|n| n as f64);
        let lag = Limit::new("lag", seconds(self.lag_warning), seconds(self.lag_critical))?;
        let told = [
            (&self.health_ok, Grade::Ok),
            (&self.health_warning, Grade::Warning),
            (&self.health_critical, Grade::Critical),
        ];
        let mut health = HEALTH;
        for (word, grade) in &mut health {
            let mut given = told
                .iter()
                .filter(|(words, _)| words.iter().any(|w| w == word.as_str()));
            match (given.next(), given.next()) {
                (Some((_, told)), None) => *grade = *told,
                (Some(_), Some(_)) => {
                    return Err(format!(
                        "{} is in two of the --health options",
                        word.as_str()
                    ));
                }
                (None, _) => {}
            }
        }
        Ok(Limits {
            consumers: self.consumer.clone(),
            expected: self.expect.clone(),
            lag: lag.or(LAG_WARNING.as_secs_f64(), LAG_CRITICAL.as_secs_f64()),
            depth: Limit::new(
                "depth",
                number(self.depth_warning),
                number(self.depth_critical),
            )?,
            dead_letters: Limit::new(
                "dead-letters",
                number(self.dead_letters_warning),
                number(self.dead_letters_critical),
            )?,
            health,
        })
    }
}

fn unanswered(unanswered: Unanswered) -> Report {
    match unanswered {
        Unanswered::Away(why) => Report::only(Grade::Critical, why),
        Unanswered::Refused(why) | Unanswered::TooOften(why) | Unanswered::Strange(why) => {
            Report::only(Grade::Unknown, why)
        }
    }
}

/// What the hub answers. On a thread of its own, because names and sockets have waits that can't be
/// bounded; the process ends without it.
fn ask<T>(hub: &Address, path: &'static str, timeout: Duration) -> Result<T, Unanswered>
where
    T: DeserializeOwned + Send + 'static,
{
    let (sender, answer) = mpsc::channel();
    let asked = hub.clone();
    let asking = std::thread::Builder::new().name("weir-ask".into());
    asking
        .spawn(move || sender.send(asked.get(path, timeout)))
        .map_err(|error| Unanswered::Strange(format!("can't ask the hub: {error}")))?;
    answer.recv_timeout(timeout).unwrap_or_else(|_| {
        let timeout = humantime::format_duration(timeout);
        Err(Unanswered::Away(format!(
            "no hub has answered at {hub} in {timeout}"
        )))
    })
}

/// What the status of a hub amounts to.
fn judge(seen: &Seen, limits: &Limits) -> Report {
    let mut judged = Vec::new();
    let mut hub = Judgement::new("hub");
    if seen.consumers.is_empty() {
        hub.add(Grade::Critical, "it has no consumers");
    }
    let names = || seen.consumers.iter().map(|consumer| &*consumer.name);
    let mut wanted: Vec<&String> = Vec::new();
    for name in limits.consumers.iter().chain(&limits.expected) {
        if !wanted.contains(&name) && !names().any(|there| there == name) {
            let instead = meant(name, names());
            hub.add(
                Grade::Critical,
                format!("there is no consumer {name}{instead}"),
            );
        }
        wanted.push(name);
    }
    let mut journal = Judgement::new("journal");
    match &seen.journal {
        None => {}
        Some(SeenJournal { state, why }) => match state.as_deref() {
            Some("ok") => {}
            Some("failed") => {
                let why = why.as_deref().unwrap_or("no reason given");
                journal.add(Grade::Critical, format!("it can't be written: {why}"));
            }
            _ => journal.missing("whether it can be written"),
        },
    }
    let mut perf = Vec::new();
    let mut lines = Vec::new();
    let chosen = |name: &String| limits.consumers.is_empty() || limits.consumers.contains(name);
    for consumer in seen
        .consumers
        .iter()
        .filter(|consumer| chosen(&consumer.name))
    {
        let one = judge_consumer(consumer, limits);
        lines.push(line(consumer, &one));
        perf.extend(figures(consumer, limits));
        judged.push(one);
    }
    let longest = (seen.consumers.iter())
        .filter(|consumer| chosen(&consumer.name))
        .filter_map(|consumer| Some((consumer.lag_seconds?, &consumer.name)))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    let all: Vec<&Judgement> = [&hub, &journal].into_iter().chain(&judged).collect();
    let grade = all
        .iter()
        .map(|one| one.grade)
        .max()
        .unwrap_or(Grade::Unknown);
    let mut bad: Vec<&&Judgement> = all.iter().filter(|one| one.grade > Grade::Ok).collect();
    bad.sort_by_key(|one| std::cmp::Reverse(one.grade));
    let mut head: Vec<String> = (bad.iter())
        .map(|one| format!("{}: {}", one.what, one.words()))
        .collect();
    let ok: Vec<&str> = (judged.iter())
        .filter(|one| one.grade == Grade::Ok)
        .map(|one| &*one.what)
        .collect();
    head.extend(match ok.len() {
        0 => None,
        1..=NAMED => Some(format!("{} ok", ok.join(", "))),
        many => Some(format!("{many} consumers ok")),
    });
    if let (Grade::Ok, Some((lag, name))) = (grade, longest)
        && lag >= 1.0
    {
        head.push(format!("longest lag {} ({name})", words(lag)));
    }
    let up = words(seen.uptime_seconds);
    let keeps = match &seen.journal {
        Some(_) if journal.grade == Grade::Ok => "journal ok".to_owned(),
        Some(_) => format!("journal: {}", journal.words()),
        None => "no journal".to_owned(),
    };
    lines.insert(0, format!("hub {}: up {up}, {keeps}", seen.hub));
    Report {
        grade,
        head: head.join("; "),
        lines,
        perfdata: perf,
        consumers: judged,
    }
}

const HEALTH: [(Health, Grade); Health::ALL.len()] = [
    (Health::Ok, Grade::Ok),
    (Health::Paused, Grade::Warning),
    (Health::Behind, Grade::Ok),
    (Health::FallingBehind, Grade::Warning),
    (Health::Stalled, Grade::Critical),
    (Health::Halted, Grade::Critical),
];

fn judge_consumer(seen: &SeenConsumer, limits: &Limits) -> Judgement {
    let mut one = Judgement::new(&seen.name);
    let known = |word: &String| {
        let mut known = limits.health.iter();
        known.find(|(health, _)| health.as_str() == word)
    };
    let mut paused = false;
    match (&seen.health, seen.health.as_ref().and_then(known)) {
        (_, Some((health, grade))) => {
            paused = *health == Health::Paused;
            one.add(*grade, health_words(*health, seen.drain()));
        }
        (Some(word), None) => one.add(
            Grade::Unknown,
            format!("its health is {word:?}, which this version of weir does not know"),
        ),
        (None, None) => one.missing("its health"),
    }
    // Somebody wants it to wait.
    if !paused {
        match seen.lag_seconds {
            Some(lag) => one.add(limits.lag.grade(lag), format!("lag {}", words(lag))),
            None => one.missing("its lag"),
        }
        match seen.queue_messages {
            Some(depth) => one.add(limits.depth.grade(depth), format!("depth {depth}")),
            None if limits.depth.given() => one.missing("its depth"),
            None => {}
        }
    }
    match seen.dead_letters {
        Some(letters) => {
            let grade = limits.dead_letters.grade(letters);
            one.add(grade, format!("dead letters {letters}"));
        }
        None if limits.dead_letters.given() => one.missing("its dead letters"),
        None => {}
    }
    match seen.retention_used_ratio {
        Some(used) => {
            let percent = used * 100.0;
            let text = format!("{percent:.0} % of journal.keep used, at 100 % messages are lost");
            one.add(RETENTION.grade(percent), text);
        }
        None => one.missing("how much of journal.keep it uses"),
    }
    one
}

/// "stalled for 3 min", "falling behind, growing 12/s".
fn health_words(health: Health, drain: Drain) -> String {
    let word = health.as_str().replace('_', " ");
    match (health, drain) {
        (Health::Stalled, Drain::Stalled { .. }) => drain.to_string(),
        (_, Drain::Draining { .. } | Drain::Growing { .. }) => format!("{word}, {drain}"),
        _ => word,
    }
}

/// All of a consumer that people want to see next.
fn line(seen: &SeenConsumer, judged: &Judgement) -> String {
    let well = judged.grade == Grade::Ok;
    let mut parts: Vec<String> = match well {
        true => seen
            .health
            .iter()
            .map(|word| word.replace('_', " "))
            .collect(),
        false => judged
            .problems
            .iter()
            .map(|(_, text)| text.clone())
            .collect(),
    };
    let drain = Some(seen.drain()).filter(|drain| well && !matches!(drain, Drain::Unknown));
    let letters = seen.dead_letters.filter(|letters| *letters > 0.0);
    let more = [
        seen.queue_messages.map(|depth| format!("depth {depth}")),
        seen.lag_seconds.map(|lag| format!("lag {}", words(lag))),
        drain.map(|drain| drain.to_string()),
        (seen.rates).map(|rates| format!("in {:.1}/s", rates.received)),
        (seen.rates).map(|rates| format!("out {:.1}/s", rates.settled)),
        letters.map(|letters| format!("dead letters {letters}")),
    ];
    for part in more.into_iter().flatten() {
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    format!(
        "{}: {} - {}",
        seen.name,
        judged.grade.as_str(),
        parts.join(", ")
    )
}

fn figures(seen: &SeenConsumer, limits: &Limits) -> [String; 4] {
    let label = |figure: &str| format!("{} {figure}", seen.name);
    let used = seen.retention_used_ratio.map(|used| used * 100.0);
    [
        perfdata(&label("lag"), seen.lag_seconds, "s", limits.lag),
        perfdata(&label("depth"), seen.queue_messages, "", limits.depth),
        perfdata(
            &label("dead letters"),
            seen.dead_letters,
            "",
            limits.dead_letters,
        ),
        perfdata(&label("retention"), used, "%", RETENTION),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use proptest::prelude::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        check: Check,
    }

    fn limits(options: &[&str]) -> Result<Limits, String> {
        let line = ["check", "--hub", "/s"].iter().chain(options);
        Line::try_parse_from(line).unwrap().check.limits()
    }

    fn consumer(name: &str, more: Value) -> Value {
        let mut consumer = json!({
            "name": name, "state": "idle", "health": "ok", "queue_messages": 0,
            "lag_seconds": 0.0, "dead_letters": 0, "retention_used_ratio": 0.0,
            "drain": {"forecast": "empty"}, "rates": {"in": 1.0, "out": 1.0},
        });
        for (key, value) in more.as_object().unwrap() {
            consumer[key] = value.clone();
        }
        consumer
    }

    fn hub(consumers: Vec<Value>) -> Value {
        json!({
            "hub": "fedora", "uptime_seconds": 7200.0, "journal": {"state": "ok"},
            "consumers": consumers,
        })
    }

    fn judged(status: Value, options: &[&str]) -> Report {
        judge(
            &serde_json::from_value(status).unwrap(),
            &limits(options).unwrap(),
        )
    }

    /// The grade of a hub with one consumer that is like this.
    fn one(more: Value, options: &[&str]) -> Grade {
        judged(hub(vec![consumer("irc", more)]), options).grade
    }

    #[test]
    fn exit_codes_are_those_of_plugins() {
        let grades = [Grade::Ok, Grade::Warning, Grade::Critical, Grade::Unknown];
        assert_eq!(grades.map(Grade::code), [0, 1, 2, 3]);
    }

    #[test]
    fn all_well_is_ok_and_says_who_is_longest_behind() {
        let waiting = json!({"lag_seconds": 12.0});
        let report = judged(
            hub(vec![
                consumer("archive", json!({})),
                consumer("irc", waiting),
            ]),
            &[],
        );
        assert_eq!(report.grade, Grade::Ok);
        assert_eq!(
            report.text(),
            "WEIR OK - archive, irc ok; longest lag 12 s (irc) | \
             'archive lag'=0s;300;1800;0 'archive depth'=0;;;0 'archive dead letters'=0;;;0 \
             'archive retention'=0%;80;95;0 'irc lag'=12s;300;1800;0 'irc depth'=0;;;0 \
             'irc dead letters'=0;;;0 'irc retention'=0%;80;95;0\n\
             hub fedora: up 2 h, journal ok\n\
             archive: OK - ok, depth 0, lag 0 s, empty, in 1.0/s, out 1.0/s\n\
             irc: OK - ok, depth 0, lag 12 s, empty, in 1.0/s, out 1.0/s\n"
        );
    }

    #[test]
    fn the_worst_comes_first_and_decides() {
        let stalled = json!({
            "health": "stalled", "lag_seconds": 480.0, "queue_messages": 1234,
            "drain": {"forecast": "stalled", "for_seconds": 180.0},
        });
        let growing = json!({
            "health": "falling_behind", "drain": {"forecast": "growing", "per_second": 12.0},
        });
        let consumers = [
            consumer("mail", growing),
            consumer("irc", stalled),
            consumer("archive", json!({})),
        ];
        let report = judged(hub(consumers.to_vec()), &[]);
        assert_eq!(report.grade, Grade::Critical);
        assert_eq!(
            report.head,
            "irc: stalled for 3 min, lag 8 min; mail: falling behind, growing 12/s; archive ok"
        );
        assert!(
            report.lines[2]
                .starts_with("irc: CRITICAL - stalled for 3 min, lag 8 min, depth 1234, in")
        );
        let grades: Vec<Grade> = report.consumers.iter().map(|one| one.grade).collect();
        assert_eq!(grades, [Grade::Warning, Grade::Critical, Grade::Ok]);
        assert!(Grade::Critical > Grade::Warning && Grade::Warning > Grade::Unknown);
        assert!(Grade::Unknown > Grade::Ok);
    }

    #[test]
    fn each_word_of_health_has_its_grade_and_options_change_it() {
        let grade = |word: &str, options: &[&str]| one(json!({"health": word}), options);
        for (word, expected) in [
            ("ok", Grade::Ok),
            ("behind", Grade::Ok),
            ("paused", Grade::Warning),
            ("falling_behind", Grade::Warning),
            ("stalled", Grade::Critical),
            ("halted", Grade::Critical),
            ("confused", Grade::Unknown),
        ] {
            assert_eq!(grade(word, &[]), expected, "{word}");
        }
        let options = [
            "--health-ok",
            "paused",
            "--health-warning",
            "behind,stalled",
            "--health-critical",
            "falling_behind",
        ];
        for (word, expected) in [
            ("paused", Grade::Ok),
            ("behind", Grade::Warning),
            ("stalled", Grade::Warning),
            ("falling_behind", Grade::Critical),
            ("halted", Grade::Critical),
        ] {
            assert_eq!(grade(word, &options), expected, "{word}");
        }
        for health in Health::ALL {
            assert!(HEALTH.iter().any(|(word, _)| *word == health), "{health:?}");
        }
    }

    #[test]
    fn a_figure_on_its_limit_is_still_good() {
        for (figure, option, unit) in [
            ("lag_seconds", "lag", "s"),
            ("queue_messages", "depth", ""),
            ("dead_letters", "dead-letters", ""),
        ] {
            let (warning, critical) = (
                format!("--{option}-warning"),
                format!("--{option}-critical"),
            );
            let (low, high) = (format!("10{unit}"), format!("20{unit}"));
            let options = [&*warning, &*low, &*critical, &*high];
            for (value, expected) in [
                (10, Grade::Ok),
                (11, Grade::Warning),
                (20, Grade::Warning),
                (21, Grade::Critical),
            ] {
                let more = json!({ (figure): value });
                assert_eq!(one(more, &options), expected, "{figure} {value}");
            }
        }
        for (used, expected) in [
            (0.8, Grade::Ok),
            (0.9, Grade::Warning),
            (0.96, Grade::Critical),
        ] {
            assert_eq!(
                one(json!({"retention_used_ratio": used}), &[]),
                expected,
                "{used}"
            );
        }
        let many = json!({"queue_messages": 1_000_000_000, "dead_letters": 1_000_000});
        assert_eq!(one(many, &[]), Grade::Ok);
    }

    #[test]
    fn one_limit_given_moves_the_default_of_the_other() {
        let lag = |options: &[&str]| {
            let lag = limits(options).unwrap().lag;
            (lag.warning.unwrap(), lag.critical.unwrap())
        };
        assert_eq!(lag(&[]), (300.0, 1800.0));
        assert_eq!(lag(&["--lag-critical", "2m"]), (120.0, 120.0));
        assert_eq!(lag(&["--lag-warning", "1h"]), (3600.0, 3600.0));
        assert_eq!(lag(&["--lag-warning", "1m"]), (60.0, 1800.0));
    }

    #[test]
    fn what_can_never_warn_is_refused() {
        for options in [
            ["--lag-warning", "2m", "--lag-critical", "1m"],
            ["--depth-warning", "2", "--depth-critical", "1"],
            [
                "--dead-letters-warning",
                "2",
                "--dead-letters-critical",
                "1",
            ],
            ["--health-ok", "paused", "--health-critical", "paused"],
        ] {
            assert!(limits(&options).is_err(), "{options:?}");
        }
        assert!(limits(&["--depth-warning", "2", "--depth-critical", "2"]).is_ok());
    }

    #[test]
    fn what_is_paused_on_purpose_may_lag() {
        let paused = json!({
            "health": "paused", "lag_seconds": 1e6, "queue_messages": 1000,
        });
        let options = ["--depth-critical", "10"];
        assert_eq!(one(paused.clone(), &options), Grade::Warning);
        let options = ["--depth-critical", "10", "--health-ok", "paused"];
        assert_eq!(one(paused, &options), Grade::Ok);
        // The journal does not wait.
        let full = json!({"health": "paused", "retention_used_ratio": 0.99});
        assert_eq!(one(full, &[]), Grade::Critical);
    }

    #[test]
    fn what_is_not_known_is_not_ok() {
        let limits = ["--depth-warning", "1", "--dead-letters-critical", "1"];
        for figure in [
            "health",
            "lag_seconds",
            "queue_messages",
            "dead_letters",
            "retention_used_ratio",
        ] {
            let mut seen = consumer("irc", json!({}));
            seen.as_object_mut().unwrap().remove(figure);
            let report = judged(hub(vec![seen]), &limits);
            assert_eq!(report.grade, Grade::Unknown, "{figure}");
            assert!(
                report.head.starts_with("irc: the hub does not tell"),
                "{}",
                report.head
            );
        }
        let mut status = hub(vec![consumer("irc", json!({}))]);
        status["journal"] = json!({"state": "tired"});
        assert_eq!(judged(status, &[]).grade, Grade::Unknown);
        // A newer hub's forecast is no reason to worry.
        let newer = json!({"drain": {"forecast": "tides"}});
        assert_eq!(one(newer, &[]), Grade::Ok);
    }

    #[test]
    fn what_is_not_known_is_undefined_in_the_figures() {
        let mut seen = consumer("irc", json!({}));
        seen.as_object_mut().unwrap().remove("lag_seconds");
        assert_eq!(
            judged(hub(vec![seen]), &[]).perfdata[0],
            "'irc lag'=U;300;1800;0"
        );
        // Too large to be rounded.
        let figure = perfdata("irc lag", Some(f64::MIN), "s", Limit::default());
        assert_eq!(figure, "'irc lag'=U;;;0");
    }

    #[test]
    fn a_hub_without_consumers_and_one_without_those_expected_are_critical() {
        assert_eq!(judged(hub(vec![]), &[]).grade, Grade::Critical);
        let there = || {
            hub(vec![
                consumer("irc", json!({})),
                consumer("archive", json!({})),
            ])
        };
        assert_eq!(
            judged(there(), &["--expect", "irc,archive"]).grade,
            Grade::Ok
        );
        let report = judged(there(), &["--expect", "irc,arkive"]);
        assert_eq!(report.grade, Grade::Critical);
        assert!(
            report
                .head
                .contains("no consumer arkive; did you mean `archive`?"),
            "{}",
            report.head
        );
        let report = judged(there(), &["--consumer", "mail"]);
        assert_eq!(report.grade, Grade::Critical);
        assert!(
            report.head.contains("there are: irc, archive"),
            "{}",
            report.head
        );
    }

    #[test]
    fn only_those_asked_for_are_judged() {
        let status = || {
            let stalled = json!({"health": "stalled"});
            hub(vec![
                consumer("irc", stalled),
                consumer("archive", json!({})),
            ])
        };
        assert_eq!(judged(status(), &[]).grade, Grade::Critical);
        let report = judged(status(), &["--consumer", "archive"]);
        assert_eq!(report.grade, Grade::Ok);
        assert_eq!(report.perfdata.len(), 4);
        assert!(!report.text().contains("irc"));
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_critical_and_none_is_ok() {
        let mut status = hub(vec![consumer("irc", json!({}))]);
        status["journal"] = json!({"state": "failed", "why": "No space left on device"});
        let report = judged(status.clone(), &[]);
        assert_eq!(report.grade, Grade::Critical);
        assert!(
            report.head.contains("No space left on device"),
            "{}",
            report.head
        );
        status["journal"] = Value::Null;
        assert_eq!(judged(status, &[]).grade, Grade::Ok);
    }

    #[test]
    fn many_that_are_ok_are_counted() {
        let many = (0..64)
            .map(|n| consumer(&format!("c{n}"), json!({})))
            .collect();
        assert!(judged(hub(many), &[]).head.starts_with("64 consumers ok"));
    }

    #[test]
    fn what_is_no_status_is_refused() {
        for strange in [
            json!({}),
            json!([]),
            json!({"status": "ok"}),
            json!({"hub": "a", "uptime_seconds": 1, "consumers": 1}),
        ] {
            assert!(serde_json::from_value::<Seen>(strange).is_err());
        }
    }

    proptest! {
        /// Nothing in an answer breaks the output.
        #[test]
        fn output_is_what_a_monitoring_system_can_read(
            name in any::<String>(),
            health in any::<String>(),
            why in any::<String>(),
            lag in any::<f64>(),
            depth in any::<f64>(),
        ) {
            let mut status = hub(vec![consumer(
                &name,
                json!({"health": health, "lag_seconds": lag, "queue_messages": depth}),
            )]);
            status["hub"] = json!(why);
            status["journal"] = json!({"state": "failed", "why": why});
            let text = judged(status, &["--depth-warning", "5"]).text();
            let lines: Vec<&str> = text.split('\n').collect();
            prop_assert_eq!(lines.len(), 4, "{}", text); // with the end of the last
            prop_assert!(lines[1..].iter().all(|line| !line.contains('|')));
            let (head, perf) = lines[0].split_once(" | ").unwrap();
            prop_assert!(head.starts_with("WEIR CRITICAL - "));
            prop_assert!(!perf.contains('|'));
            // Labels in quotes, at every second place; between them a figure.
            let parts: Vec<&str> = perf.split('\'').collect();
            prop_assert_eq!(parts.len(), 9);
            for figure in parts.iter().skip(2).step_by(2) {
                let (value, limits) = figure.strip_prefix('=').unwrap().split_once(';').unwrap();
                let value = value.trim_end_matches(['s', '%']);
                let digits = |c: char| c.is_ascii_digit() || "-.".contains(c);
                prop_assert!(value == "U" || value.chars().all(digits), "{}", value);
                let numbers = |c: char| digits(c) || " ;".contains(c);
                prop_assert!(limits.chars().all(numbers), "{}", limits);
            }
        }
    }
}
