//! Backends that a name server knows. The fleet has one backend for each address of a name, which is looked up again
//! and again.

use super::backend::Origin;
use super::core::Core;
use crate::config::{self, Discovery};
use crate::scheduler::PoolId;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Time after which a lookup counts as failed.
const LIMIT: Duration = Duration::from_secs(5);

/// Keeps the pool's discovered backends equal to those of the name server, for as long as the fleet is there.
pub(super) async fn run(core: Arc<Core>, id: PoolId) {
    let Some(pool) = core.pools.get(id) else { return };
    let mut settings = pool.discovery.subscribe();
    let mut failing = false;
    loop {
        let now = settings.borrow_and_update().clone();
        let Some(discovery) = now else {
            core.align(id, &[], Origin::Dns);
            if settings.changed().await.is_err() {
                return;
            }
            continue;
        };
        let name = &discovery.dns;
        // A name server that fails, or that knows no address, does not take any backend away.
        match core.resolver.addresses(&name.host, name.port, LIMIT).await {
            Ok(addresses) => {
                core.align(id, &backends(&addresses, &discovery), Origin::Dns);
                if std::mem::take(&mut failing) {
                    log::info!("{} resolves again, to {} addresses", name.host, addresses.len());
                }
            }
            Err(reason) if !std::mem::replace(&mut failing, true) => {
                log::warn!("{} does not resolve ({reason}): its backends stay as they are", name.host);
            }
            Err(_) => {}
        }
        core.progressed(&pool.looked_up);
        tokio::select! {
            () = tokio::time::sleep(discovery.interval) => {}
            _ = settings.changed() => {}
        }
    }
}

/// The backends at these addresses, in the order of the addresses.
fn backends(addresses: &[SocketAddr], discovery: &Discovery) -> Vec<config::Backend> {
    let usable = |address: SocketAddr| {
        let made = backend(&format!("http://{address}"), discovery);
        made.inspect_err(|reason| log::debug!("{address} is no backend: {reason}")).ok()
    };
    BTreeSet::from_iter(addresses).into_iter().copied().filter_map(usable).collect()
}

/// # Errors
/// A text that says why the URL cannot be used.
pub(super) fn backend(url: &str, discovery: &Discovery) -> Result<config::Backend, String> {
    Ok(config::Backend { api_key: discovery.api_key.clone(), ..config::Backend::at(url)? })
}
