//! Inputs that somebody hostile has named or written: the invocation fails in words, the instance serves on.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use spry_wire::frame::{Joining, ListHead, Origin, Part, Place, ResponseHead};

use crate::chains::{kitchen, list, mapped, request};
use crate::harness::{Foreign, Grant, Instance};

/// The step fails with these words, and the next one is served.
#[track_caller]
fn fails(instance: &mut Instance, place: Place, why: &str) {
    let answer = instance.step(place);
    assert!(answer.failed().starts_with(why), "{:?} instead of {why:?}", answer.failed());
    instance.release.post(answer.descriptor.offset);
    let (good, _) = request(instance, "/loaded", b"");
    let answer = instance.step(good);
    assert_eq!(answer.text(), "41");
    instance.release.post(answer.descriptor.offset);
}

#[test]
fn a_segment_that_is_not_granted_as_it_should_be() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (_, origin) = request(&mut instance, "/parts", b"");
    let mut other = Foreign::new(20, 8192);
    let place = other.respond(origin, &[], b"a response");
    fails(&mut instance, place, "the input lies in a segment that this function may not see: nobody has");

    let unmapped = "the input lies in a segment that can't be mapped: the segment ";
    let grant = |fd: &dyn AsFd, len, copies| {
        let fd = fd.as_fd().try_clone_to_owned().expect("dup");
        Grant::Segment { fd, len, copies }
    };
    let unsealed = tempfile::tempfile().expect("a file");
    unsealed.set_len(8192).expect("size");
    let memfd =
        nix::sys::memfd::memfd_create("spry-test-foreign", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING)
            .expect("memfd");
    nix::unistd::ftruncate(&memfd, 8192).expect("size");
    let fd = other.writer.fd();
    for (grant, why) in [
        (grant(&fd, 4096, 1), format!("{unmapped}has 8192 bytes, not 4096")),
        (grant(&fd, 16384, 1), format!("{unmapped}has 8192 bytes, not 16384")),
        (grant(&fd, 0, 1), format!("{unmapped}has 8192 bytes, not 0")),
        (grant(&fd, 8192, 0), "the input's segment was granted, but 0 descriptors came".to_owned()),
        (grant(&fd, 8192, 2), "the input's segment was granted, but 2 descriptors came".to_owned()),
        (grant(&unsealed, 8192, 1), format!("{unmapped}lacks the seals")),
        (grant(&memfd, 8192, 1), format!("{unmapped}lacks the seals SHRINK and GROW")),
    ] {
        instance.shelf.put(other.name, grant);
        fails(&mut instance, place, &why);
        assert_eq!(mapped(instance.pid), 0);
    }
    instance.shelf.put(other.name, other.grant());
    assert_eq!(instance.step(place).text(), "=a response;a response", "nothing bad was remembered");
    // Another incarnation is another segment.
    let later = Place { generation: place.generation + 1, ..place };
    fails(&mut instance, later, "the input lies in a segment that this function may not see");

    let mut last = Foreign::new(21, 4096);
    instance.shelf.put(last.name, Grant::Close);
    let place = last.respond(origin, &[], b"");
    fails(&mut instance, place, "the input's segment can't be asked for: ");
}

#[test]
fn places_that_are_not_within_their_segment() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (first, origin) = request(&mut instance, "/parts", b"body");
    let mut other = Foreign::new(20, 4096);
    instance.shelf.put(other.name, other.grant());
    let outside = "the input lies outside its segment: ";
    let good = other.respond(origin, &[], b"");
    for (offset, length) in [(4096, 1), (4095, 2), (0, 4097), (u32::MAX, u32::MAX), (u32::MAX, 0)] {
        let bad = Place { offset, length, ..good };
        fails(&mut instance, bad, outside);
        // What doesn't even fit into 32 bits is refused by whoever reads the list.
        let why = if offset.checked_add(length).is_some() { outside } else { "the request can't be read: " };
        let listed = list(&mut instance, origin, Joining::Framed, &[("", good), ("", bad)]);
        fails(&mut instance, listed, why);
    }
    for bad in [
        Origin { offset: 32 << 20, length: 64 },
        Origin { offset: 0, length: u32::MAX },
        Origin { offset: u32::MAX, length: u32::MAX },
    ] {
        let place = other.respond(bad, &[], b"");
        fails(&mut instance, place, outside);
    }
    // The client's body, another kind of frame, and nothing at all are no requests.
    let no_request = "the request that the input goes back to can't be read: ";
    let listed = list(&mut instance, origin, Joining::Json, &[]);
    for (offset, length) in [
        (first.offset + first.length - 4, 4),
        (listed.offset, listed.length),
        (first.offset, 8),
        (first.offset, 0),
    ] {
        let place = other.respond(Origin { offset, length }, &[], b"");
        fails(&mut instance, place, no_request);
    }
}

#[test]
fn frames_by_those_who_do_not_write_them() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (first, origin) = request(&mut instance, "/parts", b"body");
    let mut other = Foreign::new(20, 1 << 20);
    instance.shelf.put(other.name, other.grant());
    let elsewhere = "the input is of a kind that isn't written where it lies";
    let mut frame = Vec::new();
    ResponseHead { status: 200, origin, headers: Vec::new() }.encode(&mut frame).expect("encode");
    let in_inbox = instance.put(&frame);
    fails(&mut instance, in_inbox, elsewhere);
    // A list that would have 2,048 segments asked for.
    let part = |id: u32| Part { name: "", place: Place { segment: 1000 + id, ..first } };
    let parts = (0..2048).map(part).collect();
    ListHead { origin, joining: Joining::Json, parts }.encode(&mut frame).expect("encode");
    let forged = other.put(&frame);
    instance.shelf.asked();
    fails(&mut instance, forged, elsewhere);
    assert_eq!(instance.shelf.asked(), [other.name], "none of them");
    let mut bytes = vec![0; first.length as usize];
    instance.inbox.copy_into(u64::from(first.offset), &mut bytes).expect("copy");
    let forged = other.put(&bytes);
    fails(&mut instance, forged, elsewhere);
}

/// Parts that lie on top of each other could add up to more than there is memory.
#[test]
fn a_list_that_is_larger_than_a_payload() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (_, origin) = request(&mut instance, "/parts", b"");
    let other = Foreign::new(20, 4 << 20);
    instance.shelf.put(other.name, other.grant());
    let (segment, generation) = other.name;
    let whole = Place { segment, generation, offset: 0, length: 4 << 20 };
    for count in [2, 2048] {
        let listed = list(&mut instance, origin, Joining::Framed, &vec![("", whole); count]);
        let len = count as u64 * (4 + (4 << 20));
        let why = format!("the input of {len} bytes is over the limit of 6291456 bytes");
        fails(&mut instance, listed, &why);
    }
    assert_eq!(mapped(instance.pid), 0, "nothing was even looked at");
}

/// The writer changes every byte of its frame while it is read, again and again.
#[test]
fn frames_that_change_while_they_are_read() {
    let zygote = kitchen();
    let mut instance = zygote.fork();
    let (_, origin) = request(&mut instance, "/headers", b"");
    let mut other = Foreign::new(20, 4096);
    instance.shelf.put(other.name, other.grant());
    let headers: Vec<(&str, &[u8])> = vec![("x-one", b"1"), ("x-two", b"22"), ("x-three", b"333")];
    let place = other.respond(origin, &headers, b"body");
    let mut good = vec![0; place.length as usize];
    other.writer.copy_into(0, &mut good).expect("copy");
    let over = AtomicBool::new(false);
    let (mut read, mut failed) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 1u64;
            while !over.load(Ordering::Relaxed) {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (state >> 33) % u64::from(place.length);
                other.writer.write_at(at, &[(state >> 55) as u8]).expect("write");
                if state >> 60 < 4 {
                    other.writer.write_at(0, &good).expect("write");
                }
            }
        });
        while read == 0 || failed == 0 || read + failed < 3000 {
            let answer = instance.step(place);
            *(if answer.failure.is_some() { &mut failed } else { &mut read }) += 1;
            instance.release.post(answer.descriptor.offset);
        }
        over.store(true, Ordering::Relaxed);
    });
    other.writer.write_at(0, &good).expect("write");
    assert!(instance.step(place).text().starts_with("x-one: 1\nx-two: 22\nx-three: 333\n"));
}
