//! The hub beside real programs of others, installed by `tests/peers/setup`.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // a test's name says what it is about

mod archive;
mod board;
mod browser;
mod collectd;
mod dashboards;
#[cfg(feature = "fedmsg")]
mod fedmsg;
mod figures;
#[cfg(feature = "irc")]
mod irc;
mod moksha;
mod new;
#[cfg(feature = "notify")]
mod notify;
mod prometheus;
mod python;
mod statsd;
mod top;

/// The real PostgreSQL, as the archive's own tests start it.
#[path = "../../consumers/archive/tests/server/mod.rs"]
mod postgres;
