//! The journal's invariants by name.

use super::*;
use weir_consumer::Message;

#[test]
fn what_is_appended_is_read_back_before_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, recovered) = Journal::open(dir.path(), &Settings::default(), 1).unwrap();
    assert_eq!(recovered.messages_end, 1);
    let payloads: Vec<String> = (1..=10).map(|i| format!("payload {i}")).collect();
    let batch: Vec<Message> = payloads
        .iter()
        .zip(1..)
        .map(|(p, seq)| Message::at_ns("t".into(), p.clone().into(), 5, seq))
        .collect();
    let batch: Arc<[Message]> = batch.into();
    let mut appender = journal.lock();
    let records = payloads.iter().map(|p| Record {
        topic: "t",
        payload: p.as_bytes(),
        source_seq: None,
    });
    assert_eq!(appender.append(0, 5, records).unwrap(), 1);
    appender.publish(&batch);
    assert_eq!(journal.end(), 11);
    for reopened in [false, true] {
        let journal = match reopened {
            false => journal.clone(),
            true => {
                journal.close().unwrap();
                Journal::open(dir.path(), &Settings::default(), 1)
                    .unwrap()
                    .0
            }
        };
        let mut reader = journal.reader(1);
        let topic: Arc<str> = "t".into();
        let read = reader
            .read(&mut |_| Some(topic.clone()), 100, 1 << 20, 0)
            .unwrap();
        let Read::Messages(messages) = read else {
            panic!("{read:?}");
        };
        let got: Vec<_> = messages.iter().map(|m| m.payload().to_vec()).collect();
        assert_eq!(
            got,
            payloads
                .iter()
                .map(|p| p.as_bytes().to_vec())
                .collect::<Vec<_>>()
        );
        assert!(matches!(
            reader.read(&mut |_| None, 1, 1, 0).unwrap(),
            Read::End
        ));
    }
}
