//! In memory: which segments it gets, and what it can do to them.

use super::{SECRETS, Scene, is_ended};

/// The secret, backwards: so that the request itself doesn't hold it.
fn backwards(text: &str) -> Vec<u8> {
    text.bytes().rev().collect()
}

pub(super) fn asks_around(scene: &Scene) {
    for secret in SECRETS {
        let report = scene.call("ends", "do=map&to=40", &backwards(secret)).text();
        let own = report.lines().find_map(|line| line.strip_prefix("own ")?.parse::<u32>().ok());
        assert!(own.is_some_and(|own| (8..40).contains(&own)), "all names were tried: {report}");
        let granted: Vec<_> = report.lines().filter_map(|line| line.strip_prefix("granted ")).collect();
        // Its own, and the one that its input came from.
        for name in ["copy", "chain-hostile"] {
            assert!(granted.contains(&format!("/memfd:spry-outbox-{name} nothing").as_str()), "{report}");
        }
        assert_eq!(granted.len(), 2, "{report}");
        let report = scene.call("chain-hostile", "do=map&to=40", &backwards(secret)).text();
        assert!(report.contains("refused 120") && !report.contains("granted"), "{report}");
    }
    scene.serves_on("asking around");
}

pub(super) fn guesses(scene: &Scene) {
    for name in ["attacked", "begins", "ends", "chain-hostile"] {
        is_ended(&scene.call(name, "do=guess", b"value"), name);
    }
    scene.serves_on("guessing at segments");
}

pub(super) fn writes(scene: &Scene) {
    let futex = scene.daemon.spry_json(&["status"])["transport"] == "futex";
    for name in ["ends", "chain-hostile"] {
        let report = scene.call(name, "do=write", b"value").text();
        let mut tried = vec!["own", "/memfd:spry-inbox-", "/memfd:spry-release-"];
        if name == "ends" {
            tried.extend(["granted", "/memfd:spry-outbox-copy"]);
        }
        if futex {
            tried.push("/memfd:spry-bus-hub");
        }
        for what in tried {
            assert!(report.contains(&format!(" {what}")), "{name} has not tried {what}: {report}");
        }
        let done: Vec<_> = report.lines().filter(|line| line.ends_with(" done")).collect();
        assert!(done.iter().all(|line| line.starts_with("fill ")), "{name}: {done:?}\n{report}");
    }
    scene.serves_on("writing everywhere");
}

pub(super) fn spoils(scene: &Scene) {
    for (name, expected) in [("attacked", "tail:value"), ("begins", "tail:value"), ("chain-hostile", "value")]
    {
        let response = scene.call(name, "do=spoil", b"value");
        assert_eq!((response.status, response.text()), (200, expected.into()), "{name}");
    }
    scene.serves_on("writing to its input");
}
