//! A disk with a small Debian that systemd starts: the release of this machine, so that what is built here runs there.
//!
//! It is made once (by mmdebstrap, which asks apt and so checks every package) and copied for each guest that writes to it.
//! Making it takes root: the files have owners.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Failure;
use crate::process::{self, run_step, step};
use crate::{debian, setup, sys};

/// What is in it besides the essential packages: an init, and what spry's own package depends on and recommends.
const PACKAGES: [&str; 9] =
    ["systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "python3", "libelf1", "zlib1g"];
/// Nobody reads these in a guest.
const LEFT_OUT: [&str; 4] =
    ["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/doc/*"];
/// Room for the packages and for what the guest writes; the file has holes where nothing was written.
const DISK_MIB: u32 = 1536;

/// Why no disk can be made here, if none can.
pub(super) fn missing() -> Option<&'static str> {
    (!sys::is_root()).then_some("root, to make a disk whose files have owners")
}

/// A disk of a guest's own, for as many boots as it likes.
pub(crate) struct Disk {
    place: PathBuf,
}

impl Disk {
    pub(crate) fn new() -> Result<Self, Failure> {
        let image = image()?;
        let folder = process::target_dir().join("vm/run");
        fs::create_dir_all(&folder).map_err(|source| Failure::io("create", &folder, source))?;
        let disk = Self { place: folder.join(format!("{}.disk", std::process::id())) };
        run_step(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(image).arg(disk.path()))?;
        Ok(disk)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.place
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _best_effort = fs::remove_file(&self.place);
    }
}

/// The disk that the others are copies of.
fn image() -> Result<PathBuf, Failure> {
    let folder = process::target_dir().join("vm/system");
    let release = debian::release();
    let recipe = format!("{release} {DISK_MIB} {} {}", PACKAGES.join(","), LEFT_OUT.join(","));
    step(&folder, &recipe, || make(&folder, &release))?;
    Ok(folder.join("disk"))
}

fn make(folder: &Path, release: &str) -> Result<(), Failure> {
    setup::guests()?;
    println!("vm: making a disk with Debian's {release} (a minute)");
    let (root, disk) = (folder.join("root"), folder.join("disk"));
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--quiet", "--mode=root", "--variant=minbase"]);
    bootstrap.arg(format!("--include={}", PACKAGES.join(",")));
    for pattern in LEFT_OUT {
        bootstrap.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    let sources = folder.join("only.sources");
    fs::write(&sources, debian::sources(&[release])?)
        .map_err(|source| Failure::io("write", &sources, source))?;
    run_step(bootstrap.arg(release).arg(&root).arg(&sources))?;
    // Not this machine's.
    let name = root.join("etc/hostname");
    fs::write(&name, "guest\n").map_err(|source| Failure::io("write", &name, source))?;
    let mut format = Command::new("/sbin/mke2fs");
    format.args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(&disk).arg(format!("{DISK_MIB}M"));
    run_step(&mut format)?;
    fs::remove_dir_all(&root).map_err(|source| Failure::io("remove", &root, source))
}
