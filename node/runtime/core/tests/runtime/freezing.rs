//! Frozen zygotes: everything that a function may do with its memory works as before, and nothing comes back.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::harness::{Zygote, c_library, python};
use spry_wire::frame::RequestHead;
use spry_wire::freeze::{Freeze, FreezeWish};

const MIB: u64 = 1 << 20;

fn head(path: &str) -> RequestHead<'_> {
    RequestHead { call_id: "call-1", method: "POST", path, ..RequestHead::default() }
}

fn heavy(how: Freeze) -> Zygote {
    let dir = tempfile::tempdir().expect("tempdir");
    let library = c_library(dir.path(), "heavy");
    Zygote::native_frozen(&library, FreezeWish { how, ..FreezeWish::default() }).expect("load")
}

/// Sizes of a process's mappings of the frozen file, private and shared, in bytes.
fn frozen_mappings(pid: i32) -> Vec<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let frozen = maps.lines().filter(|line| line.contains("memfd:spry-frozen"));
    frozen
        .map(|line| {
            assert_eq!(line.split(' ').nth(1).map(|modes| &modes[3..]), Some("p"), "{line}");
            let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("range");
            let address = |text| u64::from_str_radix(text, 16).expect("address");
            address(end) - address(start)
        })
        .collect()
}

#[test]
fn all_kinds_of_memory_are_frozen_and_stay_what_they_were() {
    let zygote = heavy(Freeze::Auto);
    let frozen = &zygote.frozen;
    assert_eq!((frozen.how, &frozen.why), (Freeze::Memfd, &None), "{frozen:?}");
    // .data, .bss, 12 MB of brk, 24 MiB of mmap, 4 of the 8 MiB of pages
    assert!((40 * MIB..60 * MIB).contains(&frozen.bytes), "{frozen:?}");
    assert_eq!(frozen_mappings(zygote.pid()).iter().sum::<u64>(), frozen.bytes);
    for _ in 0..3 {
        let mut instance = zygote.fork();
        assert_eq!(instance.call(&head("/whole"), b"").text(), "whole");
        assert_eq!(instance.call(&head("/secret"), b"").text(), "wiped", "MADV_WIPEONFORK holds");
        assert_eq!(instance.call(&head("/scribble"), b"").text(), "scribbled");
        assert_eq!(instance.call(&head("/whole"), b"").text(), "broken");
    }
}

#[test]
fn the_heap_grows_blocks_move_and_memory_is_given_back() {
    let zygote = heavy(Freeze::Memfd);
    let mut instance = zygote.fork();
    for round in 0..2 {
        assert_eq!(instance.call(&head("/grow"), b"").text(), "grown", "{round}");
        assert_eq!(instance.call(&head("/move"), b"").text(), "moved", "{round}");
        assert_eq!(instance.call(&head("/child"), b"").text(), "separate", "{round}");
    }
    assert_eq!(instance.call(&head("/give-back"), b"").text(), "refused");
    assert_eq!(zygote.fork().call(&head("/give-back"), b"").text(), "refused");
}

#[test]
fn the_frozen_file_is_out_of_reach() {
    let zygote = heavy(Freeze::Memfd);
    assert_eq!(zygote.fork().call(&head("/reach"), b"").text(), "out of reach");
    assert_eq!(zygote.fork().call(&head("/whole"), b"").text(), "whole");
}

#[test]
fn many_forks_of_a_frozen_zygote_are_alike() {
    let zygote = heavy(Freeze::Memfd);
    for _ in 0..100 {
        let mut instance = zygote.fork();
        assert_eq!(instance.call(&head("/calls"), b"").text(), "1");
    }
    assert_eq!(zygote.fork().call(&head("/whole"), b"").text(), "whole");
}

#[test]
fn huge_pages_and_none_work_as_well() {
    for how in [Freeze::Huge, Freeze::Off] {
        let zygote = heavy(how);
        assert!(frozen_mappings(zygote.pid()).is_empty());
        match (how, &zygote.frozen) {
            (Freeze::Huge, frozen) if frozen.how == Freeze::Off => {
                eprintln!("SKIP: huge pages: {}", frozen.why.as_deref().unwrap_or("no reason"));
            }
            (Freeze::Huge, frozen) => assert!(frozen.bytes >= 16 * MIB, "{frozen:?}"),
            (_, frozen) => assert_eq!(frozen.why.as_deref(), Some("switched off")),
        }
        let mut instance = zygote.fork();
        for (path, answer) in [
            ("/whole", "whole"),
            ("/grow", "grown"),
            ("/move", "moved"),
            ("/child", "separate"),
            ("/give-back", "given"),
        ] {
            assert_eq!(instance.call(&head(path), b"").text(), answer, "{how:?}");
        }
    }
}

/// Near its memory limit a zygote stays as it is: a copy of a part of it would be one too many.
#[test]
fn a_zygote_without_room_stays_unfrozen_and_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let library = c_library(dir.path(), "heavy");
    let wish = FreezeWish { how: Freeze::Auto, memory_bytes: 40 * MIB, always: false };
    let zygote = Zygote::native_frozen(&library, wish).expect("load");
    assert_eq!(zygote.frozen.how, Freeze::Off);
    let why = zygote.frozen.why.as_deref().unwrap_or_default();
    assert!(why.contains("memory limit of 40 MiB"), "{why}");
    assert_eq!(zygote.fork().call(&head("/whole"), b"").text(), "whole");
}

const PYTHON: &str = "
import json, hashlib, decimal, re, sqlite3, ssl, asyncio
table = {i: str(i) * 3 for i in range(100_000)}
numbers = list(range(300_000))

def main(params):
    assert len(table) == 100_000 and table[99_999] == '99999' * 3
    assert sum(numbers) == 44999850000
    more = [object() for _ in range(50_000)]
    table.clear()
    numbers.append(sum(len(str(o)) for o in more[:10]))
    db = sqlite3.connect(':memory:')
    db.execute('create table t(x)')
    db.executemany('insert into t values (?)', [(i,) for i in range(1000)])
    total = db.execute('select sum(x) from t').fetchone()[0]
    text = json.dumps({'h': hashlib.sha256(b'x' * 100_000).hexdigest(), 'd': str(decimal.Decimal(1) / 7)})
    return {'total': total, 'len': len(text), 'tls': ssl.OPENSSL_VERSION_NUMBER > 0, 'n': len(numbers)}
";

#[test]
fn a_frozen_python_works() {
    let zygote = Zygote::python(PYTHON).expect("load");
    assert_eq!(zygote.frozen.how, Freeze::Memfd, "{:?}", zygote.frozen);
    assert!(zygote.frozen.bytes > 20 * MIB, "{:?}", zygote.frozen);
    for _ in 0..5 {
        let mut instance = zygote.fork();
        let answer = instance.call(&head(""), b"{}");
        assert_eq!(answer.text(), r#"{"total":499500,"len":112,"tls":true,"n":300001}"#);
    }
}

const SCIENCE: &str = "
import io
import numpy as np, pandas as pd, lxml.etree as etree
from PIL import Image
from cryptography.fernet import Fernet

kept = np.arange(2_000_000, dtype=np.float64)
frame = pd.DataFrame({'k': np.arange(50_000) % 7, 'v': np.arange(50_000)})
document = etree.fromstring('<r>' + '<x a=\"1\"/>' * 10_000 + '</r>')
picture = Image.new('RGB', (640, 480), (10, 20, 30))
key = Fernet(Fernet.generate_key())

def main(params):
    kept[:] = kept * 2
    matrix = np.random.default_rng(1).random((200, 200))
    solved = np.allclose(np.linalg.inv(matrix) @ matrix, np.eye(200))
    sums = frame.groupby('k')['v'].sum()
    grown = pd.concat([frame] * 20, ignore_index=True)
    for x in list(document):
        document.remove(x)
    out = io.BytesIO()
    picture.resize((320, 240)).save(out, 'JPEG')
    read = Image.open(io.BytesIO(out.getvalue()))
    read.load()
    return {
        'numpy': [float(kept[1999999]), bool(solved)],
        'pandas': [int(sums.sum()), len(grown)],
        'lxml': len(document),
        'pillow': list(read.size),
        'cryptography': key.decrypt(key.encrypt(b'secret')).decode(),
    }
";

/// Libraries with heaps, arenas and mappings of their own, loaded before the freezing, at work after it.
#[test]
fn frozen_libraries_of_numbers_pictures_trees_and_ciphers_work() {
    let code = match packages(&["numpy", "pandas", "pillow", "lxml", "cryptography"]) {
        Ok(code) => code,
        Err(why) => return eprintln!("SKIP: {why}"),
    };
    fs::write(code.join("science.py"), SCIENCE).expect("write the function");
    let zygote =
        Zygote::python_at(&code, "science:main").unwrap_or_else(|message| panic!("refused: {message}"));
    assert_eq!((zygote.frozen.how, &zygote.frozen.why), (Freeze::Memfd, &None), "{:?}", zygote.frozen);
    assert!(zygote.frozen.bytes > 40 * MIB, "{:?}", zygote.frozen);
    for _ in 0..3 {
        let mut instance = zygote.fork();
        assert_eq!(
            instance.call(&head(""), b"{}").text(),
            r#"{"numpy":[3999998.0,true],"pandas":[1249975000,1000000],"lxml":0,"pillow":[320,240],"cryptography":"secret"}"#
        );
    }
}

/// A folder with these packages from PyPI, kept beside the other build products for the next time.
fn packages(names: &[&str]) -> Result<PathBuf, String> {
    let test = std::env::current_exe().expect("own path");
    let target = test.ancestors().nth(3).expect("tests are in target/<profile>/deps");
    let interpreter = python().to_string_lossy().replace('/', "-");
    let folder = target.join(format!("test-packages{interpreter}"));
    let whole = folder.join("whole");
    if whole.is_file() {
        return Ok(folder);
    }
    let mut pip = Command::new(python());
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--upgrade", "--target"])
        .arg(&folder);
    let output =
        pip.args(names).stdin(Stdio::null()).output().map_err(|error| format!("start pip: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("pip can't install {}: {}", names.join(", "), text.trim()));
    }
    fs::write(whole, "").expect("note that they are there");
    Ok(folder)
}
