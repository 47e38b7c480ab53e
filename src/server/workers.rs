//! The threads that serve. Each has a runtime of its own and accepts for itself, so that a client's connection, the
//! backend's connection and their timers stay on one thread: to hand them around costs a fifth of a small request.

use super::acceptor::Acceptor;
use pingora_core::server::ListenFds;
use pingora_core::services::Service as _;
use pingora_core::services::listening::Service;
use std::io;
use std::thread;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// The number of workers: one for each core that this process may use.
pub fn count() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Starts a worker. The worker accepts until `shut` is true, and drops `accepting` once every connection that it let in
/// is counted. The worker ends, with all that it serves, when `serving` is dropped.
///
/// # Errors
/// The system has no room for another thread or runtime.
pub fn start(
    services: Vec<Service<Acceptor>>,
    fds: ListenFds,
    shut: &watch::Sender<bool>,
    serving: &watch::Sender<()>,
    accepting: mpsc::Sender<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (shut, mut serving) = (shut.subscribe(), serving.subscribe());
    let work = async move {
        let acceptors = services.into_iter().map(|mut service| {
            let (fds, shut) = (fds.clone(), shut.clone());
            async move { service.start_service(Some(fds), shut, 1).await }
        });
        let acceptors: JoinSet<()> = acceptors.collect();
        tokio::spawn(async move {
            acceptors.join_all().await;
            // Behind the tasks of those who came last: tasks have their turns in the order of their start.
            let _ = tokio::spawn(async {}).await;
            drop(accepting);
        });
        // Nobody sends anything: this waits until the sender is gone.
        while serving.changed().await.is_ok() {}
    };
    thread::Builder::new().name("worker".to_owned()).spawn(move || runtime.block_on(work)).map(drop)
}
