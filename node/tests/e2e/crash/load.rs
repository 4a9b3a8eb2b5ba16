//! The load under which spryd is killed: every kind of thing that its commit path knows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A trigger that fires long after the test.
pub(super) const TRIGGER: &str = "never";
const TRIGGER_TOML: &str = "name = \"never\"\ncall = \"note\"\n[cron]\nschedule = \"0 0 29 2 *\"\n";

/// What was acknowledged.
#[derive(Default)]
pub(super) struct Told {
    /// Calls that answer their number.
    pub(super) accepted: BTreeMap<String, u64>,
    /// Of these.
    pub(super) cancelled: BTreeSet<String>,
    /// Of these, who asked for a callback and didn't cancel.
    pub(super) called_back: BTreeSet<String>,
    /// Calls that always fail.
    pub(super) failing: BTreeMap<String, u64>,
    /// Of these.
    pub(super) dropped: BTreeSet<String>,
    pub(super) trigger_applied: bool,
}

impl Told {
    pub(super) fn extend(&mut self, other: Self) {
        self.accepted.extend(other.accepted);
        self.cancelled.extend(other.cancelled);
        self.called_back.extend(other.called_back);
        self.failing.extend(other.failing);
        self.dropped.extend(other.dropped);
        self.trigger_applied |= other.trigger_applied;
    }
}

/// Somebody who makes requests until nobody answers.
pub(super) struct Client {
    pub(super) address: SocketAddr,
    pub(super) token: String,
    pub(super) callbacks: SocketAddr,
}

impl Client {
    /// Until the daemon is gone.
    pub(super) fn load(&self, stop: &AtomicBool, numbers: &AtomicU64) -> Told {
        let mut told = Told::default();
        while !stop.load(Ordering::Relaxed) {
            let n = numbers.fetch_add(1, Ordering::Relaxed);
            let went_on = match n % 8 {
                0 | 4 => self.put_off_and_cancel(n, &mut told),
                3 => self.with_callback(n, &mut told),
                5 => self.fail_and_drop(n, &mut told),
                7 => self.apply_trigger(&mut told),
                _ => self.submit_only(n, &mut told),
            };
            if went_on.is_none() {
                break;
            }
        }
        told
    }

    fn submit_only(&self, n: u64, told: &mut Told) -> Option<()> {
        told.accepted.insert(self.submit("note", n, "")?, n);
        Some(())
    }

    fn put_off_and_cancel(&self, n: u64, told: &mut Told) -> Option<()> {
        let id = self.submit("note", n, "x-delay: 50ms\r\n")?;
        told.accepted.insert(id.clone(), n);
        match self.attempt("DELETE", &format!("/async-function/{id}"), "", "")? {
            (204, _) => drop(told.cancelled.insert(id)),
            (404 | 409, _) => {} // it was quicker
            (status, _) => panic!("a cancellation got {status}"),
        }
        Some(())
    }

    fn with_callback(&self, n: u64, told: &mut Told) -> Option<()> {
        let header = format!("x-callback-url: http://{}/\r\n", self.callbacks);
        let id = self.submit("note", n, &header)?;
        told.called_back.insert(id.clone());
        told.accepted.insert(id, n);
        Some(())
    }

    fn fail_and_drop(&self, n: u64, told: &mut Told) -> Option<()> {
        let id = self.submit("failing", n, "")?;
        told.failing.insert(id.clone(), n);
        // Until it has died; then it is buried.
        self.attempt("GET", &format!("/async-function/{id}?wait=5s"), "", "")?;
        match self.attempt("DELETE", &format!("/system/dead/{id}"), &self.authority(), "")? {
            (204, _) => drop(told.dropped.insert(id)),
            (404, _) => {} // not yet
            (status, _) => panic!("a drop got {status}"),
        }
        Some(())
    }

    fn apply_trigger(&self, told: &mut Told) -> Option<()> {
        let path = format!("/system/trigger/{TRIGGER}");
        let (status, _) = self.attempt("PUT", &path, &self.authority(), TRIGGER_TOML)?;
        assert_eq!(status, 200, "a trigger is applied");
        told.trigger_applied = true;
        Some(())
    }

    fn authority(&self) -> String {
        format!("authorization: Bearer {}\r\n", self.token)
    }

    fn submit(&self, name: &str, n: u64, headers: &str) -> Option<String> {
        let body = format!("{{\"n\": {n}}}");
        let (status, id) = self.attempt("POST", &format!("/async-function/{name}"), headers, &body)?;
        assert_eq!(status, 202, "an accepted call, or none");
        Some(id)
    }

    /// One request whose answer may never come.
    fn attempt(&self, method: &str, path: &str, headers: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut head = Vec::new();
        let mut byte = [0; 1];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).ok()?.to_ascii_lowercase();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let id = head.lines().find_map(|line| line.strip_prefix("x-call-id: ")).unwrap_or_default();
        Some((status, id.trim().to_owned()))
    }
}
