//! Tests of the snapshot that a scheduler gives, and of its use by another scheduler.

use super::*;
use std::collections::BTreeSet;

const LIFE: Life = Life { started_ms: Some(1_700_000_000_000), prompt_tokens: 1_000 };

/// Backends 0 and 1 of 10,000 tokens, in their first life, with a program of 4,000 tokens on each.
fn two_programs() -> World {
    let mut world = World::new(policy(), &[Some(10_000), Some(10_000)]);
    for id in 0..2 {
        world.report(id, BackendReport { life: Some(LIFE), ..Default::default() });
    }
    for (program, tokens) in [("a", 4_000), ("b", 4_500)] {
        let step = world.arrive(program, tokens);
        world.answer(step, usage(tokens, 100));
    }
    let places: BTreeSet<_> = ["a", "b"].iter().map(|id| world.program(id).unwrap().backend).collect();
    assert_eq!(places.len(), 2);
    world
}

fn reborn(world: &mut World) {
    let snapshot = world.snapshot();
    world.reborn(snapshot, &[Some(10_000), Some(10_000)]);
}

/// The backend reports this life and comes up.
fn rises(world: &mut World, backend: u32, life: Life) {
    world.report(backend, BackendReport { life: Some(life), ..Default::default() });
    world.up(backend);
}

#[test]
fn programs_and_leases_survive_a_restart() {
    let mut world = two_programs();
    world.ticks(20);
    let before = ["a", "b"].map(|id| world.program(id).unwrap());
    reborn(&mut world);
    assert!(before.iter().all(|view| !world.program(&view.key.id).unwrap().leased), "no backend is up yet");
    for id in 0..2 {
        rises(&mut world, id, Life { prompt_tokens: 2_000, ..LIFE });
    }
    for view in before {
        let after = world.program(&view.key.id).unwrap();
        assert_eq!((after.backend, after.leased, after.context), (view.backend, true, view.context));
        assert_eq!((after.steps, after.footprint), (1, view.footprint));
        assert!(after.idle.unwrap() >= view.idle.unwrap(), "it has been idle for as long as before");
        let next = world.arrive(&view.key.id, 4_700);
        assert_eq!((world.went(next), world.place(next)), (Some(DispatchKind::Leased), view.backend.map(|id| id.0)));
    }
}

#[test]
fn a_backend_that_has_restarted_gives_no_lease_back() {
    for life in [Life { started_ms: Some(1_700_000_000_050), ..LIFE }, Life { started_ms: None, prompt_tokens: 0 }] {
        let mut world = two_programs();
        reborn(&mut world);
        for id in 0..2 {
            rises(&mut world, id, life);
        }
        for program in ["a", "b"] {
            assert!(!world.program(program).unwrap().leased);
            let next = world.arrive(program, 4_700);
            assert_eq!(world.went(next), Some(DispatchKind::Resumed));
        }
        assert!(world.scheduler.backends.values().all(|backend| backend.shadow().total() == Tokens::ZERO));
    }
}

#[test]
fn a_step_waits_a_moment_for_the_backend_that_has_its_prefix() {
    let mut world = two_programs();
    let home = world.program("a").unwrap().backend.unwrap().0;
    reborn(&mut world);
    rises(&mut world, 1 - home, LIFE);
    let next = world.arrive("a", 4_200);
    let new = world.arrive("new", 100);
    assert!(world.held(next));
    world.ticks(1);
    assert!(world.held(next) && world.held(new));
    rises(&mut world, home, LIFE);
    assert_eq!((world.went(next), world.place(next)), (Some(DispatchKind::Leased), Some(home)));
    assert!(world.went(new).is_some());
}

#[test]
fn it_does_not_wait_for_long() {
    let mut world = two_programs();
    let home = world.program("a").unwrap().backend.unwrap().0;
    reborn(&mut world);
    rises(&mut world, 1 - home, LIFE);
    let next = world.arrive("a", 4_200);
    world.ticks(3);
    assert_eq!((world.went(next), world.place(next)), (Some(DispatchKind::Resumed), Some(1 - home)));
    rises(&mut world, home, LIFE);
    assert_eq!(world.program("a").unwrap().backend, Some(BackendId(1 - home)), "it has moved");
}

#[test]
fn a_step_in_flight_leaves_its_program_idle_and_its_prompt_in_the_cache() {
    let mut world = two_programs();
    let home = world.program("a").unwrap().backend;
    world.arrive("a", 4_200);
    world.arrive("young", 1_000);
    let place = world.program("young").unwrap().backend;
    reborn(&mut world);
    for id in 0..2 {
        rises(&mut world, id, LIFE);
    }
    for (program, home) in [("a", home), ("young", place)] {
        let view = world.program(program).unwrap();
        assert_eq!((view.in_flight, view.leased, view.backend), (0, true, home));
        assert!(view.idle.is_some() && view.context > Tokens::ZERO);
        let next = world.arrive(program, 4_300);
        assert_eq!(world.went(next), Some(DispatchKind::Leased), "{program}");
    }
}

#[test]
fn where_leases_no_longer_fit_the_longest_idle_go_without() {
    let mut world = World::one_backend(10_000);
    for program in ["old", "middle", "young"] {
        let step = world.arrive(program, 2_500);
        world.answer(step, usage(2_500, 100));
        world.ticks(1);
    }
    let snapshot = world.snapshot();
    world.reborn(snapshot, &[Some(6_000)]);
    world.up(0);
    let leased = ["old", "middle", "young"].map(|id| world.program(id).unwrap().leased);
    assert_eq!(leased, [false, true, true]);
    assert!(world.load(0).charged_idle <= Tokens(6_000));
}

#[test]
fn what_was_remembered_before_a_backend_came_back_is_as_good() {
    let mut world = two_programs();
    let before = world.snapshot();
    reborn(&mut world);
    let mut again = world.snapshot();
    for (program, was) in again.programs.iter_mut().zip(&before.programs) {
        assert!(program.idle_ms >= was.idle_ms && program.age_ms >= was.age_ms);
        (program.idle_ms, program.age_ms, program.number) = (was.idle_ms, was.age_ms, was.number);
    }
    assert_eq!(again.programs, before.programs);
    assert_eq!(again.experience, before.experience);
    let lives =
        |snapshot: &SchedulerSnapshot| snapshot.backends.iter().map(|b| (b.life, b.prefixes.len())).collect::<Vec<_>>();
    assert_eq!(lives(&again), lives(&before));
    reborn(&mut world);
    for id in 0..2 {
        rises(&mut world, id, LIFE);
    }
    assert!(["a", "b"].iter().all(|id| world.program(id).unwrap().leased));
}

#[test]
fn each_program_is_remembered_once_whatever_happens_between_two_portions() {
    let mut world = World::one_backend(100_000);
    for program in ["a", "b", "c", "d", "e"] {
        let step = world.arrive(program, 100);
        world.answer(step, usage(100, 10));
    }
    let mut programs = Vec::new();
    let next = world.scheduler.snapshot_programs(0, 2, &mut programs).unwrap();
    world.release("a");
    world.release("c");
    let step = world.arrive("b", 200);
    world.answer(step, usage(200, 10));
    let step = world.arrive("f", 200);
    world.answer(step, usage(200, 10));
    assert_eq!(world.scheduler.snapshot_programs(next, 9, &mut programs), None);
    let ids: Vec<_> = programs.iter().map(|program| &*program.key.id).collect();
    assert_eq!(ids, ["a", "b", "d", "e", "f"]);
}

#[test]
fn what_was_learned_is_remembered() {
    let mut world = World::one_backend(1_000_000);
    for turn in 0..150 {
        let program = format!("p{}", turn % 10);
        let step = world.arrive(&program, 1_000 + 10 * turn);
        world.answer(step, Usage { cached: Some(Tokens(320)), ..usage(1_000 + 10 * turn, 40) });
        world.ticks(1);
    }
    for program in 0..6 {
        world.release(&format!("p{program}"));
    }
    let before = world.snapshot();
    assert!(before.experience.gaps_ms.len() > 100 && before.experience.lives.len() > 1);
    let learned = |world: &World| {
        let scheduler = &world.scheduler;
        (scheduler.learned.gap_p99(), scheduler.learned.output(None), scheduler.shared(7))
    };
    let knew = learned(&world);
    world.reborn(before.clone(), &[Some(1_000_000)]);
    world.up(0);
    assert_eq!(learned(&world), knew);
    assert_eq!(knew.2, Tokens(320));
    let after = world.snapshot();
    assert_eq!(after.experience, before.experience);
    assert_eq!(after.backends[0].rate, Some(10_000.0));
    assert_eq!(after.backends[0].feedback, before.backends[0].feedback);
}

#[test]
fn more_programs_than_may_be_are_not_taken_up() {
    let mut world = two_programs();
    world.ticks(200);
    let mut snapshot = world.snapshot();
    let pattern = snapshot.programs[0].clone();
    snapshot.programs.extend((0..2_000).map(|n| ProgramSnapshot {
        number: 100 + n,
        key: world::key(&format!("p{n}")),
        idle_ms: 100_000 + n,
        ..pattern.clone()
    }));
    world.reborn(snapshot, &[Some(10_000), Some(10_000)]);
    assert_eq!(world.scheduler.programs().len(), policy().max_programs);
    assert!(world.program("p999").is_some() && world.program("p1000").is_none() && world.program("a").is_none());
}

#[test]
fn the_revision_grows_with_what_is_remembered_and_with_nothing_else() {
    let mut world = two_programs();
    let mut last = world.scheduler.revision();
    let mut grown = |world: &World| {
        let before = std::mem::replace(&mut last, world.scheduler.revision());
        last > before
    };
    world.ticks(3);
    world.report(0, BackendReport { kv_usage: Some(0.1), ..Default::default() });
    let step = world.arrive_unlabelled();
    world.handle(Event::FirstToken(step));
    world.end(step, Outcome::Completed(None));
    assert!(!grown(&world));
    let step = world.arrive("a", 4_200);
    assert!(grown(&world));
    world.end(step, Outcome::Completed(None));
    assert!(grown(&world));
    world.release("a");
    assert!(grown(&world));
    world.ticks(1_900);
    assert!(grown(&world), "b has expired");
}
