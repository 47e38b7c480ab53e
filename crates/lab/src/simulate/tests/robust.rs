//! The price of faults for `ours`: throughput against the same run without the fault.

use super::*;

/// Ratio of the steps with the fault to those without it. Runs are short and an engine holds two or three full
/// programs, so chance alone moves the ratio by a tenth. Therefore the limits have slack.
fn kept(faults: &[Fault]) -> f64 {
    let steps = |faults| {
        let setup = Setup {
            demand: Demand { arrivals: Arrivals::Closed(10), ..small(Workload::Swe).demand },
            length: Duration::from_secs(900),
            warmup: Duration::from_secs(300),
            faults: Faults::new(faults),
            ..small(Workload::Swe)
        };
        figures(&setup, "ours").steps_per_min
    };
    steps(faults) / steps(&[])
}

#[test]
fn missing_usage_on_every_step_costs_little() {
    let kept = kept(&[Fault::NoUsage]);
    assert!(kept > 0.7, "{kept}");
}

#[test]
fn programs_that_are_never_released_do_not_stop_the_others() {
    let kept = kept(&[Fault::NoRelease]);
    // Dead programs take room until keeping them has cost more than recomputing them would.
    assert!(kept > 0.6, "{kept}");
}

#[test]
fn a_capacity_reported_too_large_by_a_third_costs_little() {
    let kept = kept(&[Fault::Capacity(1.3)]);
    assert!(kept > 0.7, "{kept}");
}

#[test]
fn estimates_that_are_far_too_low_cost_little() {
    let kept = kept(&[Fault::Estimate(0.7)]);
    assert!(kept > 0.7, "{kept}");
}

#[test]
fn estimates_that_are_far_too_high_cost_little() {
    let kept = kept(&[Fault::Estimate(1.5)]);
    assert!(kept > 0.7, "{kept}");
}

#[test]
fn an_engine_that_starts_anew_every_five_minutes_costs_little_more_than_its_absence() {
    let kept = kept(&[Fault::Restart(Duration::from_secs(300))]);
    assert!(kept > 0.7, "{kept}");
}

#[test]
fn a_giant_costs_little() {
    let kept = kept(&[Fault::Giant(80_000)]);
    assert!(kept > 0.7, "{kept}");
}
