//! What a Python function needs from a package index: `packages` of `spry.toml`, and the lines of a
//! `requirements.txt`.
//!
//! A requirement is a name, extras, versions, a marker and hashes, as in PEP 508. What names a place (a path, a URL,
//! another file) or is an option to pip is refused: where packages come from is the node's to say.

use std::fmt;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::raw::RawManifest;
use super::{FILE_MAX, ManifestError};

/// Requirements of one function at most.
pub const REQUIREMENTS_MAX: usize = 256;
/// Bytes of one requirement at most (hashes take most of it).
const LENGTH_MAX: usize = 16 * 1024;
/// Versions are compared by these, the longer ones first.
const COMPARISONS: [&str; 8] = ["===", "==", "!=", "<=", ">=", "~=", "<", ">"];

/// One package that is wanted, in a form that is the same however it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Requirement(String);

impl Requirement {
    /// As pip takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<Requirement> for String {
    fn from(requirement: Requirement) -> Self {
        requirement.0
    }
}

/// A text that is no requirement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" can't be required: {why}", shown(.text))]
pub struct RequirementError {
    /// As written.
    pub text: String,
    /// What is wrong.
    pub why: &'static str,
}

/// As much of it as an error needs.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{}{more}", short.escape_debug())
}

impl TryFrom<String> for Requirement {
    type Error = RequirementError;
    fn try_from(text: String) -> Result<Self, RequirementError> {
        match read(&text) {
            Ok(normal) => Ok(Self(normal)),
            Err(why) => Err(RequirementError { text, why }),
        }
    }
}

impl std::str::FromStr for Requirement {
    type Err = RequirementError;
    fn from_str(text: &str) -> Result<Self, RequirementError> {
        text.to_owned().try_into()
    }
}

fn read(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    if text.len() > LENGTH_MAX {
        return Err("it is longer than 16 KiB");
    }
    if text.starts_with('-') {
        return Err("options are not taken; where packages come from is said by [packages] in spryd.toml");
    }
    if text.contains("://") || text.contains('@') || text.starts_with(['.', '/']) {
        return Err("a name in a package index is needed, not a path or an address");
    }
    let (text, hashes) = hashes(text)?;
    let (text, marker) = match text.split_once(';') {
        Some((text, marker)) => (text, Some(marker_of(marker)?)),
        None => (text, None),
    };
    let end = text.find(|letter: char| !is_name(letter)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let mut normal = name_of(name)?;
    let mut rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('[') {
        let (extras, after) = inner.split_once(']').ok_or("its extras have no end")?;
        let extras: Result<Vec<String>, _> = extras.split(',').map(|extra| name_of(extra.trim())).collect();
        let mut extras = extras?;
        extras.sort();
        extras.dedup();
        normal += &format!("[{}]", extras.join(","));
        rest = after.trim_start();
    }
    if !rest.trim().is_empty() {
        let mut versions: Vec<String> = rest.split(',').map(version_of).collect::<Result<_, _>>()?;
        versions.sort();
        versions.dedup();
        normal += &versions.join(",");
    }
    if let Some(marker) = marker {
        normal += &format!(" ; {marker}");
    }
    for hash in hashes {
        normal += &format!(" --hash={hash}");
    }
    Ok(normal)
}

/// The only option that says something about a package, and not about pip.
fn hashes(text: &str) -> Result<(&str, Vec<String>), &'static str> {
    let Some(start) = text.find("--hash") else { return Ok((text, Vec::new())) };
    let (before, options) = text.split_at(start);
    let read = |word: &str| {
        let hash = word.strip_prefix("--hash=").ok_or("after a hash there are only other hashes")?;
        let (kind, digits) = hash.split_once(':').ok_or("a hash is written --hash=sha256:DIGITS")?;
        let length = match kind {
            "sha256" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return Err("hashes are sha256, sha384 or sha512"),
        };
        let fits = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if fits { Ok(hash.to_ascii_lowercase()) } else { Err("a hash has too few or too many digits") }
    };
    let mut hashes: Vec<String> = options.split_whitespace().map(read).collect::<Result<_, _>>()?;
    hashes.sort();
    hashes.dedup();
    Ok((before, hashes))
}

fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.')
}

/// Small letters, and one hyphen for each run of hyphens, dots and underscores (PEP 503).
fn name_of(name: &str) -> Result<String, &'static str> {
    let edge = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    let fits = name.len() <= 128 && name.chars().all(is_name);
    if !fits || !edge(name.chars().next()) || !edge(name.chars().last()) {
        return Err("a package's name has letters, digits, and - _ . between them");
    }
    let parts = name.split(['-', '_', '.']).filter(|part| !part.is_empty());
    Ok(parts.collect::<Vec<_>>().join("-").to_ascii_lowercase())
}

fn version_of(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    let found = COMPARISONS.into_iter().find_map(|mark| Some((mark, text.strip_prefix(mark)?.trim_start())));
    let (mark, version) = found.ok_or("a version is compared by ==, >=, <=, ~=, !=, < or >")?;
    let letter =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '*' | '+' | '!' | '-' | '_');
    if version.is_empty() || version.len() > 64 || !version.chars().all(letter) {
        return Err("that is no version");
    }
    Ok(format!("{mark}{version}"))
}

fn marker_of(text: &str) -> Result<String, &'static str> {
    let letter = |letter: char| letter.is_ascii_alphanumeric() || " _.'\"<>=!~()+-,*".contains(letter);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // (Words with a hyphen first would be options to pip.)
    let option = text.split(' ').any(|word| word.starts_with('-'));
    if text.is_empty() || text.len() > 512 || option || !text.chars().all(letter) {
        return Err("what follows the ; is no marker");
    }
    Ok(text)
}

/// The requirements of a `requirements.txt`: a line each, with `#` comments and `\` at the end of a line that goes on.
pub fn of_text(text: &str) -> Vec<String> {
    let joined = text.replace("\\\r\n", " ").replace("\\\n", " ");
    let uncommented = joined.lines().map(|line| match line.trim_start().starts_with('#') {
        true => "",
        false => line.split(" #").next().unwrap_or_default().trim(),
    });
    uncommented.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Puts the lines of the file that `requirements` names among `packages`.
pub(super) fn merge(mut raw: RawManifest, folder: &Path) -> Result<RawManifest, ManifestError> {
    let Some(file) = raw.requirements.take() else { return Ok(raw) };
    let path = Path::new(&file);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if file.is_empty() || !inside {
        let bound = "a file within the folder".into();
        return Err(ManifestError::Bound { key: "requirements", value: format!("{file:?}"), bound });
    }
    let text = super::read_if_there(&folder.join(path))?.ok_or_else(|| ManifestError::Missing {
        key: "requirements",
        hint: format!("there is no {file:?} in the folder (a file of at most {FILE_MAX} bytes)"),
    })?;
    raw.packages.get_or_insert_default().extend(of_text(&text));
    Ok(raw)
}

/// Each of them checked; sorted, each once.
pub(super) fn check(written: Vec<String>) -> Result<Vec<Requirement>, ManifestError> {
    if written.len() > REQUIREMENTS_MAX {
        let bound = format!("at most {REQUIREMENTS_MAX} requirements");
        return Err(ManifestError::Bound { key: "packages", value: written.len().to_string(), bound });
    }
    let mut checked: Vec<Requirement> =
        written.into_iter().map(Requirement::try_from).collect::<Result<_, _>>()?;
    checked.sort();
    checked.dedup();
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(text: &str) -> String {
        text.parse::<Requirement>().expect(text).as_str().to_owned()
    }

    #[test]
    fn one_form_however_it_is_written() {
        for (text, form) in [
            ("NumPy", "numpy"),
            ("  zope.interface  ", "zope-interface"),
            ("a__b--c", "a-b-c"),
            ("numpy >= 2.0 , < 3", "numpy<3,>=2.0"),
            ("pandas~=2.2", "pandas~=2.2"),
            ("requests[socks, Use_Chardet]==2.*", "requests[socks,use-chardet]==2.*"),
            ("tomli; python_version  <  '3.11'", "tomli ; python_version < '3.11'"),
        ] {
            assert_eq!(normal(text), form);
            assert_eq!(normal(form), form, "the form itself");
        }
        let hash = "a".repeat(64);
        let hashed = format!("six==1.16.0 --hash=sha256:{hash}");
        assert_eq!(normal(&format!("six==1.16.0   --hash=sha256:{}", hash.to_uppercase())), hashed);
    }

    #[test]
    fn what_is_no_name_in_an_index_is_refused() {
        for bad in [
            "",
            "-e .",
            "--index-url http://evil",
            "-r other.txt",
            "--find-links=/",
            "-c x",
            "./numpy",
            "/etc/passwd",
            "numpy @ file:///x",
            "git+https://x/y",
            "https://x/y.whl",
            "numpy --index-url=x",
            "numpy\n-e .",
            "numpy; --index-url x",
            "numpy; -e",
            "numpy --hash=sha256:00 -e x",
            "numpy==1 --global-option=x",
            "numpy.whl/",
            "numpy==",
            "numpy 2",
            "numpy==1 2",
            "numpy[",
            "num py",
            "$(id)",
            "numpy==1;",
            "é",
            "-",
            "numpy --hash=md5:aa",
            "numpy\0",
            "numpy #x",
        ] {
            assert!(bad.parse::<Requirement>().is_err(), "{bad:?} was taken");
        }
        assert!(format!("a{}", "b".repeat(200)).parse::<Requirement>().is_err(), "long");
    }

    #[test]
    fn a_requirements_file_has_comments_and_long_lines() {
        let text = "# what we need\nnumpy>=2  # numbers\n\n  six==1.16.0 \\\n    --hash=sha256:00\r\n";
        assert_eq!(of_text(text), ["numpy>=2", "six==1.16.0      --hash=sha256:00"]);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_taken_is_one_line_that_reads_back(text in "[ -~\n]{0,60}|[a-z]{1,5}[ -~]{0,20}") {
            if let Ok(taken) = text.parse::<Requirement>() {
                let form = taken.as_str();
                prop_assert!(form.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
                prop_assert!(!form.starts_with('-') && !form.contains("://") && !form.contains('@'));
                prop_assert_eq!(normal(form), form);
                for option in form.split(' ').filter(|word| word.starts_with('-')) {
                    prop_assert!(option.starts_with("--hash="), "{}", option);
                }
            }
        }
    }
}
