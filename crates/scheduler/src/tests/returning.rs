//! Tests of backends that return: they get their load back gently.

use super::*;

const SLOW_START: Duration = Duration::from_secs(30);

/// Number of the `count` unlabelled steps that go to the first backend.
fn on_first(world: &mut World, count: usize) -> usize {
    let steps: Vec<_> = (0..count).map(|_| world.arrive_unlabelled()).collect();
    steps.into_iter().filter(|step| world.place(*step) == Some(0)).count()
}

#[test]
fn a_backend_that_returns_gets_its_share_of_unlabelled_steps_little_by_little() {
    let mut world = World::new(Policy { slow_start: SLOW_START, ..policy() }, &[None, None]);
    world.down(0);
    assert_eq!(on_first(&mut world, 40), 0);
    world.up(0);
    // The first backend has a tenth of its weight: four steps on it weigh as much as forty on the other.
    assert_eq!(on_first(&mut world, 20), 5);
    world.ticks(15);
    // It has half of its weight now, so it should come to some 27 of the 80 steps so far.
    let more = on_first(&mut world, 20);
    assert!((18..=20).contains(&more), "{more}");
    world.ticks(15);
    // It has its full weight again, so it takes every step until it has as many as the other.
    let (here, there) = (world.load(0).in_flight, world.load(1).in_flight);
    assert_eq!(on_first(&mut world, there - here), there - here);
    assert_eq!(on_first(&mut world, 20), 10);
}

#[test]
fn a_backend_that_comes_up_for_the_first_time_has_its_full_share_at_once() {
    let mut world = World::new(Policy { slow_start: SLOW_START, ..policy() }, &[None, None]);
    let backend = BackendId(2);
    world.handle(Event::BackendAdded { backend, weight: 1, capacity: None });
    world.up(2);
    assert_eq!(on_first(&mut world, 30), 10);
}

#[test]
fn programs_that_wait_for_a_backend_return_one_prefill_after_another() {
    let mut world = World::one_backend(1_000_000);
    world.down(0);
    // Each of these steps takes two seconds of prefill.
    let steps: Vec<_> = (0..5).map(|n| world.arrive(&format!("p{n}"), 20_000)).collect();
    world.up(0);
    for (gone, &step) in steps.iter().enumerate() {
        let held = steps.iter().filter(|step| world.held(**step)).count();
        assert_eq!(held, steps.len() - 1 - gone);
        assert!(!world.held(step));
        world.handle(Event::FirstToken(step));
    }
}

#[test]
fn a_step_that_could_not_be_delivered_goes_to_the_same_backend_once_that_is_found_well() {
    let mut world = World::one_backend(10_000);
    let step = world.arrive("a", 1_000);
    world.undelivered(step);
    assert!(world.held(step));
    // The backend was never down; a health check reports it as up.
    world.up(0);
    assert_eq!(world.place(step), Some(0));
    assert!(!world.held(step));
}
