//! weir is a message hub: it takes messages off a bus, gives every consumer a bounded queue and a
//! thread of its own, and tells at any moment how far behind each consumer is.
//!
//! ```text
//! backend ─► enqueuer thread ─► journal
//!                             ├─► queue ─► runner thread ─► consumer
//!                             ├─► queue ─► runner thread ─► consumer
//!                             └─► queue ─► runner thread ─► consumer
//! sync thread, keeper thread: what is written reaches the disk, cursors, retention
//! monitor thread: samples every queue's counters ─► statsd, Prometheus, collectd, Moksha's socket
//! control thread: HTTP ─► the board, status, metrics; pause, skip, replay ...
//! ```
//!
//! One hop from intake to consumer. The hub calls the consumer; a consumer never drives the hub.
//!
//! # Where to begin reading
//!
//! A message's way is [`enqueuer`] (take a batch off the backend), [`router`] (who wants it),
//! [`journal`] (append), [`queue`] (push, within the bounds, or be behind), [`runner`] ([`filter`],
//! deliver, settle, set aside as [`dead_letters`]). Modules stand below in the
//! order of import: each uses only what stands above it.
//!
//! # What is deliberately not here
//!
//! - **A lock, an allocation that could be shared, or a metric call a message.** Consumers that
//!   want the whole of a batch share it; counters have one writer each and are sampled.
//! - **Loading of foreign libraries.** A hub of one's own is a `main` of three lines:
//!   [`Registry`].
//! - **Exactly once, and transformation pipelines.**
//!
//! # Examples
//!
//! A hub inside a program, fed by it:
//!
//! ```
//! use weir::{Config, Hub, Registry, backend::memory::Memory};
//!
//! let config = "hub.http = ''\njournal.enabled = false\n[consumers.null]\ntopics = ''\n";
//! let config = Config::embedded(config, &Registry::builtin())?;
//! let (feed, backend) = Memory::new(100);
//! let hub = Hub::start_with(&config, vec![Box::new(backend)])?;
//! feed.send("org.example.a", "hello").unwrap();
//! # while hub.status().consumers[0].consumed == 0 { std::thread::yield_now(); }
//! let stopped = hub.stop();
//! assert_eq!(stopped.status.consumers[0].consumed, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod histogram;
pub mod lifecycle;
pub mod logging;
pub mod recent;
pub mod stats;

pub mod data_dir;
pub mod forecast;
pub mod journal;
pub mod measured;
pub mod router;

pub mod queue;

pub mod backend;
pub mod dead_letters;
pub mod feed;

pub mod enqueuer;
pub mod filter;
pub mod runner;

#[cfg(feature = "fedmsg")]
pub mod fedmsg;

pub mod keeper;
pub mod steering;

pub mod producer;
pub mod publisher;

pub mod why;

pub mod monitor;

#[cfg(feature = "http")]
pub mod probes;
#[cfg(feature = "http")]
pub mod token;

#[cfg(feature = "http")]
pub mod control;
pub mod registry;

pub mod config;
pub mod hub;

pub mod cli;

pub use config::Config;
pub use hub::Hub;
pub use registry::Registry;
pub use weir_exec::kill_children;

/// Compiles the README's consumer.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
