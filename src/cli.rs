//! The command line.
//!
//! Exit codes: 0 done; 1 something failed while running; 2 the command line or the configuration
//! is wrong, and nothing was started; 128 + n a second signal n ended the hub at once. `weir check`
//! has those of a monitoring plugin instead.

mod archive;
mod ask;
mod check;
mod collectd;
mod completions;
mod config;
mod dead;
mod demo;
mod forecast;
mod hub;
mod journal;
mod kinds;
mod new;
mod publish;
mod steer;
mod tail;
mod top;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use weir_consumer::endpoint;
use weir_consumer::settings::{DURATION_MAX, Mistake, Origin, Settings, nearest};

use crate::config::{Config, Mistakes, layers};
use crate::logging::{self, complain, say};
use crate::registry::Registry;

/// A message hub: a bounded queue and a thread for every consumer, and how far behind each is.
#[derive(Parser)]
#[command(
    name = "weir",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  weir demo --for 30s                                  see it work, without a configuration
  weir config sample > weir.toml                       begin a configuration
  weir hub --config weir.toml                          run a hub
  weir top --config weir.toml                          how every consumer does, live
  weir forecast --consumer irc --config weir.toml      when it will have caught up
  weir check --config weir.toml                        is all well? for a monitoring system
  weir dead list --config weir.toml                    what it has set aside, and why
  weir new consumer badges                             begin a consumer of your own
  weir publish --config weir.toml org.example.a '{}'   send it a message"
)]
struct Cli {
    /// How much to log on standard error [default: info; error for the demo].
    #[arg(long, global = true, value_name = "LEVEL", value_parser = PossibleValuesParser::new(logging::LEVELS))]
    log_level: Option<String>,
    /// How to log.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "auto")]
    log_format: logging::Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Hub(hub::Hub),
    Demo(demo::Demo),
    Publish(publish::Publish),
    Tail(tail::Tail),
    Check(check::Check),
    Forecast(forecast::Forecast),
    Why(why::Why),
    Top(top::Top),
    Pause(steer::Pause),
    Resume(steer::Resume),
    Skip(steer::Skip),
    Replay(steer::Replay),
    Drain(steer::Drain),
    #[command(name = "log-level")]
    SetLogLevel(steer::SetLogLevel),
    #[command(subcommand)]
    Archive(archive::Command),
    #[command(subcommand)]
    Dead(dead::Command),
    #[command(subcommand)]
    Journal(journal::Command),
    #[command(subcommand)]
    Config(config::Command),
    Kinds(kinds::Kinds),
    #[command(subcommand)]
    New(new::Command),
    Collectd(collectd::Collectd),
    Completions(completions::Completions),
    Man(completions::Man),
}

/// Where a configuration comes from.
#[derive(Args)]
struct ConfigArgs {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Sets a key, over the file and the environment; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn settings(&self) -> Result<Settings, Mistakes> {
        layers(
            &self.config,
            std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            }),
            &self.set,
        )
    }

    fn load(&self, registry: &Registry) -> Result<Config, Failure> {
        Ok(Config::from_settings(self.settings()?, registry)?)
    }
}

/// Why a command failed, and with which exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// The command line or the configuration is wrong.
    fn usage(text: impl Into<String>) -> Self {
        Failure {
            code: 2,
            text: text.into(),
        }
    }

    /// Something failed.
    fn run(text: impl Into<String>) -> Self {
        Failure {
            code: 1,
            text: text.into(),
        }
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Failure::usage(mistakes.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::run(error.to_string())
    }
}

/// Runs the command that the process was started with, for a hub that knows these kinds.
pub fn main(registry: Registry) -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    let command = Cli::command().version(version);
    let matches = match command.clone().try_get_matches() {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() && is_check(command) => return check::misused(&error),
        Err(error) => error.exit(), // with 2 on bad usage
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let quiet = matches!(cli.command, Command::Demo(_));
    let level = if quiet { "error" } else { "info" };
    let level = cli.log_level.as_deref().unwrap_or(level);
    let _guard = match logging::start(level, cli.log_format) {
        Ok(guard) => guard,
        Err(why) => {
            complain(&format!("weir: {why}\n"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = match cli.command {
        Command::Hub(hub) => hub.run(&registry),
        Command::Demo(demo) => demo.run(&registry),
        Command::Publish(publish) => publish.run(&registry),
        Command::Tail(tail) => tail.run(&registry),
        Command::Check(check) => return check.run(&registry),
        Command::Forecast(forecast) => forecast.run(&registry),
        Command::Why(why) => why.run(&registry),
        Command::Top(top) => top.run(&registry),
        Command::Archive(archive) => archive.run(&registry),
        Command::Dead(dead) => dead.run(&registry),
        Command::Journal(journal) => journal.run(&registry),
        Command::Pause(pause) => pause.run(&registry),
        Command::Resume(resume) => resume.run(&registry),
        Command::Skip(skip) => skip.run(&registry),
        Command::Replay(replay) => replay.run(&registry),
        Command::Drain(drain) => drain.run(&registry),
        Command::SetLogLevel(level) => level.run(&registry),
        Command::Config(config) => config.run(&registry),
        Command::Kinds(kinds) => kinds.run(&registry),
        Command::New(new) => new.run(&registry),
        Command::Collectd(collectd) => collectd.run(&registry),
        Command::Completions(completions) => completions.run(command),
        Command::Man(man) => man.run(command),
    };
    // A hub may have left a consumer behind that has one.
    weir_exec::kill_children();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough: that is no failure.
        Err(failure) if failure.text.contains("Broken pipe") => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&format!("weir: {}\n", failure.text));
            ExitCode::from(failure.code)
        }
    }
}

/// Whether the command line, as far as it can be read, is one of `weir check`.
fn is_check(command: clap::Command) -> bool {
    let matches = command.ignore_errors(true).try_get_matches();
    matches.is_ok_and(|matches| matches.subcommand_name() == Some("check"))
}

/// A time for people, such as "8 min".
fn words(seconds: f64) -> String {
    if (0.05..2.0).contains(&seconds) {
        return format!("{seconds:.1} s");
    }
    let (time, unit) = crate::forecast::spoken(seconds, seconds);
    format!("{time} {unit}")
}

/// No more names than this fit into an error.
const NAMED: usize = 10;

/// The end of an error about a name that there is not: what may have been meant.
fn meant<'n>(written: &str, names: impl Iterator<Item = &'n str> + Clone) -> String {
    match nearest(written, names.clone()) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => {
            let some: Vec<&str> = names.clone().take(NAMED).collect();
            let more = if names.count() > NAMED { ", ..." } else { "" };
            format!("; there are: {}{more}", some.join(", "))
        }
    }
}

/// Reads a duration of the command line.
fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time <= DURATION_MAX => Ok(time),
        Ok(_) => Err("expected at most 10 years".into()),
        Err(_) => Err("expected a duration such as \"250ms\" or \"10s\"".into()),
    }
}

/// The endpoints of the other side: where the hub connects, a publisher binds, and the other way
/// round.
#[derive(Args)]
struct PeerArgs {
    /// Bind to this endpoint; may be repeated.
    #[arg(long, value_name = "ENDPOINT")]
    bind: Vec<String>,
    /// Connect to this endpoint; may be repeated.
    #[arg(long, value_name = "ENDPOINT")]
    connect: Vec<String>,
    /// Take the endpoints from a hub's configuration.
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["bind", "connect"])]
    config: Option<PathBuf>,
}

impl PeerArgs {
    fn check(&self) -> Result<(), Failure> {
        let wrong: Vec<Mistake> = (self.bind.iter().map(|endpoint| ("--bind", endpoint)))
            .chain(self.connect.iter().map(|endpoint| ("--connect", endpoint)))
            .filter_map(|(option, endpoint)| {
                let text = endpoint::check(endpoint).err()?;
                Some(Mistake {
                    origin: Origin::named(option),
                    path: String::new(),
                    text,
                })
            })
            .collect();
        match wrong.first() {
            None => Ok(()),
            Some(mistake) => Err(Failure::usage(mistake.to_string())),
        }
    }
}
