//! What docs/kinds/exec.md shows works as it stands there.

#![allow(missing_docs, clippy::unwrap_used)] // a test's name says what it is about

use std::fs;
use std::path::Path;

use weir_consumer::testkit::{Harness, build};
use weir_consumer::{Consumer, Verdict};

/// The block of the page in this language.
fn block(language: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kinds/exec.md");
    let page = fs::read_to_string(page).unwrap();
    let begin = format!("```{language}\n");
    let mut blocks = page.split(&begin).skip(1);
    let block = blocks.next().unwrap().split("```").next().unwrap();
    assert!(blocks.next().is_none(), "several blocks in {language}");
    block.to_owned()
}

fn child(dir: &Path, interpreter: &str, language: &str) -> Harness<Box<dyn Consumer>> {
    fs::write(dir.join("child"), block(language)).unwrap();
    let toml = format!(
        "command = ['{interpreter}', 'child']\nbatch_max = 10\ntimeout = '60s'\n\
         start_timeout = '60s'\nstop_timeout = '60s'"
    );
    Harness::new(build(&weir_exec::kind(), &toml, dir).unwrap())
}

#[test]
fn the_child_in_shell_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), "sh", "sh");
    assert_eq!(
        child.feed("org.example.a", r#"{"topic": "not this"}"#),
        Ok(())
    );
    assert_eq!(child.feed_batch([("b", "{"), ("c", "\\\n")]), Ok(()));
    let topics = dir.path().join("topics");
    assert_eq!(
        fs::read_to_string(&topics).unwrap(),
        "org.example.a\nb\nc\n"
    );
    fs::remove_file(&topics).unwrap();
    fs::create_dir(&topics).unwrap();
    assert_eq!(child.feed("d", ""), Err(Verdict::Retry));
    assert_eq!(child.last_failure(), Some("can't write"));
}

#[test]
#[ignore = "needs peers: make test"]
fn the_child_in_python_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), "python3", "python");
    let build = r#"{"name": "weir", "state": "gebaut \u00e4\u2028"}"#;
    assert_eq!(child.feed("a", build), Ok(()), "{:?}", child.last_failure());
    assert_eq!(child.feed("a", "{"), Err(Verdict::DeadLetter));
    assert_eq!(child.feed("a", "{}"), Err(Verdict::DeadLetter));
    assert_eq!(child.last_failure(), Some("KeyError('name')"));
    assert_eq!(child.feed("a", b"\xff"), Err(Verdict::DeadLetter));
    assert_eq!(child.feed_batch([("a", build), ("b", build)]), Ok(()));
}
