//! The generator against the floor, both as they are: every shape, closed and open loop, and what it says of
//! servers that answer wrongly or not at all.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use spry_bench::floor::{Floor, NOP_JSON, Shape};
use spry_bench::load::{self, Failure, Outcome, Pace, Plan, Target, Until};
use spry_bench::stop::Stop;

const BINARY: &str = env!("CARGO_BIN_EXE_spry-bench");

fn plan(connections: usize, pace: Pace, requests: u64) -> Plan {
    Plan { connections, pace, until: Until::Requests(requests), timeout: Duration::from_secs(30) }
}

fn run(target: &Target, plan: &Plan) -> Outcome {
    load::run(target, plan, &Stop::default()).expect("the load runs")
}

#[test]
fn every_shape_answers_every_request_rightly() {
    let body: Vec<u8> = (0..1u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for shape in [Shape::MultiThread, Shape::PerCore] {
        let floor = Floor::start(Path::new(BINARY), shape).unwrap();
        let at = floor.address;
        let zeros = vec![b'x'; 1024];
        for (target, requests) in [
            (Target::new(at, "GET", "/function/nop", b"", NOP_JSON.into()), 2000),
            (Target::new(at, "GET", "/bytes/1024", b"", zeros.into()), 200),
            (Target::new(at, "POST", "/function/echo", &body[..1024], body[..1024].into()), 200),
            (Target::new(at, "POST", "/function/echo", &body, body.as_slice().into()), 20),
            (Target::new(at, "POST", "/function/echo-stream", &body, body.as_slice().into()), 20),
        ] {
            for pace in [Pace::Closed, Pace::Poisson { per_second: 2000.0, seed: 1 }] {
                let outcome = run(&target, &plan(4, pace, requests));
                assert_eq!((outcome.done, outcome.failures.total()), (requests, 0), "{}", outcome.failures);
                assert_eq!(outcome.latency.len(), requests);
            }
        }
    }
}

#[test]
fn wrong_answers_are_counted_by_kind() {
    let floor = Floor::start(Path::new(BINARY), Shape::PerCore).unwrap();
    let get = |path: &str, body: &[u8]| Target::new(floor.address, "GET", path, b"", body.into());
    for (target, failure) in [
        (get("/nothing", b""), Failure::Status(404)),
        (get("/bytes/5", b"xxxx"), Failure::Length),
        (get("/bytes/5", b"xxxxxx"), Failure::Length),
        (get("/bytes/5", b"xxyxx"), Failure::Body),
    ] {
        let outcome = run(&target, &plan(2, Pace::Closed, 10));
        assert_eq!((outcome.done, outcome.failures.of(failure)), (0, 10), "{}", outcome.failures);
    }
}

#[test]
fn a_sequence_is_one_request_made_of_several() {
    let floor = Floor::start(Path::new(BINARY), Shape::PerCore).unwrap();
    let sequence = |paths: &[&str]| {
        Target::sequence(floor.address, paths.iter().copied(), b"body", &b"body".as_slice().into()).unwrap()
    };
    let target = sequence(&["/echo", "/echo-stream", "/echo"]);
    let outcome = run(&target, &plan(3, Pace::Closed, 50));
    assert_eq!((outcome.done, outcome.latency.len(), outcome.failures.total()), (50, 50, 0));
    // One that is wrong makes the whole wrong, wherever it is.
    for paths in [["/nothing", "/echo"], ["/echo", "/nothing"]] {
        let outcome = run(&sequence(&paths), &plan(2, Pace::Closed, 10));
        assert_eq!((outcome.done, outcome.failures.of(Failure::Status(404))), (0, 10), "{paths:?}");
    }
    // A server that closes within a sequence has not answered it.
    let address = odd_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab");
    let target = Target::sequence(address, ["/", "/"], b"", &b"ab".as_slice().into()).unwrap();
    let outcome = run(&target, &plan(1, Pace::Closed, 5));
    assert_eq!((outcome.done, outcome.failures.of(Failure::Closed)), (0, 5), "{}", outcome.failures);
}

/// A server that reads a little of each connection's request, sends `answer` and closes.
fn odd_server(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            // The client may be gone: then there is nothing to answer.
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(answer));
        }
    });
    address
}

#[test]
fn broken_servers_are_told_apart() {
    for (answer, failure) in [
        (b"".as_slice(), Failure::Closed),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", Failure::Closed),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", Failure::Surplus),
        (b"hello\r\n\r\n", Failure::Malformed),
        // It says that it closes: whoever isn't told may send the next request, and have it reset.
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Failure::Status(502)),
    ] {
        let target = Target::new(odd_server(answer), "GET", "/", b"", b"ab".as_slice().into());
        let outcome = run(&target, &plan(1, Pace::Closed, 5));
        assert_eq!((outcome.done, outcome.failures.of(failure)), (0, 5), "{}", outcome.failures);
    }
    // Closing after each answer is a server's right.
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab";
    let target = Target::new(odd_server(answer), "GET", "/", b"", b"ab".as_slice().into());
    let outcome = run(&target, &plan(2, Pace::Closed, 20));
    assert_eq!((outcome.done, outcome.failures.total()), (20, 0), "{}", outcome.failures);
}

#[test]
fn a_server_that_never_answers_times_out_and_leaves_the_rest_unsent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::new(listener.local_addr().unwrap(), "GET", "/", b"", b"".as_slice().into());
    let plan = Plan {
        connections: 1,
        pace: Pace::Constant { per_second: 1000.0 },
        until: Until::Elapsed(Duration::from_millis(100)),
        timeout: Duration::from_millis(200),
    };
    let outcome = run(&target, &plan);
    assert_eq!(outcome.done, 0);
    assert!(outcome.failures.of(Failure::Timeout) >= 1, "{}", outcome.failures);
    assert_eq!(
        outcome.failures.total(),
        99,
        "every request that was due is accounted for: {}",
        outcome.failures
    );
    assert!(outcome.backlog_max >= 90);
}

#[test]
fn no_server_is_an_error_and_not_a_result() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let target = Target::new(address, "GET", "/", b"", b"".as_slice().into());
    let error = load::run(&target, &plan(1, Pace::Closed, 1), &Stop::default()).unwrap_err();
    assert!(matches!(error, load::LoadError::Connect { .. }), "{error}");
}

#[test]
fn a_stop_ends_an_endless_run() {
    let floor = Floor::start(Path::new(BINARY), Shape::PerCore).unwrap();
    let target = Target::new(floor.address, "GET", "/function/nop", b"", NOP_JSON.into());
    let stop = Stop::default();
    stop.set();
    let error = load::run(&target, &plan(1, Pace::Closed, u64::MAX), &stop).unwrap_err();
    assert!(matches!(error, load::LoadError::Interrupted), "{error}");
}
