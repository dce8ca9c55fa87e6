//! Conditions on messages, as rules have them, and the index that finds a message's rules.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use regex::Regex;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::Value;

/// Regular expressions that take more memory are refused.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// Conditions on the JSON of a message, all of which have to hold.
///
/// In a configuration it is a list of tables. Each names a place by a JSON pointer (`at`; `""` is
/// all of the payload) and says what has to hold there:
///
/// | key | holds when the value |
/// |---|---|
/// | `is`, `is_not` | equals this, or does not; `1` equals `1.0` |
/// | `one_of` | equals one of this list |
/// | `above`, `below`, `at_least`, `at_most` | is a number that compares so |
/// | `contains` | is a text with this in it, or a list with this as a member |
/// | `starts_with`, `ends_with` | is a text that begins or ends so |
/// | `matches` | is a text in which this regular expression finds something |
/// | `exists` | is there (`true`; also when it is null) or is not (`false`) |
///
/// Several in one table have all to hold. A table `{ any = [...] }` holds when one of its conditions
/// does, `{ none = [...] }` when not one does. Where there is nothing at that place, only
/// `exists = false`, `is_not` and what is in `none` can hold.
///
/// ```
/// use serde_json::json;
/// use weir_consumer::conditions::Conditions;
/// use weir_consumer::settings::Settings;
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Rule { when: Conditions }
///
/// let toml = r#"when = [{ at = "/msg/seconds", at_least = 2 }, { at = "/msg/user", is_not = "root" }]"#;
/// let rule: Rule = Settings::from_toml(toml, "weir.toml").unwrap().parse().unwrap();
/// assert!(rule.when.hold(&json!({"msg": {"seconds": 2.5, "user": "ann"}})));
/// assert!(!rule.when.hold(&json!({"msg": {"seconds": 1.5, "user": "ann"}})));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    /// Whether all of them hold.
    pub fn hold(&self, json: &Value) -> bool {
        self.0.iter().all(|condition| condition.holds(json))
    }

    /// Whether there is none, so that they hold of everything, JSON or not.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Condition {
    At(Pointer, Vec<Test>),
    Any(Conditions),
    None(Conditions),
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Is(Value),
    IsNot(Value),
    OneOf(Vec<Value>),
    Above(f64),
    Below(f64),
    AtLeast(f64),
    AtMost(f64),
    Contains(Value),
    StartsWith(String),
    EndsWith(String),
    Matches(Pattern),
    Exists(bool),
}

impl Condition {
    fn holds(&self, json: &Value) -> bool {
        match self {
            Condition::At(pointer, tests) => {
                let found = pointer.of(json);
                tests.iter().all(|test| test.holds(found))
            }
            Condition::Any(conditions) => conditions.0.iter().any(|c| c.holds(json)),
            Condition::None(conditions) => !conditions.0.iter().any(|c| c.holds(json)),
        }
    }
}

impl Test {
    fn holds(&self, found: Option<&Value>) -> bool {
        let number = |compare: fn(&f64, &f64) -> bool, limit: &f64| {
            (found.and_then(Value::as_f64)).is_some_and(|number| compare(&number, limit))
        };
        let text = found.and_then(Value::as_str);
        match self {
            Test::Is(value) => found.is_some_and(|found| equal(found, value)),
            Test::IsNot(value) => !found.is_some_and(|found| equal(found, value)),
            Test::OneOf(values) => {
                found.is_some_and(|found| values.iter().any(|value| equal(found, value)))
            }
            Test::Above(limit) => number(f64::gt, limit),
            Test::Below(limit) => number(f64::lt, limit),
            Test::AtLeast(limit) => number(f64::ge, limit),
            Test::AtMost(limit) => number(f64::le, limit),
            Test::Contains(value) => match found {
                Some(Value::String(text)) => value.as_str().is_some_and(|part| text.contains(part)),
                Some(Value::Array(list)) => list.iter().any(|member| equal(member, value)),
                _ => false,
            },
            Test::StartsWith(part) => text.is_some_and(|text| text.starts_with(part)),
            Test::EndsWith(part) => text.is_some_and(|text| text.ends_with(part)),
            Test::Matches(pattern) => text.is_some_and(|text| pattern.0.is_match(text)),
            Test::Exists(there) => found.is_some() == *there,
        }
    }
}

/// Numbers by their value, whichever way they are written; all else as it is.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one == other || (one.is_f64() != other.is_f64() && one.as_f64() == other.as_f64())
        }
        (one, other) => one == other,
    }
}

/// A regular expression of the settings.
#[derive(Clone, Debug)]
struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let regex = regex::RegexBuilder::new(&text)
            .size_limit(REGEX_BYTES_MAX)
            .build();
        regex.map(Pattern).map_err(|error| {
            // The error draws the expression over several lines; the last says what is wrong.
            let told = error.to_string();
            let last = told.lines().last().unwrap_or_default().trim();
            let why = last.strip_prefix("error: ").unwrap_or(last);
            D::Error::custom(format!("{text:?} is no regular expression: {why}"))
        })
    }
}

/// A JSON pointer (RFC 6901) of the settings, checked: `""`, or keys after slashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pointer {
    written: String,
    /// Its parts, unescaped. `Value::pointer` does that at each call, with two allocations for each
    /// part, which was most of what a rule cost a message (consumers/badges/benches).
    keys: Box<[Box<str>]>,
}

impl Pointer {
    /// What is there.
    pub fn of<'v>(&self, json: &'v Value) -> Option<&'v Value> {
        self.keys.iter().try_fold(json, |here, key| match here {
            Value::Object(members) => members.get(&**key),
            Value::Array(list) => list.get(index(key)?),
            _ => None,
        })
    }

    /// The pointer as it was written.
    pub fn as_str(&self) -> &str {
        &self.written
    }
}

/// A number as RFC 6901 has it: without a sign, and without a zero before it.
fn index(key: &str) -> Option<usize> {
    match key.starts_with('+') || (key.starts_with('0') && key.len() > 1) {
        true => None,
        false => key.parse().ok(),
    }
}

impl std::str::FromStr for Pointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.is_empty() || text.starts_with('/') {
            true => Ok(Pointer {
                written: text.to_owned(),
                keys: (text.split('/').skip(1))
                    .map(|key| key.replace("~1", "/").replace("~0", "~").into())
                    .collect(),
            }),
            false => Err(format!(
                "expected a JSON pointer such as \"/msg/user\", found {text:?}"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Pointer {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// A condition as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    at: Option<Pointer>,
    any: Option<Conditions>,
    none: Option<Conditions>,
    is: Option<Value>,
    is_not: Option<Value>,
    one_of: Option<Vec<Value>>,
    above: Option<f64>,
    below: Option<f64>,
    at_least: Option<f64>,
    at_most: Option<f64>,
    contains: Option<Value>,
    starts_with: Option<String>,
    ends_with: Option<String>,
    matches: Option<Pattern>,
    exists: Option<bool>,
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(from)?;
        let tests: Vec<Test> = [
            written.is.map(Test::Is),
            written.is_not.map(Test::IsNot),
            written.one_of.map(Test::OneOf),
            written.above.map(Test::Above),
            written.below.map(Test::Below),
            written.at_least.map(Test::AtLeast),
            written.at_most.map(Test::AtMost),
            written.contains.map(Test::Contains),
            written.starts_with.map(Test::StartsWith),
            written.ends_with.map(Test::EndsWith),
            written.matches.map(Test::Matches),
            written.exists.map(Test::Exists),
        ]
        .into_iter()
        .flatten()
        .collect();
        match (written.at, written.any, written.none, tests.is_empty()) {
            (Some(at), None, None, false) => Ok(Condition::At(at, tests)),
            (Some(at), None, None, true) => Err(D::Error::custom(format!(
                "says nothing about what is at {at:?}; add `is`, `above`, `matches`, `exists` ...",
                at = at.written
            ))),
            (None, Some(any), None, true) if any.is_empty() => Err(D::Error::custom(
                "`any` of no conditions never holds; add some to its list, or remove it",
            )),
            (None, Some(any), None, true) => Ok(Condition::Any(any)),
            (None, None, Some(none), true) => Ok(Condition::None(none)),
            _ => Err(D::Error::custom(
                "expected a table with `at` and what has to hold there, or with `any` or `none` \
                 alone",
            )),
        }
    }
}

/// Finds, by a message's topic, what was put in under topics that match it.
///
/// Topics are prefixes as everywhere in a configuration; a `*` is ignored. A look-up costs a hash
/// for each different length of prefix, however many entries there are.
///
/// ```
/// use weir_consumer::conditions::ByTopic;
///
/// let mut rules = ByTopic::default();
/// rules.add(["org.example.git.*", "org.example."], "git");
/// rules.add(["org.other."], "other");
/// assert_eq!(rules.of("org.example.git.push").collect::<Vec<_>>(), [&"git"]);
/// assert_eq!(rules.of("net.").count(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct ByTopic<T> {
    entries: Vec<T>,
    by_prefix: HashMap<Box<[u8]>, Vec<usize>>,
    lengths: BTreeSet<usize>,
}

impl<T> Default for ByTopic<T> {
    fn default() -> Self {
        ByTopic {
            entries: Vec::new(),
            by_prefix: HashMap::new(),
            lengths: BTreeSet::new(),
        }
    }
}

impl<T> ByTopic<T> {
    /// Puts in an entry for topics that begin with one of these.
    pub fn add<S: AsRef<str>>(&mut self, topics: impl IntoIterator<Item = S>, entry: T) {
        let number = self.entries.len();
        self.entries.push(entry);
        let mut prefixes: Vec<String> = (topics.into_iter())
            .map(|topic| topic.as_ref().replace('*', ""))
            .collect();
        // Of prefixes that begin with one another the shortest is enough, so that no topic finds an
        // entry twice.
        prefixes.sort_unstable();
        prefixes.dedup_by(|longer, shorter| longer.starts_with(shorter.as_str()));
        for prefix in prefixes {
            self.lengths.insert(prefix.len());
            let under = self.by_prefix.entry(prefix.into_bytes().into());
            under.or_default().push(number);
        }
    }

    /// The entries for this topic; those of shorter prefixes first, each once.
    pub fn of<'t>(&'t self, topic: &'t str) -> impl Iterator<Item = &'t T> {
        (self.lengths.iter())
            .take_while(|length| **length <= topic.len())
            .filter_map(|length| self.by_prefix.get(&topic.as_bytes()[..*length]))
            .flatten()
            .map(|number| &self.entries[*number])
    }

    /// All entries, in the order in which they were put in.
    pub fn all(&self) -> &[T] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::settings::Settings;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        when: Conditions,
    }

    fn read(when: &str) -> Result<Conditions, String> {
        let rule = Settings::from_toml(&format!("when = {when}"), "t").unwrap();
        let mistakes = |mistakes: Vec<crate::settings::Mistake>| mistakes[0].to_string();
        rule.parse::<Rule>().map(|rule| rule.when).map_err(mistakes)
    }

    fn hold(when: &str, json: Value) -> bool {
        read(when).unwrap().hold(&json)
    }

    #[test]
    fn every_test_holds_of_what_it_says_and_of_nothing_else() {
        let cases = [
            ("is = 1", json!(1.0), json!(2)),
            (
                "is = 9007199254740993",
                json!(9_007_199_254_740_993_i64),
                json!(9_007_199_254_740_992_i64),
            ),
            ("is = { x = [1] }", json!({"x": [1]}), json!({"x": [2]})),
            ("is_not = 'a'", json!("b"), json!("a")),
            ("one_of = ['a', 2]", json!(2), json!("b")),
            ("above = 2", json!(2.5), json!(2)),
            ("below = 2", json!(1), json!("1")),
            ("at_least = 2", json!(2), json!(1.9)),
            ("at_most = 2", json!(2.0), json!(3)),
            ("contains = 'b'", json!("abc"), json!("ac")),
            ("contains = 2", json!([1, 2]), json!([1])),
            ("starts_with = 'a'", json!("ab"), json!("ba")),
            ("ends_with = 'b'", json!("ab"), json!(["b"])),
            ("matches = '^a+$'", json!("aa"), json!("ab")),
            ("at_least = 1, at_most = 3", json!(2), json!(4)),
        ];
        for (test, yes, no) in cases {
            let when = format!("[{{ at = '/v', {test} }}]");
            assert!(hold(&when, json!({"v": yes})), "{test} {yes}");
            assert!(!hold(&when, json!({"v": no})), "{test} {no}");
        }
        assert!(hold("[{ at = '/v', exists = true }]", json!({"v": null})));
        assert!(!hold("[{ at = '/v', exists = true }]", json!({"w": 1})));
        assert!(hold("[{ at = '/v', exists = false }]", json!({"w": 1})));
        assert!(hold("[{ at = '/v', is_not = 1 }]", json!({"w": 1})));
        assert!(!hold("[{ at = '/v', above = 1 }]", json!({"w": 1})));
    }

    #[test]
    fn conditions_join_as_all_any_and_none() {
        let one = "{ at = '/a', is = 1 }";
        let two = "{ at = '/b', is = 2 }";
        let both = json!({"a": 1, "b": 2});
        let first = json!({"a": 1});
        assert!(hold(&format!("[{one}, {two}]"), both));
        assert!(!hold(&format!("[{one}, {two}]"), first.clone()));
        assert!(hold(
            &format!("[{{ any = [{one}, {two}] }}]"),
            first.clone()
        ));
        assert!(!hold(&format!("[{{ none = [{one}, {two}] }}]"), first));
        assert!(hold(
            &format!("[{{ none = [{one}] }}, {two}]"),
            json!({"b": 2})
        ));
        assert!(hold("[]", json!(null)));
    }

    #[test]
    fn mistakes_are_told() {
        assert_eq!(
            read("[{ at = 'v', is = 1 }]").unwrap_err(),
            "t:1:16: when.0.at: expected a JSON pointer such as \"/msg/user\", found \"v\""
        );
        assert!(
            read("[{ at = '/v' }]")
                .unwrap_err()
                .contains("says nothing about")
        );
        assert_eq!(
            read("[{ any = [] }]").unwrap_err(),
            "t:1:9: when.0: `any` of no conditions never holds; add some to its list, or remove it"
        );
        assert!(
            read("[{ is = 1 }]")
                .unwrap_err()
                .contains("expected a table with `at`")
        );
        assert!(
            read("[{ at = '/v', si = 1 }]")
                .unwrap_err()
                .contains("did you mean `is`?")
        );
        let told = read("[{ at = '/v', matches = '(' }]").unwrap_err();
        assert!(
            told.ends_with("\"(\" is no regular expression: unclosed group"),
            "{told}"
        );
        let huge = read("[{ at = '/v', matches = '(a{1000}){1000}' }]").unwrap_err();
        assert!(huge.contains("size limit"), "{huge}");
    }

    proptest! {
        #[test]
        fn a_pointer_finds_what_serde_json_finds(text in "(/(a|b|0|1|01|\\+1|~0|~1|~01|))*") {
            let json = json!({
                "a": [1, {"b": {"": 2, "~": 3, "/": [4, 5], "~1": 6}}, [7, 8]],
                "b": {"0": {"01": 9, "+1": 10}, "": {"a": [11]}},
                "": [12, {"a": 13}],
            });
            let pointer: Pointer = text.parse().unwrap();
            prop_assert_eq!(pointer.of(&json), json.pointer(&text));
        }

        #[test]
        fn a_topic_finds_what_begins_like_it_once(
            entries in prop::collection::vec(prop::collection::vec("[ab]{0,3}", 0..4), 0..8),
            topic in "[abä]{0,5}",
        ) {
            let mut index = ByTopic::default();
            for (number, prefixes) in entries.iter().enumerate() {
                index.add(prefixes, number);
            }
            let mut found: Vec<usize> = index.of(&topic).copied().collect();
            found.sort_unstable();
            let right: Vec<usize> = (entries.iter().enumerate())
                .filter(|(_, prefixes)| prefixes.iter().any(|p| topic.starts_with(p.as_str())))
                .map(|(number, _)| number)
                .collect();
            prop_assert_eq!(found, right);
        }
    }
}
