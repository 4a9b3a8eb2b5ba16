//! A hostile function in a chain, and as a plain function beside it: what it tries, and what comes of it, on each
//! transport. `functions/chain_hostile.c` is the function; the query says what it tries.
//!
//! All attacks happen in one scene: the chain `attacked`, in which it serves between two others, some chains where spryd looks
//! at what it answers, and neighbours that have secrets: a chain with one function in common, and a plain function. No
//! response may hold a secret; the neighbours answer after each attack, are called by nobody else, and stay the same processes.

mod bus;
mod floods;
mod lies;
mod memory;

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use spry_node::config::raw::UID_BASE;

use super::chains::{apply, chain_of};
use super::client::{self, Response};
use super::daemon::Daemon;

/// In the request, and in the answer, of the neighbours.
const SECRETS: [&str; 2] = ["canary-of-a-caller", "canary-of-a-function"];

const VAULT: &str = "count = 0
def main(p):
  global count
  count += 1
  return {'caller': p['secret'], 'own': 'canary-of-a-' + 'function', 'count': count}
";
const COPY: &str = "import spry\ndef main(r: spry.Request): return r.bytes()\n";
const TAIL: &str = "import spry\ndef main(r: spry.Request): return b'tail:' + r.bytes()\n";

/// What the hostile function answers by itself if it isn't told otherwise.
const NONSENSE: &str = "its own nonsense";

/// A daemon with the chains and functions that the module's text tells of.
struct Scene {
    daemon: Daemon,
    calls: Cell<u64>,
}

impl Scene {
    fn start(transport: &str) -> Self {
        // Users that no other test's functions have: what a flood takes, it takes from its own user.
        static USERS: AtomicU32 = AtomicU32::new(UID_BASE + 65_536);
        let users = USERS.fetch_add(64, Ordering::Relaxed);
        let daemon = Daemon::start(&format!("transport = \"{transport}\"\nuid_base = {users}\n"));
        let small = ["limits.payload=64KiB", "limits.timeout=5s", "scale.max=1"];
        let few = ["limits.payload=64KiB", "limits.timeout=5s", "scale.max=2"];
        daemon.deploy_python("vault", VAULT, &small);
        daemon.deploy_python("copy", COPY, &few);
        daemon.deploy_python("tail", TAIL, &few);
        daemon.deploy_native("chain-hostile", &small);
        apply(&daemon, &chain_of("guarded", &["copy", "vault", "copy"]));
        let scene = Self { daemon, calls: Cell::new(0) };
        // Its segments are there before the attackers': so their numbers are lower.
        scene.neighbours_are_well();
        scene.apply("attacked", &chain_of("attacked", &["copy", "chain-hostile", "tail"]));
        scene.apply("begins", &chain_of("begins", &["chain-hostile", "tail"]));
        scene.apply("ends", &chain_of("ends", &["copy", "chain-hostile"]));
        scene
    }

    /// Applies a chain with a timeout shorter than the test's patience.
    fn apply(&self, name: &str, chain: &str) {
        let rest = chain.split_once('\n').expect("the name's line").1;
        apply(&self.daemon, &format!("name = \"{name}\"\ntimeout = \"5s\"\n{rest}"));
    }

    /// Calls a chain or function; whatever comes holds no secret.
    fn call(&self, name: &str, query: &str, body: &[u8]) -> Response {
        let response = self.daemon.post(&format!("/function/{name}?{query}"), body);
        let seen = format!("{:?} {}", response.headers, response.text());
        assert!(!SECRETS.iter().any(|secret| seen.contains(secret)), "{name}?{query} tells a secret: {seen}");
        response
    }

    /// The hostile function keeps to the rules for once: its chain works.
    fn serves_on(&self, after: &str) {
        for (name, expected) in [("attacked", "tail:value"), ("chain-hostile", "value")] {
            let response = self.call(name, "", b"value");
            assert_eq!((response.status, response.text()), (200, expected.into()), "{name} after {after}");
        }
    }

    /// The neighbours answer, by the same processes as ever, and nobody else has called them.
    fn neighbours_are_well(&self) {
        let count = self.calls.get() + 1;
        self.calls.set(count);
        for name in ["guarded", "vault"] {
            let response = ask_neighbour(self.daemon.address, name);
            let expected = json!({"caller": SECRETS[0], "own": SECRETS[1], "count": count});
            assert_eq!((response.status, response.json()), (200, expected), "{name}");
        }
    }

    fn end(self) {
        self.neighbours_are_well();
        self.daemon.stop();
    }
}

fn ask_neighbour(address: std::net::SocketAddr, name: &str) -> Response {
    let body = json!({ "secret": SECRETS[0] }).to_string();
    client::call(address, "POST", &format!("/function/{name}"), body.as_bytes())
}

fn is_ended(response: &Response, what: &str) {
    let text = response.text();
    assert_eq!(response.status, 502, "{what}: {text}");
    assert_eq!(response.error_code(), "protocol_broken", "{what}: {text}");
}

macro_rules! on_each_transport {
    ($($attack:ident: $module:ident::$act:ident,)*) => {
        on_each_transport! { @ sockmap futex broker: [$($attack: $module::$act,)*] }
    };
    (@ $($transport:ident)*: $attacks:tt) => {
        $(on_each_transport! { % $transport $attacks })*
    };
    (% $transport:ident [$($attack:ident: $module:ident::$act:ident,)*]) => {
        mod $transport {
            $(#[test]
            fn $attack() {
                crate::need_root_and_cc!();
                let scene = super::Scene::start(stringify!($transport));
                super::$module::$act(&scene);
                scene.end();
            })*
        }
    };
}

on_each_transport! {
    its_way_past_the_runtime_works: bus::answers_by_itself,
    it_can_not_send_to_who_is_not_its_successor: bus::forges_its_route,
    it_can_not_claim_another_source: bus::forges_its_source,
    it_can_not_say_what_only_the_bus_says: bus::forges_its_flags,
    it_can_not_answer_what_it_guesses_or_has_answered: bus::answers_guesses,
    it_can_not_answer_what_another_member_serves: bus::answers_others,
    its_bus_socket_leads_nowhere_else: bus::reconnects,
    it_maps_no_segment_of_another_domain: memory::asks_around,
    it_is_ended_when_it_guesses_at_segments: memory::guesses,
    it_can_not_write_to_any_segment_but_its_own: memory::writes,
    it_can_not_change_what_it_was_given: memory::spoils,
    a_flood_of_values_ends_it: floods::of_values,
    values_that_start_their_own_function_take_nobody_elses_place: floods::that_feeds_itself,
    values_that_nobody_takes_keep_little: floods::of_waiting_values,
    a_flood_of_questions_is_not_taken: floods::of_questions,
    an_answer_that_points_anywhere_is_its_own_failure: lies::about_places,
    a_frame_that_lies_is_its_own_failure: lies::about_frames,
    a_list_of_foreign_places_shows_nothing: lies::about_parts,
    a_value_of_enormous_size_is_not_read: lies::about_sizes,
    a_frame_that_changes_while_it_is_read_is_its_own_failure: lies::that_change,
}
