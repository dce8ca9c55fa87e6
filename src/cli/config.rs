//! `weir config`: look at a configuration without running it.

use std::io::Write;

use clap::Subcommand;

use super::{ConfigArgs, Failure};
use crate::config::{Config, SAMPLE, show};
use crate::registry::Registry;

/// Checks, shows or begins a configuration.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Checks a configuration and reports every mistake in it; exits with 2 if there is one.
    #[command(after_help = "Example:\n  weir config check --config weir.toml --set hub.http=''")]
    Check(ConfigArgs),
    /// Shows the effective configuration: every key, what it means, and where it was set.
    Show(ConfigArgs),
    /// Prints a commented configuration to begin with.
    Sample,
}

impl Command {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        match self {
            Command::Check(args) => {
                let config = args.load(registry)?;
                writeln!(
                    out,
                    "{}: good; {} consumers, {} producers, {} backends",
                    args.config.display(),
                    config.consumers.len(),
                    config.producers.len(),
                    config.backends.len()
                )?;
            }
            Command::Show(args) => {
                let settings = args.settings()?;
                Config::from_settings(settings.clone(), registry)?;
                out.write_all(show(&settings, registry).as_bytes())?;
            }
            Command::Sample => out.write_all(SAMPLE.as_bytes())?,
        }
        Ok(())
    }
}
