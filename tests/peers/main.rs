//! The hub beside real programs of others, installed by `tests/peers/setup`.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // a test's name says what it is about

mod board;
mod browser;
mod collectd;
mod dashboards;
mod figures;
#[cfg(feature = "irc")]
mod irc;
mod moksha;
mod prometheus;
mod statsd;
mod top;
