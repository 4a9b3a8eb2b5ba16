//! `kill -9` of spryd under asynchronous load, at random moments and at every step of the commit path: what was accepted
//! runs, what was acknowledged as cancelled doesn't, the database stays whole.
//!
//! `SPRY_CRASH_ROUNDS` says how many rounds at random moments there are (12 in CI; 200 for the figure), and
//! `SPRY_CRASH_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use spry_node::store::fault::CALL_STEPS;

use super::daemon::Daemon;
use crate::need_root_and_cc;

/// Answers the number that it was sent: the test knows whose answer it is.
const NOTE: &str = "def main(params): return str(params['n'])\n";

/// xorshift64*: the moments of the kills come from a printed seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % below.max(1)
    }
}

/// One request whose answer may never come.
fn attempt(address: SocketAddr, request: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
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

#[derive(Default)]
struct Told {
    accepted: BTreeMap<String, u64>,
    cancelled: BTreeSet<String>,
}

/// Submits calls (one in four put off, and then cancelled) until the daemon is gone.
fn load(address: SocketAddr, stop: &AtomicBool, numbers: &AtomicU64) -> Told {
    let mut told = Told::default();
    while !stop.load(Ordering::Relaxed) {
        let n = numbers.fetch_add(1, Ordering::Relaxed);
        let body = format!("{{\"n\": {n}}}");
        let put_off = n.is_multiple_of(4);
        let delay = if put_off { "x-delay: 50ms\r\n" } else { "" };
        let request = format!(
            "POST /async-function/note HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{delay}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let Some((status, id)) = attempt(address, &request) else { break };
        assert_eq!(status, 202, "an accepted call, or none");
        told.accepted.insert(id.clone(), n);
        if put_off {
            let request =
                format!("DELETE /async-function/{id} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
            match attempt(address, &request) {
                Some((204, _)) => drop(told.cancelled.insert(id)),
                Some((404 | 409, _)) => {} // it was quicker
                Some((status, _)) => panic!("a cancellation got {status}"),
                None => break,
            }
        }
    }
    told
}

fn check_database(state: &Path) {
    let database = rusqlite::Connection::open(state.join("calls.db")).expect("the database opens");
    let found: String =
        database.pragma_query_value(None, "integrity_check", |row| row.get(0)).expect("a check");
    assert_eq!(found, "ok");
}

/// Loads it until it has died; says what was acknowledged.
fn round(daemon: &mut Daemon, numbers: &Arc<AtomicU64>, kill_after: Option<Duration>) -> Told {
    let stop = Arc::new(AtomicBool::new(false));
    let address = daemon.address;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, numbers) = (Arc::clone(&stop), Arc::clone(numbers));
            std::thread::spawn(move || load(address, &stop, &numbers))
        })
        .collect();
    match kill_after {
        Some(moment) => {
            std::thread::sleep(moment); // the moment is what is tested
            daemon.kill();
        }
        None => daemon.wait_for_death(),
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Told::default();
    for client in clients {
        let told = client.join().expect("only expected answers");
        all.accepted.extend(told.accepted);
        all.cancelled.extend(told.cancelled);
    }
    all
}

/// Every accepted call has ended (with its own answer), unless its cancellation was acknowledged: then it has not run.
fn settle(daemon: &Daemon, told: &Told) {
    for (id, n) in &told.accepted {
        let answer = super::later::answer(daemon.address, id);
        if told.cancelled.contains(id) {
            assert_eq!(answer.status, 410, "call {id} ran after it was acknowledged as cancelled");
        } else if answer.status == 410 {
            // Cancelled, and the daemon died before it could say so.
        } else {
            assert_eq!((answer.status, answer.text()), (200, n.to_string()), "call {id}");
        }
    }
}

#[test]
fn what_was_accepted_runs_whenever_spryd_is_killed() {
    need_root_and_cc!();
    let seed = std::env::var("SPRY_CRASH_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| spry_node::sys::random_u64().expect("random bits") | 1);
    let rounds: u64 =
        std::env::var("SPRY_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    println!("SPRY_CRASH_SEED={seed} SPRY_CRASH_ROUNDS={rounds}");
    let mut random = Random(seed);
    let mut daemon = Daemon::start("[async.results]\ncount = 1000000\n");
    daemon.deploy_python("note", NOTE, &["scale.max=2"]);
    let numbers = Arc::new(AtomicU64::new(0));
    let (mut accepted, mut cancelled) = (0, 0);
    let mut settled = |daemon: &Daemon, told: &Told| {
        accepted += told.accepted.len();
        cancelled += told.cancelled.len();
        check_database(&daemon.state());
        settle(daemon, told);
    };
    for (step, _) in CALL_STEPS
        .iter()
        .filter(|(step, _)| !matches!(*step, "call-dead" | "call-back" | "call-postpone" | "call-trigger"))
    {
        let ready = daemon.crash_and_restart_to_die_at(step, 2 + random.next(40));
        let told = if ready { round(&mut daemon, &numbers, None) } else { Told::default() };
        daemon.crash_and_restart();
        settled(&daemon, &told);
    }
    for _ in 0..rounds {
        let told = round(&mut daemon, &numbers, Some(Duration::from_micros(random.next(150_000))));
        daemon.crash_and_restart();
        settled(&daemon, &told);
    }
    println!("{accepted} accepted, {cancelled} cancelled, all as they were told");
    assert!(accepted > 0 && cancelled > 0);
    daemon.stop();
}
