//! What a peer may send, by whatever system call, and what becomes of the rest.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, sendmsg};
use nix::unistd::{pipe, write};
use shm_bus::Descriptor;
use shm_bus::ids::InvocationId;
use shm_bus::transport::sockmap::Sockmap;
use shm_bus::transport::{Fault, FaultKind, Sent, Transport};
use spry_ebpf_common::{Counter, STATE_HELD, STATE_IDLE, flags};

use crate::rig::*;

/// How often each test does its thing.
const ROUNDS: usize = 200;

#[test]
fn the_probe_passes_again_and_again() {
    if bus().is_some() {
        for _ in 0..10 {
            Sockmap::probe().expect("probe");
        }
    }
}

/// A way to send bytes; the memory may be changed by the sender when it returns, and is.
pub(crate) type Path = (&'static str, fn(&OwnedFd, &mut Page));

/// A page of the sender's memory with a message at its start.
#[repr(align(4096))]
pub(crate) struct Page(pub(crate) [u8; 4096]);

fn by_write(socket: &OwnedFd, page: &mut Page) {
    assert_eq!(write(socket, &page.0[..32]), Ok(32));
}

fn by_pieces(socket: &OwnedFd, page: &mut Page) {
    let parts = [&page.0[..3], &page.0[3..17], &page.0[17..32]].map(std::io::IoSlice::new);
    assert_eq!(sendmsg::<()>(socket.as_raw_fd(), &parts, &[], MsgFlags::empty(), None), Ok(32));
}

fn by_zero_copy(socket: &OwnedFd, page: &mut Page) {
    let on: libc::c_int = 1;
    // SAFETY: a whole int that outlives the call.
    let set = unsafe {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, (&raw const on).cast(), len)
    };
    assert_eq!(set, 0, "SO_ZEROCOPY");
    let part = [std::io::IoSlice::new(&page.0[..32])];
    let zero_copy = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
    assert_eq!(sendmsg::<()>(socket.as_raw_fd(), &part, &[], zero_copy, None), Ok(32));
}

fn splice_out(from: &OwnedFd, socket: &OwnedFd) {
    // SAFETY: no pointers are passed.
    let moved = unsafe {
        let null = std::ptr::null_mut();
        libc::splice(from.as_raw_fd(), null, socket.as_raw_fd(), null, 32, 0)
    };
    assert_eq!(moved, 32, "{}", std::io::Error::last_os_error());
}

fn by_splice(socket: &OwnedFd, page: &mut Page) {
    let (out, into) = pipe().expect("pipe");
    assert_eq!(write(&into, &page.0[..32]), Ok(32));
    splice_out(&out, socket);
}

fn by_vmsplice(socket: &OwnedFd, page: &mut Page) {
    let (out, into) = pipe().expect("pipe");
    let part = libc::iovec { iov_base: page.0.as_mut_ptr().cast(), iov_len: 32 };
    // SAFETY: the page lives until the end of the test; it is *not* given away, that's the point.
    let moved = unsafe { libc::vmsplice(into.as_raw_fd(), &raw const part, 1, 0) };
    assert_eq!(moved, 32, "{}", std::io::Error::last_os_error());
    splice_out(&out, socket);
}

fn by_sendfile(socket: &OwnedFd, page: &mut Page) {
    let mut file = tempfile_in_memory();
    file.write_all(&page.0[..32]).expect("write");
    let mut at = 0;
    // SAFETY: `at` outlives the call.
    let sent = unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut at, 32) };
    assert_eq!(sent, 32, "{}", std::io::Error::last_os_error());
    // The file's page is what the kernel may have taken a reference to.
    use std::os::unix::fs::FileExt;
    file.write_all_at(&[0xee; 32], 0).expect("write");
}

fn tempfile_in_memory() -> std::fs::File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    memfd_create("spry-sockmap-test", MFdFlags::MFD_CLOEXEC).expect("memfd").into()
}

/// All of them.
pub(crate) const PATHS: [Path; 6] = [
    ("write", by_write),
    ("sendmsg in pieces", by_pieces),
    ("MSG_ZEROCOPY", by_zero_copy),
    ("splice", by_splice),
    ("vmsplice", by_vmsplice),
    ("sendfile", by_sendfile),
];

#[test]
fn a_forged_source_is_overwritten_however_it_is_sent() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peer = Peer::idle(&bus);
    let mut page = Box::new(Page([0; 4096]));
    for round in 0..ROUNDS {
        for (name, path) in PATHS {
            let invocation = new_invocation();
            let sent = Descriptor { step: 9, ..descriptor(invocation) };
            assert_eq!(port.send(FUNCTION, &sent).expect("send"), Sent::Delivered, "{name} {round}");
            let got = peer.receive();
            assert_eq!((got.invocation, got.step, got.route), (invocation, 9, FUNCTION.0));
            let forged = Descriptor {
                source: peer.id.slot + 1,
                route: FUNCTION.0 + 1,
                step: 77,
                length: round as u32,
                ..got
            };
            page.0[..32].copy_from_slice(&to_bytes(&forged));
            path(&peer.socket, &mut page);
            page.0.fill(0xff);
            let expected = Descriptor { source: peer.id.slot, route: FUNCTION.0, step: 9, ..forged };
            assert_eq!(answer(port.as_mut()), expected, "{name}");
        }
    }
    assert_eq!(bus.count(Counter::Violations), 0);
    assert_eq!(bus.count(Counter::Answered), (ROUNDS * PATHS.len()) as u64);
}

/// Delivers an invocation to a new peer, lets it do something against the rules, and checks that this is
/// reported, reaches no port, and that the invocation is given back.
fn breaks_a_rule(kind: FaultKind, what: impl Fn(&Peer, u64)) {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    for _ in 0..ROUNDS {
        let peer = Peer::idle(&bus);
        let invocation = deliver(port.as_mut());
        assert_eq!(peer.receive().invocation, invocation);
        what(&peer, invocation);
        assert_eq!(fault(&bus), Fault { peer: peer.id, kind });
        assert!(!readable(port.fd()), "delivered");
        assert!(bus.violations(peer.id.slot) > 0);
        assert_eq!(bus.detach(peer.id), Some((InvocationId(invocation), PORT)));
        assert_eq!(bus.detach(peer.id), None);
        assert!(!bus.has_idle(FUNCTION));
    }
}

fn good(invocation: u64) -> [u8; 32] {
    to_bytes(&Descriptor { invocation, ..Descriptor::default() })
}

#[test]
fn a_message_of_another_length_is_reported_and_goes_nowhere() {
    for length in [1, 16, 31, 33, 63, 64, 96, 4096, 100_000] {
        breaks_a_rule(FaultKind::Malformed, |peer, invocation| {
            let bytes: Vec<u8> = good(invocation).into_iter().cycle().take(length).collect();
            assert!(peer.send(&bytes).expect("send") > 0);
        });
    }
}

#[test]
fn a_partial_message_and_then_the_rest_is_reported() {
    breaks_a_rule(FaultKind::Malformed, |peer, invocation| {
        assert_eq!(peer.send(&good(invocation)[..20]), Ok(20));
        let _ = peer.send(&good(invocation)[20..]);
    });
}

#[test]
fn urgent_data_is_reported() {
    breaks_a_rule(FaultKind::Malformed, |peer, _| {
        use nix::sys::socket::send;
        assert_eq!(send(peer.socket.as_raw_fd(), &[1], MsgFlags::MSG_OOB), Ok(1));
    });
}

#[test]
fn an_answer_to_anothers_invocation_is_reported() {
    breaks_a_rule(FaultKind::NotItsInvocation, |peer, invocation| {
        assert_eq!(peer.send(&good(invocation + 1_000_000)), Ok(32));
    });
}

#[test]
fn a_state_is_no_invocation() {
    for state in [0, STATE_IDLE, STATE_HELD] {
        breaks_a_rule(FaultKind::NotItsInvocation, |peer, _| assert_eq!(peer.send(&good(state)), Ok(32)));
    }
}

#[test]
fn a_second_answer_is_reported() {
    for hold in [0, flags::HOLD] {
        let Some(bus) = bus() else { return };
        let mut port = bus.open_port(PORT).expect("port");
        for _ in 0..ROUNDS {
            let peer = Peer::idle(&bus);
            let invocation = deliver(port.as_mut());
            assert_eq!(peer.receive().invocation, invocation);
            let bytes = to_bytes(&Descriptor { invocation, flags: hold, ..Descriptor::default() });
            assert_eq!(peer.send(&bytes), Ok(32));
            assert_eq!(peer.send(&bytes), Ok(32));
            assert_eq!(answer(port.as_mut()).invocation, invocation);
            assert_eq!(fault(&bus), Fault { peer: peer.id, kind: FaultKind::NotItsInvocation });
            assert!(!readable(port.fd()));
            assert_eq!(bus.detach(peer.id), None, "it was answered");
        }
    }
}

#[test]
fn a_held_peer_gets_nothing_until_it_is_admitted() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peer = Peer::idle(&bus);
    for _ in 0..ROUNDS {
        let invocation = deliver(port.as_mut());
        assert_eq!(peer.receive().invocation, invocation);
        let held = Descriptor { invocation, flags: flags::HOLD, ..Descriptor::default() };
        assert_eq!(peer.send(&to_bytes(&held)), Ok(32));
        assert_eq!(answer(port.as_mut()).flags, flags::HOLD);
        assert!(!bus.has_idle(FUNCTION) && !bus.retire(peer.id));
        assert_eq!(port.send(FUNCTION, &descriptor(new_invocation())).unwrap(), Sent::NoIdlePeer);
        assert!(bus.admit(peer.id) && !bus.admit(peer.id));
    }
}

/// A new peer, not admitted, holds nothing and may send nothing.
#[test]
fn a_peer_that_speaks_before_it_is_admitted_is_reported() {
    let Some(bus) = bus() else { return };
    let peer = Peer::new(&bus);
    assert_eq!(peer.send(&good(5)), Ok(32));
    assert_eq!(fault(&bus), Fault { peer: peer.id, kind: FaultKind::NotItsInvocation });
}

/// Pages that all TCP sockets of the machine hold, as the kernel counts them.
pub(crate) fn tcp_pages() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").expect("sockstat");
    let line = text.lines().find(|line| line.starts_with("TCP:")).expect("a line of TCP");
    let mut words = line.split_whitespace().skip_while(|word| *word != "mem");
    words.nth(1).and_then(|word| word.parse().ok()).expect("mem")
}

/// A million sends after the one that was due: the peer soon can't send any more, and the kernel holds no more
/// memory for it than a TCP connection's buffers.
#[test]
fn a_flood_stops_at_its_credit() {
    const SENDS: usize = 1_000_000;
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peer = Peer::idle(&bus);
    let invocation = deliver(port.as_mut());
    assert_eq!(peer.receive().invocation, invocation);
    let before = tcp_pages();
    let accepted = (0..SENDS).filter(|_| peer.send(&good(invocation)).is_ok()).count();
    let held = tcp_pages().saturating_sub(before);
    println!("{accepted} of {SENDS} sends were taken; TCP holds {held} pages more");
    assert!(accepted < SENDS / 4, "{accepted} sends were taken");
    assert!(held * 4096 < 16 << 20, "TCP holds {held} pages more");
    assert_eq!(answer(port.as_mut()).invocation, invocation, "the first one");
    assert!(!readable(port.fd()), "and no other");
    assert_eq!(fault(&bus), Fault { peer: peer.id, kind: FaultKind::NotItsInvocation });
    assert_eq!(bus.count(Counter::Answered), 1);
    assert_eq!(bus.detach(peer.id), None);
    drop(peer);
}

/// The hub's side of the same: what a busy or dead function is sent doesn't pile up.
#[test]
fn bounced_messages_take_no_memory() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peer = Peer::idle(&bus);
    let invocation = deliver(port.as_mut());
    let before = tcp_pages();
    for _ in 0..100_000 {
        assert_eq!(port.send(FUNCTION, &descriptor(new_invocation())).expect("send"), Sent::NoIdlePeer);
    }
    assert!(tcp_pages().saturating_sub(before) * 4096 < 16 << 20);
    assert_eq!(peer.receive().invocation, invocation);
    peer.answer(invocation);
    assert_eq!(answer(port.as_mut()).source, peer.id.slot);
}
