//! Whom a request says that it is for. spryd serves all names alike, but a proxy before it may not, and what one of them
//! reads differently from the other can be used to get past it: RFC 9112, section 3.2, has such requests answered with 400.
//!
//! Functions find it in `Host`, whatever was spoken.

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Request, Version};

use super::Refusal;

/// Refuses what [`check`] does. Where the request's target says a host itself (HTTP/2's `:authority`, an absolute target), that
/// counts and no other: RFC 9112, section 3.2.2; RFC 9113, section 8.3.1.
pub(super) fn settle<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    check(request)?;
    let Some(authority) = request.uri().authority() else { return Ok(()) };
    let bad = Refusal::BadHost("isn't a host");
    if authority.as_str().contains('@') {
        return Err(bad);
    }
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad)?;
    request.headers_mut().insert(HOST, host);
    Ok(())
}

/// HTTP/1.1 needs exactly one `Host`, HTTP/1.0 may do without; HTTP/2 has `:authority` instead, which hyper checks.
fn check<B>(request: &Request<B>) -> Result<(), Refusal> {
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
    fn what_the_target_says_is_the_host() {
        for (version, target, host, said) in [
            (Version::HTTP_11, "/function/a", Some("b"), Some("b")),
            (Version::HTTP_11, "http://a:80/function/a", Some("b"), Some("a:80")),
            (Version::HTTP_10, "http://a/function/a", None, Some("a")),
            (Version::HTTP_2, "https://a/function/a", None, Some("a")),
            (Version::HTTP_2, "https://a/function/a", Some("b"), Some("a")),
            (Version::HTTP_2, "https://me@a/function/a", None, None),
        ] {
            let request = Request::get(target).version(version);
            let request = host.into_iter().fold(request, |request, host| request.header(HOST, host));
            let mut request = request.body(()).expect("a request");
            let settled = settle(&mut request).is_ok();
            assert_eq!(settled, said.is_some(), "{target}");
            if let Some(said) = said {
                let hosts: Vec<_> = request.headers().get_all(HOST).iter().collect();
                assert_eq!(hosts, [said], "{version:?} {target}");
            }
        }
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
