//! The text over which fedmsg signs: a message's JSON as Python writes it.
//!
//! That is `json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))` of Python 3.11,
//! byte for byte, or an error where Python has one. A parser of our own, because those there are
//! lose what is signed: serde_json refuses `NaN` and lone surrogates, and does not tell how a
//! number was written. What it takes and how it is written is held against the real one in
//! `tests/peers/fedmsg.rs`.
//!
//! 1. of keys that come twice in an object the last wins; keys stand in the order of code points
//! 2. integers keep all their digits; `-0` is `0`
//! 3. floats are the shortest text that reads back as the same number, with an exponent from 1e16
//!    on and below 1e-4; those too large are `Infinity`
//! 4. strings are ASCII; what is not, and 0x7f, is `\u` and four lower-case digits; surrogates
//!    without a partner stay what they are
//! 5. time and memory grow with the length of the text only, whatever is in it
//!
//! Promised to others: no panic, whatever the bytes.

use std::fmt;
use std::ops::Range;

/// Deeper than Python's recursion goes when fedmsg copies a message.
const DEPTH_MAX: usize = 500;
/// Python's limit (`sys.int_info.default_max_str_digits`).
const DIGITS_MAX: usize = 4300;
/// Positions are kept in 32 bits; a text of escapes is six times as long when it is written.
const TEXT_MAX: usize = 256 << 20;

/// Why a text is no JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    at: usize,
    what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no JSON: {} at byte {}", self.what, self.at)
    }
}

impl std::error::Error for Malformed {}

/// The canonical text of a JSON text.
///
/// # Errors
/// Where it stops being JSON, as Python reads it.
///
/// ```
/// use weir::fedmsg::canonical::canonical;
///
/// let text = canonical(r#"{"b": 1e16, "a": "é", "b": [1.0, -0]}"#.as_bytes())?;
/// assert_eq!(text, br#"{"a":"\u00e9","b":[1.0,0]}"#);
/// # Ok::<(), weir::fedmsg::canonical::Malformed>(())
/// ```
pub fn canonical(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let document = Document::parse(text)?;
    let mut out = Vec::with_capacity(document.flat.len() + document.keys.len());
    document.write(&mut out, 0..document.flat.len(), 0);
    Ok(out)
}

/// A text that has been read, and can be written with its members in order.
///
/// `flat` is the canonical text in the order of the original, without the keys; of an object there
/// is a `{` and the values. So only objects and their members need places of their own.
pub(super) struct Document {
    flat: Vec<u8>,
    keys: Vec<u8>,
    /// In the order in which they begin.
    objects: Vec<Object>,
    members: Vec<Member>,
}

struct Object {
    flat: Range<u32>,
    /// Its members, sorted; in `members`.
    members: Range<u32>,
    /// The first object that begins after its end.
    after: u32,
}

struct Member {
    /// By which it is sorted: UTF-8, and surrogates as if they were characters. In `keys`.
    name: Range<u32>,
    /// The key as it is written, without quotes. In `keys`.
    key: Range<u32>,
    value: Range<u32>,
    /// The first object that begins in or after the value.
    objects: u32,
}

/// What becomes of a member of the outermost object.
pub(super) enum Edit {
    Keep,
    LeaveOut,
    Instead(String),
}

fn wide(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

impl Document {
    pub(super) fn parse(text: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(text).map_err(|error| Malformed {
            at: error.valid_up_to(),
            what: "no UTF-8",
        })?;
        let mut parser = Parser {
            text,
            bytes: text.as_bytes(),
            at: 0,
            depth: 0,
            document: Document {
                flat: Vec::with_capacity(text.len()),
                keys: Vec::new(),
                objects: Vec::new(),
                members: Vec::new(),
            },
        };
        if text.len() > TEXT_MAX {
            return Err(parser.wrong("more than 256 MiB"));
        }
        parser.space();
        parser.value()?;
        parser.space();
        match parser.peek() {
            None => Ok(parser.document),
            Some(_) => Err(parser.wrong("more after the end")),
        }
    }

    /// The outermost object, if it is one.
    fn outermost(&self) -> Option<&Object> {
        self.objects.first().filter(|first| first.flat.start == 0)
    }

    pub(super) fn is_object(&self) -> bool {
        self.outermost().is_some()
    }

    /// The canonical text of a member of the outermost object; of a value with objects in it, a
    /// part. An empty object is `{`.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        let members = &self.members[wide(&self.outermost()?.members)];
        let found = members
            .binary_search_by(|member| self.keys[wide(&member.name)].cmp(name.as_bytes()))
            .ok()?;
        Some(&self.flat[wide(&members[found].value)])
    }

    /// A member of the outermost object, if it is a string, and one of characters.
    pub(super) fn string(&self, name: &str) -> Option<String> {
        serde_json::from_slice(self.get(name)?).ok()
    }

    /// The canonical text, with changes to members of the outermost object.
    pub(super) fn edited(&self, edit: impl Fn(&[u8]) -> Edit) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.flat.len() + self.keys.len());
        if let Some(object) = self.outermost() {
            self.write_object(&mut out, object, edit);
        }
        out
    }

    /// Writes part of the flat text, in which this object is the next.
    fn write(&self, out: &mut Vec<u8>, range: Range<usize>, mut next: usize) {
        let mut at = range.start;
        while let Some(object) = self.objects.get(next)
            && (object.flat.start as usize) < range.end
        {
            let place = wide(&object.flat);
            out.extend_from_slice(&self.flat[at..place.start]);
            self.write_object(out, object, |_| Edit::Keep);
            (at, next) = (place.end, object.after as usize);
        }
        out.extend_from_slice(&self.flat[at..range.end]);
    }

    fn write_object(&self, out: &mut Vec<u8>, object: &Object, edit: impl Fn(&[u8]) -> Edit) {
        out.push(b'{');
        let mut separator = false;
        for member in &self.members[wide(&object.members)] {
            let edit = edit(&self.keys[wide(&member.name)]);
            if matches!(edit, Edit::LeaveOut) {
                continue;
            }
            if std::mem::replace(&mut separator, true) {
                out.push(b',');
            }
            out.push(b'"');
            out.extend_from_slice(&self.keys[wide(&member.key)]);
            out.extend_from_slice(b"\":");
            match edit {
                Edit::Instead(text) => out.extend_from_slice(text.as_bytes()),
                _ => self.write(out, wide(&member.value), member.objects as usize),
            }
        }
        out.push(b'}');
    }
}

struct Parser<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    depth: usize,
    document: Document,
}

impl Parser<'_> {
    fn wrong(&self, what: &'static str) -> Malformed {
        Malformed { at: self.at, what }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Goes past a word, if it is there.
    fn word(&mut self, word: &str) -> bool {
        let there = self.bytes[self.at..].starts_with(word.as_bytes());
        if there {
            self.at += word.len();
        }
        there
    }

    fn value(&mut self) -> Result<(), Malformed> {
        match self.peek() {
            Some(b'"') => {
                let mut flat = std::mem::take(&mut self.document.flat);
                flat.push(b'"');
                self.string(&mut flat, put_escaped)?;
                flat.push(b'"');
                self.document.flat = flat;
                Ok(())
            }
            Some(b'{') => self.nested(Parser::object),
            Some(b'[') => self.nested(Parser::array),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for word in ["null", "true", "false", "NaN", "Infinity"] {
                    if self.word(word) {
                        self.document.flat.extend_from_slice(word.as_bytes());
                        return Ok(());
                    }
                }
                Err(self.wrong("expected a value"))
            }
        }
    }

    fn nested(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if self.depth == DEPTH_MAX {
            return Err(self.wrong("nested too deeply"));
        }
        self.depth += 1;
        self.at += 1;
        self.space();
        read(self)?;
        self.depth -= 1;
        Ok(())
    }

    fn array(&mut self) -> Result<(), Malformed> {
        self.document.flat.push(b'[');
        if self.word("]") {
            self.document.flat.push(b']');
            return Ok(());
        }
        loop {
            self.value()?;
            self.space();
            match self.peek() {
                Some(b',') => self.document.flat.push(b','),
                Some(b']') => {
                    self.at += 1;
                    self.document.flat.push(b']');
                    return Ok(());
                }
                _ => return Err(self.wrong("expected `,` or `]`")),
            }
            self.at += 1;
            self.space();
        }
    }

    fn object(&mut self) -> Result<(), Malformed> {
        let number = self.document.objects.len();
        let start = self.document.flat.len() as u32;
        self.document.objects.push(Object {
            flat: start..start,
            members: 0..0,
            after: 0,
        });
        self.document.flat.push(b'{');
        let mut members = Vec::new();
        if !self.word("}") {
            loop {
                let member = self.member()?;
                members.push(member);
                self.space();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break,
                    _ => return Err(self.wrong("expected `,` or `}`")),
                }
                self.space();
            }
            self.at += 1;
        }
        let document = &mut self.document;
        let name = |member: &Member| &document.keys[wide(&member.name)];
        // Stable: of those with the same name the last stays the last.
        members.sort_by(|a, b| name(a).cmp(name(b)));
        let first = document.members.len();
        for (index, member) in members.iter().enumerate() {
            let next = members.get(index + 1);
            if next.is_none_or(|next| name(next) != name(member)) {
                document.members.push(Member {
                    name: member.name.clone(),
                    key: member.key.clone(),
                    value: member.value.clone(),
                    objects: member.objects,
                });
            }
        }
        document.objects[number] = Object {
            flat: start..document.flat.len() as u32,
            members: first as u32..document.members.len() as u32,
            after: document.objects.len() as u32,
        };
        Ok(())
    }

    fn member(&mut self) -> Result<Member, Malformed> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong("expected a key in quotes"));
        }
        let begin = self.at;
        let mut keys = std::mem::take(&mut self.document.keys);
        let start = keys.len();
        self.string(&mut keys, put_wide)?;
        let name = start as u32..keys.len() as u32;
        let mut key = name.clone();
        if !keys[start..].iter().all(|&byte| is_plain(byte)) {
            self.at = begin;
            self.string(&mut keys, put_escaped)?;
            key = name.end..keys.len() as u32;
        }
        self.document.keys = keys;
        self.space();
        if !self.word(":") {
            return Err(self.wrong("expected `:`"));
        }
        self.space();
        let start = self.document.flat.len() as u32;
        let objects = self.document.objects.len() as u32;
        self.value()?;
        Ok(Member {
            name,
            key,
            value: start..self.document.flat.len() as u32,
            objects,
        })
    }

    /// Reads a string from its quote on; what is not plain goes through `put`.
    fn string(&mut self, out: &mut Vec<u8>, put: fn(&mut Vec<u8>, u32)) -> Result<(), Malformed> {
        self.at += 1;
        loop {
            let rest = &self.bytes[self.at..];
            let plain = rest.iter().take_while(|&&byte| is_plain(byte)).count();
            out.extend_from_slice(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => put(out, self.escape()?),
                Some(0..=0x1f) => return Err(self.wrong("a control character in a string")),
                _ => match self.text[self.at..].chars().next() {
                    Some(char) => {
                        put(out, u32::from(char));
                        self.at += char.len_utf8();
                    }
                    None => return Err(self.wrong("a string without an end")),
                },
            }
        }
    }

    fn escape(&mut self) -> Result<u32, Malformed> {
        let escaped = self.bytes.get(self.at + 1).copied();
        let code = match escaped {
            Some(b'"' | b'\\' | b'/') => u32::from(escaped.unwrap_or_default()),
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => 0x0a,
            Some(b'r') => 0x0d,
            Some(b't') => 0x09,
            Some(b'u') => {
                let high = self.hex()?;
                if !(0xd800..0xdc00).contains(&high) || !self.bytes[self.at..].starts_with(b"\\u") {
                    return Ok(high);
                }
                let begin = self.at;
                let low = self.hex()?;
                if (0xdc00..0xe000).contains(&low) {
                    return Ok(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
                }
                self.at = begin;
                return Ok(high);
            }
            _ => return Err(self.wrong("an unknown escape")),
        };
        self.at += 2;
        Ok(code)
    }

    /// The four digits of a `\u`.
    fn hex(&mut self) -> Result<u32, Malformed> {
        let digits = self.text.get(self.at + 2..self.at + 6);
        let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let code = code.ok_or_else(|| self.wrong("expected four digits after \\u"))?;
        self.at += 6;
        Ok(code)
    }

    fn digits(&mut self) -> usize {
        let rest = &self.bytes[self.at..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        digits
    }

    fn number(&mut self) -> Result<(), Malformed> {
        let begin = self.at;
        if self.word("-") && self.word("Infinity") {
            self.document.flat.extend_from_slice(b"-Infinity");
            return Ok(());
        }
        let digits = match self.word("0") {
            true => 1,
            false => self.digits(),
        };
        if digits == 0 {
            return Err(self.wrong("expected a digit"));
        }
        let whole = self.at;
        // A part that is not complete does not belong to the number, and then is what is wrong.
        if self.word(".") && self.digits() == 0 {
            self.at = whole;
        }
        let before = self.at;
        if self.word("e") || self.word("E") {
            let _ = self.word("+") || self.word("-");
            if self.digits() == 0 {
                self.at = before;
            }
        }
        let text = &self.text[begin..self.at];
        if self.at == whole {
            if digits > DIGITS_MAX {
                self.at = begin;
                return Err(self.wrong("an integer of more than 4300 digits"));
            }
            let text = if text == "-0" { "0" } else { text };
            self.document.flat.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        match text.parse::<f64>() {
            Ok(number) => {
                let text = float(number);
                self.document.flat.extend_from_slice(text.as_bytes());
                Ok(())
            }
            Err(_) => Err(self.wrong("expected a number")),
        }
    }
}

/// Whether a byte of a string stands for itself, in JSON and in the canonical text.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// As UTF-8, where surrogates too have three bytes: bytes then sort as code points do.
fn put_wide(out: &mut Vec<u8>, code: u32) {
    match char::from_u32(code) {
        Some(char) => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        None => out.extend([
            0xe0 | (code >> 12) as u8,
            0x80 | (code >> 6 & 0x3f) as u8,
            0x80 | (code & 0x3f) as u8,
        ]),
    }
}

fn put_escaped(out: &mut Vec<u8>, code: u32) {
    let mut unit = |unit: u32| {
        out.extend_from_slice(b"\\u");
        for shift in [12, 8, 4, 0] {
            out.push(b"0123456789abcdef"[(unit >> shift & 0xf) as usize]);
        }
    };
    match code {
        0x10000.. => {
            let code = code - 0x10000;
            unit(0xd800 + (code >> 10));
            unit(0xdc00 + (code & 0x3ff));
        }
        0x22 => out.extend_from_slice(b"\\\""),
        0x5c => out.extend_from_slice(b"\\\\"),
        0x08 => out.extend_from_slice(b"\\b"),
        0x0c => out.extend_from_slice(b"\\f"),
        0x0a => out.extend_from_slice(b"\\n"),
        0x0d => out.extend_from_slice(b"\\r"),
        0x09 => out.extend_from_slice(b"\\t"),
        0x20..=0x7e => out.push(code as u8),
        _ => unit(code),
    }
}

/// A float as Python's `repr` has it.
fn float(number: f64) -> String {
    if number.is_infinite() {
        return if number < 0.0 {
            "-Infinity"
        } else {
            "Infinity"
        }
        .into();
    }
    // As few digits as Rust's. Of two texts equally near Python takes the one with the even digit,
    // as Rust does only when it is told how many digits there are to be. Next to a power of two
    // that may be another number.
    let shortest = format!("{number:e}");
    let mantissa = shortest.split('e').next().unwrap_or_default();
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
    let even = format!("{number:.*e}", digits - 1);
    let text = match even.parse() == Ok(number) {
        true => even,
        false => shortest,
    };
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits),
    };
    let digits = digits.replace('.', "");
    match usize::try_from(exponent) {
        Err(_) => {
            let zeros = "0".repeat(exponent.unsigned_abs() as usize - 1);
            format!("{sign}0.{zeros}{digits}")
        }
        Ok(exponent) if digits.len() <= exponent + 1 => {
            let zeros = "0".repeat(exponent + 1 - digits.len());
            format!("{sign}{digits}{zeros}.0")
        }
        Ok(exponent) => {
            let (whole, part) = digits.split_at(exponent + 1);
            format!("{sign}{whole}.{part}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> String {
        match canonical(text.as_bytes()) {
            Ok(text) => String::from_utf8(text).unwrap(),
            Err(error) => error.to_string(),
        }
    }

    /// Each answer is Python's.
    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (text, written) in [
            ("-0", "0"),
            ("-0.0", "-0.0"),
            ("0", "0"),
            ("1700000000", "1700000000"),
            ("1700000000.0", "1700000000.0"),
            (
                "123456789012345678901234567890",
                "123456789012345678901234567890",
            ),
            ("1e15", "1000000000000000.0"),
            ("1e16", "1e+16"),
            ("9999999999999998.0", "9999999999999998.0"),
            ("1e-4", "0.0001"),
            ("0.00001", "1e-05"),
            ("1.5e-7", "1.5e-07"),
            ("-12.5E1", "-125.0"),
            ("1e999", "Infinity"),
            ("-1e999", "-Infinity"),
            ("1e-999", "0.0"),
            ("NaN", "NaN"),
            ("-Infinity", "-Infinity"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            // Halfway between two: the even digit.
            ("611988145942395.25", "611988145942395.2"),
            ("957331380368600.25", "957331380368600.2"),
            ("1.0e0", "1.0"),
            ("0e99999999999999999999", "0.0"),
        ] {
            assert_eq!(of(text), written, "{text}");
        }
    }

    #[test]
    fn strings_are_ascii_and_surrogates_stay() {
        for (text, written) in [
            (r#""\/ \u0041\b\f\n\r\t""#, r#""/ A\b\f\n\r\t""#),
            ("\"\u{7f}é€\"", r#""\u007f\u00e9\u20ac""#),
            ("\"😀\"", r#""\ud83d\ude00""#),
            (r#""\uD83D\uDE00""#, r#""\ud83d\ude00""#),
            (r#""\ud800""#, r#""\ud800""#),
            (r#""\ude00\ud83d""#, r#""\ude00\ud83d""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ud83d\ud83d\ude00""#),
            (r#""\ud800\u0041""#, r#""\ud800A""#),
        ] {
            assert_eq!(of(text), written, "{text}");
        }
    }

    #[test]
    fn keys_are_sorted_by_code_points_and_the_last_of_two_wins() {
        // As UTF-16 the last two would change places.
        let text = r#"{"\ud83d\ude00":1,"\uffff":2,"\ud800":3,"é":4,"b":5,"a":6,"":7,"b":{"c":8}}"#;
        let written =
            r#"{"":7,"a":6,"b":{"c":8},"\u00e9":4,"\ud800":3,"\uffff":2,"\ud83d\ude00":1}"#;
        assert_eq!(of(text), written);
        assert_eq!(of(r#"{"a":1,"\u0061":2}"#), r#"{"a":2}"#);
        assert_eq!(
            of(r#" [ { "b" : [ {} , { "d":1, "c":{"z":{},"y":[]} } ], "a" : "{" } , {} ] "#),
            r#"[{"a":"{","b":[{},{"c":{"y":[],"z":{}},"d":1}]},{}]"#
        );
    }

    #[test]
    fn what_python_refuses_is_refused_and_the_place_is_told() {
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "01",
            "-",
            "1.",
            "1e",
            "+1",
            ".5",
            "nan",
            "-NaN",
            "tru",
            "\"\t\"",
            "\"\u{0}\"",
            r#""\x41""#,
            r#""\u12""#,
            r#""\u+123""#,
            "1 2",
            "\u{feff}1",
            "{a:1}",
            "\u{a0}1",
            "[1 2]",
            "\"",
            r#""\"#,
        ] {
            assert!(canonical(text.as_bytes()).is_err(), "{text:?}");
        }
        assert_eq!(of("[1, x]"), "no JSON: expected a value at byte 4");
        assert_eq!(canonical(b"[\"\xff\"]").unwrap_err().at, 2);
        let digits = |count| canonical("1".repeat(count).as_bytes()).is_ok();
        assert_eq!((digits(4300), digits(4301)), (true, false));
        let nested = |depth| {
            let text = "[{\"a\":".repeat(depth / 2) + "1" + &"}]".repeat(depth / 2);
            canonical(text.as_bytes()).is_ok()
        };
        assert_eq!((nested(DEPTH_MAX), nested(DEPTH_MAX + 2)), (true, false));
        assert!(canonical("[".repeat(1 << 20).as_bytes()).is_err());
        let objects = "{\"a\":".repeat(DEPTH_MAX) + "1" + &"}".repeat(DEPTH_MAX);
        assert_eq!(of(&objects), objects);
    }

    #[test]
    fn members_can_be_left_out_and_replaced() {
        let document = Document::parse(br#"{"c":{"x":{}},"b":{},"a":[{"b":1}]}"#).unwrap();
        let text = document.edited(|key| match key {
            b"a" => Edit::Instead("7".into()),
            b"c" => Edit::LeaveOut,
            _ => Edit::Keep,
        });
        assert_eq!(text, br#"{"a":7,"b":{}}"#);
        assert_eq!(document.get("b"), Some(&b"{"[..]));
        assert_eq!(document.get("x"), None);
        assert!(!Document::parse(b"[{}]").unwrap().is_object());
    }

    /// Texts that are JSON more often than not.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<f64>().prop_map(|n| format!("{n:e}").replace("inf", "Infinity")),
            "-?[0-9]{1,20}(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
            string(),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6)
                    .prop_map(|values| format!("[ {}]", values.join(" ,"))),
                prop::collection::vec((string(), inner), 0..6).prop_map(|members| {
                    let members = members
                        .iter()
                        .map(|(key, value)| format!("{key}:\n{value}"));
                    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    fn string() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            "[ a-c/]{0,3}",
            "\\\\u[dD][89a-fA-F][0-9a-f]{2}",
            "\\\\u[0-9a-fA-F]{4}",
            "\\\\[\"\\\\/bfnrt]",
            "[\u{7f}-\u{ffff}\u{1f600}]",
        ];
        prop::collection::vec(part, 0..5).prop_map(|parts| format!("\"{}\"", parts.concat()))
    }

    proptest! {
        /// Whatever the bytes: no panic, and what comes out is its own canonical text.
        #[test]
        fn canonical_text_is_canonical(text in json(), cut in any::<prop::sample::Index>(), byte: u8) {
            if let Ok(once) = canonical(text.as_bytes()) {
                prop_assert!(once.is_ascii());
                prop_assert_eq!(&canonical(&once).unwrap(), &once);
            }
            let mut bytes = text.into_bytes();
            let at = cut.index(bytes.len());
            bytes[at] = byte;
            if let Ok(once) = canonical(&bytes) {
                prop_assert_eq!(&canonical(&once).unwrap(), &once);
            }
            let _ = canonical(&bytes[..at]);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = canonical(&bytes);
        }

        #[test]
        fn floats_read_back_as_the_same_number(bits: u64) {
            let number = f64::from_bits(bits);
            if number.is_finite() {
                let text = float(number);
                prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), bits, "{}", text);
                prop_assert!(text.contains(['.', 'e']));
            }
        }
    }
}
