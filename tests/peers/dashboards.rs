//! The dashboards and alert rules in `collectd/`: what they ask for exists, Prometheus understands
//! it, and Grafana takes their JSON. Graphite itself is not here.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use weir::forecast::Health;
use weir::monitor::sample::{Sort, families};
use weir::stats::{Reason, Refusal, State};

use crate::prometheus::promtool;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    std::fs::read_to_string(root().join("collectd").join(file)).unwrap()
}

fn board(file: &str) -> Value {
    serde_json::from_str(&text(file)).unwrap()
}

/// All texts that stand under this key, wherever it is.
fn under(key: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(all) => {
            for (name, value) in all {
                match value {
                    Value::String(text) if name == key => found.push(text.clone()),
                    other => under(key, other, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| under(key, value, found)),
        _ => {}
    }
}

/// Every word of a text that begins so.
fn words<'t>(text: &'t str, begin: &str) -> impl Iterator<Item = &'t str> {
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    text.split(ends)
        .filter(move |word| word.starts_with(begin) && word.len() > begin.len())
}

/// The names that Prometheus has for our figures.
fn names() -> HashSet<String> {
    let names = families().flat_map(|family| match family.sort {
        Sort::Histogram => ["_bucket", "_count", "_sum"]
            .map(|part| family.name.to_owned() + part)
            .to_vec(),
        _ => vec![family.name.to_owned()],
    });
    names.collect()
}

/// The values that a label may have where it is a word of ours.
fn values(label: &str) -> Option<HashSet<&'static str>> {
    match label {
        "health" => Some(Health::ALL.map(Health::as_str).into()),
        "state" => Some(State::ALL.map(State::as_str).into()),
        "reason" => {
            let reasons = Reason::ALL.map(Reason::as_str).into_iter();
            Some(reasons.chain(Refusal::ALL.map(Refusal::as_str)).collect())
        }
        _ => None,
    }
}

#[test]
fn what_is_asked_of_prometheus_exists() {
    let names = names();
    let mut checked = 0;
    let page = std::fs::read_to_string(root().join("docs/prometheus.md")).unwrap();
    let alerts = text("alerts.yml");
    let dashboard = text("grafana-prometheus.json").replace("\\\"", "\"");
    for (file, text) in [
        ("docs", &page),
        ("alerts", &alerts),
        ("dashboard", &dashboard),
    ] {
        for word in words(text, "weir_") {
            assert!(names.contains(word), "{file}: there is no {word}");
            checked += 1;
        }
        for label in ["health", "state", "reason"] {
            for compared in text
                .split(&format!("{label}="))
                .skip(1)
                .chain(text.split(&format!("{label}!")).skip(1))
            {
                let Some(value) = compared.trim_start_matches(['~', '=']).strip_prefix('"') else {
                    continue;
                };
                for word in value.split('"').next().unwrap().split('|') {
                    assert!(
                        values(label).unwrap().contains(word),
                        "{file}: no {label} {word}"
                    );
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 80, "{checked}");
}

#[test]
fn every_alert_is_on_the_page_and_says_what_to_do() {
    let page = std::fs::read_to_string(root().join("docs/prometheus.md")).unwrap();
    let alerts = text("alerts.yml");
    let rules: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
    assert!(rules.len() > 10);
    for rule in rules {
        let name = rule.lines().next().unwrap();
        assert!(page.contains(&format!("`{name}`")), "{name}");
        for wanted in ["expr:", "severity:", "summary:", "description:"] {
            assert!(rule.contains(wanted), "{name} has no {wanted}");
        }
    }
}

/// `src/monitor/statsd.rs` says how a name becomes flat.
#[test]
fn what_is_asked_of_graphite_exists() {
    let mut targets = Vec::new();
    under("target", &board("grafana-graphite.json"), &mut targets);
    assert!(targets.len() > 40);
    let mut checked = 0;
    for target in &targets {
        for path in target.split(".weir.").skip(1) {
            let path = path.split([',', ')', ' ']).next().unwrap();
            let counted = path.strip_suffix("$suffix");
            let parts: Vec<&str> = counted.unwrap_or(path).split('.').collect();
            assert_eq!(parts[0], "$hub", "{path}");
            let (name, rest) = match parts[1] {
                "consumer" | "source" => (parts[3], &parts[4..]),
                _ => (parts[2], &parts[3..]),
            };
            let name = format!("weir_{}_{name}", parts[1]);
            let family = families().find(|family| family.name == name);
            let family = family.unwrap_or_else(|| panic!("{target}: there is no {name}"));
            assert_eq!(counted.is_some(), family.sort == Sort::Counter, "{path}");
            let before = target.split(&format!(".weir.{path}")).next().unwrap();
            let root = if counted.is_some() {
                "$counts"
            } else {
                "$gauges"
            };
            assert!(before.ends_with(root), "{target}");
            if family.sort == Sort::Histogram {
                let quantiles = weir::monitor::statsd::QUANTILES.map(|(name, _)| name);
                assert!(quantiles.contains(&rest[0]), "{path}");
            } else if let (Some(values), [words]) = (values(name.rsplit('_').next().unwrap()), rest)
            {
                for word in words.trim_matches(['{', '}']).split(',') {
                    assert!(values.contains(word), "{path}");
                }
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn panels_are_told_apart_and_do_not_overlap() {
    for file in ["grafana-prometheus.json", "grafana-graphite.json"] {
        let board = board(file);
        let (mut ids, mut places) = (HashSet::new(), HashSet::new());
        for panel in board["panels"].as_array().unwrap() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
            let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
            assert!(side("x") + side("w") <= 24, "{panel}");
            for (x, y) in (side("x")..side("x") + side("w"))
                .flat_map(|x| (side("y")..side("y") + side("h")).map(move |y| (x, y)))
            {
                assert!(places.insert((x, y)), "{file}: {} overlaps", panel["title"]);
            }
            if panel["type"] != "row" {
                assert!(
                    !panel["description"].as_str().unwrap().is_empty(),
                    "{panel}"
                );
                assert_eq!(panel["datasource"]["uid"], "${datasource}");
            }
        }
    }
}

#[test]
#[ignore = "needs peers: make test"]
fn prometheus_understands_the_dashboard() {
    let mut questions = Vec::new();
    under("expr", &board("grafana-prometheus.json"), &mut questions);
    assert!(questions.len() > 40);
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (number, question) in questions.iter().enumerate() {
        // What Grafana puts there.
        let question = question
            .replace("$__rate_interval", "1m")
            .replace("$__range", "6h");
        let question = serde_json::to_string(&question).unwrap();
        rules += &format!("  - record: panel:{number}\n    expr: {question}\n");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.yml");
    std::fs::write(&file, rules).unwrap();
    let said = promtool(&["check", "rules"], &file);
    assert!(
        said.contains(&format!("{} rules found", questions.len())),
        "{said}"
    );
}

#[test]
#[ignore = "needs peers: make test"]
fn grafana_takes_the_dashboards() {
    let modules: PathBuf = root().join("tests/peers/installed/grafana/node_modules");
    let schema = modules.join("@grafana/schema");
    assert!(
        schema.exists(),
        "{} is missing; run `make setup`",
        schema.display()
    );
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "compilerOptions": {
            "strict": true, "noEmit": true, "skipLibCheck": true, "types": [],
            "module": "esnext", "moduleResolution": "bundler", "target": "es2022",
            "paths": {
                "@grafana/schema": [schema.join("dist/types/index.d.ts")],
                "@grafana/schema/*": [schema.join("*")],
            },
        },
        "files": ["boards.ts"],
    });
    std::fs::write(dir.path().join("tsconfig.json"), config.to_string()).unwrap();
    let compile = |prometheus: &str| {
        let types = root().join("tests/peers/grafana");
        let program = format!(
            "import type {{ Board }} from {types:?};\nexport const one: Board = {prometheus};\n\
             export const two: Board = {};\n",
            text("grafana-graphite.json")
        );
        std::fs::write(dir.path().join("boards.ts"), program).unwrap();
        Command::new("node")
            .arg(modules.join("typescript/bin/tsc"))
            .arg("--project")
            .arg(dir.path())
            .output()
            .expect("node; run `make setup`")
    };
    let ours = text("grafana-prometheus.json");
    let output = compile(&ours);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    // Grafana has no such word: the types are looked at.
    let output = compile(&ours.replacen("\"showPoints\": \"never\"", "\"showPoints\": \"no\"", 1));
    assert!(!output.status.success());
}
