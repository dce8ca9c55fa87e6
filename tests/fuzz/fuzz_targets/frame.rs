//! The journal's decoder on whatever bytes.
//!
//! The checksums are mended first, half of the time: else the fuzzer would never get behind them.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unreachable_pub)]
#[path = "../../../src/journal/frame.rs"]
mod frame;

use frame::{Footer, HEAD, Head, MARKER};

const BASE: u64 = 5;
const OFFSET: u64 = 1000;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let mut bytes = rest.to_vec();
    if first & 1 == 1 && bytes.len() >= HEAD {
        let body = (bytes.len() - HEAD) as u32;
        let crc = crc32c::crc32c(&bytes[HEAD..]);
        bytes[..4].copy_from_slice(&MARKER);
        bytes[8..12].copy_from_slice(&body.to_le_bytes());
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        frame::stamp(&mut bytes, BASE, OFFSET);
    }
    if let Some(head) = Head::read(&bytes, BASE, OFFSET)
        && let Some(body) = bytes.get(HEAD..HEAD + head.body_len as usize)
        && head.vouches_for(body)
    {
        let mut at = 0;
        for _ in 0..head.count {
            let Some(entry) = head.record(body, at) else {
                break;
            };
            assert!(entry.payload.end <= body.len() && entry.payload.end > at);
            at = entry.payload.end;
        }
        if let Some(footer) = Footer::read(body) {
            let again = footer.encode(BASE, OFFSET);
            assert_eq!(Footer::read(&again[HEAD..again.len() - frame::TRAILER]), Some(footer));
        }
    }
    let _ = Footer::offset(&bytes, BASE);
});
