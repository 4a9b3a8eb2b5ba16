use std::os::unix::fs::{MetadataExt, symlink};

use super::*;

fn identity(kind: &str) -> Identity {
    Identity { kind: kind.into(), has_pip: true }
}

fn wanted(names: &[&str]) -> Vec<Requirement> {
    names.iter().map(|name| name.parse().expect("a requirement")).collect()
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
}

fn key(name: &str) -> Key {
    Key::of(&wanted(&[name]), &identity("cpython-311"), false)
}

#[test]
fn what_is_asked_for_and_by_whom_makes_the_key() {
    let one = Key::of(&wanted(&["numpy", "six"]), &identity("cpython-311"), false);
    assert_eq!(one, Key::of(&wanted(&["NumPy", "six"]), &identity("cpython-311"), false));
    for other in [
        Key::of(&wanted(&["numpy"]), &identity("cpython-311"), false),
        Key::of(&wanted(&["numpy", "six"]), &identity("cpython-312"), false),
        Key::of(&wanted(&["numpy", "six"]), &identity("cpython-311"), true),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn a_set_is_kept_with_its_times_and_without_what_pip_had_beside_it() {
    let rig = Rig::new();
    let work = rig.shelf.work("six\n", None).expect("made");
    fs::create_dir_all(work.site().join("six/deep")).expect("made");
    fs::write(work.site().join("six/__init__.py"), "x = 1\n").expect("written");
    fs::write(work.site().join("six/deep/tool"), "#!/bin/sh\n").expect("written");
    fs::set_permissions(work.site().join("six/deep/tool"), Permissions::from_mode(0o4777)).expect("mode");
    fs::write(work.tmp().join("junk"), "junk").expect("written");
    let before = fs::metadata(work.site().join("six/__init__.py")).expect("there");

    let site = rig.shelf.keep(&work, &key("six"), Size::mib(1)).expect("kept");
    drop(work);
    assert_eq!(rig.shelf.find(&key("six")), Some(site.clone()));
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
        let error = rig.shelf.keep(&work, &key("x"), Size::mib(1)).expect_err(says).to_string();
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
    let library: Vec<u8> = (0..SHARED_LEN_MIN * 3 + 5).map(|at| (at * at % 251) as u8).collect();
    let mut other = library.clone();
    *other.last_mut().expect("not empty") ^= 1;
    let keep = |name: &str, differs: &[u8], mode: u32| {
        let work = rig.shelf.work("x\n", None).expect("made");
        let put = |file: &str, bytes: &[u8]| fs::write(work.site().join(file), bytes).expect("written");
        put("same.so", &library);
        put("differs.so", differs);
        put("longer.so", &[&library[..], differs].concat()[..library.len() + mode as usize]);
        put("mode.so", &library);
        fs::set_permissions(work.site().join("mode.so"), Permissions::from_mode(mode)).expect("mode");
        put("module.py", &library);
        put("short.so", b"short");
        rig.shelf.keep(&work, &key(name), Size::mib(4)).expect("kept")
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
    let work = rig.shelf.work("x\n", None).expect("made");
    fs::write(work.site().join("same.so"), &library).expect("written");
    let error =
        rig.shelf.keep(&work, &key("three"), Size::bytes(library.len() as u64 - 1)).expect_err("too large");
    assert!(error.to_string().contains("over the limit"), "{error}");
}

#[test]
fn what_nobody_asks_for_goes_and_what_a_crash_left_half_made_goes_at_open() {
    let rig = Rig::new();
    let mut given = BTreeSet::new();
    for name in ["six", "numpy"] {
        let work = rig.shelf.work("x\n", None).expect("made");
        given.insert(rig.shelf.keep(&work, &key(name), Size::mib(1)).expect("kept"));
    }
    let taken = rig.shelf.take_away(&BTreeSet::new(), &given).expect("taken");
    assert_eq!(taken, [] as [PathBuf; 0], "they are asked for by another name, and somebody runs with them");
    let taken = rig.shelf.take_away(&[key("six")].into(), &BTreeSet::new()).expect("taken");
    assert_eq!(taken.len(), 1);
    assert!(rig.shelf.find(&key("six")).is_some() && rig.shelf.find(&key("numpy")).is_none());
    // A crash here, and another one in the middle of an installation.
    std::mem::forget(rig.shelf.work("x\n", None).expect("made"));
    fs::create_dir(rig.shelf.folder.join(".new-99")).expect("made");
    let shelf = Shelf::open(&rig.shelf.folder).expect("opened again");
    assert_eq!(shelf.entries().expect("listed").len(), 1);
    assert!(shelf.find(&key("six")).is_some());
}
