//! Starts, watches and stops all threads of a hub.
//!
//! A stop is bounded, in this order: intake ends, queues empty until the deadline, workers end with
//! the delivery they are at, what is left stays in the journal or is counted, cursors are written.
//! A consumer that does not return even then is named and left behind; the process's end takes its
//! thread, and before that `kill_children`, which the command calls, its child process.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use metrics::with_local_recorder;
use parking_lot::Mutex;
use tracing::{info, warn};
use weir_consumer::{Context, Publisher};

use crate::backend::{self, Backend, Source};
use crate::config::{self, Config};
#[cfg(feature = "http")]
use crate::control::{self, Control};
use crate::data_dir::{self, DataDir};
use crate::dead_letters::{self, DeadLetters};
use crate::enqueuer::{Enqueuer, Log};
#[cfg(feature = "fedmsg")]
use crate::fedmsg::{Checker, Validator};
use crate::filter::NewFilter;
use crate::journal::{Cursor, Cursors, Journal, Suspects};
use crate::keeper::Keeper;
use crate::lifecycle::{Ended, Flag, Stop, Watch};
use crate::measured::{Measured, OwnRecorder};
use crate::monitor::collectd::Collectd;
use crate::monitor::moksha::Moksha;
use crate::monitor::statsd::Statsd;
use crate::monitor::{
    self, ConsumerFigures, Exporter, Figures, ProducerFigures, SourceFigures, Status,
};
#[cfg(feature = "http")]
use crate::probes::Probes;
use crate::producer::{self, ProducerStats};
use crate::publisher::{self, Outlet, PublishStats};
use crate::queue::{self, Queue, Taker};
use crate::router::{Router, narrowest};
use crate::runner::keyed::Dispatcher;
use crate::runner::rate::Bucket;
use crate::runner::{self, Careful, Runner, Supply};
use crate::stats::{Reason, Stats, now_ns};
use crate::steering::{Action, Outcome, Steering};
use crate::why::Limits;

/// How long a worker may take to end once the deadline has come.
const GRACE: Duration = Duration::from_secs(1);
/// How long the threads that write to the disk may take to end.
const DISK_GRACE: Duration = Duration::from_secs(5);

/// A running hub.
pub struct Hub {
    figures: Arc<Figures>,
    http: Option<SocketAddr>,
    publishes: Vec<String>,
    stop: Stop,
    stop_deadline: Duration,
    wakers: Vec<Arc<dyn Fn() + Send + Sync>>,
    queues: Vec<Arc<Queue>>,
    monitor_stop: Arc<Flag>,
    steering: Arc<Steering>,
    quits: Quits,
    threads: Threads,
    /// For whoever looks after the hub.
    deaths: Receiver<Ended>,
    drain: Receiver<()>,
}

#[derive(Default)]
struct Quits {
    publish: Option<publisher::Quit>,
    #[cfg(feature = "http")]
    control: Option<control::Quit>,
}

/// The threads that have not ended.
struct Threads {
    watch: Watch,
    ends: Receiver<Ended>,
    running: HashMap<usize, (String, Role)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Intake,
    Worker,
    Producer,
    Publish,
    Keeper,
    Sync,
    Service,
}

impl Threads {
    fn spawn(
        &mut self,
        name: &str,
        role: Role,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), String> {
        let id = self.watch.spawn(name, body).map_err(|error| {
            format!("can't start thread {name}: {error}; is there a limit on threads (ulimit -u)?")
        })?;
        self.running.insert(id, (name.to_owned(), role));
        Ok(())
    }

    /// Waits until no thread of this role runs any more; answers who still does at the time.
    fn wait(&mut self, role: Role, until: Instant) -> Vec<String> {
        loop {
            let left = self.running.values().filter(|(_, its)| *its == role);
            let left: Vec<String> = left.map(|(name, _)| name.clone()).collect();
            if left.is_empty() {
                return left;
            }
            match self.ends.recv_deadline(until) {
                Ok(ended) => {
                    self.running.remove(&ended.id);
                    if let Some(error) = ended.error {
                        warn!(thread = ended.thread, error, "a thread has died");
                    }
                }
                Err(_) => return left,
            }
        }
    }
}

/// How a stop went.
#[derive(Debug)]
pub struct Stopped {
    /// The last figures.
    pub status: Status,
    /// Threads that did not return in time. When the process is to end, `weir::kill_children` ends
    /// the child processes that they may have.
    pub stuck: Vec<String>,
    /// What could not be written at the end.
    pub errors: Vec<String>,
    /// How long it took.
    pub time: Duration,
}

impl Hub {
    /// Starts a hub as configured.
    ///
    /// # Errors
    /// Why it can't start, and what to do about it. Nothing of it runs then.
    pub fn start(config: &Config) -> Result<Self, String> {
        Hub::start_with(config, Vec::new())
    }

    /// Starts a hub that has these sources besides those of its configuration.
    ///
    /// # Errors
    /// As [`start`](Hub::start).
    pub fn start_with(config: &Config, more: Vec<Box<dyn Backend>>) -> Result<Self, String> {
        let (watch, [ends, deaths]) = Watch::new();
        let threads = Threads {
            watch,
            ends,
            running: HashMap::new(),
        };
        let mut starting = Starting {
            threads,
            started: Arc::default(),
            stop: Stop::default(),
            monitor_stop: Arc::default(),
            quits: Quits::default(),
            queues: Vec::new(),
            journal: None,
        };
        starting
            .start(config, more, deaths)
            .inspect_err(|_| starting.abandon())
    }

    /// All figures at this moment.
    pub fn status(&self) -> Status {
        self.figures.status()
    }

    /// What can be read of this hub.
    pub fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }

    /// Where `GET /status` and `GET /metrics` answer.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Where it publishes, for people.
    pub fn publishes(&self) -> &[String] {
        &self.publishes
    }

    /// Where the ends of its threads arrive: before a stop, each of them is a failure.
    pub fn ends(&self) -> &Receiver<Ended> {
        &self.deaths
    }

    /// Where an operator's wish arrives that it be [stopped](Hub::stop): [`Action::Drain`].
    pub fn drain(&self) -> &Receiver<()> {
        &self.drain
    }

    /// Does what an operator wants; `by` says who, for the audit log.
    ///
    /// # Errors
    /// Why it can't be done, and what to do about it.
    pub fn act(&self, action: &Action, by: &str) -> Result<Outcome, String> {
        self.steering.act(action, by)
    }

    /// Stops: no more intake, then an empty queue or the deadline, whichever comes first.
    pub fn stop(mut self) -> Stopped {
        let begin = Instant::now();
        let deadline = begin + self.stop_deadline;
        self.stop.intake.raise();
        self.wakers.iter().for_each(|wake| wake());
        // An enqueuer may be waiting for room (policy block): the runners make it, or the deadline.
        let blocked = self.threads.wait(Role::Intake, deadline);
        if !blocked.is_empty() {
            self.queues.iter().for_each(|queue| queue.turn_away());
            self.threads.wait(Role::Intake, Instant::now() + GRACE);
        }
        self.queues.iter().for_each(|queue| queue.close());
        self.threads.wait(Role::Worker, deadline);
        self.stop.deadline.raise();
        self.queues.iter().for_each(|queue| queue.give_up());
        let grace = Instant::now() + GRACE;
        let mut stuck = self.threads.wait(Role::Worker, grace);
        stuck.extend(self.threads.wait(Role::Producer, grace));
        self.queues.iter().for_each(|queue| queue.discard());
        self.quits = Quits::default();
        stuck.extend(self.threads.wait(Role::Publish, Instant::now() + GRACE));
        self.monitor_stop.raise();
        stuck.extend(self.threads.wait(Role::Service, Instant::now() + GRACE));
        // The disk may take its time, but not for ever: a worker that is stuck is as good as dead.
        let patience = Instant::now() + DISK_GRACE;
        stuck.extend(self.threads.wait(Role::Keeper, patience));
        let mut errors = Vec::new();
        if let Some(journal) = &self.steering.journal {
            errors.extend(journal.close().err());
            stuck.extend(self.threads.wait(Role::Sync, patience));
        }
        if let Some(keeper) = &self.steering.keeper {
            errors.extend(keeper.save(true).err());
        }
        Stopped {
            errors,
            status: self.figures.status(),
            stuck,
            time: begin.elapsed(),
        }
    }
}

/// A hub in the making.
struct Starting {
    threads: Threads,
    started: Arc<Flag>,
    stop: Stop,
    monitor_stop: Arc<Flag>,
    quits: Quits,
    queues: Vec<Arc<Queue>>,
    journal: Option<Arc<Journal>>,
}

impl Starting {
    fn start(
        &mut self,
        config: &Config,
        more: Vec<Box<dyn Backend>>,
        deaths: Receiver<Ended>,
    ) -> Result<Hub, String> {
        let mut publishes = Vec::new();
        let mut publish_stats: Option<Arc<PublishStats>> = None;
        let mut publisher = Publisher::nowhere();
        let mut outlet = None;
        if let Some(settings) = &config.publish {
            let opened = Outlet::open(settings)?;
            publishes = opened.describe.clone();
            publish_stats = Some(opened.stats.clone());
            publisher = opened.publisher;
            self.quits.publish = Some(opened.quit);
            outlet = Some(opened.outlet);
        }

        // Everything that can fail comes before the first thread.
        let mut kept = match config.journal.enabled {
            true => Some(Kept::open(config)?),
            false => None,
        };
        let measured: Arc<Measured> = Arc::default();
        let mut lanes: HashMap<&str, Arc<Mutex<()>>> = HashMap::new();
        let alone: Arc<Mutex<()>> = Arc::default();
        let validation = Validation::open(config)?;
        let mut consumers = Vec::new();
        for consumer in &config.consumers {
            let lane = (consumer.settings.lane.as_deref())
                .map(|lane| lanes.entry(lane).or_default().clone());
            let shared = Shared {
                hub: &config.hub,
                sources: config.sources(),
                publisher: &publisher,
                lane,
                alone: &alone,
                measured: &measured,
                validation: &validation,
            };
            consumers.push(Workers::build(consumer, shared, &mut kept)?);
        }
        let queues: Vec<(String, Arc<Queue>)> = (consumers.iter())
            .map(|workers| (workers.config.name.clone(), workers.queue.clone()))
            .collect();
        let (drain_sender, drain) = crossbeam_channel::bounded(1);
        let mut steering = Steering {
            data_dir: None,
            journal: None,
            keeper: None,
            dead_letters: None,
            queues: queues.clone(),
            drain: drain_sender,
        };
        let mut log = Log::Memory(Arc::default());
        if let Some(kept) = kept {
            log = Log::Journal {
                journal: kept.journal.clone(),
                sync: config.journal.sync,
                on_error: config.journal.on_error,
            };
            let keeper = Keeper::new(
                data_dir::journal(kept.dir.path()),
                config.journal.clone(),
                kept.journal.clone(),
                kept.dead_letters.clone(),
                queues,
                kept.cursors,
            );
            steering.keeper = Some(Arc::new(keeper));
            steering.data_dir = Some(Arc::new(kept.dir));
            steering.journal = Some(kept.journal);
            steering.dead_letters = Some(kept.dead_letters);
        }
        self.journal = steering.journal.clone();
        let steering = Arc::new(steering);
        let mut producers = Vec::new();
        for settings in &config.producers {
            let context = Context::new(&settings.name, &config.hub.data_dir, publisher.clone())
                .in_hub(&config.hub.name);
            let (kind, own) = (settings.kind.clone(), settings.own.clone());
            let build: producer::Build = Arc::new(move || kind.build_producer(&own, &context));
            let producer = build().map_err(|mistakes| config::Mistakes(mistakes).to_string())?;
            producers.push((
                settings,
                build,
                producer,
                Arc::new(ProducerStats::default()),
            ));
        }
        let wanted: Vec<Vec<String>> = config
            .consumers
            .iter()
            .map(|consumer| consumer.settings.prefixes())
            .collect();
        let prefixes = narrowest(wanted.iter().flatten().cloned());
        let mut backends = Vec::new();
        for source in &config.backends {
            backends.push(source.open(&prefixes)?);
        }
        backends.extend(more);
        if backends.is_empty() {
            return Err("there is nowhere to get messages from".into());
        }
        let mut exporters: Vec<Box<dyn Exporter>> = Vec::new();
        if let Some(settings) = &config.statsd {
            exporters.push(Box::new(Statsd::new(settings)?));
        }
        if let Some(settings) = &config.collectd {
            exporters.push(Box::new(Collectd::new(settings)?));
        }
        if let Some(settings) = &config.moksha {
            exporters.push(Box::new(Moksha::open(settings)?));
        }

        let figures = Arc::new(Figures {
            sources: (backends.iter().enumerate())
                .map(|(index, backend)| {
                    let configured = config.backends.get(index).map(Source::timestamp);
                    let timestamp = configured.unwrap_or(backend::TIMESTAMP);
                    SourceFigures::new(backend.describe(), backend.stats(), timestamp)
                })
                .collect(),
            producers: (producers.iter())
                .map(|(settings, _, _, stats)| ProducerFigures {
                    name: settings.name.clone(),
                    kind: settings.kind.name().to_owned(),
                    interval: settings.interval,
                    stats: stats.clone(),
                })
                .collect(),
            publish: publish_stats,
            journal: steering.journal.clone(),
            dead_letters: steering.dead_letters.clone(),
            certificates_refused: validation.refused(),
            measured,
            ..Figures::new(
                &config.hub.name,
                consumers.iter().map(Workers::figures).collect(),
            )
        });
        let http = self.serve(config, &figures, &steering)?;
        if let (Some(journal), Some(keeper)) = (&steering.journal, &steering.keeper) {
            let (journal, keeper) = (journal.clone(), keeper.clone());
            self.threads.spawn("weir-sync", Role::Sync, move || {
                journal.run();
                Ok(())
            })?;
            let stop = self.monitor_stop.clone();
            self.threads.spawn("weir-keeper", Role::Keeper, move || {
                keeper.run(&stop);
                Ok(())
            })?;
        }

        let (monitored, monitor_stop) = (figures.clone(), self.monitor_stop.clone());
        self.threads.spawn("weir-monitor", Role::Service, move || {
            monitor::run(&monitored, exporters, &monitor_stop);
            Ok(())
        })?;
        if let Some(outlet) = outlet {
            self.threads.spawn("weir-publish", Role::Publish, move || {
                outlet.run();
                Ok(())
            })?;
        }
        if let Some(keeper) = &steering.keeper {
            // From now on an end without a stop is seen at the next start.
            keeper.save(false)?;
        }
        self.queues = consumers
            .iter()
            .map(|workers| workers.queue.clone())
            .collect();
        for workers in consumers {
            workers.spawn(&mut self.threads, &self.stop)?;
        }
        for (settings, build, producer, stats) in producers {
            let (name, interval) = (settings.name.clone(), settings.interval);
            let (publisher, stop) = (publisher.clone(), self.stop.intake.clone());
            self.threads
                .spawn(&settings.name, Role::Producer, move || {
                    producer::run(&name, interval, producer, &build, &publisher, &stats, &stop);
                    Ok(())
                })?;
        }
        let mut wakers = Vec::new();
        for (index, backend) in backends.into_iter().enumerate() {
            wakers.push(backend.waker());
            let enqueuer = Enqueuer::new(
                backend,
                Router::new(wanted.clone()),
                self.queues.clone(),
                log.clone(),
                index as u16,
                self.stop.intake.clone(),
            );
            let name = format!("weir-intake-{index}");
            self.threads
                .spawn(&name, Role::Intake, move || enqueuer.run())?;
        }
        let (watch, ends) = (self.threads.watch.clone(), self.threads.ends.clone());
        self.started.raise();
        Ok(Hub {
            figures,
            deaths,
            drain,
            http,
            publishes,
            stop: self.stop.clone(),
            stop_deadline: config.hub.stop_deadline,
            wakers,
            queues: self.queues.clone(),
            monitor_stop: self.monitor_stop.clone(),
            steering,
            quits: std::mem::take(&mut self.quits),
            threads: Threads {
                watch,
                ends,
                running: std::mem::take(&mut self.threads.running),
            },
        })
    }

    #[cfg(feature = "http")]
    fn serve(
        &mut self,
        config: &Config,
        figures: &Arc<Figures>,
        steering: &Arc<Steering>,
    ) -> Result<Option<SocketAddr>, String> {
        let data_dir = steering.data_dir.as_ref();
        let hub = &config.hub;
        let http = match &*hub.http {
            "" => None,
            http => Some(config::address(http, hub.http_tls.is_some())?),
        };
        if http.is_none() && data_dir.is_none() {
            return Ok(None);
        }
        let tls = hub.http_tls.as_ref();
        let settings = control::Settings {
            http,
            // It may be asked for as it was configured.
            hosts: [std::slice::from_ref(&hub.http), &hub.http_hosts].concat(),
            tls: tls.map(|tls| (tls.certificate.clone(), tls.key.clone())),
            data_dir: data_dir.map(|dir| dir.path().to_owned()),
        };
        let (control, quit) = Control::bind(&settings)?;
        self.quits.control = Some(quit);
        let address = control.address();
        let probes = Probes {
            figures: figures.clone(),
            started: self.started.clone(),
            stopping: self.stop.intake.clone(),
            watch: self.threads.watch.clone(),
            on_error: config.journal.on_error,
        };
        let steering = steering.clone();
        self.threads.spawn("weir-http", Role::Service, move || {
            control.run(probes, steering)
        })?;
        Ok(address)
    }

    #[cfg(not(feature = "http"))]
    fn serve(
        &mut self,
        config: &Config,
        _: &Arc<Figures>,
        _: &Arc<Steering>,
    ) -> Result<Option<SocketAddr>, String> {
        if !config.hub.http.is_empty() {
            warn!(
                "this weir was built without the feature `http`: there is no GET /status or /metrics"
            );
        }
        Ok(None)
    }

    /// Ends what was started of a hub that could not be.
    fn abandon(&mut self) {
        self.stop.intake.raise();
        self.stop.deadline.raise();
        self.monitor_stop.raise();
        self.quits = Quits::default();
        self.queues.iter().for_each(|queue| queue.close());
        self.queues.iter().for_each(|queue| queue.give_up());
        if let Some(journal) = &self.journal {
            let _ = journal.close(); // why it can't start is the error to tell
        }
    }
}

/// What the hub keeps on disk, opened and recovered.
struct Kept {
    dir: DataDir,
    journal: Arc<Journal>,
    dead_letters: Arc<DeadLetters>,
    cursors: Cursors,
    suspects: Suspects,
    /// The hub did not stop in order the last time.
    unclean: bool,
}

impl Kept {
    fn open(config: &Config) -> Result<Self, String> {
        let path = &config.hub.data_dir;
        let dir = DataDir::open(path).map_err(|refused| refused.explain(path))?;
        let journal_dir = data_dir::journal(path);
        let loaded = Cursors::load(&journal_dir)?;
        if let Some(note) = loaded.note {
            warn!(note);
        }
        let begins = loaded.cursors.is_none();
        let unclean = loaded
            .cursors
            .as_ref()
            .is_some_and(|cursors| !cursors.clean);
        let cursors = loaded.cursors.unwrap_or_default();
        let next = cursors.next_number();
        let (journal, recovered) = Journal::open(&journal_dir, &config.journal, next)?;
        for note in &recovered.notes {
            warn!(note);
        }
        if begins && recovered.segments > 0 {
            warn!("the journal has no file of cursors: every consumer begins at its `start`");
        }
        let log_end = recovered.messages_end;
        if log_end < next {
            let (from, to) = (log_end, next - 1);
            warn!(
                from,
                to,
                "these sequence numbers were given out and are not in the journal: not synced when \
                 the power failed, or never written because the disk was full or broken; messages \
                 may have been lost"
            );
        }
        if unclean {
            info!("the hub did not stop in order the last time; some messages may come twice");
        }
        let suspects = Suspects::open(&journal_dir, !unclean)
            .map_err(|error| format!("can't open {}/inflight: {error}", journal_dir.display()))?;
        let letters = path.join(dead_letters::FILE);
        Ok(Kept {
            dead_letters: Arc::new(DeadLetters::open(&letters, &config.dead_letters)?),
            dir,
            journal,
            cursors,
            suspects,
            unclean,
        })
    }

    /// Where a consumer begins, and what waits for it.
    fn start(&self, consumer: &config::Consumer) -> Result<queue::Start, String> {
        let (begin, end) = (self.journal.begin(), self.journal.end());
        let known = self.cursors.consumers.get(&consumer.name).cloned();
        let mut cursor = known.unwrap_or(Cursor {
            position: match consumer.settings.start {
                config::Start::Head => end,
                config::Start::Earliest => begin,
            },
            replayed_below: 0,
            paused: false,
            seen_ns: 0,
        });
        if consumer.settings.delivery == config::Delivery::AtMostOnce {
            cursor.position = end;
        }
        let taken = begin.saturating_sub(cursor.position);
        cursor.position = cursor.position.max(begin);
        let mut router = Router::new(vec![consumer.settings.prefixes()]);
        let mut want = |topic: &str| router.wants(topic);
        let range = cursor.position..end;
        let counted = (self.journal.count(range, &mut want)).map_err(|error| {
            format!(
                "can't read the journal in {}: {error}",
                self.dir.path().display()
            )
        })?;
        let lost = [(Reason::Retention, taken), (Reason::Corrupt, counted.lost)];
        for (reason, numbers) in lost {
            if numbers > 0 {
                let (consumer, reason) = (&consumer.name, reason.as_str());
                warn!(
                    consumer,
                    reason,
                    numbers,
                    "sequence numbers are gone from the journal that it may have needed"
                );
            }
        }
        if counted.messages > 0 {
            info!(
                consumer = consumer.name,
                messages = counted.messages,
                "waiting in the journal"
            );
        }
        Ok(queue::Start {
            cursor,
            waiting: (
                counted.messages,
                counted.bytes,
                counted.first_ns.unwrap_or_else(now_ns),
            ),
            lost,
        })
    }

    /// How each of the workers of a consumer is to be careful, from this position on.
    fn careful(
        &self,
        consumer: &str,
        position: u64,
        workers: usize,
    ) -> Result<Vec<Option<Careful>>, String> {
        if !self.unclean {
            return Ok((0..workers).map(|_| None).collect());
        }
        let until = self.journal.end();
        self.suspects.forget_below(consumer, position);
        let set_aside = Arc::new(self.dead_letters.known(consumer, position..until)?);
        let careful = |_| {
            Some(Careful {
                suspects: self.suspects.of(consumer),
                until,
                set_aside: set_aside.clone(),
                slot: self.suspects.slot(consumer),
            })
        };
        Ok((0..workers).map(careful).collect())
    }
}

/// What consumers are given besides their settings.
struct Shared<'s> {
    hub: &'s config::Hub,
    sources: Vec<String>,
    publisher: &'s Publisher,
    lane: Option<Arc<Mutex<()>>>,
    alone: &'s Arc<Mutex<()>>,
    measured: &'s Arc<Measured>,
    validation: &'s Validation,
}

/// What validates, if a consumer asks for it.
#[cfg(feature = "fedmsg")]
struct Validation(Option<Arc<Validator>>);

#[cfg(feature = "fedmsg")]
impl Validation {
    fn open(config: &Config) -> Result<Self, String> {
        let default = config.fedmsg.validate;
        let validates = |consumer: &config::Consumer| consumer.settings.validate.unwrap_or(default);
        Ok(Validation(match config.consumers.iter().any(validates) {
            true => Some(Arc::new(Validator::open(&config.fedmsg)?)),
            false => None,
        }))
    }

    /// The filter of a consumer's workers.
    fn filter(&self, consumer: &config::Consumer) -> Option<NewFilter> {
        let validator = self.0.clone()?;
        let validate = consumer.settings.validate;
        if !validate.unwrap_or(validator.is_default()) {
            return None;
        }
        let name = consumer.name.clone();
        Some(Arc::new(move || {
            Box::new(Checker::new(validator.clone(), &name))
        }))
    }

    fn refused(&self) -> Option<Arc<AtomicU64>> {
        let validator = self.0.as_ref()?;
        Some(validator.reload_errors().clone())
    }
}

#[cfg(not(feature = "fedmsg"))]
struct Validation;

#[cfg(not(feature = "fedmsg"))]
impl Validation {
    fn open(_: &Config) -> Result<Self, String> {
        Ok(Validation)
    }

    fn filter(&self, _: &config::Consumer) -> Option<NewFilter> {
        None
    }

    fn refused(&self) -> Option<Arc<AtomicU64>> {
        None
    }
}

/// The workers of one consumer before they are threads.
struct Workers<'c> {
    config: &'c config::Consumer,
    recorder: OwnRecorder,
    settings: Arc<runner::Settings>,
    queue: Arc<Queue>,
    consumers: Vec<(Box<dyn weir_consumer::Consumer>, Option<Careful>)>,
}

impl<'c> Workers<'c> {
    fn build(
        config: &'c config::Consumer,
        shared: Shared<'_>,
        kept: &mut Option<Kept>,
    ) -> Result<Self, String> {
        let settings = &config.settings;
        let data_dir = &shared.hub.data_dir;
        let context = Context::new(&config.name, data_dir, shared.publisher.clone())
            .in_hub(&shared.hub.name)
            .reading(settings.prefixes(), shared.sources)
            .with_workers(settings.workers);
        let (kind, own) = (config.kind.clone(), config.own.clone());
        let recorder = shared.measured.recorder(&config.name);
        let recording = recorder.clone();
        let build: runner::Build = Arc::new(move || {
            with_local_recorder(&recording, || kind.build_consumer(&own, &context))
        });
        let consumers: Result<Vec<_>, _> = (0..settings.workers).map(|_| build()).collect();
        let consumers = consumers.map_err(|mistakes| config::Mistakes(mistakes).to_string())?;
        let stats = Arc::new(Stats::new(settings.workers));
        let share_out = match (settings.workers, consumers.first()) {
            (1, _) | (_, None) => None,
            (_, Some(consumer)) => Some(consumer.batch_max()),
        };
        let mut queue = Queue::new(settings.queue.clone(), stats, share_out);
        let durable = settings.delivery == config::Delivery::AtLeastOnce;
        let mut careful = Vec::new();
        if let Some(kept) = kept {
            let start = kept.start(config)?;
            queue.pause(start.cursor.paused);
            if durable {
                let (name, journal) = (&config.name, kept.journal.clone());
                queue = queue.with_journal(name, journal, settings.prefixes(), &start);
                careful = kept.careful(name, start.cursor.position, consumers.len())?;
            }
            let waiting = kept.dead_letters.summary();
            if waiting
                .get(&config.name)
                .is_some_and(|letters| letters.requeued > 0)
            {
                queue.announce_letters();
            }
        }
        careful.resize_with(consumers.len(), || None);
        let queue = Arc::new(queue);
        let bucket = |rate| Mutex::new(Bucket::new(rate, settings.burst, Instant::now()));
        let settings = Arc::new(runner::Settings {
            name: config.name.clone(),
            retry: settings.retry.clone(),
            rate: settings.rate.map(bucket),
            batch_limit: if settings.rate.is_some() {
                settings.burst
            } else {
                usize::MAX
            },
            lane: shared.lane,
            alone: shared.alone.clone(),
            build,
            filter: shared.validation.filter(config),
            dead_letters: kept.as_ref().map(|kept| kept.dead_letters.clone()),
        });
        Ok(Workers {
            config,
            recorder,
            settings,
            queue,
            consumers: consumers.into_iter().zip(careful).collect(),
        })
    }

    fn figures(&self) -> ConsumerFigures {
        let settings = &self.config.settings;
        let mut figures = ConsumerFigures::new(
            &self.config.name,
            self.config.kind.name(),
            settings.prefixes(),
            settings.queue.messages,
            self.queue.stats().clone(),
        );
        figures.limits = Limits {
            rate_per_second: settings.rate.map(|rate| rate.per_second),
            lane: settings.lane.clone(),
            keyed: settings.key.is_some(),
            attempts: settings.retry.attempts,
        };
        figures
    }

    fn spawn(self, threads: &mut Threads, stop: &Stop) -> Result<(), String> {
        let name = &self.config.name;
        let workers = self.consumers.len();
        let mut supplies: Vec<Box<dyn Supply>> = Vec::new();
        match &self.config.settings.key {
            Some(key) => {
                let (dispatcher, inboxes) =
                    Dispatcher::new(self.queue.clone(), key.clone(), workers);
                supplies.extend(inboxes.into_iter().map(|inbox| Box::new(inbox) as Box<_>));
                threads.spawn(&format!("{name}.key"), Role::Worker, move || {
                    dispatcher.run();
                    Ok(())
                })?;
            }
            None => {
                let taker = |worker| Box::new(Taker::new(self.queue.clone(), Some(worker)));
                supplies.extend((0..workers).map(|worker| taker(worker) as Box<_>));
            }
        }
        let consumers = self.consumers.into_iter().zip(supplies).enumerate();
        for (index, ((consumer, careful), supply)) in consumers {
            let name = if workers == 1 {
                name.clone()
            } else {
                format!("{name}.{index}")
            };
            let (settings, queue) = (self.settings.clone(), self.queue.clone());
            let (stop, recorder) = (stop.clone(), self.recorder.clone());
            threads.spawn(&name, Role::Worker, move || {
                let worker = queue.stats().worker(index);
                let runner =
                    Runner::new(&settings, &queue, worker, supply, &stop, consumer, careful);
                with_local_recorder(&recorder, || runner.run());
                Ok(())
            })?;
        }
        Ok(())
    }
}
