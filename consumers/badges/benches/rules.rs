//! What 500 rules cost a message: beside parsing its JSON, and beside all rules one after another.
//!
//! 490 rules are on 98 topics, five each; ten are on a prefix that all topics have. So a message has
//! fifteen rules that could match, of which two do. `cargo bench -p weir-badges`

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::path::Path;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use weir_badges::rules::Rules;
use weir_consumer::settings::Settings;
use weir_consumer::{Bytes, Message};

fn rules() -> Rules {
    let mut toml = String::new();
    for number in 0..500 {
        let topic = match number {
            490.. => "org.example.".to_owned(),
            _ => format!("org.example.app{:02}.event", number % 98),
        };
        // One of five holds on a topic, and one of the ten.
        let state = if number < 98 || number == 490 {
            "done"
        } else {
            "failed"
        };
        toml += &format!(
            "[[rule]]\nid = 'rule-{number}'\nname = 'Badge {number}'\ntopics = ['{topic}']\n\
             when = [{{ at = '/msg/build/state', is = '{state}' }}, \
             {{ at = '/msg/build/seconds', at_least = {} }}]\nrecipient = '/msg/agent'\ncount = 10\n",
            number % 7
        );
    }
    let section = Settings::from_toml(&toml, "bench").unwrap();
    Rules::read(&section, Path::new(""), &[], "org.example.badges.award").unwrap()
}

/// As a bus of builds has them, of 1,000 bytes.
fn payload() -> Bytes {
    let mut message = serde_json::json!({
        "topic": "org.example.app42.event",
        "msg_id": "2026-6a6b3a1e-9d8f-4a27-9f1c-1f6f6a0a7d11",
        "timestamp": 1_700_000_000.25,
        "username": "builder",
        "msg": {
            "agent": "ann",
            "build": { "id": 71_204_118, "state": "done", "seconds": 12.5, "arch": "x86_64",
                       "packages": ["weir", "weir-doc", "weir-tests", "weir-debuginfo"] },
            "log": "",
        }
    });
    let short = message.to_string().len();
    message["msg"]["log"] = "x".repeat(1000 - short).into();
    message.to_string().into()
}

fn bench(criterion: &mut Criterion) {
    let rules = rules();
    let payload = payload();
    assert_eq!(payload.len(), 1000);
    let message = || Message::at_ns("org.example.app42.event".into(), payload.clone(), 1, 1);
    let one_by_one = |message: &Message| {
        let json = message.json().unwrap();
        let on_topic = (rules.all().iter())
            .filter(|rule| (rule.topics.iter()).any(|topic| message.topic().starts_with(topic)));
        on_topic.filter_map(|rule| rule.matches(json)).count()
    };
    assert_eq!(rules.matches(&message()).unwrap().len(), 2);
    assert_eq!(one_by_one(&message()), 2);

    let mut group = criterion.benchmark_group("a message of 1,000 bytes");
    group.bench_function("its JSON parsed", |bench| {
        bench.iter_batched(
            message,
            |message| {
                black_box(message.json().unwrap());
                message
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("parsed, and 500 rules found by topic", |bench| {
        bench.iter_batched(
            message,
            |message| {
                black_box(rules.matches(&message).unwrap());
                message
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("parsed, and 500 rules one after another", |bench| {
        bench.iter_batched(
            message,
            |message| {
                black_box(one_by_one(&message));
                message
            },
            BatchSize::SmallInput,
        );
    });
    let parsed = message();
    parsed.json().unwrap();
    group.bench_function("500 rules found by topic, JSON parsed before", |bench| {
        bench.iter(|| black_box(rules.matches(&parsed).unwrap()));
    });
    group.bench_function("500 rules one after another, JSON parsed before", |bench| {
        bench.iter(|| black_box(one_by_one(&parsed)));
    });
    let other = Message::at_ns("net.other".into(), payload.clone(), 1, 1);
    group.bench_function("a topic that no rule is for", |bench| {
        bench.iter(|| black_box(rules.matches(&other).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
