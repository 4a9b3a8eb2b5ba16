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

fn parts() -> impl Strategy<Value = Vec<(String, Place)>> {
    let place = (any::<u32>(), any::<u32>(), 0..=u32::MAX / 2, 0..=u32::MAX / 2);
    let place =
        place.prop_map(|(segment, generation, offset, length)| Place { segment, generation, offset, length });
    vec((".{0,20}", place), 0..40)
}

fn origin() -> impl Strategy<Value = Origin> {
    (any::<u32>(), any::<u32>()).prop_map(|(offset, length)| Origin { offset, length })
}

/// One frame of each kind, with names where strings are.
fn samples() -> Vec<Vec<u8>> {
    let headers = vec![("content-type", b"text/plain".as_slice()), ("x-a", b"\xff")];
    let origin = Origin { offset: 64, length: 640 };
    let place = Place { segment: 3, generation: 4, offset: 128, length: 1000 };
    let part = Part { name: "thumb", place };
    let mut frames = vec![Vec::new(); 4];
    RequestHead {
        call_id: "c",
        method: "POST",
        path: "/x",
        headers: headers.clone(),
        ..RequestHead::default()
    }
    .encode(&mut frames[0])
    .unwrap();
    ResponseHead { status: 201, origin, headers: headers.clone() }.encode(&mut frames[1]).unwrap();
    ViewHead { origin, headers, part }.encode(&mut frames[2]).unwrap();
    ListHead { origin, joining: Joining::Framed, parts: vec![part; 9] }.encode(&mut frames[3]).unwrap();
    frames
}

/// Reads all that a frame has; panics when it isn't whole after all.
fn read_through(frame: &[u8]) -> Result<(), FrameError> {
    let (head, body_at) = Frame::decode(frame)?;
    assert!(body_at <= frame.len() && body_at.is_multiple_of(ALIGN));
    assert_eq!(head.headers().len(), head.headers().clone().count());
    if let Frame::Parts(view) = &head {
        assert_eq!(view.parts.len(), view.parts.clone().count());
        for Part { place, .. } in view.parts.clone() {
            assert!(place.offset.checked_add(place.length).is_some());
        }
    }
    let mut copy = Vec::new();
    copy_head(frame, &mut copy)?;
    assert_eq!(copy, frame[..body_at]);
    Ok(())
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
        let (read, at) = Frame::decode(&frame).unwrap();
        prop_assert_eq!((read.origin(), at), (None, body_at));
    }

    #[test]
    fn a_response_is_read_back_however_it_was_written(
        status in 200u16..=599, origin in origin(), headers in headers(), slack in 0u32..4,
    ) {
        let head = ResponseHead { status, origin, headers: borrowed(&headers) };
        let mut frame = Vec::new();
        head.encode(&mut frame).unwrap();
        prop_assert_eq!(ResponseHead::decode(&frame).unwrap(), (head.clone(), frame.len()));
        prop_assert_eq!(Frame::decode(&frame).unwrap().0.origin(), Some(origin));

        let mut encoder = ResponseEncoder::default();
        encoder.header("left-over", b"of the response before").unwrap();
        encoder.clear();
        for (name, value) in &head.headers {
            encoder.header(&name.to_ascii_uppercase(), value).unwrap();
        }
        let body_at = encoder.len() as u32 + slack * ALIGN as u32;
        let mut frame = encoder.finish(status, origin, body_at).to_vec();
        frame.resize(body_at as usize, 0xee);
        prop_assert_eq!(ResponseHead::decode(&frame).unwrap(), (head, body_at as usize));
    }

    #[test]
    fn views_and_lists_are_read_back(
        origin in origin(), headers in headers(), parts in parts(), json in any::<bool>(),
    ) {
        let joining = if json { Joining::Json } else { Joining::Framed };
        let parts: Vec<_> = parts.iter().map(|(name, place)| Part { name, place: *place }).collect();
        let mut frame = Vec::new();
        ListHead { origin, joining, parts: parts.clone() }.encode(&mut frame).unwrap();
        let (Frame::Parts(list), body_at) = Frame::decode(&frame).unwrap() else { panic!("a list") };
        prop_assert_eq!((list.shape, list.origin, body_at), (Shape::List(joining), origin, frame.len()));
        prop_assert_eq!(list.parts.collect::<Vec<_>>(), parts.clone());
        if let Some(part) = parts.first() {
            let headers = borrowed(&headers);
            ViewHead { origin, headers: headers.clone(), part: *part }.encode(&mut frame).unwrap();
            let (Frame::Parts(view), _) = Frame::decode(&frame).unwrap() else { panic!("a view") };
            prop_assert_eq!((view.shape, view.origin), (Shape::View, origin));
            prop_assert_eq!(view.headers.collect::<Vec<_>>(), headers);
            prop_assert_eq!(view.parts.collect::<Vec<_>>(), vec![*part]);
        }
    }

    #[test]
    fn damage_is_an_error_or_another_frame_never_a_panic(
        which in 0usize..4, cut in 0usize..400, at in any::<usize>(), byte in any::<u8>(),
    ) {
        let mut frame = samples().swap_remove(which);
        let whole = frame.len();
        frame[at % whole] ^= byte;
        frame.truncate(whole - cut.min(whole));
        let _ = read_through(&frame);
        let _ = RequestHead::decode(&frame);
        let _ = ResponseHead::decode(&frame);
        let _ = Emission::decode(&frame);
    }

    #[test]
    fn noise_is_no_frame_to_panic_on(mut frame in vec(any::<u8>(), 0..300), kind in 0u8..5, head_len in 0u8..4) {
        let _ = read_through(&frame);
        let _ = Emission::decode(&frame);
        if frame.len() >= START_LEN {
            frame[..START_LEN].copy_from_slice(&[head_len * 64, 0, 0, 0, 200, 0, kind, 0]);
            let _ = read_through(&frame);
        }
    }

    #[test]
    fn an_emission_is_read_back(name in "[a-z0-9_-]{1,64}", content_type in "[ -~]{0,256}", value in vec(any::<u8>(), 0..100)) {
        let emission = Emission::new(&name, &content_type).unwrap();
        let value_at = emission.value_at();
        prop_assert!(value_at.is_multiple_of(ALIGN) && value_at <= EMISSION_HEAD_MAX);
        let mut block = vec![0xee; value_at];
        emission.encode(&mut block);
        block.extend_from_slice(&value);
        let copied = &block[..block.len().min(EMISSION_HEAD_MAX)];
        prop_assert_eq!(Emission::decode(copied), Ok((emission, value_at)));
        for len in 0..value_at {
            prop_assert!(Emission::decode(&block[..len]).is_err());
        }
    }

    #[test]
    fn joined_parts_have_the_length_that_was_said(parts in vec(vec(any::<u8>(), 0..3000), 0..6)) {
        for joining in [Joining::Json, Joining::Framed] {
            let mut joined = Vec::new();
            joining.join(parts.iter().map(Vec::as_slice), &mut joined);
            prop_assert_eq!(joined.len() as u64, joining.len(parts.iter().map(|part| part.len() as u32)));
        }
    }
}

#[test]
fn every_shorter_frame_is_refused() {
    for (kind, frame) in samples().iter().enumerate() {
        assert_eq!(read_through(frame), Ok(()), "kind {kind}");
        for len in 0..frame.len() {
            assert!(read_through(&frame[..len]).is_err(), "kind {kind}: {len} bytes of {}", frame.len());
        }
    }
}

/// Every word of a frame in turn is as large as can be, or nearly.
#[test]
fn lengths_that_overflow_are_refused() {
    for frame in samples() {
        for at in 0..frame.len() - 4 {
            for word in [u32::MAX, u32::MAX - 3, u32::MAX - at as u32, 1 << 31] {
                let mut bad = frame.clone();
                bad[at..at + 4].copy_from_slice(&word.to_le_bytes());
                let _ = read_through(&bad);
            }
        }
    }
}

#[test]
fn kinds_are_not_mistaken_for_each_other() {
    let frames = samples();
    for (kind, frame) in frames.iter().enumerate() {
        let kind = kind as u8;
        assert_eq!(frame[KIND_AT], kind);
        assert_eq!(RequestView::decode(frame).is_ok(), kind == 0);
        assert_eq!(RequestHead::decode(frame).err(), (kind != 0).then_some(FrameError::Kind(kind)));
        assert_eq!(ResponseHead::decode(frame).err(), (kind != 1).then_some(FrameError::Kind(kind)));
    }
    for kind in 4..=255 {
        let mut unknown = frames[1].clone();
        unknown[KIND_AT] = kind;
        assert_eq!(Frame::decode(&unknown).err(), Some(FrameError::Kind(kind)));
        assert_eq!(copy_head(&unknown, &mut Vec::new()), Err(FrameError::Kind(kind)));
    }
}

#[test]
fn heads_end_where_a_body_can_start() {
    for frame in samples() {
        for said in [0, 1, 63, 65, frame.len() as u32 - 1] {
            let mut bad = frame.clone();
            bad[..4].copy_from_slice(&said.to_le_bytes());
            bad.resize(1000, 0);
            assert_eq!(Frame::decode(&bad).err(), Some(FrameError::HeadLength(said as usize)));
        }
    }
}

#[test]
fn a_list_says_how_it_is_joined_and_a_view_has_one_part() {
    let [_, _, view, list] = samples().try_into().expect("four frames");
    let text =
        |frame: &[u8], text: &[u8]| frame.windows(text.len()).position(|at| at == text).expect("there");
    let mut unknown = list.clone();
    let at = text(&list, b"vnd.spry.frames");
    unknown[at] = b'x';
    assert_eq!(Frame::decode(&unknown).err(), Some(FrameError::Joining));
    let mut as_view = list;
    as_view[KIND_AT] = Kind::View as u8;
    assert_eq!(Frame::decode(&as_view).err(), Some(FrameError::ViewParts(9)));
    let count_at = text(&view, b"thumb") - 8;
    let mut none = view;
    none[count_at..count_at + 4].copy_from_slice(&0u32.to_le_bytes());
    assert_eq!(Frame::decode(&none).err(), Some(FrameError::ViewParts(0)));
}

#[test]
fn parts_out_of_range_are_refused() {
    let beyond = Place { segment: 1, generation: 1, offset: u32::MAX, length: 1 };
    let mut frame = Vec::new();
    let list = |place| ListHead {
        origin: Origin::default(),
        joining: Joining::Json,
        parts: vec![Part { name: "", place }],
    };
    list(beyond).encode(&mut frame).unwrap();
    let error = FrameError::Part { offset: u32::MAX, length: 1 };
    assert_eq!(Frame::decode(&frame).err(), Some(error));
    list(Place { length: 0, ..beyond }).encode(&mut frame).unwrap();
    assert_eq!(read_through(&frame), Ok(()));
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
    assert!(RequestHead { headers: many.clone(), ..RequestHead::default() }.encode(&mut out).is_err());
    assert!(ViewHead { headers: many, ..ViewHead::default() }.encode(&mut out).is_err());
    for status in [0, 100, 199, 600, 65535] {
        let mut frame = Vec::new();
        ResponseHead { status, ..ResponseHead::default() }.encode(&mut frame).unwrap();
        assert_eq!(ResponseHead::decode(&frame), Err(FrameError::Status(status)));
    }
    // As many parts as may be, with names as long as an emitted value's, and one more.
    let name = "n".repeat(NAME_MAX);
    let part = Part { name: &name, place: Place::default() };
    let mut list =
        ListHead { origin: Origin::default(), joining: Joining::Json, parts: vec![part; PARTS_MAX] };
    list.encode(&mut out).unwrap();
    assert_eq!(read_through(&out), Ok(()));
    list.parts.push(part);
    let error = FrameError::TooLarge { what: "the number of parts", value: PARTS_MAX + 1, limit: PARTS_MAX };
    assert_eq!(list.encode(&mut out), Err(error));
    let mut more = samples().swap_remove(3);
    let count_at = more.windows(5).position(|at| at == b"thumb").expect("there") - 8;
    more[count_at..count_at + 4].copy_from_slice(&(PARTS_MAX as u32 + 1).to_le_bytes());
    assert_eq!(Frame::decode(&more).err(), Some(error));
}

#[test]
fn lists_are_joined_as_their_content_type_says() {
    let join = |joining: Joining, parts: &[&[u8]]| {
        let mut out = b"before".to_vec();
        joining.join(parts.iter().copied(), &mut out);
        out.split_off(6)
    };
    assert_eq!(join(Joining::Json, &[b"1", b"{\"a\":2}", b"null"]), b"[1,{\"a\":2},null]");
    assert_eq!(join(Joining::Json, &[]), b"[]");
    assert_eq!(join(Joining::Framed, &[b"ab", b""]), b"\x02\0\0\0ab\0\0\0\0");
    assert_eq!(join(Joining::Framed, &[]), b"");
    assert_eq!(Joining::of(b"application/json"), Some(Joining::Json));
    assert_eq!(Joining::of(b"text/plain"), None);
}

#[test]
fn names_and_content_types_of_emissions_are_checked() {
    for name in ["", "A", "a b", "é", "a/b", &"n".repeat(NAME_MAX + 1)] {
        assert_eq!(Emission::new(name, "text/plain"), Err(FrameError::Name), "{name:?}");
    }
    for content_type in ["a\r\nb", "é", &"c".repeat(CONTENT_TYPE_MAX + 1)] {
        assert_eq!(Emission::new("n", content_type), Err(FrameError::ContentType), "{content_type:?}");
    }
}
