//! Backends that are taken out because of the faults that their requests show.

use super::*;
use crate::config::Eject;
use tokio::time::advance;

const SECOND: BackendId = BackendId(1);
const BASE: Duration = Duration::from_secs(10);

fn ids(count: u32) -> impl Iterator<Item = BackendId> {
    (0..count).map(BackendId)
}

/// A pool of backends that are up. The test itself brought them up, not checks.
fn standing(count: u32, change: impl FnOnce(&mut Health)) -> (Fleet, Recorder) {
    let backends = (0..count).map(|n| backend(&format!("http://gpu{n}:1"))).collect();
    let mut pool = pool("", backends);
    change(&mut pool.health);
    let heard = Recorder::new();
    let metrics = Metrics { enabled: true, interval: NEVER };
    let fleet = Fleet::new(&[pool], &metrics, heard.clone());
    ids(count).for_each(|id| rise(&fleet, id));
    (fleet, heard)
}

/// Brings the backend up, as passed checks do.
fn rise(fleet: &Fleet, id: BackendId) {
    let core = &fleet.core;
    let rise = |member: &Arc<FleetMember>| member.close(&*core.sink, !core.has_other(member));
    core.registry.with(id, rise).unwrap();
}

fn fall(fleet: &Fleet, id: BackendId) {
    fleet
        .core
        .registry
        .with(id, |member| {
            member.check_failed(&*fleet.core.sink, true, &Health::default(), "its check failed".to_owned())
        })
        .unwrap();
}

fn fail(fleet: &Fleet, id: BackendId, fault: BackendFault, times: usize) {
    (0..times).for_each(|_| fleet.failed(id, fault));
}

fn up(fleet: &Fleet) -> Vec<bool> {
    fleet.statuses().iter().map(|status| status.healthy).collect()
}

fn downs(fleet: &Fleet, id: BackendId) -> Vec<(&'static str, u64)> {
    let status = fleet.statuses().into_iter().find(|status| status.backend.id == id).unwrap();
    status.downs.iter().filter(|(_, count)| *count > 0).map(|(cause, count)| (cause.label(), *count)).collect()
}

#[test]
fn each_kind_of_fault_has_its_own_number_in_a_row() {
    for (fault, limit, label) in
        [(BackendFault::Connect, 3, "connect"), (BackendFault::Reset, 3, "reset"), (BackendFault::Error, 5, "error")]
    {
        let (fleet, heard) = standing(2, |_| {});
        let first = fleet.get(FIRST).unwrap();
        for _ in 0..10 {
            fail(&fleet, FIRST, fault, limit - 1);
            first.outlier.clear();
        }
        assert_eq!(up(&fleet), [true, true], "{label}");
        fail(&fleet, FIRST, fault, limit);
        assert_eq!(up(&fleet), [false, true], "{label}");
        assert_eq!(heard.count(&Event::BackendDown(FIRST)), 1, "told at once");
        assert_eq!(fleet.preferred(POOL, b"x"), Some(SECOND));
        assert_eq!(downs(&fleet, FIRST), [(label, 1)]);
        let status = &fleet.statuses()[0];
        assert_eq!(status.down_cause.map(DownCause::label), Some(label));
        assert!(status.down_reason.as_ref().unwrap().contains(&format!("{limit} ")), "{:?}", status.down_reason);
        assert!(status.returns_in.unwrap() > Duration::from_secs(9));
        fail(&fleet, FIRST, fault, 100);
        assert_eq!(heard.count(&Event::BackendDown(FIRST)), 1, "once an outage");
    }
}

#[test]
fn no_more_than_the_share_is_out_and_the_last_one_stays() {
    for (count, share, expected) in [(1, 1.0, 0), (2, 0.5, 1), (2, 1.0, 1), (3, 0.5, 1), (4, 0.5, 2), (4, 0.0, 0)] {
        let (fleet, heard) = standing(count, |health| health.eject.share = share);
        ids(count).for_each(|id| fail(&fleet, id, BackendFault::Error, 50));
        assert_eq!(up(&fleet).iter().filter(|up| !**up).count(), expected, "{share} of {count}");
        let told = heard.events.borrow().iter().filter(|(_, e)| matches!(e, Event::BackendDown(_))).count();
        assert_eq!(told, expected);
    }
}

#[test]
fn failed_checks_take_out_the_last_one_too_and_then_the_others_are_pardoned() {
    let (fleet, _) = standing(2, |health| health.eject.base = NEVER.min(Duration::from_secs(300)));
    fail(&fleet, FIRST, BackendFault::Reset, 3);
    rise(&fleet, FIRST);
    assert_eq!(up(&fleet), [false, true], "good checks alone do not bring it back");
    fall(&fleet, SECOND);
    assert_eq!(up(&fleet), [false, false]);
    rise(&fleet, FIRST);
    assert_eq!(up(&fleet), [true, false], "better than none");
    assert_eq!(downs(&fleet, SECOND), [("check", 1)]);
}

#[test]
fn one_that_fails_its_checks_does_not_count_as_taken_out_but_is_not_there_either() {
    let (fleet, _) = standing(3, |health| health.eject.share = 1.0);
    fall(&fleet, FIRST);
    fail(&fleet, SECOND, BackendFault::Error, 5);
    assert_eq!(up(&fleet), [false, false, true]);
    fail(&fleet, BackendId(2), BackendFault::Error, 5);
    assert_eq!(up(&fleet), [false, false, true], "the last one");
}

#[tokio::test(start_paused = true)]
async fn each_time_out_is_twice_as_long_until_it_was_well_for_long() {
    let (fleet, _) = standing(2, |health| health.eject = Eject { base: BASE, max: 6 * BASE, ..Eject::default() });
    for time in [1, 2, 4, 6, 6].map(|times| BASE * times) {
        fail(&fleet, FIRST, BackendFault::Reset, 3);
        assert_eq!(fleet.statuses()[0].returns_in, Some(time));
        advance(time - Duration::from_secs(1)).await;
        rise(&fleet, FIRST);
        assert_eq!(up(&fleet), [false, true], "not yet");
        advance(Duration::from_secs(1)).await;
        assert_eq!(up(&fleet), [false, true], "not without a check");
        rise(&fleet, FIRST);
        assert_eq!(up(&fleet), [true, true]);
        assert_eq!(fleet.statuses()[0].returns_in, None);
        // The row of faults before that does not count.
        fail(&fleet, FIRST, BackendFault::Reset, 2);
        assert_eq!(up(&fleet), [true, true]);
    }
    advance(6 * BASE).await;
    fail(&fleet, FIRST, BackendFault::Reset, 1);
    assert_eq!(fleet.statuses()[0].returns_in, Some(BASE));
}

#[tokio::test(start_paused = true)]
async fn one_that_made_no_progress_stays_out_while_steps_wait_there_in_silence() {
    let (fleet, _) = standing(2, |_| {});
    let first = fleet.get(FIRST).unwrap();
    let step = PendingAnswer::begin(&first.outlier, 0);
    let member = fleet.core.registry.with(FIRST, Arc::clone).unwrap();
    let goes_out = async || {
        fleet.core.eject(&member, DownCause::NoProgress, "silence");
        advance(BASE * 10).await;
        rise(&fleet, FIRST);
        assert_eq!(up(&fleet), [false, true]);
    };
    goes_out().await;
    step.note_progress();
    rise(&fleet, FIRST);
    assert_eq!(up(&fleet), [true, true]);
    goes_out().await;
    drop(step);
    rise(&fleet, FIRST);
    assert_eq!(up(&fleet), [true, true], "nobody waits there any more");
}

// --- With checks, on sockets ---

#[tokio::test]
async fn a_failed_connection_is_followed_by_a_check_at_once_and_costs_nothing_if_that_is_good() {
    let engine = Engine::start().await;
    let mut pool = pool("", vec![backend(&engine.url())]);
    pool.health.interval = NEVER;
    let run = run(&[pool]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    let asked = engine.asked("/health");
    run.fleet.failed(FIRST, BackendFault::Connect);
    // The fleet told it again, for the step that found nobody there.
    run.heard.until_times(Event::BackendUp(FIRST), 2).await;
    assert_eq!(engine.asked("/health"), asked + 1);
    assert_eq!(run.heard.count(&Event::BackendDown(FIRST)), 0);
    run.fleet.failed(BackendId(77), BackendFault::Connect);
}

#[tokio::test]
async fn a_failed_connection_and_a_failed_check_take_it_out_at_once() {
    let mut engine = Engine::start().await;
    let mut pool = pool("", vec![backend(&engine.url())]);
    pool.health.interval = NEVER;
    let run = run(&[pool]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    engine.stop().await;
    run.fleet.failed(FIRST, BackendFault::Connect);
    run.heard.until_event(Event::BackendDown(FIRST)).await;
    assert!(down_reason(&run.fleet).contains("refused"), "{}", down_reason(&run.fleet));
    assert_eq!(downs(&run.fleet, FIRST), [("check", 1)]);
    engine.listen().await;
    run.heard.until_times(Event::BackendUp(FIRST), 2).await;
}

#[tokio::test]
async fn one_taken_out_returns_by_itself_after_its_time_and_good_checks() {
    let (one, other) = (Engine::start().await, Engine::start().await);
    let mut pool = pool("", vec![backend(&one.url()), backend(&other.url())]);
    pool.health.eject.base = Duration::from_millis(200);
    let run = run(&[pool]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    run.heard.until_event(Event::BackendUp(SECOND)).await;
    one.set(|e| e.health = StatusCode::SERVICE_UNAVAILABLE);
    fail(&run.fleet, FIRST, BackendFault::Error, 5);
    assert_eq!(run.heard.count(&Event::BackendDown(FIRST)), 1);
    until("its time is over", || run.fleet.statuses()[0].returns_in == Some(Duration::ZERO)).await;
    let asked = one.asked("/health");
    until("failed checks", || one.asked("/health") > asked + 3).await;
    assert_eq!(up(&run.fleet), [false, true]);
    one.set(|e| e.health = StatusCode::OK);
    until("it is back", || up(&run.fleet) == [true, true]).await;
}

/// Two engines, the first with a step in flight. The second makes progress all the time.
async fn one_silent(moves: bool) -> (Engine, Engine, Running, PendingAnswer, tokio::task::JoinHandle<()>) {
    let (one, other) = (Engine::start().await, Engine::start().await);
    let mut pool = pool("", vec![backend(&one.url()), backend(&other.url())]);
    pool.health.eject = Eject { no_progress: Duration::from_millis(400), base: BASE / 100, ..Eject::default() };
    let run = run(&[pool]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    run.heard.until_event(Event::BackendUp(SECOND)).await;
    let step = PendingAnswer::begin(&run.fleet.get(FIRST).unwrap().outlier, 0);
    let second = run.fleet.get(SECOND).unwrap();
    let moving = moves.then(|| one.mover());
    let speaks = tokio::spawn(async move {
        let mut turns = 0;
        loop {
            second.outlier.note_progress();
            turns += 1;
            if let Some(moving) = &moving {
                moving(turns);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    (one, other, run, step, speaks)
}

#[tokio::test]
async fn an_engine_that_hangs_with_good_checks_is_taken_out_until_it_moves_again() {
    let (one, _other, run, _step, speaks) = one_silent(false).await;
    run.heard.until_event(Event::BackendDown(FIRST)).await;
    assert_eq!(downs(&run.fleet, FIRST), [("no_progress", 1)]);
    until("its time is over", || run.fleet.statuses()[0].returns_in == Some(Duration::ZERO)).await;
    let asked = one.asked("/health");
    until("good checks", || one.asked("/health") > asked + 3).await;
    assert_eq!(up(&run.fleet), [false, true], "it is as silent as before");
    (one.mover())(1);
    until("it is back", || up(&run.fleet) == [true, true]).await;
    speaks.abort();
}

#[tokio::test]
async fn an_engine_whose_cache_fills_is_busy_with_a_long_prompt_and_stays() {
    let (one, _other, run, _step, speaks) = one_silent(true).await;
    let since = std::time::Instant::now();
    until("twice the limit", || since.elapsed() > Duration::from_millis(1_000)).await;
    assert!(one.asked("/metrics") > 5);
    assert_eq!(run.heard.count(&Event::BackendDown(FIRST)), 0);
    speaks.abort();
    until("it stops", || speaks.is_finished()).await;
    // The other engine is silent now too, but owes no answer. In the end the first is the only one to blame.
    run.heard.until_event(Event::BackendDown(FIRST)).await;
}
