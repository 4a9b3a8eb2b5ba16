//! Somebody outside spryd who sees what really ran, and who was really called back.

use std::collections::{BTreeSet, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Longer than a callback may take: a watchdog, not a measurement.
const WATCHDOG: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Seen {
    ran: Mutex<HashSet<u64>>,
    called_back: Mutex<HashSet<String>>,
    news: Condvar,
}

/// Functions tell it their numbers by UDP, before they do anything else, until it says that it has heard: so what has an answer
/// has been heard, however late this thread is.
pub(super) struct Witness {
    seen: Arc<Seen>,
    reports: SocketAddr,
    /// Where callbacks go.
    pub(super) callbacks: SocketAddr,
}

impl Witness {
    pub(super) fn new() -> Self {
        let seen = Arc::new(Seen::default());
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let reports = socket.local_addr().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let callbacks = listener.local_addr().expect("an address");
        let (ran, told) = (Arc::clone(&seen), Arc::clone(&seen));
        // Both threads end with the test's process.
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let number = std::str::from_utf8(&buffer[..length]).ok().and_then(|text| text.parse().ok());
                ran.ran.lock().expect("nobody panics here").insert(number.expect("a number"));
                // (Who told may be dead.)
                let _ = socket.send_to(b"heard", from);
            }
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream);
                let Some((id, length)) = head(&mut reader) else { continue };
                if reader.read_exact(&mut vec![0; length]).is_err() {
                    continue;
                }
                told.called_back.lock().expect("nobody panics here").insert(id);
                told.news.notify_all();
                let _ = reader.get_mut().write_all(b"HTTP/1.1 204 Thanks\r\n\r\n");
            }
        });
        Self { seen, reports, callbacks }
    }

    /// A function that answers its number.
    pub(super) fn note(&self) -> String {
        format!("{}    return str(params['n'])\n", self.report())
    }

    /// A function that fails.
    pub(super) fn failing(&self) -> String {
        format!("{}    raise ValueError(params['n'])\n", self.report())
    }

    fn report(&self) -> String {
        let port = self.reports.port();
        format!(
            "import socket\ndef main(params):\n    \
             with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:\n        \
             out.connect(('127.0.0.1', {port}))\n        \
             out.settimeout(1)\n        \
             heard = None\n        \
             while not heard:\n            \
             out.send(str(params['n']).encode())\n            \
             try:\n                \
             heard = out.recv(8)\n            \
             except socket.timeout:\n                \
             pass\n"
        )
    }

    /// Whether a function has had this number.
    pub(super) fn has_run(&self, n: u64) -> bool {
        self.seen.ran.lock().expect("nobody panics here").contains(&n)
    }

    /// Waits until all of these calls' callbacks have come.
    pub(super) fn until_called_back(&self, ids: &BTreeSet<String>) {
        let told = self.seen.called_back.lock().expect("nobody panics here");
        let missing = |told: &mut HashSet<String>| ids.iter().any(|id| !told.contains(id));
        let waited = self.seen.news.wait_timeout_while(told, WATCHDOG, missing).expect("nobody panics here");
        assert!(!waited.1.timed_out(), "watchdog: callbacks are missing");
    }
}

/// The call that a callback is about, and the length of its body.
fn head(reader: &mut impl BufRead) -> Option<(String, usize)> {
    let (mut id, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            return Some((id?, length));
        }
        if let Some(value) = line.strip_prefix("x-call-id: ") {
            id = Some(value.to_owned());
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().ok()?;
        }
    }
}
