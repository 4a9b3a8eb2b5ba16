//! Zygotes and instances as processes: what they hold, how they end, what hostile words do to them, what is left.

use std::os::fd::{AsFd, AsRawFd};

use crate::harness::{
    Instance, Zygote, faults_library, open_files, open_numbers, pid_of, rust_library, wait_readable,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use shm_bus::Descriptor;
use spry_wire::control::{self, Fork, FromInstance, FromZygote, SegmentSpec, ToZygote};
use spry_wire::frame::RequestHead;

fn native() -> Zygote {
    Zygote::native(&rust_library("example_nop")).expect("load")
}

fn python() -> Zygote {
    Zygote::python("held = open('/etc/hostname')\ndef main(params):\n    return 'served'\n").expect("load")
}

fn frame() -> Vec<u8> {
    let mut frame = Vec::new();
    RequestHead { call_id: "c", method: "GET", ..RequestHead::default() }.encode(&mut frame).expect("encode");
    frame
}

/// After the hello: standard streams, what tells whether they hold something, control socket, outbox, bus. Nothing of the zygote's, nothing that the
/// function opened while it was loaded.
#[test]
fn an_instance_holds_what_it_was_given_and_nothing_else() {
    for zygote in [native(), python()] {
        let instance = zygote.fork();
        let files = open_files(instance.pid);
        let expected = [
            ("/dev/null", 1),
            ("pipe", 2),
            ("anon_inode", 1),
            ("socket", 2),
            ("/memfd:spry-test-outbox (deleted)", 1),
        ];
        let expected = expected.map(|(kind, count)| (kind.to_owned(), count));
        assert_eq!(files, expected.into(), "{}", zygote.runtime);
    }
}

/// The instance is our child (we wait for it), in the zygote's place only by descent; its thread knows its own id.
#[test]
fn an_instance_is_a_child_of_spryd() {
    let zygote = native();
    let mut instance = zygote.fork();
    let status = std::fs::read_to_string(format!("/proc/{}/status", instance.pid)).expect("status");
    assert!(status.contains(&format!("PPid:\t{}\n", std::process::id())), "{status}");
    kill(Pid::from_raw(instance.pid), Signal::SIGKILL).expect("kill");
    assert_eq!(instance.wait(), WaitStatus::Signaled(Pid::from_raw(instance.pid), Signal::SIGKILL, false));
    // Its control socket told spryd, too.
    wait_readable(instance.control.as_fd(), "the dead instance");
    assert!(control::receive::<FromInstance>(instance.control.as_fd()).expect("receive").is_none());
}

#[test]
fn an_instance_ends_when_its_bus_is_closed() {
    for zygote in [native(), python()] {
        let mut instance = zygote.fork();
        instance.detach();
        assert_eq!(instance.wait(), WaitStatus::Exited(Pid::from_raw(instance.pid), 0));
    }
}

#[test]
fn a_zygote_ends_with_its_control_socket_and_its_instances_live_on() {
    for zygote in [native(), python()] {
        let mut instance = zygote.fork();
        assert_eq!(zygote.close().code(), Some(0));
        assert!(
            instance.call(&RequestHead { method: "GET", ..RequestHead::default() }, b"").failure.is_none()
        );
    }
    let killed = native();
    let mut instance = killed.fork();
    kill(Pid::from_raw(killed.pid()), Signal::SIGKILL).expect("kill");
    drop(killed);
    assert!(instance.call(&RequestHead { method: "GET", ..RequestHead::default() }, b"").failure.is_none());
}

#[test]
fn an_interrupt_at_the_terminal_ends_nothing() {
    for zygote in [native(), python()] {
        let mut instance = zygote.fork();
        for pid in [zygote.pid(), instance.pid] {
            kill(Pid::from_raw(pid), Signal::SIGINT).expect("kill");
        }
        assert!(
            instance.call(&RequestHead { method: "GET", ..RequestHead::default() }, b"").failure.is_none()
        );
        drop(zygote.fork());
    }
}

/// spryd is trusted, its memory and descriptors are right; but were they not, the call would fail in words.
#[test]
fn a_descriptor_or_frame_that_is_wrong_fails_the_call() {
    let zygote = native();
    let mut instance = zygote.fork();
    let unseen = "the input lies in a segment that this function may not see: nobody has granted it";
    let outside = "the input lies outside its segment: ";
    type Change = dyn Fn(&mut Descriptor);
    let wrong: [(&Change, &str); 6] = [
        (&|descriptor| descriptor.segment = 99, unseen),
        (&|descriptor| descriptor.generation += 1, unseen),
        (&|descriptor| descriptor.offset = u32::MAX, outside),
        (&|descriptor| descriptor.length = u32::MAX, outside),
        (&|descriptor| (descriptor.offset, descriptor.length) = (32 << 20, 1), outside),
        // Its own outbox, where nothing was written yet.
        (&|descriptor| (descriptor.segment, descriptor.generation) = (4, 9), "the request can't be read: "),
    ];
    for (change, why) in wrong {
        instance.send(&frame(), Some(change));
        let answer = instance.answer().expect("an answer");
        assert!(answer.failed().starts_with(why), "{}", answer.failed());
        instance.release.post(answer.descriptor.offset);
    }
    let whole = frame();
    let mut long_head = whole.clone();
    long_head[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut not_text = whole.clone();
    let call_id_at = 20;
    not_text[call_id_at] = 0xff;
    for bytes in [&whole[..1], &whole[..whole.len() - 1], &long_head, &not_text, &[0; 64], &[0xff; 200]] {
        instance.send(bytes, None);
        let answer = instance.answer().expect("an answer");
        assert!(answer.failed().starts_with("the request can't be read: "), "{}", answer.failed());
        instance.release.post(answer.descriptor.offset);
    }
    instance.send(&whole, None);
    assert!(instance.answer().expect("an answer").failure.is_none());
}

#[test]
fn the_outbox_says_which_invocation_was_begun() {
    let zygote = native();
    let mut instance = zygote.fork();
    assert_eq!(shm_bus::begun::read(&instance.outbox), None);
    for _ in 0..3 {
        instance.send(&frame(), None);
        let answer = instance.answer().expect("an answer");
        let begun = shm_bus::begun::read(&instance.outbox).expect("begun");
        assert_eq!(begun.0, answer.descriptor.invocation);
    }
}

fn fork_message(transport: &str, outbox_len: u32) -> ToZygote {
    let spec = |len| SegmentSpec { id: 1, generation: 1, len };
    ToZygote::Fork(Fork {
        instance: 77,
        transport: transport.to_owned(),
        inbox: spec(4096),
        outbox: spec(outbox_len),
        payload_max: 1024,
        rewind: false,
        scope_signals: false,
    })
}

#[test]
fn a_fork_without_its_descriptors_is_refused_by_name() {
    let zygote = native();
    let null = std::fs::File::open("/dev/null").expect("open");
    let before = open_numbers(zygote.pid());
    for count in [0, 1, 7] {
        let fds = vec![null.as_fd(); count];
        control::send(zygote.control.as_fd(), &fork_message("broker", 4096), &fds).expect("send");
        let Some((FromZygote::ForkFailed { instance: 77, step, errno }, _)) = zygote.hear() else {
            panic!("no refusal");
        };
        assert_eq!((step.as_str(), errno), ("receive descriptors", libc::EBADMSG));
    }
    assert_eq!(open_numbers(zygote.pid()), before, "nothing of it stays open");
    drop(zygote.fork());
}

/// Setting up fails by the name of its step, and the failed instance is gone.
#[test]
fn a_failed_step_is_told_by_its_name() {
    let zygote = native();
    let null = std::fs::File::open("/dev/null").expect("open");
    let inbox = shm_bus::segment::create("spry-test-inbox", 4096).expect("create");
    let outbox = shm_bus::segment::create("spry-test-outbox", 4096).expect("create");
    let page = shm_bus::release::ReleaseWriter::create("spry-test-release").expect("create");
    let null = null.as_fd();
    let (good_inbox, good_outbox, good_page) = (inbox.as_fd(), outbox.as_fd(), page.fd());
    for (fds, transport, outbox_len, step) in [
        ([null, good_outbox, good_page], "broker", 4096, "map inbox"),
        ([good_inbox, null, good_page], "broker", 4096, "map and seal outbox"),
        ([good_inbox, good_outbox, null], "broker", 4096, "map and seal outbox"),
        ([good_inbox, good_outbox, good_page], "broker", 8192, "map and seal outbox"),
        ([good_inbox, good_outbox, good_page], "telepathy", 4096, "open bus endpoint"),
    ] {
        let (ours, theirs) = nix::sys::socket::socketpair(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            None,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        )
        .expect("socketpair");
        let all = [theirs.as_fd(), null, null, null, fds[0], fds[1], fds[2], null];
        control::send(zygote.control.as_fd(), &fork_message(transport, outbox_len), &all).expect("send");
        drop(theirs);
        let Some((FromZygote::Forked { .. }, pidfds)) = zygote.hear() else { panic!("not forked") };
        let pid = pid_of(&pidfds[0]);
        wait_readable(ours.as_fd(), "the instance");
        match control::receive::<FromInstance>(ours.as_fd()).expect("receive") {
            Some((FromInstance::Failed { step: said, message }, _)) => {
                assert_eq!(said, step);
                assert!(!message.is_empty());
            }
            other => panic!("{other:?} instead of a failure of {step}"),
        }
        let end = nix::sys::wait::waitpid(Pid::from_raw(pid), None).expect("wait");
        assert_eq!(end, WaitStatus::Exited(Pid::from_raw(pid), 1));
    }
}

/// 1,000 forks, each served or failed, ended in turn by each way there is: nothing is left in the zygote or here.
#[test]
fn a_thousand_forks_leave_nothing() {
    let faults = Zygote::native(&faults_library()).expect("load");
    for zygote in [faults, python()] {
        let before = (open_files(zygote.pid()), resident_kib(zygote.pid()));
        for round in 0..500 {
            let mut instance = Instance::make(&zygote, 4096, 1 << 16);
            if round % 2 == 0 {
                instance.send(&frame(), None);
                assert!(instance.answer().is_some());
            }
            match round % 3 {
                0 => instance.detach(),
                1 => kill(Pid::from_raw(instance.pid), Signal::SIGKILL).expect("kill"),
                _ => kill(Pid::from_raw(instance.pid), Signal::SIGTERM).expect("kill"),
            }
            instance.wait();
        }
        // It closes the last one's when it has told of it.
        let started = std::time::Instant::now();
        while open_files(zygote.pid()) != before.0 {
            assert!(started.elapsed().as_secs() < 60, "descriptors of the zygote");
            std::thread::yield_now();
        }
        let after = resident_kib(zygote.pid());
        assert!(after < before.1 + 2048, "the zygote grew from {} to {after} KiB", before.1);
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", zygote.pid()));
        assert_eq!(children.unwrap_or_default(), "", "children of the zygote");
    }
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    line.split_whitespace().nth(1).expect("number").parse().expect("number")
}

#[test]
fn started_by_hand_it_says_what_it_is() {
    let zygote = native();
    let program = std::fs::read_link(format!("/proc/{}/exe", zygote.pid())).expect("exe");
    let output = std::process::Command::new(program).output().expect("run");
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("spryd starts it"));
    assert!(zygote.control.as_raw_fd() > 2);
}
