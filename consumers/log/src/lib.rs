//! The two simplest kinds: `log` prints each message, `null` forgets it.

mod log;
mod null;

use weir_consumer::Kind;

/// The kinds `log` and `null`.
pub fn kinds() -> Vec<Kind> {
    vec![log::kind(), null::kind()]
}
