//! Numbers, not assertions: `cargo test --release -p shm-bus --test sockmap_kernel -- --ignored --nocapture`.

use std::thread;
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use shm_bus::Descriptor;
use shm_bus::transport::sockmap::SockmapEndpoint;
use shm_bus::transport::{Endpoint, Sent, Transport};
use spry_ebpf_common::PORT_BIT;

use crate::rig::*;

fn run_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &set).expect("affinity");
}

fn percentile(sorted: &[u64], per_mille: usize) -> f64 {
    sorted[(sorted.len() - 1) * per_mille / 1000] as f64 / 1000.0
}

#[test]
#[ignore = "a measurement"]
fn round_trip() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    for (name, cpu) in [("one core", 0), ("two cores", 1)] {
        let mut attached = bus.attach(FUNCTION).expect("attach");
        let mut endpoint = SockmapEndpoint::new(attached.endpoint.pop().expect("an endpoint"));
        let peer = thread::spawn(move || {
            run_on(cpu);
            while let Ok(Some(descriptor)) = endpoint.receive() {
                if endpoint.send(&descriptor).is_err() {
                    break;
                }
            }
        });
        run_on(0);
        assert!(bus.admit(attached.peer));
        let mut took = Vec::new();
        for round in 0..40_000_u64 {
            let sent = Descriptor { invocation: round + 1, source: PORT_BIT | 2, ..Descriptor::default() };
            let start = Instant::now();
            assert_eq!(port.send(FUNCTION, &sent).expect("send"), Sent::Delivered);
            let got = answer(port.as_mut());
            took.push(start.elapsed().as_nanos() as u64);
            assert_eq!(got.invocation, round + 1);
        }
        took.drain(..5000);
        took.sort_unstable();
        let (p50, p99) = (percentile(&took, 500), percentile(&took, 990));
        println!("round trip (poll, then recv), {name}: p50 {p50:.1} us, p99 {p99:.1} us");
        bus.detach(attached.peer);
        peer.join().expect("the peer");
    }
    let mut took: Vec<u64> = (0..500)
        .map(|_| {
            let start = Instant::now();
            let peer = Peer::idle(&bus);
            let took = start.elapsed().as_nanos() as u64;
            bus.detach(peer.id);
            took
        })
        .collect();
    took.sort_unstable();
    println!("attach and admit: p50 {:.1} us, p99 {:.1} us", percentile(&took, 500), percentile(&took, 990));
}
