//! The pid namespace of a zygote and its instances, and its init.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::needs_root;
use crate::process_support::{Stage, UID, fork, gone, next_line, outside, within};

#[tokio::test]
async fn an_init_shows_nothing_and_holds_nothing() {
    needs_root!();
    let stage = Stage::new();
    let zygote = stage.start("good", "idle").await.expect("start");
    let init = outside(zygote.pid(), 1);
    let read = |file: &str| fs::read_to_string(format!("/proc/{init}/{file}")).expect("read");
    assert_eq!(read("cmdline"), "spry-init\0");
    assert_eq!(read("environ"), "");
    let status = read("status");
    for line in [
        format!("Uid:\t{UID}\t{UID}\t{UID}\t{UID}"),
        "CapEff:\t0000000000000000".to_owned(),
        "CapBnd:\t0000000000000000".to_owned(),
        "NoNewPrivs:\t1".to_owned(),
    ] {
        assert!(status.contains(&line), "{line}: {status}");
    }
    // The function's processes have the same user: its memory, its root (which is the host's) and its descriptors would be
    // theirs to see, if the kernel didn't take it for one that must not be looked into.
    assert_eq!(fs::metadata(format!("/proc/{init}/mem")).expect("its memory").uid(), 0);
    let files = fs::read_dir(format!("/proc/{init}/fd")).expect("descriptors").flatten();
    let mut files: Vec<_> = files.map(|entry| fs::read_link(entry.path()).expect("a link")).collect();
    files.sort();
    let files: Vec<_> = files.iter().map(|file| file.to_str().expect("text")).collect();
    assert_eq!(files, ["/dev/null", "/dev/null", "/dev/null", "/memfd:spry-init (deleted)"]);
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn an_init_ends_with_the_last_that_is_held() {
    needs_root!();
    let stage = Stage::new();
    let zygote = stage.start("good", "idle").await.expect("start");
    let init = outside(zygote.pid(), 1);
    let instance = fork(&zygote).await.expect("fork");
    assert_eq!(outside(instance.pid, 1), init, "one for all");
    drop(zygote);
    assert_eq!(outside(instance.pid, 1), init, "the instance is held still");
    drop(instance);
    gone(init).await;
    stage.executor.shutdown().await;
}

/// Where control groups don't do it, nothing else would reach who has left his session and his parent.
#[tokio::test]
async fn what_is_left_dies_with_its_namespace() {
    needs_root!();
    let stage = Stage::with(|config| config.use_cgroups = false);
    let zygote = stage.start("good", "grandchildren").await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let line = next_line(&instance.stdout).await;
    let left: Vec<i32> =
        line.split_whitespace().map(|pid| outside(instance.pid, pid.parse().expect("pid"))).collect();
    assert_eq!(left.len(), 3);
    drop((instance, zygote));
    for pid in left {
        gone(pid).await;
    }
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn a_killed_init_takes_everything_along_and_is_no_harm_to_others() {
    needs_root!();
    let stage = Stage::new();
    let zygote = stage.start("good", "idle").await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let other = stage.start("good", "idle").await.expect("start");
    kill(Pid::from_raw(outside(zygote.pid(), 1)), Signal::SIGKILL).expect("kill");
    within("the zygote's end", zygote.exited()).await;
    within("the instance's end", instance.exited()).await;
    fork(&zygote).await.expect_err("it is dead");
    fork(&other).await.expect("the other forks");
    stage.executor.shutdown().await;
}
