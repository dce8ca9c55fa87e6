//! Every byte of a small log, flipped.

use super::*;

/// Every message is given as it was, or reported: as a gap, or as cut off at the end.
fn check(lab: &Lab, whole: &Got, place: &str) {
    let got = all(&lab.journal, 1);
    let mut next = 1;
    let mut gaps = got.gaps.iter().peekable();
    let mut messages = got.messages.iter().peekable();
    while next < lab.journal.end() {
        if let Some((range, why)) = gaps.next_if(|(range, _)| range.start == next) {
            assert_eq!(*why, Gap::Corrupt, "{place}");
            next = range.end;
        } else {
            let message = messages
                .next()
                .unwrap_or_else(|| panic!("{place}: {next} is missing"));
            assert_eq!(*message, whole.messages[next as usize - 1], "{place}");
            next += 1;
        }
    }
    let lost = whole.messages.len() as u64 + 1 - lab.journal.end();
    assert!(lost == 0 || lab.recovered.truncated_bytes > 0, "{place}");
    assert_eq!((gaps.next(), messages.next()), (None, None), "{place}");
}

/// In place: a file written anew is a wait for the disk.
fn flip(path: &Path, place: usize, byte: u8) {
    let file = Filesystem.open(path).unwrap();
    file.write_all_at(&[byte], place as u64).unwrap();
}

#[test]
fn a_flip_of_any_byte_never_gives_a_wrong_message_and_loses_none_silently() {
    let lab = Lab::new();
    lab.fill(2);
    lab.send(&["c"], "last").unwrap();
    let whole = all(&lab.journal, 1);
    let segments = lab.journal.segments();
    assert_eq!((segments[0].sealed, segments[1].sealed), (true, false));
    let files: Vec<(PathBuf, Vec<u8>)> = (segments.iter())
        .map(|segment| lab.path(segment.base))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    for (path, bytes) in &files {
        for (place, byte) in bytes.iter().enumerate() {
            for bit in [0, 7] {
                flip(path, place, byte ^ (1 << bit));
                // By a hub that runs, then by one that starts.
                let shown = format!("{} at {place}", path.display());
                let running = all(&lab.journal, 1);
                for message in &running.messages {
                    assert_eq!(*message, whole.messages[message.0 as usize - 1], "{shown}");
                }
                let gaps = running
                    .gaps
                    .iter()
                    .map(|(range, _)| range.end - range.start);
                let given = running.messages.len() as u64 + gaps.sum::<u64>();
                assert_eq!(given, whole.messages.len() as u64, "{shown}");
                let mut again = Lab {
                    dir: tempfile::tempdir().unwrap(),
                    disk: lab.disk.clone(),
                    journal: lab.journal.clone(),
                    recovered: Recovered::default(),
                };
                for (path, _) in &files {
                    let name = path.file_name().unwrap();
                    std::fs::copy(path, again.dir.path().join(name)).unwrap();
                }
                again.reopen(1);
                check(&again, &whole, &shown);
                again.reopen(1);
                let truncated = again.recovered.truncated_bytes;
                assert_eq!(truncated, 0, "{shown}");
                flip(path, place, *byte);
            }
        }
    }
}
