//! Hostile functions, deployed to a real `spryd` as anyone would. Each test is one attack by name: it comes to nothing,
//! and a neighbour function is called all the while and answers.
//!
//! Needs root and `cc`; see `tests/e2e`.

#[allow(dead_code, reason = "shared with tests/e2e, which uses all of it")]
#[path = "../e2e/client.rs"]
mod client;
#[allow(dead_code, reason = "shared with tests/e2e, which uses all of it")]
#[path = "../e2e/daemon.rs"]
mod daemon;

mod concurrent;
mod escape;
mod exhaustion;
mod leftovers;
mod neighbour;
mod ordinary;
mod others;
#[path = "../process_support/outside.rs"]
mod outside;
mod rewinding;
mod rewinding_python;

/// A function that calls the kernel, after what tells it how that went.
fn outcomes_of(function: &str) -> String {
    const OUTCOMES: &str = r#"
import ctypes, errno, os

libc = ctypes.CDLL(None, use_errno=True)

def outcome(act):
    try: act()
    except OSError as error: return errno.errorcode[error.errno]
    return "done"

def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
"#;
    format!("{OUTCOMES}{function}")
}
