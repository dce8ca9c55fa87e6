//! What the forecasts promise, by name; how right they are is measured in `simulation.rs`.

use std::time::Duration;

use proptest::prelude::*;

use super::simulation::World;
use super::*;
use crate::stats::Stats;

/// A world and what is made of it.
struct Watched {
    world: World,
    forecaster: Forecaster,
    /// What every snapshot says the consumer does.
    state: Option<State>,
}

impl Watched {
    fn new() -> Self {
        Watched {
            world: World::new(7),
            forecaster: Forecaster::new(1),
            state: None,
        }
    }

    /// So many seconds with as many messages as these coming and being settled in each.
    fn pass(&mut self, seconds: u64, arrived: u64, able: u64) -> Forecast {
        for _ in 0..seconds {
            let mut shot = self.world.exactly(arrived, able);
            shot.state = self.state.unwrap_or(shot.state);
            self.forecaster.push(&shot);
        }
        self.forecaster.forecast()
    }
}

fn range(drain: Drain) -> (f64, f64) {
    match drain {
        Drain::Draining {
            low_seconds,
            high_seconds,
            ..
        } => (low_seconds, high_seconds.unwrap_or(f64::INFINITY)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_forecast_is_of_the_wall_clock_and_not_of_processing_time() {
    let mut watched = Watched::new();
    watched.world.receive(10_000);
    // Its deliveries take next to no time, it says, but for a minute it settles 30 a second.
    let mut last = Snapshot::default();
    for _ in 0..60 {
        last = watched.world.exactly(10, 30);
        (last.timed, last.timed_messages) = (last.consumed, last.consumed);
        last.processing_ns = last.consumed;
        watched.forecaster.push(&last);
    }
    let forecast = watched.forecaster.forecast();
    let (low, high) = range(forecast.drain);
    let truth = last.queue_messages as f64 / 20.0;
    assert!(low < truth && truth < high, "{:?}", forecast.drain);
    assert!(high / low <= 1.5, "{:?}", forecast.drain);
    assert_eq!(forecast.service, Some(30.0));
    assert_eq!(
        (forecast.rates.received, forecast.rates.settled),
        (10.0, 30.0)
    );
}

#[test]
fn what_is_empty_growing_steady_or_unknown_is_said_to_be() {
    let mut watched = Watched::new();
    assert_eq!(watched.pass(1, 0, 10).drain, Drain::Empty);
    assert_eq!(watched.pass(60, 5, 10).drain, Drain::Empty);
    let mut watched = Watched::new();
    watched.world.receive(1_000);
    assert_eq!(watched.pass(2, 5, 10).drain, Drain::Unknown);
    assert!(matches!(
        watched.pass(30, 5, 10).drain,
        Drain::Draining { .. }
    ));
    assert_eq!(watched.pass(150, 10, 10).drain, Drain::Steady);
    match watched.pass(60, 22, 10).drain {
        Drain::Growing { per_second } => assert!((per_second - 12.0).abs() < 1.0, "{per_second}"),
        other => panic!("{other}"),
    }
}

#[test]
fn a_stall_is_named_within_two_windows() {
    let mut watched = Watched::new();
    watched.pass(120, 5, 10);
    let (mut named, mut seconds) = (false, 0);
    while !named && seconds < 200 {
        let forecast = watched.pass(1, 5, 0);
        named = matches!(forecast.drain, Drain::Stalled { .. });
        assert_eq!(named, forecast.health == Health::Stalled);
        seconds += 1;
    }
    assert!(
        seconds > STALL_WINDOW as u64 && seconds <= 2 * STALL_WINDOW as u64,
        "{seconds}"
    );
    let forecast = watched.pass(100, 0, 0);
    assert_eq!(
        forecast.drain,
        Drain::Stalled {
            for_seconds: 100.0 + seconds as f64
        }
    );
}

#[test]
fn a_stall_is_named_even_if_only_one_message_is_stuck() {
    let mut watched = Watched::new();
    watched.pass(120, 5, 10);
    watched.pass(1, 1, 0);
    assert_eq!(watched.pass(59, 0, 0).health, Health::Stalled);
}

#[test]
fn long_deliveries_are_no_stall() {
    let mut watched = Watched::new();
    watched.world.receive(50);
    // A minute each, which it settles on the minute.
    for delivery in 0..10 {
        for second in 0..60 {
            let mut shot = watched.world.exactly(0, u64::from(second == 59));
            (shot.timed, shot.timed_messages) = (delivery + 1, delivery + 1);
            shot.processing_ns = (delivery + 1) * 60_000_000_000;
            watched.forecaster.push(&shot);
            assert_ne!(watched.forecaster.forecast().health, Health::Stalled);
        }
    }
    // The window is four minutes now.
    for second in 0..480 {
        let mut shot = watched.world.exactly(0, 0);
        (shot.timed, shot.timed_messages) = (10, 10);
        shot.processing_ns = 600_000_000_000;
        watched.forecaster.push(&shot);
        let stalled = watched.forecaster.forecast().health == Health::Stalled;
        assert!(second > 240 || !stalled, "after {second} s");
    }
    assert_eq!(watched.forecaster.forecast().health, Health::Stalled);
}

#[test]
fn a_long_delivery_that_nothing_waits_for_is_well() {
    let mut watched = Watched::new();
    watched.pass(100, 1, 10);
    watched.pass(1, 1, 0);
    let forecast = watched.pass(STALL_WINDOW as u64, 0, 0);
    assert_eq!(
        (forecast.health, forecast.drain),
        (Health::Ok, Drain::Empty)
    );
}

#[test]
fn after_a_minute_of_steady_rates_the_range_is_narrow() {
    for seed in 1..=10 {
        let mut world = World::new(seed);
        let mut forecaster = Forecaster::new(1);
        world.receive(20_000);
        let mut widths = Vec::new();
        for second in 0..400 {
            forecaster.push(&world.second(20.0, 50.0));
            if second >= 60 {
                let (low, high) = range(forecaster.forecast().drain);
                widths.push(high / low);
            }
        }
        widths.sort_by(f64::total_cmp);
        let (median, widest) = (widths[widths.len() / 2], widths[widths.len() - 1]);
        println!("seed {seed}: median high/low {median:.2}, widest {widest:.2}");
        assert!(median <= 1.5 && widest <= 2.0, "seed {seed}");
    }
}

#[test]
fn one_lucky_message_does_not_end_a_stall() {
    let mut watched = Watched::new();
    watched.world.receive(100);
    watched.pass(60, 5, 10);
    watched.world.receive(1_000);
    assert_eq!(watched.pass(60, 5, 0).health, Health::Stalled);
    for _ in 0..5 {
        assert_eq!(watched.pass(1, 5, 1).health, Health::Stalled);
        let forecast = watched.pass(60, 5, 0);
        assert_eq!(forecast.health, Health::Stalled);
        assert!(matches!(forecast.drain, Drain::Stalled { .. }));
    }
    assert_ne!(
        watched.pass(STALL_PROGRESS.into(), 5, 20).health,
        Health::Stalled
    );
}

#[test]
fn one_empty_moment_does_not_end_a_stall() {
    let mut watched = Watched::new();
    watched.pass(60, 5, 10);
    assert_eq!(watched.pass(60, 1, 0).health, Health::Stalled);
    // All of them at once, then none again.
    let forecast = watched.pass(1, 0, 1_000);
    assert_eq!(forecast.health, Health::Stalled);
    assert!(matches!(forecast.drain, Drain::Stalled { .. }));
    assert_eq!(watched.pass(100, 1, 0).health, Health::Stalled);
    watched.pass(1, 0, 1_000);
    assert_eq!(watched.pass(EMPTY_AWHILE as u64, 0, 10).health, Health::Ok);
}

#[test]
fn a_pause_a_halt_and_a_rate_limit_are_no_stall() {
    for (state, health) in [
        (State::Paused, Health::Paused),
        (State::Halted, Health::Halted),
        (State::RateLimited, Health::FallingBehind),
    ] {
        let mut watched = Watched::new();
        watched.pass(60, 5, 10);
        watched.state = Some(state);
        let forecast = watched.pass(300, 5, 0);
        assert_eq!(forecast.health, health);
        assert_eq!(forecast.drain, Drain::Growing { per_second: 5.0 });
    }
}

#[test]
fn a_pause_is_no_rate_of_service() {
    let mut watched = Watched::new();
    watched.world.receive(5_000);
    watched.pass(120, 0, 20);
    watched.state = Some(State::Paused);
    assert_eq!(watched.pass(600, 0, 0).drain, Drain::Steady);
    watched.state = None;
    let forecast = watched.pass(1, 0, 20);
    assert_eq!(forecast.service, Some(20.0));
    let (low, high) = range(forecast.drain);
    let truth = (5_000 - 121 * 20) as f64 / 20.0;
    assert!(
        low < truth && truth < high && high < 1.5 * low,
        "{low} {high}"
    );
    assert_eq!(forecast.health, Health::Behind);
}

#[test]
fn what_is_skipped_or_lost_is_no_service() {
    let mut watched = Watched::new();
    watched.world.receive(10_000);
    watched.pass(120, 0, 20);
    assert!(!watched.forecaster.record.pending().is_empty());
    watched.world.skip(5_000);
    let forecast = watched.pass(1, 0, 20);
    assert_eq!(forecast.service, Some(20.0));
    let (low, high) = range(forecast.drain);
    let truth = (10_000 - 5_000 - 121 * 20) as f64 / 20.0;
    assert!(
        low < truth && truth < high && high < 1.5 * low,
        "{low} {high}"
    );
    assert!(forecast.rates.settled > 500.0, "it is a departure");
    // One that was made since; those before are void.
    assert_eq!(watched.forecaster.record.pending().len(), 1);
}

#[test]
fn a_replay_makes_earlier_forecasts_void() {
    let mut watched = Watched::new();
    watched.world.receive(10_000);
    watched.pass(120, 0, 20);
    watched.world.receive(50_000);
    let forecast = watched.pass(1, 0, 20);
    assert_eq!(watched.forecaster.record.pending().len(), 1);
    let (low, high) = range(forecast.drain);
    let truth = (60_000 - 121 * 20) as f64 / 20.0;
    assert!(
        low < truth && truth < high && high < 1.5 * low,
        "{low} {high}"
    );
}

#[test]
fn a_burst_is_growth_while_it_lasts_and_a_range_soon_after() {
    let mut watched = Watched::new();
    for _ in 0..10 {
        watched.pass(15, 0, 20);
        watched.pass(1, 1, 20);
        assert_eq!(watched.pass(44, 0, 20).drain, Drain::Empty);
    }
    watched.pass(15, 120, 20);
    for _ in 0..285 {
        match watched.pass(1, 120, 20).drain {
            Drain::Growing { per_second } => assert!(per_second > 50.0, "{per_second}"),
            other => panic!("{other}"),
        }
    }
    watched.pass(30, 0, 20);
    let (low, high) = range(watched.pass(1, 0, 20).drain);
    let truth = (300 * 100 - 31 * 20) as f64 / 20.0;
    assert!(
        low < truth && truth < high && high < 1.5 * low,
        "{low} {truth} {high}"
    );
}

#[test]
fn batches_that_keep_coming_are_a_rate() {
    let mut watched = Watched::new();
    for _ in 0..60 {
        watched.pass(59, 0, 2);
        watched.pass(1, 600, 2);
    }
    match watched.forecaster.forecast().drain {
        Drain::Growing { per_second } => assert!((per_second - 8.0).abs() < 1.0, "{per_second}"),
        other => panic!("{other}"),
    }
}

#[test]
fn accuracy_says_how_right_the_forecasts_were() {
    let mut watched = Watched::new();
    watched.world.receive(10_000);
    assert_eq!(watched.pass(200, 0, 20).accuracy, None);
    let accuracy = watched.pass(310, 0, 20).accuracy.unwrap();
    assert!((45..=51).contains(&accuracy.forecasts), "{accuracy:?}");
    assert!(accuracy.error_ratio < 0.1, "{accuracy:?}");
    assert_eq!(accuracy.contained_ratio, 1.0);
    // Ten times as slow, without notice: what was forecast is missed.
    watched.world.receive(10_000);
    watched.pass(100, 0, 20);
    let wrong = watched.pass(3_000, 0, 2).accuracy.unwrap();
    assert!(wrong.forecasts > accuracy.forecasts, "{wrong:?}");
    assert!(wrong.contained_ratio < 1.0, "{wrong:?}");
}

#[test]
fn a_pause_makes_earlier_forecasts_void() {
    let mut watched = Watched::new();
    watched.world.receive(2_000);
    watched.pass(50, 0, 20);
    watched.state = Some(State::Paused);
    watched.pass(1_000, 0, 0);
    assert!(watched.forecaster.record.pending().is_empty());
    assert_eq!(watched.forecaster.forecast().accuracy, None);
}

#[test]
fn health_says_behind_and_falling_behind() {
    let mut watched = Watched::new();
    assert_eq!(watched.pass(100, 5, 20).health, Health::Ok);
    assert_eq!(watched.pass(90, 30, 20).health, Health::FallingBehind);
    watched.world.receive(2_000);
    assert_eq!(watched.pass(121, 20, 20).health, Health::Behind);
    assert_eq!(watched.pass(400, 5, 20).health, Health::Ok);
    let worst = Health::ALL.into_iter().max();
    assert_eq!(worst, Some(Health::Halted));
    assert!(Health::ALL.is_sorted());
}

#[test]
fn a_backlog_is_behind_from_the_first_sample_on() {
    let mut watched = Watched::new();
    watched.world.receive(500);
    let mut shot = watched.world.exactly(0, 0);
    shot.lag = Duration::from_secs(600);
    watched.forecaster.push(&shot);
    assert_eq!(watched.forecaster.forecast().health, Health::Behind);
}

#[test]
fn a_burst_that_drains_is_behind_but_not_falling_behind() {
    let mut watched = Watched::new();
    watched.pass(100, 0, 1);
    watched.world.receive(300);
    let said: Vec<Health> = (0..120).map(|_| watched.pass(1, 0, 1).health).collect();
    assert!(said.contains(&Health::Behind));
    assert!(!said.contains(&Health::FallingBehind), "{said:?}");
}

#[test]
fn deliveries_that_only_fail_are_no_service() {
    let mut watched = Watched::new();
    let mut shot = watched.world.exactly(1, 0);
    (shot.timed, shot.timed_messages, shot.processing_ns) = (100, 100, 1_000);
    watched.forecaster.push(&shot);
    assert_eq!(watched.forecaster.forecast().service, None);
}

#[test]
fn health_does_not_flap_near_capacity() {
    for (arriving, seed) in [(19.0, 1), (19.6, 2), (19.8, 3), (19.8, 4)] {
        let mut world = World::new(seed);
        let mut forecaster = Forecaster::new(1);
        let (mut changes, mut before) = (0, Health::Ok);
        const HOURS: u32 = 6;
        for _ in 0..HOURS * 3_600 {
            forecaster.push(&world.second(arriving, 20.0));
            let health = forecaster.forecast().health;
            changes += u32::from(health != before);
            before = health;
        }
        println!("{arriving}/s of 20/s: health changes {changes} times in {HOURS} hours");
        assert!(changes <= 5 * HOURS, "{changes} changes at {arriving}/s");
    }
}

#[test]
fn a_clock_set_back_a_gap_and_counters_that_shrink_begin_anew() {
    let spoilt: [fn(&mut Snapshot); 3] = [
        |shot| shot.at_ns -= 3_600_000_000_000,
        |shot| shot.at_ns += 3_600_000_000_000,
        |shot| shot.consumed = 0,
    ];
    for spoil in spoilt {
        let mut watched = Watched::new();
        watched.world.receive(10_000);
        range(watched.pass(60, 0, 20).drain);
        let mut shot = watched.world.exactly(0, 20);
        spoil(&mut shot);
        watched.forecaster.push(&shot);
        let forecast = watched.forecaster.forecast();
        assert_eq!(forecast.drain, Drain::Unknown);
        assert_eq!(forecast.rates, Rates::default());
    }
}

#[test]
fn snapshots_that_come_fast_or_unevenly_change_nothing() {
    let mut forecaster = Forecaster::new(1);
    let mut shot = Snapshot::default();
    let mut ns = 0u64;
    for step in 0..4_000u64 {
        ns += [10, 300, 700, 1_900][step as usize % 4] * 1_000_000;
        shot.at_ns = 1_800_000_000_000_000_000 + ns;
        shot.received = 100_000;
        shot.consumed = ns / 100_000_000;
        shot.queue_messages = shot.received - shot.consumed;
        shot.waiting = shot.queue_messages;
        shot.lag = Duration::from_secs(100);
        forecaster.push(&shot);
    }
    let (low, high) = range(forecaster.forecast().drain);
    let truth = shot.queue_messages as f64 / 10.0;
    assert!(
        low < truth && truth < high && high < 1.5 * low,
        "{low} {truth} {high}"
    );
}

#[test]
fn memory_of_one_consumer_is_bounded() {
    let mut forecaster = Forecaster::new(1);
    let mut world = World::new(1);
    world.receive(1_000_000);
    for half in 0..20_000 {
        let mut shot = world.exactly(0, 1);
        shot.at_ns = half * 500_000_000;
        forecaster.push(&shot);
    }
    let bytes = size_of::<Forecaster>()
        + forecaster.past.capacity() * size_of::<Tally>()
        + forecaster.arrived.bytes()
        + forecaster.served.bytes()
        + forecaster.record.bytes();
    println!("{bytes} bytes a consumer");
    assert!(bytes <= 16 * 1024, "{bytes}");
}

#[test]
fn forecasts_read_well() {
    let clears = |low_seconds, high_seconds| Drain::Draining {
        low_seconds,
        high_seconds,
        likely_seconds: low_seconds,
        confidence: CONFIDENCE,
    };
    for (drain, text) in [
        (clears(240.0, Some(420.0)), "clears in 4-7 min"),
        (clears(12.3, Some(14.8)), "clears in 12-15 s"),
        (clears(80.0, Some(150.0)), "clears in 1.3-2 min"),
        (clears(3_600.0, Some(3_610.0)), "clears in 60 min"),
        (clears(7_200.0, Some(10_800.0)), "clears in 2-3 h"),
        (
            clears(240.0, None),
            "clears in 4 min at the earliest, perhaps never",
        ),
        (Drain::Growing { per_second: 12.3 }, "growing 12/s"),
        (Drain::Growing { per_second: 1.25 }, "growing 1.2/s"),
        (Drain::Growing { per_second: 0.05 }, "growing 3.0/min"),
        (Drain::Stalled { for_seconds: 180.0 }, "stalled for 3 min"),
        (Drain::Stalled { for_seconds: 45.0 }, "stalled for 45 s"),
        (Drain::Empty, "empty"),
        (Drain::Steady, "steady"),
        (Drain::Unknown, "unknown"),
    ] {
        assert_eq!(drain.to_string(), text);
    }
    let json = serde_json::to_value(clears(1.0, None)).unwrap();
    assert_eq!(json["forecast"], "draining");
    assert!(json["high_seconds"].is_null());
    for health in Health::ALL {
        assert_eq!(serde_json::to_value(health).unwrap(), health.as_str());
    }
}

fn at(second: u64, received: u64, queue_messages: u64) -> Snapshot {
    Snapshot {
        at_ns: second * 1_000_000_000,
        received,
        queue_messages,
        ..Snapshot::default()
    }
}

#[test]
fn rates_are_those_of_ten_seconds_and_no_older() {
    let mut forecaster = Forecaster::new(1);
    let mut rates = |shot: Snapshot| {
        forecaster.push(&shot);
        forecaster.forecast().rates
    };
    let of = |received, settled| Rates { received, settled };
    assert_eq!(rates(at(100, 0, 0)), of(0.0, 0.0));
    assert_eq!(rates(at(105, 1000, 500)), of(200.0, 100.0));
    for second in 106..=115 {
        rates(at(second, 1000, 0));
    }
    assert_eq!(rates(at(116, 1000, 0)), of(0.0, 0.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the numbers, nothing panics and what comes out is in order.
    #[test]
    fn no_numbers_panic(
        shots in prop::collection::vec((any::<[u64; 9]>(), any::<[u8; 3]>()), 1..300),
    ) {
        let mut forecaster = Forecaster::new(0);
        let reason = Reason::ALL[shots.len() % Reason::ALL.len()];
        let mut at_ns = 1_000_000_000_000;
        let mut base = [0u64; 8];
        for (numbers, [size, step, state]) in shots {
            // Most follow each other, some are anything at all.
            at_ns = if step == 0 { numbers[8] } else { at_ns + u64::from(step) * 50_000_000 };
            for (base, number) in base.iter_mut().zip(numbers) {
                let number = number >> if size == 0 { 0 } else { 24 + size % 40 };
                *base = if step == 1 { number } else { base.saturating_add(number) };
            }
            let stats = Stats::new(0);
            stats.received(base[7] as usize, 0, 1);
            stats.dropped(reason, base[7] as usize, 0);
            forecaster.push(&Snapshot {
                at_ns,
                received: base[0],
                consumed: base[1],
                dead_lettered: base[2],
                queue_messages: match step {
                    2 => numbers[3],
                    _ => base[0].saturating_sub(base[3]),
                },
                waiting: numbers[4] >> (step % 64),
                lag: Duration::from_nanos(base[5]),
                timed: base[6],
                timed_messages: base[6],
                processing_ns: numbers[7],
                dropped: stats.snapshot().dropped,
                state: State::ALL[usize::from(state) % 9],
                ..Snapshot::default()
            });
            let forecast = forecaster.forecast();
            prop_assert!(forecast.rates.received >= 0.0 && forecast.rates.settled >= 0.0);
            prop_assert!(forecast.service.is_none_or(|service| service > 0.0));
            match forecast.drain {
                Drain::Draining { low_seconds, high_seconds, likely_seconds, .. } => {
                    prop_assert!(0.0 <= low_seconds && low_seconds <= likely_seconds);
                    prop_assert!(likely_seconds <= high_seconds.unwrap_or(f64::INFINITY));
                    prop_assert!(likely_seconds.is_finite());
                }
                Drain::Growing { per_second } => {
                    prop_assert!(per_second > 0.0 && per_second.is_finite());
                }
                Drain::Stalled { for_seconds } => prop_assert!(for_seconds > 0.0),
                Drain::Empty | Drain::Steady | Drain::Unknown => {}
            }
        }
    }
}
