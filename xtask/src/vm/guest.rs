//! One boot of a guest: an emulated machine that runs one command as root, prints what it prints, and ends as it ended.
//!
//! QEMU without KVM: the same on every machine, virtual ones as well. The command's output comes over one virtio-serial port
//! and its exit status over another; the kernel's own messages go to a file, whose end is shown when no status came.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::parts::{Kernel, Machine, Parts};
use super::system::Disk;
use super::{initramfs, parts};
use crate::failure::Failure;
use crate::process;

/// How the guest's processors are emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// As many as asked for, each a thread; time is the host's.
    Host { cpus: u32 },
    /// One, whose time is the number of its instructions (2 ns each): the same whatever else the host does.
    Instructions,
}

/// What to run, and in what.
pub(crate) struct Guest {
    pub(crate) kernel: &'static Kernel,
    pub(crate) clock: Clock,
    pub(crate) memory_mib: u32,
    /// Files and folders of the host that are there under the same paths, programs with the libraries that they need.
    pub(crate) files: Vec<PathBuf>,
    /// The disk of a system that systemd starts, which runs the command and then ends in order; what is written to it stays
    /// for the next boot. None: there is busybox alone.
    pub(crate) system: Option<Disk>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) timeout: Duration,
}

/// How many of the kernel's last messages are shown.
const CONSOLE_LINES: usize = 25;

impl Guest {
    /// A guest with this kernel, two processors and nothing in it.
    pub(crate) fn new(kernel: &'static Kernel) -> Self {
        Self {
            kernel,
            clock: Clock::Host { cpus: 2 },
            memory_mib: 1024,
            files: Vec::new(),
            system: None,
            env: Vec::new(),
            timeout: Duration::from_secs(300),
        }
    }

    /// Boots, runs the command, hands each line of its output to `line`; the command's exit status.
    pub(crate) fn run(&self, command: &[String], line: &mut dyn FnMut(&str)) -> Result<u8, Failure> {
        let parts = parts::parts(self.kernel.machine)?;
        let folder = process::target_dir().join("vm/run").join(std::process::id().to_string());
        fs::create_dir_all(&folder).map_err(|source| Failure::io("create", &folder, source))?;
        let outcome = self.boot(&parts, &folder, command, line);
        let _best_effort = fs::remove_dir_all(&folder);
        outcome
    }

    fn boot(
        &self,
        parts: &Parts,
        folder: &Path,
        command: &[String],
        line: &mut dyn FnMut(&str),
    ) -> Result<u8, Failure> {
        let archive = folder.join("initramfs");
        initramfs::write(&archive, &parts.base, &self.files, &script(&self.env, command))?;
        let mut qemu = self.emulator(parts, folder, &archive)?;
        let mut child = qemu.spawn().map_err(|source| process::cannot_start(&qemu, source))?;
        let ended = relay(&mut child, self.timeout, line);
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        let console = || last_lines(&folder.join("console"));
        match (ended, status.trim().parse()) {
            (Some(_), Ok(status)) => Ok(status),
            (Some(_), Err(_)) => Err(Failure::Expectation {
                what: "vm: run a command",
                found: format!("the guest ended before it did. The kernel's last messages:\n{}", console()),
            }),
            (None, _) => Err(Failure::Expectation {
                what: "vm: run a command",
                found: format!(
                    "it was not over after {:?} (--timeout). The kernel's last messages:\n{}",
                    self.timeout,
                    console()
                ),
            }),
        }
    }

    fn emulator(&self, parts: &Parts, folder: &Path, archive: &Path) -> Result<Command, Failure> {
        let mut qemu = Command::new(parts.emulator());
        qemu.env("LD_LIBRARY_PATH", parts.libraries()).stdin(Stdio::null()).stdout(Stdio::piped());
        for place in parts.firmware() {
            qemu.arg("-L").arg(place);
        }
        let (board, processor, console) = match self.kernel.machine {
            Machine::X86 => ("q35", "max", "ttyS0"),
            Machine::Arm64(processor) => ("virt", processor, "ttyAMA0"),
        };
        qemu.args(["-M", board, "-cpu", processor, "-display", "none", "-no-reboot", "-nodefaults"]);
        match self.clock {
            Clock::Host { cpus } => qemu.args(["-accel", "tcg,thread=multi", "-smp", &cpus.to_string()]),
            Clock::Instructions => {
                qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off", "-smp", "1"])
            }
        };
        qemu.args(["-m", &self.memory_mib.to_string()]);
        qemu.arg("-kernel").arg(self.kernel.image()?).arg("-initrd").arg(archive);
        let system = if self.system.is_some() { " spry.system" } else { "" };
        qemu.arg("-append").arg(format!("console={console} loglevel=5 panic=-1{system}"));
        qemu.arg("-serial").arg(format!("file:{}", folder.join("console").display()));
        qemu.args(["-device", "virtio-serial-pci", "-chardev", "file,id=output,path=/dev/stdout"]);
        qemu.args(["-device", "virtserialport,chardev=output,name=spry.output", "-chardev"]);
        qemu.arg(format!("file,id=status,path={}", folder.join("status").display()));
        qemu.args(["-device", "virtserialport,chardev=status,name=spry.status"]);
        if let Some(disk) = &self.system {
            // The host may lose it: nobody reads it after the run.
            qemu.arg("-drive")
                .arg(format!("file={},format=raw,if=none,id=disk,cache=unsafe", disk.path().display()));
            qemu.args(["-device", "nvme,drive=disk,serial=spry"]);
        }
        Ok(qemu)
    }
}

/// Passes the child's output on until it ends; nothing after `timeout`, when it is ended.
fn relay(child: &mut Child, timeout: Duration, line: &mut dyn FnMut(&str)) -> Option<()> {
    let deadline = Instant::now() + timeout;
    let (send, receive) = mpsc::channel();
    let output = child.stdout.take().expect("stdout is piped");
    let reader = thread::spawn(move || {
        for text in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&text).trim_end_matches('\r').to_owned()).is_err() {
                return;
            }
        }
    });
    let in_time = loop {
        match receive.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => line(&text),
            Err(mpsc::RecvTimeoutError::Disconnected) => break true,
            Err(mpsc::RecvTimeoutError::Timeout) => break false,
        }
    };
    if !in_time {
        let _already_over = child.kill();
    }
    let _reaped = child.wait();
    let _reader = reader.join();
    in_time.then_some(())
}

/// What the guest's `/spry/command` is.
fn script(env: &[(String, String)], command: &[String]) -> String {
    let mut script = String::from("#!/bin/sh\ncd /\n");
    for (name, value) in env {
        script.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    script.push_str(&format!("exec {}\n", words.join(" ")));
    script
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn last_lines(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_guest_as_they_are() {
        let words = ["echo", "it's", "a b", "$HOME"].map(str::to_owned);
        let script = script(&[("A".into(), "x y".into())], &words);
        let out = process::output(Command::new("sh").args(["-c", &script])).expect("a shell");
        assert_eq!(out, "it's a b $HOME\n");
        assert!(script.contains("export A='x y'\n"), "{script}");
    }
}
