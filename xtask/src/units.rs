//! The systemd units, looked over by systemd itself where it is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// The most that `systemd-analyze security` may call the daemon exposed to (of 10). It makes namespaces and loads BPF for its functions,
/// which costs most of what is left.
const EXPOSURE_MAX: f64 = 6.0;

fn units() -> Vec<PathBuf> {
    let folder = process::root().join("packaging/systemd");
    let listing = fs::read_dir(folder).expect("the units' folder");
    listing.flatten().map(|entry| entry.path()).collect()
}

/// The units in a folder of the test's own, with programs that are there.
fn installed(folder: &Path) -> Vec<PathBuf> {
    fs::create_dir_all(folder).expect("a folder");
    let install = |unit: PathBuf| {
        let text = fs::read_to_string(&unit).expect("a unit");
        let text = text.replace("ExecStart=/usr/bin/spry", "ExecStart=/bin/true -- spry");
        let place = folder.join(unit.file_name().expect("a name"));
        fs::write(&place, text).expect("written");
        place
    };
    units().into_iter().map(install).collect()
}

fn has_systemd() -> bool {
    let found = process::find_program("systemd-analyze").is_some();
    assert!(
        found || std::env::var_os("SPRY_TEST_ALL").is_none(),
        "SPRY_TEST_ALL is set, but there is no systemd-analyze"
    );
    if !found {
        println!("SKIPPED: no systemd-analyze");
    }
    found
}

#[test]
fn units_are_what_systemd_takes_for_units() {
    if !has_systemd() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("spry-units-{}", std::process::id()));
    let units = installed(&folder);
    assert!(units.len() >= 2, "{units:?}");
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units).output();
    let verify = verify.expect("systemd-analyze runs");
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("spry")).collect();
    assert!(verify.status.success() && ours.is_empty(), "{:?}: {said}", verify.status);
    let service = folder.join("spryd.service");
    let security = Command::new("systemd-analyze")
        .args(["security", "--no-pager", "--offline=yes"])
        .arg(&service)
        .output();
    let security = security.expect("systemd-analyze runs");
    let said = String::from_utf8_lossy(&security.stdout).into_owned();
    fs::remove_dir_all(&folder).expect("removed");
    let score = said.lines().find_map(|line| line.split_once("exposure level for spryd.service: "));
    let Some((_, score)) = score else {
        // Before systemd 250 a unit can't be looked at that isn't loaded.
        return println!("SKIPPED: this systemd-analyze says nothing of a unit that isn't loaded");
    };
    println!("spryd.service: {score}");
    let score: f64 = score.split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    assert!(score <= EXPOSURE_MAX, "exposure {score}:\n{said}");
}

#[test]
fn every_capability_that_is_kept_says_what_for() {
    let unit = fs::read_to_string(process::root().join("packaging/systemd/spryd.service")).expect("the unit");
    let kept = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let kept: Vec<&str> = kept.flat_map(str::split_whitespace).collect();
    assert!(kept.len() > 5, "{kept:?}");
    let explained: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .flat_map(|line| line.split("  ").next().unwrap_or_default().split_whitespace())
        .collect();
    for capability in kept {
        let name = capability.strip_prefix("CAP_").expect("a capability");
        assert!(explained.contains(&name), "{capability} is kept without a reason");
    }
}
