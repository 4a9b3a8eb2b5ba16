//! Frames: what is written is read back; whatever else is read, nothing panics or reads beyond the frame.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

type OwnedHeaders = Vec<(String, Vec<u8>)>;

fn headers() -> impl Strategy<Value = OwnedHeaders> {
    vec(("[a-z-]{1,20}", vec(any::<u8>(), 0..40)), 0..12)
}

fn borrowed(headers: &OwnedHeaders) -> Vec<(&str, &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect()
}

proptest! {
    #[test]
    fn a_request_is_read_back(
        (call_id, method, path, query) in ("[0-9a-f]{16}", "[A-Z]{3,7}", "(/.{0,30})?", ".{0,30}"),
        deadline_unix_ns in any::<u64>(), headers in headers(), body in vec(any::<u8>(), 0..200),
    ) {
        let headers = borrowed(&headers);
        let head = RequestHead { deadline_unix_ns, call_id: &call_id, method: &method, path: &path, query: &query, headers };
        let mut frame = Vec::new();
        head.encode(&mut frame).unwrap();
        let body_at = frame.len();
        prop_assert_eq!(body_at % ALIGN, 0);
        frame.extend_from_slice(&body);
        prop_assert_eq!(RequestHead::decode(&frame).unwrap(), (head, body_at));
    }

    #[test]
    fn a_response_is_read_back_however_it_was_written(
        status in 200u16..=599, headers in headers(), slack in 0u32..4,
    ) {
        let head = ResponseHead { status, headers: borrowed(&headers) };
        let mut frame = Vec::new();
        head.encode(&mut frame).unwrap();
        prop_assert_eq!(ResponseHead::decode(&frame).unwrap(), (head.clone(), frame.len()));

        let mut encoder = ResponseEncoder::default();
        encoder.header("left-over", b"of the response before").unwrap();
        encoder.clear();
        for (name, value) in &head.headers {
            encoder.header(name, value).unwrap();
        }
        let body_at = encoder.len() as u32 + slack * ALIGN as u32;
        let mut frame = encoder.finish(status, body_at).to_vec();
        frame.resize(body_at as usize, 0xee);
        prop_assert_eq!(ResponseHead::decode(&frame).unwrap(), (head, body_at as usize));
    }

    #[test]
    fn damage_is_an_error_or_another_frame_never_a_panic(
        headers in headers(), cut in 0usize..400, at in 0usize..400, byte in any::<u8>(),
    ) {
        let head = RequestHead { call_id: "c", method: "GET", headers: borrowed(&headers), ..RequestHead::default() };
        let mut frame = Vec::new();
        head.encode(&mut frame).unwrap();
        let whole = frame.len();
        let at = at % whole;
        frame[at] ^= byte;
        frame.truncate(whole - cut.min(whole));
        if let Ok((view, body_at)) = RequestView::decode(&frame) {
            prop_assert!(body_at <= frame.len());
            prop_assert_eq!(view.headers.len(), view.headers.count());
        }
        let _ = ResponseHead::decode(&frame);
    }

    #[test]
    fn noise_is_no_frame_to_panic_on(frame in vec(any::<u8>(), 0..300)) {
        let _ = RequestView::decode(&frame);
        let _ = ResponseHead::decode(&frame);
    }
}

#[test]
fn every_shorter_frame_is_refused() {
    let mut frame = Vec::new();
    let headers = vec![("content-type", b"text/plain".as_slice())];
    RequestHead { call_id: "c", method: "POST", path: "/x", headers, ..RequestHead::default() }
        .encode(&mut frame)
        .unwrap();
    for len in 0..frame.len() {
        assert!(RequestView::decode(&frame[..len]).is_err(), "{len} bytes of {}", frame.len());
    }
}

#[test]
fn limits_hold_on_both_sides() {
    let mut encoder = ResponseEncoder::default();
    for _ in 0..HEADERS_MAX {
        encoder.header("x", b"y").unwrap();
    }
    assert!(matches!(encoder.header("x", b"y"), Err(FrameError::TooLarge { .. })));
    encoder.clear();
    assert!(matches!(encoder.header("x", &vec![0; HEAD_MAX]), Err(FrameError::TooLarge { .. })));
    assert!(encoder.is_empty());
    let many = vec![("x", b"y".as_slice()); HEADERS_MAX + 1];
    let mut out = Vec::new();
    assert!(RequestHead { headers: many, ..RequestHead::default() }.encode(&mut out).is_err());
    for status in [0, 100, 199, 600, 65535] {
        let mut frame = Vec::new();
        ResponseHead { status, headers: Vec::new() }.encode(&mut frame).unwrap();
        assert_eq!(ResponseHead::decode(&frame), Err(FrameError::Status(status)));
    }
}
