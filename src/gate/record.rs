//! Records the schedulers' decisions in the metrics and in the stream of events.

use super::{Gate, PoolId};
use crate::scheduler::{Decision, DispatchKind, EndKind, ProgramKey};
use crate::telemetry::{MoveReason, Released};
use crate::units::unix_time;
use serde_json::{Value, json};

impl Gate {
    pub(super) fn record(&self, pool: PoolId, decisions: &[Decision]) {
        for decision in decisions {
            self.count(decision);
        }
        // Usually nobody listens, and then no event is made.
        if self.0.events.receiver_count() == 0 {
            return;
        }
        for event in decisions.iter().filter_map(|decision| describe(pool, decision)) {
            // An error only means that the last listener has gone since.
            let _ = self.0.events.send(event.to_string().into());
        }
    }

    fn count(&self, decision: &Decision) {
        let metrics = &self.0.telemetry.metrics;
        match decision {
            Decision::Held { reason, .. } => metrics.held(*reason),
            Decision::Paused { reason, .. } => metrics.paused(*reason),
            Decision::Moved { lost, .. } => {
                metrics.moved(if *lost { MoveReason::BackendDown } else { MoveReason::Room });
            }
            Decision::Ended { how, .. } => metrics.released(match how {
                EndKind::Released => Released::Api,
                EndKind::Final => Released::Final,
                EndKind::Expired | EndKind::Displaced => Released::Forgotten,
            }),
            Decision::Dispatch { kind: DispatchKind::Forced, .. } => metrics.forced(),
            Decision::Measured { estimate, reported } if reported.0 > 0 => {
                metrics.estimate_error((estimate.as_f64() - reported.as_f64()) / reported.as_f64());
            }
            Decision::Dispatch { .. } | Decision::Refuse { .. } | Decision::Measured { .. } => {}
        }
    }
}

fn describe(pool: PoolId, decision: &Decision) -> Option<Value> {
    let mut event = match decision {
        Decision::Dispatch { step, backend, kind } => {
            json!({"event": "dispatch", "step": step.0, "backend": backend.0, "kind": kind.label()})
        }
        Decision::Refuse { step, reason } => json!({"event": "refuse", "step": step.0, "reason": reason.label()}),
        Decision::Held { step, reason } => json!({"event": "hold", "step": step.0, "reason": reason.label()}),
        Decision::Paused { program, backend, reason } => {
            named("pause", program, json!({"backend": backend.0, "reason": reason.label()}))
        }
        Decision::Moved { program, from, to, lost } => {
            named("move", program, json!({"from": from.0, "to": to.0, "lost": lost}))
        }
        Decision::Ended { program, how } => named("end", program, json!({"how": how.label()})),
        Decision::Measured { .. } => return None,
    };
    event["time"] = json!(unix_time().as_millis() as f64 / 1000.0);
    event["pool"] = json!(pool.0);
    Some(event)
}

fn named(event: &str, program: &ProgramKey, mut rest: Value) -> Value {
    rest["event"] = json!(event);
    rest["program"] = json!(&*program.id);
    if !program.tenant.is_empty() {
        rest["tenant"] = json!(&*program.tenant);
    }
    rest
}
