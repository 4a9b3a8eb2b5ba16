//! Values that a function emits while it goes on serving.

use spry_ebpf_common::{EMITS_MAX, flags};
use spry_wire::frame::{EMISSION_HEAD_MAX, Emission, RequestHead};

use crate::chains::{kitchen, request};
use crate::harness::{Answer, Instance, Zygote, faults_library};

/// Serves one step at this path and query.
fn step(instance: &mut Instance, path: &str, query: &str) -> Answer {
    let mut frame = Vec::new();
    let head = RequestHead { method: "POST", path, query, call_id: "call-1", ..RequestHead::default() };
    head.encode(&mut frame).expect("encode");
    let place = instance.put(&frame);
    instance.step(place)
}

/// What was emitted, read as spryd reads it, and given back.
fn emitted(instance: &mut Instance) -> Vec<(String, String, Vec<u8>)> {
    let descriptors = std::mem::take(&mut instance.emitted);
    let read = descriptors.iter().map(|descriptor| {
        assert_eq!(descriptor.flags, flags::EMIT);
        assert_eq!((descriptor.segment, descriptor.generation), (4, 9));
        let (at, len) = (u64::from(descriptor.offset), u64::from(descriptor.length));
        let head = instance.outbox.copy(at, len.min(EMISSION_HEAD_MAX as u64)).expect("in the outbox");
        let (emission, value_at) = Emission::decode(&head).expect("an emission");
        let value_at = value_at as u64;
        let value = instance.outbox.copy(at + value_at, len - value_at).expect("in the outbox");
        instance.release.post(descriptor.offset);
        (emission.name().to_owned(), emission.content_type().to_owned(), value)
    });
    read.collect()
}

fn owned(name: &str, content_type: &str, value: &[u8]) -> (String, String, Vec<u8>) {
    (name.to_owned(), content_type.to_owned(), value.to_vec())
}

#[test]
fn values_come_in_order_before_the_answer() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let answer = step(&mut instance, "/emit", "3");
    assert_eq!(answer.text(), "0");
    assert!(instance.emitted.iter().all(|value| value.invocation == answer.descriptor.invocation));
    let expected = [
        owned("thumb-1", "text/plain", b"value 0"),
        owned("thumb-1", "", b"value 1"),
        owned("thumb-1", "text/plain", b"value 2"),
    ];
    assert_eq!(emitted(&mut instance), expected);
    assert_eq!(step(&mut instance, "/emit-refusals", "").text(), "all refused");
    assert_eq!(emitted(&mut instance), []);
}

#[test]
fn one_call_emits_so_many_values_and_the_next_one_as_many() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    for _ in 0..3 {
        // SPRY_TOO_MANY is 7.
        assert_eq!(step(&mut instance, "/emit", "129").text(), "7");
        let values = emitted(&mut instance);
        assert_eq!(values.len(), EMITS_MAX as usize);
        assert_eq!(values[127].2, b"value 127");
        assert_eq!(step(&mut instance, "/emit", "128").text(), "0");
        assert_eq!(emitted(&mut instance).len(), EMITS_MAX as usize);
    }
}

#[test]
fn outside_a_chain_nobody_would_get_them() {
    let mut instance = kitchen().fork();
    let head = RequestHead { method: "POST", path: "/emit", query: "1", ..RequestHead::default() };
    // SPRY_NO_CHAIN is 8.
    assert_eq!(instance.call(&head, b"").text(), "8");
    let mut instance = Zygote::native(&faults_library()).expect("load").fork();
    let alone = RequestHead { method: "POST", path: "/emit-alone", ..RequestHead::default() };
    let failed = instance.call(&alone, b"").failed().to_owned();
    assert!(
        failed.contains("the value \"page\" of 6 bytes can't be emitted: this call is not part of"),
        "{failed}"
    );
    let source = "import spry\ndef main(params):\n    spry.emit('a', 1)\n";
    let failed = Zygote::python(source).expect("load").fork().call(&head, b"").failed().to_owned();
    assert!(
        failed.starts_with("RuntimeError: a value can't be emitted: this call is not part of"),
        "{failed}"
    );
    assert!(instance.emitted.is_empty());
}

#[test]
fn rust_functions_emit_while_they_write_their_answer() {
    let mut instance = Zygote::native(&faults_library()).expect("load").fork();
    let answer = step(&mut instance, "/emit", "");
    assert!(answer.text().starts_with("before after: the value \"Page\" of 0 bytes"), "{}", answer.text());
    assert!(answer.text().contains("its name is 1 to 64 characters"), "{}", answer.text());
    assert_eq!(emitted(&mut instance), [owned("page", "text/plain", b"one"), owned("page", "", &[2; 3])]);
}

#[test]
fn python_functions_emit_what_they_like() {
    let zygote = Zygote::python(
        "import array, spry, threading\n\
         class Late:\n    def __str__(self): spry.emit('late', b''); return ''\n\
         def tried(what):\n    try: what()\n    except Exception as error: return f'{type(error).__name__}: {error}'\n\
         def main(request: spry.Request):\n    \
         if request.path == '/late': return spry.Response('', headers={'x-a': Late()})\n    \
         if request.path == '/errors':\n        return [\n            \
         tried(lambda: spry.emit('A', b'')), tried(lambda: spry.emit('a', object())), tried(lambda: spry.emit('a')),\n            \
         tried(lambda: spry.emit('a', b'', 'x\\n')), tried(lambda: spry.emit('a', bytes(7 << 20)))]\n    \
         if request.path == '/many':\n        \
         for i in range(128): spry.emit('n', i)\n        \
         return tried(lambda: spry.emit('n', 128))\n    \
         spry.emit('bytes', b'\\0\\1')\n    spry.emit('view', request.body[1:3], 'image/png')\n    \
         spry.emit('every-other', memoryview(b'012345')[::2])\n    spry.emit('array', array.array('B', [1, 2]))\n    \
         spry.emit('text', 'é')\n    spry.emit('json', {'a': [1, None]})\n    spry.emit('number', 7, content_type='x/y')\n    \
         thread = threading.Thread(target=spry.emit, args=('thread', 'too'))\n    thread.start()\n    thread.join()\n    \
         return 'done'\n",
    )
    .expect("load");
    let mut instance = zygote.fork();
    let (place, _) = request(&mut instance, "/", b"body");
    assert_eq!(instance.step(place).text(), "done");
    let bytes = "application/octet-stream";
    let expected = [
        owned("bytes", bytes, b"\0\x01"),
        owned("view", "image/png", b"od"),
        owned("every-other", bytes, b"024"),
        owned("array", bytes, b"\x01\x02"),
        owned("text", "text/plain; charset=utf-8", "é".as_bytes()),
        owned("json", "application/json", b"{\"a\":[1,null]}"),
        owned("number", "x/y", b"7"),
        owned("thread", "text/plain; charset=utf-8", b"too"),
    ];
    assert_eq!(emitted(&mut instance), expected);

    let late = step(&mut instance, "/late", "");
    let why = "RuntimeError: a value can't be emitted: the answer is being written already\n";
    assert!(late.failed().starts_with(why), "{}", late.failed());
    let errors = step(&mut instance, "/errors", "");
    let errors = errors.text();
    for part in [
        "ValueError: a value can't be emitted: the name of an emitted value is 1 to 64 characters",
        "TypeError: object is not JSON serializable",
        "TypeError: emit() missing 1 required positional argument: 'value'",
        "ValueError: a value can't be emitted: the content type of an emitted value is at most 256",
        "over the limit of 6291456 bytes",
    ] {
        assert!(errors.contains(part), "{part} is not in {errors}");
    }
    let many = step(&mut instance, "/many", "");
    assert_eq!(many.text(), "RuntimeError: a value can't be emitted: one call emits 128 values at most");
    assert_eq!(emitted(&mut instance).len(), 128);

    let loading =
        Zygote::python("import spry\nspry.emit('a', b'')\ndef main(p): pass\n").err().expect("refused");
    assert!(loading.contains("spry.emit is for the time in which a call is served"), "{loading}");
}
