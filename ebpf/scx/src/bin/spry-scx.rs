//! `spry-scx`: loads the sched_ext scheduler and stays until it is told to end, or the kernel ends it.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use spry_scx::{PIN_DIR, loader};

/// How often it is looked whether the kernel has ended the scheduler.
const LOOK: Duration = Duration::from_millis(500);

/// Schedules the functions of spryd by shortest remaining time, in the kernel (sched_ext, Linux 6.12 or later).
///
/// Only processes that spryd puts into SCHED_EXT are scheduled; all others stay in their class. When this program ends, they
/// go back to the fair class, and spryd to its other backend.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// The folder of bpffs where spryd finds the scheduler's maps.
    #[arg(long, default_value = PIN_DIR, value_name = "DIR")]
    pin_dir: PathBuf,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("spry-scx: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    let loaded = loader::load(&options.pin_dir)?;
    println!("spry-scx: scheduling; maps in {}", options.pin_dir.display());
    notify("READY=1\nSTATUS=scheduling");
    let mut stopped = false;
    let last = loaded.wait(LOOK, &mut |interval| {
        stopped = was_told_to_end(&signals, interval);
        stopped
    });
    if stopped {
        notify("STOPPING=1");
        println!("spry-scx: ending; {:?}", last.counts);
        return Ok(ExitCode::SUCCESS);
    }
    notify(&format!("STATUS={last}"));
    eprintln!("spry-scx: the kernel ended the scheduler: {last}");
    Ok(ExitCode::from(1))
}

/// Waits for a signal, `interval` at most.
fn was_told_to_end(signals: &SignalFd, interval: Duration) -> bool {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut waiting = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
    poll(&mut waiting, timeout).is_ok_and(|ready| ready > 0)
}

/// Tells systemd, when it asked to be told.
fn notify(what: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    let Ok(name) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(what.as_bytes(), &address));
    if let Err(error) = sent {
        eprintln!("spry-scx: telling systemd at {name}: {error}");
    }
}
