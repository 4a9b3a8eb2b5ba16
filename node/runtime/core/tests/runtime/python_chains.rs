//! Python functions as steps of chains.

use spry_wire::frame::{Joining, Place};

use crate::chains::{list, mapped, request};
use crate::harness::{Foreign, Instance, Zygote};

fn load(source: &str) -> Zygote {
    Zygote::python(source).unwrap_or_else(|message| panic!("refused: {message}"))
}

/// An instance, another function's segment with these values, and their places.
fn with_values(zygote: &Zygote, values: &[&[u8]]) -> (Instance, Foreign, Vec<Place>) {
    let mut instance = zygote.fork();
    let mut other = Foreign::new(20, 1 << 16);
    let places = values.iter().map(|value| other.put(value)).collect();
    instance.shelf.put(other.name, other.grant());
    (instance, other, places)
}

fn named(places: &[Place]) -> Vec<(&'static str, Place)> {
    places.iter().zip(["one", "", "three"]).map(|(place, name)| (name, *place)).collect()
}

#[test]
fn a_list_of_json_is_a_list_of_values() {
    let zygote = load("def main(params):\n    return {'got': params}\n");
    let (mut instance, mut other, places) = with_values(&zygote, &[b" {\"a\": 1} ", b"null", b"[2]"]);
    let (_, origin) = request(&mut instance, "/", b"{\"not\": \"this\"}");
    let listed = list(&mut instance, origin, Joining::Json, &named(&places));
    assert_eq!(instance.step(listed).text(), r#"{"got":[{"a":1},null,[2]]}"#);
    let empty = list(&mut instance, origin, Joining::Json, &[]);
    assert_eq!(instance.step(empty).text(), r#"{"got":[]}"#);
    let response = other.respond(origin, &[("content-type", b"application/json")], b"{\"b\": 2}");
    assert_eq!(instance.step(response).text(), r#"{"got":{"b":2}}"#);

    // What comes from a step before is no client's mistake: it fails the chain there.
    let framed = list(&mut instance, origin, Joining::Framed, &named(&places));
    let failed = instance.step(framed);
    assert!(
        failed.failed().starts_with("the input is a list of values that are not all JSON."),
        "{failed:?}"
    );
    for (bytes, why) in [
        (&b"{1}"[..], "value 1 of the list is not JSON: Expecting property name"),
        (b"\xff", "value 1 of the list is not JSON: it is not even text"),
    ] {
        let bad = other.put(bytes);
        let listed = list(&mut instance, origin, Joining::Json, &[("", places[0]), ("", bad)]);
        let failed = instance.step(listed);
        assert!(failed.failed().starts_with(why), "{failed:?}");
    }
    let no_json = other.respond(origin, &[], b"text");
    assert!(instance.step(no_json).failed().starts_with("the body is not JSON: Expecting value"));
}

#[test]
fn an_annotated_handler_gets_parts_and_a_body() {
    let zygote = load(
        "import spry\n\
         def main(request: spry.Request):\n    \
         if request.path == '/echo': return request.body\n    \
         if request.path == '/write': request.parts[0][1][0] = 1\n    \
         types = {type(value).__name__ for _, value in request.parts}\n    \
         return {'parts': [(name, bytes(value).decode()) for name, value in request.parts], 'types': sorted(types),\
         'body': request.bytes().decode(), 'same': request.body is request.body, 'query': request.query,\
         'readonly': request.body.readonly, 'a': request.headers.get('x-a')}\n",
    );
    let (mut instance, mut other, places) = with_values(&zygote, &[b"1", b"{\"a\":2}"]);
    let (first, origin) = request(&mut instance, "/", b"client's");
    let rest = r#""types":["memoryview"],"#;
    let end = r#","same":true,"query":"q=1","readonly":true,"a":"client's"}"#;
    let listed = list(&mut instance, origin, Joining::Json, &named(&places));
    let answer = instance.step(listed);
    let parts = r#"{"parts":[["one","1"],["","{\"a\":2}"]],"#;
    assert_eq!(answer.text(), format!("{parts}{rest}\"body\":\"[1,{{\\\"a\\\":2}}]\"{end}"));
    assert_eq!(answer.origin, Some(origin));
    let framed = list(&mut instance, origin, Joining::Framed, &named(&places[..1]));
    let parts = r#"{"parts":[["one","1"]],"#;
    assert_eq!(
        instance.step(framed).text(),
        format!("{parts}{rest}\"body\":\"\\u0001\\u0000\\u0000\\u00001\"{end}")
    );
    let parts = r#"{"parts":[["","client's"]],"#;
    assert_eq!(instance.step(first).text(), format!("{parts}{rest}\"body\":\"client's\"{end}"));

    // Passed on as they came, joined or not.
    let (first, origin) = request(&mut instance, "/echo", b"client's");
    let response = other.respond(origin, &[], b"a response");
    let listed = list(&mut instance, origin, Joining::Json, &named(&places));
    for place in [first, response, listed] {
        let answer = instance.step(place);
        assert!(answer.passed, "{answer:?}");
        let at = (answer.descriptor.segment, answer.descriptor.offset, answer.descriptor.length);
        assert_eq!(at, (place.segment, place.offset, place.length));
    }
    let (_, origin) = request(&mut instance, "/write", b"");
    let listed = list(&mut instance, origin, Joining::Json, &named(&places));
    assert!(instance.step(listed).failed().starts_with("TypeError: cannot modify read-only memory"));
    assert_eq!(instance.shelf.asked(), [other.name]);
}

#[test]
fn an_aws_handler_gets_the_joined_list() {
    let zygote = load("def main(event, context):\n    return event['body'] + ' ' + event['rawPath']\n");
    let (mut instance, _other, places) = with_values(&zygote, &[b"1", b"2"]);
    let (_, origin) = request(&mut instance, "/path", b"");
    let listed = list(&mut instance, origin, Joining::Json, &named(&places));
    assert_eq!(instance.step(listed).text(), "[1,2] /path");
}

/// A slice of a view can't be released: what a function has kept is there for as long as its process, through more
/// segments than stay mapped otherwise.
#[test]
fn slices_that_a_function_keeps_stay_readable() {
    let zygote = load(
        "import spry\nkept = []\n\
         def main(request: spry.Request):\n    \
         if request.path == '/all': return b','.join(kept)\n    \
         kept.append(request.body[1:])\n    \
         kept.extend(value[1:] for _, value in request.parts if request.path == '/parts')\n    \
         return 'kept'\n",
    );
    let mut instance = zygote.fork();
    let (_, origin) = request(&mut instance, "/", b"");
    let mut others: Vec<Foreign> = (0..80).map(|id| Foreign::new(100 + id, 4096)).collect();
    let mut expected = Vec::new();
    for other in &mut others {
        instance.shelf.put(other.name, other.grant());
        let place = other.respond(origin, &[], format!("-{}", other.name.0).as_bytes());
        let answer = instance.step(place);
        assert_eq!(answer.text(), "kept");
        instance.release.post(answer.descriptor.offset);
        expected.push(other.name.0.to_string());
        assert!(mapped(instance.pid) <= 64);
    }
    // Lists, too: joined, and in pieces of which there is room for none any more.
    let (_, origin) = request(&mut instance, "/parts", b"");
    let parts: Vec<(&str, Place)> = others.iter_mut().skip(60).map(|other| ("", other.put(b"-9"))).collect();
    let listed = list(&mut instance, origin, Joining::Json, &parts);
    assert_eq!(instance.step(listed).text(), "kept");
    expected.push(format!("{}-9]", "-9,".repeat(19)));
    expected.extend((0..20).map(|_| "9".to_owned()));
    let (all, _) = request(&mut instance, "/all", b"");
    assert_eq!(instance.step(all).text(), expected.join(","));
    assert_eq!(mapped(instance.pid), 64);
}
