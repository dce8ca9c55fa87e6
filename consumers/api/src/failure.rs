//! What a consumer says of a message that it did not consume.

use std::error::Error;
use std::fmt;

/// What a consumer's methods return: nothing, or the failure with a verdict.
pub type Result<T = ()> = std::result::Result<T, Failure>;

/// What is to become of a message that was not consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Deliver it again after a pause; when its attempts are used up, set it aside.
    Retry,
    /// Forget it. It is counted as dropped with reason `refused`.
    Drop,
    /// Set it aside at once: trying again would not help.
    DeadLetter,
    /// Stop this consumer, and only this one; the message stays unsettled.
    Halt,
}

/// Why a message was not consumed, and what is to become of it.
///
/// Any error converts into a failure that means [`Verdict::Retry`], so `?` is always safe: the
/// message is tried again and, when that does not help, set aside with its reason. [`OrVerdict`]
/// says something else.
///
/// ```
/// use weir_consumer::{Failure, Verdict};
///
/// let failure = Failure::halt("the licence has run out");
/// assert_eq!(failure.verdict(), Verdict::Halt);
/// assert_eq!(failure.to_string(), "the licence has run out");
/// ```
// Deliberately no `Error`: the blanket conversion below would then conflict with `From<T> for T`.
// In a box, so that `Result` is one machine word, returned in a register: as three words it cost
// a no-op consumer a store-forwarding stall a delivery (benches/README.md).
pub struct Failure(Box<Inner>);

struct Inner {
    verdict: Verdict,
    cause: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// A failure with this verdict; the cause may be an error or a text.
    pub fn new(verdict: Verdict, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Failure(Box::new(Inner {
            verdict,
            cause: cause.into(),
        }))
    }

    /// The message is to be tried again.
    pub fn retry(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Verdict::Retry, cause)
    }

    /// The message is to be forgotten.
    pub fn drop(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Verdict::Drop, cause)
    }

    /// The message is to be set aside.
    pub fn dead_letter(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Verdict::DeadLetter, cause)
    }

    /// The consumer is to be stopped.
    pub fn halt(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Verdict::Halt, cause)
    }

    /// What is to become of the message.
    pub fn verdict(&self) -> Verdict {
        self.0.verdict
    }
}

/// Shows the cause and what caused it, joined by colons.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.cause)?;
        let mut source = self.0.cause.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.verdict)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::new(Verdict::Retry, error)
    }
}

/// Gives an error a verdict of its own, where `?` alone would mean [`Verdict::Retry`].
///
/// Works on results and on options, on which it names what is missing.
pub trait OrVerdict<T>: Sized {
    /// Turns the error into a failure with this verdict.
    fn or_verdict(self, verdict: Verdict) -> Result<T>;

    /// On an error: try the message again.
    fn or_retry(self) -> Result<T> {
        self.or_verdict(Verdict::Retry)
    }

    /// On an error: forget the message.
    fn or_drop(self) -> Result<T> {
        self.or_verdict(Verdict::Drop)
    }

    /// On an error: set the message aside.
    fn or_dead_letter(self) -> Result<T> {
        self.or_verdict(Verdict::DeadLetter)
    }

    /// On an error: stop the consumer.
    fn or_halt(self) -> Result<T> {
        self.or_verdict(Verdict::Halt)
    }
}

impl<T, E: Into<Failure>> OrVerdict<T> for std::result::Result<T, E> {
    fn or_verdict(self, verdict: Verdict) -> Result<T> {
        self.map_err(|error| {
            let mut failure = error.into();
            failure.0.verdict = verdict;
            failure
        })
    }
}

impl<T> OrVerdict<T> for Option<T> {
    fn or_verdict(self, verdict: Verdict) -> Result<T> {
        self.ok_or_else(|| Failure::new(verdict, format!("no {}", std::any::type_name::<T>())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<i32> {
        Ok(text.parse::<i32>()?)
    }

    #[test]
    fn a_bare_question_mark_means_retry() {
        assert_eq!(parse("x").unwrap_err().verdict(), Verdict::Retry);
    }

    #[test]
    fn the_verdict_can_be_replaced_and_the_cause_stays() {
        let failure = parse("x").or_halt().unwrap_err();
        assert_eq!(failure.verdict(), Verdict::Halt);
        assert_eq!(failure.to_string(), "invalid digit found in string");
        assert_eq!(None::<u8>.or_drop().unwrap_err().verdict(), Verdict::Drop);
    }

    #[test]
    fn display_shows_the_whole_chain() {
        #[derive(Debug)]
        struct Outer(std::num::ParseIntError);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("reading the port")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let failure = Failure::from(Outer("x".parse::<i32>().unwrap_err()));
        assert_eq!(
            failure.to_string(),
            "reading the port: invalid digit found in string"
        );
    }
}
