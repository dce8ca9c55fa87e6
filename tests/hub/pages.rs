//! What the pages show is so: configurations are read, commands and options exist.

use std::path::{Path, PathBuf};
use std::process::Command;

use weir::Config;

use crate::support::registry;

fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = ["docs", "docs/kinds"].into_iter().flat_map(|directory| {
        let entries = std::fs::read_dir(root.join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().path())
    });
    let pages = docs.filter(|path| path.extension().is_some_and(|end| end == "md"));
    pages
        .chain([root.join("README.md")])
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn configurations_are_read() {
    let mut checked = 0;
    for (path, text) in pages() {
        for block in text.split("```toml\n").skip(1) {
            let toml = block.split("```").next().unwrap();
            if !toml.contains("[[backend]]") {
                continue; // a part of a Cargo.toml, or of a configuration
            }
            let read = Config::from_toml(toml, &path.display().to_string(), &registry([]));
            assert!(read.is_ok(), "{}", read.err().unwrap());
            checked += 1;
        }
    }
    assert!(checked > 0);
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
            let nested = if ["config", "dead", "journal"].contains(&words[0]) {
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
