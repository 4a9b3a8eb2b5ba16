//! A function that has done nothing wrong, called in a loop while another misbehaves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::client::Connection;
use super::daemon::Daemon;

const SOURCE: &str = "import os\ndef main(params): return {'pid': os.getpid()}\n";

/// Calls go on until [`Neighbour::was_undisturbed`].
pub(crate) struct Neighbour {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    /// What it calls itself.
    number: i64,
    pid: i32,
    thread: JoinHandle<Vec<i64>>,
}

impl Neighbour {
    pub(crate) fn move_in(daemon: &Daemon) -> Self {
        daemon.deploy_python("neighbour", SOURCE, &["scale.max=1"]);
        let number = pid_of(&mut Connection::open(daemon.address));
        let pid = daemon.outside("neighbour", number).expect("its process");
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (stop, answers, address) = (Arc::clone(&stop), Arc::clone(&answers), daemon.address);
            move || call_on(address, &stop, &answers)
        });
        Self { stop, answers, number, pid, thread }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// It answered every call, before this one and two more from now on, and by the same process.
    pub(crate) fn was_undisturbed(self, daemon: &Daemon) {
        let now = self.answers.load(Ordering::Relaxed);
        daemon.until("the neighbour answers", |_| {
            self.answers.load(Ordering::Relaxed) > now + 1 || self.thread.is_finished()
        });
        self.stop.store(true, Ordering::Relaxed);
        let pids = self.thread.join().expect("every call was answered");
        assert!(pids.iter().all(|pid| *pid == self.number), "{pids:?}");
    }
}

fn call_on(address: SocketAddr, stop: &AtomicBool, answers: &AtomicUsize) -> Vec<i64> {
    let mut connection = Connection::open(address);
    let mut pids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let pid = pid_of(&mut connection);
        if pids.last() != Some(&pid) {
            pids.push(pid);
        }
        answers.fetch_add(1, Ordering::Relaxed);
    }
    pids
}

fn pid_of(connection: &mut Connection) -> i64 {
    let response = connection.call("POST", "/function/neighbour", &[], b"{}");
    assert_eq!(response.status, 200, "the neighbour: {}", response.text());
    response.json()["pid"].as_i64().expect("a pid")
}
