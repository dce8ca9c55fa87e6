//! Intake over real ZeroMQ sockets: transports, frames, encodings, what is refused.

use std::io::Write;

use weir::stats::{Loss, Refusal};
use zmq::SocketType;

use crate::support::*;

#[test]
fn every_transport_brings_messages_and_several_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let buses = [
        Bus::tcp(),
        Bus::bind(&ipc(dir.path(), "bus")),
        Bus::bind("inproc://every-transport"),
    ];
    let endpoints: Vec<&str> = buses.iter().map(|bus| bus.endpoint.as_str()).collect();
    let (kind, seen) = recorder("recorder");
    let hub = hub(
        &format!("{}[consumers.recorder]\ntopics = ''", connect(&endpoints)),
        [kind],
    );
    for bus in &buses {
        assert_eq!(bus.subscriptions(1), [""]);
        bus.publish("a.b", bus.endpoint.as_bytes());
        assert_eq!(
            next(&seen),
            ("a.b".into(), bus.endpoint.clone().into_bytes())
        );
    }
    assert_eq!(hub.status().sources[0].counters.received, 3);
    hub.stop();
}

#[test]
fn a_hub_binds_and_publishers_connect() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = ipc(dir.path(), "hub");
    let (kind, seen) = recorder("recorder");
    let toml = format!(
        "[[backend]]\nbind = ['{endpoint}', 'tcp://localhost:*']\n\
         [consumers.recorder]\ntopics = 'a.'"
    );
    let hub = hub(&toml, [kind]);
    let publisher = weir::backend::zmq::context()
        .socket(SocketType::XPUB)
        .unwrap();
    publisher.connect(&endpoint).unwrap();
    assert_eq!(publisher.recv_bytes(0).unwrap(), b"\x01a.");
    publisher.send_multipart(["a.b", "x"], 0).unwrap();
    assert_eq!(next(&seen).0, "a.b");
    hub.stop();
}

#[test]
fn pull_takes_what_is_pushed() {
    let push = weir::backend::zmq::context()
        .socket(SocketType::PUSH)
        .unwrap();
    push.bind("tcp://127.0.0.1:*").unwrap();
    let endpoint = push.get_last_endpoint().unwrap().unwrap();
    let (kind, seen) = recorder("recorder");
    let toml = format!(
        "[[backend]]\nsocket = 'pull'\nconnect = ['{endpoint}']\n\
         [consumers.recorder]\ntopics = 'a'"
    );
    let hub = hub(&toml, [kind]);
    push.send_multipart(["a", "1"], 0).unwrap();
    push.send_multipart(["b", "nobody wants it, but PULL can't say so"], 0)
        .unwrap();
    push.send_multipart(["a", "2"], 0).unwrap();
    assert_eq!(numbers(&seen, 2), [1, 2]);
    assert_eq!(
        hub.status().sources[0]
            .counters
            .refused
            .of(Refusal::Unrouted),
        1
    );
    hub.stop();
}

#[test]
fn the_subscription_at_the_socket_is_no_wider_than_what_consumers_want() {
    let bus = Bus::tcp();
    let (kind, seen) = recorder("recorder");
    let toml = format!(
        "{}[consumers.one]\nkind = 'null'\ntopics = ['org.example.*', 'org.example.deep.']\n\
         [consumers.recorder]\ntopics = ['com.', 'com.a', 'org.example.deep']",
        connect(&[&bus.endpoint.replace("127.0.0.1", "localhost")])
    );
    let hub = hub(&toml, [kind]);
    assert_eq!(bus.subscriptions(2), ["com.", "org.example."]);
    // Overlapping topics of one consumer: delivered once.
    bus.publish("com.a.b", "1");
    bus.publish("org.example.deep.x", "2");
    bus.publish("com.z", "3");
    assert_eq!(numbers(&seen, 3), [1, 2, 3]);
    assert_eq!(consumer(&hub, "recorder").received, 3);
    hub.stop();
}

#[test]
fn every_form_of_message_is_read_and_what_is_none_is_counted() {
    let bus = Bus::tcp();
    let (kind, seen) = recorder("recorder");
    let toml = format!(
        "{}message_max = 2048\n[consumers.recorder]\ntopics = ''",
        connect(&[&bus.endpoint])
    );
    let hub = hub(&toml, [kind]);
    bus.subscriptions(1);
    bus.frames(&[b"old\0body"]);
    bus.frames(&[b"no NUL in it"]);
    bus.frames(&[b"a", b"b", b"c", b"d", b"e"]);
    bus.frames(&[b"a", b"b", b"not four"]);
    bus.frames(&[b"\xff\xfe", b"topic is not UTF-8"]);
    bus.frames(&[b"big", &[b'x'; 2049]]);
    bus.frames(&[b"fits", &[b'x'; 2048]]);
    bus.frames(&[b"", b""]);
    assert_eq!(next(&seen), ("old".into(), b"body".to_vec()));
    assert_eq!(next(&seen), ("fits".into(), vec![b'x'; 2048]));
    assert_eq!(next(&seen), (String::new(), Vec::new()));
    let refused = hub.status().sources[0].counters.refused;
    assert_eq!(refused.of(Refusal::Frames), 3);
    assert_eq!(refused.of(Refusal::Topic), 1);
    assert_eq!(refused.of(Refusal::Size), 1);
    hub.stop();
}

#[test]
fn gaps_in_sequence_numbers_are_counted_by_topic_and_endpoint() {
    let (first, second) = (Bus::tcp(), Bus::tcp());
    let (kind, seen) = recorder("recorder");
    let endpoints = connect(&[&first.endpoint, &second.endpoint]);
    let hub = hub(
        &format!("{endpoints}[consumers.recorder]\ntopics = ''"),
        [kind],
    );
    first.subscriptions(1);
    second.subscriptions(1);
    let send = |bus: &Bus, topic: &str, number: u32| {
        bus.frames(&[topic.as_bytes(), b"0", &number.to_le_bytes()]);
    };
    for number in [7, 8, 12, 13] {
        send(&first, "hashblock", number);
    }
    for number in [u32::MAX, 0, 2] {
        send(&first, "hashtx", number); // wraps around, then misses one
    }
    for number in [5, 6] {
        send(&second, "hashblock", number); // another publisher's count is its own
    }
    numbers(&seen, 9);
    let endpoints = hub.status().sources[0].counters.endpoints.clone();
    assert_eq!((endpoints[0].gaps, endpoints[0].loss), (3 + 1, Loss::Seen));
    assert_eq!((endpoints[1].gaps, endpoints[1].loss), (0, Loss::NoneSeen));
    hub.stop();
}

#[test]
fn a_lost_connection_is_counted_and_made_again_and_loss_is_called_possible() {
    // A path and not a port: nobody else can take it meanwhile.
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::bind(&ipc(dir.path(), "bus"));
    let endpoint = bus.endpoint.clone();
    let (kind, seen) = recorder("recorder");
    let toml = format!(
        "{}reconnect = '10ms'\n[consumers.recorder]\ntopics = ''",
        connect(&[&endpoint])
    );
    let hub = hub(&toml, [kind]);
    bus.subscriptions(1);
    let there = || hub.status().sources[0].counters.endpoints[0].clone();
    eventually("connected", || there().connections == 1);
    assert_eq!(there().loss, Loss::NoneSeen);
    drop(bus);
    eventually("disconnected", || there().disconnects == 1);
    assert_eq!((there().connections, there().loss), (0, Loss::Possible));
    let bus = Bus::bind(&endpoint);
    bus.subscriptions(1);
    bus.publish("a", "1");
    assert_eq!(numbers(&seen, 1), [1]);
    eventually("reconnect counted", || there().reconnects == 1);
    assert_eq!(there().loss, Loss::Possible);
    hub.stop();
}

#[test]
fn compressed_payloads_are_inflated_up_to_the_limit() {
    let compress = |encoding: &str, payload: &[u8]| -> Vec<u8> {
        let level = flate2::Compression::default();
        if encoding == "gzip" {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), level);
            out.write_all(payload).unwrap();
            out.finish().unwrap()
        } else {
            let mut out = flate2::write::ZlibEncoder::new(Vec::new(), level);
            out.write_all(payload).unwrap();
            out.finish().unwrap()
        }
    };
    for encoding in ["gzip", "zlib"] {
        let bus = Bus::tcp();
        let (kind, seen) = recorder("recorder");
        let toml = format!(
            "{}encoding = '{encoding}'\nmessage_max = '10 kB'\n[consumers.recorder]\ntopics = ''",
            connect(&[&bus.endpoint])
        );
        let hub = hub(&toml, [kind]);
        bus.subscriptions(1);
        bus.publish("bomb", compress(encoding, &[0; 10_001]));
        bus.publish("plain", "not compressed");
        bus.publish("cut", &compress(encoding, &[7; 5000])[..20]);
        bus.publish("good", compress(encoding, &[7; 10_000]));
        assert_eq!(next(&seen), ("good".into(), vec![7; 10_000]));
        let refused = hub.status().sources[0].counters.refused;
        assert_eq!(refused.of(Refusal::Size), 1, "{encoding}");
        assert_eq!(refused.of(Refusal::Encoding), 2, "{encoding}");
        hub.stop();
    }
}

#[test]
fn large_payloads_arrive_as_they_were_sent() {
    let bus = Bus::tcp();
    let (kind, seen) = recorder("recorder");
    let hub = hub(
        &format!(
            "{}[consumers.recorder]\ntopics = ''",
            connect(&[&bus.endpoint])
        ),
        [kind],
    );
    bus.subscriptions(1);
    for size in [0, 1, 29, 30, 33, 34, 8191, 8192, 8193, 100_000, 5_000_000] {
        let payload: Vec<u8> = (0..size).map(|n: usize| (n * 31 % 251) as u8).collect();
        bus.publish("size", &payload);
        assert!(next(&seen).1 == payload, "{size}");
    }
    hub.stop();
}
