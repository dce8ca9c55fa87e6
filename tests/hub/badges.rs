//! Badges from one end to the other: slow database queries on a bus, an award on another.

use serde_json::Value;

use crate::support::*;

#[test]
fn slow_database_queries_earn_a_badge_that_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let rules = "[[rule]]\nid = 'patience'\nname = 'Patience'\ntopics = ['org.example.db.query']\n\
                 when = [{ at = '/msg/seconds', at_least = 2 }]\nrecipient = '/msg/user'\n\
                 count = 3\nwithin = '7d'\n";
    std::fs::write(dir.path().join("badges.toml"), rules).unwrap();
    // The hub hears what it publishes, and its heartbeat tells that it does.
    let start = |inproc: &str| {
        let bus = Bus::tcp();
        let (recorder, seen) = recorder("recorder");
        let toml = format!(
            "hub.data_dir = {:?}\n{}\
             [[backend]]\nconnect = ['{inproc}']\n\
             [publish]\nbind = ['{inproc}']\n\
             [producers.heartbeat]\ninterval = '5ms'\n\
             [consumers.badges]\ntopics = 'org.example.'\nrules = ['badges.toml']\n\
             award_topic = 'org.badges.award'\n\
             [consumers.recorder]\ntopics = ['org.badges.', 'weir.heartbeat']\n",
            dir.path(),
            connect(&[&bus.endpoint]),
        );
        let hub = hub(&toml, [recorder]);
        bus.subscriptions(3);
        while next(&seen).0 != "weir.heartbeat" {}
        (bus, hub, seen)
    };
    let query = |bus: &Bus, user: &str, seconds: f64| {
        let message = serde_json::json!({ "msg": { "user": user, "seconds": seconds } });
        bus.publish("org.example.db.query", message.to_string());
    };

    let (bus, hub, _seen) = start("inproc://badges-1");
    query(&bus, "ann", 3.5);
    query(&bus, "ann", 0.1);
    query(&bus, "ann", 2.0);
    query(&bus, "bob", 4.0);
    eventually("counted", || consumer(&hub, "badges").consumed == 4);
    hub.stop();

    // What was counted is there after a restart.
    let (bus, hub, seen) = start("inproc://badges-2");
    for _ in 0..3 {
        query(&bus, "ann", 9.0);
    }
    let award = loop {
        let (topic, award) = next(&seen);
        if topic == "org.badges.award" {
            break award;
        }
    };
    let award: Value = serde_json::from_slice(&award).unwrap();
    assert_eq!(award["msg"]["badge"]["badge_id"], "patience");
    assert_eq!(award["msg"]["user"]["username"], "ann");
    eventually("counted", || consumer(&hub, "badges").consumed == 3);
    assert_conserved(&hub.stop().status);
    // And only one: what came after the first four found it given.
    assert_eq!(
        seen.iter()
            .filter(|(topic, _)| topic != "weir.heartbeat")
            .count(),
        0
    );
    let database = rusqlite::Connection::open(dir.path().join("archive.db")).unwrap();
    let awards = "SELECT count(*) || max(recipient) FROM badge_awards WHERE published_ns > 0";
    let awards: String = database.query_row(awards, (), |row| row.get(0)).unwrap();
    assert_eq!(awards, "1ann");
}
