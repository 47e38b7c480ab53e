//! Tests of the bound on waiting.

use super::*;

/// Two backends, each with a program that takes turns without end. Program `a`, older than both, has lost its lease.
struct Crowd {
    world: World,
    waiting: StepId,
    turns: [(&'static str, u64); 2],
}

impl Crowd {
    fn new(policy: Policy) -> Self {
        let mut world = World::new(policy, &[Some(10_000), Some(10_000)]);
        world.down(1);
        let a = world.arrive("a", 6_000);
        world.answer(a, usage(6_000, 10));
        world.up(1);
        world.down(0);
        let b = world.arrive("b", 6_000);
        world.up(0);
        let c = world.arrive("c", 6_000);
        assert_eq!((world.place(b), world.place(c)), (Some(1), Some(0)));
        world.answer(b, usage(6_000, 10));
        world.answer(c, usage(6_000, 10));
        // Programs `b` and `c` are in mid-turn when `a` returns, and are never idle for long.
        let turns = [("b", 6_010), ("c", 6_010)];
        let running = turns.map(|(name, tokens)| world.arrive(name, tokens));
        let waiting = world.arrive("a", 6_010);
        for (step, (_, tokens)) in running.into_iter().zip(turns) {
            world.answer(step, usage(tokens, 10));
        }
        assert!(world.held(waiting));
        Self { world, waiting, turns: [("b", 6_020), ("c", 6_020)] }
    }

    /// Plays one more second, in which `b` and `c` take their turns as far as they may.
    fn second(&mut self) {
        let running = self.turns.map(|(name, tokens)| self.world.arrive(name, tokens));
        self.world.ticks(1);
        for (step, (_, tokens)) in running.into_iter().zip(&mut self.turns) {
            if self.world.went(step).is_some() {
                self.world.answer(step, usage(*tokens, 10));
                *tokens += 10;
            } else {
                self.world.end(step, Outcome::Abandoned);
            }
        }
    }

    fn waited(&self) -> Duration {
        self.world.program("a").unwrap().hold.map_or(Duration::ZERO, |(_, waited)| waited)
    }
}

#[test]
fn a_started_program_that_waits_too_long_gets_the_place_of_a_younger_one() {
    let mut crowd = Crowd::new(policy());
    while crowd.world.held(crowd.waiting) {
        crowd.second();
        assert!(crowd.waited() < Duration::from_secs(600), "it waits beyond the bound");
    }
    assert!(crowd.world.now > Duration::from_secs(500), "nobody had to go before the bound was near");
    assert_eq!(crowd.world.went(crowd.waiting), Some(DispatchKind::Resumed));
    let gone: Vec<_> = ["b", "c"].iter().filter_map(|name| crowd.world.paused(name)).collect();
    assert!(gone.contains(&PauseReason::MadeWay) && gone.len() < 3, "{gone:?}");
}

#[test]
fn whoever_is_older_goes_only_when_the_bound_is_reached() {
    // There is one backend, and the older of two programs fills it.
    let mut world = World::one_backend(10_000);
    for name in ["old", "young"] {
        let step = world.arrive(name, 6_000);
        world.answer(step, usage(6_000, 10));
        world.down(0);
        world.up(0);
    }
    let mut tokens = 6_010;
    let turn = world.arrive("old", tokens);
    let waiting = world.arrive("young", 6_010);
    world.answer(turn, usage(tokens, 10));
    assert!(world.held(waiting));
    let since = world.now;
    while world.held(waiting) {
        tokens += 10;
        let turn = world.arrive("old", tokens);
        world.ticks(1);
        world.answer(turn, usage(tokens, 10));
        assert!(world.now - since < Duration::from_secs(605));
    }
    // The lease of `old` has lasted long enough, and `old` is idle between two turns. So `old` makes way, and its next
    // turn waits.
    assert!(world.now - since >= Duration::from_secs(540));
    assert_eq!(world.paused("old"), Some(PauseReason::MadeWay));
}

#[test]
fn a_reserved_backend_takes_in_nobody_else_and_is_free_again_when_the_one_that_waited_is_gone() {
    let mut world = World::one_backend(10_000);
    for (name, tokens) in [("b", 2_000), ("a", 9_000)] {
        let step = world.arrive(name, tokens);
        world.answer(step, usage(tokens, 10));
        world.down(0);
        world.up(0);
    }
    // A long step fills a third of the backend. Its program is never idle, so it cannot make way.
    let long = world.arrive("long", 3_000);
    let a = world.arrive("a", 9_010);
    world.ticks(595);
    let b = world.arrive("b", 2_010);
    assert!(world.held(a) && world.held(b));
    assert_eq!(world.reason(b), Some(HoldReason::Reserved));
    world.end(a, Outcome::Abandoned);
    assert_eq!(world.went(b), Some(DispatchKind::Resumed));
    world.answer(long, usage(3_000, 10));
}

#[test]
fn a_backend_that_a_step_could_not_be_delivered_to_is_reserved_no_longer() {
    let mut world = World::one_backend(10_000);
    let b = world.arrive("b", 4_000);
    let a = world.arrive("a", 3_000);
    world.answer(a, usage(3_000, 10));
    let running = world.arrive("a", 3_020);
    let waiting = world.arrive("a", 3_030);
    world.undelivered(waiting);
    world.up(0);
    world.ticks(545);
    assert!(world.held(waiting), "with what runs there it does not fit beside b");
    world.undelivered(running);
    world.end(b, Outcome::Abandoned);
    assert!(world.held(running) && world.held(waiting), "there is room, but not for a step that avoids it");
    world.up(0);
    assert_eq!(world.went(running), Some(DispatchKind::Resumed));
}
