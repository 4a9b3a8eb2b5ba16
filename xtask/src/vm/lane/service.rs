//! The package, installed in a Debian that systemd starts: two boots of one disk.

use std::path::PathBuf;

use super::{SUITE_TIMEOUT, shown, suite, test_programs};
use crate::artifacts::{self, Profile};
use crate::deb::{self, Contents};
use crate::failure::Failure;
use crate::process;
use crate::suite::Tally;
use crate::vm::guest::Guest;
use crate::vm::parts;
use crate::vm::system::{self, Disk};

const KERNEL: &str = "6.18";
/// Its budget, most of it, has room for all functions that the tests deploy.
const MEMORY_MIB: u32 = 2048;
/// What the tests deploy beside Python functions: a package, and its library.
const NATIVE: (&str, &str) = ("example-echo", "libexample_echo.so");
/// Which tests run after which boot; `node/tests/installed/main.rs` has them.
const BOOTS: [&[&str]; 2] = [&["first_boot::"], &["second_boot::", "the_end::"]];
const TARGET: [&str; 4] = ["--package", "spry-node", "--test", "installed"];

/// What was built for the guest.
pub(super) struct Service {
    tests: PathBuf,
    package: PathBuf,
    native: PathBuf,
}

/// Builds them; none where no disk can be made, which is said and counts as skipped.
pub(super) fn build(tally: &mut Tally) -> Result<Option<Service>, Failure> {
    if let Some(why) = system::missing() {
        if std::env::var_os("SPRY_TEST_ALL").is_some() {
            let found = format!("SPRY_TEST_ALL is set, but it needs: {why}");
            return Err(Failure::Expectation { what: "vm: the installed package", found });
        }
        tally.add_skipped(format!("SKIP the installed package needs {why}"));
        return Ok(None);
    }
    // No plain `cargo test` runs these, nor does a plain clippy see them.
    let mut clippy = process::cargo(["clippy"]);
    process::run(clippy.args(TARGET).args(["--", "-D", "warnings"]))?;
    let [tests] = test_programs(&TARGET, ["installed"])?;
    artifacts::build(Profile::Release, &[NATIVE.0])?;
    let package = deb::package(Contents::WithScheduler)?;
    Ok(Some(Service { tests, package, native: artifacts::release(NATIVE.1) }))
}

impl Service {
    pub(super) fn run(&self, disk: Disk, tally: &mut Tally) -> Result<(), Failure> {
        let mut guest = Guest::new(parts::find(KERNEL)?);
        guest.system = Some(disk);
        guest.memory_mib = MEMORY_MIB;
        guest.files = vec![self.tests.clone(), self.package.clone(), self.native.clone()];
        guest.timeout = SUITE_TIMEOUT;
        guest.env = vec![
            ("SPRY_TEST_SYSTEMD".into(), "1".into()),
            ("SPRY_TEST_PACKAGE".into(), shown(&self.package)),
            ("SPRY_TEST_NATIVE".into(), shown(&self.native)),
        ];
        let names = ["the installed package", "the installed package, after a reboot"];
        BOOTS.iter().zip(names).try_for_each(|(tests, name)| {
            let mut command = vec![shown(&self.tests), "--test-threads=1".into(), "--nocapture".into()];
            command.extend(tests.iter().map(|&tests| tests.to_owned()));
            suite(&guest, name, &command, tally)
        })
    }
}
