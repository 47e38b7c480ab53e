//! Tools that the tests of the request path share: a scripted backend, small clients, the proxy in this process.
#![allow(dead_code, reason = "every test file uses a part of it")]

pub mod backend;
pub mod client;
pub mod load;
pub mod process;
pub mod proxy;
pub mod wire;

use std::future::Future;
use std::time::Duration;

/// Time limit far beyond what anything here takes. A test that reaches the limit hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, and fails the test when it does not end in time. `what` names it in the failure.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {PATIENCE:?}"),
    }
}

/// `length` bytes without repetition, so that a lost or doubled piece shows.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 56) as u8
    };
    (0..length).map(step).collect()
}
