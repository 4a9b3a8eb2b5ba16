//! One `spryd`: started, waited for, talked to, stopped.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::http::Client;
use crate::failure::Failure;
use crate::{artifacts, process, sys};

/// Nothing here takes this long unless something is broken.
const WATCHDOG: Duration = Duration::from_secs(60);
/// How often Ctrl-C is looked at while waiting.
const GLANCE: Duration = Duration::from_millis(100);

/// A line of spryd's, and whether it is on its standard output: that begins with the line that says where the
/// gateway listens. The log is on standard error.
type Said = (Stream, String);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Output,
    Log,
}

/// A running node. Dropping it ends the process, whatever happened.
pub(crate) struct Node {
    child: Child,
    address: SocketAddr,
    control: PathBuf,
    /// What spryd says, line by line, from its first to its last.
    lines: Receiver<Said>,
    log: Vec<String>,
    stopped: bool,
}

impl Node {
    /// Starts `spryd` and returns once it answers.
    pub(crate) fn start(folder: &Path) -> Result<Self, Failure> {
        let control = folder.join("control.sock");
        let mut command = Command::new(artifacts::release("spryd"));
        command.arg("--state-dir").arg(folder.join("state")).arg("--control-socket").arg(&control);
        command.args(["--listen", "127.0.0.1:0"]);
        // A process group of its own: Ctrl-C in the terminal is for xtask, which then stops spryd in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        println!("\n$ {}", process::shown(&command));
        let mut child = command.spawn().map_err(|source| process::cannot_start(&command, source))?;
        let (sender, lines) = mpsc::channel();
        read_lines(child.stdout.take().expect("stdout is piped"), Stream::Output, sender.clone());
        read_lines(child.stderr.take().expect("stderr is piped"), Stream::Log, sender);
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let mut node = Self { child, address: nowhere, control, lines, log: Vec::new(), stopped: false };
        match node.wait_until_ready() {
            Ok(()) => Ok(node),
            Err(failure) => {
                node.end();
                node.print_log();
                Err(failure)
            }
        }
    }

    /// A new connection to the gateway.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::connect(self.address)
    }

    /// Where the gateway listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs `spry` on this node, its output shown.
    pub(crate) fn spry<'a>(&self, args: impl IntoIterator<Item = &'a OsStr>) -> Result<(), Failure> {
        let mut command = Command::new(artifacts::release("spry"));
        command.env("SPRY_CONTROL_SOCKET", &self.control).args(args);
        // As one would type it; the socket's place is noise.
        let mut typed = Command::new("spry");
        typed.args(command.get_args());
        println!("\n$ {}", process::shown(&typed));
        let status = command.status().map_err(|source| process::cannot_start(&command, source))?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::Ended { command: process::shown(&typed), status })
        }
    }

    /// SIGTERM, then waits for its end; it must be a good one, and no process may outlive it.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        println!("\n$ kill -TERM {}    # spryd", self.child.id());
        sys::terminate(&self.child);
        let status = self.end();
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Failure::Ended { command: "spryd".into(), status }),
            None => Err(Failure::Expectation {
                what: "stop spryd",
                found: format!("still running {WATCHDOG:?} after SIGTERM; killed"),
            }),
        }
    }

    /// What spryd said, after a failure.
    pub(crate) fn print_log(&mut self) {
        self.log.extend(self.lines.try_iter().map(|(_, line)| line));
        eprintln!("--- what spryd said:");
        for line in &self.log {
            eprintln!("    {line}");
        }
    }

    fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            sys::check_interrupted()?;
            match self.lines.recv_timeout(GLANCE) {
                Ok((stream, line)) => {
                    let address = (stream == Stream::Output).then(|| address_in(&line)).flatten();
                    self.log.push(line);
                    if let Some(address) = address {
                        self.address = address;
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) if started.elapsed() < WATCHDOG => {}
                Err(RecvTimeoutError::Timeout) => return Err(not_ready("it printed no ready line")),
                Err(RecvTimeoutError::Disconnected) => return Err(not_ready("it ended")),
            }
        }
        let answer = self.client()?.call("GET", "/healthz", &[], b"")?;
        match answer.status {
            200 => Ok(()),
            status => Err(not_ready(&format!("/healthz answers {status}"))),
        }
    }

    /// Waits for the process, killing it when it doesn't end. `None`: it had to be killed.
    fn end(&mut self) -> Option<std::process::ExitStatus> {
        self.stopped = true;
        let started = Instant::now();
        while started.elapsed() < WATCHDOG {
            // Its pipes close when it ends, so this wakes at once.
            match self.lines.recv_timeout(GLANCE) {
                Ok((_, line)) => self.log.push(line),
                Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(1)),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
        }
        sys::kill(self.child.id());
        let _killed = self.child.wait();
        None
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.stopped {
            sys::terminate(&self.child);
            self.end();
        }
    }
}

fn not_ready(found: &str) -> Failure {
    Failure::Expectation { what: "spryd did not get ready", found: found.to_owned() }
}

/// `… http://127.0.0.1:43211 …`
fn address_in(line: &str) -> Option<SocketAddr> {
    line.split_whitespace().find_map(|word| word.strip_prefix("http://"))?.trim_end_matches('/').parse().ok()
}

fn read_lines(from: impl Read + Send + 'static, stream: Stream, to: mpsc::Sender<Said>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send((stream, line)).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_tells_where() {
        let address = address_in("spryd is ready on http://127.0.0.1:8080 (sockmap)");
        assert_eq!(address, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))));
        assert_eq!(address_in("ready, see http://example.org for more"), None);
        assert_eq!(address_in(""), None);
    }
}
