//! `kill -9` of spryd under asynchronous load, at random moments and at every step of the commit path: what was accepted
//! runs, what was acknowledged as cancelled or dropped doesn't, callbacks come, the databases stay whole.
//!
//! `SPRY_CRASH_ROUNDS` says how many rounds at random moments there are (100, about 45 seconds; 200 in CI), and
//! `SPRY_CRASH_SEED` repeats a run.

mod load;
mod witness;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use spry_node::store::fault::CALL_STEPS;

use super::daemon::Daemon;
use crate::need_root_and_cc;
use load::{Client, Told};
use witness::Witness;

/// Rounds at random moments, when nothing says otherwise.
const ROUNDS: u64 = 100;
/// Passes of a step before the one at which it dies, at most. Of rare ones there are few in a round.
const PASSES: u64 = 40;
const PASSES_RARE: u64 = 4;

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

fn check_databases(state: &Path) {
    for name in ["calls.db", "spry.db"] {
        let database = rusqlite::Connection::open(state.join(name)).expect("the database opens");
        let found: String =
            database.pragma_query_value(None, "integrity_check", |row| row.get(0)).expect("a check");
        assert_eq!(found, "ok", "{name}");
    }
}

/// Loads it until it has died; says what was acknowledged.
fn round(
    daemon: &mut Daemon,
    witness: &Witness,
    numbers: &Arc<AtomicU64>,
    kill_after: Option<Duration>,
) -> Told {
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let token = std::fs::read_to_string(daemon.state().join("api-token")).expect("the token");
            let client = Client {
                address: daemon.address,
                token: token.trim().to_owned(),
                callbacks: witness.callbacks,
            };
            let (stop, numbers) = (Arc::clone(&stop), Arc::clone(numbers));
            std::thread::spawn(move || client.load(&stop, &numbers))
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
        all.extend(client.join().expect("only expected answers"));
    }
    all
}

/// Every accepted call has ended (with its own answer), unless its cancellation was acknowledged: then it has not run. Who asked
/// to be called back was; what was dropped is gone.
fn settle(daemon: &Daemon, witness: &Witness, told: &Told) {
    for (id, n) in &told.accepted {
        let answer = super::later::answer(daemon.address, id);
        if told.cancelled.contains(id) {
            assert_eq!(answer.status, 410, "call {id} ended, though it was acknowledged as cancelled");
            assert!(!witness.has_run(*n), "call {id} ran, though it was acknowledged as cancelled");
        } else if answer.status == 410 {
            // Cancelled, and the daemon died before it could say so.
            assert!(!witness.has_run(*n), "call {id} is cancelled, and has run");
        } else {
            assert_eq!((answer.status, answer.text()), (200, n.to_string()), "call {id}");
            assert!(witness.has_run(*n), "call {id} has an answer, and has not run");
        }
    }
    for (id, n) in &told.failing {
        let answer = super::later::answer(daemon.address, id);
        assert_eq!((answer.status, answer.header("x-spry-call-state")), (500, Some("dead")), "call {id}");
        assert!(witness.has_run(*n), "call {id} died without having run");
    }
    if !told.dropped.is_empty() {
        let letters = daemon.spry_ok(&["dead", "list", "-n", "10000"]);
        let there = told.dropped.iter().find(|id| letters.contains(*id));
        assert_eq!(there, None, "it is there, though it was acknowledged as dropped");
    }
    witness.until_called_back(&told.called_back);
    if told.trigger_applied {
        assert_eq!(daemon.spry_json(&["trigger", "list"])[0]["name"], load::TRIGGER);
    }
}

#[test]
fn what_was_accepted_runs_whenever_spryd_is_killed() {
    need_root_and_cc!();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("SPRY_CRASH_SEED").unwrap_or_else(|| spry_node::sys::random_u64().expect("bits") | 1);
    let rounds = number("SPRY_CRASH_ROUNDS").unwrap_or(ROUNDS);
    println!("SPRY_CRASH_SEED={seed} SPRY_CRASH_ROUNDS={rounds}");
    let mut random = Random(seed);
    let witness = Witness::new();
    let mut daemon = Daemon::start(&format!(
        "[async.results]\ncount = 1000000\n[async.callback]\nhosts = [\"{}\"]\nbackoff = \"10ms\"\n",
        witness.callbacks
    ));
    daemon.deploy_python("note", &witness.note(), &["scale.max=2", "network.egress=host"]);
    let failing = ["scale.max=2", "network.egress=host", "async.retries=1", "async.backoff=5ms"];
    daemon.deploy_python("failing", &witness.failing(), &failing);
    let numbers = Arc::new(AtomicU64::new(0));
    let mut sum = Told::default();
    let mut settled = |daemon: &Daemon, told: Told| {
        check_databases(&daemon.state());
        settle(daemon, &witness, &told);
        sum.extend(told);
    };
    for (step, _) in CALL_STEPS {
        let is_rare = matches!(step, "call-dead" | "call-back" | "call-postpone" | "call-trigger");
        let passes = random.next(if is_rare { PASSES_RARE } else { PASSES });
        let ready = daemon.crash_and_restart_to_die_at(step, 1 + passes);
        let told = if ready { round(&mut daemon, &witness, &numbers, None) } else { Told::default() };
        daemon.crash_and_restart();
        settled(&daemon, told);
    }
    for _ in 0..rounds {
        let moment = Duration::from_micros(random.next(150_000));
        let told = round(&mut daemon, &witness, &numbers, Some(moment));
        daemon.crash_and_restart();
        settled(&daemon, told);
    }
    println!(
        "{} accepted, {} cancelled, {} failing, {} dropped, {} to be called back: all as they were told",
        sum.accepted.len(),
        sum.cancelled.len(),
        sum.failing.len(),
        sum.dropped.len(),
        sum.called_back.len()
    );
    assert!(!sum.accepted.is_empty() && !sum.cancelled.is_empty());
    assert!(!sum.dropped.is_empty() && !sum.called_back.is_empty() && sum.trigger_applied);
    daemon.stop();
}
