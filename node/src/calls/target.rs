//! Where a callback may go. Its URL comes from whoever may submit a call; spryd sits inside the operator's network, so
//! left alone it would fetch for strangers what only the node can reach (its own control API, a router's page, a cloud's
//! metadata). So: `http` and `https` only, no credentials in it, and the *address* that the name resolves to is what is checked and then
//! connected to, so that a name can't say one thing to the check and another to the connection.
//!
//! By default only addresses that are the public Internet's are allowed; `async.callback.hosts` names others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use http::Uri;

/// The longest URL that is taken.
pub const URL_MAX: usize = 2048;

/// Why a callback can't go there.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It can't be read.
    #[error(
        "\"{0}\" is no URL that can be called back: it must be http:// or https://HOST[:PORT][/PATH], without credentials"
    )]
    Url(String),
    /// The operator doesn't allow it.
    #[error(
        "{host} ({address}) may not be called back: `async.callback.hosts` of spryd.toml doesn't allow it"
    )]
    Forbidden {
        /// The name.
        host: String,
        /// Where it leads.
        address: IpAddr,
    },
    /// The name leads nowhere now.
    #[error("resolve {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl TargetError {
    /// Whether the same would happen again.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Resolve { .. })
    }
}

/// A checked URL.
#[derive(Debug, Clone)]
pub struct Target {
    /// Host and port as written.
    pub authority: String,
    /// Whether TLS is spoken there.
    pub tls: bool,
    /// The name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub path: Uri,
}

impl Target {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let bad = || TargetError::Url(url.chars().take(200).collect());
        if url.len() > URL_MAX {
            return Err(bad());
        }
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        if authority.as_str().contains('@') {
            return Err(bad());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).parse().map_err(|_| bad())?;
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if host.is_empty() || port == 0 {
            return Err(bad());
        }
        Ok(Self { authority: authority.to_string(), tls, host, port, path })
    }

    /// What callbacks are bounded by: the host and port, or the text itself.
    pub(super) fn host_of(url: &str) -> String {
        Self::parse(url).map_or_else(|_| url.to_owned(), |target| format!("{}:{}", target.host, target.port))
    }

    /// The address to connect to: the first that is allowed.
    pub async fn resolve(&self, rules: &Rules) -> Result<SocketAddr, TargetError> {
        let failed = |source| TargetError::Resolve { host: self.host.clone(), source };
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(failed)?;
        let mut forbidden = None;
        for address in addresses {
            if rules.allow(&self.host, address) {
                return Ok(address);
            }
            forbidden = Some(address.ip());
        }
        Err(match forbidden {
            Some(address) => TargetError::Forbidden { host: self.host.clone(), address },
            None => failed(std::io::ErrorKind::NotFound.into()),
        })
    }

    /// Refuses at once what can never be allowed: an address that no rule knows. Names are resolved when they are used.
    pub fn check(&self, rules: &Rules) -> Result<(), TargetError> {
        match self.host.parse::<IpAddr>() {
            Ok(ip) if !rules.allow(&self.host, SocketAddr::new(ip, self.port)) => {
                Err(TargetError::Forbidden { host: self.host.clone(), address: ip })
            }
            _ => Ok(()),
        }
    }
}

/// `async.callback.hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    what: What,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Public,
    Host(String),
    Below(String),
    Net(IpAddr, u8),
}

impl Default for Rules {
    fn default() -> Self {
        Self(vec![Rule { what: What::Public, port: None }])
    }
}

impl Rules {
    /// Reads the list; the error is the entry that can't be read.
    pub fn parse(entries: &[String]) -> Result<Self, String> {
        entries
            .iter()
            .map(|entry| entry.parse().map_err(|()| entry.clone()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether this address, found under this name, may be connected to.
    pub fn allow(&self, host: &str, address: SocketAddr) -> bool {
        self.0.iter().any(|rule| {
            rule.port.is_none_or(|port| port == address.port())
                && match &rule.what {
                    What::Public => is_public(address.ip()),
                    What::Host(name) => name == host,
                    What::Below(suffix) => {
                        host.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.ends_with('.'))
                    }
                    What::Net(net, bits) => within(address.ip(), *net, *bits),
                }
        })
    }
}

impl FromStr for Rule {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self { what: What::Net(ip, bits_of(ip)), port: None });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                what: What::Net(address.ip(), bits_of(address.ip())),
                port: Some(address.port()),
            });
        }
        if let Some((net, bits)) = text.split_once('/') {
            let (net, bits): (IpAddr, u8) = (net.parse().map_err(|_| ())?, bits.parse().map_err(|_| ())?);
            return if bits <= bits_of(net) {
                Ok(Self { what: What::Net(net, bits), port: None })
            } else {
                Err(())
            };
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_| ())?)),
            None => (text, None),
        };
        let name = name.to_ascii_lowercase();
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        };
        let what = match name.strip_prefix("*.") {
            Some(below) if is_name(below) => What::Below(below.to_owned()),
            None if name == "public" => What::Public,
            None if is_name(&name) => What::Host(name),
            _ => return Err(()),
        };
        Ok(Self { what, port })
    }
}

fn bits_of(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn within(ip: IpAddr, net: IpAddr, bits: u8) -> bool {
    match (ip.to_canonical(), net.to_canonical()) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => {
            let bits = if bits > 32 { bits - 96 } else { bits };
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            u32::from(ip) & mask == u32::from(net) & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(net)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            u128::from(ip) & mask == u128::from(net) & mask
        }
        _ => false,
    }
}

/// Whether an address is the public Internet's (the IANA special-purpose registries, RFC 6890 and later).
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => public_v4(ip),
        IpAddr::V6(ip) => public_v6(ip),
    }
}

fn public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    );
    !special
}

fn public_v6(ip: Ipv6Addr) -> bool {
    let parts = ip.segments();
    let v4_in = |high: u16, low: u16| public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match parts {
        // Translated and tunnelled: what lies behind is what counts.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4_in(high, low),
        [0x2002, high, low, ..] => v4_in(high, low),
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_urls_are_taken() {
        let target = Target::parse("http://Example.org:81/a/b?c=d").expect("plain");
        assert_eq!((target.host.as_str(), target.port), ("example.org", 81));
        assert_eq!(target.path.to_string(), "/a/b?c=d");
        assert_eq!(Target::parse("http://[2001:4860::1]").expect("an address").host, "2001:4860::1");
        let target = Target::parse("https://hooks.example/x").expect("over TLS");
        assert_eq!((target.tls, target.port), (true, 443));
        for bad in [
            "",
            "/x",
            "example.org",
            "ftp://example.org",
            "file:///etc/passwd",
            "http://user@example.org/",
            "http://a:b@c/",
            "http:///x",
            "http://x:0/",
            "unix:/run/spry/control.sock",
        ] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
        assert!(Target::parse(&format!("http://x/{}", "a".repeat(URL_MAX))).is_err());
    }

    #[test]
    fn by_default_nothing_that_only_the_node_can_reach_is_called_back() {
        let rules = Rules::default();
        for inside in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "::127.0.0.1",
        ] {
            let ip: IpAddr = inside.parse().expect("an address");
            assert!(!rules.allow(inside, SocketAddr::new(ip, 80)), "{inside}");
        }
        for outside in ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"] {
            let ip: IpAddr = outside.parse().expect("an address");
            assert!(rules.allow(outside, SocketAddr::new(ip, 80)), "{outside}");
        }
        assert!(
            Target::parse("http://127.0.0.1:8080/system/functions").expect("plain").check(&rules).is_err()
        );
    }

    #[test]
    fn rules_name_hosts_networks_and_ports() {
        let parse =
            |texts: &[&str]| Rules::parse(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        let rules = parse(&["10.0.0.0/8", "127.0.0.1:9000", "hooks.lan", "*.home.arpa:81", "fd00::/8"])
            .expect("valid");
        let allow = |host: &str, address: &str| rules.allow(host, address.parse().expect("an address"));
        assert!(allow("10.9.9.9", "10.9.9.9:1") && !allow("11.0.0.1", "11.0.0.1:1"));
        assert!(allow("127.0.0.1", "127.0.0.1:9000") && !allow("127.0.0.1", "127.0.0.1:8080"));
        assert!(allow("hooks.lan", "192.168.0.9:80") && !allow("xhooks.lan", "192.168.0.9:80"));
        assert!(allow("a.home.arpa", "192.168.0.9:81") && !allow("a.home.arpa", "192.168.0.9:80"));
        assert!(!allow("home.arpa", "192.168.0.9:81") && !allow("xhome.arpa", "192.168.0.9:81"));
        assert!(allow("x", "[fd12::1]:80") && !allow("x", "8.8.8.8:80"));
        for bad in ["10.0.0.0/33", "a b", "*.", "", "host:port", "http://x"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
        assert!(!parse(&[]).expect("valid").allow("8.8.8.8", "8.8.8.8:80".parse().expect("an address")));
    }
}
