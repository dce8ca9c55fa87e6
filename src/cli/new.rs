//! `weir new`: a crate with a consumer of one's own, and a hub that runs it.
//!
//! 1. *What it writes compiles, passes its tests and runs* (`tests/peers/new.rs`).
//! 2. *It touches nothing that is there*, and leaves nothing half-written: the files are put
//!    together beside the directory, which gets its name at the end.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use toml_edit::Value;

use super::{Failure, say};
use crate::registry::Registry;

/// Begins a crate with a consumer of one's own, and a hub that runs it.
#[derive(Subcommand)]
pub(super) enum Command {
    Consumer(Consumer),
}

/// Writes a crate with a consumer that works, its tests, and a hub that runs it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir new consumer badges                              a crate in ./badges
  weir new consumer clock --kind producer --dir ~/clock
  weir new consumer badges --weir https://git.example.org/weir.git")]
pub(super) struct Consumer {
    /// Its name: of the crate, and of the kind in configurations.
    name: String,
    /// The directory to make [default: the name].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where weir's sources are: a directory, or the URL of a git repository [default: the directory
    /// that this program was built from].
    #[arg(long, value_name = "PATH|GIT_URL")]
    weir: Option<String>,
    /// What it is: a consumer handles messages, a producer makes them.
    #[arg(long, value_name = "KIND", default_value = "consumer")]
    kind: Role,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Role {
    Consumer,
    Producer,
}

/// Where a crate gets weir from.
#[derive(Debug)]
enum Source {
    Path(PathBuf),
    Git(String),
}

impl Command {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let Command::Consumer(consumer) = self;
        consumer.run(registry)
    }
}

impl Consumer {
    fn run(&self, registry: &Registry) -> Result<(), Failure> {
        check_name(&self.name, registry).map_err(Failure::usage)?;
        let source = source(self.weir.as_deref()).map_err(Failure::usage)?;
        let dir = self.dir.clone().unwrap_or_else(|| (&self.name).into());
        let dir = std::path::absolute(&dir)?;
        let shown = dir.display();
        let parent = match dir.parent() {
            Some(parent) if parent.is_dir() => parent,
            _ => {
                return Err(Failure::usage(format!(
                    "can't make {shown}: the directory that it would be in does not exist"
                )));
            }
        };
        if dir.symlink_metadata().is_ok() {
            return Err(Failure::usage(format!(
                "{shown} is there already; give another place with --dir"
            )));
        }
        let within = parent.canonicalize()?;
        if matches!(&source, Source::Path(weir) if within == weir.join("consumers")) {
            return Err(Failure::usage(format!(
                "{} has weir's own kinds, which belong to its workspace; give another place with \
                 --dir",
                parent.display()
            )));
        }
        let cant = |error| Failure::run(format!("can't write {shown}: {error}"));
        let staged = tempfile::Builder::new()
            .prefix(".weir-new-")
            .permissions(Permissions::from_mode(0o777)) // less the umask, as of any directory
            .tempdir_in(parent)
            .map_err(cant)?;
        self.write(staged.path(), &source).map_err(cant)?;
        fs::rename(staged.path(), &dir).map_err(cant)?;
        drop(staged); // its name is gone: there is nothing to clean up
        say(&self.next_steps(&self.dir.clone().unwrap_or_else(|| (&self.name).into())));
        Ok(())
    }

    fn write(&self, dir: &Path, source: &Source) -> std::io::Result<()> {
        let (weir, api) = match source {
            Source::Path(path) => (
                dependency("path", &path.to_string_lossy()),
                dependency("path", &path.join("consumers/api").to_string_lossy()),
            ),
            Source::Git(url) => (dependency("git", url), dependency("git", url)),
        };
        let filled = |template: &str| {
            template
                .replace("{{name}}", &self.name)
                .replace("{{crate}}", &self.name.replace('-', "_"))
                .replace("{{role}}", self.role())
                .replace("{{see}}", &self.see())
                .replace("{{weir}}", &weir)
                .replace("{{api}}", &api)
        };
        let [lib, sample, hub] = match self.kind {
            Role::Consumer => [
                include_str!("new/consumer.rs"),
                include_str!("new/consumer.sample.toml"),
                include_str!("new/consumer.weir.toml"),
            ],
            Role::Producer => [
                include_str!("new/producer.rs"),
                include_str!("new/producer.sample.toml"),
                include_str!("new/producer.weir.toml"),
            ],
        };
        fs::create_dir(dir.join("src"))?;
        for (file, template) in [
            ("Cargo.toml", include_str!("new/manifest.toml")),
            ("src/lib.rs", lib),
            ("src/main.rs", include_str!("new/main.rs")),
            ("sample.toml", sample),
            ("weir.toml", hub),
            ("README.md", include_str!("new/readme.md")),
            (".gitignore", "/target\n/weir-data\n"),
        ] {
            fs::write(dir.join(file), filled(template))?;
        }
        // The versions that weir was tested with. Without it cargo takes the newest.
        if let Source::Path(path) = source
            && let Ok(lock) = fs::read(path.join("Cargo.lock"))
        {
            fs::write(dir.join("Cargo.lock"), lock)?;
        }
        Ok(())
    }

    fn role(&self) -> &'static str {
        match self.kind {
            Role::Consumer => "consumer",
            Role::Producer => "producer",
        }
    }

    /// How to see it work, for its README.
    fn see(&self) -> String {
        match self.kind {
            Role::Consumer => format!(
                "In another terminal:\n\n```sh\n{}\n```\n\nThe hub prints `org.example.a \"hello\"`.\n",
                publish()
            ),
            Role::Producer => "The hub prints what it publishes, a message a second.\n".into(),
        }
    }

    fn next_steps(&self, dir: &Path) -> String {
        let mut text = format!(
            "{} is a crate with the kind `{}`, a {}. Next:\n\n  cd {}\n  cargo test\n  cargo run -- \
             hub --config weir.toml\n",
            dir.display(),
            self.name,
            self.role(),
            dir.display()
        );
        if self.kind == Role::Consumer {
            let _ = write!(text, "\nand in another terminal\n\n  {}\n", publish());
        }
        text
    }
}

fn publish() -> &'static str {
    "cargo run -- publish --config weir.toml org.example.a '{\"msg\": \"hello\"}'"
}

/// `key = "text"`, whatever the text has in it.
fn dependency(key: &str, text: &str) -> String {
    format!("{key} = {}", Value::from(text).to_string().trim())
}

/// Where weir's sources are.
fn source(given: Option<&str>) -> Result<Source, String> {
    if let Some(url) = given.filter(|given| given.contains("://") || given.starts_with("git@")) {
        return match url
            .strip_prefix("git@")
            .and_then(|rest| rest.split_once(':'))
        {
            // As git writes it; cargo wants a URL.
            Some((host, path)) => Ok(Source::Git(format!("ssh://git@{host}/{path}"))),
            None => Ok(Source::Git(url.into())),
        };
    }
    let path = Path::new(given.unwrap_or(env!("CARGO_MANIFEST_DIR")));
    let shown = path.display();
    if is_weir(path) {
        return path
            .canonicalize()
            .map(Source::Path)
            .map_err(|error| format!("can't look at {shown}: {error}"));
    }
    Err(match given {
        Some(_) => format!(
            "--weir: {shown} does not have weir's sources, with Cargo.toml and consumers/api"
        ),
        None => format!(
            "weir's sources, which a consumer is built with, are no longer at {shown}; say where \
             they are with --weir DIR or --weir GIT_URL"
        ),
    })
}

fn is_weir(path: &Path) -> bool {
    let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap_or_default();
    let manifest = manifest.parse::<toml_edit::DocumentMut>().ok();
    let name = manifest
        .as_ref()
        .and_then(|manifest| manifest.get("package")?.get("name")?.as_str());
    name == Some("weir") && path.join("consumers/api/Cargo.toml").is_file()
}

/// Whether a crate and a kind can have this name.
fn check_name(name: &str, registry: &Registry) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase())
        || !name.chars().all(fits)
        || !(1..=48).contains(&name.len())
    {
        return Err(format!(
            "{name:?} can't be the name of a crate here: expected a lower-case letter, and then \
             letters, digits, `-` and `_`, at most 48 together"
        ));
    }
    if KEYWORDS.contains(&name) {
        return Err(format!(
            "`{name}` is a word of Rust's; add to it, as in `my-{name}`"
        ));
    }
    if TAKEN.contains(&name) {
        return Err(format!(
            "`{name}` is the name of another crate that yours needs; add to it, as in `my-{name}`"
        ));
    }
    match registry.get(name) {
        Some(_) => Err(format!(
            "there is a kind `{name}` already (`weir kinds`), which yours would replace; take \
             another name"
        )),
        None => Ok(()),
    }
}

/// Strict and reserved keywords, as of edition 2024.
const KEYWORDS: [&str; 51] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate",
    "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl",
    "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref",
    "return", "self", "static", "struct", "super", "trait", "true", "try", "type", "typeof",
    "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

/// What a crate of that name would hide or meet.
const TAKEN: [&str; 13] = [
    "alloc",
    "build",
    "core",
    "deps",
    "examples",
    "incremental",
    "proc_macro",
    "serde",
    "serde_json",
    "std",
    "test",
    "weir",
    "weir-consumer",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(name: &str, dir: &Path) -> Consumer {
        Consumer {
            name: name.into(),
            dir: Some(dir.into()),
            weir: None,
            kind: Role::Consumer,
        }
    }

    fn refusal(consumer: &Consumer) -> String {
        consumer.run(&Registry::builtin()).unwrap_err().text
    }

    #[test]
    fn names_that_can_not_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (name, expected) in [
            ("", "can't be the name"),
            ("Badges", "lower-case"),
            ("7up", "lower-case"),
            ("-a", "lower-case"),
            ("a/b", "can't be the name"),
            ("../a", "can't be the name"),
            ("été", "can't be the name"),
            (&"a".repeat(49), "at most 48"),
            ("async", "a word of Rust's"),
            ("serde_json", "as in `my-serde_json`"),
            ("weir", "another crate"),
            ("weir-consumer", "another crate"),
            ("log", "there is a kind `log` already"),
        ] {
            let refused = refusal(&consumer(name, &dir.path().join("new")));
            assert!(refused.contains(expected), "{name}: {refused}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_there_is_not_touched_and_nothing_is_left_half_written() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("mine");
        fs::write(&place, "mine").unwrap();
        assert!(refusal(&consumer("mine", &place)).contains("is there already"));
        assert_eq!(fs::read_to_string(&place).unwrap(), "mine");
        let nowhere = dir.path().join("nowhere/mine");
        assert!(refusal(&consumer("mine", &nowhere)).contains("does not exist"));
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("consumers/mine");
        assert!(refusal(&consumer("mine", &own)).contains("weir's own kinds"));
        assert!(!own.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_sources_are_a_directory_or_a_repository() {
        assert!(matches!(source(None), Ok(Source::Path(_))));
        let git = |given| match source(Some(given)) {
            Ok(Source::Git(url)) => url,
            other => panic!("{other:?}"),
        };
        assert_eq!(git("https://example.org/weir"), "https://example.org/weir");
        assert_eq!(
            git("git@example.org:a/weir.git"),
            "ssh://git@example.org/a/weir.git"
        );
        let empty = tempfile::tempdir().unwrap();
        let refused = source(empty.path().to_str()).unwrap_err();
        assert!(
            refused.contains("does not have weir's sources"),
            "{refused}"
        );
    }

    #[test]
    fn a_dependency_is_toml_whatever_the_path_has_in_it() {
        for path in ["/a b/c", "/a\"b", "/a\\b", "/it's"] {
            let line = dependency("path", path);
            let read: toml_edit::DocumentMut = line.parse().unwrap();
            assert_eq!(read["path"].as_str(), Some(path), "{line}");
        }
    }
}
