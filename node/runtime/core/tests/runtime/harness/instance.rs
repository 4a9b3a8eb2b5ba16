//! An instance, from spryd's side: its segments, its pipes, its place on the bus.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use shm_bus::Descriptor;
use shm_bus::alloc::Allocator;
use shm_bus::ids::{FunctionIndex, InvocationId, PeerId, PortIndex, RouteIndex, TrailIndex};
use shm_bus::release::ReleaseWriter;
use shm_bus::segment::{Reader, Writer, create, require_sealed};
use shm_bus::transport::{Event, Port, Sent, Transport};
use spry_ebpf_common::{PORT_BIT, flags, status};
use spry_wire::control::{self, Fork, FromInstance, FromZygote, SegmentSpec, ToZygote};
use spry_wire::frame::{Frame, Origin, Place, RequestHead, ResponseHead};

use super::segments::Shelf;
use super::zygote::{Zygote, pipe, seqpacket};
use super::{drain, pid_of, wait_readable};

/// A chain of this function alone.
const CHAIN: RouteIndex = RouteIndex(0);
const TRAIL: TrailIndex = TrailIndex { port: PortIndex(0), index: 0 };
const FUNCTION: FunctionIndex = FunctionIndex(0);
const INBOX: SegmentSpec = SegmentSpec { id: 3, generation: 5, len: 32 << 20 };
const OUTBOX: SegmentSpec = SegmentSpec { id: 4, generation: 9, len: 0 };

/// A running instance; killed and reaped when dropped.
pub(crate) struct Instance {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) control: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) inbox: Writer,
    pub(crate) outbox: Reader,
    pub(crate) release: ReleaseWriter,
    /// What it may map, and what it has asked for.
    pub(crate) shelf: Shelf,
    /// What it has emitted, and nobody has taken.
    pub(crate) emitted: Vec<Descriptor>,
    blocks: Allocator,
    transport: Arc<dyn Transport>,
    port: Box<dyn Port>,
    pub(crate) peer: PeerId,
    reaped: bool,
}

/// What came back for one invocation.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) descriptor: Descriptor,
    pub(crate) status: u16,
    pub(crate) origin: Option<Origin>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The text of a failure.
    pub(crate) failure: Option<String>,
    /// The answer is a frame that it didn't write: its input.
    pub(crate) passed: bool,
    pub(crate) held: bool,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|(found, value)| (found == name).then_some(value.as_str()))
    }
    /// The failure's text; panics when it is none.
    pub(crate) fn failed(&self) -> &str {
        self.failure.as_deref().unwrap_or_else(|| panic!("not a failure: {self:?}"))
    }
}

/// An instance that was asked for.
pub(crate) struct Asked {
    number: u64,
    outbox_fd: OwnedFd,
    control: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    inbox: Writer,
    outbox: Reader,
    release: ReleaseWriter,
    transport: Arc<dyn Transport>,
    port: Box<dyn Port>,
    peer: PeerId,
}

impl Asked {
    /// Waits for its hello. Zygotes answer in the order in which they were asked.
    pub(crate) fn born(self, zygote: &Zygote) -> Result<Instance, FromInstance> {
        let Self {
            number,
            outbox_fd,
            control,
            stdout,
            stderr,
            inbox,
            outbox,
            release,
            transport,
            port,
            peer,
        } = self;
        let pidfd = match zygote.hear() {
            Some((FromZygote::Forked { instance }, mut fds)) if instance == number && fds.len() == 1 => {
                fds.remove(0)
            }
            other => panic!("{other:?} came for Fork; the log: {}", drain(&zygote.log)),
        };
        let pid = pid_of(&pidfd);
        let blocks = Allocator::new(INBOX.len);
        let instance = Instance {
            pid,
            pidfd,
            control,
            stdout,
            stderr,
            inbox,
            outbox,
            release,
            shelf: Shelf::default(),
            emitted: Vec::new(),
            blocks,
            transport,
            port,
            peer,
            reaped: false,
        };
        wait_readable(instance.control.as_fd(), "the instance");
        match control::receive::<FromInstance>(instance.control.as_fd()).expect("receive from the instance") {
            Some((FromInstance::Hello, _)) => {}
            Some((failed, _)) => return Err(failed),
            None => panic!("the instance ended: {}{}", drain(&instance.stderr), drain(&zygote.log)),
        }
        require_sealed(&outbox_fd).expect("the instance sealed its outbox");
        assert!(instance.transport.admit(peer), "admitted");
        Ok(instance)
    }
}

impl Instance {
    pub(crate) fn make(zygote: &Zygote, payload_max: u64, outbox_len: u32) -> Self {
        Self::try_make(zygote, payload_max, outbox_len)
            .unwrap_or_else(|failed| panic!("no instance: {failed:?}"))
    }

    /// Forks an instance and waits for its hello.
    pub(crate) fn try_make(zygote: &Zygote, payload_max: u64, outbox_len: u32) -> Result<Self, FromInstance> {
        Self::ask(zygote, payload_max, outbox_len).born(zygote)
    }

    /// Asks for an instance, and waits for nothing.
    pub(crate) fn ask(zygote: &Zygote, payload_max: u64, outbox_len: u32) -> Asked {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let transport = transport();
        let port = transport.open_port(PortIndex(0)).expect("open port");
        transport.set_route(CHAIN, &[FUNCTION]).expect("set route");
        let attachment = transport.attach(FUNCTION).expect("attach");
        let (control, their_control) = seqpacket();
        let (stdout, their_stdout) = pipe();
        let (stderr, their_stderr) = pipe();
        let watch = spry_wire::output::watch([stdout.as_fd(), stderr.as_fd()]).expect("watch the pipes");
        let inbox_fd = create("spry-test-inbox", u64::from(INBOX.len)).expect("inbox");
        let inbox = Writer::map(inbox_fd, u64::from(INBOX.len)).expect("map inbox");
        let outbox_fd = create("spry-test-outbox", u64::from(outbox_len)).expect("outbox");
        let outbox = Reader::map(&outbox_fd, u64::from(outbox_len)).expect("map outbox");
        let release = ReleaseWriter::create("spry-test-release").expect("release page");
        let request = Fork {
            instance: number,
            transport: transport.kind().name().to_owned(),
            inbox: INBOX,
            outbox: SegmentSpec { len: outbox_len, ..OUTBOX },
            payload_max,
            rewind: false,
            scope_signals: false,
        };
        let mut fds = vec![
            their_control.as_fd(),
            their_stdout.as_fd(),
            their_stderr.as_fd(),
            watch.as_fd(),
            inbox.fd(),
            outbox_fd.as_fd(),
            release.fd(),
        ];
        fds.extend(attachment.endpoint.iter().map(AsFd::as_fd));
        control::send(zygote.control.as_fd(), &ToZygote::Fork(request), &fds).expect("send Fork");
        drop((their_control, their_stdout, their_stderr));
        drop(attachment.endpoint);
        let peer = attachment.peer;
        Asked { number, outbox_fd, control, stdout, stderr, inbox, outbox, release, transport, port, peer }
    }

    /// Sends a request frame and waits for the answer; releases its block at once.
    pub(crate) fn call(&mut self, head: &RequestHead<'_>, body: &[u8]) -> Answer {
        let answer = self.call_keeping(head, body);
        self.release.post(answer.descriptor.offset);
        answer
    }

    /// The same, but the answer's block stays taken, as with a client that is slow to read.
    pub(crate) fn call_keeping(&mut self, head: &RequestHead<'_>, body: &[u8]) -> Answer {
        let mut frame = Vec::new();
        head.encode(&mut frame).expect("encode");
        frame.extend_from_slice(body);
        self.send(&frame, None);
        self.answer().expect("an answer")
    }

    /// Puts a frame into the inbox and sends its descriptor, or one that `change` makes of it.
    pub(crate) fn send(&mut self, frame: &[u8], change: Option<&dyn Fn(&mut Descriptor)>) {
        let place = self.put(frame);
        self.blocks.free(place.offset);
        let mut descriptor = describe(place);
        if let Some(change) = change {
            change(&mut descriptor);
        }
        assert_eq!(self.port.send(FUNCTION, &descriptor).expect("send"), Sent::Delivered);
    }

    /// Puts a frame into the inbox, where it stays.
    pub(crate) fn put(&mut self, frame: &[u8]) -> Place {
        let block = self.blocks.allocate(frame.len() as u32).expect("room in the inbox");
        self.inbox.write_at(u64::from(block.offset), frame).expect("write frame");
        let SegmentSpec { id: segment, generation, .. } = INBOX;
        Place { segment, generation, offset: block.offset, length: frame.len() as u32 }
    }

    /// Sends what lies at a place as a step of a chain, and waits for the answer, whose block stays taken.
    pub(crate) fn step(&mut self, place: Place) -> Answer {
        let descriptor =
            Descriptor { route: CHAIN.in_descriptor(), source: TRAIL.in_descriptor(), ..describe(place) };
        self.transport.begin_trail(TRAIL, InvocationId(descriptor.invocation), u64::MAX);
        assert_eq!(self.port.send(FUNCTION, &descriptor).expect("send"), Sent::Delivered);
        self.answer().expect("an answer")
    }

    /// The next answer; `None` when the instance left the bus without one. Meanwhile it may ask for segments, and emit.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        loop {
            // Whichever comes first: an answer, the process's end, a question.
            let fds = [self.port.fd(), self.pidfd.as_fd(), self.control.as_fd()];
            let mut polled = fds.map(|fd| nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN));
            let count = nix::poll::poll(&mut polled, nix::poll::PollTimeout::from(30_000u16)).expect("poll");
            assert!(count > 0, "no answer and no end: {}", drain(&self.stderr));
            let [_, ended, asks] = polled.map(|fd| fd.any().unwrap_or(false));
            let mut events = Vec::new();
            self.port.receive(&mut events).expect("receive");
            let mut answer = None;
            for event in events {
                match event {
                    Event::Emitted(descriptor) => self.emitted.push(descriptor),
                    Event::Answer(descriptor) if answer.is_none() => answer = Some(descriptor),
                    // Held, it is to be sent on by spryd; here nobody comes after it.
                    other => panic!("{other:?}"),
                }
            }
            if let Some(descriptor) = answer {
                if descriptor.flags & flags::HOLD != 0 {
                    assert!(self.transport.admit(self.peer), "held, so not idle before");
                }
                return Some(self.read(descriptor));
            }
            if ended {
                return None;
            }
            if asks {
                self.shelf.serve(self.control.as_fd());
            }
        }
    }

    fn read(&self, descriptor: Descriptor) -> Answer {
        let (offset, length) = (u64::from(descriptor.offset), u64::from(descriptor.length));
        let held = descriptor.flags & flags::HOLD != 0;
        let mut answer = Answer {
            descriptor,
            status: 200,
            origin: None,
            headers: Vec::new(),
            body: Vec::new(),
            failure: None,
            passed: true,
            held,
        };
        let name = (descriptor.segment, descriptor.generation);
        if name == (INBOX.id, INBOX.generation) {
            let mut bytes = vec![0; descriptor.length as usize];
            self.inbox.copy_into(offset, &mut bytes).expect("within the inbox");
            let (_, body_at) = Frame::decode(&bytes).expect("the frame that was sent");
            answer.body = bytes[body_at..].to_vec();
        } else if name == (OUTBOX.id, OUTBOX.generation) {
            answer.passed = false;
            let bytes = self.outbox.copy(offset, length).expect("within the outbox");
            if descriptor.flags & status::MASK == status::FAILED {
                answer.failure = Some(String::from_utf8(bytes).expect("UTF-8"));
                return answer;
            }
            let (head, body_at) = ResponseHead::decode(&bytes).expect("a response frame");
            answer.status = head.status;
            answer.origin = Some(head.origin);
            let own = |(name, value): &(&str, &[u8])| {
                ((*name).to_owned(), String::from_utf8_lossy(value).into_owned())
            };
            answer.headers = head.headers.iter().map(own).collect();
            answer.body = bytes[body_at..].to_vec();
        }
        answer
    }

    /// What the function has written to stdout since the last look.
    pub(crate) fn out(&self) -> String {
        drain(&self.stdout)
    }

    /// The same for stderr.
    pub(crate) fn err(&self) -> String {
        drain(&self.stderr)
    }

    /// Closes spryd's end of the bus.
    pub(crate) fn detach(&self) {
        self.transport.detach(self.peer);
    }

    /// Waits for the process's end, and reaps it: it is this process's own child.
    pub(crate) fn wait(&mut self) -> WaitStatus {
        wait_readable(self.pidfd.as_fd(), "the end of the instance");
        self.reaped = true;
        waitpid(Pid::from_raw(self.pid), None).expect("the instance is our child")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.reaped {
            // It may have ended by itself; it is ours to reap in any case.
            let _ended = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
            let _reaped = waitpid(Pid::from_raw(self.pid), None);
        }
        self.transport.detach(self.peer);
    }
}

fn transport() -> Arc<dyn Transport> {
    shm_bus::transport::broker::transport(Default::default()).expect("broker transport")
}

/// A descriptor of a new invocation, on its way to the function and back.
fn describe(place: Place) -> Descriptor {
    static INVOCATION: AtomicU64 = AtomicU64::new(1);
    let Place { segment, generation, offset, length } = place;
    let invocation = INVOCATION.fetch_add(1, Ordering::Relaxed);
    Descriptor { segment, generation, offset, length, invocation, source: PORT_BIT, ..Descriptor::default() }
}
