//! The kind `irc` in a hub, beside a real ngircd that is killed while it works.

#[path = "../../consumers/irc/tests/servers/mod.rs"]
mod servers;

use std::collections::BTreeSet;

use weir::backend::memory::Memory;
use weir::{Config, Hub, Registry};

use servers::{Gate, Ngircd, Watcher, eventually};

#[test]
#[ignore = "needs peers: make test"]
fn two_consumers_share_a_connection_and_a_killed_server_loses_nothing() {
    const MESSAGES: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let mut server = Ngircd::start(dir.path(), "");
    let gate = Gate::before(server.port);
    let consumer = |name: &str| {
        format!(
            "[consumers.{name}]\nkind = 'irc'\ntopics = ['{name}.']\nlane = 'irc'\n\
             retry = {{ attempts = 0, delay_max = '1s' }}\nchannels = ['#weir']\n\
             flood.policy = 'post'\n[consumers.{name}.connection]\n\
             server = '127.0.0.1:{}'\nnick = 'weir'\ntls = false\nline_rate = '1000/s'\n",
            gate.port
        )
    };
    let config = format!(
        "[hub]\nhttp = ''\ndata_dir = {:?}\n{}{}",
        dir.path().join("data"),
        consumer("one"),
        consumer("other")
    );
    let config = Config::embedded(&config, &Registry::builtin())
        .unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let (feed, backend) = Memory::new(1000);
    let first = Watcher::join(server.port, "ann", "#weir");
    let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
    for number in 0..MESSAGES {
        let topic = ["one.t", "other.t"][number % 2];
        feed.send(topic, format!("message {number}.")).unwrap();
    }
    eventually("some is said", || first.said("weir").len() >= MESSAGES / 3);
    gate.set(false);
    server.kill();
    eventually("the reader is cut off", || first.is_cut_off());
    server.start_again();
    let second = Watcher::join(server.port, "ann", "#weir");
    gate.set(true);
    let settled = || -> u64 { (hub.status().consumers.iter()).map(|c| c.consumed).sum() };
    eventually("all is consumed", || settled() == MESSAGES as u64);

    let said = || [first.said("weir"), second.said("weir")].concat();
    let different = || said().into_iter().collect::<BTreeSet<String>>().len();
    eventually("all is read", || different() == MESSAGES);
    println!("{} lines of {MESSAGES} messages", said().len());
    for watcher in [&first, &second] {
        let lines = watcher.lines();
        let joins = lines
            .iter()
            .filter(|line| line.starts_with(":weir") && line.contains(" JOIN "));
        assert_eq!(joins.count(), 1, "{lines:?}");
    }
    hub.stop();
    eventually("it says that it goes", || {
        let lines = second.lines();
        lines
            .iter()
            .any(|line| line.starts_with(":weir!") && line.contains(" QUIT "))
    });
}
