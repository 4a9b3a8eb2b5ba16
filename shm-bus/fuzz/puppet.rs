//! A peer's half of a connection, as the attacker holds it.

use std::os::fd::{AsRawFd, OwnedFd};

use shm_bus::Descriptor;
use shm_bus::ring::ENTRIES;
use shm_bus::segment::{Writer, page_len};
use shm_bus::transport::Kind;
use spry_ebpf_common::DESCRIPTOR_LEN;

/// The bytes, taken from the front; zeros when there are no more.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Bytes<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        std::array::from_fn(|at| head.get(at).copied().unwrap_or(0))
    }
    pub(crate) fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }
    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }
}

/// The peer's half, as the attacker holds it.
pub(crate) enum Puppet {
    Futex { page: Writer, produced: u32, _fds: Vec<OwnedFd> },
    Broker { socket: OwnedFd },
}

impl Puppet {
    pub(crate) fn new(kind: Kind, mut fds: Vec<OwnedFd>) -> Self {
        if kind == Kind::Broker {
            return Self::Broker { socket: fds.remove(0) };
        }
        let page = Writer::map(fds.remove(1), page_len()).expect("map the peer's page");
        Self::Futex { page, produced: 0, _fds: fds }
    }

    /// Any bytes, anywhere.
    pub(crate) fn scribble(&self, bytes: &mut Bytes<'_>) {
        match self {
            Self::Futex { page, .. } => {
                // The interesting words are in the first half kilobyte.
                let at = u64::from(bytes.u32() % 640);
                page.write_at(at, &bytes.take::<8>()).expect("within the page");
            }
            Self::Broker { socket } => {
                let len = usize::from(bytes.u8()) % 80;
                send(socket, &vec![bytes.u8(); len]);
            }
        }
    }

    /// A message as the rules want it, at least in form.
    pub(crate) fn answer(&mut self, answer: &Descriptor) {
        let words = words(answer);
        match self {
            Self::Futex { page, produced, .. } => {
                page.write_at(256 + u64::from(*produced % ENTRIES) * 32, &words).expect("within the page");
                *produced = produced.wrapping_add(1);
                page.write_at(0, &produced.to_ne_bytes()).expect("within the page");
            }
            Self::Broker { socket } => send(socket, &words),
        }
    }

    pub(crate) fn wake(&self) {
        if let Self::Futex { page, .. } = self {
            let word = page.address(0, 4).expect("within the page");
            // SAFETY: the word is mapped as long as the page.
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        }
    }

    /// Breaks the agreement about how much was produced or consumed.
    pub(crate) fn lie(&mut self, bytes: &mut Bytes<'_>) {
        if let Self::Futex { page, produced, .. } = self {
            let (which, value) = (bytes.u8(), bytes.u32());
            let value = if which & 2 == 0 { produced.wrapping_add(value % (2 * ENTRIES)) } else { value };
            page.write_at(u64::from(which % 2) * 64, &value.to_ne_bytes()).expect("within the page");
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8]) {
    // SAFETY: `bytes` is readable for its length.
    unsafe {
        let how = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), how)
    };
}

fn words(item: &Descriptor) -> [u8; DESCRIPTOR_LEN] {
    let mut bytes = [0; DESCRIPTOR_LEN];
    let fields = [item.segment, item.generation, item.offset, item.length];
    for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    bytes[16..24].copy_from_slice(&item.invocation.to_ne_bytes());
    bytes[24..26].copy_from_slice(&item.route.to_ne_bytes());
    (bytes[26], bytes[27]) = (item.step, item.flags);
    bytes[28..32].copy_from_slice(&item.source.to_ne_bytes());
    bytes
}
