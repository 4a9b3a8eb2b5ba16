//! The other side of it: what functions ordinarily do goes on working in the sandbox.

use super::daemon::Daemon;
use crate::need_root_and_cc;

const USUAL: &str = r#"
import asyncio, concurrent.futures, ctypes, hashlib, json, multiprocessing, os, pwd, random, shutil, socket, sqlite3, ssl, subprocess, tempfile, threading, time, urllib.request

def square(x): return x * x

def check(act):
    try: return act() or "ok"
    except BaseException as error: return "%s: %s" % (type(error).__name__, error)

def threads():
    found = []
    all = [threading.Thread(target=lambda: found.append(1)) for _ in range(4)]
    for thread in all: thread.start()
    for thread in all: thread.join()
    assert len(found) == 4
def pool():
    with concurrent.futures.ThreadPoolExecutor(4) as executor: assert list(executor.map(square, range(3))) == [0, 1, 4]
def processes():
    with multiprocessing.get_context("fork").Pool(2) as workers: assert workers.map(square, range(3)) == [0, 1, 4]
def shell(): assert subprocess.run(["/bin/sh", "-c", "echo $((6*7)); id -un; df /tmp"], capture_output=True, check=True, text=True).stdout.startswith("42\nfunction")
def system(): assert os.system("ls / > /dev/null && date > /dev/null && python3 --version >/dev/null") == 0
def loop():
    async def work():
        process = await asyncio.create_subprocess_exec("/usr/bin/env", stdout=asyncio.subprocess.PIPE)
        assert b"PATH" in (await process.communicate())[0]
        await asyncio.sleep(0.01)
    asyncio.run(work())
def files():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x")
        open(path, "w").write("x"); shutil.copy2(path, path + "2"); shutil.copytree(folder, folder + "3"); shutil.rmtree(folder + "3")
        os.rename(path, "/tmp/moved"); os.unlink("/tmp/moved")
def database():
    with sqlite3.connect("/tmp/db") as connection: connection.execute("create table t (x)")
    os.unlink("/tmp/db")
def users(): assert pwd.getpwuid(os.getuid()).pw_name == "function"
def tls(): ssl.create_default_context(); assert len(ssl.create_default_context().get_ca_certs()) > 0
def lookups(): assert socket.getaddrinfo("localhost", 80)
def fetch(): assert urllib.request.urlopen("http://127.0.0.1:%s/healthz" % os.environ["PORT"], timeout=5).status == 200
def cpu(): assert os.cpu_count() >= 1 and time.tzname and hashlib.sha256(b"").hexdigest() and random.SystemRandom().random() >= 0
def memory():
    import mmap; m = mmap.mmap(-1, 4096); m[0] = 1
    from multiprocessing import shared_memory; s = shared_memory.SharedMemory(create=True, size=4096); s.close(); s.unlink()
def lib(): assert ctypes.CDLL("libm.so.6").cos

def main(params):
    acts = [threads, pool, processes, shell, system, loop, files, database, users, tls, cpu, memory, lib]
    if params.get("net"): acts += [lookups, fetch]
    return {act.__name__: check(act) for act in acts}
"#;

fn usual(settings: &[&str], body: &str) {
    let daemon = Daemon::start("");
    let port = format!("env.PORT={}", daemon.address.port());
    let mut all = vec![port.as_str()];
    all.extend(settings);
    daemon.deploy_python("usual", USUAL, &all);
    let response = daemon.post("/function/usual", body.as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    let found = response.json();
    let outcomes = found.as_object().expect("outcomes");
    assert!(outcomes.values().all(|outcome| outcome == "ok"), "{found}");
    daemon.stop();
}

/// Threads, helper programs, event loops, temporary files, databases, shared memory.
#[test]
fn the_standard_library_works() {
    need_root_and_cc!();
    usual(&[], "{}");
}

#[test]
fn with_egress_host_names_and_connections_work() {
    need_root_and_cc!();
    usual(&["network.egress=host"], "{\"net\": 1}");
}
