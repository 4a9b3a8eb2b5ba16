//! Getting out: to the state folder and the control socket, by `/proc`, mounts, namespaces, links, sockets.

use serde_json::json;

use super::daemon::Daemon;
use super::neighbour::Neighbour;
use super::outcomes_of;
use crate::need_root_and_cc;

const ESCAPER: &str = r#"
import socket

def read(path): return outcome(lambda: open(path, "rb").read(1))
def write(path): return outcome(lambda: open(path, "wb", buffering=0).write(b"1"))

def state(place):
    return {
        # the way to the function's own files is there; nothing else is on it
        "list": "ENOENT" if set(os.listdir(place["state"])) <= {"functions", "runtime"} else os.listdir(place["state"]),
        "functions": "ENOENT" if os.listdir(place["state"] + "/functions") == ["escaper"] else "more",
        "read": read(place["state"] + "/api-token"),
        "others": outcome(lambda: os.listdir(place["state"] + "/functions/neighbour")),
        "control": outcome(lambda: os.stat(place["control"])),
        "connect": outcome(lambda: socket.socket(socket.AF_UNIX).connect(place["control"])),
    }

def proc(place):
    paths = ["/proc/1/root/etc/shadow", "/proc/kcore", "/proc/%d/environ" % place["spryd"],
             "/proc/%d/root/etc/shadow" % place["spryd"], "/proc/self/root/etc/shadow", "/proc/self/cwd/../../../etc/shadow"]
    files = ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname"]
    return {**{path: read(path) for path in paths}, **{path: write(path) for path in files}}

def mounts(place):
    return {
        "tmpfs": outcome(lambda: call("mount", b"x", b"/tmp", b"tmpfs", 0, None)),
        "writable": outcome(lambda: call("mount", None, b"/usr", None, 32 | 4096, None)),
        "umount": outcome(lambda: call("umount2", b"/tmp", 2)),
        "pivot_root": outcome(lambda: call("syscall", place["pivot_root"], b"/tmp", b"/tmp")),
        "chroot": outcome(lambda: os.chroot("/tmp")),
        "device": outcome(lambda: os.mknod("/tmp/sda", 0o060600, os.makedev(8, 0))),
        "root": write("/x"), "library": write("/usr/lib/x"), "code": write(os.getcwd() + "/x"),
    }

def namespaces(place):
    flags = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000}
    found = {"unshare " + name: outcome(lambda: call("unshare", flag)) for name, flag in flags.items()}
    for name, flag in flags.items():
        found["clone " + name] = outcome(lambda: call("syscall", place["clone"], flag | 17, None, None, None, None))
    found["clone3"] = outcome(lambda: call("syscall", 435, None, 0))
    found["setns"] = outcome(lambda: call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0))
    found["setns outside"] = outcome(lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0))
    return found

def links(place):
    found = {}
    for number, target in enumerate(["/etc/shadow", place["state"] + "/api-token", "/proc/1/root", "/../../../etc/shadow"]):
        path = "/tmp/link%d" % number
        os.symlink(target, path)
        found[target] = read(path)
        os.unlink(path)
    found["hard"] = outcome(lambda: os.link("/usr/bin/env", "/tmp/env"))
    return found

def sockets(place):
    found = {}
    for name in ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"]:
        found[name] = outcome(lambda: socket.socket(getattr(socket, name), socket.SOCK_STREAM))
    unconnect = (ctypes.c_char * 16)()
    for fd in range(3, 64):
        try: is_socket = os.readlink("/proc/self/fd/%d" % fd).startswith("socket")
        except OSError: is_socket = False
        if is_socket:
            found["disconnect %d" % fd] = outcome(lambda: call("connect", fd, unconnect, 16))
    return found

def memory(place):
    return {
        "shmget": outcome(lambda: call("shmget", 1, 4096, 0o1666)),
        "semget": outcome(lambda: call("semget", 1, 1, 0o1666)),
        "msgget": outcome(lambda: call("msgget", 1, 0o1666)),
        "keys": outcome(lambda: call("syscall", place["add_key"], b"user", b"x", b"y", 1, -3)),
        "bpf": outcome(lambda: call("syscall", place["bpf"], 0, None, 0)),
        "io_uring": outcome(lambda: call("syscall", 425, 1, None)),
    }

def main(place): return globals()[place["how"]](place)
"#;

/// Every way of `how` is refused.
fn escape(how: &str) {
    let daemon = Daemon::start("");
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("escaper", &outcomes_of(ESCAPER), &[]);
    let body = json!({
        "how": how,
        "state": daemon.state(),
        "control": daemon.socket(),
        "spryd": daemon.pid(),
        "clone": libc::SYS_clone,
        "pivot_root": libc::SYS_pivot_root,
        "add_key": libc::SYS_add_key,
        "bpf": libc::SYS_bpf,
    });
    let response = daemon.post("/function/escaper", body.to_string().as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    let found = response.json();
    let outcomes = found.as_object().expect("outcomes");
    assert!(!outcomes.is_empty());
    let refusals = ["EPERM", "EACCES", "ENOENT", "EROFS", "ENOSYS", "ENOTDIR", "EXDEV"];
    for (what, outcome) in outcomes {
        assert!(refusals.contains(&outcome.as_str().expect("text")), "{what}: {found}");
    }
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}

#[test]
fn the_state_folder_and_the_control_socket_are_not_there() {
    need_root_and_cc!();
    escape("state");
}

#[test]
fn by_proc() {
    need_root_and_cc!();
    escape("proc");
}

#[test]
fn by_mount() {
    need_root_and_cc!();
    escape("mounts");
}

#[test]
fn by_user_namespace_and_setns() {
    need_root_and_cc!();
    escape("namespaces");
}

#[test]
fn by_symlink() {
    need_root_and_cc!();
    escape("links");
}

#[test]
fn by_a_socket_new_or_disconnected() {
    need_root_and_cc!();
    escape("sockets");
}

#[test]
fn by_shared_memory_keys_and_the_kernels_larger_doors() {
    need_root_and_cc!();
    escape("memory");
}
