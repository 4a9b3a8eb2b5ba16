//! Where everything lies in the package.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Contents, PACKAGING};
use crate::failure::Failure;
use crate::process;

/// What is always there, and what is there when it was asked for: a program and its unit.
const PROGRAMS: [&str; 2] = ["spryd", "spry"];
const UNITS: [&str; 2] = ["spryd.service", "spryd.socket"];
const SCHEDULER: (&str, &str) = ("spry-scx", "spry-scx.service");
/// What `spry-scx` is linked with besides libc.
const SCHEDULER_LIBRARIES: &str = ", libelf1, zlib1g";
/// The pages that an operator wants where there is no network.
const PAGES: [&str; 8] = [
    "architecture",
    "async",
    "chains",
    "configuration",
    "control-api",
    "operations",
    "scheduler",
    "threat-model",
];

/// The package's folder, being filled.
pub(super) struct Layout<'a> {
    root: &'a Path,
    programs: &'a Path,
    contents: Contents,
}

impl<'a> Layout<'a> {
    pub(super) fn new(root: &'a Path, programs: &'a Path, contents: Contents) -> Self {
        Self { root, programs, contents }
    }

    fn has_scheduler(&self) -> bool {
        self.contents == Contents::WithScheduler
    }

    /// Everything but the control files.
    pub(super) fn make(&self) -> Result<(), Failure> {
        let here = process::root();
        for name in PROGRAMS.into_iter().chain(self.has_scheduler().then_some(SCHEDULER.0)) {
            let place = self.copy(&self.programs.join(name), &format!("usr/bin/{name}"), 0o755)?;
            process::run(
                Command::new("strip").args(["--strip-unneeded", "--remove-section=.comment"]).arg(place),
            )?;
        }
        for name in UNITS.into_iter().chain(self.has_scheduler().then_some(SCHEDULER.1)) {
            let unit = here.join(PACKAGING).join("systemd").join(name);
            self.copy(&unit, &format!("usr/lib/systemd/system/{name}"), 0o644)?;
        }
        self.copy(&here.join(PACKAGING).join("spryd.toml"), "etc/spry/spryd.toml", 0o644)?;
        let docs = "usr/share/doc/spry";
        for page in PAGES {
            self.copy(&here.join(format!("docs/{page}.md")), &format!("{docs}/{page}.md"), 0o644)?;
        }
        for file in ["spryd.toml", "spry.toml", "chain.toml", "trigger.toml"] {
            let schema = format!("schema/{file}.json");
            self.copy(&here.join("docs").join(&schema), &format!("{docs}/{schema}"), 0o644)?;
        }
        self.copy(&here.join("node/sdk/include/spry.h"), "usr/include/spry.h", 0o644)?;
        let deb = here.join(PACKAGING).join("deb");
        self.copy(&deb.join("copyright"), &format!("{docs}/copyright"), 0o644)?;
        let changelog = self.copy(&deb.join("changelog"), &format!("{docs}/changelog"), 0o644)?;
        compress(&[changelog])?;
        self.made_by_spry()
    }

    /// Man pages and completions, from the command line's own definition.
    fn made_by_spry(&self) -> Result<(), Failure> {
        let spry = self.programs.join("spry");
        let pages = self.root.join("usr/share/man");
        process::run(Command::new(&spry).arg("man-pages").arg(&pages))?;
        let listing = fs::read_dir(&pages).map_err(|source| Failure::io("list", &pages, source))?;
        let mut sorted = Vec::new();
        for page in listing.flatten().map(|entry| entry.path()) {
            let section = page.extension().unwrap_or_default().to_string_lossy().into_owned();
            let place = pages.join(format!("man{section}")).join(page.file_name().unwrap_or_default());
            folder_of(&place)?;
            fs::rename(&page, &place).map_err(|source| Failure::io("move", &page, source))?;
            sorted.push(place);
        }
        compress(&sorted)?;
        for (shell, place) in [
            ("bash", "usr/share/bash-completion/completions/spry"),
            ("zsh", "usr/share/zsh/vendor-completions/_spry"),
            ("fish", "usr/share/fish/vendor_completions.d/spry.fish"),
        ] {
            let text = process::output(Command::new(&spry).args(["completions", shell]))?;
            self.write(place, &text, 0o644)?;
        }
        Ok(())
    }

    /// `DEBIAN/`: what dpkg has to know, and its scripts.
    pub(super) fn control(&self, version: &str, architecture: &str) -> Result<(), Failure> {
        let (sums, bytes) = self.sums()?;
        let libc = libc_version(&self.root.join("usr/bin"))?;
        let size = bytes.div_ceil(1024);
        let libraries = if self.has_scheduler() { SCHEDULER_LIBRARIES } else { "" };
        let control = format!(
            "Package: spry\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: The authors of spry <spry@localhost>\n\
             Installed-Size: {size}\nDepends: libc6 (>= {libc}), libgcc-s1{libraries}, init-system-helpers (>= 1.54)\n\
             Recommends: python3 (>= 3.9)\nSection: net\nPriority: optional\n\
             Description: functions on one node, forked from prewarmed zygotes\n \
             spryd serves functions over HTTP: each in processes of its own, confined, forked\n \
             from a zygote that has it loaded, and reached through shared memory. spry is its\n \
             command line.\n"
        );
        self.write("DEBIAN/control", &control, 0o644)?;
        self.write("DEBIAN/conffiles", "/etc/spry/spryd.toml\n", 0o644)?;
        self.write("DEBIAN/md5sums", &sums, 0o644)?;
        for script in ["postinst", "prerm", "postrm"] {
            let from = process::root().join(PACKAGING).join("deb").join(script);
            self.copy(&from, &format!("DEBIAN/{script}"), 0o755)?;
        }
        Ok(())
    }

    /// `md5sum` of every file but the configuration, and the bytes of all.
    fn sums(&self) -> Result<(String, u64), Failure> {
        let mut files = Vec::new();
        walk(self.root, &mut files)?;
        files.sort();
        let mut bytes = 0;
        let mut relative = Vec::new();
        for file in &files {
            bytes += fs::metadata(file).map_err(|source| Failure::io("read", file, source))?.len();
            let inside = file.strip_prefix(self.root).unwrap_or(file);
            if !inside.starts_with("etc") {
                relative.push(inside.to_owned());
            }
        }
        let sums = process::output(Command::new("md5sum").args(&relative).current_dir(self.root))?;
        Ok((sums, bytes))
    }

    fn copy(&self, from: &Path, to: &str, mode: u32) -> Result<PathBuf, Failure> {
        let place = self.root.join(to);
        folder_of(&place)?;
        fs::copy(from, &place).map_err(|source| Failure::io("copy", from, source))?;
        set_mode(&place, mode)?;
        Ok(place)
    }

    fn write(&self, to: &str, text: &str, mode: u32) -> Result<(), Failure> {
        let place = self.root.join(to);
        folder_of(&place)?;
        fs::write(&place, text).map_err(|source| Failure::io("write", &place, source))?;
        set_mode(&place, mode)
    }
}

/// Makes the folders above a file, with the mode that a package's folders have, whatever the umask.
fn folder_of(file: &Path) -> Result<(), Failure> {
    let folder = file.parent().unwrap_or(file);
    if folder.is_dir() {
        return Ok(());
    }
    folder_of(folder)?;
    fs::create_dir(folder).map_err(|source| Failure::io("make", folder, source))?;
    set_mode(folder, 0o755)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Failure> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|source| Failure::io("set the mode of", path, source))
}

/// As policy wants manuals and changelogs, and without a time in them.
fn compress(files: &[PathBuf]) -> Result<(), Failure> {
    files.iter().try_for_each(|file| set_mode(file, 0o644))?;
    process::run(Command::new("gzip").arg("-9n").args(files))
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let listing = fs::read_dir(folder).map_err(|source| Failure::io("list", folder, source))?;
    for path in listing.flatten().map(|entry| entry.path()) {
        if path.is_dir() { walk(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

/// The newest version of glibc that the programs ask for.
fn libc_version(programs: &Path) -> Result<String, Failure> {
    let mut newest = (2, 17);
    let mut files = Vec::new();
    walk(programs, &mut files)?;
    for program in files {
        let symbols = process::output(Command::new("objdump").arg("-T").arg(&program))?;
        let versions = symbols.split("GLIBC_2.").skip(1).filter_map(|rest| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        newest = versions.map(|minor: u32| (2, minor)).fold(newest, std::cmp::max);
    }
    Ok(format!("{}.{}", newest.0, newest.1))
}
