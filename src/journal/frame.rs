//! A frame: one batch as bytes, and back.
//!
//! Pure functions of bytes; files, time and locks are left to the others, so that this file is what
//! the fuzzer gets to see (`tests/fuzz`). All integers are little-endian:
//!
//! ```text
//! head    marker u32 · head crc u32 · body length u32 · body crc u32
//!         first sequence number u64 · count u32 · flags u16 · source u16 · received u64 (ns)
//! record  topic length u32 · payload length u32 · [source's number u64] · topic · payload
//! footer  a frame without records whose body is
//!         end u64 · first ns u64 · last ns u64 · topics u32 (u32::MAX: no table)
//!         then for each topic: length u32 · messages u64 · bytes u64 · topic
//! trailer the footer's offset u64 · crc u32 · magic 8 bytes: the last bytes of a sealed file
//! ```
//!
//! 1. The checksum of a head begins with the frame's *place*: the segment's base and the offset. So
//!    a frame is valid only where it was written: neither a block that a disk put elsewhere nor a
//!    payload that happens to hold a piece of a journal is ever taken for a frame.
//! 2. The head has a checksum of its own, so a length is believed before its body has been read,
//!    and behind a damaged body the next frame is found at once.
//! 3. No input makes these functions panic or allocate more than the input's size.

use std::ops::Range;

/// Bytes of a head.
pub(crate) const HEAD: usize = 40;
/// Bytes of a trailer.
pub(crate) const TRAILER: usize = 20;
/// Stands at the beginning of each frame; no byte sequence of UTF-8.
pub(crate) const MARKER: [u8; 4] = [0xF7, b'w', b'f', 0xE1];
const TRAILER_MAGIC: [u8; 8] = *b"weirfoot";

/// Flag: the frame is the footer of a sealed segment.
const FOOTER: u16 = 1;
/// Flag: each record has the number that its source gave it.
const SOURCE_SEQ: u16 = 2;

/// What stands for "none" among the sources' numbers.
const NO_SOURCE_SEQ: u64 = u64::MAX;
const NO_TABLE: u32 = u32::MAX;

/// More topics than this have no table in the footer.
pub(crate) const TABLE_TOPICS: usize = 4096;
/// Nor have topics that take more bytes than this.
pub(crate) const TABLE_BYTES: usize = 256 << 10;
/// Bytes of a topic's entry in the table without the topic itself.
pub(crate) const TABLE_ENTRY: usize = 20;

/// One message on its way into the journal.
#[derive(Clone, Copy, Debug)]
pub struct Record<'m> {
    /// The routing name.
    pub topic: &'m str,
    /// The message's bytes.
    pub payload: &'m [u8],
    /// The number that the message's source gave it, if sources number theirs.
    pub source_seq: Option<u64>,
}

/// Where a frame stands, as the first value of its head's checksum.
fn place(base: u64, offset: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&base.to_le_bytes()), &offset.to_le_bytes())
}

/// A message that does not fit into a frame: 4 GiB.
#[derive(Debug)]
pub(crate) struct TooLarge;

/// Appends a batch to `out` as frames of about `split` bytes; answers how many messages it has.
///
/// The frames are not valid before they are [`stamp`]ed with their place.
pub(crate) fn encode<'m>(
    out: &mut Vec<u8>,
    first: u64,
    source: u16,
    received_ns: u64,
    records: impl Iterator<Item = Record<'m>> + Clone,
    split: usize,
) -> Result<u32, TooLarge> {
    let numbered = records.clone().any(|record| record.source_seq.is_some());
    let mut head = Head {
        first,
        count: 0,
        flags: if numbered { SOURCE_SEQ } else { 0 },
        source,
        received_ns,
        body_len: 0,
        body_crc: 0,
    };
    let mut start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    for record in records {
        let size = record.topic.len() + record.payload.len() + 16;
        let body = out.len() - start - HEAD;
        if head.count > 0 && body + size > split {
            head.finish(out, start)?;
            head.first = head.end();
            head.count = 0;
            start = out.len();
            out.extend_from_slice(&[0; HEAD]);
        }
        let (topic, payload) = (record.topic.len(), record.payload.len());
        let topic = u32::try_from(topic).map_err(|_| TooLarge)?;
        let payload = u32::try_from(payload).map_err(|_| TooLarge)?;
        out.extend_from_slice(&topic.to_le_bytes());
        out.extend_from_slice(&payload.to_le_bytes());
        if numbered {
            let seq = record.source_seq.unwrap_or(NO_SOURCE_SEQ);
            out.extend_from_slice(&seq.to_le_bytes());
        }
        out.extend_from_slice(record.topic.as_bytes());
        out.extend_from_slice(record.payload);
        head.count += 1;
    }
    head.finish(out, start)?;
    Ok((head.end() - first) as u32)
}

/// Makes the frames in `bytes` valid for this place of a segment.
pub(crate) fn stamp(mut bytes: &mut [u8], base: u64, mut offset: u64) {
    while bytes.len() >= HEAD {
        let frame = (HEAD + u32_at(bytes, 8) as usize).min(bytes.len());
        let crc = crc32c::crc32c_append(place(base, offset), &bytes[8..HEAD]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes = &mut bytes[frame..];
        offset += frame as u64;
    }
}

/// What a frame says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// The sequence number of its first message.
    pub(crate) first: u64,
    /// How many messages it has.
    pub(crate) count: u32,
    flags: u16,
    /// The number of the backend that its messages came from.
    #[allow(dead_code)] // read by what replays a journal by source
    pub(crate) source: u16,
    /// When the hub took its messages in.
    pub(crate) received_ns: u64,
    /// Bytes behind the head.
    pub(crate) body_len: u32,
    body_crc: u32,
}

impl Head {
    /// Reads the head at the beginning of `bytes`, if there is a valid one for this place.
    pub(crate) fn read(bytes: &[u8], base: u64, offset: u64) -> Option<Head> {
        let bytes = bytes.get(..HEAD)?;
        if bytes[..4] != MARKER {
            return None;
        }
        let crc = crc32c::crc32c_append(place(base, offset), &bytes[8..]);
        let head = Head {
            body_len: u32_at(bytes, 8),
            body_crc: u32_at(bytes, 12),
            first: u64_at(bytes, 16),
            count: u32_at(bytes, 24),
            flags: u16_at(bytes, 28),
            source: u16_at(bytes, 30),
            received_ns: u64_at(bytes, 32),
        };
        let sound = crc == u32_at(bytes, 4) && head.first.checked_add(head.count.into()).is_some();
        sound.then_some(head)
    }

    /// The sequence number behind its last message.
    pub(crate) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Whether these bytes are its body, undamaged.
    pub(crate) fn vouches_for(&self, body: &[u8]) -> bool {
        body.len() == self.body_len as usize && crc32c::crc32c(body) == self.body_crc
    }

    /// Whether it is a footer.
    pub(crate) fn is_footer(&self) -> bool {
        self.flags & FOOTER != 0
    }

    /// The record that begins at this offset of the body.
    ///
    /// A body with a valid checksum has what its head says; it is checked all the same.
    pub(crate) fn record<'b>(&self, body: &'b [u8], at: usize) -> Option<Entry<'b>> {
        let head = body.get(at..)?;
        let numbered = self.flags & SOURCE_SEQ != 0;
        let fixed = if numbered { 16 } else { 8 };
        let head = head.get(..fixed)?;
        let topic = at + fixed;
        let payload = topic.checked_add(u32_at(head, 0) as usize)?;
        let end = payload.checked_add(u32_at(head, 4) as usize)?;
        let seq = numbered.then(|| u64_at(head, 8));
        if end > body.len() {
            return None;
        }
        Some(Entry {
            topic: std::str::from_utf8(&body[topic..payload]).ok()?,
            payload: payload..end,
            source_seq: seq.filter(|seq| *seq != NO_SOURCE_SEQ),
        })
    }

    fn finish(&mut self, out: &mut [u8], start: usize) -> Result<(), TooLarge> {
        let (head, body) = out[start..].split_at_mut(HEAD);
        self.body_len = u32::try_from(body.len()).map_err(|_| TooLarge)?;
        self.body_crc = crc32c::crc32c(body);
        head[..4].copy_from_slice(&MARKER);
        head[8..12].copy_from_slice(&self.body_len.to_le_bytes());
        head[12..16].copy_from_slice(&self.body_crc.to_le_bytes());
        head[16..24].copy_from_slice(&self.first.to_le_bytes());
        head[24..28].copy_from_slice(&self.count.to_le_bytes());
        head[28..30].copy_from_slice(&self.flags.to_le_bytes());
        head[30..32].copy_from_slice(&self.source.to_le_bytes());
        head[32..40].copy_from_slice(&self.received_ns.to_le_bytes());
        Ok(())
    }
}

/// One record of a body; `payload.end` is where the next one begins.
#[derive(Debug)]
pub(crate) struct Entry<'b> {
    pub(crate) topic: &'b str,
    pub(crate) payload: Range<usize>,
    #[allow(dead_code)] // read by what replays a journal by source
    pub(crate) source_seq: Option<u64>,
}

impl Entry<'_> {
    /// What [`weir_consumer::Message::size`] will say of it.
    pub(crate) fn size(&self) -> usize {
        self.topic.len() + self.payload.len()
    }
}

/// What a sealed segment says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Footer {
    /// The sequence number behind its last message.
    pub(crate) end: u64,
    /// The earliest time of intake in it.
    pub(crate) first_ns: u64,
    /// The latest.
    pub(crate) last_ns: u64,
    /// Its topics; none when they are too many.
    pub(crate) table: Option<Vec<Tally>>,
}

/// What a segment has of one topic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tally {
    pub(crate) topic: Box<str>,
    pub(crate) messages: u64,
    /// Of topics and payloads.
    pub(crate) bytes: u64,
}

impl Footer {
    /// The footer's frame and the trailer, for this place.
    pub(crate) fn encode(&self, base: u64, offset: u64) -> Vec<u8> {
        let mut out = vec![0; HEAD];
        out.extend_from_slice(&self.end.to_le_bytes());
        out.extend_from_slice(&self.first_ns.to_le_bytes());
        out.extend_from_slice(&self.last_ns.to_le_bytes());
        let table = self.table.as_deref();
        let topics = table.map_or(NO_TABLE, |table| table.len() as u32);
        out.extend_from_slice(&topics.to_le_bytes());
        for tally in table.unwrap_or_default() {
            out.extend_from_slice(&(tally.topic.len() as u32).to_le_bytes());
            out.extend_from_slice(&tally.messages.to_le_bytes());
            out.extend_from_slice(&tally.bytes.to_le_bytes());
            out.extend_from_slice(tally.topic.as_bytes());
        }
        let mut head = Head {
            first: self.end,
            count: 0,
            flags: FOOTER,
            source: 0,
            received_ns: self.last_ns,
            body_len: 0,
            body_crc: 0,
        };
        // It has at most 256 KiB.
        let _ = head.finish(&mut out, 0);
        stamp(&mut out, base, offset);
        let at = offset.to_le_bytes();
        out.extend_from_slice(&at);
        let crc = crc32c::crc32c_append(place(base, offset), &at);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&TRAILER_MAGIC);
        out
    }

    /// Where the last bytes of a file say that its footer begins.
    pub(crate) fn offset(trailer: &[u8], base: u64) -> Option<u64> {
        let trailer = trailer.get(..TRAILER)?;
        let offset = u64_at(trailer, 0);
        let crc = crc32c::crc32c_append(place(base, offset), &trailer[..8]);
        (trailer[12..] == TRAILER_MAGIC && crc == u32_at(trailer, 8)).then_some(offset)
    }

    /// Reads the body of a footer.
    pub(crate) fn read(body: &[u8]) -> Option<Footer> {
        let fixed = body.get(..28)?;
        let topics = u32_at(fixed, 24);
        let mut rest = &body[28..];
        let mut table = None;
        if topics != NO_TABLE {
            if topics as usize > TABLE_TOPICS {
                return None;
            }
            let mut tallies = Vec::new();
            for _ in 0..topics {
                let (entry, after) = rest.split_at_checked(TABLE_ENTRY)?;
                let (topic, after) = after.split_at_checked(u32_at(entry, 0) as usize)?;
                tallies.push(Tally {
                    topic: std::str::from_utf8(topic).ok()?.into(),
                    messages: u64_at(entry, 4),
                    bytes: u64_at(entry, 12),
                });
                rest = after;
            }
            table = Some(tallies);
        }
        rest.is_empty().then_some(Footer {
            end: u64_at(fixed, 0),
            first_ns: u64_at(fixed, 8),
            last_ns: u64_at(fixed, 16),
            table,
        })
    }
}

/// Little-endian integers; the caller has made sure that the bytes are there.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Message = (String, Vec<u8>, Option<u64>);

    /// Reads a frame as its readers do; none when it is not valid.
    fn decode(bytes: &[u8], base: u64, offset: u64) -> Option<(Head, Vec<Message>)> {
        let head = Head::read(bytes, base, offset)?;
        let body = bytes.get(HEAD..HEAD + head.body_len as usize)?;
        if !head.vouches_for(body) {
            return None;
        }
        let (mut at, mut messages) = (0, Vec::new());
        for _ in 0..head.count {
            let entry = head.record(body, at)?;
            let payload = body[entry.payload.clone()].to_vec();
            messages.push((entry.topic.to_owned(), payload, entry.source_seq));
            at = entry.payload.end;
        }
        assert_eq!(at, if head.is_footer() { 0 } else { body.len() });
        Some((head, messages))
    }

    fn encoded(messages: &[Message], split: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let records = messages.iter().map(|(topic, payload, source_seq)| Record {
            topic,
            payload,
            source_seq: *source_seq,
        });
        let count = encode(&mut bytes, 7, 3, 99, records, split).unwrap();
        assert_eq!(count as usize, messages.len());
        stamp(&mut bytes, 5, 1000);
        bytes
    }

    fn batch() -> impl Strategy<Value = Vec<Message>> {
        let payload = proptest::collection::vec(any::<u8>(), 0..50);
        // The largest number stands for none.
        let seq = proptest::option::of(0..u64::MAX);
        proptest::collection::vec(("\\PC{0,9}", payload, seq), 0..20)
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(messages in batch(), split in 0..500_usize) {
            let bytes = encoded(&messages, split);
            let (mut rest, mut next) = (&bytes[..], 7);
            let mut got = Vec::new();
            while !rest.is_empty() {
                let offset = 1000 + (bytes.len() - rest.len()) as u64;
                let (head, part) = decode(rest, 5, offset).unwrap();
                prop_assert_eq!((head.first, head.source, head.received_ns), (next, 3, 99));
                next = head.end();
                got.extend(part);
                rest = &rest[HEAD + head.body_len as usize..];
            }
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn a_frame_is_valid_only_undamaged_and_in_its_place(
            messages in batch(), place: usize, bit in 0..8_u8,
            base in 4..7_u64, offset in 999..1002_u64
        ) {
            let mut bytes = encoded(&messages, usize::MAX);
            prop_assert_eq!(decode(&bytes, base, offset).is_some(), (base, offset) == (5, 1000));
            let place = place % bytes.len();
            bytes[place] ^= 1 << bit;
            prop_assert!(decode(&bytes, 5, 1000).is_none());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            mend: bool, flags in 0..4_u16
        ) {
            if mend && bytes.len() >= HEAD {
                // Checksums that hold, over what makes no sense.
                let body = bytes.len() - HEAD;
                let crc = crc32c::crc32c(&bytes[HEAD..]);
                bytes[..4].copy_from_slice(&MARKER);
                bytes[8..12].copy_from_slice(&(body as u32).to_le_bytes());
                bytes[12..16].copy_from_slice(&crc.to_le_bytes());
                bytes[28..30].copy_from_slice(&flags.to_le_bytes());
                stamp(&mut bytes, 5, 1000);
            }
            if let Some(head) = Head::read(&bytes, 5, 1000) {
                let body = &bytes[HEAD..];
                for at in 0..=body.len() + 1 {
                    if let Some(entry) = head.record(body, at) {
                        prop_assert!(entry.payload.end <= body.len());
                    }
                }
            }
            let _ = Footer::read(&bytes);
            let _ = Footer::offset(&bytes, 5);
        }

        #[test]
        fn a_footer_is_read_as_it_was_written(
            end: u64, times: (u64, u64),
            table in proptest::option::of(
                proptest::collection::vec(("\\PC{0,9}", any::<(u64, u64)>()), 0..9)
            )
        ) {
            let tally = |(topic, (messages, bytes)): (String, (u64, u64))| Tally {
                topic: topic.into(),
                messages,
                bytes,
            };
            let footer = Footer {
                end,
                first_ns: times.0,
                last_ns: times.1,
                table: table.map(|table| table.into_iter().map(tally).collect()),
            };
            let bytes = footer.encode(5, 1000);
            let (frame, trailer) = bytes.split_at(bytes.len() - TRAILER);
            prop_assert_eq!(Footer::offset(trailer, 5), Some(1000));
            prop_assert_eq!(Footer::offset(trailer, 6), None);
            prop_assert!(decode(frame, 5, 1000).unwrap().0.is_footer());
            prop_assert_eq!(Footer::read(&frame[HEAD..]), Some(footer));
        }
    }
}
