//! What a worker asks before it delivers.
//!
//! A filter says which messages the consumer is not to see; the runner counts those as dropped,
//! with the filter's reason. It is asked on the consumer's own thread, in the order of delivery,
//! before the rate limit and the lane: what is refused takes nothing from either.

use std::sync::Arc;

use weir_consumer::Message;

use crate::stats::Reason;

/// One worker's filter.
pub trait Filter: Send {
    /// Judges the first of these messages, of which there is one at least.
    ///
    /// So that batches stay whole it answers, if the first is to be delivered, how many in a row
    /// are. `most` is how many are of use.
    fn judge(&mut self, messages: &[Message], most: usize) -> Judged;

    /// Judges a message that comes again from the dead letters, by its content alone.
    fn judge_again(&mut self, message: &Message) -> Judged;
}

/// What a filter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// So many messages in a row are to be delivered: one at least.
    Fit(usize),
    /// The first is not.
    Refused(Reason),
}

/// Makes a worker's filter.
pub type NewFilter = Arc<dyn Fn() -> Box<dyn Filter> + Send + Sync>;
