//! What the tests of function processes share: executors of their own, a zygote program, and skips that count.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

mod outside;
pub mod program;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use shm_bus::segment;
use shm_bus::transport::Kind;
use spry_node::zygote::{
    Egress, Executor, ExecutorConfig, ForkError, ForkRequest, InstanceProcess, Launch, ProcessLimits,
    Runtime, StartError, Zygote, ZygoteSpec,
};
use spry_wire::control::SegmentSpec;
use tokio::io::unix::AsyncFd;

/// A user that nobody has.
pub const UID: u32 = 61_234;
/// Far beyond what anything here takes; a test that waits so long hangs.
pub const WATCHDOG: Duration = Duration::from_secs(60);
/// How long each of [`Segments`] is.
pub const SEGMENT_LEN: u64 = 1 << 20;

static SKIPPED: AtomicUsize = AtomicUsize::new(0);
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Ends the calling test, counted and with the reason, unless everything was asked for.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os("SPRY_TEST_ALL").is_none(), "SPRY_TEST_ALL is set, but {test} needs: {reason}");
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    eprintln!("SKIPPED ({count} so far): {test}: needs {reason}");
}

/// Returns from the calling test unless it runs as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            $crate::process_support::skip(std::module_path!(), "root");
            return;
        }
    };
}

/// Returns from the calling test unless control groups hold this limit.
#[macro_export]
macro_rules! needs_control_group {
    ($stage:expr, $controller:ident) => {
        if !$stage.executor.has_control_group(spry_node::cgroup::Controller::$controller) {
            $crate::process_support::skip(
                std::module_path!(),
                concat!("a control group for ", stringify!($controller)),
            );
            return;
        }
    };
}

/// An executor and folders of its own.
pub struct Stage {
    pub executor: Arc<Executor>,
    pub node: String,
    pub folder: tempfile::TempDir,
}

impl Stage {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(adjust: impl FnOnce(&mut ExecutorConfig)) -> Self {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let node = format!("test-{}-{serial}", std::process::id());
        Self::named(node, adjust)
    }

    pub fn named(node: String, adjust: impl FnOnce(&mut ExecutorConfig)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let env = [(program::MARK.to_owned(), "1".to_owned())].into();
        let native = Launch { program: program_path(), env, ..Launch::default() };
        let mut config = ExecutorConfig::new(node.clone(), native, Launch::default());
        config.cgroup_record = Some(folder.path().join("cgroups"));
        config.start_timeout = WATCHDOG;
        config.fork_timeout = WATCHDOG;
        adjust(&mut config);
        let executor = Executor::new(config).expect("executor");
        Self { executor, node, folder }
    }

    /// A function whose zygote and instances behave as said; see [`program`].
    pub fn spec(&self, zygote: &str, instance: &str) -> ZygoteSpec {
        let code = self.folder.path().join("code");
        fs::create_dir_all(&code).expect("code folder");
        fs::set_permissions(&code, fs::Permissions::from_mode(0o755)).expect("chmod");
        let uid_gid = nix::unistd::geteuid().is_root().then_some((UID, UID));
        ZygoteSpec {
            name: format!("f-{}", SERIAL.fetch_add(1, Ordering::Relaxed)),
            runtime: Runtime::Native,
            handler: format!("{zygote}/{instance}"),
            code,
            packages: None,
            secrets: Vec::new(),
            env: [("GREETING".to_owned(), "hello".to_owned())].into(),
            uid_gid,
            limits: ProcessLimits::default(),
            egress: Egress::None,
            single_use: false,
            freeze: spry_wire::freeze::Freeze::default(),
            rewind: Err("not asked for".to_owned()),
        }
    }

    pub async fn start(&self, zygote: &str, instance: &str) -> Result<Zygote, StartError> {
        Zygote::start(&self.executor, &self.spec(zygote, instance)).await
    }

    /// The folders of this executor's control groups that exist.
    pub fn control_groups(&self) -> Vec<PathBuf> {
        let found = spry_node::cgroup::layout::find().expect("layout");
        let name = format!("spry-{}", self.node);
        found.into_iter().map(|hierarchy| hierarchy.own.join(&name)).filter(|path| path.exists()).collect()
    }
}

/// This program, where a function's user can run it.
fn program_path() -> PathBuf {
    use std::sync::OnceLock;
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let own = std::env::current_exe().expect("own path");
    if spry_node::zygote::check_interpreter(&own, Some((UID, UID))).is_ok() {
        return own;
    }
    COPY.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("spry-test-program-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("chmod");
        let copy = folder.join("zygote");
        fs::copy(&own, &copy).expect("copy");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("chmod");
        copy
    })
    .clone()
}

/// Segments for one fork.
pub struct Segments {
    pub inbox: OwnedFd,
    pub outbox: OwnedFd,
    pub release: OwnedFd,
}

impl Segments {
    pub fn new() -> Self {
        Self {
            inbox: segment::create("test-inbox", SEGMENT_LEN).expect("inbox"),
            outbox: segment::create("test-outbox", SEGMENT_LEN).expect("outbox"),
            release: segment::create("test-release", segment::page_len()).expect("release page"),
        }
    }

    pub fn request(&self, instance: u64) -> ForkRequest<'_> {
        let spec = |id| SegmentSpec { id, generation: 1, len: SEGMENT_LEN as u32 };
        ForkRequest {
            instance,
            transport: Kind::Broker,
            endpoint: vec![fs::File::open("/dev/null").expect("null").into()],
            inbox: (self.inbox.as_fd(), spec(1)),
            outbox: (self.outbox.as_fd(), spec(2)),
            release_page: self.release.as_fd(),
            payload_max: SEGMENT_LEN / 2,
            when_all_have_ended: None,
        }
    }
}

/// Forks with segments of its own.
pub async fn fork(zygote: &Zygote) -> Result<InstanceProcess, ForkError> {
    let segments = Segments::new();
    zygote.fork(segments.request(SERIAL.fetch_add(1, Ordering::Relaxed)), || ()).await
}

/// What comes through a pipe until its end.
pub async fn read_all(pipe: OwnedFd) -> String {
    // SAFETY: an owned descriptor, which the `AsyncFd` keeps.
    let pipe = unsafe { AsyncFd::register(pipe) }.expect("register");
    let mut text = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let mut ready = pipe.readable().await.expect("readable");
        match nix::unistd::read(pipe.get_ref(), &mut bytes) {
            Ok(0) => return String::from_utf8(text).expect("text"),
            Ok(len) => text.extend(&bytes[..len]),
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// Waits for something that must come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, future).await.unwrap_or_else(|_| panic!("{what} doesn't come"))
}

/// Is this pid a process (or a zombie)?
pub fn exists(pid: i32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// What it prints up to the end of a line, and no longer.
pub async fn next_line(pipe: &OwnedFd) -> String {
    let pipe = spry_node::sys::watch(pipe.try_clone().expect("dup")).expect("watch");
    let mut line = String::new();
    let mut bytes = [0; 256];
    while !line.contains('\n') {
        let mut ready = within("a line", pipe.readable()).await.expect("readable");
        match nix::unistd::read(pipe.get_ref(), &mut bytes) {
            Ok(len) => line.push_str(&String::from_utf8_lossy(&bytes[..len])),
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(error) => panic!("read: {error}"),
        }
    }
    line
}

/// What a process that calls itself `number` is called here, from another in its pid namespace.
pub fn outside(sibling: i32, number: i32) -> i32 {
    let namespace = outside::namespace(sibling).expect("its namespace");
    let found = outside::find(&[namespace], number.into());
    found.unwrap_or_else(|| panic!("no process {number} beside {sibling}"))
}

/// Waits for the end of a process that isn't our child.
pub async fn gone(pid: i32) {
    let Ok(pidfd) = spry_node::sys::pidfd_open(pid) else { return };
    let pidfd = spry_node::sys::watch(pidfd).expect("watch");
    let _ready = within("the end of a process", pidfd.readable()).await;
}
