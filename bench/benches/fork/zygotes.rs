//! Instances as spryd makes them: a zygote with its function loaded, confined, in control groups, is asked to fork.
//!
//! - *fork to hello*: from the request to the zygote until the new process has said that it can serve (it has mapped
//!   its segments, sealed its outbox, opened its end of the bus). What an invocation waits for when no instance is
//!   there and none is ready.
//! - *fork to hello, one more of eight*: the same for a zygote that has never had so many, so that each has a control group made for it.
//! - *whole life*: also the place on the bus and the memory before, and killing and reaping after: to be compared
//!   with the `process` group, whose cases end and reap too.
//!
//! The zygotes are the real runtimes, from `spry_node::embedded`. All processes are ended and all control groups
//! removed at the end, also on Ctrl-C and when something fails.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use shm_bus::ids::{FunctionIndex, PeerId};
use shm_bus::release::ReleaseWriter;
use shm_bus::segment::{self, Reader};
use shm_bus::transport::{Attachment, Config, Selected, Transport, select};
use spry_bench::sys;
use spry_node::embedded;
use spry_node::zygote::{
    Egress, Executor, ExecutorConfig, ForkRequest, InstanceProcess, Launch, ProcessLimits, Runtime, Zygote,
    ZygoteSpec, find_interpreter,
};
use spry_wire::control::SegmentSpec;
use spry_wire::freeze::Freeze;
use tokio::runtime::Runtime as EventLoop;

/// A user that nobody has.
pub(super) const UID: u32 = 61_235;
pub(super) const INBOX_LEN: u64 = 64 << 20;
const OUTBOX_LEN: u64 = 32 << 20;
const PAYLOAD_MAX: u64 = 6 << 20;
/// What the shell's users expect of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// The bench group.
pub(crate) fn zygotes(criterion: &mut Criterion) {
    if !geteuid().is_root() {
        return eprintln!("zygote/* is left out: only root can give functions users of their own");
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        sys::note_signal(signal).expect("note a signal");
    }
    let mut node = Node::new();
    for (language, spec) in [("native", node.native()), ("Python", node.python())] {
        match spec {
            Ok(spec) => node.measure(criterion, language, &spec),
            Err(why) => eprintln!("zygote/*, {language} is left out: {why}"),
        }
    }
    super::frozen::frozen(criterion, &mut node);
    node.end();
}

/// The part of a spryd that makes function processes.
pub(super) struct Node {
    pub(super) events: EventLoop,
    pub(super) executor: Arc<Executor>,
    pub(super) bus: Arc<dyn Transport>,
    folder: tempfile::TempDir,
    /// The last instance's number.
    instances: u64,
}

/// What is in use while an instance lives.
pub(super) struct Life {
    process: InstanceProcess,
    pub(super) peer: PeerId,
    pub(super) outbox: Reader,
    _release: ReleaseWriter,
    /// From the request to the hello.
    fork: Duration,
}

/// What an instance is given, made before it is asked for.
pub(super) struct Prepared {
    attachment: Attachment,
    outbox_fd: OwnedFd,
    outbox: Reader,
    release: ReleaseWriter,
}

impl Node {
    fn new() -> Self {
        let events = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("event loop");
        let Selected { transport: bus, passed_over } = select(None, Config::default()).expect("a transport");
        for (kind, why) in passed_over {
            eprintln!("zygote/*: not on transport {kind}: {why}");
        }
        let folder = tempfile::Builder::new().prefix("fork-bench-").tempdir().expect("a folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("open the folder to all");
        let runtimes = embedded::extract(&folder.path().join("runtime")).expect("write the runtimes");
        let native = Launch { program: runtimes.native_loader, ..Launch::default() };
        let mut arguments: Vec<OsString> = embedded::PYTHON_OPTIONS.iter().map(OsString::from).collect();
        arguments.push(embedded::PYTHON_BOOTSTRAP.into());
        let module = runtimes.python_dir.display().to_string();
        let env = BTreeMap::from([(embedded::PYTHON_DIR_VARIABLE.to_owned(), module)]);
        let python = Launch { arguments, env, files: vec![runtimes.python_dir], ..Launch::default() };
        let mut config = ExecutorConfig::new(format!("bench-{}", std::process::id()), native, python);
        config.cgroup_record = Some(folder.path().join("cgroups"));
        let executor = {
            let _inside = events.enter();
            Executor::new(config).expect("make function processes")
        };
        Self { events, executor, bus, folder, instances: 0 }
    }

    /// A folder that functions' users can read.
    pub(super) fn code(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).expect("a folder for code");
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("open the folder to all");
        folder
    }

    fn native(&self) -> Result<ZygoteSpec, String> {
        let own = std::env::current_exe().expect("this program's path");
        let built = own.ancestors().nth(2).expect("a profile's folder").join("libexample_nop.so");
        let code = self.code("native");
        fs::copy(&built, code.join("nop.so")).map_err(|error| {
            format!("copy {} (`cargo xtask bench fork` builds it): {error}", built.display())
        })?;
        readable(&code.join("nop.so"));
        Ok(spec("bench-native", Runtime::Native, "nop.so", code))
    }

    fn python(&self) -> Result<ZygoteSpec, String> {
        let interpreter = find_interpreter(None, Some((UID, UID))).map_err(|error| error.to_string())?;
        let code = self.code("python");
        fs::write(code.join("nop.py"), "def main(params):\n    return {}\n").expect("write nop.py");
        readable(&code.join("nop.py"));
        Ok(spec("bench-python", Runtime::Python { interpreter }, "nop:main", code))
    }

    fn measure(&mut self, criterion: &mut Criterion, language: &str, spec: &ZygoteSpec) {
        let zygote = self.events.block_on(Zygote::start(&self.executor, spec)).expect("start a zygote");
        let inbox = segment::create("bench-inbox", INBOX_LEN).expect("an inbox");
        let mut group = criterion.benchmark_group("zygote");
        group.sample_size(20);
        group.bench_function(format!("fork to hello, {language}"), |bencher| {
            bencher.iter_custom(|count| {
                let lives = (0..count).map(|_| {
                    let life = self.begin(&zygote, inbox.as_fd());
                    let fork = life.fork;
                    self.finish(life);
                    fork
                });
                lives.sum()
            });
        });
        group.bench_function(format!("fork to hello, one more of eight, {language}"), |bencher| {
            bencher.iter_custom(|count| (0..count).map(|_| self.grow(spec, inbox.as_fd())).sum());
        });
        group.bench_function(format!("whole life, {language}"), |bencher| {
            bencher.iter_custom(|count| {
                let lives = (0..count).map(|_| {
                    let started = Instant::now();
                    let life = self.begin(&zygote, inbox.as_fd());
                    self.finish(life);
                    started.elapsed()
                });
                lives.sum()
            });
        });
        group.finish();
        zygote.kill();
        self.events.block_on(zygote.exited());
    }

    /// One of eight that live at the same time, on average.
    fn grow(&mut self, spec: &ZygoteSpec, inbox: std::os::fd::BorrowedFd<'_>) -> Duration {
        const TOGETHER: u32 = 8;
        // With control groups of its own: those of other zygotes of that name would be used again.
        let spec = ZygoteSpec { name: format!("{}-more", spec.name), ..spec.clone() };
        let zygote = self.events.block_on(Zygote::start(&self.executor, &spec)).expect("start a zygote");
        let lives: Vec<Life> = (0..TOGETHER).map(|_| self.begin(&zygote, inbox)).collect();
        let sum: Duration = lives.iter().map(|life| life.fork).sum();
        lives.into_iter().for_each(|life| self.finish(life));
        zygote.kill();
        self.events.block_on(zygote.exited());
        sum / TOGETHER
    }

    /// What `spry_node::keeper` does for a birth, up to the hello.
    fn begin(&mut self, zygote: &Zygote, inbox: std::os::fd::BorrowedFd<'_>) -> Life {
        let prepared = self.prepare();
        self.fork(zygote, inbox, prepared, |_| ())
    }

    pub(super) fn prepare(&mut self) -> Prepared {
        self.stop_if_told();
        self.instances += 1;
        let attachment = self.bus.attach(FunctionIndex(0)).expect("a place on the bus");
        let outbox_fd = segment::create("bench-outbox", OUTBOX_LEN).expect("an outbox");
        let outbox = Reader::map(outbox_fd.as_fd(), OUTBOX_LEN).expect("map the outbox");
        let release = ReleaseWriter::create("bench-release").expect("a release page");
        Prepared { attachment, outbox_fd, outbox, release }
    }

    pub(super) fn fork(
        &mut self,
        zygote: &Zygote,
        inbox: std::os::fd::BorrowedFd<'_>,
        prepared: Prepared,
        under_way: impl FnOnce(PeerId),
    ) -> Life {
        let Prepared { attachment: Attachment { peer, endpoint }, outbox_fd, outbox, release } = prepared;
        let segment = |id, len: u64| SegmentSpec { id, generation: 1, len: len as u32 };
        let request = ForkRequest {
            instance: self.instances,
            transport: self.bus.kind(),
            endpoint,
            inbox: (inbox, segment(1, INBOX_LEN)),
            outbox: (outbox_fd.as_fd(), segment(2, OUTBOX_LEN)),
            release_page: release.fd(),
            payload_max: PAYLOAD_MAX,
            when_all_have_ended: None,
        };
        let started = Instant::now();
        let process =
            self.events.block_on(zygote.fork(request, || under_way(peer))).expect("fork an instance");
        let fork = started.elapsed();
        Life { process, peer, outbox, _release: release, fork }
    }

    /// Ends an instance and waits until it has been reaped and its control group is empty.
    pub(super) fn finish(&self, life: Life) {
        life.process.kill();
        self.events.block_on(life.process.exited());
        self.bus.detach(life.peer);
    }

    fn stop_if_told(&self) {
        if sys::signalled() {
            self.end();
            // The folder's destructor won't run. That it can't be removed would be no reason to go on.
            let _ = fs::remove_dir_all(self.folder.path());
            std::process::exit(INTERRUPTED);
        }
    }

    fn end(&self) {
        self.events.block_on(self.executor.shutdown());
    }
}

pub(super) fn readable(file: &Path) {
    fs::set_permissions(file, Permissions::from_mode(0o644)).expect("open the code to all");
}

pub(super) fn spec(name: &str, runtime: Runtime, handler: &str, code: PathBuf) -> ZygoteSpec {
    ZygoteSpec {
        name: name.to_owned(),
        runtime,
        handler: handler.to_owned(),
        code,
        packages: None,
        secrets: Vec::new(),
        env: BTreeMap::new(),
        uid_gid: Some((UID, UID)),
        limits: ProcessLimits::default(),
        egress: Egress::None,
        single_use: false,
        freeze: Freeze::default(),
        rewind: Err("forks are what is measured".to_owned()),
    }
}
