//! A kind: a type of consumer or producer under the name by which configurations ask for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::settings::{Mistake, Settings};
use crate::{Consumer, Producer, Publisher, Result};

/// The keys of a consumer's or producer's section that the hub reads; all others are the kind's.
pub const HUB_KEYS: [&str; 13] = [
    "burst", "delivery", "interval", "key", "kind", "lane", "queue", "rate", "retry", "start",
    "topics", "validate", "workers",
];

/// What a builder gets from the hub besides its settings.
#[derive(Clone, Debug)]
pub struct Context {
    name: Arc<str>,
    hub: Arc<str>,
    data_dir: PathBuf,
    publisher: Publisher,
    topics: Arc<[String]>,
    sources: Arc<[String]>,
    workers: usize,
}

impl Context {
    /// The context of the instance `name`.
    pub fn new(name: &str, data_dir: &Path, publisher: Publisher) -> Self {
        Context {
            name: name.into(),
            hub: "weir".into(),
            data_dir: data_dir.into(),
            publisher,
            topics: Arc::default(),
            sources: Arc::default(),
            workers: 1,
        }
    }

    /// The same in a hub of this name, which is `weir` otherwise.
    pub fn in_hub(self, hub: &str) -> Self {
        Context {
            hub: hub.into(),
            ..self
        }
    }

    /// The same for a consumer of these prefixes of topics, in a hub that reads from these
    /// endpoints.
    pub fn reading(self, topics: Vec<String>, sources: Vec<String>) -> Self {
        Context {
            topics: topics.into(),
            sources: sources.into(),
            ..self
        }
    }

    /// The same for a consumer of so many workers, each of which is built from these settings.
    pub fn with_workers(self, workers: usize) -> Self {
        Context { workers, ..self }
    }

    /// The instance's name, as the section of the configuration says it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The hub's name, as `[hub]` says it.
    pub fn hub(&self) -> &str {
        &self.hub
    }

    /// The hub's directory for data; relative paths in settings start here. It may not exist yet.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The prefixes of topics that the consumer gets; a producer has none.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// Where the hub reads from: what its backends connect to and are bound to.
    pub fn sources(&self) -> &[String] {
        &self.sources
    }

    /// How many workers the consumer has; each is built for itself. Of a producer there is one.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The way onto the bus.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }
}

/// A registered type of consumer or producer.
///
/// Its builder checks settings and nothing more: it must neither connect nor create files, because
/// `weir config check` runs it too, and because the hub runs it again after a panic.
///
/// ```
/// use serde::Deserialize;
/// use weir_consumer::{Consumer, Context, Kind, Message, Result};
///
/// #[derive(Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Settings { greeting: String }
///
/// struct Greeter(String);
///
/// impl Consumer for Greeter {
///     fn consume(&mut self, message: &Message) -> Result {
///         println!("{} {}", self.0, message.topic());
///         Ok(())
///     }
/// }
///
/// fn build(settings: Settings, _context: &Context) -> Result<Greeter> {
///     Ok(Greeter(settings.greeting))
/// }
///
/// let kind = Kind::consumer("greeter", build).summary("greets each message");
/// # assert_eq!(kind.name(), "greeter");
/// ```
#[derive(Clone)]
pub struct Kind {
    name: String,
    summary: &'static str,
    sample: &'static str,
    build: Build,
}

#[derive(Clone)]
enum Build {
    Consumer(Builder<dyn Consumer>),
    Producer(Builder<dyn Producer>),
}

type Builder<T> = Arc<dyn Fn(&Settings, &Context) -> Built<T> + Send + Sync>;
type Built<T> = std::result::Result<Box<T>, Vec<Mistake>>;

/// What instances of a kind are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// They handle messages.
    Consumer,
    /// They make messages.
    Producer,
}

fn checked<S: DeserializeOwned, T>(
    settings: &Settings,
    context: &Context,
    build: impl Fn(S, &Context) -> Result<T>,
) -> std::result::Result<T, Vec<Mistake>> {
    build(settings.parse()?, context).map_err(|failure| vec![settings.mistake(failure.to_string())])
}

impl Kind {
    /// A kind of consumer.
    pub fn consumer<S: DeserializeOwned, C: Consumer + 'static>(
        name: impl Into<String>,
        build: impl Fn(S, &Context) -> Result<C> + Send + Sync + 'static,
    ) -> Self {
        let build = move |settings: &Settings, context: &Context| -> Built<dyn Consumer> {
            Ok(Box::new(checked(settings, context, &build)?))
        };
        Kind::new(name.into(), Build::Consumer(Arc::new(build)))
    }

    /// A kind of consumer whose builder gets its settings as they were written.
    ///
    /// For a kind that finds more mistakes than a struct's [`parse`](Settings::parse) does, each
    /// with a place of its own, such as in further files that its settings name.
    pub fn consumer_from_settings<C: Consumer + 'static>(
        name: impl Into<String>,
        build: impl Fn(&Settings, &Context) -> std::result::Result<C, Vec<Mistake>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let build = move |settings: &Settings, context: &Context| -> Built<dyn Consumer> {
            Ok(Box::new(build(settings, context)?))
        };
        Kind::new(name.into(), Build::Consumer(Arc::new(build)))
    }

    /// A kind of producer.
    pub fn producer<S: DeserializeOwned, P: Producer + 'static>(
        name: impl Into<String>,
        build: impl Fn(S, &Context) -> Result<P> + Send + Sync + 'static,
    ) -> Self {
        let build = move |settings: &Settings, context: &Context| -> Built<dyn Producer> {
            Ok(Box::new(checked(settings, context, &build)?))
        };
        Kind::new(name.into(), Build::Producer(Arc::new(build)))
    }

    fn new(name: String, build: Build) -> Self {
        Kind {
            name,
            summary: "",
            sample: "",
            build,
        }
    }

    /// Says in a line what it does, for `weir kinds`.
    pub fn summary(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    /// Gives a section of a configuration that shows every setting with its default.
    pub fn sample(mut self, sample: &'static str) -> Self {
        self.sample = sample;
        self
    }

    /// The name by which configurations ask for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its line in `weir kinds`; empty when none was given.
    pub fn summary_text(&self) -> &'static str {
        self.summary
    }

    /// Its sample section; empty when none was given.
    pub fn sample_text(&self) -> &'static str {
        self.sample
    }

    /// Whether instances handle messages or make them.
    pub fn role(&self) -> Role {
        match self.build {
            Build::Consumer(_) => Role::Consumer,
            Build::Producer(_) => Role::Producer,
        }
    }

    /// Builds a consumer.
    ///
    /// # Errors
    /// The mistakes in its settings, or that this is a kind of producer.
    pub fn build_consumer(&self, settings: &Settings, context: &Context) -> Built<dyn Consumer> {
        match &self.build {
            Build::Consumer(build) => build(settings, context),
            Build::Producer(_) => Err(vec![settings.mistake(format!(
                "`{}` is a kind of producer; it belongs under [producers.{}]",
                self.name,
                context.name()
            ))]),
        }
    }

    /// Builds a producer.
    ///
    /// # Errors
    /// The mistakes in its settings, or that this is a kind of consumer.
    pub fn build_producer(&self, settings: &Settings, context: &Context) -> Built<dyn Producer> {
        match &self.build {
            Build::Producer(build) => build(settings, context),
            Build::Consumer(_) => Err(vec![settings.mistake(format!(
                "`{}` is a kind of consumer; it belongs under [consumers.{}]",
                self.name,
                context.name()
            ))]),
        }
    }
}
