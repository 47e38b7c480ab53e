//! The programs of a run, and the times at which they start.

use super::rng::Rng;
use super::script::Script;
use super::trace::Trace;
use super::workload::Workload;
use std::time::Duration;

/// Source of the scripts.
#[derive(Clone, Debug)]
pub enum Source {
    Workload(Workload),
    Trace(Trace),
}

/// Times at which programs start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// A constant number of programs: when one ends, the next begins.
    Closed(u64),
    /// Poisson arrivals at this rate, in programs per minute.
    Rate(f64),
    /// Times as recorded in the trace.
    Recorded,
}

#[derive(Clone, Debug)]
pub struct Demand {
    pub source: Source,
    pub arrivals: Arrivals,
    pub seed: u64,
}

/// Time within which the programs of a closed loop start: containers take a while to come up.
const STAGGER: Duration = Duration::from_secs(60);
/// Numbers of streams of the random generator. A program's own stream has the program's number.
const STARTS: u64 = 1 << 60;
const BYTES: u64 = 2 << 60;

// === impl Demand ===

impl Demand {
    /// The script of program `number`. The script depends on the seed and the number alone, so every policy meets the
    /// same programs.
    #[must_use]
    pub fn script(&self, number: u64) -> Script {
        match &self.source {
            Source::Workload(workload) => workload.script(self.seed, number),
            Source::Trace(trace) => {
                let mut script = trace.scripts[number as usize % trace.scripts.len()].clone();
                script.write_bytes(&mut Rng::new(self.seed, BYTES ^ number));
                script
            }
        }
    }

    /// Start times of the programs that do not follow another. Each is counted from the start of the one before.
    pub fn starts(&self) -> Box<dyn Iterator<Item = Duration> + '_> {
        let mut rng = Rng::new(self.seed, STARTS);
        match (self.arrivals, &self.source) {
            (Arrivals::Closed(programs), _) => {
                let mut starts: Vec<Duration> = (0..programs).map(|_| STAGGER.mul_f64(rng.unit())).collect();
                starts.sort_unstable();
                let mut last = Duration::ZERO;
                Box::new(starts.into_iter().map(move |at| at - std::mem::replace(&mut last, at)))
            }
            (Arrivals::Recorded, Source::Trace(trace)) => Box::new(trace.scripts.iter().map(|s| s.steps[0].gap)),
            (Arrivals::Recorded, Source::Workload(_)) => Box::new(std::iter::empty()),
            (Arrivals::Rate(per_minute), _) => {
                Box::new(std::iter::from_fn(move || Some(Duration::from_secs_f64(rng.exponential(60.0 / per_minute)))))
            }
        }
    }
}
