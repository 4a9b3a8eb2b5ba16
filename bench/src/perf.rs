//! Where the time goes: `perf record` on a process tree while it is under load, and its samples by group.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::process;

/// How long perf may take to start.
const PATIENCE_MS: u16 = 20_000;

/// A `perf record` under way.
#[derive(Debug)]
pub struct Recording(Child);

impl Recording {
    /// Samples all processes of the tree, call chains included, into `file`. Returns when sampling has begun:
    /// perf starts disabled, is told to go on through a fifo, and says so on another.
    pub fn start(root: Pid, file: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("spry-bench-perf-").tempdir()?;
        let (control, ack) = (folder.path().join("control"), folder.path().join("ack"));
        for fifo in [&control, &ack] {
            nix::unistd::mkfifo(fifo, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        // For reading and writing, which doesn't wait for the other side to open it.
        let open = |path: &Path| File::options().read(true).write(true).open(path);
        let (mut control_end, mut ack_end) = (open(&control)?, open(&ack)?);
        let pids: Vec<String> = process::tree(root)?.iter().map(|process| process.pid.to_string()).collect();
        let child = Command::new("perf")
            .args(["record", "--quiet", "-F", "1999", "-g", "-D", "-1"])
            .args(["--control", &format!("fifo:{},{}", control.display(), ack.display())])
            .args(["--pid", &pids.join(","), "-o"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let recording = Self(child);
        control_end.write_all(b"enable\n")?;
        let mut ready = [PollFd::new(ack_end.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(PATIENCE_MS)) {
            Ok(1..) => ack_end.read(&mut [0; 16]).map(|_| recording),
            Ok(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "perf record did not start")),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Ends it; the file is whole when this returns.
    pub fn finish(mut self) -> io::Result<()> {
        // perf writes its file on SIGINT; its exit status then says only that it was interrupted.
        nix::sys::signal::kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT)?;
        self.0.wait().map(drop)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // After `finish` there is nobody to kill.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// One line of `perf report`.
#[derive(Debug, Clone, PartialEq)]
pub struct Symbol {
    /// Share of all samples, in percent.
    pub percent: f64,
    /// The thread's name.
    pub thread: String,
    /// The program, library or kernel.
    pub object: String,
    /// The function.
    pub name: String,
}

/// Reads a recording.
pub fn symbols(file: &Path) -> io::Result<Vec<Symbol>> {
    let output = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.05"])
        .args(["--sort", "comm,dso,symbol", "--field-separator", "|", "-i"])
        .arg(file)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("perf report: {message}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Symbol> {
    let mut fields = line.splitn(4, '|').map(str::trim);
    let percent = fields.next()?.trim_end_matches('%').parse().ok()?;
    let (thread, object) = (fields.next()?, fields.next()?);
    // Columns that perf adds after the symbol (inter-procedural latency) are of no use here.
    let name = fields.next()?.split('|').next()?.trim();
    // "[k] tcp_sendmsg": the space that it runs in is told by the object too.
    let name = name.split_once("] ").map_or(name, |(_, name)| name);
    Some(Symbol { percent, thread: thread.to_owned(), object: object.to_owned(), name: name.to_owned() })
}

/// What a symbol belongs to, for the eye: the first group with a matching word.
///
/// In a guest without a hardware counter the sampling interrupt waits until interrupts are enabled again, so what
/// ran with them off is charged to `_raw_spin_unlock_irqrestore` and `finish_task_switch`.
fn group(symbol: &Symbol) -> &'static str {
    const KERNEL: &[(&str, &[&str])] = &[
        ("kernel: interrupts on again", &["_raw_spin_unlock_irq", "finish_task_switch"]),
        ("kernel: bpf, sockmap", &["bpf", "sk_psock", "sk_msg", "sock_map", "sock_hash"]),
        ("kernel: epoll", &["epoll", "ep_", "do_poll"]),
        ("kernel: futex", &["futex"]),
        ("kernel: copy", &["copy_", "rep_movs", "_copy", "memcpy", "clear_page", "memset"]),
        (
            "kernel: memory, faults",
            &["fault", "page", "folio", "mmap", "vma", "shmem", "kmem", "kmalloc", "kfree", "slab"],
        ),
        (
            "kernel: tcp/ip",
            &[
                "tcp", "ip_", "ip4", "inet", "sock", "skb", "net_", "netif", "loopback", "xmit", "napi",
                "dst_", "nf_",
            ],
        ),
        (
            "kernel: scheduler",
            &[
                "sched", "task", "enqueue", "dequeue", "switch", "wake", "pick_", "update_", "idle", "rq",
                "_se",
            ],
        ),
        (
            "kernel: entry, locks, time",
            &["syscall", "entry", "lock", "rcu", "clock", "timer", "irq", "fdget", "fget"],
        ),
    ];
    const USER: &[(&str, &[&str])] = &[
        ("user: hyper, http", &["hyper", "http", "httparse"]),
        ("user: tokio, mio", &["tokio", "mio::"]),
        ("user: bus", &["shm_bus", "spry_ebpf_common"]),
        ("user: spry", &["spry"]),
        ("user: allocator", &["malloc", "free", "alloc", "realloc"]),
        ("user: copy", &["memcpy", "memmove", "memset", "memcmp"]),
        ("user: python", &["Py", "_Py", "pyo3"]),
    ];
    let kernel = symbol.object.starts_with("[kernel") || symbol.object.starts_with("bpf_");
    let (groups, rest) = if kernel { (KERNEL, "kernel: other") } else { (USER, "user: other") };
    let hit = |(_, words): &&(&str, &[&str])| words.iter().any(|word| symbol.name.contains(word));
    groups.iter().find(hit).map_or(rest, |(name, _)| name)
}

/// The recording as text: by group, by thread, and the top symbols.
pub fn summary(symbols: &[Symbol], top: usize) -> String {
    let mut text = String::new();
    let mut groups: BTreeMap<&str, f64> = BTreeMap::new();
    let mut threads: BTreeMap<&str, f64> = BTreeMap::new();
    for symbol in symbols {
        *groups.entry(group(symbol)).or_default() += symbol.percent;
        *threads.entry(&symbol.thread).or_default() += symbol.percent;
    }
    for (title, shares) in [("by group", groups), ("by thread", threads)] {
        text.push_str(&format!("{title}\n"));
        let mut shares: Vec<_> = shares.into_iter().collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (name, percent) in shares {
            text.push_str(&format!("  {percent:5.1} %  {name}\n"));
        }
    }
    text.push_str("top symbols\n");
    for symbol in symbols.iter().take(top) {
        let Symbol { percent, thread, object, name } = symbol;
        text.push_str(&format!("  {percent:5.1} %  {name}  ({object}, {thread})\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_perf_become_groups() {
        let report = "\
# comment
    12.50%|spryd |[kernel.kallsyms]|[k] tcp_sendmsg_locked   |-      -
     7.50%|worker-1|spryd|[.] <hyper::proto::h1::conn::Conn<I,B,T> as X>::poll
     2.00%|nop|bpf_prog_1_route|[k] bpf_prog_1_route

";
        let symbols: Vec<_> = report.lines().filter_map(parse).collect();
        assert_eq!(symbols.len(), 3);
        assert_eq!((symbols[0].percent, symbols[0].name.as_str()), (12.5, "tcp_sendmsg_locked"));
        let groups: Vec<_> = symbols.iter().map(group).collect();
        assert_eq!(groups, ["kernel: tcp/ip", "user: hyper, http", "kernel: bpf, sockmap"]);
        let text = summary(&symbols, 1);
        assert!(
            text.starts_with("by group\n   12.5 %  kernel: tcp/ip\n    7.5 %  user: hyper, http\n"),
            "{text}"
        );
        assert!(
            text.ends_with("top symbols\n   12.5 %  tcp_sendmsg_locked  ([kernel.kallsyms], spryd)\n"),
            "{text}"
        );
    }
}
