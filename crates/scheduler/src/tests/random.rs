//! Random interleavings: in any order of events, the scheduler's ledger equals the oracle's and no step is lost.

use super::play::{Act, Play, Start, acts, start};
use super::*;
use crate::units::Tokens;
use proptest::prelude::*;

/// The decisions of a second scheduler that is told the same events.
fn replayed(policy: &Policy, events: &[(Duration, Event)]) -> Vec<Decision> {
    let mut scheduler = Scheduler::new(policy.clone());
    let mut log = Vec::new();
    for (at, event) in events {
        scheduler.handle(*at, event.clone(), &mut log);
    }
    log
}

fn played(start: &Start, acts: Vec<Act>) -> Play {
    let mut play = Play::new(start);
    acts.into_iter().for_each(|act| play.act(act));
    play
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn under_any_interleaving_the_ledger_is_that_of_the_oracle_and_no_step_is_lost(start in start(), acts in acts(120)) {
        let mut play = played(&start, acts);
        play.wind_up();
    }

    #[test]
    fn a_scheduler_that_takes_up_a_memory_knows_its_programs_and_keeps_within_the_capacity(
        start in start(),
        acts in acts(120),
        restarted in any::<bool>(),
    ) {
        let play = played(&start, acts);
        let mut snapshot = world::snapshot(&play.scheduler);
        for backend in snapshot.backends.iter_mut().filter(|_| restarted) {
            backend.life = Some(Life { started_ms: Some(1), prompt_tokens: 0 });
        }
        let known = snapshot.programs.iter().filter(|program| program.context > Tokens::ZERO).count();
        let mut next = Play::after(&start, &play, snapshot);
        prop_assert_eq!(next.scheduler.programs().len(), known.min(start.policy.max_programs));
        for load in next.scheduler.loads() {
            let charged = load.charged_running + load.charged_idle;
            prop_assert!(load.effective_capacity.is_none_or(|most| charged <= most), "{:?}", load);
            prop_assert!(!restarted || charged == Tokens::ZERO, "{:?}", load);
        }
        // Each program takes one more step, its last, and then nothing may be left.
        for program in next.scheduler.programs() {
            next.arrive(Some(&program.key.id), 0, 100, None, true);
        }
        next.wind_up();
    }

    #[test]
    fn the_same_events_always_give_the_same_decisions(start in start(), acts in acts(120)) {
        let play = played(&start, acts);
        prop_assert_eq!(replayed(&start.policy, &play.events), play.log);
    }

    #[test]
    fn a_client_that_leaves_leaves_everything_as_if_it_had_never_been(
        start in start(),
        before in acts(60),
        tokens in 10..6_000_u64,
        first_token in any::<bool>(),
    ) {
        let mut play = played(&start, before);
        let snapshot = |play: &Play| {
            let loads: Vec<_> = play.scheduler.loads().iter().map(|load| format!("{load:?}")).collect();
            (loads, play.scheduler.held_steps(), play.scheduler.programs().len())
        };
        // The visitor is a new program. Once it has left, its visit must show nowhere.
        let quiet = play.log.len();
        let before = snapshot(&play);
        let step = play.arrive(Some("visitor"), 1, tokens, None, false);
        if first_token {
            play.tell(Event::FirstToken(step));
        }
        play.end(step, Outcome::Abandoned);
        // Others may have lost a lease or their keys for the visitor, or may have been let in when it left: then the
        // ledger rightly differs. Otherwise all is as before.
        let others = |decision: &&Decision| match decision {
            Decision::Dispatch { step: other, .. } => *other != step,
            Decision::Paused { .. } | Decision::Ended { .. } => true,
            _ => false,
        };
        if !play.log[quiet..].iter().any(|decision| others(&decision)) {
            prop_assert_eq!(before, snapshot(&play));
        }
        prop_assert!(play.scheduler.program(&world::key("visitor")).is_none());
    }
}
