//! Native functions, through the real loader: what works, what fails a call, what ends an instance, what is
//! refused at deployment.

use std::fs;

use crate::harness::{Zygote, c_library, c_library_without, faults_library, rust_library};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use spry_wire::frame::RequestHead;

fn head(path: &str) -> RequestHead<'_> {
    RequestHead { call_id: "call-1", method: "POST", path, ..RequestHead::default() }
}

fn kitchen() -> Zygote {
    let dir = tempfile::tempdir().expect("tempdir");
    Zygote::native(&c_library(dir.path(), "kitchen")).expect("load")
}

fn refused(result: Result<Zygote, String>) -> String {
    result.err().expect("refused at deployment")
}

#[test]
fn a_c_function_sees_the_whole_request() {
    let zygote = kitchen();
    assert!(zygote.runtime.starts_with("spry native"), "{}", zygote.runtime);
    let mut instance = zygote.fork();
    let request = RequestHead {
        deadline_unix_ns: 1_700_000_000_000_000_007,
        query: "a=1&b=2",
        headers: vec![("accept", b"text/html"), ("x-other", b"\xff\xfe")],
        ..head("/describe")
    };
    let answer = instance.call(&request, b"12345");
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("x-made-by"), Some("c"));
    assert_eq!(
        answer.text(),
        "POST /describe ?a=1&b=2 call-1 accept=text/html headers=2 body=5 aligned=1 deadline=1700000000000000007"
    );
    assert_eq!(instance.call(&head("/loaded"), b"").text(), "41", "what spry_init did is inherited");
    let empty = instance.call(&head("/nothing"), b"");
    assert_eq!((empty.status, empty.body.len(), empty.headers.len()), (200, 0, 0));
    assert_eq!(instance.call(&head("/refusals"), b"").text(), "all refused");
}

#[test]
fn bodies_are_written_in_place_moved_or_passed_through() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    for len in [0usize, 1, 63, 64, 100_000, 5 << 20] {
        let body: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
        let answer = instance.call(&head("/reversed"), &body);
        assert!(answer.body.iter().eq(body.iter().rev()), "{len} bytes");
        assert_eq!(answer.header("x-long").map(str::len), Some(400));
        let echo = instance.call(&head("/echo"), &body);
        assert!(echo.passed && echo.body == body, "{len} bytes");
        assert_eq!(echo.descriptor.segment, 3, "the request's own block");
        let typed = instance.call(&head("/typed-echo"), &body);
        assert!(!typed.passed && typed.body == body, "{len} bytes");
        assert_eq!(typed.header("content-type"), Some("image/png"));
    }
}

#[test]
fn a_failed_call_leaves_the_instance_serving() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    assert_eq!(instance.call(&head("/fail"), b"").failed(), "no such colour\nthe rest");
    assert_eq!(instance.call(&head("/code"), b"").failed(), "the function returned 7");
    assert_eq!(instance.call(&head("/nowhere"), b"").failed(), "unknown path");
    let big = RequestHead { query: "7000000", ..head("/big") };
    assert_eq!(instance.call(&big, b"").failed(), "the function returned 3");
    assert_eq!(instance.call(&head("/loaded"), b"").text(), "41");
}

#[test]
fn output_is_flushed_and_the_answer_says_that_there_is_some() {
    let zygote = kitchen();
    assert_eq!(zygote.log(), "initialised\n", "the zygote's own output");
    let mut instance = zygote.fork();
    assert!(!instance.call(&head("/loaded"), b"").held);
    let answer = instance.call(&head("/print"), b"");
    assert!(answer.held);
    assert_eq!((instance.out().as_str(), instance.err().as_str()), ("unflushed", "to stderr"));
    assert!(!instance.call(&head("/loaded"), b"").held, "what spryd has read is no reason to hold");
}

#[test]
fn exit_and_crash_end_the_instance_alone() {
    let zygote = kitchen();
    for (path, end) in [("/exit", 3), ("/crash", -1)] {
        let mut instance = zygote.fork();
        let mut frame = Vec::new();
        head(path).encode(&mut frame).expect("encode");
        instance.send(&frame, None);
        assert!(instance.answer().is_none(), "{path}");
        match instance.wait() {
            WaitStatus::Exited(_, code) => assert_eq!(code, end),
            WaitStatus::Signaled(_, signal, _) => assert_eq!((end, signal), (-1, Signal::SIGABRT)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(zygote.fork().call(&head("/loaded"), b"").text(), "41");
}

/// Answers that no client reads fill the outbox; the call that finds no room fails, and room comes back.
#[test]
fn a_full_outbox_fails_a_call_and_releases_mend_it() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let big = RequestHead { query: "1000000", ..head("/big") };
    let mut kept = Vec::new();
    let failure = loop {
        let answer = instance.call_keeping(&big, b"");
        if let Some(text) = answer.failure {
            instance.release.post(answer.descriptor.offset);
            break text;
        }
        kept.push(answer.descriptor.offset);
        assert!(kept.len() < 64, "16 MiB never fill up");
    };
    // What the C function returned is SPRY_FULL.
    assert_eq!(failure, "the function returned 4");
    assert!(kept.len() >= 7);
    kept.into_iter().for_each(|offset| instance.release.post(offset));
    assert_eq!(instance.call(&big, b"").body.len(), 1_000_000);
}

#[test]
fn rust_functions_fail_in_words() {
    let zygote = Zygote::native(&faults_library()).expect("load");
    let mut instance = zygote.fork();
    let panic = RequestHead { query: "mauve", ..head("/panic") };
    assert_eq!(instance.call(&panic, b"").failed(), "the function panicked: no such colour: mauve");
    assert!(instance.err().contains("panicked at"), "the panic's place is in the log");
    assert_eq!(instance.call(&head("/error"), b"").failed(), "No such file or directory (os error 2)");
    assert_eq!(instance.call(&head("/status"), b"").failed(), "99 is no HTTP status between 200 and 599");
    assert!(instance.call(&head("/header"), b"").failed().contains("\"a b\""));
    assert!(instance.call(&head("/too-large"), b"").failed().contains("payload limit"));
    let buffer = instance.call(&head("/buffer"), b"");
    assert_eq!(buffer.text(), "4321");
    assert!(buffer.header("x-second").expect("header").contains("one response buffer"));
    assert_eq!(buffer.header("x-full"), Some("the buffer's 8 bytes are full"));
    let request = RequestHead { headers: vec![("a", b"1"), ("b", b"2")], ..head("/headers") };
    assert_eq!(instance.call(&request, b"").text(), r#"["a", "b"]"#);
    let printed = instance.call(&head("/print"), b"");
    assert!(printed.held);
    assert_eq!((instance.out().as_str(), instance.err().as_str()), ("unfinished line", "to stderr"));
    let other = instance.call(&head("/other"), b"as it came");
    assert_eq!((other.status, other.text()), (404, "as it came"));
}

#[test]
fn the_examples_answer() {
    let nop = Zygote::native(&rust_library("example_nop")).expect("load");
    let answer = nop.fork().call(&head(""), b"ignored");
    assert_eq!(answer.text(), r#"{"message":"hello, world!"}"#);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let echo = Zygote::native(&rust_library("example_echo")).expect("load");
    let answer = echo.fork().call(&head(""), b"the same");
    assert!(answer.passed && answer.text() == "the same");
}

#[test]
fn broken_libraries_are_refused_with_advice() {
    let dir = tempfile::tempdir().expect("tempdir");
    let dir = dir.path();
    let text = dir.join("text.so");
    fs::write(
        &text,
        "#!/bin/sh\necho no library, though long enough to have an ELF header in it\n".repeat(4),
    )
    .expect("write");
    let message = refused(Zygote::native(&text));
    assert!(message.contains("invalid ELF header") && message.contains("cdylib"), "{message}");

    let unresolved = c_library(dir, "unresolved");
    let message = refused(Zygote::native(&unresolved));
    assert!(
        message.contains("undefined symbol: from_nowhere") && message.contains("Link the library"),
        "{message}"
    );

    let bare = c_library(dir, "bare");
    let message = refused(Zygote::native(&bare));
    assert!(message.contains("no `spry_abi_version`") && message.contains("SPRY_FUNCTION"), "{message}");

    let message = refused(Zygote::native(&c_library_without(dir, "bare", &["-DVERSION=2"])));
    assert!(message.contains("no `spry_handle`"), "{message}");

    let message = refused(Zygote::native(&c_library_without(dir, "bare", &["-DVERSION=1"])));
    assert!(message.contains("version 1 of") && message.contains("has version 2"), "{message}");

    let failing = c_library_without(dir, "bare", &["-DVERSION=2", "-DINIT=5"]);
    let message = refused(Zygote::native(&failing));
    assert!(message.contains("spry_init failed with 5"), "{message}");

    let message = refused(Zygote::native(&dir.join("missing.so")));
    assert!(message.contains("missing.so is not there"), "{message}");

    let message = refused(Zygote::native(&c_library_without(dir, "threaded", &["-pthread"])));
    assert!(
        message.contains("starts a thread") && message.contains("when the function is first called"),
        "{message}"
    );
}
