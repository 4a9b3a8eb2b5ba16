//! The scheduler against a kernel that has sched_ext: `cargo xtask vm test` runs this on several.
//!
//! One test at a time (there can be one scheduler), as root. Where the kernel has no sched_ext all of them are skipped,
//! or fail with `SPRY_TEST_ALL=1`... in a guest: elsewhere nobody can have it all.

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spry_scx::{OpenError, Scheduler, Standing, Task};
use support::{Finish, WATCHDOG, Work, Worker, monotonic};

/// What `cargo xtask vm` sets in a guest that has sched_ext.
const MUST: &str = "SPRY_TEST_SCHED_EXT";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// `spry-scx` as a process, with its maps in a folder of its own.
struct Running {
    program: Child,
    folder: PathBuf,
    scheduler: Scheduler,
    _out: BufReader<ChildStdout>,
    _turn: MutexGuard<'static, ()>,
}

impl Running {
    /// None: not here, and the reason is printed.
    fn start() -> Option<Self> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if !Path::new("/sys/kernel/sched_ext").is_dir() {
            assert!(std::env::var_os(MUST).is_none(), "this kernel should have sched_ext");
            println!("SKIP needs a kernel with sched_ext (cargo xtask vm test)");
            return None;
        }
        let folder = PathBuf::from(format!("/sys/fs/bpf/spry-scx-test-{}", std::process::id()));
        let mut program = Command::new(env!("CARGO_BIN_EXE_spry-scx"));
        program.arg("--pin-dir").arg(&folder).stdout(Stdio::piped());
        let mut program = program.spawn().expect("spry-scx starts");
        let mut line = String::new();
        let mut out = BufReader::new(program.stdout.take().expect("stdout is piped"));
        out.read_line(&mut line).expect("its first line");
        assert!(line.starts_with("spry-scx: scheduling"), "{line:?}");
        let scheduler = Scheduler::open(&folder).expect("it is there");
        Some(Self { program, folder, scheduler, _out: out, _turn: turn })
    }

    fn claim(&self, worker: &Worker) -> Task {
        self.claim_with(worker, None)
    }

    fn claim_with(&self, worker: &Worker, cpu: Option<f64>) -> Task {
        self.scheduler.claim(worker.pid.as_raw(), worker.pidfd.clone(), cpu).expect("a slot")
    }

    fn end(&mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.program.id()).expect("a pid"));
        kill(pid, signal).expect("it runs");
        self.program.wait().expect("it ends");
        until("the kernel has no scheduler", || state() == "disabled");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.program.kill();
        let _reaped = self.program.wait();
        for map in ["standings", "accounts", "health", "marks"] {
            let _gone = fs::remove_file(self.folder.join(map));
        }
        let _gone = fs::remove_dir(&self.folder);
        let deadline = Instant::now() + WATCHDOG;
        while state() != "disabled" && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

fn state() -> String {
    fs::read_to_string("/sys/kernel/sched_ext/state").unwrap_or_default().trim().to_owned()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not after {WATCHDOG:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn tasks_end_in_the_order_of_their_ranks() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    // The same work for all, so that nothing but the rank can make this order.
    let ranks = [500, 100, 300, 200, 400];
    let workers: Vec<(Worker, Task)> = (0..5)
        .map(|number| {
            let worker = Worker::start(number, Work::Compute(ms(40)), &finish);
            let task = running.claim(&worker);
            task.begin(ranks[usize::from(number)] * 1_000_000);
            (worker, task)
        })
        .collect();
    for (worker, _) in &workers {
        worker.go();
    }
    let order: Vec<u8> = workers.iter().map(|_| finish.next()).collect();
    // The first to be told may have begun before the others were there; it is preempted all the same.
    assert_eq!(order, [1, 3, 2, 4, 0]);
    assert!(running.scheduler.health().counts.enqueued >= 5);
}

#[test]
fn equal_ranks_take_turns() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    let hogs = [1, 2].map(|number| {
        let worker = Worker::start(number, Work::Forever, &finish);
        let task = running.claim(&worker);
        task.share(50_000_000);
        (worker, task)
    });
    for (worker, _) in &hogs {
        worker.go();
    }
    // Neither has waited for as long as makes him overdue.
    until("both run", || hogs.iter().all(|(_, task)| task.cpu_ns() > 20_000_000));
    assert_eq!(running.scheduler.health().counts.overdue, 0);
}

#[test]
fn who_sleeps_between_calls_that_nobody_tells_of_is_not_late() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    // Together longer than what makes a call overdue.
    let work = Work::Alternate { times: 30, compute: ms(2), sleep: ms(50) };
    let sleeper = Worker::start(1, work, &finish);
    let task = running.claim(&sleeper);
    task.share(50_000_000);
    // Somebody who goes before it whenever both could run, and sleeps often enough.
    let first = Worker::start(2, Work::Alternate { times: 60, compute: ms(30), sleep: ms(5) }, &finish);
    let firsts = running.claim(&first);
    firsts.share(0);
    sleeper.go();
    first.go();
    let (one, two) = (finish.next(), finish.next());
    assert_eq!(one + two, 3);
    assert_eq!(running.scheduler.health().counts.overdue, 0);
    sleeper.reap();
    first.reap();
}

#[test]
fn maps_that_others_could_have_put_there_are_refused_by_both_sides() {
    let Some(running) = Running::start() else { return };
    let open = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&running.folder, mode).expect("it is ours");
        Scheduler::open(&running.folder)
    };
    assert!(matches!(open(0o755), Err(OpenError::Untrusted { .. })));
    assert!(open(0o700).is_ok());
    std::os::unix::fs::chown(&running.folder, Some(12_345), None).expect("root gives it away");
    assert!(matches!(open(0o700), Err(OpenError::Untrusted { .. })));
    // A map of another kind under the right name.
    std::os::unix::fs::chown(&running.folder, Some(0), None).expect("root takes it back");
    let (marks, health) = (running.folder.join("marks"), running.folder.join("health"));
    fs::remove_file(&marks).expect("unpinned");
    fs::rename(&health, &marks).expect("renamed");
    fs::rename(running.folder.join("accounts"), &health).expect("renamed");
    assert!(matches!(open(0o700), Err(OpenError::Mismatch { .. })));
}

#[test]
fn a_shorter_arrival_takes_the_cpu() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    let long = Worker::start(1, Work::Forever, &finish);
    let long_task = running.claim(&long);
    long_task.begin(3_600_000_000_000);
    long.go();
    until("the long one runs", || long_task.cpu_ns() > 0);
    // It wakes by the clock, while the long one computes.
    let work = Work::Alternate { times: 4, compute: ms(1), sleep: ms(5) };
    let short = Worker::start(2, work, &finish);
    let task = running.claim(&short);
    task.begin(5_000_000);
    short.go();
    assert_eq!(finish.next(), 2);
    assert!(running.scheduler.health().counts.preempted >= 3, "it waited for the end of a slice");
    short.reap();
}

#[test]
fn who_sleeps_is_charged_for_cpu_time_only() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    let work = Work::Alternate { times: 10, compute: ms(1), sleep: ms(20) };
    let sleeper = Worker::start(0, work, &finish);
    let task = running.claim(&sleeper);
    let before = task.cpu_ns();
    task.begin(10_000_000);
    sleeper.go();
    assert_eq!(finish.next(), 0);
    let used = task.cpu_ns() - before;
    // What the machine's own host took from it looks like its own.
    assert!((8_000_000..150_000_000).contains(&used), "{used} ns of CPU, 200 ms of sleep");
    sleeper.reap();
}

#[test]
fn a_blocked_task_keeps_its_place() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    // While it sleeps the long one runs; whenever it wakes it has the CPU.
    let sleeper = Worker::start(1, Work::Alternate { times: 20, compute: ms(1), sleep: ms(2) }, &finish);
    let long = Worker::start(2, Work::Compute(ms(2000)), &finish);
    let (sleepers, longs) = (running.claim(&sleeper), running.claim(&long));
    sleepers.begin(20_000_000);
    longs.begin(2_000_000_000);
    long.go();
    sleeper.go();
    assert_eq!((finish.next(), finish.next()), (1, 2));
    sleeper.reap();
    long.reap();
}

#[test]
fn children_are_charged_to_the_same_slot_and_have_its_rank() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    let forks = Worker::start(1, Work::InChild(ms(60)), &finish);
    let other = Worker::start(2, Work::Compute(ms(60)), &finish);
    let (forker, plain) = (running.claim(&forks), running.claim(&other));
    forker.stand(Standing { rank: 900_000_000, fall: 0 });
    plain.stand(Standing { rank: 100_000_000, fall: 0 });
    let before = forker.cpu_ns();
    forks.go();
    other.go();
    assert_eq!((finish.next(), finish.next()), (2, 1), "a fork made it young");
    assert!(forker.cpu_ns() - before >= 60_000_000);
    forks.reap();
    other.reap();
}

#[test]
fn a_quota_holds_though_cpu_max_does_not_reach_this_class() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    let greedy = Worker::start(0, Work::Forever, &finish);
    let task = running.claim_with(&greedy, Some(0.2));
    task.begin(1_000_000);
    let (began, before) = (monotonic(), task.cpu_ns());
    greedy.go();
    until("it has used some of its quotas", || task.cpu_ns() - before > 300_000_000);
    let used = task.cpu_ns() - before;
    let elapsed = u64::try_from((monotonic() - began).as_nanos()).expect("a short time");
    // The quota of each period that was begun, what ran on until the next tick of the clock, and what the machine's own host took.
    let allowed = (elapsed / 100_000_000 + 2) * 20_000_000 + 60_000_000;
    assert!(used <= allowed, "{used} ns of CPU in {elapsed} ns, with 0.2 cores");
    assert!(running.scheduler.health().counts.spent > 0);
}

#[test]
fn who_gets_a_slot_pays_nothing_back_for_who_had_it_before() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    let (greedy, next) =
        (Worker::start(1, Work::Forever, &finish), Worker::start(2, Work::Compute(ms(0)), &finish));
    let spent = || running.scheduler.health().counts.spent;
    let task = running.claim_with(&greedy, Some(0.2));
    greedy.go();
    until("its quota is used up", || spent() > 0);
    // (In this order: else it would live until its quota let it end.)
    drop(task);
    drop(greedy);
    let before = spent();
    let _task = running.claim_with(&next, Some(0.2));
    next.go();
    assert_eq!(finish.next(), 2);
    assert_eq!(spent(), before, "it waited for the end of a period in which it had nothing");
    next.reap();
}

#[test]
fn a_liar_starves_nobody() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    let liar = Worker::start(1, Work::Forever, &finish);
    let lies = running.claim(&liar);
    // Nobody goes before it, ever.
    lies.stand(Standing { rank: 0, fall: 0 });
    liar.go();
    until("the liar runs", || lies.cpu_ns() > 0);
    let honest = Worker::start(2, Work::Compute(ms(30)), &finish);
    let task = running.claim(&honest);
    task.begin(30_000_000);
    let (began, before) = (monotonic(), lies.cpu_ns());
    honest.go();
    assert_eq!(finish.next(), 2);
    assert!(running.scheduler.health().counts.overdue > 0, "it came through in another way");
    // Due after 1 s; then 20 ms of every 200 for it; slack for what runs above this class.
    let liars = Duration::from_nanos(lies.cpu_ns() - before);
    assert!(liars < ms(1000 + 30 * 10 + 20 + 2 * 200), "the liar had {liars:?}");
    assert!(liars <= monotonic() - began + ms(20));
    honest.reap();
}

#[test]
fn who_is_never_due_gets_a_turn_before_the_watchdog_bites() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    let first = Worker::start(1, Work::Forever, &finish);
    let last = Worker::start(2, Work::Compute(ms(1)), &finish);
    let (firsts, lasts) = (running.claim(&first), running.claim(&last));
    firsts.stand(Standing { rank: 0, fall: 0 });
    first.go();
    until("the first one runs", || firsts.cpu_ns() > 0);
    // Due in a minute.
    lasts.begin(3_600_000_000_000);
    let (began, before) = (monotonic(), firsts.cpu_ns());
    last.go();
    assert_eq!(finish.next(), 2);
    let (counts, others) = (running.scheduler.health().counts, firsts.cpu_ns() - before);
    assert!(
        counts.revived > 0,
        "{counts:?}: after {:?}, of which the other had {others} ns",
        monotonic() - began
    );
    assert_eq!(state(), "enabled");
    last.reap();
}

#[test]
fn killing_the_program_loses_no_task() {
    let Some(mut running) = Running::start() else { return };
    let finish = Finish::new();
    let workers: Vec<(Worker, Task)> = (0..8)
        .map(|number| {
            let worker = Worker::start(number, Work::Compute(ms(50)), &finish);
            let task = running.claim(&worker);
            task.begin(50_000_000);
            (worker, task)
        })
        .collect();
    for (worker, _) in &workers {
        worker.go();
    }
    let first = finish.next();
    running.end(Signal::SIGKILL);
    let mut done: Vec<u8> = (1..8).map(|_| finish.next()).chain([first]).collect();
    done.sort_unstable();
    assert_eq!(done, (0..8).collect::<Vec<u8>>());
    let health = running.scheduler.health();
    assert!(!health.running && !running.scheduler.is_running());
    assert_eq!(health.exit_kind, 64, "{health}");
    assert!(matches!(Scheduler::open(&running.folder), Err(OpenError::Ended(_))));
    for (worker, task) in workers {
        drop(task);
        worker.reap();
    }
}

#[test]
fn told_to_end_it_takes_its_maps_away_and_another_can_start() {
    let Some(mut running) = Running::start() else { return };
    running.end(Signal::SIGTERM);
    assert!(!running.folder.exists());
    assert!(matches!(Scheduler::open(&running.folder), Err(OpenError::Open { .. })));
    drop(running);
    let again = Running::start().expect("it was here a moment ago");
    assert!(again.scheduler.is_running());
}

#[test]
fn ejected_by_the_kernel_it_says_why_and_ends() {
    let Some(mut running) = Running::start() else { return };
    let finish = Finish::new();
    let worker = Worker::start(3, Work::Compute(ms(30)), &finish);
    let task = running.claim(&worker);
    task.begin(30_000_000);
    worker.go();
    // What an administrator can do at any time.
    fs::write("/proc/sysrq-trigger", "S").expect("sysrq");
    let status = running.program.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    let health = running.scheduler.health();
    assert!(!health.running && health.exit_kind > 64 && !health.reason.is_empty(), "{health:?}");
    assert_eq!(finish.next(), 3);
    drop(task);
    worker.reap();
}

#[test]
fn only_who_was_claimed_is_scheduled_and_who_is_forgotten_goes_back() {
    let Some(running) = Running::start() else { return };
    let finish = Finish::new();
    let worker = Worker::start(4, Work::Compute(ms(1)), &finish);
    // SAFETY: takes a number, returns one.
    let class = |pid| unsafe { libc::sched_getscheduler(pid) };
    let task = running.claim(&worker);
    assert!(task.is_claimed().expect("it lives"));
    assert_eq!(class(0), libc::SCHED_OTHER, "this process");
    drop(task);
    assert_eq!(class(worker.pid.as_raw()), libc::SCHED_OTHER);
    // Its slot is free again, for another process, with nothing of the old one's in it.
    let next = running.claim_with(&worker, Some(1.0));
    drop(next);
    worker.go();
    assert_eq!(finish.next(), 4);
    worker.reap();
}
