//! Tests of the scheduler's behaviours, one by one. In `tests/random.rs` everything happens at once, and
//! `tests/oracle.rs` checks the decisions.

mod agents;
mod fairness;
mod oracle;
mod play;
mod random;
mod regressions;
mod returning;
mod snapshot;
mod unreleased;
mod world;

use crate::units::Tokens;
use crate::*;
use std::time::Duration;
use world::{World, policy, unforeseen, usage, with};

#[test]
fn a_step_of_a_leased_program_goes_at_once_past_every_waiter() {
    let mut world = World::one_backend(10_000);
    let first = world.arrive("a", 4_000);
    world.answer(first, usage(4_000, 100));
    let big = world.arrive("b", 9_000);
    assert!(world.held(big));
    let next = world.arrive("a", 4_500);
    assert_eq!(world.went(next), Some(DispatchKind::Leased));
    assert!(world.held(big));
}

#[test]
fn a_step_that_does_not_fit_is_held_until_something_ends() {
    let mut world = World::one_backend(10_000);
    let a = world.arrive("a", 6_000);
    let b = world.arrive("b", 6_000);
    assert_eq!(world.went(a), Some(DispatchKind::New));
    assert!(world.held(b));
    assert_eq!(world.reason(b), Some(HoldReason::NoRoom));
    world.answer(a, usage(6_000, 50));
    assert!(world.held(b), "the idle program has only just stopped: its prefix is worth more than the wait");
    world.release("a");
    assert_eq!(world.went(b), Some(DispatchKind::New));
}

#[test]
fn a_program_idle_for_longer_than_it_costs_to_recompute_makes_room() {
    let mut world = World::one_backend(10_000);
    let a = world.arrive("a", 6_000);
    world.answer(a, usage(6_000, 50));
    let b = world.arrive("b", 6_000);
    assert!(world.held(b));
    // 6,000 tokens take 0.6 s at 10,000 tokens/s, and a recomputation would stall no other program. So after ten
    // seconds the lease may go.
    world.ticks(10);
    assert_eq!(world.went(b), Some(DispatchKind::New));
    assert_eq!(world.paused("a"), Some(PauseReason::Evicted));
}

#[test]
fn new_programs_go_in_the_order_they_came_and_a_large_one_is_not_overtaken() {
    let mut world = World::new(unforeseen(), &[Some(10_000)]);
    let a = world.arrive("a", 6_000);
    let large = world.arrive("large", 8_000);
    let small = world.arrive("small", 100);
    assert!(world.held(large) && world.held(small), "smallest first starves the large");
    world.end(a, Outcome::Rejected);
    assert!(world.went(large).is_some());
    assert!(world.went(small).is_some(), "there is room for both");
}

#[test]
fn no_new_program_is_admitted_while_a_started_one_is_held() {
    let mut world = World::new(unforeseen(), &[Some(10_000)]);
    let a = world.arrive("a", 5_000);
    world.answer(a, usage(5_000, 10));
    world.down(0);
    world.up(0);
    let b = world.arrive("b", 9_000);
    let a = world.arrive("a", 5_100);
    let c = world.arrive("c", 100);
    assert!(world.went(b).is_some());
    assert!(world.held(a));
    assert!(world.held(c), "it would fit, but it is new");
    world.end(b, Outcome::Abandoned);
    assert_eq!(world.went(a), Some(DispatchKind::Resumed));
    assert!(world.went(c).is_some());
}

#[test]
fn over_capacity_by_one_token_pauses_one_program_and_not_all() {
    for (over, expected) in [(0, None), (1, Some(PauseReason::OverCapacity))] {
        let mut world = World::new(unforeseen(), &[Some(10_000)]);
        for name in ["a", "b", "c", "d", "e"] {
            let step = world.arrive(name, 1_800);
            world.answer(step, usage(1_800, 100));
        }
        // 2,100 is the largest prompt that fits: 9,800 less the four other programs of 1,900 each, less an answer of
        // 100.
        let grown = world.arrive("a", 2_100 + over);
        assert_eq!(world.went(grown), Some(DispatchKind::Leased));
        assert_eq!(world.paused("e"), expected, "the youngest goes first");
        assert!(["b", "c", "d"].iter().all(|name| world.paused(name).is_none()));
    }
}

#[test]
fn the_oldest_program_is_never_paused_for_a_younger_one() {
    let mut world = World::new(unforeseen(), &[Some(10_000)]);
    let a = world.arrive("a", 5_000);
    world.answer(a, usage(5_000, 10));
    let b = world.arrive("b", 3_000);
    world.answer(b, usage(3_000, 10));
    let grown = world.arrive("b", 6_500);
    assert!(world.held(grown), "only an older program is in the way: this one waits");
    assert_eq!(world.paused("a"), None);
    assert_eq!(world.paused("b"), Some(PauseReason::OverCapacity));
}

#[test]
fn a_lost_prefix_costs_the_lease() {
    let mut world = World::one_backend(100_000);
    let a = world.arrive("a", 20_000);
    world.answer(a, usage(20_000, 100));
    world.report(0, BackendReport { restarted: true, ..Default::default() });
    let next = world.arrive("a", 20_200);
    assert_eq!(world.paused("a"), Some(PauseReason::CacheLost));
    assert_eq!(world.went(next), Some(DispatchKind::Resumed), "it queues, and there is room");
}

#[test]
fn a_program_returns_to_the_backend_that_still_has_its_prefix() {
    let mut world = World::new(policy(), &[Some(50_000), Some(50_000)]);
    let a = world.arrive("a", 20_000);
    let home = world.place(a);
    world.answer(a, usage(20_000, 100));
    let step = world.arrive("a", 20_100);
    world.end(step, Outcome::Failed);
    assert_eq!(world.paused("a"), Some(PauseReason::Error));
    let b = world.arrive("b", 100);
    world.answer(b, usage(100, 10));
    let step = world.arrive("a", 20_200);
    assert_ne!(world.place(step), None);
    world.answer(step, usage(20_200, 10));
    let step = world.arrive("a", 20_300);
    assert!(world.place(step).is_some() && home.is_some());
    assert_eq!(world.went(step), Some(DispatchKind::Leased));
}

#[test]
fn a_backend_that_goes_loses_its_leases_at_once_and_its_programs_go_elsewhere() {
    let mut world = World::new(policy(), &[Some(50_000), Some(50_000)]);
    let a = world.arrive("a", 20_000);
    let home = world.place(a).unwrap();
    world.answer(a, usage(20_000, 100));
    world.down(home);
    assert_eq!(world.paused("a"), Some(PauseReason::BackendDown));
    let next = world.arrive("a", 20_200);
    assert_eq!(world.place(next), Some(1 - home));
    assert!(world.moved("a"));
}

#[test]
fn a_step_that_could_not_be_delivered_goes_elsewhere() {
    let mut world = World::new(policy(), &[Some(50_000), Some(50_000)]);
    let a = world.arrive("a", 2_000);
    let first = world.place(a).unwrap();
    world.undelivered(a);
    assert_eq!(world.place(a), Some(1 - first));
    let alone = world.arrive("b", 2_000);
    let there = world.place(alone).unwrap();
    world.down(1 - there);
    world.undelivered(alone);
    assert!(world.held(alone), "there is no other: it waits for its backend to return");
    world.up(there);
    assert_eq!(world.place(alone), Some(there));
}

#[test]
fn a_step_that_could_be_delivered_nowhere_waits_for_the_first_backend_that_is_found_well() {
    let mut world = World::new(policy(), &[Some(50_000); 3]);
    let a = world.arrive("a", 2_000);
    let first = world.place(a).unwrap();
    world.undelivered(a);
    let second = world.place(a).unwrap();
    world.undelivered(a);
    let third = world.place(a).unwrap();
    assert_eq!(first + second + third, 3, "each of them once");
    // A health check finds the backend well while the step runs elsewhere, so the step may come back to it.
    world.up(second);
    world.undelivered(a);
    assert_eq!(world.place(a), Some(second));
    world.undelivered(a);
    assert!(world.held(a));
    world.up(third);
    assert_eq!(world.place(a), Some(third));
}

#[test]
fn without_a_backend_a_step_waits_for_a_while_and_is_then_refused() {
    let mut world = World::new(policy(), &[Some(10_000)]);
    world.down(0);
    let a = world.arrive("a", 100);
    let unlabelled = world.arrive_unlabelled();
    assert_eq!(world.reason(a), Some(HoldReason::NoBackend));
    world.ticks(29);
    assert!(world.held(a) && world.held(unlabelled));
    world.ticks(2);
    assert_eq!(world.refused(a), Some(RefuseReason::NoBackend));
    assert_eq!(world.refused(unlabelled), Some(RefuseReason::NoBackend));
    world.assert_as_if_nothing_had_been();
}

#[test]
fn a_program_larger_than_any_backend_is_admitted_alone() {
    let mut world = World::one_backend(10_000);
    let small = world.arrive("small", 2_000);
    let giant = world.arrive("giant", 50_000);
    assert!(world.held(giant));
    world.answer(small, usage(2_000, 10));
    world.release("small");
    assert!(world.went(giant).is_some());
    let other = world.arrive("other", 100);
    assert!(world.held(other), "it runs alone");
}

#[test]
fn a_program_that_outgrows_its_backend_is_resumed_alone() {
    let mut world = World::one_backend(10_000);
    for name in ["older", "giant"] {
        let step = world.arrive(name, 1_000);
        world.answer(step, usage(1_000, 10));
    }
    let grown = world.arrive("giant", 50_000);
    assert!(world.held(grown));
    world.ticks(10);
    assert_eq!(world.paused("older"), Some(PauseReason::Evicted));
    assert_eq!(world.went(grown), Some(DispatchKind::Resumed));
}

#[test]
fn a_release_refuses_held_steps_and_frees_the_key_at_once() {
    let mut world = World::one_backend(10_000);
    let a = world.arrive("a", 9_000);
    let b = world.arrive("b", 9_000);
    world.release("b");
    assert_eq!(world.refused(b), Some(RefuseReason::Released));
    world.release("a");
    assert!(world.program("a").is_none());
    assert_eq!(world.load(0).in_flight, 1, "what runs is never interrupted");
    let again = world.arrive("a", 100);
    assert_eq!(world.program("a").map(|program| program.steps), Some(0), "a new program of the same name");
    world.answer(a, usage(9_000, 10));
    world.answer(again, usage(100, 10));
    world.release("a");
    world.assert_as_if_nothing_had_been();
}

#[test]
fn steps_of_one_program_overlap_and_are_charged_each() {
    let mut world = World::one_backend(100_000);
    let first = world.arrive("a", 10_000);
    let second = world.arrive("a", 10_000);
    assert!(world.went(second).is_some());
    assert!(world.load(0).charged_running >= Tokens(20_000));
    world.answer(second, usage(12_000, 100));
    world.answer(first, usage(10_000, 100));
    assert_eq!(world.program("a").unwrap().context, Tokens(12_100), "the later turn ended first: it stands");
    assert_eq!(world.load(0).charged_idle, Tokens(12_100));
}

#[test]
fn missing_usage_leaves_the_estimate_standing() {
    let mut world = World::one_backend(100_000);
    let step = world.arrive("a", 10_000);
    world.handle(Event::Progress { step, output: Tokens(500) });
    world.end(step, Outcome::Completed(None));
    assert_eq!(world.program("a").unwrap().context, Tokens(10_500));
}

#[test]
fn a_step_held_too_long_is_forced_in_when_its_program_has_started_and_refused_when_not() {
    let mut world = World::one_backend(10_000);
    let a = world.arrive("a", 6_000);
    world.answer(a, usage(6_000, 10));
    world.down(0);
    world.up(0);
    let b = world.arrive("b", 6_000);
    let a = world.arrive("a", 6_100);
    let c = world.arrive("c", 6_000);
    assert!(world.went(b).is_some());
    assert!(world.held(a) && world.held(c));
    world.ticks(1_801);
    assert_eq!(world.went(a), Some(DispatchKind::Forced));
    assert_eq!(world.refused(c), Some(RefuseReason::HeldTooLong));
}

#[test]
fn on_timeout_reject_refuses_started_programs_too() {
    let mut world = World::new(with(|settings| settings.hold.on_timeout = OnTimeout::Reject), &[Some(10_000)]);
    let a = world.arrive("a", 6_000);
    world.answer(a, usage(6_000, 10));
    world.down(0);
    world.up(0);
    let b = world.arrive("b", 6_000);
    let a = world.arrive("a", 6_100);
    world.ticks(1_801);
    assert!(world.went(b).is_some());
    assert_eq!(world.refused(a), Some(RefuseReason::HeldTooLong));
}

#[test]
fn a_full_queue_refuses_and_forgets() {
    let mut world = World::new(with(|settings| settings.hold.queue = 1), &[Some(10_000)]);
    let _a = world.arrive("a", 9_000);
    let _b = world.arrive("b", 9_000);
    let c = world.arrive("c", 9_000);
    assert_eq!(world.refused(c), Some(RefuseReason::QueueFull));
    assert!(world.program("c").is_none());
}

#[test]
fn programs_that_never_end_are_forgotten_after_a_while_and_above_the_limit() {
    let mut world = World::new(Policy { max_programs: 3, ..policy() }, &[None]);
    for name in ["a", "b", "c", "d"] {
        let step = world.arrive(name, 100);
        world.answer(step, usage(100, 10));
    }
    assert!(world.program("a").is_none(), "the longest idle one made room");
    assert!(world.program("d").is_some());
    world.ticks(1_802);
    assert_eq!(world.scheduler.programs().len(), 0);
    world.assert_as_if_nothing_had_been();
}

#[test]
fn a_shared_prefix_is_counted_once() {
    let mut world = World::one_backend(10_000);
    for name in ["a", "b", "c"] {
        let step = world.arrive(name, 2_000);
        world.answer(step, Usage { cached: Some(Tokens(1_000)), ..usage(2_000, 100) });
    }
    let load = world.load(0);
    assert_eq!(load.charged_idle, Tokens(3 * 1_100));
    assert_eq!(load.effective_capacity, Some(Tokens(9_800 - 1_000)));
}

#[test]
fn freezing_holds_everything_and_thawing_lets_leased_programs_go_first() {
    let mut world = World::one_backend(10_000);
    let a = world.arrive("a", 3_000);
    world.answer(a, usage(3_000, 10));
    world.handle(Event::Freeze(true));
    let (a, b, c) = (world.arrive("a", 3_100), world.arrive("b", 100), world.arrive_unlabelled());
    assert!(world.held(a) && world.held(b) && world.held(c));
    assert_eq!(world.reason(a), Some(HoldReason::Frozen));
    world.handle(Event::Freeze(false));
    assert_eq!(world.went(a), Some(DispatchKind::Leased));
    assert!(world.went(b).is_some() && world.went(c).is_some());
}

#[test]
fn draining_the_server_refuses_what_waits_and_lets_the_rest_end() {
    let mut world = World::one_backend(10_000);
    let a = world.arrive("a", 9_000);
    let b = world.arrive("b", 9_000);
    world.handle(Event::Drain);
    assert_eq!(world.refused(b), Some(RefuseReason::Draining));
    let late = world.arrive("c", 10);
    assert_eq!(world.refused(late), Some(RefuseReason::Draining));
    world.answer(a, usage(9_000, 10));
    assert_eq!(world.scheduler.open_steps(), 0);
}

#[test]
fn a_draining_backend_ends_its_steps_in_peace_and_gets_no_new_ones() {
    let mut world = World::new(policy(), &[Some(50_000), Some(50_000)]);
    let a = world.arrive("a", 1_000);
    let home = world.place(a).unwrap();
    world.handle(Event::BackendDraining(BackendId(home)));
    world.answer(a, usage(1_000, 10));
    let next = world.arrive("a", 1_100);
    assert_eq!(world.place(next), Some(1 - home));
}

#[test]
fn unlabelled_steps_go_to_the_least_loaded_backend_for_its_weight() {
    let mut world = World::new(policy(), &[None, None]);
    let places: Vec<_> = (0..4).map(|_| world.arrive_unlabelled()).collect();
    let on_first = places.iter().filter(|step| world.place(**step) == Some(0)).count();
    assert_eq!(on_first, 2);
}

#[test]
fn an_unlabelled_step_that_has_no_place_left_stops_nobody_else() {
    let mut world = World::one_backend(10_000);
    let unlucky = world.arrive_unlabelled();
    world.undelivered(unlucky);
    assert!(world.held(unlucky));
    let other = world.arrive_unlabelled();
    assert_eq!(world.place(other), Some(0));
    world.up(0);
    assert!(!world.held(unlucky), "its backend is back");
}

#[test]
fn round_robin_takes_turns_and_still_knows_its_programs() {
    let mut world = World::new(Policy { routing: Routing::RoundRobin, ..policy() }, &[Some(1_000), Some(1_000)]);
    let steps: Vec<_> = (0..4).map(|_| world.arrive("a", 5_000)).collect();
    let places: Vec<_> = steps.iter().map(|&step| world.place(step).unwrap()).collect();
    assert_eq!(places, [0, 1, 0, 1]);
    for step in steps {
        world.answer(step, usage(5_000, 10));
    }
    assert_eq!(world.program("a").map(|program| program.steps), Some(4));
}

#[test]
fn a_final_step_ends_its_program() {
    let mut world = World::one_backend(10_000);
    let step = world.arrive_last("a", 1_000);
    assert!(world.program("a").is_some());
    world.answer(step, usage(1_000, 10));
    assert!(world.program("a").is_none());
    world.assert_as_if_nothing_had_been();
}

#[test]
fn heavy_prefill_waits_while_enough_is_promised() {
    let mut world = World::one_backend(1_000_000);
    let a = world.arrive("a", 15_000);
    let b = world.arrive("b", 15_000);
    let light = world.arrive("light", 1_000);
    assert!(world.went(a).is_some());
    assert_eq!(world.reason(b), Some(HoldReason::PrefillBusy));
    assert!(world.held(light), "new programs keep their order");
    world.handle(Event::FirstToken(a));
    assert!(world.went(b).is_some() && world.went(light).is_some());
}

#[test]
fn the_same_events_give_the_same_decisions() {
    let run = || {
        let mut world = World::new(policy(), &[Some(20_000), Some(30_000)]);
        for round in 0..200_u64 {
            let step = world.arrive(&format!("p{}", round * 7 % 13), 500 + round * 37 % 4_000);
            if round % 3 != 0 && world.went(step).is_some() {
                world.answer(step, usage(500 + round * 37 % 4_000, 20));
            }
            world.ticks(1);
        }
        world.log
    };
    assert_eq!(run(), run());
}

#[test]
fn a_capacity_that_is_too_high_is_corrected_unless_feedback_is_off() {
    for feedback in [Feedback::Auto, Feedback::Off] {
        let policy = with(|settings| (settings.forecast.slack, settings.feedback) = (9.0, feedback));
        let mut world = World::new(policy, &[Some(10_000)]);
        for tokens in 5_000..5_100 {
            let step = world.arrive("a", tokens);
            // The whole previous prompt should have been in the cache.
            let usage = Usage { cached: Some(Tokens(1_000)), ..usage(tokens, 1) };
            world.answer(step, usage);
        }
        let full = Tokens(9_800);
        let effective = world.load(0).effective_capacity.unwrap();
        assert_eq!(effective < full, feedback == Feedback::Auto, "{effective}");
    }
}
