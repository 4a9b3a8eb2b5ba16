//! After a reboot: what was deployed is served, and nobody had to do anything for it.

use crate::machine::{both_serve, journal, property, run};
use crate::need_a_guest;

#[test]
fn everything_that_was_deployed_serves() {
    need_a_guest!();
    assert_eq!(property("spryd", "ActiveState"), "active", "{}", journal());
    both_serve();
    assert_eq!(property("spryd", "NRestarts"), "0", "{}", journal());
}

#[test]
fn no_unit_has_failed() {
    need_a_guest!();
    let failed = run("systemctl", &["list-units", "--failed", "--plain", "--no-legend"]);
    assert_eq!(failed, "");
}
