//! Layers: a zygote that begins as what another process was is like one that began by itself.

use std::fs;
use std::os::fd::OwnedFd;

use crate::harness::{Instance, Zygote};
use spry_wire::frame::RequestHead;

const MODULES: [&str; 6] = ["decimal", "sqlite3", "random", "lxml.etree", "platform", "uuid"];

struct Fixture {
    dir: tempfile::TempDir,
    layer: OwnedFd,
}

fn layer(modules: &[&str]) -> Fixture {
    let dir = tempfile::tempdir().expect("tempdir");
    let (layer, made) = Zygote::layer(dir.path(), modules).unwrap_or_else(|why| panic!("no layer: {why}"));
    assert!(made.imports.modules.iter().any(|name| name == "decimal"), "{made:?}");
    assert!(made.bytes > 1 << 20, "{}", made.bytes);
    Fixture { dir, layer }
}

impl Fixture {
    fn function(&self, name: &str, source: &str) -> Zygote {
        let code = self.dir.path().join(name);
        fs::create_dir(&code).expect("folder");
        fs::write(code.join("function.py"), source).expect("written");
        Zygote::python_on(&self.layer, &code, "function:main").unwrap_or_else(|why| panic!("{why}"))
    }
}

fn call(instance: &mut Instance, body: &str) -> String {
    let headers = vec![("content-type", &b"application/json"[..])];
    let head = RequestHead { call_id: "call-1", method: "POST", headers, ..RequestHead::default() };
    instance.call(&head, body.as_bytes()).text().to_owned()
}

/// Sizes and places of what is mapped of the layer.
fn mapped(pid: i32, what: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    maps.lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
}

#[test]
fn a_function_on_a_layer_works_like_any_other() {
    let fixture = layer(&MODULES);
    let source = r#"
import sys, os
BEFORE = set(sys.modules)
import decimal, sqlite3, threading, subprocess, time
HEAP = [bytearray(1000) for _ in range(20_000)]
def main(params):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(threading.current_thread().name))
    thread.start()
    thread.join()
    database = sqlite3.connect(":memory:")
    more = [bytearray(100_000) for _ in range(200)]
    return {
        "imported": "decimal" in BEFORE,
        "sum": str(decimal.Decimal("0.1") + decimal.Decimal("0.2")),
        "sql": database.execute("select 6 * 7").fetchone()[0],
        "thread": len(seen),
        "child": subprocess.run(["/bin/echo", "hello"], capture_output=True).stdout.decode(),
        "cwd": os.getcwd() == os.path.dirname(__file__),
        "name": os.environ["SPRY_FUNCTION"],
        "time": time.time() > 1e9 and time.monotonic() > 0,
        "ids": os.getpid() == int(os.readlink("/proc/self")) and threading.get_native_id() == os.getpid(),
        "n": params["n"],
    }
"#;
    let zygote = fixture.function("one", source);
    assert!(zygote.runtime.starts_with("CPython 3."), "{}", zygote.runtime);
    assert_eq!(zygote.frozen.why, None, "{:?}", zygote.frozen);
    for n in 0..3 {
        let mut instance = zygote.fork();
        let answer = call(&mut instance, &format!("{{\"n\": {n}}}"));
        let wanted = format!(
            r#"{{"imported":true,"sum":"0.3","sql":42,"thread":1,"child":"hello\n","cwd":true,"name":"under-test","time":true,"ids":true,"n":{n}}}"#
        );
        assert_eq!(answer, wanted);
    }
    assert_eq!(zygote.log(), "");
}

#[test]
fn a_layer_has_what_a_function_imported_and_nothing_more() {
    let source = "import decimal, email.message, html.parser, sqlite3\ndef main(params):\n    return {}\n";
    let zygote = Zygote::python(source).unwrap_or_else(|why| panic!("{why}"));
    let wanted: Vec<&str> = zygote.imports.modules.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir().expect("tempdir");
    let (_layer, made) = Zygote::layer(dir.path(), &wanted).unwrap_or_else(|why| panic!("no layer: {why}"));
    let mut made: Vec<&str> = made.imports.modules.iter().map(String::as_str).collect();
    assert!(made.contains(&"html.parser"), "{made:?}");
    made.retain(|name| !wanted.contains(name));
    assert!(made.is_empty(), "brought along: {made:?}");
}

#[test]
fn what_one_function_does_to_a_layers_modules_reaches_no_other() {
    let fixture = layer(&MODULES);
    let poison = "import decimal, random\ndecimal.getcontext().prec = 3\ndecimal.POISON = 1\n\
                  def main(params):\n    return [decimal.POISON, random.random()]\n";
    let clean = "import decimal, random\ndef main(params):\n    \
                 return [hasattr(decimal, 'POISON'), decimal.getcontext().prec, random.random()]\n";
    let poisoned = fixture.function("poison", poison);
    let neighbour = fixture.function("clean", clean);
    let first = call(&mut poisoned.fork(), "{}");
    let second = call(&mut neighbour.fork(), "{}");
    assert!(second.starts_with("[false,28,"), "{second}");
    let number = |text: &str| text.rsplit(',').next().expect("a number").to_owned();
    assert_ne!(number(&first), number(&second), "random numbers");
    assert_ne!(number(&second), number(&call(&mut neighbour.fork(), "{}")));
}

#[test]
fn memory_of_the_layer_is_shared_and_frozen() {
    let fixture = layer(&MODULES);
    let source = "import decimal\nimport mmap, ctypes\nHEAP = [bytearray(1000) for _ in range(2000)]\n\
                  def main(params):\n    return [sum(map(len, HEAP))]\n";
    let zygote = fixture.function("one", source);
    let shared = mapped(zygote.pid(), "/memfd:spry-layer");
    assert!(shared.len() > 10, "{shared:?}");
    assert!(shared.iter().all(|line| line.split(' ').nth(1).is_some_and(|modes| modes.ends_with('p'))));
    assert!(!mapped(zygote.pid(), "/memfd:spry-frozen").is_empty(), "{:?}", zygote.frozen);
    let open = fs::read_dir(format!("/proc/{}/fd", zygote.pid())).expect("descriptors").count();
    assert_eq!(
        open, 5,
        "standard ones, its socket, what keeps its forks' signals in: none of the layer, nor of its files"
    );
    assert_eq!(call(&mut zygote.fork(), "{}"), "[2000000]");
}

#[test]
fn what_can_not_be_written_down_is_said() {
    let dir = tempfile::tempdir().expect("tempdir");
    let site = dir.path().join("site");
    fs::create_dir(&site).expect("folder");
    for (name, source, says) in [
        (
            "threads",
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
            "starts threads",
        ),
        ("files", "FILE = open('/dev/zero', 'rb')\n", "leaves 1 files open"),
        (
            "children",
            "import subprocess\nCHILD = subprocess.Popen(['/bin/sleep', '60'])\n",
            "starts processes",
        ),
        ("timers", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 60)\n", "starts timers"),
        ("shared", "import mmap\nMEMORY = mmap.mmap(-1, 4096)\n", "can't open"),
    ] {
        fs::write(site.join(format!("layer_{name}.py")), source).expect("written");
        let why = Zygote::layer_with(dir.path(), &[&format!("layer_{name}")], &site).expect_err(name);
        assert!(why.contains(says), "{name}: {why}");
    }
}

/// What is looked for while a layer is made, and how: found or not, by which way ever.
#[test]
fn what_importing_looks_for_is_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let site = dir.path().join("site");
    fs::create_dir_all(site.join("six-1.0.dist-info")).expect("folder");
    fs::create_dir(site.join("space")).expect("folder");
    fs::write(site.join("six-1.0.dist-info/METADATA"), "Name: six\nVersion: 1.0\n").expect("written");
    fs::write(site.join("six.py"), "").expect("written");
    let nothing = (false, false);
    let distributions = (true, false);
    let everything = (true, true);
    for (name, source, expected, modules, asked) in [
        ("import", "import six, xmlrpc.client, space\nlist(space.__path__)", nothing, "", ""),
        ("absent", "try:\n    import nobody\nexcept ImportError:\n    pass", nothing, "nobody", ""),
        ("spec", "import importlib.util as u\nassert u.find_spec('six')", nothing, "six", ""),
        ("version", "import importlib.metadata as m\nassert m.version('six') == '1.0'", nothing, "", "six"),
        ("first", "import importlib.metadata as m\nnext(iter(m.distributions()))", distributions, "", ""),
        ("points", "import importlib.metadata as m\nm.entry_points()", distributions, "", ""),
        (
            "finder",
            "from importlib.machinery import PathFinder\nassert PathFinder.find_spec('six')",
            everything,
            "",
            "",
        ),
        (
            "metadata",
            "from importlib.metadata import MetadataPathFinder as F\nassert list(F.find_distributions())",
            everything,
            "",
            "",
        ),
        ("list", "import sys\nlist(sys.path)", everything, "", ""),
        ("text", "import sys\nrepr(sys.path)", everything, "", ""),
        ("same", "import sys\nsys.path == []", everything, "", ""),
        ("behind", "import sys\nassert (['x'] + sys.path)[0] == 'x'", everything, "", ""),
        (
            "added",
            "import sys\none = two = ['x']\none += sys.path\nassert one is two and len(one) > 1",
            everything,
            "",
            "",
        ),
        ("place", "import sys\nif '/x' not in sys.path:\n    sys.path += ['/x']", nothing, "", ""),
        ("other", "import sys\nsys.path = list(sys.path)", everything, "", ""),
        ("kept", "import sys\nKEPT = sys.path", everything, "", ""),
        (
            "removed",
            "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if isinstance(f, type)]",
            everything,
            "",
            "",
        ),
    ] {
        let module = format!("layer_{name}");
        fs::write(site.join(format!("{module}.py")), source).expect("written");
        let (_, made) = Zygote::layer_with(dir.path(), &[&module], &site).expect(name);
        assert!(made.imports.modules.contains(&module), "{name} can be imported");
        let absent = made.absent;
        assert_eq!((absent.all, absent.walked), expected, "{name}: {absent:?}");
        // (The standard library looks for some of its own parts that aren't there.)
        let of_site = |name: &&String| ["six", "nobody", "space"].contains(&name.as_str());
        let told: Vec<&String> = absent.modules.iter().filter(of_site).collect();
        assert_eq!(told, Vec::from_iter(Some(modules).filter(|name| !name.is_empty())), "{name}: {absent:?}");
        assert_eq!(
            absent.distributions,
            Vec::from_iter(Some(asked).filter(|name| !name.is_empty())),
            "{name}"
        );
    }
}

/// What a function finds in folders of its own isn't seen by who looks into its code's.
#[test]
fn a_function_that_looks_elsewhere_says_so() {
    for (lines, elsewhere) in [
        ("import decimal", false),
        ("sys.path.append(os.path.dirname(__file__))", false),
        ("sys.path.append(os.path.dirname(os.__file__) + '/xml')", false),
        ("sys.path.insert(0, os.path.dirname(__file__) + '/vendor')", true),
        ("sys.path.append('/nowhere')", true),
        ("sys.path.append('')", true),
        ("sys.path.append(os.path.dirname(os.__file__) + '/../../../nowhere')", true),
    ] {
        let source = format!("import os, sys\n{lines}\ndef main(params):\n    return 1\n");
        let zygote = Zygote::python(&source).unwrap_or_else(|why| panic!("{lines}: {why}"));
        assert_eq!(zygote.imports.elsewhere, elsewhere, "{lines}");
        assert!(zygote.imports.modules.iter().any(|name| name == "os"), "{lines}");
    }
}

#[test]
fn a_file_that_has_changed_or_is_no_layer_is_refused() {
    let fixture = layer(&MODULES);
    let code = fixture.dir.path().join("code");
    fs::create_dir(&code).expect("folder");
    let on = |layer: &OwnedFd| Zygote::python_on(layer, &code, "function:main").err().expect("refused");
    let nonsense: OwnedFd = fs::File::open("/usr/bin/python3").expect("a file").into();
    assert!(on(&nonsense).contains("describes no process"));
    let module = fixture.dir.path().join("_spry.abi3.so");
    let bytes = fs::read(&module).expect("read");
    fs::remove_file(&module).expect("removed");
    fs::write(&module, bytes).expect("written");
    assert!(on(&fixture.layer).contains("has changed"), "{}", on(&fixture.layer));
}
