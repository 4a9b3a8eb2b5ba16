//! What tells an instance that its log pipes hold something.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

/// An epoll descriptor that is ready while one of these pipes (reading ends) holds bytes. Whoever has it can't read them.
pub fn watch(pipes: [BorrowedFd<'_>; 2]) -> io::Result<OwnedFd> {
    let watch = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for pipe in pipes {
        watch.add(pipe, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok(watch.0)
}
