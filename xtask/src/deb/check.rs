//! Whether a package is whole: what a linter would look at first.

use std::path::Path;
use std::process::Command;

use crate::failure::Failure;
use crate::process;

/// What must be in it, and its mode.
const WANTED: [(&str, &str); 17] = [
    ("./usr/bin/spryd", "-rwxr-xr-x"),
    ("./usr/bin/spry", "-rwxr-xr-x"),
    ("./usr/lib/systemd/system/spryd.service", "-rw-r--r--"),
    ("./usr/lib/systemd/system/spryd.socket", "-rw-r--r--"),
    ("./etc/spry/spryd.toml", "-rw-r--r--"),
    ("./usr/share/man/man1/spry.1.gz", "-rw-r--r--"),
    ("./usr/share/man/man1/spry-deploy.1.gz", "-rw-r--r--"),
    ("./usr/share/man/man1/spry-token-create.1.gz", "-rw-r--r--"),
    ("./usr/share/man/man8/spryd.8.gz", "-rw-r--r--"),
    ("./usr/share/bash-completion/completions/spry", "-rw-r--r--"),
    ("./usr/share/zsh/vendor-completions/_spry", "-rw-r--r--"),
    ("./usr/share/fish/vendor_completions.d/spry.fish", "-rw-r--r--"),
    ("./usr/include/spry.h", "-rw-r--r--"),
    ("./usr/share/doc/spry/async.md", "-rw-r--r--"),
    ("./usr/share/doc/spry/schema/trigger.toml.json", "-rw-r--r--"),
    ("./usr/share/doc/spry/copyright", "-rw-r--r--"),
    ("./usr/share/doc/spry/changelog.gz", "-rw-r--r--"),
];

/// Reads a package back and checks it.
pub(super) fn package(package: &Path) -> Result<(), Failure> {
    let listing = process::output(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    contents(&listing)?;
    for field in
        ["Package", "Version", "Architecture", "Maintainer", "Depends", "Description", "Installed-Size"]
    {
        let value = process::output(Command::new("dpkg-deb").arg("--field").arg(package).arg(field))?;
        expect(!value.trim().is_empty(), "a field of the control file", || format!("{field} is empty"))?;
    }
    for script in ["postinst", "prerm", "postrm"] {
        let text = control_file(package, script)?;
        expect(
            text.starts_with("#!/bin/sh\n") && text.contains("\nset -e\n"),
            "a maintainer script",
            || format!("{script} is no sh script that ends at its first error"),
        )?;
        let checked = process::succeeds(Command::new("sh").args(["-n", "-c", &text]));
        expect(checked, "a maintainer script", || format!("sh can't read {script}"))?;
    }
    let conffiles = control_file(package, "conffiles")?;
    expect(conffiles == "/etc/spry/spryd.toml\n", "the conffiles", || conffiles.clone())?;
    let sums = control_file(package, "md5sums")?;
    expect(sums.contains("  usr/bin/spryd\n") && !sums.contains("  etc/"), "the md5sums", || sums.clone())
}

fn control_file(package: &Path, name: &str) -> Result<String, Failure> {
    process::output(Command::new("dpkg-deb").arg("--info").arg(package).arg(name))
}

/// `-rw-r--r-- root/root  123 2026-11-28 00:00 ./a/file`, a line each.
fn contents(listing: &str) -> Result<(), Failure> {
    let lines: Vec<Vec<&str>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
    for (path, mode) in WANTED {
        let found = lines.iter().find(|line| line.last() == Some(&path));
        expect(found.is_some_and(|line| line[0] == mode), "the package's content", || match found {
            Some(line) => format!("{path} has mode {}, not {mode}", line[0]),
            None => format!("{path} is not in it"),
        })?;
    }
    for line in &lines {
        let (mode, owner) = (line.first().copied().unwrap_or(""), line.get(1).copied().unwrap_or(""));
        expect(owner == "root/root", "the package's content", || format!("{line:?} is not root's"))?;
        let open = mode.as_bytes().get(8) == Some(&b'w') || mode.contains('s');
        expect(!open, "the package's content", || {
            format!("{line:?} can be written by all, or is set-user-id")
        })?;
        let path = line.last().copied().unwrap_or("");
        let ours = ["./usr/", "./etc/", "./usr", "./etc", "./"].iter().any(|place| path.starts_with(place));
        let local = path.starts_with("./usr/local") || path.starts_with("./var") || path.starts_with("./run");
        expect(ours && !local, "the package's content", || {
            format!("{path} is no place for a package's files")
        })?;
    }
    Ok(())
}

fn expect(holds: bool, what: &'static str, found: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::Expectation { what, found: found() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(change: impl Fn(&str) -> String) -> String {
        let line = |(path, mode): &(&str, &str)| format!("{mode} root/root 12 2026-11-28 00:00 {path}\n");
        WANTED.iter().map(line).map(|line| change(&line)).collect()
    }

    #[test]
    fn what_is_missing_open_or_misplaced_is_found() {
        assert!(contents(&listing(str::to_owned)).is_ok());
        for (from, to) in [
            ("usr/bin/spryd", "usr/bin/other"),
            ("-rw-r--r--", "-rw-rw-rw-"),
            ("-rwxr-xr-x", "-rwsr-xr-x"),
            ("root/root", "me/me"),
        ] {
            let failure = contents(&listing(|line| line.replace(from, to)));
            assert!(failure.is_err(), "{from} -> {to}");
        }
        let stray = listing(str::to_owned) + "-rw-r--r-- root/root 1 2026-11-28 00:00 ./var/lib/spry/x\n";
        assert!(contents(&stray).is_err());
    }
}
