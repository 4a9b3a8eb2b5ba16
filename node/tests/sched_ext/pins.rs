//! What may lie where the maps of a scheduler should be.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::machine::{Loader, Node, PINS, guest};

#[test]
fn maps_of_the_dead_of_another_layout_or_of_somebody_else_are_refused_and_said() {
    let Some(_turn) = guest() else { return };
    Loader::start().kill();
    assert!(Path::new(PINS).join("health").exists(), "what was killed leaves its maps");
    let node = Node::start(&["short"]);
    let how = node.until_uses("posix", "has ended");
    assert!(how.contains(&format!("what is pinned in {PINS} has ended (spry-scx ended)")), "{how}");

    let set = |mode| fs::set_permissions(PINS, fs::Permissions::from_mode(mode)).expect("it is ours");
    set(0o755);
    node.until_uses("posix", "is open to others than its owner: the maps there aren't trusted");
    set(0o700);
    chown(PINS, Some(12_345), None).expect("root gives it away");
    node.until_uses("posix", "belongs to user 12345, not to root: the maps there aren't trusted");
    chown(PINS, Some(0), None).expect("root takes it back");

    let at = |name: &str| Path::new(PINS).join(name);
    fs::remove_file(at("standings")).expect("unpinned");
    fs::rename(at("accounts"), at("standings")).expect("renamed");
    fs::rename(at("health"), at("accounts")).expect("renamed");
    fs::rename(at("standings"), at("health")).expect("renamed");
    let how = node.until_uses("posix", "is not a map of this version of spry-scx");
    assert!(how.contains("it has 4096 values of 64 bytes, not 1 of 464"), "{how}");
    assert_eq!(node.scheduler()["fallbacks"], 0);
    node.burn("short", "1000");

    // A scheduler that starts puts its own in their place.
    let loader = Loader::start();
    node.until_uses("sched_ext", "");
    node.burn("short", "1000");
    node.stop();
    drop(loader);
}
