//! Limits that are hit, and what is told about it.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use shm_bus::ids::PeerId;
use shm_bus::release::ReleaseWriter;
use shm_bus::segment::{Reader, SegmentName};

use spry_node::cgroup::{self, Arrangement, Controller, GroupLimits, Hierarchy, Tree, Version};
use spry_node::instance::{Instance, Parts};
use spry_node::zygote::{ExitHow, ForkError, Zygote};

use crate::process_support::{SEGMENT_LEN, Segments, Stage, fork, gone, next_line, outside, within};
use crate::{needs_control_group, needs_root};

#[tokio::test]
async fn memory_that_runs_out_is_told_and_the_neighbour_lives() {
    let stage = Stage::new();
    needs_control_group!(stage, Memory);
    let neighbour = stage.start("good", "idle").await.expect("start");
    let neighbour = fork(&neighbour).await.expect("fork");
    let zygote = stage.start("good", "bomb").await.expect("start");
    for _ in 0..2 {
        let instance = fork(&zygote).await.expect("fork");
        let exit = within("the end", instance.exited()).await;
        assert_eq!(exit.how, ExitHow::Signal(libc::SIGKILL));
        assert!(exit.out_of_memory, "{exit}");
        assert!(exit.cpu_time > Duration::ZERO && exit.max_rss_bytes > 64 << 20, "{exit:?}");
    }
    assert!(zygote.exit().is_none() && neighbour.exit().is_none());
    stage.executor.shutdown().await;
}

/// The same group is used again: what happened to one instance isn't held against the next.
#[tokio::test]
async fn a_reused_group_starts_with_a_clean_slate() {
    let stage = Stage::new();
    needs_control_group!(stage, Memory);
    let spec = stage.spec("good", "bomb");
    let bomber = Zygote::start(&stage.executor, &spec).await.expect("start");
    let instance = fork(&bomber).await.expect("fork");
    assert!(within("the end", instance.exited()).await.out_of_memory);
    let mut calm = stage.spec("good", "exit 3");
    calm.name = spec.name;
    let calm = Zygote::start(&stage.executor, &calm).await.expect("start");
    let instance = fork(&calm).await.expect("fork");
    let exit = within("the end", instance.exited()).await;
    assert_eq!((exit.how, exit.out_of_memory), (ExitHow::Code(3), false));
    stage.executor.shutdown().await;
}

/// What it died of is told, and isn't held against the next one either, if it was dead before it was known.
#[tokio::test]
async fn memory_that_runs_out_at_birth_is_told() {
    let stage = Stage::new();
    needs_control_group!(stage, Memory);
    let zygote = stage.start("presents-the-dead", "exit 3").await.expect("start");
    match within("the end", fork(&zygote)).await {
        Err(ForkError::Died(exit)) => assert!(exit.out_of_memory, "{exit}"),
        other => panic!("{other:?}"),
    }
    let instance = fork(&zygote).await.expect("fork");
    let exit = within("the end", instance.exited()).await;
    assert_eq!((exit.how, exit.out_of_memory), (ExitHow::Code(3), false));
    stage.executor.shutdown().await;
}

/// A redeploy may change the limits: the same group gets more, and less.
#[tokio::test]
async fn a_reused_group_gets_the_limits_of_who_is_in_it() {
    let stage = Stage::new();
    needs_control_group!(stage, Memory);
    let mut spec = stage.spec("good", "idle");
    let mut zygotes = Vec::new();
    for mebibytes in [64_u64, 256, 32, 512] {
        spec.limits.memory_bytes = mebibytes << 20;
        let zygote = Zygote::start(&stage.executor, &spec).await.expect("start");
        let instance = fork(&zygote).await.expect("fork");
        let found = settings(&stage, instance.pid, ["memory.limit_in_bytes", "memory.max"]);
        assert_eq!(found, [(mebibytes << 20).to_string()]);
        let swap =
            settings(&stage, instance.pid, ["memory.memsw.limit_in_bytes", "memory.memsw.limit_in_bytes"]);
        assert!(swap.iter().all(|limit| *limit == found[0]), "{swap:?}");
        instance.kill();
        within("the end", instance.exited()).await;
        zygotes.push(zygote); // the groups stay its function's
    }
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn no_more_processes_than_allowed_and_none_is_left() {
    let stage = Stage::new();
    needs_control_group!(stage, Pids);
    let mut spec = stage.spec("good", "forks");
    spec.limits.processes = 10;
    let zygote = Zygote::start(&stage.executor, &spec).await.expect("start");
    for _ in 0..2 {
        let instance = fork(&zygote).await.expect("fork");
        // the pipe stays open in the children, so only the first line can be awaited
        let line = next_line(&instance.stdout).await;
        // ten, and one more when the zygote, which was there at the birth, has left
        assert!(line.starts_with("made 9: EAGAIN") || line.starts_with("made 10: EAGAIN"), "{line}");
        let children = descendants(instance.pid);
        instance.kill();
        within("the end", instance.exited()).await;
        for child in children {
            gone(child).await;
        }
    }
    stage.executor.shutdown().await;
}

fn descendants(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
    text.split_whitespace().map(|pid| pid.parse().expect("pid")).collect()
}

#[tokio::test]
async fn killing_takes_grandchildren_that_left_session_and_parent() {
    let stage = Stage::new();
    needs_control_group!(stage, Pids);
    let zygote = stage.start("good", "grandchildren").await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let line = next_line(&instance.stdout).await;
    let pids = line.split_whitespace().map(|pid| outside(instance.pid, pid.parse().expect("pid")));
    let pids: Vec<i32> = pids.collect();
    assert_eq!(pids.len(), 3);
    instance.kill();
    within("the end", instance.exited()).await;
    for pid in pids {
        gone(pid).await;
    }
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn the_quota_is_set() {
    let stage = Stage::new();
    needs_control_group!(stage, Cpu);
    let mut spec = stage.spec("good", "idle");
    spec.limits.cpu = 0.25;
    let zygote = Zygote::start(&stage.executor, &spec).await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let values = settings(&stage, instance.pid, ["cpu.cfs_quota_us", "cpu.max"]);
    assert!(values == ["25000"] || values == ["25000 100000"], "{values:?}");
    stage.executor.shutdown().await;
}

/// What these files of a process's group say, in whichever hierarchy they are.
fn settings(stage: &Stage, pid: i32, files: [&str; 2]) -> Vec<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("groups");
    let own = format!("spry-{}/", stage.node);
    let (_, tail) = groups.lines().find_map(|line| line.split_once(&own)).expect("own group");
    let roots = stage.control_groups().into_iter();
    let files = roots.flat_map(|root| files.map(|file| root.join(tail).join(file)));
    files.filter_map(|file| Some(fs::read_to_string(file).ok()?.trim().to_owned())).collect()
}

#[tokio::test]
async fn a_process_that_takes_all_cpus_is_held_back() {
    let stage = Stage::new();
    needs_control_group!(stage, Cpu);
    let mut spec = stage.spec("good", "burn 1000000");
    spec.limits.cpu = 0.1;
    let zygote = Zygote::start(&stage.executor, &spec).await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", instance.pid)).expect("groups");
    let mark = format!("spry-{}/", stage.node);
    let tail = groups.lines().find_map(|line| line.split_once(&mark)).expect("own group").1.to_owned();
    let files: Vec<_> =
        stage.control_groups().into_iter().map(|root| root.join(&tail).join("cpu.stat")).collect();
    let throttled = || {
        let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
        let count = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        count.and_then(|count| count.parse::<u64>().ok()).expect("nr_throttled")
    };
    within("a period in which it was held back", async {
        while throttled() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    instance.kill();
    within("the end", instance.exited()).await;
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn cpu_time_is_told() {
    let stage = Stage::new();
    let zygote = stage.start("good", "burn 50").await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let exit = within("the end", instance.exited()).await;
    assert!(exit.cpu_time >= Duration::from_millis(50), "{exit:?}");
    stage.executor.shutdown().await;
}

/// Who is bound to no CPU runs where spryd may, and nowhere else.
#[tokio::test]
async fn an_instance_is_freed_to_spryds_own_cpus() {
    let this_thread = Pid::from_raw(0);
    let everywhere = sched_getaffinity(this_thread).expect("where this runs");
    let mut first = CpuSet::new();
    let number = (0..CpuSet::count()).find(|cpu| everywhere.is_set(*cpu) == Ok(true)).expect("a CPU");
    first.set(number).expect("there is such a one");
    sched_setaffinity(this_thread, &first).expect("bind");
    let stage = Stage::new();
    sched_setaffinity(this_thread, &everywhere).expect("unbind");
    let zygote = stage.start("good", "idle").await.expect("start");
    let segments = Segments::new();
    let process = zygote.fork(segments.request(1), || ()).await.expect("fork");
    let instance = Instance::new(Parts {
        peer: PeerId { slot: 0, generation: 1 },
        pid: process.pid,
        pidfd: Arc::clone(&process.pidfd),
        process: Arc::clone(&process.process),
        tracked: None,
        outbox: Arc::new(Reader::map(&segments.outbox, SEGMENT_LEN).expect("sealed")),
        outbox_name: SegmentName { id: 2, generation: 1 },
        own_inbox: None,
        release: ReleaseWriter::create("test-release").expect("a page"),
        requested_at: Instant::now(),
        cold: false,
        stdout: process.stdout.try_clone().expect("a copy"),
        stderr: process.stderr.try_clone().expect("a copy"),
        cpus: process.cpus(),
        output_max: 0,
        gate: None,
        ahead: false,
    });
    for cpu in [Some(number), None] {
        instance.bind_to(cpu);
        assert_eq!(instance.has_home(), cpu.is_some());
        assert_eq!(sched_getaffinity(Pid::from_raw(process.pid)), Ok(first), "bound to {cpu:?}");
    }
    stage.executor.shutdown().await;
}

/// Where there are no control groups: the watchdog.
#[tokio::test]
async fn without_control_groups_the_watchdog_holds_memory() {
    let stage = Stage::with(|config| config.use_cgroups = false);
    assert!(stage.control_groups().is_empty());
    let zygote = stage.start("good", "bomb").await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let exit = within("the end", instance.exited()).await;
    // the watchdog's kill, or, if the bomb was faster than a look, the allocation that RLIMIT_DATA refused
    assert_ne!(exit.how, ExitHow::Code(0));
    assert!(exit.out_of_memory || exit.how == ExitHow::Signal(libc::SIGABRT), "{exit:?}");
    let child = fork(&zygote).await.expect("the zygote is unharmed");
    child.kill();
    within("the end", child.exited()).await;
    stage.executor.shutdown().await;
}

/// v2's own files, in the v2 hierarchy of a hybrid node, which has no controllers of ours.
#[test]
fn a_v2_tree_is_made_killed_and_removed() {
    needs_root!();
    let groups = fs::read_to_string("/proc/self/cgroup").expect("groups");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let found = cgroup::layout::parse(&groups, &mounts);
    let Some(v2) = found.into_iter().find(|hierarchy| hierarchy.version == cgroup::Version::V2) else {
        return crate::process_support::skip("a_v2_tree_is_made_killed_and_removed", "a cgroup2 mount");
    };
    let node = format!("test-v2-{}", std::process::id());
    let tree = Tree::open_in(vec![v2.clone()], &node, Arrangement::default(), None).expect("tree");
    let function = tree.function("f").expect("function");
    let limits = GroupLimits { memory_bytes: 1 << 20, cpu: 1.0, processes: 3 };
    let mut leaf = function.lease("instance", &limits).expect("lease");
    let mut children: Vec<_> =
        (0..3).map(|_| std::process::Command::new("sleep").arg("1000").spawn().expect("sleep")).collect();
    for child in &children {
        leaf.place(child.id() as i32).expect("place");
        assert!(leaf.holds(child.id() as i32));
    }
    assert!(!leaf.holds(std::process::id() as i32));
    assert!(!tree.has(Controller::Memory));
    assert_eq!(leaf.kill().len(), 3);
    for child in &mut children {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().expect("wait").signal(), Some(libc::SIGKILL));
    }
    assert!(leaf.kill().is_empty());
    leaf.recycle();
    // a successor finds the tree by its name
    let tree = Tree::open_in(vec![v2.clone()], &node, Arrangement::default(), None).expect("again");
    tree.remove().expect("remove");
    assert!(!v2.own.join(format!("spry-{node}")).exists());
}

/// What was still listed when a group was emptied may be gone when it is looked for: the group was closed to newcomers all the same.
#[test]
fn a_group_that_was_closed_in_vain_is_open_to_who_comes_next() {
    const LIMITS: GroupLimits = GroupLimits { memory_bytes: 1 << 20, cpu: 1.0, processes: 3 };
    // A hierarchy of plain files: none of the kernel's lists who is gone for long enough.
    let folder = tempfile::tempdir().expect("folder");
    let (mount, own) = (folder.path().to_owned(), folder.path().to_owned());
    let hierarchy = Hierarchy { version: Version::V1, mount, own, controllers: vec![Controller::Pids] };
    let tree = Tree::open_in(vec![hierarchy], "test", Arrangement::default(), None).expect("tree");
    let function = tree.function("f").expect("function");
    let mut leaf = function.lease("instance", &LIMITS).expect("lease");
    let group = folder.path().join("spry-test/f").join(leaf.name());
    let limit = || fs::read_to_string(group.join("pids.max")).expect("the limit");
    assert_eq!(limit(), "3");
    fs::write(group.join("cgroup.procs"), format!("{}\n", i32::MAX)).expect("nobody has that number");
    assert!(leaf.kill().is_empty());
    assert_eq!(limit(), "0");
    let name = leaf.name().to_owned();
    leaf.recycle();
    let leaf = function.lease("instance", &LIMITS).expect("lease");
    assert_eq!((leaf.name(), &*limit()), (&*name, "3"));
}

/// Of a node with many functions: what spryd has open doesn't count for those that it starts.
#[tokio::test]
async fn spryds_own_descriptors_count_for_no_function() {
    let stage = Stage::new();
    let _held: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").expect("open")).collect();
    let mut spec = stage.spec("good", "idle");
    spec.limits.open_files = 64;
    let zygote = Zygote::start(&stage.executor, &spec).await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let limits = fs::read_to_string(format!("/proc/{}/limits", instance.pid)).expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    assert_eq!(line.split_whitespace().nth(3), Some("64"), "{line}");
    stage.executor.shutdown().await;
}
