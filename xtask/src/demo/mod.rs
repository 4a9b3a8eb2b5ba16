//! `cargo xtask demo`: from a clone to functions answering over HTTP, and back to a clean machine.
//!
//! 1. Set up and build, in release mode.
//! 2. Start `spryd` on a temporary folder and a free port of 127.0.0.1.
//! 3. Deploy the examples with `spry`, functions and chains, as a user would, and call them over HTTP on real input.
//! 4. Print for each call what came back and where its time went.
//! 5. Stop `spryd` and look for anything that it left: processes, mounts, cgroups, network namespaces,
//!    BPF objects, files. Also after a failure, a panic or Ctrl-C.
//!
//! The only files that stay are the small pictures, where the output says. The demo fails when an answer is not
//! what it must be, or when anything is left behind.

mod calls;
mod functions;
mod http;
mod node;
mod report;
mod residue;
mod timing;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::artifacts::{self, Profile};
use crate::cli::DemoOptions;
use crate::failure::Failure;
use crate::{process, setup, sys};
use node::Node;
use residue::Residue;

/// Runs the demo.
pub(crate) fn run(options: &DemoOptions) -> Result<(), Failure> {
    setup::packages()?;
    let photo = match &options.photo {
        Some(file) => setup::Photo { file: file.clone(), credit: "your photograph" },
        None => setup::photo()?,
    };
    artifacts::build(Profile::Release, &["example-thumbnail"])?;
    artifacts::build_functions(&["example-photo", "example-boutique"])?;
    let out = options.out.clone().unwrap_or_else(|| process::target_dir().join("demo"));
    fs::create_dir_all(&out).map_err(|source| Failure::io("make folder", &out, source))?;

    sys::notice_interrupts()?;
    sys::adopt_orphans()?;
    let before = Residue::now();
    let folder = Folder::new()?;
    let outcome = Node::start(&folder.path).and_then(|mut node| {
        let calls = deploy_and_call(&node, &folder.path, &photo, &out);
        let stopped = node.stop();
        if calls.is_err() {
            node.print_log();
        }
        calls.and(stopped)
    });
    let clean = folder.remove().and_then(|()| nothing_left(&before));
    if let (Err(_), Err(second)) = (&outcome, &clean) {
        eprintln!("xtask: {second}");
    }
    outcome.and(clean)
}

fn deploy_and_call(node: &Node, folder: &Path, photo: &setup::Photo, out: &Path) -> Result<(), Failure> {
    for function in functions::all(folder)? {
        sys::check_interrupted()?;
        node.spry(["deploy".as_ref(), function.as_os_str()])?;
    }
    for chain in functions::CHAINS {
        sys::check_interrupted()?;
        node.spry(["chain", "apply", chain].map(OsStr::new))?;
    }
    node.spry(["list"].map(OsStr::new))?;
    node.spry(["chain", "describe", "boutique"].map(OsStr::new))?;
    calls::make(node, photo, out)?;
    node.spry(["status"].map(OsStr::new))
}

fn nothing_left(before: &Residue) -> Result<(), Failure> {
    let left = residue::left_behind(before);
    if left.is_empty() {
        println!("\nLeft behind: nothing (looked for {}).", residue::LOOKED_FOR);
        return Ok(());
    }
    Err(Failure::Expectation { what: "left behind", found: left.join("; ") })
}

/// The run's temporary folder: state, control socket, staged functions.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("spry-demo-{}", std::process::id()));
        // Functions run as users of their own, and must be able to pass.
        let made =
            fs::create_dir(&path).and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o711)));
        made.map_err(|source| Failure::io("make folder", &path, source))?;
        Ok(Self { path })
    }

    fn remove(self) -> Result<(), Failure> {
        fs::remove_dir_all(&self.path).map_err(|source| Failure::io("remove", &self.path, source))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Only a panic comes here with the folder still there.
        if self.path.exists() {
            let _while_panicking = fs::remove_dir_all(&self.path);
        }
    }
}
