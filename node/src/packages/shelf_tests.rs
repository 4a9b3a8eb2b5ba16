use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::units::Size;

fn identity(kind: &str) -> Identity {
    Identity { kind: kind.into(), has_pip: true }
}

fn wanted(names: &[&str]) -> Vec<Requirement> {
    names.iter().map(|name| name.parse().expect("a requirement")).collect()
}

fn within(size: Size) -> config::Packages {
    config::Packages { size, ..config::Packages::default() }
}

struct Rig {
    folder: tempfile::TempDir,
    shelf: Shelf,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let shelf = Shelf::open(&folder.path().join("packages")).expect("opened");
        Self { folder, shelf }
    }

    fn left(&self) -> usize {
        self.shelf.entries().expect("listed").len()
    }

    /// What `prepare` puts into pip's folder, kept as the set of that key.
    fn keep(&self, key: &Key, limit: Size, prepare: impl FnOnce(&Path)) -> Result<Site, PackagesError> {
        let work = self.shelf.work("x\n", None).expect("made");
        prepare(&work.site());
        self.shelf.commit(&self.shelf.stage(&work, key, "cpython-311", &within(limit))?)
    }
}

/// Puts a distribution into pip's folder: its files and what they have.
fn distribution(site: &Path, name: &str, files: &[(&str, &[u8])], asked_for: bool) {
    let put = |path: &str, bytes: &[u8]| {
        let path = site.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, bytes).expect("written");
    };
    let mut record = String::new();
    for (path, bytes) in files {
        put(path, bytes);
        record.push_str(&format!("{path},sha256={},1\n", short(&Sha256::digest(bytes))));
    }
    if asked_for {
        put(&format!("{name}.dist-info/REQUESTED"), b"");
        record.push_str(&format!("{name}.dist-info/REQUESTED,sha256=,0\n"));
    }
    put(&format!("{name}.dist-info/METADATA"), format!("Name: {name}\n").as_bytes());
    put(&format!("{name}.dist-info/RECORD"), record.as_bytes());
}

fn folder_of(site: &Site, name: &str) -> PathBuf {
    let starts = format!("{name}-");
    let is_it = |folder: &&PathBuf| {
        folder.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&starts))
    };
    site.folders.iter().find(is_it).unwrap_or_else(|| panic!("no {name} in {site:?}")).clone()
}

fn key(name: &str) -> Key {
    Key::of(&wanted(&[name]), &identity("cpython-311"), &within(Size::gib(1)))
}

#[test]
fn what_is_asked_for_and_by_whom_makes_the_key() {
    let one = Key::of(&wanted(&["numpy", "six"]), &identity("cpython-311"), &within(Size::gib(1)));
    assert_eq!(one, Key::of(&wanted(&["NumPy", "six"]), &identity("cpython-311"), &within(Size::gib(1))));
    for other in [
        Key::of(&wanted(&["numpy"]), &identity("cpython-311"), &within(Size::gib(1))),
        Key::of(&wanted(&["numpy", "six"]), &identity("cpython-312"), &within(Size::gib(1))),
        Key::of(
            &wanted(&["numpy", "six"]),
            &identity("cpython-311"),
            &config::Packages { build: true, ..config::Packages::default() },
        ),
        Key::of(
            &wanted(&["numpy", "six"]),
            &identity("cpython-311"),
            &config::Packages { split: false, ..config::Packages::default() },
        ),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn what_two_sets_have_in_common_is_there_once() {
    let rig = Rig::new();
    let library: &[u8] = &[7; 100];
    let numpy = |site: &Path, asked_for| {
        distribution(
            site,
            "numpy-2.0",
            &[("numpy/__init__.py", b"x = 1\n"), ("numpy/x.so", library)],
            asked_for,
        )
    };
    let one = rig.keep(&key("numpy"), Size::mib(1), |site| numpy(site, true)).expect("kept");
    let two = rig.keep(&key("pandas"), Size::mib(1), |site| {
        numpy(site, false);
        distribution(site, "pandas-1.0", &[("pandas/__init__.py", b"import numpy\n")], true);
    });
    let two = two.expect("kept");
    assert_eq!((&one.whole, &two.whole), (&None, &None));
    assert_eq!(one.folders[0], folder_of(&two, "numpy-2.0"), "asked for or not, it is the same");
    assert_eq!(two.distributions(), ["numpy==2.0", "pandas==1.0"]);
    assert_eq!(rig.left(), 4, "two distributions and two lists");
    assert_eq!(rig.shelf.find(&key("pandas")), Some(two.clone()));
    // A byte, a mode or what it says of itself, and it is another.
    for change in [
        (&|site: &Path| fs::write(site.join("numpy/__init__.py"), "x = 2\n").expect("written"))
            as &dyn Fn(&Path),
        &|site| fs::set_permissions(site.join("numpy/x.so"), Permissions::from_mode(0o755)).expect("mode"),
        &|site| fs::write(site.join("numpy-2.0.dist-info/METADATA"), "").expect("written"),
    ] {
        let changed = rig.keep(&key("changed"), Size::mib(1), |site| {
            numpy(site, true);
            change(site);
        });
        assert_ne!(folder_of(&changed.expect("kept"), "numpy-2.0"), one.folders[0]);
    }
    // What says that it has been compiled isn't taken over, nor is it what a distribution is known by.
    let forged = rig.keep(&key("forged"), Size::mib(1), |site| {
        numpy(site, true);
        fs::create_dir(site.join("numpy/__pycache__")).expect("made");
        fs::write(site.join("numpy/__pycache__/__init__.cpython-311.pyc"), "evil").expect("written");
    });
    assert_eq!(forged.expect("kept").folders, one.folders);
    assert!(!one.folders[0].join("numpy/__pycache__").exists());
    // Who asks for one of them no more leaves the other what it has.
    remove(&rig.shelf.take_away(&[key("pandas")].into(), &BTreeSet::new()).expect("taken"));
    assert!(two.folders.iter().all(|folder| folder.is_dir()));
    assert_eq!(rig.left(), 3);
}

#[test]
fn what_is_compiled_belongs_to_a_source_and_counts() {
    use super::super::compile::take;
    let rig = Rig::new();
    let work = rig.shelf.work("x\n", None).expect("made");
    distribution(&work.site(), "a-1", &[("a/__init__.py", b"x = 1\n"), ("a/data", b"x")], true);
    let staged = rig.shelf.stage(&work, &key("a"), "cpython-311", &within(Size::mib(1))).expect("staged");
    let unit = &staged.units[0];
    let compiled = rig.shelf.work("", None).expect("made");
    let cache = compiled.site().join(unit.folder.strip_prefix("/").expect("absolute"));
    fs::create_dir_all(cache.join("a")).expect("made");
    for name in [
        "__init__.cpython-311.pyc",
        "__init__.cpython-399.pyc",
        "other.cpython-311.pyc",
        "data.cpython-311.pyc",
    ] {
        fs::write(cache.join("a").join(name), "code").expect("written");
    }
    assert!(take(unit, &compiled, "cpython-311", 3, Size::mib(1)).is_err(), "4 bytes are too many");
    fs::remove_dir_all(unit.folder.join("a/__pycache__")).ok();
    assert_eq!(take(unit, &compiled, "cpython-311", 4, Size::mib(1)).expect("taken"), 4);
    let names = fs::read_dir(unit.folder.join("a/__pycache__")).expect("listed").flatten();
    let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["__init__.cpython-311.pyc"]);
    // By no link, whoever has put it there.
    fs::remove_dir_all(unit.folder.join("a/__pycache__")).expect("removed");
    fs::remove_file(cache.join("a/__init__.cpython-311.pyc")).expect("removed");
    symlink("/etc/passwd", cache.join("a/__init__.cpython-311.pyc")).expect("linked");
    assert_eq!(take(unit, &compiled, "cpython-311", 1 << 20, Size::mib(1)).expect("nothing"), 0);
    assert!(!unit.folder.join("a/__pycache__").exists());
}

#[test]
fn a_set_is_kept_with_its_times_and_without_what_pip_had_beside_it() {
    // (It has no RECORD, and stays in one folder.)
    let rig = Rig::new();
    let work = rig.shelf.work("six\n", None).expect("made");
    fs::create_dir_all(work.site().join("six/deep")).expect("made");
    fs::write(work.site().join("six/__init__.py"), "x = 1\n").expect("written");
    fs::write(work.site().join("six/deep/tool"), "#!/bin/sh\n").expect("written");
    fs::set_permissions(work.site().join("six/deep/tool"), Permissions::from_mode(0o4777)).expect("mode");
    fs::write(work.tmp().join("junk"), "junk").expect("written");
    let before = fs::metadata(work.site().join("six/__init__.py")).expect("there");

    let staged = rig.shelf.stage(&work, &key("six"), "cpython-311", &within(Size::mib(1))).expect("staged");
    let kept = rig.shelf.commit(&staged).expect("kept");
    drop((work, staged));
    assert_eq!(rig.shelf.find(&key("six")), Some(kept.clone()));
    assert!(kept.whole.as_ref().is_some_and(|why| why.contains("is in no RECORD")), "{kept:?}");
    let site = kept.folders[0].clone();
    let after = fs::metadata(site.join("six/__init__.py")).expect("there");
    assert_eq!(after.modified().expect("a time"), before.modified().expect("a time"));
    assert_ne!(after.ino(), before.ino(), "a copy");
    assert_eq!(after.mode() & 0o7777, 0o644);
    assert_eq!(
        fs::metadata(site.join("six/deep/tool")).expect("there").mode() & 0o7777,
        0o755,
        "no set-user-id"
    );
    assert_eq!(rig.left(), 1, "only the set");
}

#[test]
fn links_and_special_files_and_too_much_are_refused_and_nothing_is_left() {
    let rig = Rig::new();
    let secret = rig.folder.path().join("secret");
    fs::write(&secret, "secret").expect("written");
    let refused = |prepare: &dyn Fn(&Path), says: &str| {
        let work = rig.shelf.work("x\n", None).expect("made");
        prepare(&work.site());
        let staged = rig.shelf.stage(&work, &key("x"), "cpython-311", &within(Size::mib(1)));
        let error = staged.expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
        drop(work);
        assert_eq!(rig.left(), 0, "{says}");
    };
    refused(&|site| symlink(&secret, site.join("link")).expect("linked"), "a link at link");
    refused(&|site| symlink("/etc", site.join("folder")).expect("linked"), "a link at folder");
    let site_itself = |site: &Path| {
        fs::remove_dir(site).expect("removed");
        symlink("/etc", site).expect("linked");
    };
    refused(&site_itself, "read ");
    let fifo =
        |site: &Path| nix::unistd::mkfifo(&site.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    refused(&fifo, "a special file at fifo");
    let large = |site: &Path| fs::write(site.join("large"), vec![0; (1 << 20) + 1]).expect("written");
    refused(&large, "over the limit of 1MiB");
    let deep = |site: &Path| fs::create_dir_all(site.join(["d"; 66].join("/"))).expect("made");
    refused(&deep, "more than 64 folders");
}

/// The same library in two sets is one file; what differs in a byte, in its rights or is Python's isn't.
#[test]
fn a_library_that_another_set_has_is_the_same_file() {
    let rig = Rig::new();
    let library: Vec<u8> = (0..(64_u64 << 10) * 3 + 5).map(|at| (at * at % 251) as u8).collect();
    let mut other = library.clone();
    *other.last_mut().expect("not empty") ^= 1;
    let keep = |name: &str, differs: &[u8], mode: u32| {
        let kept = rig.keep(&key(name), Size::mib(4), |site| {
            let put = |file: &str, bytes: &[u8]| fs::write(site.join(file), bytes).expect("written");
            put("same.so", &library);
            put("differs.so", differs);
            put("longer.so", &[&library[..], differs].concat()[..library.len() + mode as usize]);
            put("mode.so", &library);
            fs::set_permissions(site.join("mode.so"), Permissions::from_mode(mode)).expect("mode");
            put("module.py", &library);
            put("short.so", b"short");
        });
        kept.expect("kept").folders.remove(0)
    };
    let (one, two) = (keep("one", &library, 0o644), keep("two", &other, 0o755));
    for (file, shared) in [
        ("same.so", true),
        ("differs.so", false),
        ("longer.so", false),
        ("mode.so", false),
        ("module.py", false),
        ("short.so", false),
    ] {
        let inode = |site: &Path| fs::metadata(site.join(file)).expect("there").ino();
        assert_eq!(inode(&one) == inode(&two), shared, "{file}");
    }
    assert_eq!(fs::read(two.join("same.so")).expect("read"), library);
    assert_eq!(fs::read(two.join("differs.so")).expect("read"), other);
    // One of the two goes, and the other keeps what it has.
    remove(&rig.shelf.take_away(&[key("two")].into(), &BTreeSet::new()).expect("taken"));
    assert_eq!(fs::read(two.join("same.so")).expect("read"), library);
    // A link counts against the limit as a copy does.
    let error = rig.keep(&key("three"), Size::bytes(library.len() as u64 - 1), |site| {
        fs::write(site.join("same.so"), &library).expect("written");
    });
    let error = error.expect_err("too large");
    assert!(error.to_string().contains("over the limit"), "{error}");
}

#[test]
fn what_nobody_asks_for_goes_and_what_a_crash_left_half_made_goes_at_open() {
    let rig = Rig::new();
    let mut given = BTreeSet::new();
    for name in ["six", "numpy"] {
        let kept = rig.keep(&key(name), Size::mib(1), |site| {
            distribution(site, &format!("{name}-1"), &[("x.py", b"")], true)
        });
        given.extend(kept.expect("kept").folders);
    }
    // As an earlier version has left it.
    let before = rig.shelf.folder.join(&key("old").0).join("site");
    fs::create_dir_all(&before).expect("made");
    let found = rig.shelf.find(&key("old")).expect("there");
    assert_eq!((&found.folders[0], found.whole.as_deref()), (&before, Some(BEFORE)));
    given.insert(before);
    let gone = |kept: &[&str], given: &BTreeSet<PathBuf>| {
        let kept = kept.iter().map(|name| key(name)).collect();
        let taken = rig.shelf.take_away(&kept, given).expect("taken");
        remove(&taken);
        taken.len()
    };
    assert_eq!(gone(&[], &given), 2, "the lists; somebody runs with what they name");
    assert!(given.iter().all(|folder| folder.is_dir()));
    rig.keep(&key("six"), Size::mib(1), |site| distribution(site, "six-1", &[("x.py", b"")], true))
        .expect("kept");
    assert_eq!(gone(&["six"], &BTreeSet::new()), 2, "the old one and a distribution");
    assert!(rig.shelf.find(&key("six")).is_some() && rig.shelf.find(&key("numpy")).is_none());
    // One that is about to be part of a set stays.
    let work = rig.shelf.work("x\n", None).expect("made");
    distribution(&work.site(), "six-1", &[("x.py", b"")], false);
    let staged = rig.shelf.stage(&work, &key("other"), "cpython-311", &within(Size::mib(1))).expect("staged");
    assert!(staged.units.is_empty(), "it is there");
    assert_eq!(gone(&[], &BTreeSet::new()), 1, "the list");
    let kept = rig.shelf.commit(&staged).expect("kept");
    drop((work, staged));
    assert!(kept.folders[0].is_dir());
    // A crash here, another one in the middle of an installation, and one between a distribution and its list.
    std::mem::forget(rig.shelf.work("x\n", None).expect("made"));
    fs::create_dir(rig.shelf.folder.join(".new-99")).expect("made");
    fs::create_dir(rig.shelf.folder.join("lost-1-abc")).expect("made");
    let shelf = Shelf::open(&rig.shelf.folder).expect("opened again");
    assert!(shelf.find(&key("other")).is_some());
    assert_eq!(gone(&["other"], &BTreeSet::new()), 1, "what no list names");
    assert_eq!(shelf.entries().expect("listed").len(), 2);
    // A list without what it names is no set.
    fs::remove_dir_all(&kept.folders[0]).expect("removed");
    assert_eq!(shelf.find(&key("other")), None);
}

#[test]
fn what_a_package_may_say_to_take_more_than_it_may_is_bounded() {
    let rig = Rig::new();
    // One file that many distributions say is theirs.
    let site = rig.keep(&key("shared"), Size::mib(1), |site| {
        fs::write(site.join("big.bin"), vec![0; 300 << 10]).expect("written");
        for number in 0..8 {
            let info = site.join(format!("d{number}-1.dist-info"));
            fs::create_dir(&info).expect("made");
            fs::write(info.join("RECORD"), "big.bin,sha256=x,1\n").expect("written");
        }
    });
    let whole = site.expect("kept").whole;
    assert!(whole.as_deref().is_some_and(|why| why.contains("too large together")), "{whole:?}");
    // Many long lists.
    let site = rig.keep(&key("lists"), Size::gib(1), |site| {
        for number in 0..5 {
            let info = site.join(format!("d{number}-1.dist-info"));
            fs::create_dir(&info).expect("made");
            fs::write(info.join("RECORD"), vec![b'\n'; 8 << 20]).expect("written");
        }
    });
    let whole = site.expect("kept").whole;
    assert!(whole.as_deref().is_some_and(|why| why.contains("too long")), "{whole:?}");
    // Long paths.
    let refused = rig.keep(&key("paths"), Size::gib(1), |site| {
        let mut folder = site.to_owned();
        (0..14).for_each(|_| folder.push("x".repeat(250)));
        fs::create_dir_all(&folder).expect("made");
        for number in 0..20_000 {
            fs::write(folder.join(number.to_string()), b"").expect("written");
        }
    });
    let refused = refused.expect_err("too much").to_string();
    assert!(refused.contains("paths that are too long"), "{refused}");
    let refused = rig.keep(&key("compiled"), Size::gib(1), |site| {
        fs::write(site.join("__pycache__"), b"").expect("written");
    });
    let refused = refused.expect_err("not a folder").to_string();
    assert!(refused.contains("as those of compiled code"), "{refused}");
}

#[test]
fn a_list_that_can_not_be_read_keeps_what_there_is() {
    let rig = Rig::new();
    let limit = Size::gib(1);
    let site = rig.keep(&key("a"), limit, |site| distribution(site, "a-1", &[("a.py", b"1")], true));
    let list = rig.folder.path().join("packages").join(format!("{}{LIST}", key("a").0));
    // A folder in its place is an error that isn't "not found".
    fs::rename(&list, list.with_extension("away")).expect("moved");
    fs::create_dir(&list).expect("made");
    rig.shelf.take_away(&[key("a")].into(), &BTreeSet::new()).expect_err("it can't be read");
    assert!(site.expect("kept").folders.iter().all(|folder| folder.is_dir()));
}
