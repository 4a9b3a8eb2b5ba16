//! What systemd is told (sd_notify(3)): ready, reloading, stopping, alive. Nothing, where nobody listens.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to systemd.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        let address = std::env::var_os("NOTIFY_SOCKET").and_then(|name| address(name.as_bytes()));
        let socket = address.and_then(|address| {
            let socket = UnixDatagram::unbound().ok()?;
            // A systemd that doesn't read must not hold the keeper up.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        let text = |name: &str| std::env::var(name).ok();
        let watchdog = watchdog(text("WATCHDOG_USEC"), text("WATCHDOG_PID"), std::process::id());
        Self { socket, watchdog }
    }

    /// How often it must be told that spryd lives, if it must.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.socket.is_some())
    }

    /// It serves.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// Its configuration is being read anew; `READY` follows.
    pub(super) fn reloading(&self) {
        let now_us = crate::clock::monotonic_ns() / 1000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now_us}"));
    }

    /// It is about to end.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=waiting for calls that run");
    }

    /// It lives.
    pub(super) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, text: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            tracing::debug!(%error, text, "systemd could not be told");
        }
    }
}

/// A path, or with `@` in front an abstract name.
fn address(name: &[u8]) -> Option<SocketAddr> {
    match name.split_first()? {
        (b'@', rest) => SocketAddr::from_abstract_name(rest).ok(),
        (b'/', _) => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)).ok(),
        _ => None,
    }
}

/// The interval, if it is meant for this process.
fn watchdog(interval_us: Option<String>, pid: Option<String>, own_pid: u32) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own_pid));
    let interval_us: u64 = interval_us?.parse().ok()?;
    (is_ours && interval_us > 0).then(|| Duration::from_micros(interval_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_abstract_names() {
        assert!(address(b"/run/systemd/notify").expect("a path").as_pathname().is_some());
        assert_eq!(address(b"@spry").expect("a name").as_abstract_name(), Some(&b"spry"[..]));
        for bad in [&b""[..], b"relative", b"vsock:2:1"] {
            assert!(address(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(watchdog(text("30000000"), text("7"), 7), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(text("30000000"), None, 7), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(text("30000000"), text("8"), 7), None);
        assert_eq!(watchdog(text("0"), None, 7), None);
        assert_eq!(watchdog(text("soon"), None, 7), None);
        assert_eq!(watchdog(None, None, 7), None);
    }
}
