//! Steps of chains: inputs that lie anywhere, of every kind.

use spry_wire::frame::{Joining, ListHead, Origin, Part, Place, RequestHead, ViewHead};

use crate::harness::{Foreign, Instance, Zygote, c_library, faults_library, rust_library};

pub(crate) fn kitchen() -> Zygote {
    let dir = tempfile::tempdir().expect("tempdir");
    Zygote::native(&c_library(dir.path(), "kitchen")).expect("load")
}

/// Puts the client's request into the inbox: where it lies, as an input and as an origin.
pub(crate) fn request(instance: &mut Instance, path: &str, body: &[u8]) -> (Place, Origin) {
    let head = RequestHead {
        deadline_unix_ns: 7,
        call_id: "call-1",
        method: "POST",
        path,
        query: "q=1",
        headers: vec![("content-type", b"image/png"), ("x-a", b"client's"), ("x-b", b"client's, too")],
    };
    let mut frame = Vec::new();
    head.encode(&mut frame).expect("encode");
    frame.extend_from_slice(body);
    let place = instance.put(&frame);
    (place, Origin { offset: place.offset, length: place.length })
}

/// Puts a list into the inbox.
pub(crate) fn list(
    instance: &mut Instance,
    origin: Origin,
    joining: Joining,
    parts: &[(&str, Place)],
) -> Place {
    let parts = parts.iter().map(|(name, place)| Part { name, place: *place }).collect();
    let mut frame = Vec::new();
    ListHead { origin, joining, parts }.encode(&mut frame).expect("encode");
    instance.put(&frame)
}

fn view(instance: &mut Instance, origin: Origin, headers: &[(&str, &[u8])], part: Part<'_>) -> Place {
    let mut frame = Vec::new();
    ViewHead { origin, headers: headers.to_vec(), part }.encode(&mut frame).expect("encode");
    instance.put(&frame)
}

/// Segments of other functions that are mapped in a process now.
pub(crate) fn mapped(pid: i32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    maps.lines().filter(|line| line.contains("memfd:spry-test-foreign")).count()
}

#[test]
fn an_input_of_each_kind_is_read_and_its_origin_is_copied() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (first, origin) = request(&mut instance, "/parts", b"the client's");
    let mut other = Foreign::new(20, 1 << 16);
    instance.shelf.put(other.name, other.grant());

    let answer = instance.step(first);
    assert_eq!((answer.text(), answer.origin), ("=the client's;the client's", Some(origin)));
    assert_eq!(instance.shelf.asked(), [], "the inbox is there");

    let response = other.respond(origin, &[], b"a response");
    let answer = instance.step(response);
    assert_eq!((answer.text(), answer.origin), ("=a response;a response", Some(origin)));

    let value = other.put(b"a value");
    let viewed = view(&mut instance, origin, &[], Part { name: "thumb", place: value });
    let answer = instance.step(viewed);
    assert_eq!((answer.text(), answer.origin), ("thumb=a value;a value", Some(origin)));

    let (one, two) = (other.put(b"1"), other.put(b"{\"a\": 2}"));
    let listed = list(&mut instance, origin, Joining::Json, &[("one", one), ("", two)]);
    let answer = instance.step(listed);
    assert_eq!((answer.text(), answer.origin), ("one=1;={\"a\": 2};[1,{\"a\": 2}]", Some(origin)));

    let framed = list(&mut instance, origin, Joining::Framed, &[("b", value), ("a", one)]);
    let answer = instance.step(framed);
    assert_eq!(answer.text(), "b=a value;a=1;\x07\0\0\0a value\x01\0\0\x001");
    let empty = list(&mut instance, origin, Joining::Json, &[]);
    assert_eq!(instance.step(empty).text(), "[]");
    assert_eq!(instance.shelf.asked(), [other.name], "once for all of them");
}

#[test]
fn what_was_asked_is_the_clients_whatever_the_input_is() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let mut other = Foreign::new(20, 1 << 16);
    instance.shelf.put(other.name, other.grant());
    let (first, origin) = request(&mut instance, "/describe", b"12345");
    let asked = |accept: &str, headers: usize, body: usize| {
        format!(
            "POST /describe ?q=1 call-1 accept={accept} headers={headers} body={body} aligned=1 deadline=7"
        )
    };
    assert_eq!(instance.step(first).text(), asked("", 3, 5));
    let response = other.respond(origin, &[("accept", b"text/html")], b"123");
    assert_eq!(instance.step(response).text(), asked("text/html", 3, 3));

    let (first, origin) = request(&mut instance, "/headers", b"");
    let clients = "content-type: image/png\nx-a: client's\nx-b: client's, too\n";
    assert_eq!(instance.step(first).text(), clients);
    // Its own first; of the client's neither those about its body nor those that are said anew.
    let response = other.respond(origin, &[("x-c", b"own"), ("x-a", b"own"), ("x-a", b"again")], b"");
    assert_eq!(instance.step(response).text(), "x-c: own\nx-a: own\nx-a: again\nx-b: client's, too\n");
    let part = Part { name: "", place: response };
    let viewed = view(&mut instance, origin, &[("content-type", b"text/css")], part);
    assert_eq!(instance.step(viewed).text(), "content-type: text/css\nx-a: client's\nx-b: client's, too\n");
}

#[test]
fn parts_lie_in_several_segments() {
    let zygotes =
        [(kitchen(), "b=two;a=one;c=;[two,one,]"), (Zygote::native(&faults_library()).expect("load"), "")];
    for (zygote, answer) in zygotes {
        let mut instance = zygote.fork();
        let (_, origin) = request(&mut instance, "/parts", b"");
        let mut others = [Foreign::new(20, 4096), Foreign::new(21, 4096), Foreign::new(22, 4096)];
        others.iter().for_each(|other| instance.shelf.put(other.name, other.grant()));
        let [one, two, three] = [(0, "one"), (1, "two"), (2, "")].map(|(i, v)| others[i].put(v.as_bytes()));
        let parts = [("b", two), ("a", one), ("c", three)];
        let listed = list(&mut instance, origin, Joining::Json, &parts);
        let answer = match answer {
            "" => r#"[("b", [116, 119, 111]), ("a", [111, 110, 101]), ("c", [])] "[two,one,]""#,
            answer => answer,
        };
        assert_eq!(instance.step(listed).text(), answer);
        assert_eq!(instance.shelf.asked(), [others[1].name, others[0].name, others[2].name]);
        assert_eq!(mapped(instance.pid), 3);
    }
}

#[test]
fn a_pass_through_keeps_the_descriptor_of_whatever_came_in() {
    let zygote = Zygote::native(&rust_library("example_echo")).expect("load");
    let mut instance = zygote.fork();
    let (first, origin) = request(&mut instance, "", b"the client's");
    let mut other = Foreign::new(20, 1 << 16);
    instance.shelf.put(other.name, other.grant());
    let response = other.respond(origin, &[("x-a", b"b")], b"a response");
    let viewed = view(&mut instance, origin, &[], Part { name: "v", place: response });
    let listed = list(&mut instance, origin, Joining::Framed, &[("", response), ("", first)]);
    for place in [first, response, viewed, listed] {
        let answer = instance.step(place);
        let shm_bus::Descriptor { segment, generation, offset, length, flags, .. } = answer.descriptor;
        assert_eq!(Place { segment, generation, offset, length }, place);
        assert!(answer.passed && flags == 0);
    }
}

#[test]
fn a_pass_through_with_a_head_copies_the_body_behind_it() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (_, origin) = request(&mut instance, "/typed-echo", b"");
    let mut other = Foreign::new(20, 1 << 16);
    instance.shelf.put(other.name, other.grant());
    let response = other.respond(origin, &[], b"12");
    let body = other.put(b"34");
    let listed = list(&mut instance, origin, Joining::Json, &[("", body), ("", body)]);
    for (place, body) in [(response, "12"), (listed, "[34,34]")] {
        let answer = instance.step(place);
        assert!(!answer.passed);
        assert_eq!((answer.text(), answer.header("content-type")), (body, Some("image/png")));
        assert_eq!(answer.origin, Some(origin));
    }
}

/// A chain in which one function comes twice: its instance may get what it has written itself.
#[test]
fn an_instance_reads_its_own_answers() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (first, origin) = request(&mut instance, "/reversed", b"abc");
    let once = instance.step(first);
    assert_eq!(once.text(), "cba");
    let shm_bus::Descriptor { segment, generation, offset, length, .. } = once.descriptor;
    let again = instance.step(Place { segment, generation, offset, length });
    assert_eq!((again.text(), again.origin), ("abc", Some(origin)));
    assert_eq!(instance.shelf.asked(), [], "it needs nobody's leave for that");
}

/// 64 stay mapped; who was used least recently goes first.
#[test]
fn more_segments_than_stay_mapped() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (_, origin) = request(&mut instance, "/parts", b"");
    let mut places = Vec::new();
    let mut others: Vec<Foreign> = (0..70).map(|id| Foreign::new(100 + id, 4096)).collect();
    for (id, other) in others.iter_mut().enumerate() {
        instance.shelf.put(other.name, other.grant());
        let place = other.respond(origin, &[], id.to_string().as_bytes());
        places.push(place);
        let answer = instance.step(place);
        assert_eq!(answer.text(), format!("={id};{id}"));
        instance.release.post(answer.descriptor.offset);
        // The first one is used now and then, so it stays.
        instance.step(places[0]);
        assert!(mapped(instance.pid) <= 64);
    }
    assert_eq!(mapped(instance.pid), 64);
    assert_eq!(instance.shelf.asked().len(), 70, "each once");
    instance.step(places[0]);
    instance.step(places[69]);
    assert_eq!(instance.shelf.asked(), [], "both are still there");
    assert_eq!(instance.step(places[1]).text(), "=1;1");
    assert_eq!(instance.shelf.asked(), [others[1].name], "this one had to go");
    assert_eq!(mapped(instance.pid), 64);
}

/// Single-use instances answer from a segment each: one list may lie in more of them than stay mapped.
#[test]
fn a_list_in_more_segments_than_stay_mapped() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (_, origin) = request(&mut instance, "/parts", b"");
    let mut others: Vec<Foreign> = (0..100).map(|id| Foreign::new(100 + id, 4096)).collect();
    others.iter().for_each(|other| instance.shelf.put(other.name, other.grant()));
    for round in 0..2 {
        let values: Vec<Place> =
            others.iter_mut().map(|o| o.put(format!("v{}", o.name.0).as_bytes())).collect();
        let parts: Vec<(&str, Place)> = values.iter().map(|place| ("", *place)).collect();
        let listed = list(&mut instance, origin, Joining::Json, &parts);
        let values: Vec<String> = (100..200).map(|id| format!("v{id}")).collect();
        let expected = format!("={};[{}]", values.join(";="), values.join(","));
        assert_eq!(instance.step(listed).text(), expected, "round {round}");
        assert_eq!(mapped(instance.pid), 64);
        assert_eq!(instance.shelf.asked().len(), if round == 0 { 100 } else { 36 });
    }
}
