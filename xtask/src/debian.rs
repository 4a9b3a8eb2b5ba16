//! Package files from other suites of the mirror that this machine already uses, for a folder of this clone.
//!
//! apt runs on a state folder of its own, with the suites asked for: the machine's lists, caches and preferences are
//! neither used nor changed, and root isn't needed. The mirror's address and the keyring that signs it
//! are read from the machine's own sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::process::{self, run_step};

/// Where a suite of Debian is to be had, and whose signature counts.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

/// An apt of its own: its state folder, and the configuration that keeps it in there.
pub(crate) struct Apt {
    state: PathBuf,
    config: PathBuf,
}

/// Downloads `package` (`name=version`) of `suite`; `state` is a folder for apt's own files.
pub(crate) fn download(state: &Path, suite: &str, package: &str) -> Result<PathBuf, Failure> {
    let apt = Apt::open(state, &[suite])?;
    apt.download(&[package])?;
    apt.archives()?.pop().ok_or_else(|| Failure::Expectation {
        what: "download a package",
        found: format!("apt-get left no file of {package} in {}", state.display()),
    })
}

impl Apt {
    /// Empties `state` and fetches the package lists of these suites into it.
    pub(crate) fn open(state: &Path, suites: &[&str]) -> Result<Self, Failure> {
        Self::open_with(state, suites, "")
    }

    /// The same for another machine, as Debian calls it.
    pub(crate) fn open_for(state: &Path, suites: &[&str], machine: &str) -> Result<Self, Failure> {
        let settings =
            format!("APT::Architecture \"{machine}\";\nAPT::Architectures {{ \"{machine}\"; }};\n");
        Self::open_with(state, suites, &settings)
    }

    fn open_with(state: &Path, suites: &[&str], settings: &str) -> Result<Self, Failure> {
        let sources = sources(suites)?;
        if state.exists() {
            fs::remove_dir_all(state).map_err(|source| Failure::io("empty", state, source))?;
        }
        for folder in ["lists/partial", "cache", "archives/partial"] {
            let folder = state.join(folder);
            fs::create_dir_all(&folder).map_err(|source| Failure::io("create", &folder, source))?;
        }
        let write = |name: &str, text: String| {
            let file = state.join(name);
            fs::write(&file, text).map_err(|source| Failure::io("write", &file, source)).map(|()| file)
        };
        let sources = write("only.sources", sources)?;
        let folder = state.display();
        let config = write(
            "apt.conf",
            format!(
                "Dir::State \"{folder}\";\nDir::State::status \"/dev/null\";\nDir::Cache \"{folder}/cache\";\n\
                 Dir::Cache::archives \"{folder}/archives\";\nDir::Etc::SourceList \"{}\";\n\
                 Dir::Etc::SourceParts \"-\";\nDir::Etc::Preferences \"/dev/null\";\n\
                 Dir::Etc::PreferencesParts \"/dev/null\";\nAPT::Sandbox::User \"\";\n\
                 Acquire::Retries \"3\";\n{settings}",
                sources.display()
            ),
        )?;
        let apt = Self { state: state.to_owned(), config };
        run_step(apt.command("apt-get").args(["--quiet=2", "update"]))?;
        Ok(apt)
    }

    /// The files of these packages (`name`, `name=version` or `name/suite`), and of nothing else.
    pub(crate) fn download(&self, packages: &[&str]) -> Result<(), Failure> {
        let archives = self.state.join("archives");
        run_step(self.command("apt-get").args(["--quiet=2", "download"]).args(packages).current_dir(archives))
    }

    /// The files of these packages and of all that they need and this machine doesn't have installed.
    pub(crate) fn download_with_what_they_need(&self, packages: &[&str]) -> Result<(), Failure> {
        let mut apt = self.command("apt-get");
        // The machine's list of installed packages is read; nothing is installed and nothing locked.
        apt.args(["--quiet=2", "-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "Debug::NoLocking=1"]);
        apt.args(["install", "--download-only", "--yes", "--no-install-recommends"]).args(packages);
        run_step(apt.stdout(Stdio::null()))
    }

    /// The files of these packages and of all that they need, as if nothing was installed.
    pub(crate) fn download_whole(&self, packages: &[&str]) -> Result<(), Failure> {
        let mut apt = self.command("apt-get");
        apt.args(["--quiet=2", "install", "--download-only", "--yes", "--no-install-recommends"]);
        run_step(apt.args(packages).stdout(Stdio::null()))
    }

    /// The names of all packages that this regular expression finds.
    pub(crate) fn named(&self, expression: &str) -> Result<Vec<String>, Failure> {
        let found = process::output(self.command("apt-cache").args(["search", "--names-only", expression]))?;
        Ok(found.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// What was downloaded, by name.
    pub(crate) fn archives(&self) -> Result<Vec<PathBuf>, Failure> {
        let folder = self.state.join("archives");
        let files = fs::read_dir(&folder).map_err(|source| Failure::io("list", &folder, source))?;
        let files = files.flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> =
            files.filter(|file| file.extension().is_some_and(|end| end == "deb")).collect();
        files.sort();
        Ok(files)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).current_dir(&self.state);
        command
    }
}

/// The lower-case hexadecimal sha256 of a file.
pub(crate) fn sha256(file: &Path) -> Result<String, Failure> {
    let sum = process::output(Command::new("sha256sum").arg("--binary").arg(file))?;
    Ok(sum.trim_start_matches('\\').split_whitespace().next().unwrap_or_default().to_owned())
}

/// Unpacks packages into one folder, as dpkg would below `/`.
pub(crate) fn unpack<'a>(
    packages: impl IntoIterator<Item = &'a PathBuf>,
    folder: &Path,
) -> Result<(), Failure> {
    for package in packages {
        run_step(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder))?;
    }
    Ok(())
}

/// The code name of this machine's own release; empty where it has none.
pub(crate) fn release() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.unwrap_or_default().trim_matches('"').to_owned()
}

/// A list of sources for apt with these suites alone.
pub(crate) fn sources(suites: &[&str]) -> Result<String, Failure> {
    let Mirror { uri, signed_by } = mirror()?;
    let signed_by = signed_by.map(|keyring| format!("Signed-By: {keyring}\n")).unwrap_or_default();
    let suites = suites.join(" ");
    Ok(format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\n{signed_by}"))
}

/// The mirror that the machine's own release comes from.
fn mirror() -> Result<Mirror, Failure> {
    let codename = release();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let more = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    files.extend(more.map(|entry| entry.path()));
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| find(&text, &codename))
        .ok_or_else(|| Failure::Expectation {
            what: "find Debian's mirror",
            found: format!("none of /etc/apt's sources has the suite {codename:?}"),
        })
}

/// The mirror of the suite `codename` in one file of sources, in either of apt's two formats.
fn find(text: &str, codename: &str) -> Option<Mirror> {
    text.lines().find_map(|line| one_line(line, codename)).or_else(|| {
        text.split("\n\n").find_map(|stanza| {
            let field = |name: &str| {
                stanza.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim())
                })
            };
            let has =
                |name: &str, word: &str| field(name).is_some_and(|v| v.split_whitespace().any(|w| w == word));
            let enabled = field("Enabled").is_none_or(|value| value != "no");
            if !(has("Types", "deb") && has("Suites", codename) && has("Components", "main") && enabled) {
                return None;
            }
            let uri = field("URIs")?.split_whitespace().next()?.to_owned();
            let signed_by = field("Signed-By").filter(|value| value.starts_with('/')).map(str::to_owned);
            Some(Mirror { uri, signed_by })
        })
    })
}

/// `deb [options] uri suite component...`
fn one_line(line: &str, codename: &str) -> Option<Mirror> {
    let rest = line.trim().strip_prefix("deb")?.strip_prefix(char::is_whitespace)?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    if suite != codename || !words.any(|component| component == "main") {
        return None;
    }
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Mirror { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(uri: &str, signed_by: Option<&str>) -> Mirror {
        Mirror { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned) }
    }

    #[test]
    fn both_formats_of_sources_are_read() {
        let stanzas = "Types: deb\n# a comment: no field\nURIs: http://mirror.test/debian\n\
            Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian.gpg\n\n\
            Types: deb\nURIs: http://mirror.test/security\nSuites: bookworm-security\nComponents: main\n";
        let expected = mirror("http://mirror.test/debian", Some("/usr/share/keyrings/debian.gpg"));
        assert_eq!(find(stanzas, "bookworm"), Some(expected));
        assert_eq!(find(stanzas, "trixie"), None);
        let lines = "# deb http://old.test/debian bookworm main\ndeb http://other.test/apt tool main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main contrib\n";
        assert_eq!(find(lines, "bookworm"), Some(mirror("http://mirror.test/debian", Some("/k.gpg"))));
        assert_eq!(
            find("deb http://m.test/debian bookworm main", "bookworm"),
            Some(mirror("http://m.test/debian", None))
        );
        assert_eq!(find("deb-src http://m.test/debian bookworm main", "bookworm"), None);
    }

    #[test]
    fn a_disabled_source_is_none() {
        let text =
            "Types: deb\nURIs: http://m.test/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n";
        assert_eq!(find(text, "bookworm"), None);
    }
}
