//! Whom a request says that it is for. spryd serves all names alike, but a proxy before it may not, and what one of them
//! reads differently from the other can be used to get past it: RFC 9112, section 3.2, has such requests answered with 400.

use http::header::HOST;
use http::uri::Authority;
use http::{Request, Version};

use super::Refusal;

/// HTTP/1.1 needs exactly one `Host`, HTTP/1.0 may do without; HTTP/2 has `:authority` instead, which hyper checks.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), Refusal> {
    let version = request.version();
    if version > Version::HTTP_11 {
        return Ok(());
    }
    let mut given = request.headers().get_all(HOST).iter();
    match (given.next(), given.next()) {
        (Some(host), None) => is_host(host.as_bytes()).then_some(()).ok_or(Refusal::BadHost("isn't a host")),
        (None, _) if version < Version::HTTP_11 => Ok(()),
        (None, _) => Err(Refusal::BadHost("is missing")),
        (Some(_), Some(_)) => Err(Refusal::BadHost("is there twice")),
    }
}

/// A host, with a port or without. (An empty one is what a client sends that has no name for it.)
fn is_host(value: &[u8]) -> bool {
    value.is_empty() || (!value.contains(&b'@') && Authority::try_from(value).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(version: Version, hosts: &[&str]) -> bool {
        let request = Request::get("/function/a").version(version);
        let request = hosts.iter().fold(request, |request, host| request.header(HOST, *host));
        check(&request.body(()).expect("a request")).is_ok()
    }

    #[test]
    fn one_host_is_what_http_1_1_needs() {
        for host in ["a", "a.example:8080", "[::1]:80", "127.0.0.1", ""] {
            assert!(with(Version::HTTP_11, &[host]), "{host:?}");
        }
        for host in ["a b", "a/b", "a?b", "a@b", "[::1"] {
            assert!(!with(Version::HTTP_11, &[host]), "{host:?}");
        }
        assert!(!with(Version::HTTP_11, &[]));
        assert!(!with(Version::HTTP_11, &["a", "a"]));
        assert!(!with(Version::HTTP_10, &["a", "b"]));
        assert!(with(Version::HTTP_10, &[]));
        assert!(with(Version::HTTP_2, &[]));
    }
}
