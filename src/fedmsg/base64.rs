//! Base64 as Python's `base64.b64decode` reads it.
//!
//! It passes over what is not of the alphabet (line ends, above all), and over all that comes after
//! the padding. The crates for base64 refuse either, and messages that fedmsg takes would fail.

/// The bytes, or none where Python has an error.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    // The last characters' bits, how many characters are in them, and padding right after them.
    let (mut bits, mut count, mut pads) = (0u32, 0, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' if count >= 2 => {
                pads += 1;
                if count + pads >= 4 {
                    return Some(bytes);
                }
                continue;
            }
            _ => continue,
        };
        pads = 0;
        bits = bits << 6 | u32::from(value);
        count = (count + 1) % 4;
        match count {
            2 => bytes.push((bits >> 4) as u8),
            3 => bytes.push((bits >> 2) as u8),
            0 => bytes.push(bits as u8),
            _ => {}
        }
    }
    (count == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each answer is Python's.
    #[test]
    fn it_reads_what_python_reads() {
        for (text, bytes) in [
            ("", Some(&b""[..])),
            ("YWJj", Some(b"abc")),
            ("YW\nJj\r\n", Some(b"abc")),
            ("Y*W.J-j", Some(b"abc")),
            ("YWI=", Some(b"ab")),
            ("YQ==", Some(b"a")),
            ("YQ=x=", Some(b"a\x0c")),
            ("YQ=\n=", Some(b"a")),
            ("YWI=YWJj", Some(b"ab")),
            ("=YWJj", Some(b"abc")),
            ("YWI", None),
            ("YQ=", None),
            ("Y", None),
            ("YWJjé", None),
        ] {
            assert_eq!(decode(text).as_deref(), bytes, "{text:?}");
        }
    }
}
