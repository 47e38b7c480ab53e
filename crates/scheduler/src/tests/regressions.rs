//! Cases that broke a scheduler: this one, or another one.

use super::agents::{Agents, Habit};
use super::world::{World, policy, usage};
use super::*;

const SHORT: Habit = Habit { first: 1_000, growth: 300, steps: 4, usage: true, release: true };

#[test]
fn overlapping_turns_that_end_in_any_order_leave_the_latest_standing() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
        let mut world = World::one_backend(100_000);
        let steps: Vec<_> = [4_000, 5_000, 6_000].map(|tokens| world.arrive("a", tokens)).into();
        assert!(world.load(0).charged_running >= Tokens(15_000), "each is charged");
        for at in order {
            world.answer(steps[at], usage(4_000 + 1_000 * at as u64, 100));
        }
        assert_eq!(world.program("a").unwrap().context, Tokens(6_100), "{order:?}");
        assert_eq!((world.load(0).charged_running, world.load(0).charged_idle), (Tokens::ZERO, Tokens(6_100)));
        let next = world.arrive("a", 6_500);
        assert_eq!(world.went(next), Some(DispatchKind::Leased));
        assert_eq!(world.load(0).charged_running, Tokens(6_600), "known tokens are not estimated again: {order:?}");
    }
}

#[test]
fn a_held_head_that_leaves_lets_in_those_behind_it_at_once() {
    let mut world = World::new(unforeseen(), &[Some(10_000)]);
    world.arrive("a", 6_000);
    let head = world.arrive("head", 9_000);
    let behind = [world.arrive("b", 1_000), world.arrive("c", 1_000)];
    assert!(behind.iter().all(|&step| world.held(step)));
    world.end(head, Outcome::Abandoned);
    assert!(behind.iter().all(|&step| world.went(step) == Some(DispatchKind::New)));
    assert!(world.program("head").is_none());
}

#[test]
fn one_of_two_held_steps_that_leaves_takes_nothing_from_the_other() {
    let mut world = World::one_backend(10_000);
    let a = world.arrive("a", 9_000);
    let (first, second) = (world.arrive("b", 4_000), world.arrive("b", 5_000));
    world.end(first, Outcome::Abandoned);
    assert!(world.held(second));
    assert_eq!(world.program("b").map(|program| program.held), Some(1));
    world.end(a, Outcome::Abandoned);
    assert_eq!(world.went(second), Some(DispatchKind::New));
    assert_eq!(world.load(0).charged_running, Tokens(5_100));
}

#[test]
fn a_program_larger_than_any_backend_gets_one_for_itself_and_the_others_go_on() {
    let mut agents = Agents::new(World::new(policy(), &[Some(10_000), Some(10_000)]), SHORT, 8);
    agents.live(30);
    let giant = agents.world.arrive("giant", 50_000);
    agents.live(300);
    let home = agents.world.place(giant).expect("it went") as usize;
    let beside = agents.world.load(home);
    assert_eq!(beside.leased_running + beside.leased_idle, 1);
    let before = agents.steps_on.clone();
    agents.live(60);
    assert!(agents.steps_on[1 - home] > before[1 - home] + 20 && agents.steps_on[home] == before[home]);
}

#[test]
fn a_speed_next_to_nothing_is_no_speed() {
    let mut world = World::one_backend(10_000);
    world.report(0, BackendReport { prefill_rate: Some(1e-300), ..BackendReport::default() });
    let step = world.arrive("a", 5_000);
    world.answer(step, usage(5_000, 100));
    assert_eq!(world.program("a").map(|program| program.context), Some(Tokens(5_100)));
}

#[test]
fn without_usage_and_without_release_programs_come_and_go_all_the_same() {
    let habit = Habit { usage: false, release: false, ..SHORT };
    let run = |habit| {
        let mut agents = Agents::new(World::one_backend(10_000), habit, 10);
        agents.live(300);
        agents
    };
    let (mut bare, told) = (run(habit), run(SHORT));
    assert!(bare.programs * 10 >= told.programs * 6, "{} programs, {} with both", bare.programs, told.programs);
    assert_eq!(bare.refused, 0);
    // No more steps arrive, and the last ones end.
    let open: Vec<StepId> = bare.world.scheduler.steps.keys().copied().collect();
    open.into_iter().for_each(|step| bare.world.end(step, Outcome::Abandoned));
    bare.world.ticks(1_802);
    bare.world.assert_as_if_nothing_had_been();
}

#[test]
fn a_thousand_new_programs_at_once_go_in_the_order_they_came() {
    let mut world = World::new(policy(), &[Some(40_000), Some(60_000)]);
    let steps: Vec<_> = (0..1_000).map(|number| world.arrive_last(&format!("p{number}"), 900)).collect();
    assert!(steps[500..].iter().all(|&step| world.held(step)));
    let mut went = Vec::new();
    while went.len() < steps.len() {
        let open: Vec<_> = steps[went.len()..].iter().copied().take_while(|&step| !world.held(step)).collect();
        assert!(!open.is_empty() || world.now < Duration::from_secs(100), "{} went", went.len());
        open.iter().for_each(|&step| world.end(step, Outcome::Completed(Some(usage(900, 50)))));
        went.extend(open);
        world.ticks(1);
    }
    assert_eq!(went, steps);
    world.assert_as_if_nothing_had_been();
}

/// Number of steps on the second backend for each step on the first.
fn shares(backends: &[(u32, Option<u64>)], agents: u64) -> f64 {
    let habit = Habit { first: 1_900, growth: 0, steps: 5, ..SHORT };
    let mut agents = Agents::new(World::weighed(policy(), backends), habit, agents);
    agents.live(200);
    agents.steps_on[1] as f64 / agents.steps_on[0] as f64
}

#[test]
fn a_backend_of_double_weight_gets_about_double() {
    let share = shares(&[(1, None), (2, None)], 12);
    assert!((1.7..2.3).contains(&share), "{share}");
}

#[test]
fn a_backend_of_double_capacity_gets_about_double_where_room_is_scarce() {
    let share = shares(&[(1, Some(20_000)), (1, Some(40_000))], 40);
    assert!((1.7..2.3).contains(&share), "{share}");
}

#[test]
fn a_backend_that_starts_anew_every_five_minutes_goes_on_working() {
    let world = || World::new(policy(), &[Some(10_000), Some(10_000)]);
    let mut agents = Agents::new(world(), SHORT, 12);
    let mut calm = Agents::new(world(), SHORT, 12);
    calm.live(900);
    for _ in 0..3 {
        agents.live(300);
        agents.world.report(0, BackendReport { restarted: true, prefill_rate: Some(10_000.0), ..Default::default() });
    }
    assert!(agents.programs * 100 >= calm.programs * 95, "{} programs of {}", agents.programs, calm.programs);
}

// --- found by tests/random.rs

#[test]
fn of_two_held_steps_that_are_forced_in_together_neither_is_refused() {
    let mut world = World::one_backend(10_000);
    let a = world.arrive("a", 6_000);
    world.answer(a, usage(6_000, 10));
    world.down(0);
    world.up(0);
    world.arrive("b", 6_000);
    let steps = [world.arrive("a", 6_100), world.arrive("a", 6_200)];
    assert!(steps.iter().all(|&step| world.held(step)));
    world.ticks(1_801);
    for step in steps {
        assert_eq!((world.went(step), world.refused(step)), (Some(DispatchKind::Forced), None));
    }
}

#[test]
fn a_step_is_not_forced_where_it_could_not_be_delivered_while_there_is_another_backend() {
    let mut world = World::new(policy(), &[Some(10_000), Some(8_000)]);
    let a = world.arrive("a", 2_000);
    world.answer(a, usage(2_000, 10));
    let away = world.place(a).unwrap();
    world.arrive("b", 7_900);
    let again = world.arrive("a", 7_000);
    world.undelivered(again);
    assert!(world.held(again), "the other one is full");
    world.ticks(1_801);
    assert_eq!((world.went(again), world.place(again)), (Some(DispatchKind::Forced), Some(1 - away)));
}

#[test]
fn a_step_that_could_be_delivered_nowhere_is_tried_again_in_the_end() {
    let mut world = World::one_backend(10_000);
    let a = world.arrive("a", 2_000);
    world.answer(a, usage(2_000, 10));
    let again = world.arrive("a", 2_100);
    world.undelivered(again);
    world.ticks(1_801);
    assert_eq!(world.went(again), Some(DispatchKind::Forced));
}

#[test]
fn routing_by_load_forces_nobody_onto_a_lease() {
    let mut world = World::new(Policy { routing: Routing::LeastLoad, ..policy() }, &[None]);
    let a = world.arrive("a", 2_000);
    world.answer(a, usage(2_000, 10));
    let again = world.arrive("a", 2_100);
    world.undelivered(again);
    world.ticks(1_801);
    assert_eq!(world.refused(again), Some(RefuseReason::HeldTooLong));
    assert_eq!(world.load(0).leased_idle + world.load(0).leased_running, 0);
}

#[test]
fn a_capacity_given_by_hand_outlasts_every_report() {
    let mut world = World::new(policy(), &[Some(10_000), None]);
    let effective = |world: &World| [0, 1].map(|id| world.load(id).effective_capacity);
    let report = BackendReport { capacity: Some(Tokens(500_000)), ..BackendReport::default() };
    let before = effective(&world);
    [0, 1].into_iter().for_each(|id| world.report(id, report));
    let after = effective(&world);
    assert_eq!(after[0], before[0]);
    assert!(after[1] > after[0], "the other was given none");
}
