//! A test of each invariant in the words at the top of the module.

use std::thread;

use super::disk::{Call, Faults};
use super::*;

const FULL: Faults = Faults {
    room: Some(30),
    late: false,
    create: false,
    set_len: false,
    sync: false,
    sync_dir: false,
    remove: false,
};
const NONE: Faults = Faults { room: None, ..FULL };

#[test]
fn what_is_appended_is_read_back_before_and_after_a_restart() {
    let mut lab = Lab::new();
    assert_eq!(lab.recovered.messages_end, 1);
    lab.fill(4);
    let end = lab.journal.end();
    let before = all(&lab.journal, 1);
    assert_eq!(before.seqs(), (1..end).collect::<Vec<_>>());
    for close in [true, false, true] {
        if close {
            lab.journal.close().unwrap();
        }
        lab.reopen(1);
        assert_eq!((lab.journal.begin(), lab.journal.end()), (1, end));
        assert_eq!(all(&lab.journal, 1), before);
        assert_eq!(lab.recovered.truncated_bytes, 0);
        assert_eq!(lab.recovered.notes, [""; 0]);
    }
}

#[test]
fn numbers_are_dense_within_a_segment_and_a_hole_is_told_of() {
    let mut lab = Lab::new();
    assert_eq!(lab.send(&["a", "b", "c"], "x").unwrap(), 1);
    let mut appender = lab.journal.lock();
    assert_eq!(appender.pass(5), 4);
    drop(appender);
    let outage = [(4..9, Gap::Outage)];
    // At the head, before anything follows.
    assert_eq!(all(&lab.journal, 1).gaps, outage);
    assert_eq!(lab.send(&["a"], "y").unwrap(), 9);
    let expected = |journal: &Arc<Journal>| {
        let got = all(journal, 1);
        assert_eq!(got.seqs(), [1, 2, 3, 9]);
        assert_eq!(got.gaps, outage);
        assert_eq!(journal.snapshot().segments, 2);
        let has: Vec<bool> = [3, 4, 8, 9, 10].map(|seq| journal.has(seq)).into();
        assert_eq!(has, [true, false, false, true, false]);
    };
    expected(&lab.journal);
    lab.reopen(1);
    expected(&lab.journal);
    assert_eq!(lab.journal.snapshot().unjournaled, 0);
    // The cursors know of numbers that the log does not have.
    lab.reopen(20);
    assert_eq!(lab.send(&["a"], "z").unwrap(), 20);
    assert_eq!(all(&lab.journal, 9).gaps, [(10..20, Gap::Outage)]);
}

#[test]
fn readers_stop_at_the_published_end() {
    let lab = Lab::new();
    lab.send(&["a"], "x").unwrap();
    let mut reader = lab.journal.reader(1);
    let mut appender = lab.journal.lock();
    for first in 2..40 {
        // Over several segments.
        let payload = payload("x", first);
        let record = Record {
            topic: "a",
            payload: payload.as_bytes(),
            source_seq: Some(7),
        };
        appender.append(0, 1, [record].into_iter()).unwrap();
        assert_eq!(lab.journal.end(), 2);
        assert!(!lab.journal.has(2));
        assert_eq!(all(&lab.journal, 1).seqs(), [1]);
    }
    assert_eq!(drain(&mut reader, 10, |_| true).seqs(), [1]);
    drop(appender); // publishes, too
    assert_eq!(
        drain(&mut reader, 10, |_| true).seqs(),
        (2..40).collect::<Vec<_>>()
    );
}

#[test]
fn sealed_segments_never_change() {
    let mut lab = Lab::new();
    lab.fill(3);
    let content = |lab: &Lab| -> Vec<(u64, Vec<u8>)> {
        let segments = lab.journal.segments();
        let sealed = segments.iter().filter(|segment| segment.sealed);
        sealed
            .map(|segment| (segment.base, std::fs::read(lab.path(segment.base)).unwrap()))
            .collect()
    };
    let before = content(&lab);
    assert_eq!(before.len(), 2);
    lab.fill(5);
    lab.journal.sync_now().unwrap();
    assert_eq!(content(&lab)[..2], before);
    lab.journal.close().unwrap();
    let closed = content(&lab);
    assert_eq!(closed.len(), 5);
    lab.reopen(1);
    lab.fill(7);
    assert_eq!(content(&lab)[..2], before);
    assert_eq!(content(&lab)[..5], closed);
}

#[test]
fn the_durable_mark_advances_only_when_all_earlier_files_and_names_are_synced() {
    let lab = Lab::new();
    lab.fill(4);
    assert_eq!(lab.journal.durable(), 1);
    lab.disk.set(Faults {
        sync_dir: true,
        ..NONE
    });
    assert!(lab.journal.sync_now().is_err());
    assert_eq!(lab.journal.durable(), 1, "no name is on the disk");
    // What could not be synced is given up; what follows is synced, and the mark stays.
    lab.disk.set(NONE);
    lab.fill(6);
    lab.journal.sync_now().unwrap();
    assert_eq!(lab.journal.durable(), 1);
    for segment in lab.journal.segments().iter().take(4) {
        lab.journal.remove_oldest(segment.base).unwrap();
    }
    lab.journal.sync_now().unwrap();
    assert_eq!(lab.journal.durable(), lab.journal.end());

    let lab = Lab::new();
    lab.fill(4);
    let end = lab.journal.end();
    lab.disk.calls();
    lab.journal.sync_now().unwrap();
    assert_eq!(lab.journal.durable(), end);
    let calls: Vec<Call> = lab.disk.calls().iter().map(|(call, _)| *call).collect();
    assert_eq!(
        calls,
        [
            Call::Sync,
            Call::Sync,
            Call::Sync,
            Call::Sync,
            Call::SyncDir
        ]
    );
    // What is settled is not synced again.
    lab.send(&["a"], "x").unwrap();
    lab.disk.calls();
    lab.journal.sync_now().unwrap();
    assert!(lab.disk.calls().len() <= 3);
}

#[test]
fn syncing_and_unlinking_never_need_the_append_lock() {
    let lab = Lab::new();
    lab.fill(3);
    lab.send(&["a"], "x").unwrap();
    let me = thread::current().id();
    let slow = [Call::Sync, Call::SyncDir, Call::Remove];
    let calls = lab.disk.calls();
    assert!(
        calls
            .iter()
            .all(|(call, thread)| *thread == me && !slow.contains(call))
    );
    // With the lock held, the others go on: if one took it, this would hang.
    let appender = lab.journal.lock();
    lab.journal.sync_now().unwrap();
    lab.journal.remove_oldest(1).unwrap();
    assert!(lab.journal.begin() > 1);
    thread::scope(|scope| {
        scope.spawn(|| lab.journal.run());
        lab.journal.wait_durable(lab.journal.end()).unwrap();
        drop(appender);
        lab.send(&["a"], "x").unwrap();
        let appender = lab.journal.lock();
        lab.journal.wait_durable(appender.next()).unwrap();
        drop(appender);
        lab.journal.close().unwrap();
    });
    let calls = lab.disk.calls();
    assert!(
        calls
            .iter()
            .any(|(call, thread)| *call == Call::Sync && *thread != me)
    );
}

#[test]
fn segments_are_removed_whole_oldest_first_and_who_needed_one_is_told() {
    let mut lab = Lab::new();
    lab.fill(4);
    let segments = lab.journal.segments();
    let mut inside = lab.journal.reader(1);
    let mut want = |topic: &str| Some(topic.into());
    let first = inside.read(&mut want, 1, 1, 0).unwrap();
    assert!(matches!(first, Read::Messages(messages) if messages[0].seq() == 1));
    assert!(lab.journal.remove_oldest(segments[1].base).is_err());
    assert!(lab.journal.remove_oldest(segments[3].base).is_err());
    lab.disk.set(Faults {
        remove: true,
        ..NONE
    });
    assert!(lab.journal.remove_oldest(1).is_err());
    assert_eq!((lab.journal.begin(), lab.journal.segments().len()), (1, 4));
    lab.disk.set(NONE);
    lab.journal.remove_oldest(1).unwrap();
    lab.journal.remove_oldest(segments[1].base).unwrap();
    let begin = segments[2].base;
    assert_eq!(lab.journal.begin(), begin);
    assert_eq!(lab.journal.snapshot().removed_segments, 2);
    assert_eq!(
        drain(&mut inside, 9, |_| true).gaps,
        [(2..begin, Gap::Removed)]
    );
    for _ in 0..2 {
        let got = all(&lab.journal, 1);
        assert_eq!(got.gaps, [(1..begin, Gap::Removed)]);
        assert_eq!(got.seqs(), (begin..lab.journal.end()).collect::<Vec<_>>());
        lab.reopen(1);
    }
    // All of them: numbers go on all the same.
    let end = lab.journal.end();
    for segment in lab.journal.segments() {
        lab.journal.remove_oldest(segment.base).unwrap();
    }
    assert_eq!((lab.journal.begin(), lab.journal.end()), (end, end));
    assert_eq!(all(&lab.journal, 5).gaps, [(5..end, Gap::Removed)]);
    assert_eq!(lab.send(&["a"], "x").unwrap(), end);
    assert_eq!(all(&lab.journal, end).seqs(), [end]);
    let active = lab.journal.segments()[0].base;
    assert!(lab.journal.remove_oldest(active).is_err(), "it is written");
}

#[test]
fn a_failed_write_leaves_nothing_of_its_batch_and_the_journal_goes_on_by_itself() {
    for set_len in [false, true] {
        let mut lab = Lab::new();
        lab.send(&["a"], "x").unwrap();
        lab.disk.set(Faults { set_len, ..FULL });
        let error = lab.send(&["a", "b"], "lost").unwrap_err();
        assert!(error.is_full());
        assert!(error.to_string().contains(".seg"), "{error}");
        assert!(matches!(lab.journal.snapshot().state, State::Failed { .. }));
        assert_eq!(lab.journal.snapshot().write_errors, 1);
        assert_eq!(all(&lab.journal, 1).seqs(), [1]);
        lab.disk.set(NONE);
        assert_eq!(lab.send(&["c"], "y").unwrap(), 2);
        assert_eq!(lab.journal.snapshot().state, State::Ok);
        let expected = Got {
            messages: vec![(1, "x 1".into()), (2, "y 2".into())],
            gaps: vec![],
        };
        assert_eq!(all(&lab.journal, 1), expected);
        lab.reopen(1);
        assert_eq!(all(&lab.journal, 1), expected);
        assert_eq!(lab.journal.end(), 3);
    }
}

#[test]
fn a_batch_that_was_written_whole_and_called_a_failure_does_not_come_back() {
    let mut lab = Lab::new();
    lab.send(&["a"], "x").unwrap();
    lab.disk.set(Faults {
        late: true,
        set_len: true,
        ..NONE
    });
    lab.send(&["a", "b"], "y").unwrap_err();
    // It stands in the file, valid, behind the end.
    let len = std::fs::metadata(lab.path(1)).unwrap().len();
    assert!(len > lab.journal.segments()[0].bytes);
    lab.disk.set(NONE);
    lab.send(&["a"], "z").unwrap();
    assert_eq!(all(&lab.journal, 1).seqs(), [1, 2]);
    lab.reopen(1);
    let got = all(&lab.journal, 1);
    assert_eq!(got.messages[1], (2, "z 2".into()));
    assert_eq!((got.messages.len(), got.gaps.len()), (2, 0));
    assert_eq!(lab.recovered.truncated_bytes, 0);
}

#[test]
fn the_disk_is_left_alone_for_a_while_after_a_failure() {
    // A while that does not end.
    let lab = Lab::with(Sync::Never, Duration::MAX);
    lab.disk.set(FULL);
    let first = lab.send(&["a"], "x").unwrap_err().to_string();
    lab.disk.set(NONE);
    lab.disk.calls();
    assert_eq!(lab.send(&["a"], "x").unwrap_err().to_string(), first);
    assert_eq!(lab.disk.calls(), []);
    assert_eq!(lab.journal.snapshot().write_errors, 1);
}

#[test]
fn a_segment_that_can_not_be_made_is_made_later() {
    let lab = Lab::new();
    let create = Faults {
        create: true,
        ..NONE
    };
    lab.disk.set(create);
    assert!(lab.send(&["a"], "x").is_err());
    lab.disk.set(Faults {
        room: Some(10),
        ..NONE
    });
    assert!(lab.send(&["a"], "x").is_err(), "not even the header fits");
    lab.disk.set(NONE);
    lab.fill(2);
    lab.disk.set(create);
    while lab.send(&["a"], "x").is_ok() {}
    assert_eq!(lab.journal.segments().len(), 2);
    lab.disk.set(NONE);
    lab.send(&["a"], "x").unwrap();
    assert_eq!(lab.journal.segments().len(), 3);
    let expected: Vec<u64> = (1..lab.journal.end()).collect();
    assert_eq!(all(&lab.journal, 1).seqs(), expected);
}

#[test]
fn after_a_failed_sync_the_segment_is_neither_synced_nor_written_again() {
    let mut lab = Lab::new();
    lab.send(&["a"], "x").unwrap();
    lab.journal.sync_now().unwrap();
    lab.send(&["a"], "x").unwrap();
    lab.disk.set(Faults { sync: true, ..NONE });
    assert!(lab.journal.sync_now().unwrap_err().contains(".seg"));
    let shot = lab.journal.snapshot();
    assert!(matches!(shot.state, State::Failed { .. }));
    assert_eq!((shot.sync_errors, shot.durable, shot.end), (1, 2, 3));
    lab.disk.set(NONE);
    let given_up = std::fs::read(lab.path(1)).unwrap();
    lab.disk.calls();
    assert_eq!(lab.send(&["a"], "y").unwrap(), 3);
    assert_eq!(lab.journal.segments().len(), 2);
    assert_eq!(lab.journal.snapshot().state, State::Ok);
    lab.journal.sync_now().unwrap();
    let calls: Vec<Call> = lab.disk.calls().iter().map(|(call, _)| *call).collect();
    let expected = [
        Call::Create,
        Call::Write,
        Call::Write,
        Call::Sync,
        Call::SyncDir,
    ];
    assert_eq!(calls, expected);
    assert_eq!(std::fs::read(lab.path(1)).unwrap(), given_up);
    assert_eq!(lab.journal.durable(), 2, "as long as it exists");
    assert_eq!(all(&lab.journal, 1).seqs(), [1, 2, 3]);
    // Who waits for what is lost is told; who waits for what came later is not.
    thread::scope(|scope| {
        scope.spawn(|| lab.journal.run());
        assert!(lab.journal.wait_durable(3).is_err());
        assert_eq!(lab.journal.wait_durable(4), Ok(()));
        assert_eq!(lab.journal.wait_durable(2), Ok(()));
        lab.journal.close().unwrap();
    });
    lab.reopen(1);
    assert_eq!(all(&lab.journal, 1).seqs(), [1, 2, 3]);
    lab.journal.sync_now().unwrap();
    assert_eq!(lab.journal.durable(), 4);
}

#[test]
fn the_sync_thread_follows_the_policy() {
    // Every so often: nobody asks.
    let lab = Lab::with(Sync::Every(Duration::from_millis(1)), Duration::ZERO);
    thread::scope(|scope| {
        scope.spawn(|| lab.journal.run());
        for _ in 0..3 {
            lab.send(&["a"], "x").unwrap();
            while lab.journal.durable() < lab.journal.end() {
                thread::yield_now();
            }
        }
        lab.journal.close().unwrap();
    });
    // Never: only at the end.
    let lab = Lab::with(Sync::Never, Duration::ZERO);
    thread::scope(|scope| {
        scope.spawn(|| lab.journal.run());
        lab.fill(3);
        assert_eq!(lab.journal.durable(), 1);
        lab.journal.close().unwrap();
    });
    assert_eq!(lab.journal.durable(), lab.journal.end());
    assert!(lab.send(&["a"], "x").is_err());
    // Before anybody sees it.
    let lab = Lab::with(Sync::EachBatch, Duration::ZERO);
    thread::scope(|scope| {
        let sync = scope.spawn(|| lab.journal.run());
        for _ in 0..3 {
            let mut appender = lab.journal.lock();
            let record = Record {
                topic: "a",
                payload: b"x",
                source_seq: None,
            };
            appender.append(0, 1, [record].into_iter()).unwrap();
            lab.journal.wait_durable(appender.next()).unwrap();
            assert_eq!(lab.journal.durable(), lab.journal.end() + 1);
        }
        lab.journal.close().unwrap();
        sync.join().unwrap();
        // It has ended: nobody is left to wait for.
        assert_eq!(lab.journal.wait_durable(9), Ok(()));
    });
}

#[test]
fn recovery_scans_only_segments_without_a_footer() {
    let mut lab = Lab::new();
    lab.fill(3);
    lab.journal.close().unwrap();
    // A flip in a sealed segment is found when it is read.
    let path = lab.path(1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[segment::HEADER + frame::HEAD + 9] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    lab.reopen(1);
    assert_eq!(lab.recovered.corrupt, []);
    let got = all(&lab.journal, 1);
    assert_eq!(got.gaps, [(1..3, Gap::Corrupt)]);
    assert_eq!(got.seqs(), (3..lab.journal.end()).collect::<Vec<_>>());
}

#[test]
fn damage_with_nothing_valid_behind_it_is_cut_off_and_counted() {
    let mut lab = Lab::new();
    lab.send(&["a"], "x").unwrap();
    let len = std::fs::metadata(lab.path(1)).unwrap().len();
    lab.send(&["a", "b"], "x").unwrap();
    let whole = std::fs::read(lab.path(1)).unwrap();
    for cut in len..whole.len() as u64 {
        std::fs::write(lab.path(1), &whole[..cut as usize]).unwrap();
        lab.reopen(1);
        assert_eq!(lab.recovered.truncated_bytes, cut - len);
        assert_eq!(lab.recovered.notes.len(), usize::from(cut > len));
        assert_eq!(lab.journal.snapshot().truncated_bytes, cut - len);
        assert_eq!(all(&lab.journal, 1).seqs(), [1]);
        assert_eq!(lab.journal.end(), 2);
        lab.reopen(1);
        assert_eq!(lab.recovered.truncated_bytes, 0, "it was said");
    }
}

#[test]
fn damage_with_valid_frames_behind_it_is_a_gap_and_what_is_behind_it_stays() {
    let mut lab = Lab::new();
    for topics in [&["a"][..], &["a", "b", "c"], &["d"]] {
        lab.send(topics, "x").unwrap();
    }
    let whole = std::fs::read(lab.path(1)).unwrap();
    let frame = segment::HEADER + frame::HEAD + 8 + "ax 1".len();
    let lost = 2..5;
    for place in 0..frame::HEAD + 10 {
        let mut bytes = whole.clone();
        bytes[frame + place] ^= 1;
        std::fs::write(lab.path(1), bytes).unwrap();
        lab.reopen(1);
        assert_eq!(lab.recovered.corrupt, std::slice::from_ref(&lost));
        assert_eq!(lab.recovered.truncated_bytes, 0);
        assert_eq!(lab.journal.snapshot().corrupt_messages, 3);
        let got = all(&lab.journal, 1);
        assert_eq!(
            (got.seqs(), got.gaps),
            (vec![1, 5], vec![(2..5, Gap::Corrupt)])
        );
        let counted = lab.journal.count(1..6, &mut |_| true).unwrap();
        assert_eq!(
            (counted.messages, counted.lost, counted.unwritten),
            (2, 3, 0)
        );
    }
}

#[test]
fn a_payload_that_looks_like_a_frame_is_none() {
    let mut lab = Lab::new();
    lab.send(&["a"], "x").unwrap();
    // A journal's file as a payload, as a consumer that archives files might publish it.
    let file = std::fs::read(lab.path(1)).unwrap();
    let record = Record {
        topic: "a",
        payload: &file,
        source_seq: None,
    };
    let mut appender = lab.journal.lock();
    appender.append(0, 1, [record].into_iter()).unwrap();
    drop(appender);
    // Its frame is damaged, so the search goes through the payload.
    let mut bytes = std::fs::read(lab.path(1)).unwrap();
    bytes[file.len() + 8] ^= 1;
    std::fs::write(lab.path(1), bytes).unwrap();
    lab.reopen(1);
    assert_eq!(all(&lab.journal, 1).seqs(), [1]);
    assert_eq!(lab.journal.end(), 2);
}

#[test]
fn a_segment_of_an_unknown_version_is_refused_with_a_text_that_says_what_to_do() {
    let lab = Lab::new();
    lab.fill(2);
    let path = lab.path(1);
    let whole = std::fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..36]);
    bytes[36..40].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = Journal::open(lab.dir.path(), &Settings::default(), 1)
        .err()
        .unwrap();
    let path = path.display();
    assert_eq!(
        error,
        format!(
            "{path} is of version 2 of the journal's format, and this hub knows version 1; start \
             the hub that wrote it, or move the file away to go on without what is in it"
        )
    );
    assert_eq!(inspect(lab.dir.path(), true).unwrap().problems, [error]);
    // With a wrong checksum it is damage, and its frames are still read.
    bytes[36] ^= 1;
    std::fs::write(lab.path(1), &bytes).unwrap();
    let mut lab = lab;
    lab.reopen(1);
    assert_eq!(lab.recovered.notes.len(), 1);
    assert_eq!(
        all(&lab.journal, 1).seqs(),
        (1..lab.journal.end()).collect::<Vec<_>>()
    );
}

#[test]
fn strange_things_in_the_directory_stop_nobody() {
    let mut lab = Lab::new();
    lab.fill(5);
    let segments = lab.journal.segments();
    let end = lab.journal.end();
    lab.journal.close().unwrap();
    let dir = &lab.dir.path().to_owned();
    std::fs::write(dir.join("notes.seg"), "x").unwrap();
    std::fs::write(dir.join("00000000000000000001.seg.old"), "x").unwrap();
    std::fs::create_dir(dir.join(segment::name(3))).unwrap();
    std::fs::write(dir.join(segment::name(4)), "").unwrap();
    std::fs::write(dir.join(segment::name(u64::MAX)), "what is this?").unwrap();
    std::fs::write(dir.join("99999999999999999999.seg"), "too many").unwrap();
    // One in the middle is gone.
    std::fs::remove_file(lab.path(segments[2].base)).unwrap();
    lab.reopen(1);
    let missing = segments[2].base..segments[3].base;
    assert_eq!(lab.recovered.corrupt, vec![missing.clone()]);
    assert_eq!(lab.journal.end(), end);
    let got = all(&lab.journal, 1);
    assert_eq!(got.gaps, [(missing.clone(), Gap::Corrupt)]);
    let counted = lab.journal.count(1..end, &mut |_| true).unwrap();
    assert_eq!(counted.lost, missing.end - missing.start);
    assert_eq!(counted.messages, got.messages.len() as u64);
    assert_eq!(lab.recovered.notes.len(), 5, "{:?}", lab.recovered.notes);

    // A renamed one would give its messages other numbers.
    std::fs::rename(lab.path(segments[1].base), dir.join(segment::name(9000))).unwrap();
    let error = Journal::open(dir, &Settings::default(), 1).err().unwrap();
    assert!(error.contains("renamed") && error.contains(&segment::name(segments[1].base)));
}

#[test]
fn of_two_segments_that_overlap_the_later_goes_before() {
    let mut lab = Lab::new();
    lab.fill(2);
    let base = lab.journal.segments()[1].base;
    // One that begins before the other ends, as it would after a batch that was given up.
    let file = Filesystem.create(&lab.path(base - 1)).unwrap();
    let header = segment::Header {
        base: base - 1,
        after: base - 1,
        created_ns: 0,
    };
    let mut bytes = Vec::new();
    let record = Record {
        topic: "a",
        payload: b"other",
        source_seq: None,
    };
    frame::encode(&mut bytes, base - 1, 0, 0, [record; 3].into_iter(), 100).unwrap();
    frame::stamp(&mut bytes, base - 1, segment::HEADER as u64);
    file.write_all_at(&header.encode(), 0).unwrap();
    file.write_all_at(&bytes, segment::HEADER as u64).unwrap();
    let before = all(&lab.journal, base);
    lab.reopen(1);
    let got = all(&lab.journal, base - 2);
    assert_eq!(got.gaps, []);
    assert_eq!(got.messages[1], (base - 1, "other".into()));
    assert_eq!(got.messages[2..], before.messages);
}

#[test]
fn a_large_batch_becomes_frames_and_is_read_as_one() {
    let mut lab = Lab::new();
    let long = "y".repeat(1 << 20);
    let mut appender = lab.journal.lock();
    let records = (0..9).map(|seq| Record {
        topic: if seq % 2 == 0 { "even" } else { "odd" },
        payload: &long.as_bytes()[seq..],
        source_seq: Some(seq as u64),
    });
    appender.append(3, 77, records).unwrap();
    drop(appender);
    assert_eq!(lab.journal.segments().len(), 1);
    for _ in 0..2 {
        let mut reader = lab.journal.reader(1);
        let got = drain(&mut reader, 100, |topic| topic == "odd");
        assert_eq!(got.seqs(), [2, 4, 6, 8]);
        assert!(
            got.messages
                .iter()
                .all(|(seq, text)| text.len() as u64 == (1 << 20) - seq + 1)
        );
        let mut reader = lab.journal.reader(3);
        let mut want = |topic: &str| Some(topic.into());
        let Read::Messages(messages) = reader.read(&mut want, 100, 3 << 20, 5).unwrap() else {
            panic!("nothing was read");
        };
        let replayed: Vec<_> = messages.iter().map(|m| (m.seq(), m.replayed())).collect();
        assert_eq!(
            replayed[..1],
            [(3, true)],
            "a megabyte is enough for one call"
        );
        assert_eq!(messages[0].received_ns(), 77);
        lab.reopen(1);
    }
}

#[test]
fn at_the_head_messages_are_shared() {
    let lab = Lab::new();
    let mut reader = lab.journal.reader(1);
    let message = Message::at_ns("a".into(), "payload".into(), 1, 1);
    let batch: Arc<[Message]> = [message.clone()].into();
    let record = Record {
        topic: "a",
        payload: b"payload",
        source_seq: None,
    };
    let mut appender = lab.journal.lock();
    appender.append(0, 1, [record].into_iter()).unwrap();
    appender.publish(&batch);
    let mut want = |topic: &str| Some(topic.into());
    let Read::Messages(messages) = reader.read(&mut want, 9, 999, 0).unwrap() else {
        panic!("nothing was read");
    };
    assert_eq!(messages[0].payload().as_ptr(), message.payload().as_ptr());
    // Nobody reads any more: nothing is kept.
    drop(reader);
    lab.send(&["a"], "x").unwrap();
    let mut reader = lab.journal.reader(1);
    let Read::Messages(messages) = reader.read(&mut want, 9, 999, 2).unwrap() else {
        panic!("nothing was read");
    };
    assert_ne!(messages[0].payload().as_ptr(), message.payload().as_ptr());
    let replayed: Vec<_> = messages.iter().map(Message::replayed).collect();
    assert_eq!(replayed, [true, false]);
}

#[test]
fn a_rare_message_does_not_keep_what_stands_around_it_in_memory() {
    let lab = Lab::new();
    lab.send(&["a", "a", "rare", "a", "a", "a", "a"], "x")
        .unwrap();
    for (wanted, alone) in [("rare", true), ("a", false)] {
        let mut reader = lab.journal.reader(1);
        let mut want = |topic: &str| (topic == wanted).then(|| topic.into());
        let Read::Messages(messages) = reader.read(&mut want, 9, 999, 0).unwrap() else {
            panic!("nothing was read");
        };
        drop(reader);
        assert_eq!(messages[0].payload().is_unique(), alone);
    }
}

#[test]
fn a_disk_that_can_not_be_read_just_now_moves_nobody() {
    let lab = Lab::new();
    lab.send(&["a"], "x").unwrap();
    let mut reader = lab.journal.reader(1);
    let away = lab.dir.path().join("away");
    std::fs::rename(lab.path(1), &away).unwrap();
    let mut want = |topic: &str| Some(topic.into());
    assert!(reader.read(&mut want, 1, 1, 0).is_err());
    assert_eq!(reader.position(), 1);
    std::fs::rename(&away, lab.path(1)).unwrap();
    assert_eq!(drain(&mut reader, 1, |_| true).seqs(), [1]);
}

#[test]
fn what_nobody_wants_is_passed_over_by_the_footer() {
    let lab = Lab::new();
    lab.fill(4);
    let segments = lab.journal.segments();
    lab.send(&["rare"], "x").unwrap();
    // It is not even looked at: its frames are no more.
    let path = lab.path(1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[segment::HEADER + 5] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let got = drain(&mut lab.journal.reader(1), 5, |topic| topic == "rare");
    assert_eq!(
        (got.seqs(), got.gaps),
        (vec![lab.journal.end() - 1], vec![])
    );
    assert_eq!(segments[0].base, 1);
}

#[test]
fn counting_by_footers_is_counting_by_reading() {
    let lab = Lab::new();
    lab.fill(3);
    lab.journal.lock().pass(4);
    lab.fill(5);
    let (begin, end) = (1, lab.journal.end());
    for wanted in ["a", "b", "neither"] {
        for range in [
            begin..end,
            begin + 3..end - 1,
            4..6,
            end - 2..end + 100,
            9..9,
        ] {
            let mut reader = lab.journal.reader(range.start);
            let got = drain(&mut reader, 9, |topic| topic == wanted);
            let mine = got.messages.iter().filter(|(seq, _)| range.contains(seq));
            let expected = mine.clone().count() as u64;
            let bytes: usize = mine.clone().map(|(_, text)| 1 + text.len()).sum();
            let counted = lab
                .journal
                .count(range.clone(), &mut |t| t == wanted)
                .unwrap();
            assert_eq!((counted.messages, counted.bytes), (expected, bytes as u64));
            // Batches of two, whose time is their first number.
            let mut firsts = got.messages.iter().filter(|(seq, _)| range.contains(seq));
            let first = firsts
                .next()
                .map(|(seq, _)| if wanted == "b" { seq - 1 } else { *seq });
            assert_eq!(counted.first_ns, first);
            assert_eq!(counted.lost, 0);
        }
    }
    let counted = lab.journal.count(begin..end, &mut |_| false).unwrap();
    assert_eq!((counted.messages, counted.unwritten), (0, 4));
    lab.journal.remove_oldest(1).unwrap();
    let counted = lab.journal.count(begin..end, &mut |_| true).unwrap();
    assert_eq!(counted.lost, lab.journal.begin() - 1);
    assert_eq!(counted.messages, end - lab.journal.begin() - 4);
}

#[test]
fn a_time_is_found() {
    let lab = Lab::new();
    lab.fill(3);
    let end = lab.journal.end();
    // Batches of two, whose time is their first number.
    for (ns, seq) in [
        (0, 1),
        (1, 1),
        (2, 3),
        (3, 3),
        (end - 2, end - 2),
        (end, end),
    ] {
        assert_eq!(lab.journal.first_since(ns).unwrap(), seq, "{ns}");
    }
}

#[test]
fn an_old_segment_is_ended_on_request() {
    let lab = Lab::new();
    lab.send(&["a"], "x").unwrap();
    lab.journal.rotate_soon();
    assert_eq!(lab.journal.segments().len(), 1);
    lab.send(&["a"], "x").unwrap();
    lab.send(&["a"], "x").unwrap();
    let segments = lab.journal.segments();
    assert_eq!(segments.len(), 2);
    let ends: Vec<_> = segments.iter().map(|s| (s.base, s.end, s.sealed)).collect();
    assert_eq!(ends, [(1, 2, true), (2, 4, false)]);
    assert_eq!(
        segments[0].bytes,
        std::fs::metadata(lab.path(1)).unwrap().len()
    );
}

#[test]
fn inspection_says_what_there_is() {
    let lab = Lab::new();
    lab.fill(3);
    let end = lab.journal.end();
    let mut cursors = Cursors {
        clean: true,
        next: end,
        ..Cursors::default()
    };
    let cursor = Cursor {
        position: 3,
        ..Cursor::default()
    };
    cursors.consumers.insert("slow".into(), cursor);
    cursors.save(lab.dir.path()).unwrap();
    // As the hub is just writing a batch.
    let segments = lab.journal.segments();
    let path = lab.path(segments[2].base);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend(&[1; 50]);
    std::fs::write(&path, bytes).unwrap();
    for check in [false, true] {
        let report = inspect(lab.dir.path(), check).unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(
            (report.begin, report.end, report.messages),
            (1, end, end - 1)
        );
        assert_eq!(report.cursors[0].behind, end - 3);
        assert_eq!(report.clean, Some(true));
        assert_eq!(report.notes.len(), 1);
        for (reported, segment) in report.segments.iter().zip(&segments) {
            let times = (reported.first_ns, reported.last_ns);
            assert_eq!(times, (segment.first_ns, segment.last_ns));
            assert_eq!(
                (reported.end, reported.sealed),
                (segment.end, segment.sealed)
            );
        }
    }
    // Damage in a sealed segment is found by who looks.
    let mut bytes = std::fs::read(lab.path(1)).unwrap();
    let at = segment::HEADER + frame::HEAD;
    bytes[at] ^= 1;
    std::fs::write(lab.path(1), bytes).unwrap();
    assert!(inspect(lab.dir.path(), false).unwrap().is_sound());
    let report = inspect(lab.dir.path(), true).unwrap();
    let problem = &report.segments[0].problems[0];
    assert_eq!(
        (problem.offset, problem.range.clone()),
        (segment::HEADER as u64, 1..3)
    );
    assert_eq!(report.messages, end - 3);
    std::fs::remove_file(lab.path(segments[1].base)).unwrap();
    let report = inspect(lab.dir.path(), true).unwrap();
    assert_eq!(report.holes[0].range, segments[1].base..segments[2].base);
    assert!(report.holes[0].missing);
    assert!(inspect(&lab.dir.path().join("nowhere"), true).is_err());
}
