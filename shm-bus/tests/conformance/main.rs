//! The contract of `shm_bus::transport`, held by every transport, with peers that are processes of their own.
//!
//! Each case is a function of a [`Kind`]; `conformance!` makes a test of each case for each transport. A
//! transport that isn't to be had here is skipped, and says why; with `SPRY_TEST_ALL=1` that is a failure.
//!
//! Peers are this same binary, started again as the test `peer_process` with a role in its environment
//! ([`peer`]). Nothing sleeps; whatever is waited for has a watchdog.
#![cfg(not(loom))]

mod chain_rules;
mod chains;
mod deaths;
mod delivery;
mod emissions;
mod harness;
mod many;
mod payload;
mod peer;
mod rules;
mod service;

use shm_bus::transport::Kind;

/// Not a test of anything: what the other tests start as a peer.
#[test]
fn peer_process() {
    peer::run_if_asked();
}

macro_rules! conformance {
    ($($transport:ident: $kind:expr;)*) => {
        $(mod $transport {
            conformance!(@cases $kind;
                delivery::answers_come_back_stamped,
                delivery::order_is_kept,
                delivery::several_senders_each_get_their_own,
                delivery::one_port_sends_for_another,
                delivery::who_is_told_once_finds_all_that_is_there,
                delivery::what_is_prepared_is_there_before_its_peer_hears,
                service::nobody_is_busy_twice,
                service::held_until_admitted,
                service::single_use_means_one_answer,
                service::retired_or_busy_never_both,
                service::a_name_of_before_moves_nothing,
                service::home_is_preferred,
                service::a_closed_hub_ends_its_peers,
                rules::an_answer_to_something_else,
                rules::an_answer_given_twice,
                rules::an_answer_while_idle,
                rules::messages_of_other_lengths,
                rules::wakes_with_nothing_behind_them,
                rules::a_closed_end,
                deaths::at_each_point,
                deaths::at_any_time,
                deaths::nothing_stays_open,
                payload::bytes_are_preserved,
                chains::of_any_length,
                chains::through_one_peer,
                chains::a_failure_is_its_steps,
                chains::nobody_idle_comes_back_and_goes_on,
                chains::a_held_step_comes_back,
                chains::while_somebody_waits_for_a_function_its_runs_come_back,
                chains::no_step_starts_too_late,
                chains::anothers_trail_is_left_alone,
                chains::a_route_is_set_again,
                chain_rules::an_answer_to_anothers_run,
                chain_rules::a_way_that_the_peer_chooses,
                chain_rules::a_status_that_there_is_not,
                chain_rules::a_death_at_each_step,
                emissions::come_in_order_before_the_answer,
                emissions::are_bounded,
                emissions::of_who_holds_nothing,
                many::chains_do_not_cross,
                many::runs_keep_their_sums,
            );
        })*
    };
    (@cases $kind:expr; $($module:ident::$case:ident,)*) => {
        $(#[test]
        fn $case() {
            crate::harness::with(stringify!($case), $kind, crate::$module::$case);
        })*
    };
}

conformance! {
    sockmap: super::Kind::Sockmap;
    futex: super::Kind::Futex;
    broker: super::Kind::Broker;
}
