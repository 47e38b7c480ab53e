//! A deadline that moves with each sign of life.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Instant;
use tokio::time::Sleep;

/// The timer is set anew only when it rings too early: each sign of life would cost it otherwise.
pub struct Patience<'a> {
    timer: Pin<&'a mut Sleep>,
    pub deadline: Instant,
}

// === impl Patience ===

impl<'a> Patience<'a> {
    /// `timer` may be set to any time.
    pub fn new(timer: Pin<&'a mut Sleep>, deadline: Instant) -> Self {
        Self { timer, deadline }
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
