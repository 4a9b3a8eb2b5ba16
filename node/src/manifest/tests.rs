use super::*;
use proptest::prelude::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("write a file");
    }
    folder
}

fn read(files: &[(&str, &str)], name: Option<&str>, set: &[&str]) -> Result<Manifest, String> {
    let folder = folder(files);
    let overrides: Result<Vec<Override>, _> = set.iter().map(|text| text.parse()).collect();
    let overrides = overrides.map_err(|error| error.to_string())?;
    Manifest::of_folder(folder.path(), name, &overrides, &Defaults::default())
        .map_err(|error| error.to_string())
}

const FULL: &str = r#"
name = "thumbnail"
runtime = "python"
handler = "thumbnail:main"
isolation = "request"
[limits]
memory = "256MiB"
cpu = 0.5
timeout = "5s"
payload = 1048576
processes = 4
[scale]
min = 1
max = 3
idle = "1m"
[env]
GREETING = "hello"
[network]
egress = "host"
"#;

#[test]
fn every_key_of_the_contract_is_read() {
    let manifest = read(&[("spry.toml", FULL)], None, &[]).expect("the design's own example");
    assert_eq!(manifest.name.as_str(), "thumbnail");
    assert_eq!(manifest.runtime, Runtime::Python);
    assert_eq!(manifest.isolation, Isolation::Request);
    assert_eq!(manifest.limits.memory, Size::mib(256));
    assert_eq!(manifest.limits.cpu, 0.5);
    assert_eq!(manifest.limits.timeout, Period::seconds(5));
    assert_eq!(manifest.limits.payload, Size::mib(1));
    assert_eq!(manifest.limits.processes, 4);
    assert_eq!(manifest.scale, Scale { min: 1, max: 3, idle: Period::minutes(1) });
    assert_eq!(manifest.env_strings().collect::<Vec<_>>(), ["GREETING=hello"]);
    assert_eq!(manifest.network.egress, Egress::Host);
}

#[test]
fn a_checked_manifest_printed_as_toml_reads_back_the_same() {
    let manifest = read(&[("spry.toml", FULL)], None, &[]).expect("valid");
    let printed = toml::to_string(&manifest).expect("prints");
    assert_eq!(read(&[("spry.toml", &printed)], None, &[]).expect("reads back"), manifest);
    let json = serde_json::to_string(&manifest).expect("prints");
    assert_eq!(serde_json::from_str::<Manifest>(&json).expect("reads back"), manifest);
}

#[test]
fn a_lone_python_file_is_a_function() {
    let main = "import json\n\ndef helper(x):\n    return x\n\ndef main(params):\n    return {}\n";
    let manifest = read(&[("Hello_World.py", main)], None, &[]).expect("main is found");
    assert_eq!(manifest.name.as_str(), "hello-world");
    assert_eq!(manifest.handler, "Hello_World:main");
    assert_eq!(manifest.limits, Limits::default());

    let handler = "def handler(event, context): pass\ndef other(): pass\n";
    assert_eq!(read(&[("a.py", handler)], None, &[]).expect("found").handler, "a:handler");
    assert_eq!(read(&[("a.py", "async def only(x): ...\n")], None, &[]).expect("found").handler, "a:only");

    let named = read(&[("a.py", main)], Some("other"), &["handler=a:helper"]).expect("named");
    assert_eq!((named.name.as_str(), named.handler.as_str()), ("other", "a:helper"));

    let error = read(&[("a.py", "def x(): ...\ndef y(): ...\n")], None, &[]).expect_err("unclear");
    assert!(error.contains("has 2 functions") && error.contains("--set handler=a:FUNCTION"), "{error}");
}

#[test]
fn a_lone_shared_object_is_a_function() {
    let manifest = read(&[("libthumb_nail.so", "ELF")], None, &[]).expect("native");
    assert_eq!(manifest.name.as_str(), "thumb-nail");
    assert_eq!(manifest.runtime, Runtime::Native);
    assert_eq!(manifest.handler, "libthumb_nail.so");
}

#[test]
fn an_unclear_folder_says_what_to_write() {
    let error = read(&[], None, &[]).expect_err("empty");
    assert!(error.contains("no .py and no .so") && error.contains("name, runtime and handler"), "{error}");
    assert!(read(&[("a.py", ""), ("b.py", "")], None, &[]).expect_err("two").contains("2 .py"));
}

#[test]
fn packages_are_those_of_the_manifest_and_of_its_file() {
    let text = format!("packages = [\"NumPy>=2\", \"six\"]\nrequirements = \"needs.txt\"\n{FULL}");
    let needs = "# what else\nsix\npandas ~= 2.2\n";
    let manifest = read(&[("spry.toml", &text), ("needs.txt", needs)], None, &[]).expect("valid");
    let names: Vec<&str> = manifest.packages.iter().map(Requirement::as_str).collect();
    assert_eq!(names, ["numpy>=2", "pandas~=2.2", "six"]);
    let printed = toml::to_string(&manifest).expect("prints");
    assert_eq!(read(&[("spry.toml", &printed)], None, &[]).expect("reads back"), manifest);
    let set = read(&[("spry.toml", FULL)], None, &["packages=numpy six==1.16.0"]).expect("valid");
    assert_eq!(set.packages.len(), 2);

    for (set, says) in [
        ("requirements=../needs.txt", "must be a file within the folder"),
        ("requirements=/etc/passwd", "must be a file within the folder"),
        ("requirements=none.txt", "there is no \"none.txt\" in the folder"),
        ("packages=-e", "packages: \"-e\" can't be required: options are not taken"),
        ("packages=git+https://x/y", "not a path or an address"),
    ] {
        let error = read(&[("spry.toml", FULL)], None, &[set]).expect_err(set);
        assert!(error.contains(says), "{set}: {error}");
    }
    let native = "name='a'\nruntime='native'\nhandler='a.so'\npackages=['six']\n";
    let error = read(&[("spry.toml", native), ("a.so", "")], None, &[]).expect_err("native");
    assert!(error.contains("only runtime = \"python\" has packages"), "{error}");
}

#[test]
fn secrets_are_names() {
    let set = |words: &str| read(&[("spry.toml", FULL)], None, &[&format!("secrets={words}")]);
    let manifest = set("DB api.key DB").expect("valid");
    assert_eq!(manifest.secrets.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["DB", "api.key"]);
    assert!(set("../x").expect_err("a path").contains("can't be a secret's name"));
    let many: Vec<String> = (0..33).map(|number| format!("s{number}")).collect();
    assert!(set(&many.join(" ")).expect_err("many").contains("secrets is 33 names, but must be at most 32"));
}

#[test]
fn overrides_reach_every_key() {
    let set = ["limits.memory=64MiB", "env.GREETING=hi=there", "scale.max=2", "limits.cpu=2", "scale.min=0"];
    let manifest = read(&[("spry.toml", FULL)], Some("x"), &set).expect("overridden");
    assert_eq!(manifest.limits.memory, Size::mib(64));
    assert_eq!(manifest.env["GREETING"], "hi=there");
    assert_eq!((manifest.scale.min, manifest.scale.max), (0, 2));
    assert_eq!(manifest.limits.cpu, 2.0);
    assert_eq!(manifest.name.as_str(), "x");
}

#[test]
fn each_refusal_names_key_value_and_bound() {
    let refused = |set: &[&str]| read(&[("spry.toml", FULL)], None, set).expect_err("refused");
    for (set, says) in [
        ("scale.max=65", "scale.max is 65, but must be between 1 and 64"),
        ("scale.min=4", "scale.min is 4, but must be at most scale.max (3)"),
        ("limits.memory=1MiB", "limits.memory is 1MiB, but must be between 4MiB and 1TiB"),
        ("limits.cpu=0", "limits.cpu is 0, but must be between 0.01 and 1024"),
        ("limits.cpu=NaN", "limits.cpu is NaN, but must be between 0.01 and 1024"),
        ("limits.timeout=0s", "limits.timeout is 0s, but must be between 1ms and 1d"),
        ("limits.timeout=30", "limits.timeout: \"30\" has no unit"),
        ("limits.tmpfs=1KiB", "limits.tmpfs is 1KiB, but must be between 64KiB and 1TiB"),
        ("limits.processes=0", "limits.processes is 0, but must be between 1 and 4096"),
        ("runtime=lambda", "runtime \"lambda\" is not in this version"),
        ("runtime=perl", "runtime is \"perl\", but must be one of"),
        ("isolation=vm", "isolation is \"vm\", but must be one of"),
        ("network.egress=lan", "network.egress is \"lan\""),
        ("name=Bad", "\"Bad\" can't be a function's name"),
        ("handler=nofunction", "a Python handler is written module:function"),
        ("handler=../x:main", "no path in it"),
        ("env.LD_PRELOAD=x", "env.LD_PRELOAD can't be set"),
        ("env.A-B=x", "env.A-B can't be set"),
        ("limits.disk=1", "\"limits.disk\" is no key"),
        ("colour=red", "\"colour\" is no key"),
        ("noequals", "is no KEY=VALUE"),
    ] {
        let error = refused(&[set]);
        assert!(error.contains(says), "{set}: {error}");
    }
}

#[test]
fn unknown_keys_and_broken_files_are_refused_with_their_line() {
    let unknown = read(&[("spry.toml", "name = \"a\"\nmemory = 3\n")], None, &[]).expect_err("unknown key");
    assert!(unknown.contains("line 2") && unknown.contains("memory"), "{unknown}");
    assert!(read(&[("spry.toml", "name = [")], None, &[]).expect_err("broken").contains("line 1"));
    let big = "#".repeat(FILE_MAX as usize + 1);
    assert!(read(&[("spry.toml", &big)], None, &[]).expect_err("long").contains("262144 are the most"));
}

#[test]
fn a_native_handler_stays_in_its_folder_and_must_be_there() {
    let native = "name='a'\nruntime='native'\nhandler='../a.so'\n";
    assert!(read(&[("spry.toml", native)], None, &[]).expect_err("outside").contains("within the folder"));
    let absent = "name='a'\nruntime='native'\nhandler='a.so'\n";
    assert!(read(&[("spry.toml", absent)], None, &[]).expect_err("absent").contains("no such file"));
}

#[test]
fn names_are_what_the_contract_says() {
    for good in ["a", "0", "photo-2", &"a".repeat(63)] {
        assert!(good.parse::<Name>().is_ok(), "{good}");
    }
    for bad in ["", "-a", "A", "a_b", "a.b", "a/b", "..", "é", "a\0", "a\n", &"a".repeat(64)] {
        assert!(bad.parse::<Name>().is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn no_manifest_panics_and_every_accepted_one_is_within_bounds(
        memory in any::<i64>(), cpu in any::<f64>(), timeout in "[0-9]{1,20}(ms|s|m|h|d|x)?",
        min in any::<i64>(), max in any::<i64>(), name in "[ -~]{0,70}", handler in "[ -~]{0,40}",
    ) {
        let text = format!(
            "name={name:?}\nruntime=\"python\"\nhandler={handler:?}\n[limits]\nmemory={memory}\ncpu={cpu:?}\n\
             timeout={timeout:?}\n[scale]\nmin={min}\nmax={max}\n"
        );
        let raw = raw::RawManifest::parse(&text, &[]);
        if let Ok(manifest) = raw.and_then(|raw| raw.check(&Defaults::default())) {
            prop_assert!(manifest.scale.min <= manifest.scale.max && manifest.scale.max <= SCALE_MAX);
            prop_assert!(manifest.limits.cpu.is_finite());
            prop_assert!(manifest.name.as_str().parse::<Name>().is_ok());
        }
    }

    #[test]
    fn no_text_panics_the_reader(text in "(?s).{0,300}") {
        let _ = raw::RawManifest::parse(&text, &[]);
    }

    #[test]
    fn valid_values_are_accepted(
        memory in 4u64..100_000, cpu in 0.01f64..1024.0, timeout in 1u64..86_400_000, max in 1u32..=64,
    ) {
        let text = format!(
            "name='a'\nruntime='python'\nhandler='a:b'\n[limits]\nmemory='{memory}MiB'\ncpu={cpu:?}\n\
             timeout='{timeout}ms'\n[scale]\nmin={max}\nmax={max}\n"
        );
        let manifest = raw::RawManifest::parse(&text, &[]).and_then(|raw| raw.check(&Defaults::default()));
        let manifest = manifest.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(manifest.limits.memory, Size::mib(memory));
        prop_assert_eq!(manifest.limits.timeout, Period::millis(timeout));
    }
}
