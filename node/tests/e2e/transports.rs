//! The node on each transport: the same calls, the same faults.

use super::daemon::Daemon;
use crate::need_root_and_cc;

fn serves_on(transport: &str) {
    need_root_and_cc!();
    let daemon = Daemon::start(&format!("transport = \"{transport}\"\n"));
    assert_eq!(daemon.spry_json(&["status"])["transport"], transport);
    daemon.deploy_native("hostile", &["limits.timeout=6s"]);
    let address = daemon.address;
    let calls: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let mut connection = super::client::Connection::open(address);
                for _ in 0..250 {
                    let response = connection.call("GET", "/function/hostile", &[], b"");
                    assert_eq!(response.status, 200, "{}", response.text());
                }
            })
        })
        .collect();
    calls.into_iter().for_each(|call| call.join().expect("every call is answered"));
    for (how, status) in [("exit", 502), ("garbage", 502), ("loop", 504), ("kill", 502)] {
        assert_eq!(daemon.get(&format!("/function/hostile?{how}")).status, status, "{how} on {transport}");
        assert_eq!(daemon.get("/function/hostile").status, 200, "after {how} on {transport}");
    }
    daemon.stop();
}

#[test]
fn sockmap() {
    serves_on("sockmap");
}

#[test]
fn futex() {
    serves_on("futex");
}

#[test]
fn broker() {
    serves_on("broker");
}
