//! Backends that a name server knows: one for each address of a name, looked up again and again.

use super::{Fleet, Origin};
use crate::config::{self, HostPort};
use crate::gate::PoolId;
use futures_util::future::BoxFuture;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// A lookup that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(5);

/// Who knows the addresses of a name.
pub(super) trait Resolve: Send + Sync + 'static {
    fn lookup(&self, name: &HostPort) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The operating system.
pub(super) struct SystemResolver;

impl Resolve for SystemResolver {
    fn lookup(&self, name: &HostPort) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let name = (name.host.clone(), name.port);
        Box::pin(async move { Ok(tokio::net::lookup_host(name).await?.collect()) })
    }
}

/// Keeps the pool's discovered backends as the name server has them, for as long as the fleet is there.
pub(super) async fn run(fleet: Fleet, pool: PoolId) {
    let Some(mut settings) = fleet.inner.pools.get(pool).map(|pool| pool.discovery.subscribe()) else { return };
    let mut failing = false;
    loop {
        let now = settings.borrow_and_update().clone();
        let Some(discovery) = now else {
            fleet.align(pool, &[], Origin::Dns);
            if settings.changed().await.is_err() {
                return;
            }
            continue;
        };
        let name = &discovery.dns.host;
        match look_up(&fleet, &discovery).await {
            Ok(addresses) => {
                fleet.align(pool, &backends(&addresses, &discovery), Origin::Dns);
                if std::mem::take(&mut failing) {
                    log::info!("{name} resolves again, to {} addresses", addresses.len());
                }
            }
            Err(reason) if !std::mem::replace(&mut failing, true) => {
                log::warn!("{name} does not resolve ({reason}): its backends stay as they are");
            }
            Err(_) => {}
        }
        if let Some(pool) = fleet.inner.pools.get(pool) {
            fleet.inner.progressed(&pool.looked_up);
        }
        tokio::select! {
            () = tokio::time::sleep(discovery.interval) => {}
            _ = settings.changed() => {}
        }
    }
}

/// # Errors
/// The lookup failed, or found nothing: a name server that is ill takes no backend away.
async fn look_up(fleet: &Fleet, discovery: &config::Discovery) -> io::Result<BTreeSet<SocketAddr>> {
    let found = tokio::time::timeout(LIMIT, fleet.inner.resolver.lookup(&discovery.dns)).await??;
    match found.is_empty() {
        true => Err(io::Error::other("no address")),
        false => Ok(found.into_iter().collect()),
    }
}

fn backends(addresses: &BTreeSet<SocketAddr>, discovery: &config::Discovery) -> Vec<config::Backend> {
    let backend = |address| {
        let at = config::Backend::at(&format!("http://{address}"));
        Ok(config::Backend { api_key: discovery.api_key.clone(), ..at? })
    };
    let usable = |address| {
        let made: Result<_, String> = backend(address);
        made.inspect_err(|reason| log::debug!("{address} is no backend: {reason}")).ok()
    };
    addresses.iter().filter_map(usable).collect()
}
