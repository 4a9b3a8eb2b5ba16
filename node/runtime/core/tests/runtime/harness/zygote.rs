//! A zygote, from spryd's side of its control socket.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use spry_wire::control::{self, FromZygote, Init, ToZygote};
use spry_wire::freeze::{FreezeWish, Frozen};
use spry_wire::layer::{Imports, Layer, LayerWish};

use super::build;
use super::instance::{Asked, Instance};
use super::wait_readable;

/// A running zygote; killed and reaped when dropped.
pub(crate) struct Zygote {
    pub(crate) process: Child,
    pub(crate) control: OwnedFd,
    pub(crate) log: OwnedFd,
    pub(crate) runtime: String,
    pub(crate) frozen: Frozen,
    pub(crate) imports: Imports,
}

pub(super) fn seqpacket() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("socketpair")
}

/// A pipe whose reading end doesn't block.
pub(super) fn pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("pipe");
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("fcntl");
    (read, write)
}

impl Zygote {
    /// A Python function made of this source text.
    pub(crate) fn python(source: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join("function.py"), source).expect("write function");
        Self::python_at(dir.path(), "function:main")
    }

    /// A Python function in a folder.
    pub(crate) fn python_at(code: &Path, handler: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("tempdir");
        Self::start(interpreter(dir.path()), code, handler, FreezeWish::default())
    }

    /// A process that imports these and is written down. `runtime` is a folder that stays as long as the layer is used.
    pub(crate) fn layer(runtime: &Path, modules: &[&str]) -> Result<(OwnedFd, Layer), String> {
        Self::layer_with(runtime, modules, Path::new("/nonexistent"))
    }

    /// The same, with modules in another folder.
    pub(crate) fn layer_with(
        runtime: &Path,
        modules: &[&str],
        site: &Path,
    ) -> Result<(OwnedFd, Layer), String> {
        let mut command = interpreter(runtime);
        command.env("PYTHONPATH", site);
        let mut process = Self::spawn(command, Path::new("/"));
        let modules = modules.iter().map(|name| (*name).to_owned()).collect();
        let wish = LayerWish { modules, packages: Vec::new() };
        control::send(process.control.as_fd(), &ToZygote::MakeLayer(wish), &[]).expect("send");
        match process.hear() {
            Some((FromZygote::Layer(layer), mut fds)) => {
                assert!(process.process.wait().expect("wait").success(), "a layer's process ends");
                Ok((fds.remove(0), layer))
            }
            Some((FromZygote::NoLayer { why }, _)) => Err(why),
            other => panic!("{other:?} came for MakeLayer; the log: {}", process.log()),
        }
    }

    /// A Python function whose zygote begins as what the layer's process was.
    pub(crate) fn python_on(layer: &OwnedFd, code: &Path, handler: &str) -> Result<Self, String> {
        let mut zygote = Self::spawn(Command::new(build::native_loader()), code);
        control::send(zygote.control.as_fd(), &ToZygote::Restore { rewind: false }, &[layer.as_fd()])
            .expect("send");
        match zygote.hear() {
            Some((FromZygote::Restored, _)) => zygote.init(code, handler, FreezeWish::default()),
            Some((FromZygote::NoLayer { why }, _)) => Err(why),
            other => {
                let log = zygote.log();
                panic!("{other:?} came for Restore; {:?}, the log: {log}", zygote.process.wait())
            }
        }
    }

    /// A native function.
    pub(crate) fn native(library: &Path) -> Result<Self, String> {
        Self::native_frozen(library, FreezeWish::default())
    }

    /// A native function whose zygote does this to its memory.
    pub(crate) fn native_frozen(library: &Path, wish: FreezeWish) -> Result<Self, String> {
        let handler = library.file_name().expect("file name").to_string_lossy();
        Self::start(Command::new(build::native_loader()), library.parent().expect("folder"), &handler, wish)
    }

    fn start(command: Command, code: &Path, handler: &str, freeze: FreezeWish) -> Result<Self, String> {
        Self::spawn(command, code).init(code, handler, freeze)
    }

    fn spawn(mut command: Command, code: &Path) -> Self {
        let (control, theirs) = seqpacket();
        let (log, log_write) = pipe();
        // Above the place it is to be put at, so that dup2 clears close-on-exec.
        let theirs = fcntl(&theirs, FcntlArg::F_DUPFD_CLOEXEC(100)).expect("fcntl");
        command.current_dir(code).env("SPRY_FUNCTION", "under-test").env("PYTHONHASHSEED", "0");
        command.stdin(Stdio::null()).stdout(log_write.try_clone().expect("dup")).stderr(log_write);
        // SAFETY: both calls are async-signal-safe; fd 3 is nobody's in the child. What cargo has left open goes, too.
        unsafe {
            command.pre_exec(move || match libc::dup2(theirs, control::ZYGOTE_FD) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => {
                    libc::syscall(libc::SYS_close_range, 4, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
                    Ok(())
                }
            })
        };
        let process = command.spawn().expect("start zygote");
        nix::unistd::close(theirs).expect("close");
        Self {
            process,
            control,
            log,
            runtime: String::new(),
            frozen: Frozen::default(),
            imports: Imports::default(),
        }
    }

    fn init(mut self, code: &Path, handler: &str, freeze: FreezeWish) -> Result<Self, String> {
        let init = Init {
            name: "under-test".to_owned(),
            handler: handler.to_owned(),
            code: code.to_string_lossy().into_owned(),
            packages: Vec::new(),
            freeze,
            rewind: false,
        };
        control::send(self.control.as_fd(), &ToZygote::Init(init), &[]).expect("send Init");
        match self.hear() {
            Some((FromZygote::Imported(imports), _)) => self.imports = imports,
            Some((FromZygote::Failed { message }, _)) => return Err(message),
            other => panic!("{other:?} came for Init; the log: {}", super::drain(&self.log)),
        }
        match self.hear() {
            Some((FromZygote::Ready { runtime, frozen }, _)) => {
                (self.runtime, self.frozen) = (runtime, frozen);
                Ok(self)
            }
            other => panic!("{other:?} came after Imported; the log: {}", super::drain(&self.log)),
        }
    }

    /// The next message.
    pub(crate) fn hear(&self) -> Option<(FromZygote, Vec<OwnedFd>)> {
        wait_readable(self.control.as_fd(), "the zygote");
        control::receive(self.control.as_fd()).expect("receive from the zygote")
    }

    /// Has an instance made.
    pub(crate) fn fork(&self) -> Instance {
        Instance::make(self, 6 << 20, 16 << 20)
    }

    /// Asks for so many at once: the zygote has read none of these requests when the last one is there.
    pub(crate) fn fork_at_once(&self, count: usize) -> Vec<Instance> {
        let signal =
            |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("signal");
        signal(nix::sys::signal::Signal::SIGSTOP);
        let asked: Vec<Asked> = (0..count).map(|_| Instance::ask(self, 6 << 20, 16 << 20)).collect();
        signal(nix::sys::signal::Signal::SIGCONT);
        asked.into_iter().map(|asked| asked.born(self).expect("an instance")).collect()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// Closes the control socket and waits for the end.
    pub(crate) fn close(mut self) -> ExitStatus {
        let (ours, _) = seqpacket();
        drop(std::mem::replace(&mut self.control, ours));
        self.process.wait().expect("wait")
    }

    /// All that it has written so far.
    pub(crate) fn log(&self) -> String {
        super::drain(&self.log)
    }
}

/// As spryd starts it; the runtime's module is put into the folder.
fn interpreter(runtime: &Path) -> Command {
    fs::copy(build::python_module(), runtime.join("_spry.abi3.so")).expect("copy module");
    let mut command = Command::new(super::python());
    command.args(["-s", "-B", "-X", "utf8", "-c", include_str!("../../../../python/src/bootstrap.py")]);
    command.env("SPRY_RUNTIME_DIR", runtime);
    command
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}
