//! The kind `forward` between hubs.

use std::net::TcpListener;

use weir::stats::Reason;
use zmq::SocketType;

use crate::support::*;

/// An endpoint that nobody has: it was free a moment ago.
fn unused() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("tcp://{}", listener.local_addr().unwrap())
}

/// A hub that reads from `own` and forwards all to `other`, with this rule for topics.
fn relay(own: &str, other: &str, rewrite: &str) -> (weir::Hub, Seen) {
    let (kind, seen) = recorder("recorder");
    let toml = format!(
        "[[backend]]\nbind = ['{own}']\n[consumers.recorder]\ntopics = ''\n\
         [consumers.forward]\ntopics = ''\nretry = {{ attempts = 0, delay = '10ms' }}\n\
         connect = ['{other}']\nrewrite = [{rewrite}]\n"
    );
    (hub(&toml, [kind]), seen)
}

#[test]
fn hubs_that_forward_to_each_other_send_a_message_round_once() {
    for (rewrites, seen_there, seen_again) in [
        (["", ""], "org.a", "org.a"),
        // Each names where it comes from, so that its topic is another each time.
        (
            [
                "{ prefix = '', with = 'here.' }",
                "{ prefix = '', with = 'there.' }",
            ],
            "here.org.a",
            "there.here.org.a",
        ),
        (
            [
                "{ prefix = 'org.', with = 'net.' }",
                "{ prefix = 'net.', with = 'org.' }",
            ],
            "net.a",
            "org.a",
        ),
        // The same after the first word.
        (
            [
                "{ prefix = 'org.', with = 'org.here.' }",
                "{ prefix = 'org.', with = 'org.there.' }",
            ],
            "org.here.a",
            "org.there.here.a",
        ),
    ] {
        let (here, there) = (unused(), unused());
        let (near, seen_near) = relay(&here, &there, rewrites[0]);
        let (far, seen_far) = relay(&there, &here, rewrites[1]);
        let publisher = weir::backend::zmq::context()
            .socket(SocketType::XPUB)
            .unwrap();
        publisher.set_linger(0).unwrap();
        publisher.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        publisher.connect(&here).unwrap();
        assert_eq!(publisher.recv_bytes(0).expect("a subscription"), [1]);
        let count = 20;
        for number in 0..count {
            let payload = number.to_string();
            (publisher.send_multipart(["org.a", &payload], 0)).unwrap();
        }
        eventually("all have come back and are dropped", || {
            consumer(&near, "forward").dropped.of(Reason::Refused) == count
        });
        let mut topics: Vec<String> = (0..2 * count).map(|_| next(&seen_near).0).collect();
        topics.sort();
        let mut expected = vec!["org.a".to_owned(); count as usize];
        expected.resize(2 * count as usize, seen_again.to_owned());
        expected.sort();
        assert_eq!(topics, expected);
        for number in 0..count {
            assert_eq!(
                next(&seen_far),
                (seen_there.into(), number.to_string().into_bytes())
            );
        }
        // The circle ends there: what was dropped went nowhere, and nothing else is under way.
        for (hub, seen) in [(near, seen_near), (far, seen_far)] {
            let stopped = hub.stop();
            assert_conserved(&stopped.status);
            assert!(seen.is_empty());
        }
    }
}

#[test]
fn a_relay_whose_receiver_is_away_lags_and_loses_nothing() {
    let there = unused();
    let (feed, near) = fed(
        &format!(
            "[consumers.forward]\ntopics = ''\nsocket = 'push'\ntimeout = '10ms'\n\
             connect = ['{there}']\nretry = {{ attempts = 0, delay = '10ms' }}"
        ),
        [],
    );
    for number in 0..100 {
        feed.send("org.a", number.to_string()).unwrap();
    }
    eventually("an attempt failed", || {
        consumer(&near, "forward").failed > 0
    });
    assert_eq!(consumer(&near, "forward").consumed, 0);
    let (kind, seen) = recorder("recorder");
    let far = hub(
        &format!(
            "[[backend]]\nsocket = 'pull'\nbind = ['{there}']\n[consumers.recorder]\ntopics = ''"
        ),
        [kind],
    );
    assert_eq!(numbers(&seen, 100), (0..100).collect::<Vec<_>>());
    eventually("all are settled", || {
        consumer(&near, "forward").consumed == 100
    });
    near.stop();
    far.stop();
}

#[test]
fn a_hub_that_would_forward_to_itself_does_not_start() {
    let toml = "[[backend]]\nbind = ['tcp://127.0.0.1:9940']\n\
                [consumers.forward]\ntopics = 'org.*'\nconnect = ['tcp://localhost:9940']";
    let refused = weir::Config::from_toml(toml, "weir.toml", &registry([]));
    let told = refused.err().unwrap().to_string();
    assert!(told.contains("would come round for ever"), "{told}");
}
