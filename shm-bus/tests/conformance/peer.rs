//! What a peer process does: its role.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use shm_bus::Descriptor;
use shm_bus::alloc::Allocator;
use shm_bus::endpoint;
use shm_bus::segment::{Reader, Writer};
use shm_bus::transport::{BusError, Endpoint, Kind};
use spry_ebpf_common::flags;

/// Runs the role in the environment, if there is one, and doesn't return then.
pub(crate) fn run_if_asked() {
    let Ok(role) = std::env::var("SPRY_PEER_ROLE") else { return };
    let kind: Kind = std::env::var("SPRY_PEER_KIND").unwrap().parse().unwrap();
    let count: usize = std::env::var("SPRY_PEER_ENDPOINT").unwrap().parse().unwrap();
    let names = std::env::var("SPRY_PEER_FDS").unwrap();
    // SAFETY: the parent has put these descriptors here for us, and named each once.
    let mut fds: Vec<OwnedFd> =
        names.split(',').map(|fd| unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) }).collect();
    let more = fds.split_off(count);
    run(&role, kind, fds, more);
    std::process::exit(0);
}

fn run(role: &str, kind: Kind, fds: Vec<OwnedFd>, more: Vec<OwnedFd>) {
    if let Some(len) = role.strip_prefix("raw:") {
        return send_raw(kind, &fds, len.parse().unwrap());
    }
    if role == "wake" {
        return wake_for_ever(&fds);
    }
    let mut endpoint = endpoint::open(kind, fds).unwrap();
    if let Some(count) = role.strip_prefix("emit:") {
        return emit(&mut *endpoint, count.parse().unwrap());
    }
    if let Some(flags) = role.strip_prefix("flags:") {
        let flags = flags.parse().unwrap();
        return serve(&mut *endpoint, |got| Descriptor { flags, ..answer_to(got) });
    }
    match role {
        "serve" => serve(&mut *endpoint, answer_to),
        "sum" => serve(&mut *endpoint, |got| Descriptor {
            offset: super::many::mix(got.offset, got.step),
            ..answer_to(got)
        }),
        "hold" => serve(&mut *endpoint, |got| Descriptor { flags: flags::HOLD, ..answer_to(got) }),
        "foreign" => {
            serve(&mut *endpoint, |got| Descriptor { invocation: got.invocation + 1, ..answer_to(got) })
        }
        "twice" => {
            let got = endpoint.receive().unwrap().unwrap();
            endpoint.send(&answer_to(&got)).unwrap();
            endpoint.send(&answer_to(&got)).unwrap();
            wait_for_the_end();
        }
        "unasked" => {
            endpoint.send(&Descriptor { invocation: 1, ..Descriptor::default() }).unwrap();
            wait_for_the_end();
        }
        "emit unasked" => {
            endpoint
                .send(&Descriptor { invocation: 1, flags: flags::EMIT, ..Descriptor::default() })
                .unwrap();
            wait_for_the_end();
        }
        "emit after answering" => {
            let got = endpoint.receive().unwrap().unwrap();
            endpoint.send(&answer_to(&got)).unwrap();
            endpoint.send(&Descriptor { flags: flags::EMIT, ..answer_to(&got) }).unwrap();
            wait_for_the_end();
        }
        "emit for another" => {
            let got = endpoint.receive().unwrap().unwrap();
            let invocation = got.invocation + 1;
            endpoint.send(&Descriptor { flags: flags::EMIT, invocation, ..answer_to(&got) }).unwrap();
            wait_for_the_end();
        }
        "close" => {
            drop(endpoint);
            wait_for_the_end();
        }
        "die before receiving" => die(),
        "die after receiving" => {
            endpoint.receive().unwrap();
            die();
        }
        "die after answering" => {
            let got = endpoint.receive().unwrap().unwrap();
            endpoint.send(&answer_to(&got)).unwrap();
            die();
        }
        "copy" => copy(&mut *endpoint, more),
        other => panic!("no role {other:?}"),
    }
}

/// Everything that the transport must stamp is wrong here.
fn answer_to(got: &Descriptor) -> Descriptor {
    Descriptor { source: 0xdead_beef, route: 9999, step: 99, length: got.length + 1, ..*got }
}

fn serve(endpoint: &mut dyn Endpoint, answer: impl Fn(&Descriptor) -> Descriptor) {
    serve_all(endpoint, |endpoint, got| endpoint.send(&answer(got)));
}

fn serve_all(
    endpoint: &mut dyn Endpoint,
    mut handle: impl FnMut(&mut dyn Endpoint, &Descriptor) -> Result<(), BusError>,
) {
    while let Some(got) = endpoint.receive().unwrap() {
        assert_eq!(got.flags, 0, "what arrives has none");
        // The hub may end us at any time.
        if handle(endpoint, &got).is_err() {
            return;
        }
    }
}

/// Emits so many values, numbered by their lengths, and then answers.
fn emit(endpoint: &mut dyn Endpoint, count: u32) {
    serve_all(endpoint, |endpoint, got| {
        for length in 0..count {
            endpoint.send(&Descriptor { flags: flags::EMIT | flags::NEXT, length, ..answer_to(got) })?;
        }
        endpoint.send(&answer_to(got))
    });
}

fn die() -> ! {
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
    unreachable!("killed")
}

/// Until the parent kills us, or has died.
fn wait_for_the_end() {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    loop {
        nix::unistd::pause();
    }
}

/// Sends `len` bytes that are no descriptor; where the carrier has no bytes, a count that can't be.
fn send_raw(kind: Kind, fds: &[OwnedFd], len: usize) {
    match kind {
        Kind::Futex => {
            let produced = produced(fds);
            produced.store(1000 + len as u32, Ordering::Release);
            wake(produced);
        }
        Kind::Broker | Kind::Sockmap => {
            let fd: RawFd = fds[0].as_fd().as_raw_fd();
            let flags = nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
            nix::sys::socket::send(fd, &vec![7; len], flags).unwrap();
        }
    }
    wait_for_the_end();
}

/// The word of a futex peer's page that counts what it has produced.
fn produced(fds: &[OwnedFd]) -> &'static AtomicU32 {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    let page = std::num::NonZeroUsize::new(shm_bus::segment::page_len() as usize).unwrap();
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping of a page that is ours to write; it stays until the process ends.
    let own = unsafe { mmap(None, page, prot, MapFlags::MAP_SHARED, &fds[1], 0) }.unwrap();
    // SAFETY: just mapped, aligned; the hub reads it atomically.
    unsafe { AtomicU32::from_ptr(own.cast().as_ptr()) }
}

fn wake(word: &AtomicU32) {
    // SAFETY: the word is mapped.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Makes itself heard, and has nothing to say.
fn wake_for_ever(fds: &[OwnedFd]) {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    let produced = produced(fds);
    loop {
        wake(produced);
    }
}

/// Answers with a copy of the payload in its own segment. `more`: inbox, outbox, release page.
fn copy(endpoint: &mut dyn Endpoint, more: Vec<OwnedFd>) {
    let [inbox, outbox, release] = <[OwnedFd; 3]>::try_from(more).unwrap();
    let len = super::payload::SEGMENT_LEN;
    let inbox = Reader::map(inbox, len).unwrap();
    let outbox = Writer::map(outbox, len).unwrap();
    let mut release = shm_bus::release::ReleaseReader::map(release).unwrap();
    let mut blocks = Allocator::new(len as u32);
    blocks.reserve(shm_bus::begun::HEADER_LEN);
    while let Some(got) = endpoint.receive().unwrap() {
        shm_bus::begun::write(&outbox, shm_bus::ids::InvocationId(got.invocation));
        release.drain(|offset| assert!(blocks.free(offset).is_some()));
        let block = blocks.allocate(got.length).unwrap();
        let bytes = inbox.slice(got.offset.into(), got.length.into()).unwrap();
        outbox.write_at(block.offset.into(), bytes).unwrap();
        endpoint.send(&Descriptor { segment: 8, generation: 1, offset: block.offset, ..got }).unwrap();
    }
}
