//! `weir config`: look at a configuration without running it.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{ConfigArgs, Failure};
use crate::config::{Config, Mistakes, SAMPLE, show};
use crate::registry::Registry;

/// Checks, shows or begins a configuration.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Checks a configuration and reports every mistake in it; exits with 2 if there is one.
    #[command(after_help = "Example:\n  weir config check --config weir.toml --set hub.http=''")]
    Check(Check),
    /// Shows the effective configuration: every key, what it means, and where it was set.
    Show(ConfigArgs),
    /// Prints a commented configuration to begin with.
    Sample,
}

#[derive(Args)]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print a JSON object, with every mistake, instead.
    #[arg(long)]
    json: bool,
}

impl Check {
    fn run(&self, registry: &Registry, mut out: impl Write) -> Result<(), Failure> {
        let settings = self.config.settings();
        let config = settings.and_then(|settings| {
            let config = Config::from_settings(settings.clone(), registry)?;
            let unusable =
                unusable_files(&config).map(|why| settings.mistake_at("hub.http_tls", why));
            match unusable {
                None => Ok(config),
                Some(mistake) => Err(Mistakes(vec![mistake])),
            }
        });
        if self.json {
            let file = self.config.config.display().to_string();
            writeln!(out, "{}", report(&file, &config))?;
        }
        let config = config?;
        if !self.json {
            writeln!(
                out,
                "{}: good; {} consumers, {} producers, {} backends",
                self.config.config.display(),
                config.consumers.len(),
                config.producers.len(),
                config.backends.len()
            )?;
        }
        Ok(())
    }
}

/// Why a hub of this user could not use the files of the interface. That is no part of reading a
/// configuration: commands that only look up its address do without them.
#[cfg(feature = "http")]
fn unusable_files(config: &Config) -> Option<String> {
    let tls = config.hub.http_tls.as_ref()?;
    crate::control::check_tls(&tls.certificate, &tls.key).err()
}

/// Without an interface it has none.
#[cfg(not(feature = "http"))]
fn unusable_files(_: &Config) -> Option<String> {
    None
}

fn report(file: &str, config: &Result<Config, Mistakes>) -> serde_json::Value {
    match config {
        Ok(config) => json!({
            "file": file,
            "good": true,
            "mistakes": [],
            "consumers": config.consumers.len(),
            "producers": config.producers.len(),
            "backends": config.backends.len(),
        }),
        Err(Mistakes(mistakes)) => {
            let mistakes = mistakes.iter().map(|mistake| {
                json!({
                    "at": mistake.origin.to_string(),
                    "key": mistake.path,
                    "text": mistake.text,
                })
            });
            json!({ "file": file, "good": false, "mistakes": mistakes.collect::<Vec<_>>() })
        }
    }
}

impl Command {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        match self {
            Command::Check(check) => check.run(registry, out)?,
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
