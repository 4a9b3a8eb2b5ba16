//! Which headers pass between a client and a function.
//!
//! What belongs to one connection (RFC 9110, 7.6.1) stays there, in both directions; so does what the gateway
//! says itself. Everything else passes unchanged.

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::Refusal;

/// Whether a request's header reaches the function.
pub(super) fn reaches_function(name: &HeaderName) -> bool {
    !is_of_the_connection(name) && *name != header::EXPECT
}

fn is_of_the_connection(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::TE
        || *name == header::TRAILER
        || *name == header::UPGRADE
        || *name == header::PROXY_AUTHENTICATE
        || *name == header::PROXY_AUTHORIZATION
        || name.as_str() == "keep-alive"
        || name.as_str() == "proxy-connection"
}

/// Whether the gateway sets this header of a response itself.
fn is_the_gateways(name: &HeaderName) -> bool {
    *name == header::CONTENT_LENGTH
        || *name == header::DATE
        || matches!(name.as_str(), "x-call-id" | "x-spry-start" | "server-timing")
}

/// Takes a function's response head over into `headers`; returns its status.
pub(super) fn take_over(
    status: u16,
    head: spry_wire::frame::Headers<'_>,
    headers: &mut HeaderMap,
) -> Result<StatusCode, Refusal> {
    let status = StatusCode::from_u16(status).map_err(|error| Refusal::BadAnswer(error.to_string()))?;
    for (name, value) in head {
        let bad = |what: &str| {
            Refusal::BadAnswer(format!("the {what} of its header {name:?} is not allowed in HTTP"))
        };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("name"))?;
        if is_of_the_connection(&name) || is_the_gateways(&name) {
            continue;
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| bad("value"))?;
        headers.append(name, value);
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spry_wire::frame::{Frame, ResponseHead};

    fn taken(headers: Vec<(&str, &[u8])>) -> Result<HeaderMap, Refusal> {
        let mut frame = Vec::new();
        let head = ResponseHead { status: 200, headers, ..ResponseHead::default() };
        head.encode(&mut frame).expect("a short head");
        let (decoded, _) = Frame::decode(&frame).expect("whole");
        let mut map = HeaderMap::new();
        take_over(200, decoded.headers().clone(), &mut map).map(|_| map)
    }

    #[test]
    fn a_function_can_not_split_the_response() {
        assert!(taken(vec![("x-a", b"1\r\nset-cookie: b=2")]).is_err());
        assert!(taken(vec![("x-a: 1\r\nx-b", b"2")]).is_err());
        assert!(taken(vec![("", b"2")]).is_err());
    }

    #[test]
    fn a_function_can_not_speak_for_the_connection_or_the_gateway() {
        let map = taken(vec![
            ("transfer-encoding", b"chunked"),
            ("Connection", b"close"),
            ("content-length", b"7"),
            ("X-Call-Id", b"forged"),
            ("x-kept", b"yes"),
        ])
        .expect("all are well-formed");
        assert_eq!(map.len(), 1);
        assert_eq!(map["x-kept"], "yes");
    }

    #[test]
    fn headers_of_the_connection_stay_at_the_gateway() {
        assert!(!reaches_function(&header::CONNECTION));
        assert!(!reaches_function(&header::EXPECT));
        assert!(reaches_function(&header::AUTHORIZATION));
        assert!(reaches_function(&header::CONTENT_TYPE));
    }
}
