//! What a child writes to standard error, line by line.
//!
//! Invariants:
//!
//! 1. A line is told in parts of no more than [`LINE_MAX`] of its bytes, control characters escaped.
//! 2. No more than [`LINES_MAX`] lines are told in a second; how many were left out is told, too.
//! 3. The last line is kept: it mostly says why a child ended.

use std::time::{Duration, Instant};

/// What is longer is told in parts.
const LINE_MAX: usize = 4 << 10;
/// So many lines are told in a [`WINDOW`].
const LINES_MAX: u32 = 100;
const WINDOW: Duration = Duration::from_secs(1);
/// So much of the last line is kept.
const LAST_MAX: usize = 300;

/// Something for the log.
#[derive(Debug, PartialEq)]
pub(crate) enum Told<'l> {
    /// A line, or a part of one.
    Line(&'l str),
    /// So many lines were not told.
    LeftOut(u64),
}

/// Takes standard error apart into lines and tells them.
pub(crate) struct Stderr {
    tell: Box<dyn FnMut(Told<'_>) + Send>,
    line: Vec<u8>,
    last: String,
    /// When the present window began, and how many lines were told in it.
    since: Instant,
    told: u32,
    left_out: u64,
}

impl Stderr {
    pub(crate) fn new(tell: impl FnMut(Told<'_>) + Send + 'static) -> Self {
        Stderr {
            tell: Box::new(tell),
            line: Vec::new(),
            last: String::new(),
            since: Instant::now(),
            told: 0,
            left_out: 0,
        }
    }

    /// Takes what was read at `now`.
    pub(crate) fn take(&mut self, bytes: &[u8], now: Instant) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (mut text, is_ended) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            while let Some((begin, rest)) = text.split_at_checked(LINE_MAX - self.line.len())
                && !rest.is_empty()
            {
                self.line.extend_from_slice(begin);
                self.end_line(now);
                text = rest;
            }
            self.line.extend_from_slice(text);
            if is_ended {
                self.end_line(now);
            }
        }
    }

    /// Tells how many lines were left out, when their second is over.
    pub(crate) fn catch_up(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.tell_left_out();
        }
    }

    /// Tells what is left: there is no more.
    pub(crate) fn flush(&mut self, now: Instant) {
        if !self.line.is_empty() {
            self.end_line(now);
        }
        self.tell_left_out();
    }

    /// The last line that was not empty.
    pub(crate) fn last(&self) -> &str {
        &self.last
    }

    fn end_line(&mut self, now: Instant) {
        let text = printable(self.line.trim_ascii_end());
        self.line.clear();
        if text.is_empty() {
            return;
        }
        self.catch_up(now);
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.since = now;
            self.told = 0;
        }
        match self.told < LINES_MAX {
            true => {
                self.told += 1;
                (self.tell)(Told::Line(&text));
            }
            false => self.left_out += 1,
        }
        self.last = text;
        let end = self.last.floor_char_boundary(LAST_MAX);
        self.last.truncate(end);
    }

    fn tell_left_out(&mut self) {
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            (self.tell)(Told::LeftOut(left_out));
        }
    }
}

/// Text that can't move the cursor of whoever reads it.
pub(crate) fn printable(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for c in String::from_utf8_lossy(line).chars() {
        match c.is_control() && c != '\t' {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    type Kept = Arc<Mutex<Vec<String>>>;

    fn keeping() -> (Stderr, Kept) {
        let kept = Kept::default();
        let to = kept.clone();
        let stderr = Stderr::new(move |told| {
            to.lock().unwrap().push(match told {
                Told::Line(line) => line.to_owned(),
                Told::LeftOut(lines) => format!("({lines} left out)"),
            });
        });
        (stderr, kept)
    }

    #[test]
    fn a_line_is_told_in_parts_without_control_characters() {
        let (mut stderr, kept) = keeping();
        let now = stderr.since;
        stderr.take(b"one\r\n\n\x1b[31mtwo\ttabs\n\xff", now);
        stderr.take(&[b'x'; 5000], now);
        assert_eq!(kept.lock().unwrap()[..2], ["one", "\\u{1b}[31mtwo\ttabs"]);
        stderr.take(b"end\n", now);
        let lengths: Vec<usize> = kept.lock().unwrap()[2..].iter().map(String::len).collect();
        // The byte that is no UTF-8 is shown as three.
        assert_eq!(lengths, [LINE_MAX + 2, 5001 + 3 - LINE_MAX]);
        assert!(stderr.last().ends_with("xxx"));
        assert_eq!(stderr.last().len(), LAST_MAX);
        stderr.take(b"no end", now);
        stderr.flush(now);
        assert_eq!(stderr.last(), "no end");
    }

    #[test]
    fn more_lines_than_allowed_are_counted() {
        let (mut stderr, kept) = keeping();
        let now = stderr.since;
        stderr.take(&b"x\n".repeat(250), now);
        assert_eq!(kept.lock().unwrap().len(), 100);
        stderr.take(b"later\n", now + WINDOW);
        assert_eq!(kept.lock().unwrap()[100..], ["(150 left out)", "later"]);
        stderr.take(&b"y\n".repeat(100), now + WINDOW);
        stderr.catch_up(now + WINDOW);
        assert_eq!(kept.lock().unwrap().len(), 201);
        stderr.catch_up(now + 2 * WINDOW);
        assert_eq!(kept.lock().unwrap()[201..], ["(1 left out)"]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_it_comes(
            pieces in prop::collection::vec("[a-z]{0,6000}\n?", 0..12),
        ) {
            let (mut stderr, kept) = keeping();
            let mut now = stderr.since;
            for piece in &pieces {
                now += WINDOW;
                stderr.take(piece.as_bytes(), now);
                prop_assert!(stderr.line.len() <= LINE_MAX);
            }
            stderr.flush(now);
            let kept = kept.lock().unwrap();
            prop_assert!(kept.iter().all(|line| line.len() <= LINE_MAX));
            prop_assert_eq!(kept.concat(), pieces.concat().replace('\n', ""));
        }
    }
}
