//! What the pages show is so: configurations are read, commands and options exist.

use std::path::{Path, PathBuf};
use std::process::Command;

use weir::Config;

use crate::support::registry;

/// README.md, and what is in docs/ and its directories.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("README.md")];
    let mut directories = vec![root.join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                Some(end) if end == "md" => paths.push(path),
                None if path.is_dir() => directories.push(path),
                _ => {}
            }
        }
    }
    (paths.into_iter())
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect()
}

/// The TOML blocks of a page that are whole configurations.
fn configurations(page: &str) -> impl Iterator<Item = &str> {
    (page.split("```toml\n").skip(1))
        .filter_map(|block| block.split("```").next())
        .filter(|toml| toml.contains("[[backend]]")) // not a part of one, or of a Cargo.toml
}

#[test]
fn configurations_are_read() {
    let mut checked = 0;
    for (path, text) in pages() {
        for toml in configurations(&text) {
            let read = Config::from_toml(toml, &path.display().to_string(), &registry([]));
            assert!(read.is_ok(), "{}", read.err().unwrap());
            checked += 1;
        }
    }
    assert!(checked > 0);
}

#[test]
fn the_page_of_a_kind_has_a_whole_configuration_with_it() {
    let known = registry([]);
    for (path, text) in pages() {
        if !path
            .parent()
            .is_some_and(|parent| parent.ends_with("docs/kinds"))
        {
            continue;
        }
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let uses = |toml: &str| match known.get(stem) {
            Some(_) => [format!("s.{stem}]"), format!("kind = \"{stem}\"")]
                .iter()
                .any(|written| toml.contains(written)),
            None => true, // a page on something else than a kind
        };
        assert!(
            configurations(&text).any(uses),
            "{}: no TOML block has [[backend]] and {stem}",
            path.display()
        );
    }
}

#[test]
fn pages_of_kinds_and_of_patterns_can_be_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (directory, from) in [
        ("docs/kinds", "README.md"),
        ("docs/patterns", "docs/consumers.md"),
    ] {
        let from_text = std::fs::read_to_string(root.join(from)).unwrap();
        for (path, _) in pages() {
            if path.parent() == Some(&root.join(directory)) {
                let name = path.file_name().unwrap().to_str().unwrap();
                let below = directory.rsplit('/').next().unwrap();
                assert!(
                    from_text.contains(&format!("{below}/{name})")),
                    "{from} has no link to {directory}/{name}"
                );
            }
        }
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut checked = 0;
    for (path, text) in pages() {
        let prose: String = text.split("```").step_by(2).collect();
        for link in (prose.split("](").skip(1)).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let told = format!("{}: ({link})", path.display());
            assert!(target.exists(), "{told} leads nowhere");
            if !anchor.is_empty() {
                let page = std::fs::read_to_string(&target).unwrap();
                let found = (page.lines())
                    .filter_map(|line| line.strip_prefix('#'))
                    .any(|heading| slug(heading.trim_start_matches('#')) == anchor);
                assert!(found, "{told}: that page has no such heading");
            }
            checked += 1;
        }
    }
    assert!(checked > 0);
}

/// The anchor that a heading gets where the pages are shown.
fn slug(heading: &str) -> String {
    (heading.trim().to_lowercase().chars())
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn commands_and_their_options_exist() {
    let mut checked = 0;
    for (path, text) in pages() {
        for line in text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("weir "))
            .filter(|line| !line.starts_with("= "))
        {
            let words: Vec<&str> = line
                .split([' ', '\''])
                .take_while(|word| *word != "#" && *word != ">")
                .collect();
            let nested = if ["archive", "config", "dead", "journal", "new"].contains(&words[0]) {
                2
            } else {
                1
            };
            let output = Command::new(env!("CARGO_BIN_EXE_weir"))
                .args(&words[..nested.min(words.len())])
                .arg("--help")
                .output()
                .unwrap();
            assert!(output.status.success(), "{}: weir {line}", path.display());
            let help = String::from_utf8_lossy(&output.stdout).into_owned();
            for option in words
                .iter()
                .filter(|word| word.starts_with('-') && word.len() > 1)
            {
                assert!(
                    help.contains(option),
                    "{}: weir {line}: no {option}",
                    path.display()
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 0);
}
