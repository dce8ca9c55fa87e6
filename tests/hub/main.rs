//! The hub from outside: real sockets, real threads, the real binary.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // a test's name says what it is about

mod archive;
mod badges;
mod check;
mod collectd;
mod control;
mod dead;
mod delivery;
mod exec;
#[cfg(feature = "fedmsg")]
mod fedmsg;
mod forward;
mod http;
mod journal;
mod lag;
mod logs;
mod moksha;
mod pages;
mod process;
mod sockets;
mod steer;
mod stopping;
mod support;
mod top;
