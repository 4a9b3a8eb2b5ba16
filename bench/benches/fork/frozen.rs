//! From the request to fork to the handler's first instruction, for zygotes of many sizes, frozen in each way and not at
//! all.
//!
//! The function itself says when its first instruction ran, on the clock that this process reads before it asks for the
//! fork. In between: the way to the zygote, the fork, the new process's setup, its hello, its place on the bus, the way of
//! a request to it, and the runtime's own way to the handler. What is given to criterion is the median of single forks,
//! so that a fork that was interrupted doesn't count.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, PortIndex};
use shm_bus::segment::Writer;
use shm_bus::transport::{Event, Port, Sent};
use spry_ebpf_common::{PORT_BIT, flags, status};
use spry_node::zygote::{Runtime, Zygote, ZygoteSpec, find_interpreter};
use spry_wire::frame::{RequestHead, ResponseHead};
use spry_wire::freeze::Freeze;

use super::zygotes::{INBOX_LEN, Life, Node, UID, readable, spec};

/// Megabytes that the function has written to while it was loaded.
const SIZES: [usize; 4] = [10, 50, 200, 500];
const WAYS: [Freeze; 3] = [Freeze::Off, Freeze::Memfd, Freeze::Huge];
const INBOX: u32 = 1;
/// Milliseconds until something is wrong.
const WATCHDOG_MS: u16 = 10_000;

/// The bench group.
pub(super) fn frozen(criterion: &mut Criterion, node: &mut Node) {
    match native(node) {
        Ok(made) => SIZES.iter().for_each(|mib| all_ways(criterion, node, "native", *mib, &made)),
        Err(why) => eprintln!("first_instruction/native is left out: {why}"),
    }
    match python(node, None) {
        Ok(made) => [10, 200].iter().for_each(|mib| all_ways(criterion, node, "Python", *mib, &made)),
        Err(why) => eprintln!("first_instruction/Python is left out: {why}"),
    }
    match numpy().and_then(|packages| python(node, Some(&packages))) {
        Ok(made) => {
            [0, 50].iter().for_each(|mib| all_ways(criterion, node, "Python with NumPy", *mib, &made))
        }
        Err(why) => eprintln!("first_instruction/Python with NumPy is left out: {why}"),
    }
}

fn all_ways(criterion: &mut Criterion, node: &mut Node, language: &str, mib: usize, made: &ZygoteSpec) {
    for freeze in WAYS {
        let mut spec = ZygoteSpec { freeze, ..made.clone() };
        spec.env.insert("HEAP_MIB".to_owned(), mib.to_string());
        spec.limits.memory_bytes = 2 << 30;
        let zygote = node.events.block_on(Zygote::start(&node.executor, &spec)).expect("start a zygote");
        if zygote.frozen().how != freeze {
            let why = zygote.frozen().why.as_deref().unwrap_or_default();
            eprintln!("first_instruction/{language}/{mib}MiB/{}: not frozen: {why}", freeze.as_str());
        }
        let mut caller = Caller::new(node);
        let mut group = criterion.benchmark_group("first_instruction");
        group.sample_size(20).sampling_mode(SamplingMode::Flat);
        group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
        let way = if freeze == Freeze::Off { "unfrozen" } else { freeze.as_str() };
        group.bench_function(BenchmarkId::from_parameter(format!("{language}/{mib}MiB/{way}")), |bencher| {
            bencher.iter_custom(|count| {
                let mut times: Vec<Duration> =
                    (0..count.max(5)).map(|_| caller.fork_and_call(node, &zygote)).collect();
                times.sort_unstable();
                times[times.len() / 2] * count as u32
            });
        });
        group.finish();
        zygote.kill();
        node.events.block_on(zygote.exited());
    }
}

/// What sends a request to a new instance, and reads the answer.
struct Caller {
    inbox: Writer,
    port: Box<dyn Port>,
    frame_len: u32,
    invocation: u64,
}

impl Caller {
    fn new(node: &Node) -> Self {
        let inbox = shm_bus::segment::create("bench-inbox", INBOX_LEN).expect("an inbox");
        let inbox = Writer::map(inbox, INBOX_LEN).expect("map the inbox");
        let mut frame = Vec::new();
        let head = RequestHead { call_id: "bench", method: "GET", path: "/", ..RequestHead::default() };
        head.encode(&mut frame).expect("encode");
        inbox.write_at(0, &frame).expect("write a request");
        let port = node.bus.open_port(PortIndex(0)).expect("a port");
        Self { inbox, port, frame_len: frame.len() as u32, invocation: 0 }
    }

    /// From before the request to fork to the time that the function says.
    fn fork_and_call(&mut self, node: &mut Node, zygote: &Zygote) -> Duration {
        let prepared = node.prepare();
        let started_ns = now_ns();
        self.invocation += 1;
        let descriptor = Descriptor {
            segment: INBOX,
            generation: 1,
            length: self.frame_len,
            invocation: self.invocation,
            source: PORT_BIT,
            ..Descriptor::default()
        };
        let (bus, port) = (Arc::clone(&node.bus), &mut self.port);
        // As a birth does on which a request waits (spry_node::keeper).
        let life = node.fork(zygote, self.inbox.fd(), prepared, |peer| {
            assert!(bus.admit(peer), "a new instance is idle");
            assert_eq!(port.send(FunctionIndex(0), &descriptor).expect("send"), Sent::Delivered);
        });
        let answer = self.answer();
        let first_ns = read_time(&life, &answer);
        node.finish(life);
        Duration::from_nanos(u64::try_from(first_ns - started_ns).expect("it ran after it was asked for"))
    }

    fn answer(&mut self) -> Descriptor {
        let mut events = Vec::new();
        loop {
            let mut ready = [PollFd::new(self.port.fd(), PollFlags::POLLIN)];
            assert_ne!(poll(&mut ready, PollTimeout::from(WATCHDOG_MS)).expect("poll"), 0, "no answer");
            self.port.receive(&mut events).expect("receive");
            if let Some(Event::Answer(answer)) = events.pop() {
                assert_eq!(answer.flags & status::MASK, status::OK, "{answer:?}");
                assert_eq!(answer.flags & flags::HOLD, 0, "it printed something");
                return answer;
            }
        }
    }
}

fn read_time(life: &Life, answer: &Descriptor) -> i64 {
    let bytes = life.outbox.copy(answer.offset.into(), answer.length.into()).expect("within the outbox");
    let (_, body_at) = ResponseHead::decode(&bytes).expect("a response");
    std::str::from_utf8(&bytes[body_at..]).ok().and_then(|text| text.parse().ok()).expect("nanoseconds")
}

fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the time");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

fn native(node: &Node) -> Result<ZygoteSpec, String> {
    let own = std::env::current_exe().expect("this program's path");
    let built = own.ancestors().nth(2).expect("a profile's folder").join("examples/libbench_heap.so");
    let code = node.code("heap");
    fs::copy(&built, code.join("heap.so"))
        .map_err(|error| format!("copy {} (`cargo xtask bench fork` builds it): {error}", built.display()))?;
    readable(&code.join("heap.so"));
    Ok(spec("bench-heap", Runtime::Native, "heap.so", code))
}

/// `packages`: a folder with what it imports, beside the function.
fn python(node: &Node, packages: Option<&Path>) -> Result<ZygoteSpec, String> {
    let interpreter = find_interpreter(None, Some((UID, UID))).map_err(|error| error.to_string())?;
    let code = node.code(if packages.is_some() { "heap-numpy" } else { "heap-python" });
    if let Some(packages) = packages {
        let copied = Command::new("cp").arg("-r").arg(packages.join(".")).arg(&code).status();
        copied.ok().filter(|status| status.success()).ok_or("copy the packages")?;
    }
    fs::write(code.join("heap.py"), include_str!("../../functions/heap.py")).expect("write heap.py");
    readable(&code.join("heap.py"));
    let mut spec = spec("bench-heap-py", Runtime::Python { interpreter }, "heap:main", code);
    if packages.is_some() {
        spec.env.insert("HEAP_NUMPY".to_owned(), "1".to_owned());
    }
    Ok(spec)
}

/// A folder with NumPy, which stays in the target folder for the next time.
fn numpy() -> Result<std::path::PathBuf, String> {
    let own = std::env::current_exe().expect("this program's path");
    let folder = own.ancestors().nth(3).expect("the target folder").join("bench-packages");
    if folder.join("numpy").is_dir() {
        return Ok(folder);
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-compile", "--target"]).arg(&folder).arg("numpy");
    let status = pip.stdin(Stdio::null()).status().map_err(|error| format!("start pip: {error}"))?;
    if status.success() { Ok(folder) } else { Err(format!("pip can't install NumPy ({status})")) }
}
