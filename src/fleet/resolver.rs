//! From names to addresses. A backend's own name and a name for discovery are both looked up here.

use futures_util::future::BoxFuture;
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::timeout;

/// Number of addresses of one name that are tried in one check.
const MAX_CANDIDATES: usize = 4;

/// Source of the addresses of a name.
pub(super) trait Resolve: Send + Sync + 'static {
    fn lookup(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The operating system as the source of addresses.
pub(super) struct SystemResolver;

impl Resolve for SystemResolver {
    fn lookup(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}

// === impl Resolve ===

impl dyn Resolve {
    /// All addresses of `host`, each once, in the name server's order. An IP address stands for itself.
    ///
    /// # Errors
    /// The lookup failed, took longer than `limit`, or found nothing.
    pub(super) async fn addresses(&self, host: &str, port: u16, limit: Duration) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
        let mut found = timeout(limit, self.lookup(host, port)).await.map_err(late)??;
        let mut seen = HashSet::new();
        found.retain(|address| seen.insert(*address));
        if found.is_empty() { Err(io::Error::other("no address")) } else { Ok(found) }
    }
}

/// The addresses to try. The address in use, `current`, comes first if it is still among those `found`. A name server
/// that fails does not take a known address away.
pub(super) fn candidates(
    found: io::Result<Vec<SocketAddr>>,
    current: Option<SocketAddr>,
) -> io::Result<Vec<SocketAddr>> {
    let mut list = found.or_else(|error| current.map(|known| vec![known]).ok_or(error))?;
    if let Some(at) = list.iter().position(|address| Some(*address) == current) {
        list[..=at].rotate_right(1);
    }
    list.truncate(MAX_CANDIDATES);
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name server that gives the same addresses for every name.
    struct Always(Vec<SocketAddr>);

    impl Resolve for Always {
        fn lookup(&self, _: &str, _: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
            Box::pin(std::future::ready(Ok(self.0.clone())))
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn the_address_in_use_stays_first_while_the_name_still_leads_there() {
        let [a, b, c] = ["10.0.0.1:1", "10.0.0.2:1", "[::1]:1"].map(address);
        let names: &dyn Resolve = &Always(vec![a, b, a, c]);
        let found = names.addresses("gpu", 1, Duration::MAX).await.unwrap();
        let order = |current| candidates(Ok(found.clone()), current).unwrap();
        assert_eq!(order(None), [a, b, c]);
        assert_eq!(order(Some(c)), [c, a, b]);
        assert_eq!(order(Some(address("10.9.9.9:1"))), [a, b, c], "it has moved");
    }

    #[test]
    fn a_failing_name_server_takes_no_known_address_away() {
        let known = address("10.0.0.1:1");
        let broken = || Err(io::Error::other("broken"));
        assert_eq!(candidates(broken(), Some(known)).unwrap(), [known]);
        assert!(candidates(broken(), None).is_err());
    }

    #[tokio::test]
    async fn an_ip_address_is_not_looked_up_and_a_name_without_addresses_is_a_failure() {
        let names: &dyn Resolve = &Always(Vec::new());
        assert_eq!(names.addresses("::1", 7, Duration::MAX).await.unwrap(), [address("[::1]:7")]);
        assert_eq!(names.addresses("gpu", 7, Duration::MAX).await.unwrap_err().to_string(), "no address");
    }
}
