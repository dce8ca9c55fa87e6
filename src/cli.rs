//! The command line.
//!
//! Exit codes: 0 done; 1 something failed while running; 2 the command line or the configuration
//! is wrong, and nothing was started; 128 + n a second signal n ended the hub at once.

mod config;
mod demo;
mod hub;
mod kinds;
mod publish;
mod tail;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use weir_consumer::settings::{Mistake, Origin, Settings};

use crate::config::{Config, Mistakes, layers};
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
  weir publish --config weir.toml org.example.a '{}'   send it a message"
)]
struct Cli {
    /// How much to log on standard error [default: info; error for the demo].
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Subcommand)]
enum Command {
    Hub(hub::Hub),
    Demo(demo::Demo),
    Publish(publish::Publish),
    Tail(tail::Tail),
    #[command(subcommand)]
    Config(config::Command),
    Kinds(kinds::Kinds),
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
    fn settings(&self) -> Result<Settings, Failure> {
        Ok(layers(
            &self.config,
            std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            }),
            &self.set,
        )?)
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
    let matches = Cli::command().version(version).get_matches(); // exits with 2 on bad usage
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let quiet = matches!(cli.command, Command::Demo(_));
    let level = if quiet {
        LogLevel::Error
    } else {
        LogLevel::Info
    };
    log_to_stderr(cli.log_level.unwrap_or(level));
    let outcome = match cli.command {
        Command::Hub(hub) => hub.run(&registry),
        Command::Demo(demo) => demo.run(&registry),
        Command::Publish(publish) => publish.run(&registry),
        Command::Tail(tail) => tail.run(&registry),
        Command::Config(config) => config.run(&registry),
        Command::Kinds(kinds) => kinds.run(&registry),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough: that is no failure.
        Err(failure) if failure.text.contains("Broken pipe") => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("weir: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

fn log_to_stderr(level: LogLevel) {
    use std::io::IsTerminal;
    use tracing_subscriber::filter::LevelFilter;
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
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
                let text = crate::backend::zmq::check_endpoint(endpoint).err()?;
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
