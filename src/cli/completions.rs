//! `weir completions` and `weir man`: made from the commands themselves, so that they are never old.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::Shell;

use super::Failure;

/// Prints what a shell completes commands and options with.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir completions bash > /etc/bash_completion.d/weir
  weir completions zsh > /usr/local/share/zsh/site-functions/_weir
  weir completions fish > ~/.config/fish/completions/weir.fish")]
pub(super) struct Completions {
    /// The shell.
    shell: Known,
}

#[derive(Clone, Copy, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(super) fn run(&self, mut command: clap::Command) -> Result<(), Failure> {
        let shell = match self.shell {
            Known::Bash => Shell::Bash,
            Known::Zsh => Shell::Zsh,
            Known::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "weir", &mut script);
        let mut out = std::io::stdout().lock();
        out.write_all(&script)?;
        Ok(out.flush()?)
    }
}

/// Writes the manual pages: weir.1, and one for each command.
#[derive(Args)]
#[command(after_help = "Example:\n  weir man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// The directory; it has to be there.
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(&self, command: clap::Command) -> Result<(), Failure> {
        clap_mangen::generate_to(command, &self.dir).map_err(|error| {
            Failure::run(format!(
                "can't write the pages into {}: {error}",
                self.dir.display()
            ))
        })?;
        super::say(&format!(
            "man {}/weir.1 shows the first\n",
            self.dir.display()
        ));
        Ok(())
    }
}
