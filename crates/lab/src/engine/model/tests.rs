use super::*;
use crate::engine::chain::{Chain, mix};
use proptest::prelude::*;

const COSTS: Costs = Costs { t0: 0.010, tp: 0.001, tq: 1e-6, td: 0.002, tkv: 1e-6 };

fn shape(kv_blocks: u32) -> Shape {
    Shape { kv_blocks, block_size: 4, max_num_seqs: 8, max_num_batched_tokens: 64, costs: COSTS }
}

/// A request whose text is `stream`'s first `prompt` tokens. Its answer is the next tokens of the stream.
fn request(id: RequestId, stream: u64, prompt: usize, output: usize) -> Request {
    let mut chain = Chain::new(4);
    chain.push_stream(stream, 0, (prompt + output) as u64);
    Request {
        id,
        chain: chain.hashes().into(),
        prompt_tokens: prompt,
        output_tokens: output,
        recalled: 0,
        finish: Finish::Length,
        stream: false,
    }
}

/// Runs until nothing is left to do, recounting the blocks after each iteration.
fn drain(engine: &mut Engine) -> Vec<EngineEvent> {
    let mut events = Vec::new();
    while let Some(at) = engine.next_event_at() {
        engine.advance(at, &mut events);
        engine.check();
    }
    events
}

fn usage_of(events: &[EngineEvent], id: RequestId) -> Usage {
    let usage = |event: &EngineEvent| match event.kind {
        EventKind::Finished(usage) if event.id == id => Some(usage),
        _ => None,
    };
    events.iter().find_map(usage).expect("finished")
}

fn seconds(value: f64) -> Duration {
    Duration::from_nanos((value * 1e9).round() as u64)
}

fn run_one(engine: &mut Engine, request: Request) -> Usage {
    let (now, id) = (engine.now(), request.id);
    engine.submit(now, request).unwrap();
    usage_of(&drain(engine), id)
}

impl Engine {
    /// A time late enough that nothing is under way.
    fn now(&self) -> Duration {
        self.counters.busy + Duration::from_secs(1000 * self.counters.iterations)
    }
}

#[test]
fn a_growing_conversation_finds_all_its_full_blocks_again_but_never_its_last_token() {
    let mut engine = Engine::new(shape(1000));
    assert_eq!(run_one(&mut engine, request(1, 1, 41, 8)).cached, 0);
    // Of 49 tokens, 48 have their KV; 12 blocks are full.
    assert_eq!(run_one(&mut engine, request(2, 1, 60, 8)).cached, 48);
    // The prompt consists of whole blocks, all of them cached. The last block is computed again.
    assert_eq!(run_one(&mut engine, request(3, 1, 60, 8)).cached, 56);
    let counters = engine.counters();
    assert_eq!(counters.prefix_queries, 41 + 60 + 60);
    assert_eq!(counters.prefix_hits, 48 + 56);
    assert_eq!(counters.prompt_cached, 48 + 56);
    assert_eq!(counters.generation_tokens, 24);
}

#[test]
fn the_last_sampled_token_is_not_in_the_cache() {
    let mut engine = Engine::new(shape(1000));
    run_one(&mut engine, request(1, 1, 4, 4));
    assert_eq!(run_one(&mut engine, request(2, 1, 20, 1)).cached, 4);
}

#[test]
fn the_conversation_used_least_recently_loses_its_cache_first() {
    let mut engine = Engine::new(shape(1 + 3 * 10));
    for id in 1..=3 {
        run_one(&mut engine, request(id, id, 36, 4));
    }
    assert_eq!(run_one(&mut engine, request(4, 1, 37, 1)).cached, 36);
    run_one(&mut engine, request(5, 5, 36, 4));
    assert_eq!(run_one(&mut engine, request(6, 1, 37, 1)).cached, 36);
    assert_eq!(run_one(&mut engine, request(7, 3, 37, 1)).cached, 36);
    // Ten blocks were taken: three blank ones, and seven of the second request's nine, from its tail.
    assert_eq!(run_one(&mut engine, request(8, 2, 37, 1)).cached, 8);
}

#[test]
fn a_prompt_longer_than_the_budget_is_prefilled_in_chunks_that_take_the_formulas_time() {
    let mut engine = Engine::new(shape(1000));
    engine.submit(Duration::ZERO, request(1, 1, 100, 3)).unwrap();
    let events = drain(&mut engine);
    let first = 0.010 + 64.0 * 0.001 + 1e-6 * 64.0 * 32.0;
    let second = 0.010 + 36.0 * 0.001 + 1e-6 * 36.0 * (64.0 + 18.0);
    let decodes = 2.0 * (0.010 + 0.002) + 1e-6 * (100.0 + 101.0);
    assert_eq!(
        events,
        [
            EngineEvent {
                at: seconds(first) + seconds(second),
                id: 1,
                kind: EventKind::FirstToken { after: seconds(first) + seconds(second) },
            },
            EngineEvent {
                at: seconds(first) + seconds(second) + seconds(decodes),
                id: 1,
                kind: EventKind::Finished(Usage { prompt: 100, cached: 0, output: 3 }),
            },
        ]
    );
    assert_eq!(engine.counters().iterations, 4);
    assert_eq!(engine.counters().prefilled, 100);
}

#[test]
fn decodes_go_before_a_prefill_in_the_budget() {
    let mut engine = Engine::new(shape(1000));
    let mut events = Vec::new();
    engine.submit(Duration::ZERO, request(1, 1, 10, 20)).unwrap();
    engine.advance(engine.next_event_at().unwrap(), &mut events);
    engine.submit(Duration::from_millis(1), request(2, 2, 100, 1)).unwrap();
    let ends = engine.next_event_at().unwrap();
    engine.advance(ends, &mut events);
    let expected = 0.010 + 0.002 + 10e-6 + 63.0 * 0.001 + 1e-6 * 63.0 * 31.5;
    assert_eq!(engine.next_event_at().unwrap() - ends, seconds(expected));
}

#[test]
fn the_youngest_is_preempted_when_blocks_run_out_and_is_finished_later() {
    let mut engine = Engine::new(shape(1 + 12));
    engine.submit(Duration::ZERO, request(1, 1, 20, 16)).unwrap();
    engine.submit(Duration::ZERO, request(2, 2, 20, 16)).unwrap();
    let events = drain(&mut engine);
    let preempted: Vec<_> = events.iter().filter(|e| e.kind == EventKind::Preempted).map(|e| e.id).collect();
    assert_eq!(preempted, [2]);
    assert_eq!(engine.counters().preemptions, 1);
    assert_eq!(usage_of(&events, 1).output, 16);
    assert_eq!(usage_of(&events, 2).output, 16);
    let firsts = |id| {
        let first = |e: &&EngineEvent| matches!(e.kind, EventKind::FirstToken { .. }) && e.id == id;
        events.iter().filter(first).count()
    };
    assert_eq!((firsts(1), firsts(2)), (1, 1));
    assert!(engine.counters().prefilled > 40, "recomputed");
    assert_eq!(engine.counters().prompt_tokens, 40);
}

#[test]
fn the_queue_waits_in_order_until_the_whole_prompt_of_its_head_fits() {
    let mut engine = Engine::new(shape(1 + 10));
    let mut events = Vec::new();
    engine.submit(Duration::ZERO, request(1, 1, 24, 2)).unwrap();
    engine.submit(Duration::ZERO, request(2, 2, 24, 2)).unwrap();
    engine.submit(Duration::ZERO, request(3, 3, 4, 2)).unwrap();
    engine.advance(Duration::ZERO, &mut events);
    assert_eq!((engine.gauges().running, engine.gauges().waiting), (1, 2));
    let events = drain(&mut engine);
    let at = |id| events.iter().position(|e| e.id == id).unwrap();
    assert!(at(1) < at(2) && at(2) < at(3));
    assert_eq!(engine.counters().preemptions, 0);
}

#[test]
fn a_head_that_shares_a_prefix_being_computed_gets_in_although_alone_it_would_not_fit() {
    let mut engine = Engine::new(shape(1 + 14));
    let mut events = Vec::new();
    engine.submit(Duration::ZERO, request(1, 1, 40, 4)).unwrap();
    engine.submit(Duration::ZERO, request(2, 1, 44, 4)).unwrap();
    engine.advance(Duration::ZERO, &mut events);
    assert_eq!(engine.gauges().running, 2);
}

#[test]
fn an_abort_frees_the_blocks_at_once_wherever_the_request_is() {
    let mut engine = Engine::new(shape(1 + 10));
    let mut events = Vec::new();
    engine.submit(Duration::ZERO, request(1, 1, 32, 8)).unwrap();
    engine.submit(Duration::ZERO, request(2, 2, 32, 8)).unwrap();
    engine.advance(Duration::ZERO, &mut events);
    assert!(engine.gauges().kv_usage > 0.7);
    assert!(engine.abort(1));
    engine.check();
    assert_eq!(engine.gauges(), Gauges { running: 0, waiting: 1, kv_usage: 0.0 });
    assert!(engine.abort(2));
    assert!(!engine.abort(2));
    assert_eq!(drain(&mut engine), []);
    assert_eq!(engine.counters().aborted, 2);
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut engine = Engine::new(shape(1 + 4));
    assert_eq!(engine.capacity(), 16);
    let too_large = request(1, 1, 10, 8);
    assert_eq!(engine.submit(Duration::ZERO, too_large), Err(Unfit::TooLarge));
    let empty = request(2, 1, 10, 0);
    assert_eq!(engine.submit(Duration::ZERO, empty), Err(Unfit::Empty));
    assert_eq!(run_one(&mut engine, request(3, 1, 10, 7)).output, 7);
}

#[test]
fn at_unlimited_capacity_every_full_block_seen_before_is_a_hit() {
    let mut engine = Engine::new(shape(2_000));
    let (mut expected, mut queried) = (0, 0);
    for turn in 0..30_u64 {
        for program in 0..5 {
            let prompt = 50 + 37 * turn as usize;
            let before = prompt - 37 + 10;
            expected += if turn == 0 { 0 } else { ((before - 1) / 4 * 4) as u64 };
            queried += prompt as u64;
            run_one(&mut engine, request(turn * 5 + program, program, prompt, 10));
        }
    }
    assert_eq!(engine.counters().prefix_queries, queried);
    assert_eq!(engine.counters().prefix_hits, expected);
}

proptest! {
    #[test]
    fn blocks_are_conserved_and_every_request_ends_once(
        blocks in 12_u32..60,
        seqs in 1_usize..10,
        batch in 1_usize..80,
        load in prop::collection::vec((0_u64..6, 1_usize..30, 1_usize..14, 0_u64..200, any::<bool>()), 1..60),
    ) {
        let shape = Shape { max_num_seqs: seqs, max_num_batched_tokens: batch, ..shape(blocks) };
        let run = || {
            let mut engine = Engine::new(shape.clone());
            let (mut events, mut now, mut aborted) = (Vec::new(), Duration::ZERO, 0);
            for (id, &(stream, prompt, output, gap, abort)) in load.iter().enumerate() {
                now += Duration::from_millis(gap);
                while engine.next_event_at().is_some_and(|at| at <= now) {
                    engine.advance(engine.next_event_at().unwrap(), &mut events);
                    engine.check();
                }
                engine.submit(now, request(id as u64, stream, prompt, output)).unwrap();
                if abort {
                    aborted += u64::from(engine.abort(mix(id as u64) % (id as u64 + 1)));
                    engine.check();
                }
            }
            events.extend(drain(&mut engine));
            (events, aborted, *engine.counters(), engine.gauges())
        };
        let (events, aborted, counters, gauges) = run();
        let ended = events.iter().filter(|e| matches!(e.kind, EventKind::Finished(_))).count();
        prop_assert_eq!(ended as u64 + aborted, load.len() as u64);
        prop_assert_eq!(counters.aborted, aborted);
        prop_assert_eq!(gauges, Gauges::default());
        prop_assert!(events.windows(2).all(|pair| pair[0].at <= pair[1].at));
        let again = run();
        prop_assert_eq!(again.0, events);
        prop_assert_eq!(again.2, counters);
    }
}

/// Test of what `thundergate simulate` needs: an hour of four engines and 160 programs in a few seconds. The test runs
/// with `cargo test --release -- --ignored`.
#[test]
#[ignore = "prints a speed; meaningful in a release build only"]
fn speed_of_an_hour_of_one_engine_with_forty_programs() {
    let mut engine = Engine::new(Shape {
        kv_blocks: 500_000 / 16,
        block_size: 16,
        max_num_seqs: 256,
        max_num_batched_tokens: 8192,
        costs: Costs::GLM,
    });
    let started = std::time::Instant::now();
    let (mut events, mut chains) = (Vec::new(), Vec::new());
    for program in 0..40 {
        let mut chain = Chain::new(16);
        chain.push_stream(program, 0, 3000);
        chains.push(chain);
    }
    let submit = |engine: &mut Engine, chains: &mut Vec<Chain>, id: u64, now| {
        let chain = &mut chains[id as usize];
        if chain.len() > 45_000 {
            *chain = Chain::new(16);
            chain.push_stream(mix(id ^ now_nanos(now)), 0, 3000);
        }
        let prompt = chain.len();
        chain.push_stream(id + 1000, prompt as u64, 300);
        let request = Request {
            id,
            chain: chain.hashes().into(),
            prompt_tokens: prompt,
            output_tokens: 300,
            recalled: 0,
            finish: Finish::Stop,
            stream: false,
        };
        chain.push_stream(id + 2000, prompt as u64, 700);
        engine.submit(now, request).unwrap();
    };
    fn now_nanos(now: Duration) -> u64 {
        now.as_nanos() as u64
    }
    for id in 0..40 {
        submit(&mut engine, &mut chains, id, Duration::ZERO);
    }
    let mut steps = 0;
    while let Some(at) = engine.next_event_at().filter(|at| at.as_secs() < 3600) {
        engine.advance(at, &mut events);
        for event in events.drain(..) {
            if let EventKind::Finished(_) = event.kind {
                steps += 1;
                submit(&mut engine, &mut chains, event.id, event.at);
            }
        }
    }
    println!("{steps} steps, {} iterations, {:?}", engine.counters().iterations, started.elapsed());
    assert!(steps > 0);
}

#[test]
fn what_is_recalled_takes_blocks_but_no_time() {
    let mut engine = Engine::new(shape(1000));
    let plain = run_one(&mut engine, request(1, 1, 41, 1));
    let busy = engine.counters().busy;
    let recalled = run_one(&mut engine, Request { recalled: 41, ..request(2, 2, 41, 1) });
    // All blocks are recalled but the last, whose logits are needed.
    assert_eq!((plain.cached, recalled.cached), (0, 0));
    assert_eq!(engine.counters().prefilled, 41 + 1);
    assert!(engine.counters().busy < busy * 2);
    assert_eq!(run_one(&mut engine, request(3, 2, 41, 1)).cached, 40);
}
