//! `weir kinds`: what consumers and producers there are.

use std::io::Write;

use clap::Args;
use serde_json::json;
use weir_consumer::settings::nearest;
use weir_consumer::{Kind, Role};

use super::Failure;
use crate::registry::Registry;

/// Lists the kinds of consumers and producers, or shows the settings of one.
#[derive(Args)]
#[command(after_help = "Example:\n  weir kinds archive >> weir.toml")]
pub(super) struct Kinds {
    /// Show this kind's settings, as a section of a configuration.
    kind: Option<String>,
    /// Print JSON, settings included.
    #[arg(long)]
    json: bool,
}

fn role(kind: &Kind) -> &'static str {
    match kind.role() {
        Role::Consumer => "consumer",
        Role::Producer => "producer",
    }
}

impl Kinds {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let kinds: Vec<&Kind> = match &self.kind {
            None => registry.iter().collect(),
            Some(name) => vec![registry.get(name).ok_or_else(|| {
                let near = nearest(name, registry.iter().map(Kind::name));
                let near = near.map(|near| format!("; did you mean `{near}`?"));
                Failure::usage(format!(
                    "there is no kind `{name}`{}",
                    near.unwrap_or_default()
                ))
            })?],
        };
        let mut out = std::io::stdout().lock();
        if self.json {
            let list: Vec<_> = kinds
                .iter()
                .map(|kind| {
                    json!({
                        "kind": kind.name(),
                        "role": role(kind),
                        "summary": kind.summary_text(),
                        "sample": kind.sample_text(),
                    })
                })
                .collect();
            writeln!(out, "{}", json!(list))?;
        } else if self.kind.is_some() {
            match kinds[0].sample_text() {
                "" => writeln!(
                    out,
                    "# the kind `{}` says nothing of its settings",
                    kinds[0].name()
                )?,
                sample => out.write_all(sample.as_bytes())?,
            }
        } else {
            let width = kinds
                .iter()
                .map(|kind| kind.name().len())
                .max()
                .unwrap_or(0);
            for kind in kinds {
                writeln!(
                    out,
                    "{:width$}  {}  {}",
                    kind.name(),
                    role(kind),
                    kind.summary_text()
                )?;
            }
            writeln!(out, "\n`weir kinds KIND` shows a kind's settings.")?;
        }
        Ok(())
    }
}
