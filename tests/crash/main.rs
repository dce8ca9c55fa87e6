//! The end of the process at any moment, and the end of the disk: what was taken in still arrives.
//!
//! The hub under test is a process of its own, this program started anew with `CRASH_RUN` set: the
//! whole of `weir hub`, with one kind of consumer more, which writes down what it gets
//! (`witness.rs`). What it has to have got is read from the journal afterwards (`scene.rs`).
//!
//! A SIGKILL takes nothing from the page cache, so after it everything that the journal has must
//! arrive, synced or not. What only a power failure takes is left to the journal's own tests.
//!
//! `WEIR_CRASH_ROUNDS` is the number of kills (default 50), `WEIR_CRASH_SEED` repeats a run's
//! random choices.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // a test's name says what it is about

mod disk;
mod fatal;
mod rounds;
mod scene;
mod stopping;
mod witness;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

macro_rules! trials {
    ($($module:ident::$test:ident,)*) => {
        vec![$(Trial::test(stringify!($test), || {
            $module::$test();
            Ok(())
        })),*]
    };
}

fn main() -> ExitCode {
    if std::env::var_os(scene::RUN).is_some() {
        return weir::cli::main(weir::Registry::builtin().with(witness::kind()));
    }
    let trials = trials![
        rounds::fifty_rounds_of_kill_9,
        rounds::rounds_of_kill_9_when_each_batch_is_synced,
        rounds::the_cursors_follow_what_is_settled,
        rounds::a_hub_that_dies_soon_after_each_start_gets_on,
        fatal::a_message_that_kills_the_process_is_set_aside,
        fatal::in_a_batch_it_is_found_and_the_others_are_delivered,
        fatal::several_that_kill_the_process_are_all_set_aside,
        fatal::it_costs_no_other_consumer_a_message,
        stopping::a_stop_under_load_loses_nothing,
        stopping::a_second_signal_loses_nothing,
        disk::a_full_disk_is_said_and_the_hub_goes_on,
        disk::a_full_disk_stops_the_intake_if_so_told,
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
