//! Afterwards nothing is left: no descriptor, process, zombie, thread or control group; not after two hundred
//! instances, and not after a spryd that was killed.
//!
//! A program of its own, with one test: descriptors and threads are counted for the whole process.

mod process_support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use process_support::{Stage, exists, fork, gone, within};
use spry_node::zygote::Zygote;

/// Set for a copy of this program that plays a spryd to be killed.
const VICTIM: &str = "SPRY_TEST_VICTIM";
const CYCLES: usize = 200;

#[test]
fn nothing_is_left() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    if let Some(node) = std::env::var_os(VICTIM) {
        return runtime().block_on(victim(node.to_str().expect("text")));
    }
    let threads = count("/proc/self/task");
    // what is made once per process (the runtime's own descriptors are part of each round)
    runtime().block_on(cycles(3));
    let before = census(threads);
    runtime().block_on(cycles(CYCLES));
    assert_eq!(census(threads), before, "after {CYCLES} instances");
    after_a_crash(&runtime());
    assert_eq!(census(threads), before, "after a crash");
}

fn count(folder: &str) -> usize {
    fs::read_dir(folder).expect("list").count()
}

/// Descriptors and children of this process, when it has no more threads than this. (One that was joined is listed a little longer.)
fn census(threads: usize) -> (usize, Vec<String>) {
    let started = std::time::Instant::now();
    while count("/proc/self/task") > threads {
        assert!(started.elapsed() < process_support::WATCHDOG, "a thread is left");
        std::thread::yield_now();
    }
    let threads = fs::read_dir("/proc/self/task").expect("threads").flatten();
    let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children = children.flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    (count("/proc/self/fd"), children.collect())
}

async fn cycles(count: usize) {
    let stage = Stage::new();
    let mut pids = Vec::new();
    let mut zygote = stage.start("good", "idle").await.expect("start");
    for cycle in 0..count {
        if cycle % 20 == 10 {
            zygote = stage.start("strays", "grandchildren").await.expect("start");
        } else if cycle % 20 == 0 {
            zygote = stage.start("good", "idle").await.expect("start");
        }
        pids.push(zygote.pid());
        let instance = fork(&zygote).await.expect("fork");
        pids.push(instance.pid);
        match cycle % 3 {
            0 => drop(instance),
            1 => {
                instance.kill();
                within("the end", instance.exited()).await;
            }
            _ => zygote.kill(),
        }
        if zygote.exit().is_some() || cycle % 3 == 2 {
            zygote = stage.start("good", "idle").await.expect("start");
        }
    }
    drop(zygote);
    let groups = stage.control_groups();
    stage.executor.shutdown().await;
    for pid in pids {
        assert!(!exists(pid), "process {pid}");
    }
    for group in groups {
        assert!(!group.exists(), "{}", group.display());
    }
}

/// Starts functions, tells their pids, and waits to be killed.
async fn victim(node: &str) {
    let stage = Stage::named(node.to_owned(), |config| config.cgroup_record = None);
    let zygote: Zygote = stage.start("good", "grandchildren").await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    println!("VICTIM {} {}", zygote.pid(), instance.pid);
    std::future::pending::<()>().await;
}

fn after_a_crash(runtime: &tokio::runtime::Runtime) {
    let node = format!("test-crash-{}", std::process::id());
    let mut victim = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "nothing_is_left", "--nocapture"])
        .env(VICTIM, &node)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start a victim");
    let lines = BufReader::new(victim.stdout.take().expect("stdout")).lines();
    let told = lines.map_while(Result::ok).find(|line| line.contains("VICTIM ")).expect("pids");
    let pids = told.split_once("VICTIM ").expect("pids").1.split_whitespace();
    let pids: Vec<i32> = pids.map(|pid| pid.parse().expect("pid")).collect();
    victim.kill().expect("kill");
    victim.wait().expect("wait");
    runtime.block_on(async {
        gone(pids[0]).await; // the zygote goes with its parent, by the death signal
        let stage = Stage::named(node.clone(), |config| config.cgroup_record = None);
        let groups = stage.control_groups();
        if !groups.is_empty() {
            // the instance and its children: by their control group
            gone(pids[1]).await;
            for group in &groups {
                assert_eq!(entries(group), [] as [String; 0], "a tree of a new spryd");
            }
        }
        stage.executor.shutdown().await;
        assert!(groups.iter().all(|group| !group.exists()));
    });
}

fn entries(group: &Path) -> Vec<String> {
    let entries = fs::read_dir(group).expect("list").flatten().filter(|entry| entry.path().is_dir());
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
