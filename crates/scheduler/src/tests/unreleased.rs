//! Programs that stop without a release, and their effect on the forecast for later ones.

use super::agents::{Agents, Habit};
use super::world::{World, policy, usage};
use super::*;

const ONCE: Habit = Habit { first: 200, growth: 0, steps: 1, usage: true, release: false };

fn world(capacity: u64) -> World {
    World::new(Policy { max_programs: 1_000_000, ..policy() }, &[Some(capacity)])
}

/// Number of programs that ended in the second minute of 100 agents in a closed loop.
fn second_minute(capacity: u64, habit: Habit) -> u64 {
    let mut agents = Agents::new(world(capacity), habit, 100);
    agents.live(60);
    let before = agents.programs;
    agents.live(60);
    agents.programs - before
}

#[test]
fn small_programs_that_never_end_do_not_hold_back_the_next_ones() {
    // At most a quarter of the capacity is in use.
    let (silent, told) = (second_minute(200_000, ONCE), second_minute(200_000, Habit { release: true, ..ONCE }));
    assert!(told > 1_900, "{told}");
    assert!(silent * 100 >= told * 99, "{silent} of {told}");
}

#[test]
fn what_never_ends_leaves_its_room_where_room_is_short() {
    // The programs of the last ten seconds would not all fit.
    let silent = second_minute(20_000, ONCE);
    assert!(silent > 300, "{silent}");
}

#[test]
fn an_almost_empty_backend_takes_a_crowd_of_small_new_programs_at_once() {
    let mut world = world(1_000_000);
    let steps: Vec<_> = (0..200).map(|number| world.arrive(&format!("p{number}"), 200)).collect();
    assert!(steps.iter().all(|&step| world.went(step).is_some()));
}

#[test]
fn large_new_programs_are_held_until_it_is_known_how_they_end() {
    let mut world = world(1_000_000);
    let steps: Vec<_> = (0..20).map(|number| world.arrive(&format!("p{number}"), 2_000 + number)).collect();
    steps.iter().for_each(|&step| world.handle(Event::FirstToken(step)));
    let went = steps.iter().filter(|&&step| world.went(step).is_some()).count();
    assert!((10..=40).contains(&went), "{went}");
}

/// Growth to expect of a program of 2,000 tokens.
fn left(world: &World) -> Tokens {
    world.scheduler.growth.left(Tokens(2_000), Tokens(100_000))
}

#[test]
fn a_program_counts_as_ended_while_it_is_idle_for_longer_than_tools_take() {
    let mut world = world(100_000);
    let unknown = left(&world);
    for number in 0..9 {
        let step = world.arrive(&format!("p{number}"), 1_900);
        world.answer(step, usage(1_900, 100));
    }
    world.ticks(8);
    assert_eq!(left(&world), unknown);
    world.ticks(8);
    assert!(left(&world).0 * 2 < unknown.0, "{}", left(&world));
    let steps: Vec<_> = (0..9).map(|number| world.arrive(&format!("p{number}"), 2_010)).collect();
    assert_eq!(left(&world), unknown, "they were not over");
    steps.into_iter().for_each(|step| world.end(step, Outcome::Abandoned));
    world.ticks(16);
    assert!(left(&world).0 * 2 < unknown.0, "now they are");
}

#[test]
fn an_evicted_program_that_stays_away_counts_as_ended_and_only_once() {
    let mut world = world(10_000);
    let unknown = left(&world);
    let step = world.arrive("a", 1_900);
    world.answer(step, usage(1_900, 100));
    world.ticks(7);
    let large = world.arrive("b", 8_900);
    world.ticks(1);
    assert_eq!((world.paused("a"), left(&world)), (Some(PauseReason::Evicted), unknown));
    assert!(!world.held(large));
    world.ticks(8);
    let known = left(&world);
    assert!(known < unknown);
    world.release("a");
    assert_eq!(left(&world), known);
}

#[test]
fn what_was_seen_of_programs_that_never_end_outlives_a_restart() {
    let mut world = world(100_000);
    for number in 0..9 {
        let step = world.arrive(&format!("p{number}"), 1_900);
        world.answer(step, usage(1_900, 100));
    }
    world.ticks(20);
    let known = left(&world);
    let snapshot = world.snapshot();
    world.reborn(snapshot, &[Some(100_000)]);
    assert_eq!(left(&world), known);
    world.ticks(20);
    assert_eq!(left(&world), known, "they are not counted again");
    let back = world.arrive("p0", 2_010);
    assert!(left(&world) > known);
    world.end(back, Outcome::Abandoned);
}
