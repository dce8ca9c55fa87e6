//! A hub that validates, fed with what the real fedmsg has signed (`tests/fixtures/fedmsg`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weir::Config;
use weir::stats::Reason;
use weir_consumer::Failure;

use crate::support::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/fedmsg")
        .join(name)
}

/// The section by which the verdicts in the fixture are.
fn section(more: &str) -> String {
    format!(
        "[fedmsg]\nca = {:?}\ncrl = {:?}\n{more}\n[fedmsg.routing_policy]\n\
         'org.example.prod.git.push' = ['shell-a', 'shéll']\n\
         'org.example.prod.wiki.edit' = ['shell-b']\n'org.example.prod.closed' = []\n",
        fixture("ca.crt"),
        fixture("crl.pem")
    )
}

struct Told {
    topic: String,
    payload: Vec<u8>,
    /// None: it is valid.
    reason: Option<String>,
}

fn told() -> Vec<Told> {
    let lines = std::fs::read_to_string(fixture("messages.jsonl")).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let those = lines.filter(|line: &Value| line["nitpicky"] == false);
    those
        .map(|line| Told {
            topic: line["topic"].as_str().unwrap().to_owned(),
            // Bytes, each as the character of its number.
            payload: (line["payload"].as_str().unwrap().chars())
                .map(|byte| byte as u8)
                .collect(),
            reason: line["reason"].as_str().map(str::to_owned),
        })
        .collect()
}

fn counted(dropped: &weir::stats::Dropped) -> BTreeMap<String, u64> {
    let all = dropped.iter().filter(|(_, count)| *count > 0);
    all.map(|(reason, count)| (reason.as_str().to_owned(), count))
        .collect()
}

#[test]
fn who_validates_gets_what_is_valid_and_the_others_everything() {
    let messages = told();
    const ROUNDS: usize = 20;
    let (kinds, seen): (Vec<_>, Vec<_>) = ["also", "batches", "plain", "valid"]
        .map(recorder)
        .into_iter()
        .unzip();
    let toml = format!(
        "{}[consumers.valid]\ntopics = ''\nvalidate = true\n\
         [consumers.also]\ntopics = ''\nvalidate = true\nworkers = 3\n\
         [consumers.batches]\ntopics = ''\nvalidate = true\nrate = '100000/s'\nburst = 7\n\
         [consumers.plain]\ntopics = ''\n",
        section("")
    );
    let (feed, hub) = fed(&toml, kinds);
    for _ in 0..ROUNDS {
        for told in &messages {
            feed.send(&told.topic, told.payload.clone()).unwrap();
        }
    }
    let all = messages.len() * ROUNDS;
    eventually("settled", || {
        let mut consumers = hub.status().consumers.into_iter();
        consumers.all(|c| c.received == all as u64 && c.queue_messages == 0)
    });
    let stopped = hub.stop();
    assert_conserved(&stopped.status);

    let valid = messages.iter().filter(|told| told.reason.is_none());
    let mut refused = BTreeMap::new();
    for reason in messages.iter().filter_map(|told| told.reason.clone()) {
        *refused.entry(reason).or_insert(0) += ROUNDS as u64;
    }
    assert_eq!(refused.len(), 7, "each reason is in the fixture");
    let once: Vec<_> = valid
        .map(|told| (told.topic.clone(), told.payload.clone()))
        .collect();
    for (consumer, seen) in stopped.status.consumers.iter().zip(&seen) {
        let seen: Vec<_> = seen.try_iter().collect();
        assert_eq!(seen.len() as u64, consumer.consumed);
        match &*consumer.name {
            "plain" => {
                assert_eq!(consumer.consumed, all as u64);
                assert_eq!(consumer.dropped.total(), 0);
            }
            name => {
                assert_eq!(counted(&consumer.dropped), refused, "{name}");
                assert_eq!(seen.len(), once.len() * ROUNDS);
                let in_order = seen.chunks(once.len()).all(|round| round == once);
                assert!(in_order || name == "also", "{name}");
            }
        }
    }
}

#[test]
fn what_is_refused_takes_nothing_from_the_rate_and_reaches_nobody_behind_either() {
    let dir = tempfile::tempdir().unwrap();
    let messages = told();
    let (valid, seen) = recorder("valid");
    // Ten in an hour at first, and a queue so small that the journal is read.
    let toml = format!(
        "{}[consumers.valid]\ntopics = ''\nrate = '1/h'\nburst = 10\nqueue.messages = 4\n",
        section("validate = true")
    );
    let (feed, hub) = try_kept(dir.path(), &toml, [valid]).unwrap();
    let bad: Vec<_> = messages
        .iter()
        .filter(|told| told.reason.is_some())
        .collect();
    let good: Vec<_> = messages
        .iter()
        .filter(|told| told.reason.is_none())
        .collect();
    for told in bad.iter().chain(&good[..10]) {
        feed.send(&told.topic, told.payload.clone()).unwrap();
    }
    for told in &good[..10] {
        assert_eq!(next(&seen), (told.topic.clone(), told.payload.clone()));
    }
    eventually("settled", || consumer(&hub, "valid").queue_messages == 0);
    let dropped = consumer(&hub, "valid").dropped;
    assert_eq!(dropped.in_turn(), bad.len() as u64);
    assert_eq!(dropped.total(), bad.len() as u64);
    assert_conserved(&hub.stop().status);
}

#[test]
fn a_dead_letter_is_validated_before_it_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let bad = told()
        .into_iter()
        .find(|told| told.reason.as_deref() == Some("revoked"))
        .unwrap();
    let fails = || kind("it", |_| Err(Failure::dead_letter("for the test")));
    let consumer_of = |validate: bool| {
        format!(
            "{}[consumers.it]\ntopics = ''\nvalidate = {validate}\n",
            section("")
        )
    };
    let (feed, hub) = try_kept(dir.path(), &consumer_of(false), [fails()]).unwrap();
    feed.send(&bad.topic, bad.payload.clone()).unwrap();
    eventually("set aside", || consumer(&hub, "it").dead_letters == 1);
    hub.stop();

    let (taking, seen) = recorder("it");
    let (_feed, hub) = try_kept(dir.path(), &consumer_of(true), [taking]).unwrap();
    let requeue = weir::steering::Action::Requeue {
        filter: weir::dead_letters::Filter::default(),
    };
    hub.act(&requeue, "test").unwrap();
    eventually("refused", || {
        consumer(&hub, "it").dropped.of(Reason::Revoked) == 1
    });
    let stopped = hub.stop();
    assert_conserved(&stopped.status);
    assert_eq!(stopped.status.consumers[0].dead_letters, 0);
    assert!(seen.try_recv().is_err());
}

#[test]
fn to_ask_for_validation_without_a_ca_is_a_mistake() {
    let mistakes = |toml: &str| {
        let toml = format!("[consumers.null]\ntopics = ''\n{toml}");
        let config = Config::embedded(&toml, &registry([]));
        config
            .err()
            .map(|mistakes| mistakes.to_string())
            .unwrap_or_default()
    };
    assert_eq!(mistakes(""), "");
    assert_eq!(mistakes("validate = false"), "");
    for toml in [
        "validate = true",
        "validate = true\n[fedmsg]\n",
        "[fedmsg]\nvalidate = true",
    ] {
        let said = mistakes(toml);
        assert!(
            said.contains("validate: nothing says whom to believe"),
            "{toml}: {said}"
        );
        assert!(said.contains("1 mistake"), "{said}");
    }
    // One mistake, where it is, and not one more for each consumer.
    let said = mistakes("validate = true\n[fedmsg]\nca = '/nowhere'");
    assert!(
        said.contains("fedmsg.ca: /nowhere: can't be read"),
        "{said}"
    );
    assert!(said.contains("1 mistake"), "{said}");
}
