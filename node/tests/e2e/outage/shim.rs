//! The clock and the disk of one spryd, in the hands of the test: see `shim.c`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::daemon::Daemon;

/// A spryd whose machine misbehaves when it is told to.
pub(super) struct Shimmed {
    pub(super) daemon: Daemon,
    fault: File,
    _folder: tempfile::TempDir,
}

impl Shimmed {
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(folder.path(), open).expect("open the folder");
        let (object, file) = (folder.path().join("shim.so"), folder.path().join("fault"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/outage/shim.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&object, &source])
            .status()
            .expect("run cc");
        assert!(compiled.success(), "shim.c does not compile");
        std::fs::write(&file, [0; 16]).expect("written");
        let fault = File::options().write(true).open(&file).expect("opened");
        let text = |path: &Path| path.to_str().expect("a UTF-8 path").to_owned();
        let env =
            [("LD_PRELOAD", text(&object)), ("SPRY_SHIM", text(&file)), ("SPRY_SHIM_FOLDER", text(&state))];
        let daemon = Daemon::start_on_with_env(&state, "", &env);
        Self { daemon, fault, _folder: folder }
    }

    /// Moves the wall clock, as it would be without this, by so much.
    pub(super) fn set_clock(&self, seconds: i64) {
        self.fault.write_all_at(&seconds.to_ne_bytes(), 0).expect("written");
    }

    /// Whether the state folder can't be written.
    pub(super) fn set_read_only(&self, read_only: bool) {
        self.fault.write_all_at(&i64::from(read_only).to_ne_bytes(), 8).expect("written");
    }
}
