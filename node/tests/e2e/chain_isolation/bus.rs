//! On the bus: whom its messages reach, and for what.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::super::chains::{chain_of, timings};
use super::super::client;
use super::{NONSENSE, Scene, is_ended};

/// It answers past the runtime, with this in its descriptor; the answer goes its way as if nothing was.
fn goes_its_way(scene: &Scene, forged: &str) {
    let response = scene.call("attacked", &format!("do=answer&{forged}"), b"value");
    assert_eq!((response.status, response.text()), (200, format!("tail:{NONSENSE}")), "{forged}");
    assert_eq!(timings(&response, 's'), ["copy", "chain-hostile", "tail"], "{forged}");
    let response = scene.call("chain-hostile", &format!("do=answer&{forged}"), b"value");
    assert_eq!((response.status, response.text()), (200, NONSENSE.into()), "{forged}, as a plain function");
}

/// It answers past the runtime, and is ended for that.
fn ends_it(scene: &Scene, forged: &str) {
    for name in ["attacked", "chain-hostile"] {
        is_ended(
            &scene.call(name, &format!("do=answer&stay=1&{forged}"), b"value"),
            &format!("{name}: {forged}"),
        );
    }
    scene.serves_on(forged);
}

pub(super) fn answers_by_itself(scene: &Scene) {
    goes_its_way(scene, "");
    scene.serves_on("an answer by itself");
}

pub(super) fn forges_its_route(scene: &Scene) {
    // Functions (its own, the neighbours', none), and chains' routes (its own, the neighbours', none).
    for route in (0..12).chain(0x8000..0x8008).chain([0x83ff, 0xffff]) {
        goes_its_way(scene, &format!("route={route}"));
    }
    for step in [0, 1, 2, 3, 31, 32, 255] {
        goes_its_way(scene, &format!("step={step}"));
        goes_its_way(scene, &format!("step={step}&route=0x8000"));
    }
    scene.neighbours_are_well();
}

pub(super) fn forges_its_source(scene: &Scene) {
    // Instances (slots of the neighbours, of nobody), and gateway ports with trails.
    for source in
        [0, 1, 64, 128, 129, 192, 448, 65_535, 0x8000_0000, 0x8000_0001, 0x8000_0100, 0xffff_ffff_u32]
    {
        goes_its_way(scene, &format!("source={source}"));
    }
}

pub(super) fn forges_its_flags(scene: &Scene) {
    // "The next step is to be started" is cleared; "see to me first" is its right.
    for flags in [0x40, 0x60, 0x20, 0x10] {
        goes_its_way(scene, &format!("flags={flags}"));
        goes_its_way(scene, &format!("flags={flags}&step=2&route=0x8001"));
    }
    for status in 2..16 {
        ends_it(scene, &format!("flags={status}"));
    }
}

pub(super) fn answers_guesses(scene: &Scene) {
    let neighbours = ["plus=1", "plus=1&shift=32", "plus=1&shift=56", "plus=0xffffffff", "plus=1&shift=31"];
    let words =
        ["invocation=0", "invocation=1", "invocation=0xffffffffffffffff", "invocation=0xfffffffffffffffe"];
    for guess in neighbours.into_iter().chain(words) {
        ends_it(scene, guess);
    }
    // It has just answered one: that it holds no more.
    ends_it(scene, "old=1");
    // The first of two answers is its own, and counts.
    let twice = scene.call("attacked", "do=answer&times=2&stay=1", b"value");
    assert_eq!((twice.status, twice.text()), (200, format!("tail:{NONSENSE}")));
    scene.serves_on("an answer given twice");
}

pub(super) fn answers_others(scene: &Scene) {
    let waits = "import os, spry, time
def main(r: spry.Request):
  open('/tmp/here', 'w').close()
  while r.bytes() == b'wait' and not os.path.exists('/tmp/go'): time.sleep(0.002)
  return b'waited:' + r.bytes()
";
    scene.daemon.deploy_python("waits", waits, &["limits.payload=64KiB"]);
    scene.apply("shared", &chain_of("shared", &["copy", "chain-hostile", "waits"]));
    let address = scene.daemon.address;
    let waiting = std::thread::spawn(move || client::call(address, "POST", "/function/shared", b"wait"));
    let tmp = tmp_of_the_waiting(scene);
    // It finds what the waiting member serves, in that one's outbox, and answers it.
    is_ended(&scene.call("shared", "do=answer-others", b"value"), "an answer to what another member serves");
    assert!(!waiting.is_finished(), "the call that is being served has been answered");
    std::fs::write(tmp.join("go"), "").expect("let it go on");
    let waited = waiting.join().expect("a response");
    assert_eq!((waited.status, waited.text()), (200, "waited:wait".into()));
    scene.serves_on("an answer to another's invocation");
}

/// Where a process of the chain sees its `/tmp`, once it says that it is there.
fn tmp_of_the_waiting(scene: &Scene) -> PathBuf {
    let find = || {
        let pids = scene.daemon.children().into_iter();
        pids.map(|pid| Path::new("/proc").join(pid.to_string()).join("root/tmp"))
            .find(|tmp| tmp.join("here").exists())
    };
    scene.daemon.until("a call waits in the last step", |_| find().is_some());
    find().expect("it has just been there")
}

pub(super) fn reconnects(scene: &Scene) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the host");
    listener.set_nonblocking(true).expect("set it up");
    let port = listener.local_addr().expect("an address").port();
    let path = scene.daemon.socket();
    let body = path.to_str().expect("a UTF-8 path").as_bytes();
    for egress in ["none", "host"] {
        let settings = ["limits.payload=64KiB", "scale.max=1", &format!("network.egress={egress}")];
        scene.daemon.deploy_native("chain-hostile", &settings);
        for name in ["chain-hostile", "attacked"] {
            // Without its socket it may be of no use any more, and is ended; what it found is in its log.
            let response = scene.call(name, &format!("do=reconnect&port={port}"), body);
            let log = scene.daemon.spry_ok(&["logs", "chain-hostile"]);
            for socket in ["control", "bus"] {
                for there in ["path", "host"] {
                    assert!(log.contains(&format!("{there} {socket} E")), "{name}, {egress}: {log}");
                    assert!(!log.contains(&format!("{there} {socket} done")), "{name}, {egress}: {log}");
                }
            }
            assert!(!log.contains("met somebody"), "{name}, {egress}: {log}");
            // With the host's network a function may disconnect a TCP socket.
            if egress == "host" && scene.daemon.spry_json(&["status"])["transport"] == "sockmap" {
                assert!(log.contains("disconnect bus done"), "{log}");
                is_ended(&response, name);
            } else {
                assert_eq!(response.status, 200, "{}", response.text());
            }
        }
        scene.serves_on("connecting elsewhere");
    }
    let accepted = listener.accept().map_err(|error| error.kind());
    assert!(matches!(accepted, Err(std::io::ErrorKind::WouldBlock)), "{accepted:?}");
}
