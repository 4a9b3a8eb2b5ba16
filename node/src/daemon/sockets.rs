//! The daemon's two listening sockets: inherited from systemd, or its own.
//!
//! With socket activation (sd_listen_fds(3)) systemd holds them open over a restart: who connects meanwhile waits in the
//! kernel's queue and is not refused. Then their addresses are the unit's, and the files are not ours to remove.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};
use tokio::net::{TcpListener, UnixListener};

use super::{StartupError, os};
use crate::config::{Config, ControlAccess};

/// What the daemon listens on.
pub(super) struct Sockets {
    pub(super) http: TcpListener,
    pub(super) control: UnixListener,
    /// The control socket's file is ours.
    pub(super) owns_control: bool,
}

/// What systemd passed.
#[derive(Default)]
pub(super) struct Inherited {
    http: Option<OwnedFd>,
    control: Option<OwnedFd>,
}

impl Inherited {
    /// Takes them, once. Before anything else is opened.
    pub(super) fn take() -> Result<Self, StartupError> {
        let mut taken = Self::default();
        for fd in crate::sys::take_listen_fds() {
            let number = fd.as_raw_fd();
            let wrong = |why: &str| StartupError::Inherited { number, why: why.into() };
            if !getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false) {
                return Err(wrong("it is no listening socket; see ListenStream= in systemd.socket(5)"));
            }
            let address = getsockname::<SockaddrStorage>(number).ok().and_then(|address| address.family());
            let (place, what) = match address {
                Some(AddressFamily::Inet | AddressFamily::Inet6) => (&mut taken.http, "HTTP"),
                Some(AddressFamily::Unix) => (&mut taken.control, "control"),
                _ => return Err(wrong("it is neither TCP nor a Unix socket")),
            };
            if place.replace(fd).is_some() {
                return Err(wrong(&format!("it is a second {what} socket; one is served")));
            }
        }
        Ok(taken)
    }
}

impl Sockets {
    /// Uses what was inherited, and opens the rest.
    pub(super) fn open(inherited: Inherited, config: &Config) -> Result<Self, StartupError> {
        let http = match inherited.http {
            Some(fd) => std::net::TcpListener::from(fd),
            None => std::net::TcpListener::bind(config.listen)
                .map_err(os(format!("listen on {}", config.listen)))?,
        };
        http.set_nonblocking(true).map_err(os("set up the listener"))?;
        let http = TcpListener::from_std(http).map_err(os("set up the listener"))?;
        let owns_control = inherited.control.is_none();
        let control = match inherited.control {
            Some(fd) => std::os::unix::net::UnixListener::from(fd),
            None => bind_control(&config.control_socket, config.control)?,
        };
        control.set_nonblocking(true).map_err(os("set up the control socket"))?;
        let control = UnixListener::from_std(control).map_err(os("set up the control socket"))?;
        Ok(Self { http, control, owns_control })
    }

    /// Where HTTP is served.
    pub(super) fn address(&self) -> Result<SocketAddr, StartupError> {
        self.http.local_addr().map_err(os("the listener's address"))
    }
}

/// Binds the control socket, in place of one that a dead daemon has left.
fn bind_control(
    path: &Path,
    access: ControlAccess,
) -> Result<std::os::unix::net::UnixListener, StartupError> {
    let shown = path.display();
    if let Some(folder) = path.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
        made.map_err(os(format!("make the folder {}", folder.display())))?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(StartupError::Os { operation: format!("{shown} is there and is no socket"), source });
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(StartupError::AlreadyRunning(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(os(format!("remove the dead socket {shown}")))?;
    }
    // From its first moment on, nobody else may connect.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = std::os::unix::net::UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener.map_err(os(format!("listen on {shown}")))?;
    if access != ControlAccess::default() {
        give_control(path, access).map_err(os(format!("give {shown} to control.owner and control.group")))?;
    }
    Ok(listener)
}

/// Lets these connect to the control socket; without any, none but spryd's user (and root).
pub(super) fn give_control(path: &Path, access: ControlAccess) -> std::io::Result<()> {
    let owner = access.owner.unwrap_or(nix::unistd::geteuid().as_raw());
    let group = access.group.unwrap_or(nix::unistd::getegid().as_raw());
    std::os::unix::fs::chown(path, Some(owner), Some(group))?;
    let mode = if access == ControlAccess::default() { 0o600 } else { 0o660 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
