//! The addresses that a backend may have when it is added at run time.

use super::text;
use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer};
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The IPv6 address of AWS's instance metadata, which is 169.254.169.254 in IPv4. It is not link-local.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// One entry of `admin.allow_backends`.
#[derive(Clone, Debug, PartialEq, Eq, schemars::JsonSchema)]
#[schemars(with = "String")]
pub enum HostPattern {
    Net(IpNet),
    /// A host name, in lower case.
    Name(String),
    /// The names below a domain: `*.domain`, kept as `.domain`.
    Below(String),
}

/// The addresses that a backend of a stranger's choice may have. Each connection asks again, with the address that the
/// backend's name leads to by then, since a name may lead elsewhere tomorrow.
#[derive(Clone, Debug, Default)]
pub struct Reach(Option<Vec<HostPattern>>);

// === impl HostPattern ===

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            return Ok(Self::Net(net.trunc()));
        }
        let (name, pattern): (_, fn(String) -> Self) = match text.strip_prefix('*') {
            Some(domain) if domain.starts_with('.') => (&domain[1..], |name| Self::Below(format!(".{name}"))),
            _ => (text, Self::Name),
        };
        let letter = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let labels = name.split('.').all(|label| !label.is_empty() && label.chars().all(letter));
        // Digits and dots that are no address are a mistyped address rather than a name.
        let numeric = name.chars().all(|c| c.is_ascii_digit() || c == '.');
        match labels && !numeric {
            true => Ok(pattern(name.to_ascii_lowercase())),
            false => Err("expected a network (10.0.0.0/8), an address, a host name or *.domain".into()),
        }
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        text::read(source, str::parse)
    }
}

// === impl Reach ===

impl Reach {
    /// `None`: any address that a backend can have.
    #[must_use]
    pub fn new(patterns: Option<&[HostPattern]>) -> Self {
        Self(patterns.map(<[_]>::to_vec))
    }

    /// Whether `host` may lead to a permitted address at all.
    #[must_use]
    pub fn may_name(&self, host: &str) -> bool {
        match (host.parse(), &self.0) {
            (Ok(address), _) => self.permits(host, address),
            (Err(_), None) => true,
            (Err(_), Some(list)) => self.names(host) || list.iter().any(|p| matches!(p, HostPattern::Net(_))),
        }
    }

    /// Whether a backend at `host` may be connected to at `address`. A link-local address has to be listed itself:
    /// that is where clouds tell a machine's credentials to whoever asks.
    #[must_use]
    pub fn permits(&self, host: &str, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let in_net = |pattern: &HostPattern| matches!(pattern, HostPattern::Net(net) if net.contains(&address));
        match &self.0 {
            Some(list) if list.iter().any(in_net) => true,
            Some(_) => self.names(host) && !is_special(address),
            None => !is_special(address),
        }
    }

    fn names(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.0.iter().flatten().any(|pattern| match pattern {
            HostPattern::Net(_) => false,
            HostPattern::Name(name) => *name == host,
            HostPattern::Below(domain) => host.len() > domain.len() && host.ends_with(domain.as_str()),
        })
    }
}

/// Whether no backend can have this address.
fn is_special(address: IpAddr) -> bool {
    let kind = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == METADATA_V6,
    };
    kind || address.is_unspecified() || address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(patterns: &[&str]) -> Reach {
        let patterns: Vec<HostPattern> = patterns.iter().map(|text| text.parse().expect(text)).collect();
        Reach::new(Some(&patterns))
    }

    fn permits(reach: &Reach, host: &str, address: &str) -> bool {
        reach.may_name(host) && reach.permits(host, address.parse().expect(address))
    }

    #[test]
    fn without_a_list_only_what_can_be_no_backend_is_out_of_reach() {
        let any = Reach::new(None);
        for address in ["10.0.0.1", "127.0.0.1", "8.8.8.8", "::1", "fd00::1"] {
            assert!(permits(&any, address, address), "{address}");
        }
        let special = [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
        ];
        for address in special {
            assert!(!permits(&any, address, address), "{address}");
            assert!(!permits(&any, "gpu1", address), "a name that leads to {address}");
        }
    }

    #[test]
    fn a_list_is_all_there_is() {
        let listed = reach(&["10.0.0.0/8", "fd01::/16", "GPU1", "*.vllm.svc"]);
        for (host, address) in [
            ("10.1.2.3", "10.1.2.3"),
            ("::ffff:10.1.2.3", "::ffff:10.1.2.3"),
            ("fd01::5", "fd01::5"),
            ("gpu1", "192.168.0.1"),
            ("gpu1.", "192.168.0.1"),
            ("a.vllm.svc", "192.168.0.1"),
            // A name that is not listed itself, at an address that is.
            ("other", "10.1.2.3"),
        ] {
            assert!(permits(&listed, host, address), "{host} at {address}");
        }
        for (host, address) in [
            ("11.1.2.3", "11.1.2.3"),
            ("other", "192.168.0.1"),
            ("vllm.svc", "192.168.0.1"),
            ("evilvllm.svc", "192.168.0.1"),
            ("gpu1.evil", "192.168.0.1"),
            ("gpu1", "169.254.169.254"),
        ] {
            assert!(!permits(&listed, host, address), "{host} at {address}");
        }
        assert!(!reach(&["gpu1"]).may_name("gpu2"), "refused at once: no address of it could be right");
        assert!(permits(&reach(&["169.254.0.0/16"]), "169.254.1.1", "169.254.1.1"), "listed itself");
    }

    #[test]
    fn what_is_no_pattern_is_told_so() {
        for wrong in ["", "*", "*.", "10.0.0.0/33", "10.0.0", "http://gpu1", "gpu1:8000", "a..b", "gpu*", "a b"] {
            assert!(wrong.parse::<HostPattern>().is_err(), "{wrong}");
        }
    }
}
