//! Stops under load: what was not delivered waits in the journal.

use crate::rounds::{Load, ROLES, finish};
use crate::scene::{Chance, Scene, eventually};

/// Starts a hub and waits until it is behind.
fn behind(scene: &mut Scene) -> crate::scene::Hub {
    let mut hub = scene.start();
    eventually("behind", || {
        let slow = hub.consumer("slow");
        slow["behind_messages"].as_u64() > Some(100) && slow["consumed"].as_u64() > Some(10)
    });
    hub
}

pub fn a_stop_under_load_loses_nothing() {
    let settings = "hub.stop_deadline = '100ms'";
    let mut scene = Scene::new();
    let load = Load::start(scene.publisher(), Chance(1));
    for _ in 0..3 {
        scene.configure(settings, &ROLES);
        let hub = behind(&mut scene);
        hub.signal("TERM");
        assert_eq!(hub.end(), Some(0), "{}", scene.log());
    }
    let journal = finish(&mut scene, load, settings);
    for role in &ROLES {
        // Each delivery was let to end, and what had ended was noted.
        let delivered = scene.check(role, &journal);
        assert_eq!(delivered.again, 0, "{}", role.name);
    }
}

pub fn a_second_signal_loses_nothing() {
    let settings = "hub.stop_deadline = '1h'";
    let mut scene = Scene::new();
    let load = Load::start(scene.publisher(), Chance(2));
    for signals in [["TERM", "INT"], ["INT", "TERM"], ["TERM", "HUP"]] {
        scene.configure(settings, &ROLES);
        let hub = behind(&mut scene);
        // Two of the same could arrive as one.
        signals.iter().for_each(|signal| hub.signal(signal));
        let code = hub.end();
        assert!(matches!(code, Some(129 | 130 | 143)), "{code:?}");
    }
    let journal = finish(&mut scene, load, settings);
    for role in &ROLES {
        scene.check(role, &journal);
    }
}
