use super::raw::RawConfig;
use super::*;
use crate::schedule::{BackendChoice, PolicyChoice};
use crate::units::Period;
use proptest::prelude::*;

fn check(text: &str) -> Result<Config, String> {
    let raw: RawConfig = toml::from_str(text).map_err(|error| error.to_string())?;
    Config::try_from(raw).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_gives_the_contracts_defaults() {
    let config = check("").expect("defaults are valid");
    assert_eq!(config.state_dir, Path::new("/var/lib/spry"));
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.control_socket, Path::new("/run/spry/control.sock"));
    assert_eq!(config.api_token_file, Path::new("/var/lib/spry/api-token"));
    assert_eq!(config.secret_key_file, Path::new("/var/lib/spry/secrets.key"));
    assert_eq!(config.uid_base, 1_879_048_192);
    assert_eq!(config.transport, TransportChoice::Auto);
    assert!(config.workers >= 1);
    assert_eq!(config.defaults, Defaults::default());
    assert_eq!(config.keepalive.name(), "ttl");
    let all_bytes = crate::budget::machine_bytes().expect("this machine's memory");
    assert_eq!(config.memory_budget, Size::bytes(all_bytes / 100 * 80));
}

#[test]
fn the_memory_budget_is_a_size_or_a_share() {
    let budget =
        |written: &str| Ok::<_, String>(check(&format!("node.memory_budget = {written}"))?.memory_budget);
    assert_eq!(budget("\"1GiB\""), Ok(Size::gib(1)));
    assert_eq!(budget("16777216"), Ok(Size::mib(16)));
    let half = budget("\"50%\"").expect("a share");
    assert_eq!(budget("\"200%\""), Ok(Size::bytes(half.as_bytes() * 4)));
    for bad in ["\"0%\"", "\"1001%\"", "\"%\"", "\"-5%\"", "0", "\"lots\""] {
        let refused = budget(bad).expect_err(bad);
        assert!(refused.starts_with("node.memory_budget"), "{refused}");
    }
}

const FULL: &str = r#"
state_dir = "/srv/spry"
listen = "[::1]:9000"
control_socket = "/srv/spry.sock"
workers = 3
transport = "futex"
uid_base = 100000
api_token_file = "/srv/token"
secret_key_file = "/srv/key"
runtime_dir = "/usr/lib/spry"
[python]
interpreter = "/usr/bin/python3.11"
[zygotes]
freeze = "huge"
[queue]
per_function = 10
node = 100
memory = "64MiB"
[logs]
per_invocation = "16KiB"
[upload]
size = "10MB"
files = 50
[packages]
index = "https://wheels.example/simple"
find_links = "/srv/wheels"
build = true
split = false
size = "2GiB"
timeout = "3m"
[async]
calls = 1000
bytes = "64MiB"
memory = "1MiB"
in_flight = 16
dead = 100
idempotency = "1h"
[async.results]
count = 500
bytes = "10MiB"
age = "2h"
each = "64KiB"
[async.callback]
hosts = ["public", "10.0.0.0/8", "hooks.lan:8080"]
timeout = "5s"
retries = 2
backoff = "500ms"
[activations]
count = 1000
bytes = "10MiB"
age = "1d"
buffer = "1MiB"
[defaults.async]
retries = 9
backoff = "100ms"
backoff_max = "1m"
age = "1h"
in_flight = 2
[node]
memory_budget = "2GiB"
[keepalive]
policy = "greedy-dual"
[log]
format = "json"
level = "warn,shm_bus=debug"
[trace]
otlp = "http://127.0.0.1:4318/v1/traces"
sample = 0.25
[tls]
certificate = "/etc/spry/cert.pem"
key = "/etc/spry/key.pem"
[control]
owner = "1000"
group = "root"
[rate]
per_second = 50.5
burst = 100
table = 128
[shutdown]
grace = "20s"
[scheduler]
policy = "srpt"
backend = "posix"
realtime = true
signals = false
[defaults.limits]
memory = "64MiB"
cpu = 0.5
timeout = "10s"
payload = "1MiB"
processes = 8
[defaults.scale]
min = 1
max = 4
idle = "1m"
"#;

#[test]
fn every_key_is_read() {
    let config = check(FULL).expect("valid");
    assert_eq!(config.state_dir, Path::new("/srv/spry"));
    assert_eq!(config.listen.port(), 9000);
    assert_eq!(config.workers, 3);
    assert_eq!(config.transport, TransportChoice::Futex);
    assert_eq!(config.uid_base, 100_000);
    assert_eq!(config.api_token_file, Path::new("/srv/token"));
    assert_eq!(config.secret_key_file, Path::new("/srv/key"));
    assert_eq!(config.runtime_dir.as_deref(), Some(Path::new("/usr/lib/spry")));
    assert_eq!(config.python.as_deref(), Some(Path::new("/usr/bin/python3.11")));
    assert_eq!(config.freeze, spry_wire::freeze::Freeze::Huge);
    assert_eq!(config.queue, Queue { per_function: 10, node: 100, memory: Size::mib(64) });
    assert_eq!(config.log_volume, Size::kib(16));
    assert_eq!(config.upload, UploadLimits { size: Size::bytes(10_000_000), files: 50 });
    let packages = Packages {
        index: PackageIndex::At("https://wheels.example/simple".into()),
        find_links: Some("/srv/wheels".into()),
        build: true,
        split: false,
        size: Size::gib(2),
        timeout: Period::minutes(3),
    };
    assert_eq!(config.packages, packages);
    let scheduler = SchedulerChoice {
        policy: PolicyChoice::Srpt,
        backend: BackendChoice::Posix,
        realtime: true,
        signals: false,
    };
    assert_eq!(config.scheduler, scheduler);
    assert_eq!(config.defaults.limits.timeout, Period::seconds(10));
    assert_eq!(config.defaults.scale.max, 4);
    assert_eq!(config.memory_budget, Size::gib(2));
    assert_eq!(config.keepalive.name(), "greedy-dual");
    assert_eq!((config.log_format, config.log_level.as_str()), (log::Format::Json, "warn,shm_bus=debug"));
    let trace = config.trace.expect("there");
    assert_eq!((trace.endpoint.port_u16(), trace.sample), (Some(4318), 0.25));
    assert_eq!(config.tls.expect("there").key, Path::new("/etc/spry/key.pem"));
    assert_eq!(config.control, ControlAccess { owner: Some(1000), group: Some(0) });
    assert_eq!(config.rate, Some(Rate { per_second: 50.5, burst: 100.0, table: 128 }));
    assert_eq!(config.grace, Period::seconds(20));
}

#[test]
fn the_command_line_wins_over_the_file() {
    let raw: RawConfig = toml::from_str(FULL).expect("valid");
    let flags =
        Flags { state_dir: Some("/tmp/s".into()), listen: Some("127.0.0.1:1".into()), ..Flags::default() };
    let config = Config::try_from(raw.under(&flags)).expect("valid");
    assert_eq!(config.state_dir, Path::new("/tmp/s"));
    assert_eq!(config.listen.port(), 1);
    assert_eq!(config.control_socket, Path::new("/srv/spry.sock"));
}

#[test]
fn each_refusal_names_key_value_and_bound() {
    for (text, says) in [
        ("workers = 0", "workers is 0, but must be between 1 and 32"),
        ("listen = \"8080\"", "listen is \"8080\", but must be ADDRESS:PORT"),
        ("transport = \"tcp\"", "transport is \"tcp\", but must be one of"),
        ("uid_base = 0", "uid_base is 0, but must be between 65536"),
        ("uid_base = 4294967295", "uid_base is 4294967295"),
        ("[queue]\nmemory = -1", "queue.memory is -1, but must be between 1MiB and 1TiB"),
        ("[queue]\nmemory = \"10xB\"", "queue.memory: \"10xB\" has the unknown unit"),
        ("[queue]\nper_function = 0", "queue.per_function is 0"),
        ("[logs]\nper_invocation = \"1B\"", "logs.per_invocation is 1B"),
        ("[packages]\nindex = \"pypi\"", "packages.index is \"pypi\", but must be an https:// or http://"),
        ("[packages]\nsize = \"1KiB\"", "packages.size is 1KiB"),
        ("[packages]\ntimeout = \"0s\"", "packages.timeout is 0s, but must be between 1s and 1d"),
        ("[defaults.limits]\nmemory = \"1B\"", "defaults.limits.memory is 1B"),
        (
            "[scheduler]\npolicy = \"cfs\"",
            "scheduler.policy is \"cfs\", but must be one of \"eevdf\", \"sfs\"",
        ),
        (
            "[scheduler]\nbackend = \"rt\"",
            "scheduler.backend is \"rt\", but must be one of \"auto\", \"posix\", \"sched_ext\"",
        ),
        (
            "[scheduler]\nbackend = \"sched_ext\"\nrealtime = true",
            "scheduler.realtime is true, but must be false with backend = \"sched_ext\"",
        ),
        ("[defaults.scale]\nmax = 100", "defaults.scale.max is 100, but must be between 1 and 64"),
        ("[log]\nformat = \"xml\"", "log.format is \"xml\", but must be one of \"text\", \"json\""),
        ("[log]\nlevel = \"=\"", "log.level is \"=\""),
        ("[trace]\notlp = \"https://far\"", "trace.otlp is \"https://far\", but must be an address such as"),
        ("[trace]\nsample = 2.0", "trace.sample is 2, but must be between 0 and 1"),
        ("[trace]\nsample = nan", "trace.sample is NaN"),
        ("[tls]\nkey = \"/k\"", "tls.certificate is not there, but must be there, since tls.key is"),
        ("[tls]\ncertificate = \"/c\"", "tls.key is not there"),
        (
            "[control]\nowner = \"no such\"",
            "control.owner is \"no such\", but must be a user of this machine",
        ),
        ("[control]\ngroup = \"no such\"", "control.group is \"no such\""),
        ("[rate]\nper_second = -1.0", "rate.per_second is -1, but must be between 0 (no limit)"),
        ("[rate]\nburst = 0", "rate.burst is 0"),
        ("[rate]\ntable = 1", "rate.table is 1, but must be between 64"),
        ("[shutdown]\ngrace = \"2h\"", "shutdown.grace is 2h, but must be between 0s and 1h"),
        ("statedir = 1", "unknown field `statedir`"),
        ("workers = \"two\"", "line 1"),
    ] {
        let error = check(text).expect_err(text);
        assert!(error.contains(says), "{text}: {error}");
    }
    let long = format!("control_socket = \"/{}\"", "x".repeat(107));
    assert!(check(&long).expect_err("long").contains("at most 107 bytes"));
}

#[test]
fn an_explicit_file_must_be_there() {
    let flags = Flags { config: Some("/nonexistent/spryd.toml".into()), ..Flags::default() };
    let error = Config::load(&flags).expect_err("absent").to_string();
    assert!(error.contains("/nonexistent/spryd.toml"), "{error}");
}

/// The page that explains the keys has them all, with their defaults where they are fixed.
#[test]
fn every_key_is_documented() {
    let page = include_str!("../../../docs/configuration.md");
    let keys: toml::Table = toml::from_str(FULL).expect("valid");
    let mut open: Vec<(String, toml::Value)> = keys.into_iter().collect();
    while let Some((key, value)) = open.pop() {
        match value {
            toml::Value::Table(table) => {
                open.extend(table.into_iter().map(|(inner, value)| (format!("{key}.{inner}"), value)));
            }
            _ => assert!(page.contains(&format!("`{key}`")), "docs/configuration.md lacks `{key}`"),
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,200}") {
        let _ = check(&text);
    }
    #[test]
    fn numbers_are_bounded(workers: i64, uid: i64, node: i64) {
        let text = format!("workers = {workers}\nuid_base = {uid}\n[queue]\nnode = {node}\n");
        if let Ok(config) = check(&text) {
            prop_assert!((1..=32).contains(&config.workers));
            prop_assert!(config.uid_base.checked_add(super::raw::UID_COUNT).is_some());
        }
    }
}
