//! Too much of everything: values, questions, descriptors. The neighbours answer meanwhile, and spryd holds little.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::super::chains::chain_of;
use super::super::daemon::Daemon;
use super::{NONSENSE, SECRETS, Scene, ask_neighbour, is_ended};

/// Bytes that spryd may have more after a flood, and at any time during it.
const MEMORY_MAX: u64 = 64 << 20;
/// Descriptors that it may have more: processes that were started meanwhile have some each.
const DESCRIPTORS_MAX: usize = 64;

/// What spryd holds.
pub(super) struct Held {
    /// At most, so far.
    memory: u64,
    descriptors: usize,
}

impl Held {
    pub(super) fn by(scene: &Scene) -> Self {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", scene.daemon.pid())).expect("its status");
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
        let memory = kib.map(|kib: u64| kib << 10).expect("its memory");
        Self { memory, descriptors: scene.daemon.open_fds() }
    }

    /// It was never much more, and is not much more by now.
    pub(super) fn is_bounded(&self, scene: &Scene, what: &str) {
        let now = Self::by(scene);
        assert!(now.memory < self.memory + MEMORY_MAX, "{what}: {} bytes, now {}", self.memory, now.memory);
        let few = |daemon: &Daemon| daemon.open_fds() < self.descriptors + DESCRIPTORS_MAX;
        scene.daemon.until(&format!("descriptors after {what}"), few);
    }
}

/// Does something while a neighbour is called all the time, and at least some times after it.
fn while_the_neighbour_answers<T>(scene: &Scene, act: impl FnOnce() -> T) -> T {
    let stop = Arc::new(AtomicBool::new(false));
    let (address, told) = (scene.daemon.address, Arc::clone(&stop));
    let neighbour = std::thread::spawn(move || {
        let (mut calls, mut more) = (0, 5);
        while more > 0 {
            more -= usize::from(told.load(Ordering::Relaxed));
            calls += 1;
            let response = ask_neighbour(address, "guarded");
            assert_eq!(response.status, 200, "the neighbour's call {calls}: {}", response.text());
            assert_eq!(response.json()["own"], json!(SECRETS[1]));
        }
        calls
    });
    let result = act();
    stop.store(true, Ordering::Relaxed);
    let calls = neighbour.join().expect("every call was answered");
    // The chain's vault has counted them; the plain one, in a process of its own, is called as often.
    (0..calls).for_each(|_| assert_eq!(ask_neighbour(address, "vault").status, 200));
    scene.calls.set(scene.calls.get() + calls);
    result
}

pub(super) fn of_values(scene: &Scene) {
    scene.apply("collects", &triggered(&["chain-hostile"], "copy", "{ every = \"item\" }"));
    for name in ["attacked", "collects", "chain-hostile"] {
        let tail = if name == "attacked" { "tail:" } else { "" };
        let held = Held::by(scene);
        while_the_neighbour_answers(scene, || {
            let response = scene.call(name, "do=emit&count=128", b"value");
            assert_eq!((response.status, response.text()), (200, format!("{tail}{NONSENSE}")), "{name}");
            is_ended(&scene.call(name, "do=emit&stay=1&count=129", b"value"), name);
            is_ended(&scene.call(name, "do=emit&stay=1&count=1000000", b"value"), name);
        });
        held.is_bounded(scene, name);
    }
    scene.serves_on("a flood of values");
}

pub(super) fn that_feeds_itself(scene: &Scene) {
    scene.apply("feeds", &triggered(&["chain-hostile"], "chain-hostile", "{ every = \"item\" }"));
    let held = Held::by(scene);
    while_the_neighbour_answers(scene, || {
        // Each of these starts 128 calls that each start 128 calls, eight times over, if there were room. (By then, its own
        // clients may be turned away.)
        for _ in 0..4 {
            scene.call("feeds", "do=emit&count=128", b"value");
        }
        let failed = |scene: &Scene| {
            let chains = scene.daemon.spry_json(&["chain", "describe", "feeds"]);
            chains["calls"]["failed"].as_u64().expect("a number")
        };
        scene.daemon.until("most of them have found no place", |_| failed(scene) > 10_000);
    });
    scene.daemon.spry_ok(&["chain", "remove", "feeds"]);
    held.is_bounded(scene, "values that start their own function");
    scene.serves_on("values that start their own function");
}

pub(super) fn of_waiting_values(scene: &Scene) {
    scene.apply("waits", &triggered(&["chain-hostile"], "copy", "{ set = [\"item\", \"never\"] }"));
    let held = Held::by(scene);
    // Each time a new process, which dies with a value of its own waiting.
    for _ in 0..160 {
        let response = scene.call("waits", "do=emit&count=1", b"value");
        assert_eq!((response.status, response.text()), (200, NONSENSE.into()));
    }
    held.is_bounded(scene, "values that nobody takes");
    scene.serves_on("values that nobody takes");
}

pub(super) fn of_questions(scene: &Scene) {
    // (Refused questions end it at some point; the others are not taken for ever.)
    let floods = [
        "do=control",
        "do=control&descriptors=12",
        "do=control&descriptors=253",
        "do=control&segment=1000000",
        "do=control&segment=1000000&descriptors=12",
        "do=control&size=1000",
        "do=control&size=1000&descriptors=253",
        "do=map-again&count=2000",
    ];
    for name in ["ends", "chain-hostile"] {
        for flood in floods {
            let held = Held::by(scene);
            let response = while_the_neighbour_answers(scene, || scene.call(name, flood, b"value"));
            match response.status {
                200 => {
                    let text = response.text();
                    let taken =
                        text.lines().find_map(|line| line.strip_prefix("taken ")?.parse::<u64>().ok());
                    assert!(taken.is_some_and(|taken| taken <= 2000), "{name}, {flood}: {text}");
                }
                _ => is_ended(&response, flood),
            }
            held.is_bounded(scene, flood);
            scene.serves_on(flood);
        }
    }
}

/// A chain of these functions with one trigger.
fn triggered(functions: &[&str], starts: &str, on: &str) -> String {
    format!("{}[[trigger]]\nfunction = \"{starts}\"\non = {on}\n", chain_of("x", functions))
}
