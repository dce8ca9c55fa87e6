//! Settings: a tree of values that know where they were written.
//!
//! Every settings struct of the hub and of each kind is a plain serde struct with
//! `#[serde(deny_unknown_fields)]`. [`Settings::parse`] fills it and reports *all* mistakes at
//! once, each with its place and, where one is near, the key that was probably meant:
//!
//! ```
//! use serde::Deserialize;
//! use weir_consumer::settings::Settings;
//!
//! #[derive(Debug, Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Irc { server: String, port: u16 }
//!
//! let text = "server = 'irc.example.org'\nprot = 6667\nport = 'high'";
//! let mistakes = Settings::from_toml(text, "weir.toml").unwrap().parse::<Irc>().unwrap_err();
//! assert_eq!(mistakes[0].to_string(), "weir.toml:2:1: prot: unknown key; did you mean `port`?");
//! assert_eq!(
//!     mistakes[1].to_string(),
//!     "weir.toml:3:8: port: expected a whole number (0 to 65535), found the text \"high\""
//! );
//! ```
//!
//! serde stops at the first error, so `parse` takes what is wrong out of the tree and tries again
//! until only what is missing is left. The deserializer is our own because those of the TOML and
//! JSON crates give a place only as text, and a layered tree has no single text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, IntoDeserializer};
use toml_edit::{Document, Item, TableLike};

/// A value of the settings and where it was written; at the top, a table.
#[derive(Clone, Debug)]
pub struct Settings {
    value: Value,
    origin: Origin,
    /// Where its key stands, which is the better place to show for a key that is unknown.
    key_origin: Origin,
}

#[derive(Clone, Debug)]
enum Value {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Settings>),
    Table(BTreeMap<String, Settings>),
    /// What `parse` took out of a list, so that the others keep their numbers.
    Removed,
}

impl Value {
    fn is_removed(&self) -> bool {
        matches!(self, Value::Removed)
    }
}

/// Where a value was written: a place in a file, the command line, the environment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    source: Arc<str>,
    /// Line and column, from 1; none where there are no lines.
    place: Option<(usize, usize)>,
}

impl Origin {
    /// A place without lines, such as `--set`.
    pub fn named(source: &str) -> Self {
        Origin {
            source: source.into(),
            place: None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{}:{line}:{column}", self.source),
            None => f.write_str(&self.source),
        }
    }
}

/// Something wrong in the settings: where, which key, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was written.
    pub origin: Origin,
    /// The key, with dots; empty when the mistake is not about a key.
    pub path: String,
    /// What is wrong and what would be right.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => write!(f, "{}: {}", self.origin, self.text),
            false => write!(f, "{}: {}: {}", self.origin, self.path, self.text),
        }
    }
}

impl Mistake {
    /// The same mistake, seen from the top of the tree: `prefix` goes before its path.
    pub fn under(mut self, prefix: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.path = format!("{prefix}{dot}{}", self.path);
        self
    }
}

impl Settings {
    /// An empty table.
    pub fn empty(origin: Origin) -> Self {
        Settings::new(Value::Table(BTreeMap::new()), origin)
    }

    fn new(value: Value, origin: Origin) -> Self {
        Settings {
            value,
            key_origin: origin.clone(),
            origin,
        }
    }

    /// Reads TOML; `source` names the text in mistakes.
    ///
    /// # Errors
    /// The first syntax error: what follows it can't be read.
    pub fn from_toml(text: &str, source: &str) -> Result<Self, Mistake> {
        let source: Arc<str> = source.into();
        let breaks = text.bytes().enumerate().filter(|(_, b)| *b == b'\n');
        let lines = Lines {
            source: source.clone(),
            starts: breaks.map(|(at, _)| at + 1).collect(),
        };
        let document = Document::parse(text).map_err(|error| Mistake {
            origin: lines.origin(error.span().map(|span| span.start)),
            path: String::new(),
            text: error.message().trim().replace('\n', "; "),
        })?;
        Ok(lines.table(
            document.as_table(),
            Origin {
                source,
                place: None,
            },
        ))
    }

    /// Sets the value at a path of keys with dots; `text` is read as TOML, or else taken as text.
    ///
    /// A whole number in the path is an index into a list.
    ///
    /// # Errors
    /// When the path leads through a value that is neither a table nor a list.
    pub fn set(&mut self, path: &str, text: &str, origin: Origin) -> Result<(), Mistake> {
        let value = match Settings::from_toml(&format!("value = {text}"), "") {
            Ok(Settings {
                value: Value::Table(mut table),
                ..
            }) if table.len() == 1 => table.remove("value").map(|settings| settings.value),
            _ => None,
        };
        let mut value = Settings::new(value.unwrap_or_else(|| Value::Text(text.into())), origin);
        value.relocate();
        let mut here = self;
        for key in path.split('.') {
            let next = match &mut here.value {
                Value::Table(table) => Some(
                    table
                        .entry(key.to_owned())
                        .or_insert_with(|| Settings::empty(value.origin.clone())),
                ),
                Value::List(list) => key.parse::<usize>().ok().and_then(|i| list.get_mut(i)),
                _ => None,
            };
            here = next.ok_or_else(|| Mistake {
                origin: value.origin.clone(),
                path: path.into(),
                text: format!("nothing can be set here: there is no `{key}` to set it in"),
            })?;
        }
        *here = value;
        Ok(())
    }

    fn relocate(&mut self) {
        let origin = self.origin.clone();
        self.key_origin = origin.clone();
        let inner: Vec<&mut Settings> = match &mut self.value {
            Value::List(list) => list.iter_mut().collect(),
            Value::Table(table) => table.values_mut().collect(),
            _ => Vec::new(),
        };
        for settings in inner {
            settings.origin = origin.clone();
            settings.relocate();
        }
    }

    /// Where this value was written.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// A mistake about this value as a whole.
    pub fn mistake(&self, text: impl Into<String>) -> Mistake {
        Mistake {
            origin: self.origin.clone(),
            path: String::new(),
            text: text.into(),
        }
    }

    /// A mistake about the value of one key, or about this table when the key is not there.
    pub fn mistake_at(&self, key: &str, text: impl Into<String>) -> Mistake {
        let place = key.split('.').try_fold(self, |here, key| here.get(key));
        let origin = place.map_or(&self.origin, |value| &value.origin);
        Mistake {
            origin: origin.clone(),
            path: key.into(),
            text: text.into(),
        }
    }

    /// The value of a key, if this is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Settings> {
        match &self.value {
            Value::Table(table) => table.get(key),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The keys and values of a table in alphabetical order; nothing for anything else.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Settings)> {
        let table = match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        };
        table
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value))
    }

    /// The values of a list; nothing for anything else.
    pub fn items(&self) -> impl Iterator<Item = &Settings> {
        let list = match &self.value {
            Value::List(list) => Some(list),
            _ => None,
        };
        list.into_iter().flatten()
    }

    /// Whether this is a table, as a section has to be.
    pub fn is_table(&self) -> bool {
        matches!(self.value, Value::Table(_))
    }

    /// Splits a table in two: the entries whose keys are listed, and the others.
    pub fn split(mut self, keys: &[&str]) -> (Settings, Settings) {
        let mut listed = Settings {
            value: Value::Table(BTreeMap::new()),
            ..self.clone()
        };
        if let (Value::Table(from), Value::Table(to)) = (&mut self.value, &mut listed.value) {
            for key in keys {
                if let Some(value) = from.remove(*key) {
                    to.insert((*key).to_owned(), value);
                }
            }
        }
        (listed, self)
    }

    /// Fills a settings struct.
    ///
    /// # Errors
    /// Every mistake that can be found, with places; paths begin at this table.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Vec<Mistake>> {
        match self.parse_most() {
            (Some(parsed), mistakes) if mistakes.is_empty() => Ok(parsed),
            (_, mistakes) => Err(mistakes),
        }
    }

    /// Fills a settings struct with what can be read, and answers every mistake in the rest.
    ///
    /// For whoever has more to check: so that also those mistakes are found at once. There is
    /// nothing without the keys that have no default.
    pub fn parse_most<T: DeserializeOwned>(&self) -> (Option<T>, Vec<Mistake>) {
        let mut tree = self.clone();
        let mut mistakes: Vec<Mistake> = Vec::new();
        let mut most = None;
        loop {
            let error = match T::deserialize(Tree(&tree)) {
                Ok(parsed) => {
                    most = Some(parsed);
                    break;
                }
                Err(error) => error,
            };
            let mut path: Vec<String> = error.path.iter().rev().cloned().collect();
            let shown = path.join(".");
            // What was taken out because it was wrong is not also missing, nor is the whole wrong
            // for the lack of it.
            let below = format!("{shown}.");
            let spurious = (mistakes.iter()).any(|m| m.path == shown || m.path.starts_with(&below));
            if !spurious {
                mistakes.push(Mistake {
                    origin: error.origin.unwrap_or_else(|| self.origin.clone()),
                    path: shown,
                    text: error.text,
                });
            }
            if error.missing {
                path.pop(); // it is the section that can't be read without this key
            }
            if !tree.remove(&path) {
                break;
            }
        }
        mistakes.sort_by(|a, b| (&a.origin, &a.path).cmp(&(&b.origin, &b.path)));
        (most, mistakes)
    }

    fn remove(&mut self, path: &[String]) -> bool {
        let Some((key, rest)) = path.split_first() else {
            return false;
        };
        match (&mut self.value, rest) {
            (Value::Table(table), []) => table.remove(key).is_some(),
            (Value::Table(table), rest) => table.get_mut(key).is_some_and(|v| v.remove(rest)),
            (Value::List(list), rest) => {
                let item = key
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| list.get_mut(index));
                item.is_some_and(|item| match rest {
                    [] => !std::mem::replace(&mut item.value, Value::Removed).is_removed(),
                    rest => item.remove(rest),
                })
            }
            _ => false,
        }
    }
}

/// Shows the value as TOML would write it.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn quoted(text: &str) -> String {
            let mut out = String::from('"');
            for c in text.chars() {
                match c {
                    '"' | '\\' => out.extend(['\\', c]),
                    '\n' => out.push_str("\\n"),
                    '\t' => out.push_str("\\t"),
                    c if c.is_control() => out.push_str(&format!("\\u{:04X}", c as u32)),
                    c => out.push(c),
                }
            }
            out + "\""
        }
        fn key(text: &str) -> String {
            let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            match !text.is_empty() && text.chars().all(bare) {
                true => text.to_owned(),
                false => quoted(text),
            }
        }
        match &self.value {
            Value::Bool(value) => write!(f, "{value}"),
            Value::Integer(value) => write!(f, "{value}"),
            Value::Float(value) => write!(f, "{value:?}"),
            Value::Text(value) => f.write_str(&quoted(value)),
            Value::List(list) => {
                let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", list.join(", "))
            }
            Value::Removed => Ok(()),
            Value::Table(table) if table.is_empty() => f.write_str("{}"),
            Value::Table(table) => {
                let entries: Vec<String> = table
                    .iter()
                    .map(|(k, v)| format!("{} = {v}", key(k)))
                    .collect();
                write!(f, "{{ {} }}", entries.join(", "))
            }
        }
    }
}

/// The nearest of `candidates` to what was written, if one is near enough to be meant.
pub fn nearest<'c>(
    written: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    (candidates.into_iter())
        .map(|candidate| (strsim::damerau_levenshtein(written, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(written.len()) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Reads a duration such as `"250ms"`, `"10s"` or `"1h 30m"`; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// A text that says what a duration looks like.
pub fn duration<'de, D: de::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    match humantime::parse_duration(&text) {
        Ok(time) if time <= DURATION_MAX => Ok(time),
        Ok(_) => Err(de::Error::custom(format!(
            "expected a duration of at most 10 years, found {text:?}"
        ))),
        Err(_) => Err(de::Error::custom(format!(
            "expected a duration such as \"250ms\" or \"10s\", found {text:?}"
        ))),
    }
}

/// No longer durations: clocks can't be counted on beyond.
pub const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// No larger sizes, 1 PiB: beyond is a slip of the finger.
const SIZE_MAX: usize = 1 << 50;

/// Reads a size in bytes such as `"64MiB"`, `"10 kB"` or `4096`; for `#[serde(deserialize_with)]`.
///
/// # Errors
/// A text that says what a size looks like.
pub fn size<'de, D: de::Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a size such as \"64MiB\" or a number of bytes"
    )]
    enum Size {
        Bytes(usize),
        Text(String),
    }
    let bytes = match Size::deserialize(from)? {
        Size::Bytes(bytes) => Some(bytes),
        Size::Text(text) => match text.parse::<bytesize::ByteSize>() {
            Ok(size) => usize::try_from(size.as_u64()).ok(),
            Err(_) => {
                return Err(de::Error::custom(format!(
                    "expected a size such as \"64MiB\", found {text:?}"
                )));
            }
        },
    };
    (bytes.filter(|bytes| *bytes <= SIZE_MAX))
        .ok_or_else(|| de::Error::custom("expected a size of at most 1 PiB"))
}

/// Turns what the TOML parser read into a tree with lines and columns.
struct Lines {
    source: Arc<str>,
    /// Where the lines begin, but the first: files of rules have thousands, and each value a place.
    starts: Vec<usize>,
}

impl Lines {
    fn origin(&self, offset: Option<usize>) -> Origin {
        let place = offset.map(|offset| {
            let breaks = self.starts.partition_point(|start| *start <= offset);
            let line_start = self.starts[..breaks].last().copied().unwrap_or(0);
            (breaks + 1, offset - line_start + 1)
        });
        Origin {
            source: self.source.clone(),
            place,
        }
    }

    fn table(&self, table: &dyn TableLike, origin: Origin) -> Settings {
        let mut entries = BTreeMap::new();
        for (name, item) in table.iter() {
            let key_span = table.key(name).and_then(|key| key.span());
            let at = item.span().or(key_span.clone()).map(|span| span.start);
            let mut value = self.item(item, self.origin(at));
            value.key_origin = self.origin(key_span.map(|span| span.start).or(at));
            entries.insert(name.to_owned(), value);
        }
        Settings::new(Value::Table(entries), origin)
    }

    fn item(&self, item: &Item, origin: Origin) -> Settings {
        match item {
            Item::Table(table) => self.table(table, origin),
            Item::ArrayOfTables(tables) => {
                let tables = tables.iter().map(|table| {
                    self.table(table, self.origin(table.span().map(|span| span.start)))
                });
                Settings::new(Value::List(tables.collect()), origin)
            }
            Item::Value(value) => self.value(value, origin),
            Item::None => Settings::empty(origin),
        }
    }

    fn value(&self, value: &toml_edit::Value, origin: Origin) -> Settings {
        use toml_edit::Value as Toml;
        let value = match value {
            Toml::String(text) => Value::Text(text.value().clone()),
            Toml::Integer(number) => Value::Integer(*number.value()),
            Toml::Float(number) => Value::Float(*number.value()),
            Toml::Boolean(truth) => Value::Bool(*truth.value()),
            Toml::Datetime(time) => Value::Text(time.value().to_string()),
            Toml::Array(list) => Value::List(
                list.iter()
                    .map(|v| self.value(v, self.origin(v.span().map(|span| span.start))))
                    .collect(),
            ),
            Toml::InlineTable(table) => return self.table(table, origin),
        };
        Settings::new(value, origin)
    }
}

/// An error of the deserializer below: a mistake in the making.
#[derive(Debug)]
struct Error {
    text: String,
    /// The keys that lead to it, innermost first.
    path: Vec<String>,
    origin: Option<Origin>,
    missing: bool,
}

impl Error {
    fn new(text: impl Into<String>) -> Self {
        Error {
            text: text.into(),
            path: Vec::new(),
            origin: None,
            missing: false,
        }
    }

    fn within(mut self, key: &str, settings: &Settings) -> Self {
        self.path.push(key.to_owned());
        self.origin.get_or_insert_with(|| settings.origin.clone());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Error::new(text.to_string())
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Error::new(format!(
            "expected {}, found {}",
            wanted(expected),
            seen(found)
        ))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Error::new(format!(
            "unknown value `{variant}`; {}",
            instead(variant, expected)
        ))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Error::new(format!("unknown key; {}", instead(field, expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        Error {
            path: vec![field.into()],
            missing: true,
            ..Error::new("this key is missing")
        }
    }
}

fn wanted(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "u8" => "a whole number (0 to 255)".into(),
        "u16" => "a whole number (0 to 65535)".into(),
        "u32" | "u64" | "usize" => "a whole number of at least 0".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => {
            "a whole number of at least 1".into()
        }
        "f32" | "f64" => "a number".into(),
        "a string" => "a text in quotes".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list in brackets".into(),
        other if other.starts_with("struct ") || other == "a map" => "a section of keys".into(),
        other => other.into(),
    }
}

fn seen(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Str(text) => format!("the text {text:?}"),
        de::Unexpected::Signed(number) => format!("the number {number}"),
        de::Unexpected::Unsigned(number) => format!("the number {number}"),
        de::Unexpected::Float(number) => format!("the number {number:?}"),
        de::Unexpected::Bool(truth) => format!("{truth}"),
        de::Unexpected::Seq => "a list".into(),
        de::Unexpected::Map => "a section".into(),
        other => other.to_string(),
    }
}

/// What to write instead: the nearest, or all there are.
pub(crate) fn instead(written: &str, expected: &[&str]) -> String {
    match nearest(written, expected.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if expected.is_empty() => "there are none here".into(),
        None => format!("known here: {}", expected.join(", ")),
    }
}

/// The deserializer; private, so that its error is.
#[derive(Clone, Copy)]
struct Tree<'s>(&'s Settings);

impl<'de> IntoDeserializer<'de, Error> for Tree<'de> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> de::Deserializer<'de> for Tree<'de> {
    type Error = Error;

    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::Removed => visitor.visit_unit(),
            Value::List(list) => visitor.visit_seq(Items {
                list: list.iter().enumerate(),
            }),
            Value::Table(table) => visitor.visit_map(Entries {
                table: table.iter(),
                entry: None,
            }),
        }
    }

    fn deserialize_option<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: de::Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: de::Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::Text(variant) => visitor.visit_enum(variant.as_str().into_deserializer()),
            Value::Table(table) => {
                let map = de::value::MapDeserializer::new(
                    table.iter().map(|(key, value)| (key.as_str(), Tree(value))),
                );
                de::Deserializer::deserialize_enum(
                    de::value::MapAccessDeserializer::new(map),
                    name,
                    variants,
                    visitor,
                )
            }
            _ => Err(Error::new(format!(
                "expected one of: {}",
                variants.join(", ")
            ))),
        }
    }

    fn deserialize_struct<V: de::Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        // serde would take a list for the fields in their order.
        match &self.0.value {
            Value::Table(_) => self.deserialize_any(visitor),
            Value::List(_) => Err(Error::new("expected a section of keys, found a list")),
            _ => self.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'de> {
    list: std::iter::Enumerate<std::slice::Iter<'de, Settings>>,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let next = self.list.find(|(_, item)| !item.value.is_removed());
        let Some((index, value)) = next else {
            return Ok(None);
        };
        seed.deserialize(Tree(value))
            .map(Some)
            .map_err(|error| error.within(&index.to_string(), value))
    }
}

struct Entries<'de> {
    table: std::collections::btree_map::Iter<'de, String, Settings>,
    entry: Option<(&'de String, &'de Settings)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.entry = self.table.next();
        let Some((key, value)) = self.entry else {
            return Ok(None);
        };
        seed.deserialize(key.as_str().into_deserializer())
            .map(Some)
            .map_err(|mut error: Error| {
                error.origin = Some(value.key_origin.clone());
                error.within(key, value)
            })
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, value)) = self.entry.take() else {
            return Err(Error::new("a value was asked for before its key"));
        };
        seed.deserialize(Tree(value))
            .map_err(|error| error.within(key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        name: String,
        #[serde(deserialize_with = "duration")]
        delay: Duration,
        #[serde(deserialize_with = "size")]
        limit: usize,
        ratio: f64,
        list: Vec<u8>,
        inner: Option<Inner>,
        color: Color,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        needed: bool,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Color {
        #[default]
        Red,
        LightGreen,
    }

    fn parse(text: &str) -> Result<Sample, Vec<String>> {
        Settings::from_toml(text, "f")
            .map_err(|mistake| vec![mistake.to_string()])?
            .parse()
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_value_arrives() {
        let text = "name = 'n'\ndelay = '1m 5s'\nlimit = '2 KiB'\nratio = 2\nlist = [1, 2]\n\
                    color = 'light_green'\n[inner]\nneeded = true";
        let expected = Sample {
            name: "n".into(),
            delay: Duration::from_secs(65),
            limit: 2048,
            ratio: 2.0,
            list: vec![1, 2],
            inner: Some(Inner { needed: true }),
            color: Color::LightGreen,
        };
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let text = "nam = 1\ndelay = 'soon'\nlimit = true\nlist = [1, 300, -1]\n\
                    color = 'light-green'\n[inner]\n";
        assert_eq!(
            parse(text).unwrap_err(),
            [
                "f:1:1: nam: unknown key; did you mean `name`?",
                "f:2:9: delay: expected a duration such as \"250ms\" or \"10s\", found \"soon\"",
                "f:3:9: limit: expected a size such as \"64MiB\" or a number of bytes",
                "f:4:12: list.1: expected a whole number (0 to 255), found the number 300",
                "f:4:17: list.2: expected a whole number (0 to 255), found the number -1",
                "f:5:9: color: unknown value `light-green`; did you mean `light_green`?",
                "f:6:1: inner.needed: this key is missing",
            ]
        );
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let mistake = Settings::from_toml("a = 1\nb = [", "f").unwrap_err();
        assert!(mistake.to_string().starts_with("f:2:"), "{mistake}");
    }

    #[test]
    fn what_was_wrong_is_not_also_missing() {
        #[derive(Debug, Deserialize)]
        struct Needs {
            #[allow(dead_code)]
            port: u16,
        }
        let settings = Settings::from_toml("port = 'x'", "f").unwrap();
        assert_eq!(settings.parse::<Needs>().unwrap_err().len(), 1);
    }

    #[test]
    fn set_goes_over_what_the_file_says() {
        let mut settings = Settings::from_toml("list = [1]\n[inner]\nneeded = false", "f").unwrap();
        settings
            .set("inner.needed", "true", Origin::named("--set"))
            .unwrap();
        settings.set("list.0", "9", Origin::named("--set")).unwrap();
        settings
            .set("name", "plain text", Origin::named("--set"))
            .unwrap();
        let sample: Sample = settings.parse().unwrap();
        assert_eq!((sample.list, sample.name.as_str()), (vec![9], "plain text"));
        assert_eq!(sample.inner, Some(Inner { needed: true }));
        assert!(
            settings
                .set("name.deeper", "1", Origin::named("--set"))
                .is_err()
        );
        settings.set("limit", "[]", Origin::named("--set")).unwrap();
        assert_eq!(
            settings.parse::<Sample>().unwrap_err()[0].origin,
            Origin::named("--set")
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*|([a-z]+(\\.[a-z]+)? = [\\[\\]{}'0-9a-z,]*\n)*") {
            let _ = parse(&text);
        }

        #[test]
        fn what_it_displays_it_reads_again(text in "\\PC*", number: i64, truth: bool) {
            let value = Settings::new(Value::List(vec![
                Settings::new(Value::Text(text), Origin::named("")),
                Settings::new(Value::Integer(number), Origin::named("")),
                Settings::new(Value::Bool(truth), Origin::named("")),
            ]), Origin::named(""));
            let shown = value.to_string();
            let again = Settings::from_toml(&format!("value = {shown}"), "f").unwrap();
            prop_assert_eq!(again.get("value").unwrap().to_string(), shown);
        }
    }
}
