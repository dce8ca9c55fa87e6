//! The consumer between real sockets.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use weir_consumer::testkit::{Harness, build, conformance};
use weir_consumer::{Consumer, Message, Verdict};
use zmq::{Context, Socket, SocketType};

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE_MS: i32 = 60_000;

/// A receiver that is bound to a free port, and its endpoint.
fn receiver(kind: SocketType) -> (Socket, String) {
    let socket = Context::new().socket(kind).unwrap();
    socket.set_rcvtimeo(PATIENCE_MS).unwrap();
    socket.set_linger(0).unwrap();
    if kind == SocketType::SUB {
        socket.set_subscribe(b"").unwrap();
    }
    socket.bind("tcp://127.0.0.1:*").unwrap();
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    (socket, endpoint.trim_end_matches('\0').to_owned())
}

fn consumer(toml: &str) -> Box<dyn Consumer> {
    build(&weir_forward::kind(), toml, Path::new("")).unwrap_or_else(|m| panic!("{}", m[0]))
}

fn received(socket: &Socket) -> (String, String) {
    let frames = socket.recv_multipart(0).expect("a message");
    let [topic, payload] = frames.try_into().expect("two frames");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(topic), text(payload))
}

/// Waits until it holds, for what can only be polled.
fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_millis(PATIENCE_MS as u64);
    while !holds() {
        assert!(Instant::now() < deadline);
    }
}

/// An endpoint that nobody has: it was free a moment ago.
fn unused() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("tcp://{}", listener.local_addr().unwrap())
}

#[test]
fn a_message_is_sent_on_as_topic_and_payload_with_its_topic_rewritten() {
    for (pattern, kind) in [("pub", SocketType::SUB), ("push", SocketType::PULL)] {
        let (socket, endpoint) = receiver(kind);
        let mut harness = Harness::new(consumer(&format!(
            "socket = '{pattern}'\nconnect = ['{endpoint}']\ntimeout = '10ms'\n\
             rewrite = [{{ prefix = 'org.example.', with = 'net.relay.' }}]"
        )));
        eventually(|| {
            // A bound socket subscribes to whoever connects when its owner calls it.
            let _ = socket.poll(zmq::POLLIN, 0).unwrap();
            harness.feed("org.example.a", "1") == Ok(())
        });
        assert_eq!(harness.feed("com.example.b", ""), Ok(()));
        assert_eq!(received(&socket), ("net.relay.a".into(), "1".into()));
        assert_eq!(received(&socket), ("com.example.b".into(), String::new()));
    }
}

#[test]
fn receivers_may_connect_to_it_by_tcp_and_by_ipc() {
    let dir = tempfile::tempdir().unwrap();
    for (pattern, kind) in [("pub", SocketType::SUB), ("push", SocketType::PULL)] {
        for endpoint in [
            unused(),
            format!("ipc://{}/{pattern}", dir.path().display()),
        ] {
            let mut harness = Harness::new(consumer(&format!(
                "socket = '{pattern}'\nbind = ['{endpoint}']"
            )));
            harness.consumer().tick().unwrap(); // opens it
            let socket = Context::new().socket(kind).unwrap();
            socket.set_rcvtimeo(PATIENCE_MS).unwrap();
            if kind == SocketType::SUB {
                socket.set_subscribe(b"").unwrap();
            }
            socket.connect(&endpoint).unwrap();
            eventually(|| harness.feed("a", "1") == Ok(()));
            assert_eq!(received(&socket), ("a".into(), "1".into()));
        }
    }
}

#[test]
fn nothing_is_lost_while_nobody_takes_it() {
    for (pattern, kind) in [("push", SocketType::PULL), ("pub", SocketType::SUB)] {
        nothing_is_lost_by(pattern, kind);
    }
}

fn nothing_is_lost_by(pattern: &str, kind: SocketType) {
    let (socket, endpoint) = receiver(kind);
    socket.set_rcvhwm(1).unwrap();
    let mut harness = Harness::new(consumer(&format!(
        "socket = '{pattern}'\nconnect = ['{endpoint}']\nsend_hwm = 1\ntimeout = '0s'"
    )));
    // A subscriber that binds says what it wants when it is next used.
    eventually(|| socket.poll(zmq::POLLIN, 0).is_ok() && harness.feed("0", "") == Ok(()));
    assert_eq!(received(&socket).0, "0");
    // The same message until it is taken, as the hub does; what TCP holds is some megabytes.
    let payload = "x".repeat(100_000);
    let mut taken = 0_u64;
    let mut refused = 0;
    let mut feed = |number: u64| {
        let topic = number.to_string();
        let message = Message::new(
            topic.into(),
            payload.clone().into(),
            SystemTime::now(),
            number,
        );
        weir_consumer::deliver(harness.consumer(), &[message])
    };
    while refused < 1000 {
        match feed(taken + 1) {
            weir_consumer::Delivery::Consumed => (taken, refused) = (taken + 1, 0),
            weir_consumer::Delivery::Failed(failure) => {
                assert_eq!(failure.verdict(), Verdict::Retry);
                let told = failure.to_string();
                let nobody = [
                    "no receiver at tcp://127.0.0.1:",
                    "a subscriber at tcp://127.0.0.1:",
                ];
                assert!(nobody.iter().any(|text| told.contains(text)), "{told}");
                refused += 1;
            }
            weir_consumer::Delivery::Panicked(text) => panic!("{text}"),
        }
        assert!(taken < 10_000, "nothing was ever refused");
    }
    for number in 1..=taken {
        assert_eq!(received(&socket).0, number.to_string());
    }
    eventually(|| matches!(feed(taken + 1), weir_consumer::Delivery::Consumed));
    assert_eq!(received(&socket).0, (taken + 1).to_string());
}

#[test]
fn a_publisher_waits_while_there_is_no_subscriber_or_does_not() {
    let endpoint = unused();
    let settings = format!("bind = ['{endpoint}']\ntimeout = '1ms'");
    let mut waits = Harness::new(consumer(&settings));
    assert_eq!(waits.feed("a", "1"), Err(Verdict::Retry));
    let told = waits.last_failure().unwrap().to_owned();
    assert_eq!(told, format!("nobody has subscribed at {endpoint} for 1ms"));

    let subscriber = Context::new().socket(SocketType::SUB).unwrap();
    subscriber.set_rcvtimeo(PATIENCE_MS).unwrap();
    subscriber.set_linger(0).unwrap();
    subscriber.connect(&endpoint).unwrap();
    subscriber.set_subscribe(b"a").unwrap();
    eventually(|| waits.feed("a", "2") == Ok(()));
    assert_eq!(received(&subscriber), ("a".into(), "2".into()));
    drop(subscriber);
    let mut number = 3;
    eventually(|| {
        number += 1;
        waits.feed("a", number.to_string()) == Err(Verdict::Retry)
    });
    drop(waits);

    let settings = format!("{settings}\nwait_for_subscriber = false");
    assert_eq!(Harness::new(consumer(&settings)).feed("a", "1"), Ok(()));
}

#[test]
fn what_comes_back_is_dropped_and_what_is_asked_for_again_is_sent_again() {
    let (socket, endpoint) = receiver(SocketType::PULL);
    let settings = format!("socket = 'push'\nconnect = ['{endpoint}']");
    let mut harness = Harness::new(consumer(&settings));
    let message = |seq| Message::new("a".into(), "1".into(), SystemTime::now(), seq);
    let mut deliver = |seq| harness.consumer().consume(&message(seq));
    eventually(|| deliver(1).is_ok());
    deliver(1).unwrap();
    let failure = deliver(2).unwrap_err();
    assert_eq!(failure.verdict(), Verdict::Drop);
    assert!(
        failure.to_string().contains("loop_guard = false"),
        "{failure}"
    );
    harness
        .consumer()
        .consume(&Message::new("a".into(), "2".into(), SystemTime::now(), 3))
        .unwrap();
    let replayed = Message::again("a".into(), "1".into(), 1, 4);
    harness.consumer().consume(&replayed).unwrap();
    let payloads: Vec<String> = (0..4).map(|_| received(&socket).1).collect();
    assert_eq!(payloads, ["1", "1", "2", "1"]);

    let mut unguarded = consumer(&format!("{settings}\nloop_guard = false"));
    eventually(|| unguarded.consume(&message(1)).is_ok());
    unguarded.consume(&message(2)).unwrap();
}

#[test]
fn an_endpoint_that_somebody_has_is_tried_again_with_a_remedy() {
    let (holder, endpoint) = receiver(SocketType::PULL);
    let mut harness = Harness::new(consumer(&format!("bind = ['{endpoint}']\ntimeout = '1ms'")));
    assert_eq!(harness.feed("a", "1"), Err(Verdict::Retry));
    let told = harness.last_failure().unwrap();
    assert!(told.contains("another program has it"), "{told}");
    drop(holder);
    // Bound by and by; then nobody has subscribed.
    eventually(|| {
        assert_eq!(harness.feed("a", "1"), Err(Verdict::Retry));
        harness.last_failure().unwrap().contains("subscribed")
    });

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut harness = Harness::new(consumer(&format!("bind = ['ipc://{}']", file.display())));
    assert_eq!(harness.feed("a", "1"), Err(Verdict::Retry));
    assert!(harness.last_failure().unwrap().contains("is no socket"));
    assert!(file.exists());
}

#[test]
fn it_stands_what_every_consumer_has_to_stand() {
    let (socket, endpoint) = receiver(SocketType::PULL);
    socket.set_rcvhwm(0).unwrap();
    for guard in ["false", "true"] {
        conformance(|| {
            let mut consumer = consumer(&format!(
                "socket = 'push'\nconnect = ['{endpoint}']\nloop_guard = {guard}"
            ));
            let first = Message::new("first".into(), "".into(), SystemTime::now(), u64::MAX >> 1);
            eventually(|| consumer.consume(&first).is_ok()); // connected
            consumer
        });
    }
}
