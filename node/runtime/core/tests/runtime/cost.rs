//! What a call costs inside the function process, and a fork until its hello. Not a test: `bench/` has the ratios
//! that bind; this prints what one looks at while changing the runtimes. Run with
//! `cargo test -p spry-runtime --test runtime -- --ignored --nocapture cost`.

use std::time::{Duration, Instant};

use spry_wire::frame::RequestHead;

use crate::harness::{Instance, Zygote, rust_library};

const CALLS: u32 = 20_000;
const FORKS: usize = 300;

fn cpu(pid: i32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("schedstat");
    Duration::from_nanos(text.split(' ').next().expect("field").parse().expect("number"))
}

fn private_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let kib = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    text.lines().filter(|line| line.starts_with("Private_Dirty")).map(kib).sum()
}

fn calls(name: &str, zygote: &Zygote, body: &[u8]) {
    let mut instance = zygote.fork();
    let head = RequestHead {
        call_id: "0123456789abcdef",
        method: "POST",
        headers: vec![("host", b"localhost:8080"), ("content-type", b"application/json"), ("accept", b"*/*")],
        ..RequestHead::default()
    };
    (0..500).for_each(|_| drop(instance.call(&head, body)));
    let before = cpu(instance.pid);
    (0..CALLS).for_each(|_| assert!(instance.call(&head, body).failure.is_none()));
    let each = (cpu(instance.pid) - before) / CALLS;
    println!("{name:28} {each:>10.2?} CPU a call, {} KiB private", private_kib(instance.pid));
}

fn forks(name: &str, zygote: &Zygote) {
    let mut times: Vec<Duration> = (0..FORKS)
        .map(|_| {
            let started = Instant::now();
            let instance = Instance::make(zygote, 1 << 20, 4 << 20);
            let took = started.elapsed();
            drop(instance);
            took
        })
        .collect();
    times.sort_unstable();
    println!(
        "{name:28} {:>10.2?} fork to hello (p50), {:.2?} (p99), zygote {} KiB private",
        times[FORKS / 2],
        times[FORKS * 99 / 100],
        private_kib(zygote.pid())
    );
}

#[test]
#[ignore = "prints costs, decides nothing"]
fn cost() {
    let nop = Zygote::native(&rust_library("example_nop")).expect("load");
    let echo = Zygote::native(&rust_library("example_echo")).expect("load");
    let python =
        Zygote::python("def main(params):\n    return {'message': 'hello, world!'}\n").expect("load");
    let raw = Zygote::python("import spry\ndef main(r: spry.Request):\n    return b'hello'\n").expect("load");
    let aws = Zygote::python("def main(event, context):\n    return {'statusCode': 200, 'body': 'hello'}\n")
        .expect("load");
    calls("native nop", &nop, b"{}");
    calls("native echo", &echo, b"{}");
    calls("python nop (params)", &python, b"{}");
    calls("python nop (spry.Request)", &raw, b"{}");
    calls("python nop (event, context)", &aws, b"{}");
    forks("native", &nop);
    forks("python", &python);
}
