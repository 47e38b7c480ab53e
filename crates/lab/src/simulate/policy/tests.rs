//! Each rival policy does what its description says.

use super::*;
use thundergate_scheduler::units::Tokens;
use thundergate_scheduler::{Arrival, BackendId, BackendReport, Outcome, ProgramKey, StepId, Usage};

/// A policy under test, with the present time and the number of its next step.
struct Bench {
    policy: Box<dyn Policy>,
    now: Duration,
    next: u64,
}

fn key(name: &str) -> ProgramKey {
    ProgramKey { tenant: "".into(), id: name.into() }
}

impl Bench {
    /// A policy with backends of 1000 tokens each.
    fn new(name: &str, backends: u32) -> Self {
        let choice: Choice = name.parse().unwrap();
        let mut bench =
            Self { policy: choice.build(&thundergate_scheduler::Policy::default()), now: Duration::ZERO, next: 0 };
        for backend in (0..backends).map(BackendId) {
            bench.tell(Event::BackendAdded { backend, weight: 1, capacity: None });
            bench.tell(Event::BackendUp(backend));
            let report = BackendReport { capacity: Some(Tokens(1000)), ..BackendReport::default() };
            bench.tell(Event::Report { backend, report });
        }
        bench
    }

    /// Tells the policy an event. Returns the dispatched steps, each with its backend.
    fn tell(&mut self, event: Event) -> Vec<(u64, u32)> {
        let mut decisions = Vec::new();
        self.policy.handle(self.now, event, &mut decisions);
        let dispatched = |decision: &Decision| match decision {
            Decision::Dispatch { step, backend, .. } => Some((step.0, backend.0)),
            _ => None,
        };
        decisions.iter().filter_map(dispatched).collect()
    }

    /// Sends a step, five bytes a token. Returns its number, and the backend that it went to.
    fn arrive(&mut self, program: &str, tokens: u64) -> (u64, Option<u32>) {
        let step = self.next;
        self.next += 1;
        let arrival = Arrival {
            step: StepId(step),
            program: Some(key(program)),
            class: 0,
            prompt_bytes: tokens * 5,
            max_output: None,
            preferred: None,
            last: false,
        };
        let sent = self.tell(Event::Arrive(arrival));
        (step, sent.iter().find(|(sent, _)| *sent == step).map(|&(_, backend)| backend))
    }

    fn end(&mut self, step: u64, prompt: u64, output: u64) -> Vec<(u64, u32)> {
        let usage = Usage { prompt: Tokens(prompt), completion: Tokens(output), cached: None };
        self.tell(Event::End { step: StepId(step), outcome: Outcome::Completed(Some(usage)) })
    }

    /// Lets time pass, second by second.
    fn wait(&mut self, seconds: u64) -> Vec<(u64, u32)> {
        let second = |_| {
            self.now += Duration::from_secs(1);
            self.tell(Event::Tick)
        };
        (0..seconds).flat_map(second).collect()
    }
}

#[test]
fn round_robin_takes_each_in_turn_and_leaves_out_what_is_down() {
    let mut bench = Bench::new("round-robin", 3);
    let mut three = || [bench.arrive("a", 10).1, bench.arrive("a", 10).1, bench.arrive("a", 10).1];
    assert_eq!(three(), [Some(0), Some(1), Some(2)]);
    bench.tell(Event::BackendDown(BackendId(1)));
    let mut three = || [bench.arrive("a", 10).1, bench.arrive("a", 10).1, bench.arrive("a", 10).1];
    assert_eq!(three(), [Some(0), Some(2), Some(0)]);
}

#[test]
fn least_connections_goes_where_fewest_run() {
    let mut bench = Bench::new("least-connections", 2);
    let (first, on) = bench.arrive("a", 10);
    assert_eq!((on, bench.arrive("b", 10).1, bench.arrive("c", 10).1), (Some(0), Some(1), Some(0)));
    bench.end(first, 10, 1);
    bench.tell(Event::BackendUp(BackendId(0)));
    assert_eq!(bench.arrive("d", 10).1, Some(0));
}

#[test]
fn sticky_keeps_a_program_where_it_is_and_moves_only_those_of_a_lost_backend() {
    let mut bench = Bench::new("sticky", 4);
    let names: Vec<String> = (0..40).map(|number| format!("p{number}")).collect();
    let mut places = |down: Option<u32>| -> Vec<u32> {
        down.map(|id| bench.tell(Event::BackendDown(BackendId(id))));
        names.iter().map(|name| bench.arrive(name, 10).1.unwrap()).collect()
    };
    let before = places(None);
    assert_eq!(before, places(None));
    assert!((0..4).all(|id| before.contains(&id)));
    let after = places(Some(2));
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
    assert!(moved.into_iter().all(|(&before, &after)| before == 2 && after != 2));
}

#[test]
fn prefix_aware_follows_the_prefix_until_its_backend_is_far_busier() {
    let mut bench = Bench::new("prefix-aware", 2);
    let (_, home) = bench.arrive("a", 100);
    bench.arrive("b", 400);
    assert_eq!(bench.arrive("a", 150).1, home);
    for _ in 0..40 {
        bench.arrive("a", 150);
    }
    assert_ne!(bench.arrive("a", 150).1, home);
}

#[test]
fn a_cap_lets_in_as_many_programs_as_it_says_in_the_order_they_came() {
    let mut bench = Bench::new("cap:1", 2);
    let (a, _) = bench.arrive("a", 10);
    assert_eq!(bench.arrive("b", 10).1, Some(1));
    let ((c, waits), (d, _)) = (bench.arrive("c", 10), bench.arrive("d", 10));
    assert_eq!(waits, None);
    assert_eq!(bench.end(a, 10, 1), []);
    assert_eq!(bench.arrive("a", 20).1, Some(0));
    assert_eq!(bench.tell(Event::Release(key("a"))), [(c, 0)]);
    bench.end(c, 10, 1);
    // Without any step, the program loses its place after ten minutes.
    assert_eq!(bench.wait(602), [(d, 0)]);
}

#[test]
fn thunderagent_holds_what_does_not_fit_and_resumes_the_smallest_at_its_next_check() {
    let mut bench = Bench::new("thunderagent", 1);
    let (a, on) = bench.arrive("a", 600);
    assert_eq!(on, Some(0));
    let (large, small) = (bench.arrive("b", 500), bench.arrive("c", 350));
    assert_eq!((large.1, small.1), (None, None));
    bench.end(a, 600, 10);
    bench.tell(Event::Release(key("a")));
    assert_eq!(bench.wait(4), []);
    assert_eq!(bench.wait(1), [(small.0, 0)]);
    bench.tell(Event::Release(key("c")));
    assert_eq!(bench.wait(5), [(large.0, 0)]);
}

#[test]
fn thunderagent_pauses_idle_programs_first_and_the_smallest_of_them() {
    let mut bench = Bench::new("thunderagent", 1);
    let steps = [bench.arrive("a", 200).0, bench.arrive("b", 150).0, bench.arrive("c", 250).0];
    bench.end(steps[0], 200, 60);
    bench.end(steps[1], 150, 60);
    bench.end(steps[2], 250, 260);
    bench.wait(5);
    // Contexts of 260 + 210 + 510 and three buffers are 1,280 of 1,000 tokens. Without b the step fits.
    assert_eq!(bench.arrive("c", 510).1, Some(0));
    assert_eq!(bench.arrive("a", 260).1, Some(0));
    assert_eq!(bench.arrive("b", 210).1, None);
}

/// Number of running programs, out of three, that are paused as their steps end, after the backend went over by a
/// little.
fn marked(name: &str) -> usize {
    let mut bench = Bench::new(name, 1);
    let names = ["a", "b", "c"];
    let steps = names.map(|name| bench.arrive(name, 150).0);
    for (step, output) in steps.into_iter().zip([100, 150, 180]) {
        bench.end(step, 150, output);
    }
    // All three steps come before the check: 250 + 300 + 330 and three buffers are 1,180 of 1,000 tokens.
    let steps = [(0, 250), (1, 300), (2, 330)].map(|(at, tokens)| bench.arrive(names[at], tokens).0);
    bench.wait(5);
    for (step, tokens) in steps.into_iter().zip([250, 300, 330]) {
        bench.end(step, tokens, 1);
    }
    names.iter().filter(|name| bench.arrive(name, 260).1.is_none()).count()
}

#[test]
fn thunderagent_as_published_marks_every_running_program_and_fixed_only_enough() {
    assert_eq!(marked("thunderagent"), 3);
    assert_eq!(marked("thunderagent-fixed"), 1);
}

#[test]
fn thunderagent_lets_in_after_half_an_hour_what_does_not_fit() {
    let mut bench = Bench::new("thunderagent", 1);
    bench.arrive("a", 600);
    let (late, _) = bench.arrive("b", 500);
    assert_eq!(bench.wait(1_799), []);
    assert_eq!(bench.wait(1), [(late, 0)]);
}
