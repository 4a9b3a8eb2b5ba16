//! Hostile archives, one by one and at random.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::MetadataExt;
use tar::{Builder, Header};

const LIMITS: UploadLimits = UploadLimits { size: crate::units::Size::kib(64), files: 100 };

/// An entry whose name goes into the header as it is, past the checks of the `tar` crate's builder.
struct Raw<'a> {
    kind: EntryType,
    path: &'a [u8],
    link: &'a [u8],
    data: &'a [u8],
    mode: u32,
}

impl<'a> Raw<'a> {
    fn file(path: &'a str, data: &'a [u8]) -> Self {
        Self { kind: EntryType::Regular, path: path.as_bytes(), link: b"", data, mode: 0o644 }
    }
    fn link(path: &'a str, target: &'a str) -> Self {
        Self {
            kind: EntryType::Symlink,
            path: path.as_bytes(),
            link: target.as_bytes(),
            data: b"",
            mode: 0o777,
        }
    }
    fn of(kind: EntryType, path: &'a str) -> Self {
        Self { kind, path: path.as_bytes(), link: b"a", data: b"", mode: 0o755 }
    }
}

fn archive(entries: &[Raw<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        {
            let gnu = header.as_gnu_mut().expect("made as such");
            gnu.name[..entry.path.len()].copy_from_slice(entry.path);
            gnu.linkname[..entry.link.len()].copy_from_slice(entry.link);
        }
        header.set_entry_type(entry.kind);
        header.set_size(entry.data.len() as u64);
        header.set_mode(entry.mode);
        header.set_cksum();
        builder.append(&header, entry.data).expect("into memory");
    }
    builder.into_inner().expect("into memory")
}

fn try_bytes(bytes: &[u8]) -> (tempfile::TempDir, Result<(Tree, Unpacked), UnpackError>) {
    let outer = tempfile::tempdir().expect("a folder");
    let root = outer.path().join("root");
    fs::create_dir(&root).expect("made");
    fs::write(outer.path().join("outside"), "untouched").expect("written");
    let result = unpack(bytes, &root, LIMITS);
    assert_eq!(fs::read(outer.path().join("outside")).expect("still there"), b"untouched");
    assert_eq!(fs::read_dir(outer.path()).expect("listed").count(), 2, "something was made outside");
    (outer, result)
}

fn refused(entries: &[Raw<'_>]) -> String {
    try_bytes(&archive(entries)).1.expect_err("must be refused").to_string()
}

#[test]
fn an_honest_archive_is_unpacked_with_clean_modes() {
    let entries = [
        Raw { mode: 0o755, ..Raw::of(EntryType::Directory, "./") },
        Raw::file("./main.py", b"def main(): ..."),
        Raw { mode: 0o4777, ..Raw::file("bin/tool", b"#!") },
        Raw::link("bin/alias", "../main.py"),
        Raw::link("lib", "bin"),
    ];
    let (outer, result) = try_bytes(&archive(&entries));
    let (tree, unpacked) = result.expect("honest");
    let root = outer.path().join("root");
    own(&root, &tree, None).expect("own files");
    assert_eq!(unpacked, Unpacked { files: 5, bytes: 17 });
    let mode = |path: &str| fs::symlink_metadata(root.join(path)).expect(path).mode() & 0o7777;
    assert_eq!((mode("main.py"), mode("bin/tool"), mode("bin"), mode("")), (0o640, 0o750, 0o750, 0o750));
    assert_eq!(fs::read(root.join("bin/alias")).expect("resolves"), b"def main(): ...");
    assert_eq!(fs::read(root.join("lib/tool")).expect("resolves"), b"#!");
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    assert!(refused(&[Raw::file("../outside", b"x")]).contains("\"..\""));
    assert!(refused(&[Raw::file("a/../../outside", b"x")]).contains("\"..\""));
    assert!(refused(&[Raw::file("/etc/passwd", b"x")]).contains("is absolute"));
    assert!(refused(&[Raw::file(".", b"x")]).contains("names nothing"));
    let deep = "d/".repeat(33) + "f";
    assert!(refused(&[Raw::file(&deep, b"x")]).contains("32 folders deep"));
}

#[test]
fn links_that_lead_elsewhere_are_refused() {
    let here = || Raw::file("dir/file", b"x");
    for (target, says) in [
        ("/etc/passwd", "is absolute"),
        ("..", "leads out of the folder"),
        ("../outside", "leads out of the folder"),
        ("dir/../../outside", "leads out of the folder"),
        ("nowhere", "leads to nothing"),
        ("link", "goes round in circles"),
        ("dir/file/x", "goes through a file"),
    ] {
        let said = refused(&[here(), Raw::link("link", target)]);
        assert!(said.contains(says), "{target}: {said}");
    }
    // By its words alone `dir/up/..` is `dir`; really it is what lies above the root.
    let sly = [here(), Raw::link("dir/up", ".."), Raw::link("link", "dir/up/../outside")];
    assert!(refused(&sly).contains("leads out of the folder"));
}

#[test]
fn nothing_is_written_through_a_link() {
    let through = [Raw::file("dir/x", b"x"), Raw::link("link", "dir"), Raw::file("link/y", b"y")];
    assert!(refused(&through).contains("beneath a file or a link"));
    let over = [Raw::file("a", b"x"), Raw::link("b", "a"), Raw::file("b", b"y")];
    assert!(refused(&over).contains("twice"));
    assert!(refused(&[Raw::file("a", b"x"), Raw::file("a", b"y")]).contains("twice"));
    assert!(refused(&[Raw::file("a", b"x"), Raw::file("a/b", b"y")]).contains("beneath"));
}

#[test]
fn special_entries_are_refused() {
    for (kind, says) in [
        (EntryType::Link, "hard link"),
        (EntryType::Char, "device"),
        (EntryType::Block, "device"),
        (EntryType::Fifo, "fifo"),
        (EntryType::Continuous, "special entry"),
        (EntryType::new(b'Z'), "special entry"),
    ] {
        let said = refused(&[Raw::file("a", b"x"), Raw::of(kind, "b")]);
        assert!(said.contains(says), "{kind:?}: {said}");
    }
}

#[test]
fn size_and_count_are_bounded() {
    let half = vec![0; 40 * 1024];
    assert!(refused(&[Raw::file("a", &half), Raw::file("b", &half)]).contains("files' sizes"));
    let names: Vec<String> = (0..101).map(|number| format!("f{number}")).collect();
    let many: Vec<Raw<'_>> = names.iter().map(|name| Raw::file(name, b"")).collect();
    assert!(refused(&many).contains("files and folders"));
    let folders: Vec<String> = (0..30).map(|number| format!("a{number}/b/c/d/f")).collect();
    let many: Vec<Raw<'_>> = folders.iter().map(|name| Raw::file(name, b"")).collect();
    assert!(refused(&many).contains("files and folders"), "implied folders count too");
}

#[test]
fn a_size_that_lies_is_refused_before_anything_is_written() {
    let mut header = Header::new_gnu();
    header.set_path("huge").expect("short");
    header.set_size(u64::MAX / 2);
    header.set_mode(0o644);
    header.set_cksum();
    let (_outer, result) = try_bytes(header.as_bytes());
    assert!(result.expect_err("must be refused").to_string().contains("files' sizes"));
}

#[test]
fn what_is_no_archive_is_refused() {
    assert!(matches!(try_bytes(b"").1, Err(UnpackError::Empty)));
    assert!(matches!(try_bytes(&[0; 1024]).1, Err(UnpackError::Empty)));
    assert!(matches!(try_bytes(&[b'x'; 2048]).1, Err(UnpackError::Unreadable(_))));
    assert!(matches!(try_bytes(&archive(&[Raw::of(EntryType::Directory, "d")])).1, Err(UnpackError::Empty)));
    let whole = archive(&[Raw::file("a", &[7; 5000])]);
    assert!(matches!(try_bytes(&whole[..3000]).1, Err(UnpackError::Unreadable(_))), "torn");
}

#[test]
fn long_names_and_global_headers_are_understood() {
    let long = "n".repeat(200);
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::XGlobalHeader);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, io::empty()).expect("into memory");
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    builder.append_data(&mut header, &long, &b"x"[..]).expect("into memory");
    let (outer, result) = try_bytes(&builder.into_inner().expect("into memory"));
    assert_eq!(result.expect("fine").1.files, 1);
    assert!(outer.path().join("root").join(long).is_file());
}

#[test]
fn a_link_into_a_file_is_refused() {
    for target in ["../b/.", "../b/", "../b/x", "../b/./."] {
        let (_outer, result) = try_bytes(&archive(&[Raw::file("b", b"x"), Raw::link("c/a", target)]));
        let text = result.expect_err(target).to_string();
        assert!(text.contains("goes through a file"), "{target}: {text}");
    }
}

/// Names from a small alphabet, so that they meet; targets with every kind of step.
fn any_entry() -> impl Strategy<Value = (u8, String, String)> {
    let part = prop_oneof![Just("a"), Just("b"), Just("c"), Just(".."), Just(".")];
    let path = prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    (prop_oneof![Just(b'0'), Just(b'5'), Just(b'2'), Just(b'2'), Just(b'1')], path.clone(), path)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the archive, nothing is made outside, and every link that is made ends inside.
    #[test]
    fn no_archive_reaches_outside(entries in prop::collection::vec(any_entry(), 0..8)) {
        let raws: Vec<Raw<'_>> = entries
            .iter()
            .map(|(kind, path, target)| Raw {
                kind: EntryType::new(*kind),
                path: path.as_bytes(),
                link: target.as_bytes(),
                data: if *kind == b'0' { b"x" } else { b"" },
                mode: 0o7777,
            })
            .collect();
        let (outer, result) = try_bytes(&archive(&raws));
        if let Ok((tree, _)) = result {
            let root = fs::canonicalize(outer.path().join("root")).expect("there");
            for path in tree.keys() {
                let real = fs::canonicalize(root.join(path)).expect("every entry resolves");
                prop_assert!(real.starts_with(&root), "{path:?} is {real:?}");
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = try_bytes(&bytes);
    }

    #[test]
    fn no_damage_panics(at in 0usize..2048, byte: u8) {
        let mut bytes = archive(&[Raw::file("a", b"x"), Raw::link("b", "a")]);
        bytes[at] = byte;
        let _ = try_bytes(&bytes);
    }
}
