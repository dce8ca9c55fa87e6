//! Lines of the protocol (RFC 1459 and 2812): what comes is taken apart, what goes can't be broken.
//!
//! Written here and not taken from `irc-proto`, the well-kept library for it: its licence, MPL-2.0,
//! is none of those that weir takes (`deny.toml`), and a client that only posts needs a page of it.
//!
//! 1. Nothing of a text becomes a line of its own: a text has no CR, LF or NUL when it is sent.
//! 2. No line is longer, as the server passes it on, than the 512 bytes that a line may have.
//! 3. A text is cut between characters only.

use std::fmt;
use std::path::Path;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use weir_consumer::Secret;

/// A line from the server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    /// Who caused it: the nick of a user, or the name of a server.
    pub(crate) from: String,
    /// A word in capitals, or three digits.
    pub(crate) command: String,
    pub(crate) params: Vec<String>,
}

/// No line has more.
const PARAMS_MAX: usize = 15;

impl Line {
    /// Takes a line apart; there is nothing in an empty one.
    pub(crate) fn parse(text: &str) -> Option<Line> {
        let mut rest = text.trim_start_matches(' ');
        // Tags, which nobody asked for.
        if rest.starts_with('@') {
            rest = rest.split_once(' ')?.1.trim_start_matches(' ');
        }
        let mut from = "";
        if let Some(prefixed) = rest.strip_prefix(':') {
            let (prefix, after) = prefixed.split_once(' ')?;
            from = prefix.split(['!', '@']).next().unwrap_or_default();
            rest = after.trim_start_matches(' ');
        }
        let (command, mut rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut params = Vec::new();
        loop {
            rest = rest.trim_start_matches(' ');
            if rest.is_empty() {
                break;
            }
            if let Some(last) = rest.strip_prefix(':') {
                params.push(last.to_owned());
                break;
            }
            if params.len() == PARAMS_MAX - 1 {
                params.push(rest.to_owned());
                break;
            }
            let (param, after) = rest.split_once(' ').unwrap_or((rest, ""));
            params.push(param.to_owned());
            rest = after;
        }
        (!command.is_empty()).then(|| Line {
            from: from.to_owned(),
            command: command.to_ascii_uppercase(),
            params,
        })
    }

    /// A parameter, or an empty text where there is none.
    pub(crate) fn param(&self, index: usize) -> &str {
        self.params.get(index).map_or("", String::as_str)
    }

    /// What the line says to people: its last parameter, without what could harm a log.
    pub(crate) fn told(&self) -> String {
        let last = self.params.last().map_or("", String::as_str);
        shown(last)
    }
}

/// What an error tells of a server's text: no more than this.
const SHOWN_CHARS_MAX: usize = 200;

pub(crate) fn shown(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    printable.take(SHOWN_CHARS_MAX).collect()
}

/// Whom something is said to: a channel, perhaps with the key that it needs, or a nick.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) key: Option<Key>,
    /// The name as the server compares it.
    pub(crate) folded: String,
}

/// The key of a channel: itself, as a caller of [`post`](crate::Connection::post) gives it, or the
/// place where the settings say that it is.
#[derive(Clone, PartialEq)]
pub(crate) enum Key {
    Given(String),
    Kept(Secret),
}

impl Key {
    /// The key, which has to be a word of a line.
    pub(crate) fn read(&self, data_dir: &Path) -> Result<String, String> {
        match self {
            Key::Given(key) => Ok(key.clone()),
            Key::Kept(place) => {
                let key = place.read(data_dir)?;
                match is_word(key.expose()) {
                    true => Ok(key.expose().to_owned()),
                    false => Err(format!(
                        "the secret in {place} is no key: one is a word of at most \
                         {TARGET_BYTES_MAX} bytes"
                    )),
                }
            }
        }
    }
}

/// Does not show it.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Given(_) => f.write_str("(secret)"),
            Key::Kept(place) => write!(f, "{place}"),
        }
    }
}

/// RFC 1459 has no longer ones.
const TARGET_BYTES_MAX: usize = 200;

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, key) = match text.split_once(' ') {
            Some((name, key)) => (name, Some(key)),
            None => (text, None),
        };
        let key_fits = key.is_none_or(|key| is_word(key) && is_channel(name));
        match is_word(name) && key_fits {
            true => Ok(Target {
                name: name.to_owned(),
                key: key.map(|key| Key::Given(key.to_owned())),
                folded: folded(name),
            }),
            false => Err(format!(
                "expected a channel such as \"#weir\", one with its key such as \"#weir key\", or \
                 a nick; found {:?}",
                shown(text)
            )),
        }
    }
}

fn is_word(text: &str) -> bool {
    (1..=TARGET_BYTES_MAX).contains(&text.len())
        && !text.starts_with(':')
        && !text.contains(|c: char| c == ' ' || c == ',' || c.is_control())
}

/// In the settings it is a channel: its name, or `{ name = "#weir", key = { file = "PATH" } }`.
impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Written;

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keyed {
            name: String,
            key: Option<Secret>,
        }

        impl<'de> Visitor<'de> for Written {
            type Value = Target;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a channel such as \"#weir\" or { name = \"#weir\", key = { file = \"PATH\" } }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Target, E> {
                if let Some((name, _)) = text.split_once(' ') {
                    return Err(E::custom(format!(
                        "the key of {} does not stand in the configuration itself; write \
                         {{ name = {:?}, key = {{ file = \"PATH\" }} }}, or {{ env = \"NAME\" }}",
                        shown(name),
                        shown(name)
                    )));
                }
                let target: Target = text.parse().map_err(E::custom)?;
                match target.is_channel() {
                    true => Ok(target),
                    false => Err(E::custom(format!(
                        "{:?} is no channel: one begins with `#`, `&`, `+` or `!`",
                        target.name
                    ))),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Target, A::Error> {
                let keyed = Keyed::deserialize(MapAccessDeserializer::new(map))?;
                let target: Target = self.visit_str(&keyed.name)?;
                Ok(Target {
                    key: keyed.key.map(Key::Kept),
                    ..target
                })
            }
        }

        from.deserialize_any(Written)
    }
}

impl Target {
    pub(crate) fn is_channel(&self) -> bool {
        is_channel(&self.name)
    }
}

fn is_channel(name: &str) -> bool {
    name.starts_with(['#', '&', '+', '!'])
}

/// Names of channels and nicks as they are compared: `{}|^` are the small letters of `[]\~`.
pub(crate) fn folded(name: &str) -> String {
    let fold = |c: char| match c {
        '[' => '{',
        ']' => '}',
        '\\' => '|',
        '~' => '^',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(fold).collect()
}

/// Cuts a text into the lines in which it is said, each of so many bytes and so many of them at
/// most; one that had to be cut short ends with an ellipsis.
///
/// Control characters are left out but for those that set colours, bold and such. Of the bytes there
/// have to be enough for a character, which [`room`] sees to.
pub(crate) fn pieces(text: &str, bytes_max: usize, lines_max: usize) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    for line in text.split(ends_a_line) {
        // What is longer than all lines together would be cleaned only to be cut off.
        let clean: String = (line.chars())
            .filter_map(|c| match c {
                '\t' => Some(' '),
                c if c.is_control() && !sets_a_style(c) => None,
                c => Some(c),
            })
            .take(bytes_max * (lines_max + 1))
            .collect();
        let mut rest = clean.trim();
        if rest.trim_matches(sets_a_style).is_empty() {
            continue;
        }
        while !rest.is_empty() {
            if pieces.len() == lines_max {
                shorten(&mut pieces, bytes_max);
                return pieces;
            }
            let piece = head(rest, bytes_max);
            pieces.push(piece.trim_end().to_owned());
            rest = rest[piece.len()..].trim_start();
        }
    }
    pieces
}

/// As much of the beginning as fits: up to a space if there is one in its second half.
fn head(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let head = &text[..text.floor_char_boundary(bytes_max)];
    match head.rfind(' ') {
        Some(space) if space > bytes_max / 2 => &head[..space],
        _ => head,
    }
}

fn shorten(pieces: &mut [String], bytes_max: usize) {
    if let Some(last) = pieces.last_mut() {
        let room = bytes_max.saturating_sub('…'.len_utf8());
        last.truncate(last.floor_char_boundary(room));
        last.push('…');
    }
}

fn ends_a_line(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// Bold, colours (two ways), plain, fixed width, reversed, italics, struck through, underlined. Not
/// among them is the one that begins a command to other people's programs (CTCP, 0x01).
fn sets_a_style(c: char) -> bool {
    matches!(
        c,
        '\u{2}'
            | '\u{3}'
            | '\u{4}'
            | '\u{f}'
            | '\u{11}'
            | '\u{16}'
            | '\u{1d}'
            | '\u{1e}'
            | '\u{1f}'
    )
}

/// A server takes no longer ones of a user, nor does it show a longer host.
const USERNAME_BYTES_MAX: usize = 20;
const HOST_BYTES_MAX: usize = 64;
/// What a line may have, without its end.
const LINE_BYTES_MAX: usize = 510;

/// How many bytes of text fit into a line, with what the server puts before it when it passes it on.
pub(crate) fn room(nick: &str, username: &str, command: &str, target: &str) -> usize {
    let username = username.len().min(USERNAME_BYTES_MAX);
    // ":nick!~user@host PRIVMSG #target :"
    let before = nick.len() + username + HOST_BYTES_MAX + ":!~@ ".len();
    let before = before + command.len() + target.len() + "  :".len();
    LINE_BYTES_MAX.saturating_sub(before)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> (String, String, Vec<String>) {
        let line = Line::parse(text).unwrap();
        (line.from, line.command, line.params)
    }

    #[test]
    fn a_line_is_taken_apart() {
        let line = |from: &str, command: &str, params: &[&str]| {
            let params = params.iter().map(|param| (*param).to_owned()).collect();
            (from.to_owned(), command.to_owned(), params)
        };
        assert_eq!(
            parsed(":ann!u@h privmsg  #a :hello: you "),
            line("ann", "PRIVMSG", &["#a", "hello: you "])
        );
        assert_eq!(parsed("PING token"), line("", "PING", &["token"]));
        assert_eq!(
            parsed("@time=1;x=a\\sb :irc.test 001 weir :"),
            line("irc.test", "001", &["weir", ""])
        );
        let many = format!("X {}", "a ".repeat(20));
        assert_eq!(parsed(&many).2.len(), 15);
        for nothing in ["", "   ", ":prefix", "@tags", "@tags ", ":prefix "] {
            assert_eq!(Line::parse(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn what_a_server_says_is_shown_without_what_harms_a_log() {
        let line = format!("404 weir #a :no\u{1b}[2J{}", "x".repeat(1000));
        let told = Line::parse(&line).unwrap().told();
        assert!(told.starts_with("no[2Jx") && told.len() == 200, "{told:?}");
    }

    #[test]
    fn a_text_is_cut_at_spaces_and_between_characters() {
        let cut = |text: &str, bytes, lines| pieces(text, bytes, lines);
        assert_eq!(cut("one two three", 8, 9), ["one two", "three"]);
        assert_eq!(cut("one  two", 100, 9), ["one  two"]);
        assert_eq!(cut("äöüäöü", 5, 9), ["äö", "üä", "öü"]);
        assert_eq!(cut("a\r\n\r\nb\nc", 9, 2), ["a", "b…"]);
        assert_eq!(cut("a\tb\u{7}c\u{85}d", 9, 9), ["a bc", "d"]);
        assert_eq!(cut("12345678", 8, 1), ["12345678"]);
        assert_eq!(cut("123456789", 8, 1), ["12345…"]);
        assert_eq!(cut(" \u{2}\u{3} ", 9, 9), Vec::<String>::new());
    }

    #[test]
    fn names_are_compared_as_servers_do() {
        assert_eq!(folded("#Weir[]\\~"), "#weir{}|^");
    }

    proptest! {
        #[test]
        fn any_line_is_taken_apart_without_a_panic(text in "\\PC*|[:@ ]{0,5}[A-Z0-9]{0,4}[ :a-z]{0,40}") {
            if let Some(line) = Line::parse(&text) {
                prop_assert!(!line.command.is_empty() && line.params.len() <= PARAMS_MAX);
                line.told();
            }
        }

        #[test]
        fn what_was_written_is_read(
            from in "[a-z]{1,9}", command in "[A-Z]{3,8}",
            params in prop::collection::vec("[a-z#][a-z0-9:]{0,8}", 0..13), last in "[^\r\n\0]{0,40}",
        ) {
            let words: String = params.iter().map(|param| format!(" {param}")).collect();
            let line = Line::parse(&format!(":{from}!u@h {command}{words} :{last}")).unwrap();
            let expected: Vec<String> = params.into_iter().chain([last]).collect();
            prop_assert_eq!((line.from, line.command, line.params), (from, command, expected));
        }

        /// Invariants 1 and 2.
        #[test]
        fn nothing_that_is_said_breaks_its_line(
            text in any::<String>(), lines in 1_usize..5, nick in "[a-z]{1,69}",
            target in "#[a-z]{0,199}",
        ) {
            let room = room(&nick, "weir", "PRIVMSG", &target);
            prop_assert!(room > 100);
            let pieces = pieces(&text, room, lines);
            prop_assert!(pieces.len() <= lines);
            for piece in pieces {
                prop_assert!(!piece.is_empty());
                prop_assert!(!piece.contains(|c: char| c.is_control() && !sets_a_style(c)));
                let host = "h".repeat(HOST_BYTES_MAX);
                let passed_on = format!(":{nick}!~weir@{host} PRIVMSG {target} :{piece}\r\n");
                prop_assert!(passed_on.len() <= 512, "{}", passed_on.len());
            }
        }

        #[test]
        fn what_fits_is_said_as_it_is(words in prop::collection::vec("[a-zä-ü]{1,14}", 1..40)) {
            let text = words.join(" ");
            let said = pieces(&text, 60, 1000);
            prop_assert_eq!(said.join(" "), text);
            prop_assert!(said.iter().all(|piece| piece.len() <= 60));
        }

        #[test]
        fn a_target_can_not_become_a_command(text in any::<String>()) {
            if let Ok(target) = text.parse::<Target>() {
                let key = target.key.map(|key| key.read(Path::new("")).unwrap());
                let line = format!("JOIN {} {}", target.name, key.unwrap_or_default());
                prop_assert!(line.trim_end().split(' ').count() <= 3);
                prop_assert!(!line.contains(char::is_control) && !line.contains(','));
            }
        }
    }
}
