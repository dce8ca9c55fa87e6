//! The rules: how they are written, read and found for a message.
//!
//! What is promised:
//!
//! 1. Every mistake in every file is reported at once, with its file, line and column.
//! 2. A message costs the rules whose topics it matches; the others are not looked at.
//! 3. A payload is parsed at most once, and not at all when no rule is for its topic.
//!
//! Counting and awarding are left to others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use serde_json::Value;
use weir_consumer::conditions::{ByTopic, Conditions, Pointer};
use weir_consumer::settings::{self, Mistake, Origin, Settings};
use weir_consumer::{Message, Result};

/// No file of rules is larger.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// No directory has more files of rules.
const FILES_MAX: usize = 1000;
/// There are no more rules in all.
const RULES_MAX: usize = 10_000;
/// An id is a key in the database.
const ID_BYTES_MAX: usize = 100;
/// What is counted over a period or by value is kept one by one, up to this number.
const KEPT_MAX: u32 = 1000;
/// A recipient is a key in the database: PostgreSQL's index takes no more than 2,700 bytes.
const RECIPIENT_BYTES_MAX: usize = 200;
/// A message names no more recipients.
const RECIPIENTS_MAX: usize = 1000;
/// Of a value that is longer a digest is kept.
const VALUE_BYTES_MAX: usize = 200;
/// For the digests of long values.
const DIGESTS: uuid::Uuid = uuid::uuid!("b7d9a9b4-51a5-4f7e-8a0e-2d7f0c35f0c1");

/// One rule: who gets which badge for which messages.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names the rule in the database, for ever.
    pub id: String,
    /// The badge's name, for people.
    pub name: String,
    /// What it is given for, for people.
    #[serde(default)]
    pub description: String,
    /// The topics of the messages, each a prefix.
    pub topics: Vec<String>,
    /// What has to hold of a message.
    #[serde(default)]
    pub when: Conditions,
    /// Where a message says who gets the badge: a text, a number, or a list of those.
    pub recipient: Pointer,
    /// How many messages, or different values, it takes.
    #[serde(default = "one")]
    pub count: u32,
    /// In how long they have to come.
    #[serde(default, deserialize_with = "period")]
    pub within: Option<Duration>,
    /// Counts the different values there instead of messages.
    #[serde(default)]
    pub distinct: Option<Pointer>,
    /// Whether a recipient gets it only once.
    #[serde(default = "yes")]
    pub once: bool,
    /// Whether the rule is in force.
    #[serde(default = "yes")]
    pub enabled: bool,
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

fn period<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Duration>, D::Error> {
    settings::duration(from).map(Some)
}

/// What one rule makes of one message.
#[derive(Clone, Debug, PartialEq)]
pub struct Match<'r> {
    /// The rule.
    pub rule: &'r Rule,
    /// Who is to get the badge, each once.
    pub recipients: Vec<String>,
    /// The value, where the rule counts different ones.
    pub value: Option<String>,
}

impl Rule {
    /// What this rule makes of a message; nothing when the message is not one that it counts.
    pub fn matches(&self, json: &Value) -> Option<Match<'_>> {
        if !self.when.hold(json) {
            return None;
        }
        let value = match &self.distinct {
            Some(pointer) => Some(value_text(pointer.of(json)?)),
            None => None,
        };
        let recipients = recipients(self.recipient.of(json)?);
        (!recipients.is_empty()).then_some(Match {
            rule: self,
            recipients,
            value,
        })
    }

    /// What it would do that nobody means, by the key that says so.
    fn nonsense(&self, gets: &[String], award_topic: &str) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut wrong = |key, text: String| found.push((key, text));
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !(1..=ID_BYTES_MAX).contains(&self.id.len()) || !self.id.chars().all(fits) {
            let text = format!(
                "{:?} can't be an id: 1 to {ID_BYTES_MAX} letters, digits, `.`, `_` or `-`",
                self.id
            );
            wrong("id", text);
        }
        if self.name.is_empty() {
            wrong("name", "a badge needs a name".into());
        }
        if self.topics.is_empty() {
            let text = "an empty list is nothing at all; \"\" is everything";
            wrong("topics", text.into());
        }
        // A wider topic than the consumer's is fine: it counts what comes of it.
        let meets = |topic: &str| {
            let mut gets = gets.iter().map(String::as_str);
            gets.any(|got| topic.starts_with(got) || got.starts_with(topic))
        };
        let outside: Vec<&String> = (self.topics.iter())
            .filter(|topic| !gets.is_empty() && !meets(&topic.replace('*', "")))
            .collect();
        if !outside.is_empty() {
            let text = format!(
                "the consumer gets none of these topics: {outside:?}; add them to its own, which \
                 are {gets:?}, or remove them here"
            );
            wrong("topics", text);
        }
        if self.count == 0 {
            wrong("count", "expected a whole number of at least 1".into());
        }
        let kept = [
            ("within", self.within.is_some()),
            ("distinct", self.distinct.is_some()),
        ];
        for (key, _) in kept.into_iter().filter(|(_, given)| *given) {
            if self.count == 1 {
                let text = format!(
                    "says nothing where one message is enough; give `count` or remove `{key}`"
                );
                wrong(key, text);
            }
            if self.count > KEPT_MAX {
                let text = format!("expected at most {KEPT_MAX} together with `{key}`");
                wrong("count", text);
            }
        }
        if self.within == Some(Duration::ZERO) {
            wrong("within", "expected a period such as \"7d\"".into());
        }
        let hears_awards =
            (self.topics.iter()).any(|topic| award_topic.starts_with(&topic.replace('*', "")));
        if hears_awards && !self.once {
            let text = format!(
                "match the topic of awards, {award_topic:?}, so that the rule could award for its \
                 own awards without end; choose other topics or `once = true`"
            );
            wrong("topics", text);
        }
        found
    }
}

/// Who is meant; texts that can't name anybody are counted and left out.
fn recipients(found: &Value) -> Vec<String> {
    let members = match found {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut names: Vec<String> = Vec::new();
    let mut refused = 0;
    for (number, member) in members.iter().enumerate() {
        let name = match member {
            Value::String(name) => name.clone(),
            Value::Number(number) => number.to_string(),
            Value::Null => continue,
            _ => String::new(),
        };
        let fits = (1..=RECIPIENT_BYTES_MAX).contains(&name.len());
        if number >= RECIPIENTS_MAX || !fits || name.contains(char::is_control) {
            refused += 1;
            continue;
        }
        names.push(name);
    }
    if refused > 0 {
        metrics::counter!("badges_recipients_refused_total").increment(refused);
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// The JSON of a value, or a digest of it when it is long.
fn value_text(value: &Value) -> String {
    let text = value.to_string();
    match text.len() <= VALUE_BYTES_MAX {
        true => text,
        false => uuid::Uuid::new_v5(&DIGESTS, text.as_bytes()).to_string(),
    }
}

/// All rules that are in force, found by topic.
#[derive(Clone, Debug, Default)]
pub struct Rules(ByTopic<Rule>);

impl Rules {
    /// What the rules make of a message.
    ///
    /// # Errors
    /// [`Verdict::DeadLetter`](weir_consumer::Verdict::DeadLetter) when there are rules for its
    /// topic and its payload is not JSON.
    pub fn matches<'r>(&'r self, message: &'r Message) -> Result<Vec<Match<'r>>> {
        let mut rules = self.0.of(message.topic()).peekable();
        if rules.peek().is_none() {
            return Ok(Vec::new());
        }
        let json = message.json()?;
        Ok(rules.filter_map(|rule| rule.matches(json)).collect())
    }

    /// All rules that are in force, in the order in which they were read.
    pub fn all(&self) -> &[Rule] {
        self.0.all()
    }

    /// Reads the rules of a section: those under `rule`, and those in the files and directories
    /// that the list `rules` names. A relative path starts at `data_dir`. `gets` are the prefixes of
    /// topics that the consumer gets; where they are not known, there are none.
    ///
    /// # Errors
    /// Every mistake in every rule.
    pub fn read(
        section: &Settings,
        data_dir: &Path,
        gets: &[String],
        award_topic: &str,
    ) -> std::result::Result<Self, Vec<Mistake>> {
        let mut reading = Reading {
            gets,
            award_topic,
            ..Reading::default()
        };
        if let Some(inline) = section.get("rule") {
            reading.list(inline);
        }
        for (number, place) in (section.get("rules").into_iter())
            .flat_map(Settings::items)
            .enumerate()
        {
            let Some(path) = place.as_str() else {
                continue; // said by whoever reads the section as a whole
            };
            if let Err(text) = reading.place(&data_dir.join(path)) {
                let mistake = place.mistake(text).under(&format!("rules.{number}"));
                reading.mistakes.push(mistake);
            }
        }
        if reading.count > RULES_MAX {
            let text = format!("{} rules are too many; at most {RULES_MAX}", reading.count);
            reading.mistakes.push(section.mistake(text));
        }
        if reading.count == 0 && reading.mistakes.is_empty() {
            let text = "there is no rule; name files of rules in `rules`, or write \
                        [[consumers.NAME.rule]] sections";
            reading.mistakes.push(section.mistake(text));
        }
        match reading.mistakes.is_empty() {
            true => Ok(reading.rules),
            false => Err(reading.mistakes),
        }
    }
}

/// What was read so far.
#[derive(Default)]
struct Reading<'a> {
    gets: &'a [String],
    award_topic: &'a str,
    rules: Rules,
    mistakes: Vec<Mistake>,
    ids: HashMap<String, Origin>,
    count: usize,
}

impl Reading<'_> {
    /// A file of rules, or all `*.toml` of a directory in the order of their names.
    fn place(&mut self, path: &Path) -> std::result::Result<(), String> {
        let failed = |error| format!("can't read {}: {error}", path.display());
        if !path.is_dir() {
            return self.file(path);
        }
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in path.read_dir().map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            if file.extension().is_some_and(|end| end == "toml") {
                files.push(file);
            }
        }
        if files.len() > FILES_MAX {
            return Err(format!(
                "{} has {} files of rules; at most {FILES_MAX}",
                path.display(),
                files.len()
            ));
        }
        files.sort();
        files.iter().try_for_each(|file| self.file(file))
    }

    fn file(&mut self, path: &Path) -> std::result::Result<(), String> {
        let shown = path.display().to_string();
        let failed = |error| format!("can't read {shown}: {error}");
        let file = std::fs::File::open(path).map_err(failed)?;
        // A pipe would hold up whoever reads it for as long as nobody writes.
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(format!("{shown} is neither a file nor a directory"));
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(format!(
                "{shown} is too large for a file of rules: more than {} MiB",
                FILE_BYTES_MAX >> 20
            ));
        }

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default, rename = "rule")]
            _rule: Vec<IgnoredAny>,
        }
        match Settings::from_toml(&text, &shown) {
            Err(mistake) => self.mistakes.push(mistake),
            Ok(file) => {
                self.mistakes.extend(file.parse_most::<File>().1);
                file.get("rule").inspect(|rules| self.list(rules));
            }
        }
        Ok(())
    }

    fn list(&mut self, rules: &Settings) {
        for (number, written) in rules.items().enumerate() {
            self.count += 1;
            let (rule, mut mistakes) = written.parse_most::<Rule>();
            if let Some(rule) = &rule {
                let nonsense = rule.nonsense(self.gets, self.award_topic).into_iter();
                let read = |key: &str| mistakes.iter().all(|m| !m.path.starts_with(key));
                let nonsense: Vec<_> = nonsense.filter(|(key, _)| read(key)).collect();
                mistakes.extend(
                    nonsense
                        .into_iter()
                        .map(|(key, t)| written.mistake_at(key, t)),
                );
            }
            if let Some(id) = written.get("id").and_then(Settings::as_str) {
                match self.ids.entry(id.to_owned()) {
                    Entry::Occupied(taken) => {
                        let text = format!("there is a rule {id:?} already, at {}", taken.get());
                        mistakes.push(written.mistake_at("id", text));
                    }
                    Entry::Vacant(free) => {
                        free.insert(written.origin().clone());
                    }
                }
            }
            let under = format!("rule.{number}");
            (self.mistakes).extend(mistakes.into_iter().map(|mistake| mistake.under(&under)));
            if let Some(rule) = rule.filter(|rule| rule.enabled) {
                self.rules.0.add(rule.topics.clone(), rule);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TOPIC: &str = "org.example.badges.award";

    fn read(toml: &str, dir: &Path) -> std::result::Result<Rules, Vec<String>> {
        let section = Settings::from_toml(toml, "weir.toml").unwrap();
        let dir_text = format!("{}/", dir.display());
        let told = |mistake: &Mistake| mistake.to_string().replace(&dir_text, "");
        let read = Rules::read(&section, dir, &[], TOPIC);
        read.map_err(|mistakes| mistakes.iter().map(told).collect())
    }

    fn rule(toml: &str) -> Rule {
        let toml =
            format!("[[rule]]\nid = 'r'\nname = 'R'\ntopics = ['']\nrecipient = '/user'\n{toml}");
        read(&toml, Path::new("")).unwrap().all()[0].clone()
    }

    fn who(rule: &Rule, json: Value) -> Vec<String> {
        rule.matches(&json)
            .map_or(Vec::new(), |found| found.recipients)
    }

    #[test]
    fn every_mistake_in_every_file_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let badges = dir.path().join("badges.d");
        fs::create_dir(&badges).unwrap();
        fs::write(badges.join("README"), "no rules").unwrap();
        let one = "[[rule]]\nid = 'a'\nname = 'A'\ntopics = ['org.']\nrecipient = 'user'\n\n\
                   [[rule]]\nid = 'b'\nname = 'B'\ntopics = []\nrecipient = '/user'\ncuont = 7\n\
                   within = 'soon'\n";
        fs::write(badges.join("1.toml"), one).unwrap();
        let two = "[[rule]]\nid = 'b'\nname = ''\ntopics = ['org.']\nrecipient = '/user'\n\
                   when = [{ at = '/n', abov = 7 }]\nonce = false\nwithin = '7d'\n";
        fs::write(badges.join("2.toml"), two).unwrap();
        fs::write(badges.join("3.toml"), "[[rule]\n").unwrap();
        fs::write(badges.join("4.toml"), "[[rules]]\nid = 'c'\n").unwrap();
        let section = "rules = ['badges.d', 'other.toml']\n\
                       [[rule]]\nid = 'a b'\nname = 'A'\ntopics = ['']\ncount = 0\n";
        assert_eq!(
            read(section, dir.path()).unwrap_err(),
            [
                "weir.toml:2:1: rule.0.recipient: this key is missing",
                "badges.d/1.toml:5:13: rule.0.recipient: expected a JSON pointer such as \
                 \"/msg/user\", found \"user\"",
                "badges.d/1.toml:12:1: rule.1.cuont: unknown key; did you mean `count`?",
                "badges.d/1.toml:13:10: rule.1.within: expected a duration such as \"250ms\" or \
                 \"10s\", found \"soon\"",
                "badges.d/1.toml:10:10: rule.1.topics: an empty list is nothing at all; \"\" is \
                 everything",
                "badges.d/2.toml:6:22: rule.0.when.0.abov: unknown key; did you mean `above`?",
                "badges.d/2.toml:3:8: rule.0.name: a badge needs a name",
                "badges.d/2.toml:8:10: rule.0.within: says nothing where one message is enough; \
                 give `count` or remove `within`",
                "badges.d/2.toml:4:10: rule.0.topics: match the topic of awards, \
                 \"org.example.badges.award\", so that the rule could award for its own awards \
                 without end; choose other topics or `once = true`",
                "badges.d/2.toml:2:6: rule.0.id: there is a rule \"b\" already, at \
                 badges.d/1.toml:7:1",
                "badges.d/3.toml:1:8: unclosed array table, expected `]`",
                "badges.d/4.toml:1:3: rules: unknown key; did you mean `rule`?",
                "weir.toml:1:22: rules.1: can't read other.toml: No such file or directory (os \
                 error 2)",
            ]
        );
    }

    #[test]
    fn a_rule_that_nobody_means_is_refused() {
        let told = |toml: &str| {
            let toml = format!(
                "[[rule]]\nid = 'r'\nname = 'R'\ntopics = ['a']\nrecipient = '/user'\n{toml}"
            );
            read(&toml, Path::new("")).unwrap_err().join("\n")
        };
        let expected = "expected a whole number of at least 1";
        assert!(told("count = 0").contains(expected));
        assert!(told("count = 2\nwithin = '0s'").contains("a period such as"));
        assert!(told("distinct = '/a'").contains("one message is enough"));
        assert!(told("count = 2000\ndistinct = '/a'").contains("expected at most 1000"));
        rule("count = 2000");
        let nothing = read("rules = []", Path::new("")).unwrap_err();
        assert!(nothing[0].contains("there is no rule"), "{nothing:?}");
    }

    #[test]
    fn a_topic_that_the_consumer_does_not_get_is_refused() {
        let read = |topics: &str, gets: &[&str]| {
            let toml =
                format!("[[rule]]\nid = 'r'\nname = 'R'\ntopics = {topics}\nrecipient = '/user'");
            let section = Settings::from_toml(&toml, "t").unwrap();
            let gets: Vec<String> = gets.iter().map(|topic| (*topic).to_owned()).collect();
            let read = Rules::read(&section, Path::new(""), &gets, TOPIC);
            read.map_err(|mistakes| mistakes[0].to_string())
        };
        let some = read(
            "['org.a.', 'com.*', 'org.b']",
            &["org.a.", "net.", "org.c."],
        );
        assert_eq!(
            some.unwrap_err(),
            "t:4:10: rule.0.topics: the consumer gets none of these topics: [\"com.*\", \
             \"org.b\"]; add them to its own, which are [\"org.a.\", \"net.\", \"org.c.\"], or \
             remove them here"
        );
        assert!(read("['org.a']", &["org.b."]).is_err());
        for (topics, gets) in [
            ("['org.a.b', 'net.*']", &["org.a", "net."][..]),
            ("['']", &["org."]),
            ("['*']", &["org."]),
            ("['org.']", &["com.", "org.a."]),
            ("['org.']", &[""]),
            ("['org.']", &[]),
        ] {
            assert!(read(topics, gets).is_ok(), "{topics} {gets:?}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("large"), vec![b'#'; 4 * 1024 * 1024 + 1]).unwrap();
        fs::write(dir.path().join("latin-1"), b"# \xe4").unwrap();
        let told = |file: &str| read(&format!("rules = ['{file}']"), dir.path()).unwrap_err();
        assert!(told("large")[0].ends_with("more than 4 MiB"));
        assert!(told("latin-1")[0].contains("UTF-8"));
        assert!(told("/dev/null")[0].ends_with("is neither a file nor a directory"));
    }

    #[test]
    fn ten_thousand_rules_are_read_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let rule = |number: usize| {
            format!("[[rule]]\nid = '{number}'\nname = 'R'\ntopics = ['']\nrecipient = '/user'\n")
        };
        let many: String = (0..10_000).map(rule).collect();
        fs::write(dir.path().join("many.toml"), many).unwrap();
        let read = |more: &str| read(&format!("rules = ['many.toml']\n{more}"), dir.path());
        assert_eq!(read("").unwrap().all().len(), 10_000);
        let told = read(&rule(10_000)).unwrap_err();
        assert_eq!(told, ["weir.toml: 10001 rules are too many; at most 10000"]);
    }

    #[test]
    fn a_rule_that_is_not_enabled_is_checked_and_not_found() {
        let toml = "[[rule]]\nid = 'r'\nname = 'R'\ntopics = ['']\nrecipient = '/user'\n\
                    enabled = false\n";
        assert!(read(toml, Path::new("")).unwrap().all().is_empty());
        assert!(read(&format!("{toml}count = 0"), Path::new("")).is_err());
    }

    #[test]
    fn recipients_are_a_text_a_number_or_a_list_of_those() {
        let rule = rule("");
        assert_eq!(who(&rule, json!({"user": "ann"})), ["ann"]);
        assert_eq!(who(&rule, json!({"user": 7})), ["7"]);
        let list = json!({"user": ["bob", "ann", "bob", null, "", {"name": "eve"}, "a\0b"]});
        assert_eq!(who(&rule, list), ["ann", "bob"]);
        let nobody = [
            json!({}),
            json!({"user": null}),
            json!({"user": "x".repeat(201)}),
        ];
        for json in nobody {
            assert!(rule.matches(&json).is_none(), "{json}");
        }
        let many: Vec<usize> = (0..2000).collect();
        assert_eq!(who(&rule, json!({"user": many})).len(), 1000);
    }

    #[test]
    fn values_are_different_when_their_json_is() {
        let rule = rule("count = 2\ndistinct = '/value'");
        let value = |value: Value| {
            let json = json!({"user": "ann", "value": value});
            rule.matches(&json).unwrap().value.unwrap()
        };
        assert_eq!(value(json!("a\0b")), "\"a\\u0000b\"");
        assert_ne!(value(json!("1")), value(json!(1)));
        let long = "x".repeat(300);
        assert_eq!(value(json!(long)), value(json!(long)));
        assert!(value(json!(long)).len() < 200);
        assert!(rule.matches(&json!({"user": "ann"})).is_none());
    }

    #[test]
    fn a_payload_is_not_looked_at_when_no_rule_is_for_its_topic() {
        let toml = "[[rule]]\nid = 'r'\nname = 'R'\ntopics = ['org.']\nrecipient = '/user'\n";
        let rules = read(toml, Path::new("")).unwrap();
        let message = |topic: &str| Message::new(topic.into(), "{".into(), SystemTime::now(), 1);
        assert_eq!(rules.matches(&message("net.a")).unwrap(), []);
        assert!(rules.matches(&message("org.a")).is_err());
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "(\\[\\[rule\\]\\]\n|(id|name|count|within|when|topics) = \
                                           [\\[\\]{}'0-9a-z=, ]*\n|\\PC)*") {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("a.toml"), text).unwrap();
            let _ = read("rules = ['a.toml']", dir.path());
        }
    }
}
