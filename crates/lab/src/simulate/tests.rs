//! Tests that the simulator is honest: blocks are conserved (every run here recounts them every minute of virtual
//! time), rates come out as they must, and no policy sees the future.

mod robust;

use super::demand::{Arrivals, Demand, Source};
use super::faults::Faults;
use super::script::{Script, Step};
use super::trace::Trace;
use super::world::{self, Setup};
use super::*;
use crate::engine::cost::Costs;
use crate::engine::model::Shape;
use clap::Parser;
use std::cell::RefCell;
use std::rc::Rc;
use thundergate_scheduler::{Decision, Event, Outcome};

const ALL: [&str; 9] = [
    "ours",
    "thunderagent",
    "thunderagent-fixed-decay",
    "round-robin",
    "least-connections",
    "sticky",
    "prefix-aware",
    "cap:3",
    "zero-recompute",
];

/// Two small engines, ten programs, a few minutes.
fn small(workload: Workload) -> Setup {
    Setup {
        demand: Demand { source: Source::Workload(workload), arrivals: Arrivals::Closed(10), seed: 1 },
        engines: 2,
        shape: Shape { kv_blocks: 6_001, ..Profile::Glm.shape() },
        policy: Setup::new(&parse("").unwrap()).unwrap().policy,
        length: Duration::from_secs(300),
        warmup: Duration::from_secs(60),
        faults: Faults::new(&[]),
    }
}

fn choice(name: &str) -> Choice {
    name.parse().unwrap()
}

fn figures(setup: &Setup, name: &str) -> Figures {
    world::run(setup, choice(name), &|_| ()).figures(name.to_owned(), 1, 1.0)
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn parse(arguments: &str) -> Result<Args, String> {
    let arguments = std::iter::once("simulate").chain(arguments.split_whitespace());
    Cli::try_parse_from(arguments).map(|cli| cli.args).map_err(|error| error.to_string())
}

#[test]
fn every_policy_gets_work_done_on_every_workload() {
    for workload in [Workload::Swe, Workload::Openhands, Workload::Hle, Workload::Mixed, Workload::Chat] {
        for name in ALL {
            let figures = figures(&small(workload), name);
            assert!(figures.steps_per_min > 0.0, "{workload:?} {name}");
            assert!((0.0..1.0).contains(&figures.hit_rate.unwrap()), "{workload:?} {name}");
            assert!(figures.step_p50_s <= figures.step_p95_s && figures.step_p95_s <= figures.step_p99_s);
            assert!(figures.longest_started_wait_s <= figures.longest_wait_s);
            assert!((1.0..=2.0).contains(&figures.imbalance.unwrap()));
        }
    }
}

#[test]
fn no_policy_beats_the_bound_of_no_recomputation() {
    let setup = small(Workload::Swe);
    let bound = figures(&setup, "zero-recompute").steps_per_min;
    for name in ALL {
        let steps = figures(&setup, name).steps_per_min;
        assert!(steps <= bound * 1.02, "{name}: {steps} of {bound}");
    }
}

#[test]
fn the_same_arguments_and_seed_print_the_same_bytes() {
    let print = |seed| {
        let args = format!("--minutes 5 --warmup 1 --programs 10 --engines 2 --seed {seed} --quiet");
        let args = parse(&args).unwrap();
        let policies = [choice("ours"), choice("thunderagent"), choice("round-robin")];
        let tallies = simulate(&Setup::new(&args).unwrap(), &policies, true);
        let figures: Vec<_> = tallies.iter().map(|tally| tally.figures("x".to_owned(), seed, 1.0)).collect();
        assert_eq!(figures.len(), 4);
        Format::Json.render(&figures) + &Format::Table.render(&figures)
    };
    let first = print(1);
    assert_eq!(first, print(1));
    assert_ne!(first, print(2));
}

/// Programs one after the other, so that each finds in the cache what the earlier ones have left.
fn trace() -> Trace {
    let mut scripts: Vec<Script> = (0..4).map(|number| Workload::Swe.script(1, number)).collect();
    for script in &mut scripts {
        script.steps.truncate(12);
        script.steps[0].gap = Duration::from_secs(20);
    }
    Trace { scripts }
}

fn replay(trace: Trace) -> Setup {
    Setup {
        demand: Demand { source: Source::Trace(trace), arrivals: Arrivals::Recorded, seed: 1 },
        engines: 1,
        warmup: Duration::ZERO,
        length: Duration::from_secs(600),
        ..small(Workload::Swe)
    }
}

#[test]
fn at_infinite_capacity_exactly_the_new_tokens_miss() {
    let (mut prompts, mut cached) = (0, 0);
    let block = |tokens: usize| (tokens - 1) / 16 * 16;
    for (number, script) in trace().scripts.iter().enumerate() {
        let mut known = if number == 0 { 1 } else { script.steps[0].shared };
        for Step { prompt, output, .. } in &script.steps {
            prompts += prompt;
            cached += block(known.min(*prompt));
            // The KV of the last token is never computed, so the block that this token would fill is not found again.
            known = prompt + output;
        }
    }
    let setup = replay(trace());
    for name in ["infinite-cache", "zero-recompute"] {
        let figures = figures(&setup, name);
        assert_eq!(figures.steps_per_min * 10.0, 48.0);
        let expected = cached as f64 / prompts as f64;
        assert!((figures.hit_rate.unwrap() - expected).abs() < 0.0011, "{name}: {figures:?} {expected}");
    }
}

/// A policy that writes down every event and passes it on to another policy.
struct Spy(Box<dyn Policy>, Rc<RefCell<Vec<(Duration, Event)>>>);

impl Policy for Spy {
    fn handle(&mut self, now: Duration, event: Event, decisions: &mut Vec<Decision>) {
        self.1.borrow_mut().push((now, event.clone()));
        self.0.handle(now, event, decisions);
    }
}

/// All events until the first step of `output` tokens ends.
fn told(trace: Trace, output: usize) -> Vec<(Duration, Event)> {
    let told = Rc::new(RefCell::new(Vec::new()));
    let setup = replay(trace);
    world::run_policy(&setup, Box::new(Spy(Choice::Ours.build(&setup.policy), Rc::clone(&told))));
    let mut told = told.take();
    let ends = |event: &Event| match event {
        Event::End { outcome: Outcome::Completed(Some(usage)), .. } => usage.completion.0 == output as u64,
        _ => false,
    };
    let at = told.iter().position(|(_, event)| ends(event)).expect("it ended");
    told.truncate(at);
    told
}

#[test]
fn nobody_is_told_of_an_answer_before_it_is_there() {
    let with_output = |output| {
        let mut trace = trace();
        trace.scripts[1].steps[5].output = output;
        (trace, output)
    };
    let (short, long) = (with_output(151), with_output(999));
    let (short, long) = (told(short.0, short.1), told(long.0, long.1));
    let common = short.iter().zip(&long).take_while(|(short, long)| short == long).count();
    assert_eq!(common, short.len(), "{:?}", short.get(common));
    assert!(short.iter().any(|(_, event)| matches!(event, Event::FirstToken(_))));
}

#[test]
fn a_policy_sees_bytes_and_never_tokens_of_a_prompt() {
    let told = Rc::new(RefCell::new(Vec::new()));
    let setup = small(Workload::Swe);
    world::run_policy(&setup, Box::new(Spy(Choice::Ours.build(&setup.policy), Rc::clone(&told))));
    let arrivals = told.take().into_iter().filter_map(|(_, event)| match event {
        Event::Arrive(arrival) => Some(arrival),
        _ => None,
    });
    let tokens = |arrival: &thundergate_scheduler::Arrival| {
        let number: u64 = arrival.program.as_ref().unwrap().id[1..].parse().unwrap();
        let script = Workload::Swe.script(1, number);
        script.steps.iter().find(|step| step.bytes == arrival.prompt_bytes).unwrap().prompt as f64
    };
    let ratios: Vec<f64> = arrivals.map(|arrival| arrival.prompt_bytes as f64 / tokens(&arrival)).collect();
    let (least, most) = ratios.iter().fold((f64::MAX, 0.0f64), |(low, high), &r| (low.min(r), high.max(r)));
    assert!(least < 3.7 && most > 4.3, "bytes a token vary: {least} to {most}");
}

/// The paper's Figure 1 on a small scale: one engine in place of four on eight GPUs.
#[test]
fn a_pinned_fleet_collapses_past_its_capacity_and_admission_does_not() {
    let steps = |programs, name| {
        let costs = Costs { tp: Costs::GLM.tp * 0.4, ..Costs::GLM };
        let setup = Setup {
            demand: Demand { arrivals: Arrivals::Closed(programs), ..small(Workload::Swe).demand },
            engines: 1,
            shape: Shape { costs, ..Profile::Glm.shape() },
            length: Duration::from_secs(1000),
            warmup: Duration::from_secs(600),
            ..small(Workload::Swe)
        };
        figures(&setup, name).steps_per_min
    };
    let pinned = [6, 12, 24].map(|programs| steps(programs, "cap:1000"));
    assert!(pinned[1] > 1.25 * pinned[0], "{pinned:?}");
    assert!(pinned[2] < 0.6 * pinned[1], "{pinned:?}");
    for admission in ["thunderagent", "ours"] {
        let admitted = steps(24, admission);
        assert!(admitted > 1.8 * pinned[2], "{admission}: {admitted} {pinned:?}");
    }
}

#[test]
fn work_goes_on_through_every_fault() {
    let list = "restart:100s,estimate:0.7,no-usage,no-release,capacity:1.3,giant:80k,burst:30";
    let faults: Vec<Fault> = list.split(',').map(|fault| fault.parse().unwrap()).collect();
    for fault in &faults {
        for name in ["ours", "thunderagent-fixed", "least-connections", "sticky", "cap:5"] {
            let setup = Setup { faults: Faults::new(&[*fault]), ..small(Workload::Swe) };
            let figures = figures(&setup, name);
            assert!(figures.steps_per_min > 3.0, "{fault:?} {name} {figures:?}");
        }
    }
    let setup = Setup { faults: Faults::new(&faults), ..small(Workload::Swe) };
    assert!(figures(&setup, "ours").steps_per_min > 1.0);
}

#[test]
fn a_restarted_engine_has_an_empty_cache() {
    let hits = |faults: &[Fault]| {
        let faults = Faults::new(faults);
        let demand = Demand { arrivals: Arrivals::Closed(2), ..small(Workload::Swe).demand };
        let setup = Setup { engines: 1, faults, demand, ..small(Workload::Swe) };
        figures(&setup, "sticky").hit_rate.unwrap()
    };
    assert!(hits(&[Fault::Restart(Duration::from_secs(50))]) < hits(&[]) - 0.02);
}

#[test]
fn programs_that_fit_nowhere_are_given_up_and_time_goes_on() {
    let shape = Shape { kv_blocks: 51, ..Profile::Glm.shape() };
    for name in ["ours", "thunderagent", "round-robin"] {
        assert_eq!(figures(&Setup { shape: shape.clone(), ..small(Workload::Swe) }, name).steps_per_min, 0.0);
    }
}

#[test]
fn an_open_loop_finishes_as_many_programs_as_come() {
    let demand = Demand { arrivals: Arrivals::Rate(6.0), ..replay(trace()).demand };
    let programs = figures(&Setup { demand, engines: 2, ..replay(trace()) }, "round-robin").programs_per_min;
    assert!((4.0..7.5).contains(&programs), "{programs}");
}

#[test]
fn a_prompt_that_shrinks_keeps_only_its_shared_prefix() {
    let step = |prompt| Step { gap: Duration::ZERO, prompt, shared: 160, output: 32, bytes: 0 };
    let script = Script { class: 7, steps: vec![step(320), step(480), step(400), step(600)] };
    let texts = script.texts(3, 16);
    let shares = |a: usize, b: usize| {
        let (a, b) = (texts.chain(a), texts.chain(b));
        a.iter().zip(b.iter()).take_while(|(a, b)| a == b).count()
    };
    assert_eq!(shares(0, 1), 32);
    assert_eq!(shares(1, 2), 10);
    assert!(shares(2, 3) >= 37);
    assert_eq!([0, 1, 2, 3].map(|at| texts.known(at)), [160, 352, 160, 432]);
    assert_ne!(script.texts(4, 16).chain(0)[12], texts.chain(0)[12]);
    assert_eq!(script.texts(4, 16).chain(0)[9], texts.chain(0)[9]);
}

#[test]
fn json_has_the_promised_keys_in_their_order() {
    let figures = figures(&small(Workload::Swe), "sticky");
    let json: serde_json::Value = serde_json::from_str(&Format::Json.render(&[figures])).unwrap();
    let keys: Vec<_> = json[0].as_object().unwrap().keys().cloned().collect();
    let promised = "policy seed steps_per_min programs_per_min hit_rate step_p50_s step_p95_s step_p99_s \
                    completion_p50_s completion_p95_s longest_wait_s longest_started_wait_s preemptions imbalance \
                    bound_steps_per_min";
    assert_eq!(keys, promised.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn every_policy_is_named_as_it_is_printed_and_a_wrong_name_tells_the_right_ones() {
    for name in ALL {
        assert_eq!(choice(name).to_string(), name);
    }
    assert!("outs".parse::<Choice>().unwrap_err().contains("prefix-aware"));
    assert!("cap:0".parse::<Choice>().unwrap_err().contains("cap:20"));
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    assert!(parse("--programs 5 --rate 3").unwrap_err().contains("cannot be used with"));
    assert!(parse("--workload swe --trace x").is_err());
    assert!(parse("--minutes 0").unwrap_err().contains("above 0"));
    assert!(parse("--faults fire").unwrap_err().contains("no-release"));
    let args = parse("--minutes 10 --warmup 10").unwrap();
    assert!(Setup::new(&args).unwrap_err().contains("leaves nothing"));
    let args = parse("--trace /nowhere/trace.jsonl").unwrap();
    assert!(Setup::new(&args).unwrap_err().contains("/nowhere/trace.jsonl"));
    let args = parse("--policies ours,cap:9 --faults no-usage,giant:450k --rate 2.5").unwrap();
    assert_eq!(args.policies, [Choice::Ours, Choice::Cap(9)]);
    assert_eq!(Setup::new(&args).unwrap().demand.arrivals, Arrivals::Rate(2.5));
}

#[test]
fn plots_have_a_line_for_each_policy() {
    let dir = tempfile::tempdir().unwrap();
    let setup = small(Workload::Swe);
    let tallies = simulate(&setup, &[choice("sticky")], true);
    let runs = [("sticky".to_owned(), &tallies[0]), ("the bound".to_owned(), &tallies[1])];
    plot::write(&dir.path().join("new"), &runs).unwrap();
    for file in ["throughput.svg", "hit-rate.svg", "waits.svg", "kv-occupancy.svg", "held.svg"] {
        let svg = std::fs::read_to_string(dir.path().join("new").join(file)).unwrap();
        assert!(svg.contains("<svg") && svg.contains("sticky") && svg.contains("the bound"), "{file}");
        // A policy has two strokes: its curve and its key.
        let strokes = ["#0072B2", "#D55E00"].map(|colour| svg.matches(colour).count());
        assert_eq!(strokes, [2, 2], "{file}");
    }
}
