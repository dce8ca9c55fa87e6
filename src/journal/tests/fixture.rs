//! A journal of format v1 as it was written once: every later version reads it.

use std::path::Path;

use super::*;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/journal-v1");

/// Two sealed segments with a hole between them, one that the process died over; cursors, slots.
/// How the fixture was made; for that of a new version, ask for it:
/// `WEIR_WRITE_FIXTURE=1 cargo test -p weir --lib fixture -- --ignored`.
#[test]
#[ignore = "writes the fixture of a new version of the format"]
fn generate() {
    if std::env::var_os("WEIR_WRITE_FIXTURE").is_none() {
        return; // `make test` runs all that is ignored
    }
    let lab = Lab::new();
    lab.send(&["org.example.a", "org.example.\u{e4}"], "first")
        .unwrap();
    lab.fill(2);
    lab.journal.lock().pass(3);
    let record = Record {
        topic: "numbered",
        payload: &[0xff, 0x00],
        source_seq: Some(42),
    };
    let mut appender = lab.journal.lock();
    let unnumbered = Record {
        source_seq: None,
        ..record
    };
    appender
        .append(
            7,
            1_700_000_000_000_000_000,
            [record, unnumbered].into_iter(),
        )
        .unwrap();
    drop(appender);
    let mut cursors = Cursors {
        next: lab.journal.end(),
        ..Cursors::default()
    };
    let cursor = Cursor {
        position: 5,
        paused: true,
        ..Cursor::default()
    };
    cursors.consumers.insert("slow".into(), cursor);
    cursors.save(lab.dir.path()).unwrap();
    let mut slot = Suspects::open(lab.dir.path(), true).unwrap().slot("slow");
    slot.set(5, 6, 2).unwrap();
    for entry in std::fs::read_dir(lab.dir.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), Path::new(FIXTURE).join(entry.file_name())).unwrap();
    }
}

#[test]
fn the_format_of_version_1_is_read() {
    // A copy: recovery seals.
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(FIXTURE).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let report = inspect(dir.path(), true).unwrap();
    assert!(report.is_sound(), "{report:?}");
    let sealed: Vec<bool> = report.segments.iter().map(|s| s.sealed).collect();
    assert_eq!(sealed, [true, true, false]);
    assert_eq!(report.cursors[0].cursor.position, 5);
    assert!(report.cursors[0].cursor.paused);

    let suspects = Suspects::open(dir.path(), false).unwrap();
    let suspect = Suspect {
        first: 5,
        last: 6,
        attempts: 2,
    };
    assert_eq!(suspects.of("slow"), [suspect]);

    let (_, journal, recovered) = open(dir.path(), Sync::Never, Duration::ZERO, 1).unwrap();
    assert_eq!(recovered.notes, [""; 0]);
    let end = journal.end();
    assert_eq!(end, report.end);
    let mut reader = journal.reader(1);
    let mut messages: Vec<Message> = Vec::new();
    let mut gaps = Vec::new();
    loop {
        let mut want = |topic: &str| Some(topic.into());
        match reader.read(&mut want, 100, 1 << 20, 0).unwrap() {
            Read::End => break,
            Read::Gap { range, why } => gaps.push((range, why)),
            Read::Messages(more) => messages.extend_from_slice(&more),
        }
    }
    assert_eq!(gaps, [(end - 5..end - 2, Gap::Outage)]);
    assert_eq!(messages.len() as u64, end - 4);
    let first = &messages[1];
    assert_eq!(
        (first.topic(), &first.payload()[..]),
        ("org.example.\u{e4}", &b"first 2"[..])
    );
    assert_eq!((first.seq(), first.received_ns()), (2, 1));
    let last = &messages[messages.len() - 1];
    assert_eq!(
        (last.topic(), &last.payload()[..]),
        ("numbered", &[0xff, 0x00][..])
    );
    assert_eq!(
        (last.seq(), last.received_ns()),
        (end - 1, 1_700_000_000_000_000_000)
    );
}
