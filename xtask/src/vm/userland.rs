//! What is in a guest of another machine: the release of this machine, of which the guest needs a C library, Python, and a C
//! compiler for the functions that tests compile.
//!
//! The packages are unpacked, not installed: none of their scripts could run here. They are what the release has today,
//! checked by apt.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::debian::{self, Apt};
use crate::failure::Failure;
use crate::process::{self, cannot_start, step};

const PACKAGES: [&str; 7] =
    ["busybox-static", "gcc", "libc6-dev", "python3", "libelf1", "zlib1g", "libgcc-s1"];
/// Folders that are one with those of the same name below `usr`.
const MERGED: [&str; 3] = ["bin", "lib", "sbin"];
/// What nobody needs in there; it would lie in the guest's memory.
const LEFT_OUT: [&str; 8] = [
    "./usr/share/doc/*",
    "./usr/share/man/*",
    "./usr/share/locale/*",
    "./usr/share/info/*",
    "./usr/lib/gcc/*/lto*",
    "./usr/bin/*-lto-dump*",
    "./usr/lib/*/lib*san.so*",
    "./lib/*/lib*san.so*",
];

/// The folder with all of it.
pub(super) fn arm64() -> Result<PathBuf, Failure> {
    let folder = process::target_dir().join("vm/arm64-userland");
    let release = debian::release();
    let recipe = format!("{release} {} {}", PACKAGES.join(","), LEFT_OUT.join(","));
    step(&folder, &recipe, || make(&folder, &release))?;
    Ok(folder.join("root"))
}

fn make(folder: &Path, release: &str) -> Result<(), Failure> {
    println!("vm: unpacking Debian's {release} for arm64 (60 MB to download)");
    let (state, root) = (folder.join("apt"), folder.join("root"));
    let apt = Apt::open_for(&state, &[release], "arm64")?;
    apt.download_whole(&PACKAGES)?;
    for name in MERGED {
        let real = root.join("usr").join(name);
        fs::create_dir_all(&real).map_err(|source| Failure::io("create", &real, source))?;
        link(&format!("usr/{name}"), &root.join(name))?;
    }
    for package in apt.archives()? {
        unpack(&package, &root)?;
    }
    // What packages' scripts and the installer would have done.
    link("gcc", &root.join("usr/bin/cc"))?;
    for (name, text) in [("etc/hostname", "guest\n"), ("etc/group", "root:x:0:\n")] {
        let file = root.join(name);
        fs::write(&file, text).map_err(|source| Failure::io("write", &file, source))?;
    }
    fs::remove_dir_all(&state).map_err(|source| Failure::io("remove", &state, source))
}

fn link(target: &str, place: &Path) -> Result<(), Failure> {
    symlink(target, place).map_err(|source| Failure::io("link", place, source))
}

/// As `dpkg-deb --extract`, which would put folders in the place of the links.
fn unpack(package: &Path, root: &Path) -> Result<(), Failure> {
    let mut read = Command::new("dpkg-deb");
    read.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped());
    let mut reader = read.spawn().map_err(|source| cannot_start(&read, source))?;
    let mut untar = Command::new("tar");
    untar.args(["--extract", "--keep-directory-symlink", "--no-same-owner"]);
    untar.args(LEFT_OUT.map(|pattern| format!("--exclude={pattern}")));
    untar.arg("--directory").arg(root).stdin(reader.stdout.take().expect("stdout is piped"));
    let unpacked = process::run_step(&mut untar);
    let status = reader.wait().map_err(|source| cannot_start(&read, source))?;
    unpacked?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::Ended { command: process::shown(&read), status }),
    }
}
