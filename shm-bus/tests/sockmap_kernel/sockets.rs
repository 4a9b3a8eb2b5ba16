//! What a peer can do to its socket, and where the sockets are.

use std::os::fd::{AsFd, AsRawFd};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    MsgFlags, Shutdown, SockaddrIn, bind, connect, getpeername, getsockname, send, shutdown,
};
use nix::unistd::Pid;
use shm_bus::ids::InvocationId;
use shm_bus::transport::{Fault, FaultKind, Sent, Transport};
use spry_ebpf_common::{Counter, MAX_PORTS, address_of};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::rig::*;

const ROUNDS: u64 = 100;

/// `connect` to `AF_UNSPEC`: a TCP socket becomes as new.
fn disconnect(socket: impl AsFd) {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as _, sa_data: [0; 14] };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: a whole `sockaddr` that outlives the call.
    let done = unsafe { libc::connect(socket.as_fd().as_raw_fd(), &raw const unspecified, len) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn at(address: u32, port: u16) -> SockaddrIn {
    SocketAddrV4::new(Ipv4Addr::from(address), port).into()
}

/// A disconnected socket stays in the map (since Linux 5.16), so its sends still run the program, with
/// whatever address it has bound meanwhile: what keeps it from being taken for another is that it isn't
/// the connection which the hub made.
#[test]
fn a_disconnected_socket_finds_nobody_and_injects_nothing() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let victim = Peer::idle(&bus);
    for _ in 0..ROUNDS {
        let rogue = Peer::idle(&bus);
        let hub: SockaddrIn = getpeername(rogue.socket.as_raw_fd()).expect("getpeername");
        let its: SockaddrIn = getsockname(victim.socket.as_raw_fd()).expect("getsockname");
        // Both are busy, so that an answer in the victim's name would be one.
        let invocations = [deliver(port.as_mut()), deliver(port.as_mut())];
        disconnect(&rogue.socket);
        assert_eq!(fault(&bus), Fault { peer: rogue.id, kind: FaultKind::Closed });
        // Where the hub listened, where the victim is, a port's address, an address of the host.
        let hub_port = at(address_of(PORT.0.into()), hub.port());
        let targets = [hub, its, hub_port, at(0x7f00_0001, 22), at(0x7f00_0001, 8080)];
        for target in targets {
            let connected = connect(rogue.socket.as_raw_fd(), &target);
            assert_eq!(connected, Err(nix::Error::ECONNREFUSED), "{target}");
        }
        disconnect(&rogue.socket);
        // In the victim's place: its address is free to take, its connection isn't.
        bind(rogue.socket.as_raw_fd(), &at(address_of(MAX_PORTS + victim.id.slot), 0)).expect("bind");
        for invocation in invocations {
            let bytes = to_bytes(&descriptor(invocation));
            let sent = send(rogue.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL);
            assert_eq!(sent, Err(nix::Error::EPIPE));
            assert!(connect(rogue.socket.as_raw_fd(), &hub).is_err());
        }
        assert!(!readable(port.fd()));
        let rogue_held = bus.detach(rogue.id).expect("it held one").0;
        let victims = victim.receive().invocation;
        assert!(invocations.contains(&rogue_held.0) && rogue_held != InvocationId(victims));
        victim.answer(victims);
        assert_eq!(answer(port.as_mut()).invocation, victims);
    }
    // The victim's own, and nothing in its name.
    assert_eq!(bus.count(Counter::Answered), ROUNDS);
}

#[test]
fn a_half_closed_socket_is_reported() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    for how in [Shutdown::Write, Shutdown::Both] {
        let peer = Peer::idle(&bus);
        let invocation = deliver(port.as_mut());
        shutdown(peer.socket.as_raw_fd(), how).expect("shutdown");
        assert_eq!(fault(&bus), Fault { peer: peer.id, kind: FaultKind::Closed });
        assert_eq!(bus.detach(peer.id), Some((InvocationId(invocation), PORT)));
    }
}

/// A peer that ends with its invocation unread, and one that ends while idle.
#[test]
fn a_dead_target_loses_nothing() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    for round in 0..300 {
        let doomed = Peer::idle(&bus);
        let invocation = deliver(port.as_mut());
        let id = doomed.id;
        if round % 2 == 0 {
            assert_eq!(doomed.receive().invocation, invocation);
        }
        drop(doomed);
        assert_eq!(fault(&bus), Fault { peer: id, kind: FaultKind::Closed });
        assert_eq!(bus.detach(id), Some((InvocationId(invocation), PORT)));

        // Idle, preferred and dead: the living one gets it.
        let (dead, living) = (Peer::idle(&bus), Peer::idle(&bus));
        for cpu in 0..16 {
            bus.set_home(dead.id, Some(cpu));
        }
        let dead_id = dead.id;
        drop(dead);
        let invocation = deliver(port.as_mut());
        assert_eq!(living.receive().invocation, invocation);
        living.answer(invocation);
        assert_eq!(answer(port.as_mut()).source, living.id.slot);
        assert!(bus.retire(living.id));
        assert_eq!(bus.detach(living.id), None);
        // Nobody is left: the caller keeps it.
        let refused = port.send(FUNCTION, &descriptor(new_invocation())).expect("send");
        assert_eq!(refused, Sent::NoIdlePeer);
        assert_eq!(fault(&bus), Fault { peer: dead_id, kind: FaultKind::Closed });
        assert_eq!(bus.detach(dead_id), None);
    }
}

#[test]
fn the_peer_at_home_is_preferred() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let mut here = CpuSet::new();
    here.set(0).expect("CPU 0");
    sched_setaffinity(Pid::from_raw(0), &here).expect("run on CPU 0");
    let peers: Vec<Peer> = (0..6).map(|_| Peer::idle(&bus)).collect();
    for (peer, cpu) in peers.iter().zip([1, 1, 1, 1, 0, 1]) {
        bus.set_home(peer.id, Some(cpu));
    }
    for _ in 0..500 {
        let near = deliver(port.as_mut());
        assert_eq!(peers[4].receive().invocation, near);
        let far = deliver(port.as_mut());
        assert_eq!(bus.holder(FUNCTION, InvocationId(far)), Some(peers[0].id), "rather another than none");
        assert_eq!(peers[0].receive().invocation, far);
        peers[0].answer(far);
        peers[4].answer(near);
        let mut got = 0;
        while got < 2 {
            got += events(port.as_mut()).len();
        }
    }
}

/// Everything is used, and given back.
#[test]
fn slots_run_out_and_come_back() {
    let Some(bus) = bus() else { return };
    for _ in 0..5 {
        let peers: Vec<Peer> = (0..64).map(|_| Peer::idle(&bus)).collect();
        assert!(bus.attach(FUNCTION).is_err());
        let port = bus.open_port(PORT).expect("port");
        assert!(bus.open_port(PORT).is_err(), "it is open");
        drop(port);
        drop(bus.open_port(PORT).expect("a port opens again"));
        for peer in &peers {
            assert!(bus.retire(peer.id));
            assert_eq!(bus.detach(peer.id), None);
        }
    }
}
