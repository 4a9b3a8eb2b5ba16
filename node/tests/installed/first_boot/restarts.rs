//! The daemon ends, in order or not, and is there again; a configuration that can't be used changes nothing.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use crate::kept::Kept;
use crate::machine::{
    ADDRESS, a_process, both_serve, deploy_python, exists, install, journal, main_pid, node, property, run,
    spry, until,
};
use crate::need_a_guest;

const CONFIG: &str = "/etc/spry/spryd.toml";

/// Clients that call all the time, what takes a while: some calls are always at work, and most of the machine's two emulated
/// processors is left. One that isn't answered, or worse than by 503, panics.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start() -> Self {
        deploy_python("while", "import time\ndef main(params): time.sleep(0.1); return {}\n", &[]);
        let (stop, served, refused) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let client = |keeps_alive: bool| {
            let (stop, served, refused) = (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&refused));
            thread::spawn(move || {
                let mut kept = Kept::default();
                while !stop.load(Ordering::Relaxed) {
                    let mut connection = kept.take(ADDRESS);
                    let response = connection.call("POST", "/function/while", &[], b"{}");
                    match response.status {
                        200 => served.fetch_add(1, Ordering::Relaxed),
                        503 if response.header("retry-after").is_some() => {
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                        _ => panic!("{} {}", response.status, response.text()),
                    };
                    if keeps_alive {
                        kept.keep(connection, &response);
                    }
                }
            })
        };
        let clients = [true, false, true].map(client).into();
        Self { stop, served, refused, clients }
    }

    fn goes_on(&self) {
        let before = self.served.load(Ordering::Relaxed);
        until("calls are served", || self.served.load(Ordering::Relaxed) > before + 20);
    }

    /// How many were served, and how many got 503.
    fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("every call was answered well");
        }
        (self.served.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

#[test]
fn a_restart_under_load_refuses_nobody() {
    need_a_guest!();
    node();
    let load = Load::start();
    load.goes_on();
    let before = main_pid();
    run("systemctl", &["restart", "spryd"]);
    assert_ne!(main_pid(), before);
    load.goes_on();
    let (served, refused) = load.end();
    println!("a restart: {served} calls served, {refused} got 503, none lost");
    both_serve();
}

#[test]
fn an_upgrade_under_load_refuses_nobody() {
    need_a_guest!();
    node();
    let load = Load::start();
    load.goes_on();
    let before = main_pid();
    install();
    assert_ne!(main_pid(), before, "the new version runs");
    load.goes_on();
    let (served, refused) = load.end();
    println!("an upgrade: {served} calls served, {refused} got 503, none lost");
    both_serve();
}

/// The configuration as it was shipped; put back at the end, however the test ends.
struct Shipped(String);

impl Shipped {
    fn take() -> Self {
        Self(fs::read_to_string(CONFIG).expect("the configuration"))
    }
}

impl Drop for Shipped {
    fn drop(&mut self) {
        fs::write(CONFIG, &self.0).expect("write the configuration");
        run("systemctl", &["reload", "spryd"]);
    }
}

#[test]
fn a_reload_with_a_bad_file_keeps_the_configuration() {
    need_a_guest!();
    node();
    let (pid, shipped) = (main_pid(), Shipped::take());
    let reload = |text: &str, said: &str| {
        let before = journal().matches(said).count();
        fs::write(CONFIG, text).expect("write the configuration");
        run("systemctl", &["reload", "spryd"]);
        until("it has read the file", || journal().matches(said).count() > before);
    };
    reload("[defaults.scale]\nmax = 3\n", "the configuration was read anew");
    reload("[defaults.scale]\nmax = 1000000\n", "defaults.scale.max is 1000000");
    deploy_python("later", "def main(params): return {}\n", &[]);
    assert!(spry(&["describe", "later"]).contains("0 to 3"), "{}", spry(&["describe", "later"]));
    assert_eq!((main_pid(), property("spryd", "ActiveState").as_str()), (pid, "active"));
    drop(shipped);
    both_serve();
}

#[test]
fn a_killed_daemon_is_started_again_and_serves() {
    need_a_guest!();
    node();
    both_serve();
    let (process, pid) = (a_process(), main_pid());
    let restarts: u32 = property("spryd", "NRestarts").parse().expect("a number");
    run("systemctl", &["kill", "--kill-whom=main", "--signal=KILL", "spryd"]);
    until("it is dead", || !exists(pid));
    // The socket is systemd's: who comes now waits.
    both_serve();
    assert!(!exists(process), "a process of the dead one lives");
    assert_eq!(property("spryd", "NRestarts").parse(), Ok(restarts + 1), "{}", journal());
}

#[test]
fn a_daemon_that_hangs_is_ended_and_started_again() {
    need_a_guest!();
    node();
    let folder = "/run/systemd/system/spryd.service.d";
    fs::create_dir_all(folder).expect("a folder");
    fs::write(format!("{folder}/watchdog.conf"), "[Service]\nWatchdogSec=5s\n").expect("written");
    run("systemctl", &["daemon-reload"]);
    run("systemctl", &["restart", "spryd"]);
    let pid = main_pid();
    run("systemctl", &["kill", "--kill-whom=main", "--signal=STOP", "spryd"]);
    until("the watchdog has ended it", || !exists(pid));
    both_serve();
    fs::remove_dir_all(folder).expect("removed");
    run("systemctl", &["daemon-reload"]);
    run("systemctl", &["restart", "spryd"]);
    both_serve();
}
