//! A deadline that moves with each sign of life.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// The timer is set anew only when it rings too early: each sign of life would cost it otherwise.
pub struct IdleTimer<'a> {
    timer: Pin<&'a mut Sleep>,
    deadline: Instant,
}

// === impl IdleTimer ===

impl<'a> IdleTimer<'a> {
    /// Ends `limit` after `from`. `timer` may be set to any time.
    pub fn new(timer: Pin<&'a mut Sleep>, from: Instant, limit: Duration) -> Self {
        let mut idle = Self { timer, deadline: from };
        idle.expect_within(from, limit);
        idle
    }

    /// Moves the deadline to `limit` after `from`.
    pub fn expect_within(&mut self, from: Instant, limit: Duration) {
        // A century, for a limit that no clock reaches.
        const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        self.deadline = from + limit.min(FAR);
    }

    /// Returns when the deadline has passed. Cancel-safe.
    pub async fn over(&mut self) {
        poll_fn(|cx| {
            let deadline = tokio::time::Instant::from_std(self.deadline);
            if self.timer.deadline() > deadline {
                self.timer.as_mut().reset(deadline);
            }
            loop {
                ready!(self.timer.as_mut().poll(cx));
                if self.timer.deadline() >= deadline {
                    return Poll::Ready(());
                }
                self.timer.as_mut().reset(deadline);
            }
        })
        .await;
    }
}
