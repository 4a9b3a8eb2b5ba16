//! `spry.toml`: what a function is, as its author writes it, and the checked form that the node works with.
//!
//! [`raw`] is the file's shape (unknown keys are refused, everything optional), [`Manifest`] has every value
//! present and within its bounds. In between: [`infer`] fills in what the folder's own files say, for a
//! folder without a `spry.toml` (a lone `.py` or `.so`), and [`Override`]s replace single keys (`--set`).

mod check;
pub mod infer;
pub mod raw;
pub mod requirement;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::calls::policy::Policy;
use crate::secrets::{SecretName, SecretNameError};
use crate::units::{Period, Size, UnitError};
pub use requirement::{Requirement, RequirementError};

/// The file's name within a function's folder.
pub const FILE_NAME: &str = "spry.toml";
/// Bytes of a `spry.toml` at most.
pub const FILE_MAX: u64 = 256 * 1024;
/// Instances of one function at most: the bus has one bit for each.
pub const SCALE_MAX: u32 = spry_ebpf_common::SLOTS_PER_FUNCTION;
/// Bytes of all of a function's environment at most.
pub const ENV_MAX: usize = 64 * 1024;

/// A function's name: `[a-z0-9][a-z0-9-]{0,62}`. Safe as a file name, in a URL and as a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        let good = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        let bytes = text.as_bytes();
        let fits = (1..=63).contains(&bytes.len());
        let starts = bytes.first().copied().is_some_and(good);
        if fits && starts && bytes.iter().all(|letter| good(*letter) || *letter == b'-') {
            Ok(Self(text))
        } else {
            Err(NameError(text))
        }
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        text.to_owned().try_into()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that can't name a function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" can't be a function's name: use 1 to 63 small letters, digits and hyphens, not a hyphen first"
)]
pub struct NameError(pub String);

/// What runs the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// CPython; the handler is `module:function`.
    Python,
    /// A shared object with the C ABI of `spry.h`; the handler is its file.
    Native,
}

/// What separates one request from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A process serves many requests, one at a time.
    #[default]
    Instance,
    /// A fresh process for every request.
    Request,
}

/// What a function can reach over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// Nothing.
    #[default]
    None,
    /// What the host can reach.
    Host,
}

macro_rules! words {
    ($($type:ident { $($variant:ident = $word:literal),+ })+) => { $(
        impl $type {
            /// As written in `spry.toml`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    )+ };
}
words! {
    Runtime { Python = "python", Native = "native" }
    Isolation { Instance = "instance", Request = "request" }
    Egress { None = "none", Host = "host" }
}

/// What one instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory of one instance.
    pub memory: Size,
    /// CPUs of one instance.
    pub cpu: f64,
    /// From the request's acceptance to the answer.
    pub timeout: Period,
    /// Bytes of a request's body, and of a response's.
    pub payload: Size,
    /// Processes and threads of one instance.
    pub processes: u32,
    /// Bytes in `/tmp`, which a function's instances share; they count as memory of who wrote them. (Functions that
    /// were stored before there was such a limit have the default.)
    #[serde(default = "tmpfs_default")]
    pub tmpfs: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: Size::mib(128),
            cpu: 1.0,
            timeout: Period::seconds(30),
            payload: Size::mib(6),
            processes: 32,
            tmpfs: tmpfs_default(),
        }
    }
}

fn tmpfs_default() -> Size {
    Size::mib(16)
}

/// How many instances there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Instances kept warm.
    pub min: u32,
    /// Instances at most.
    pub max: u32,
    /// An instance that had nothing to do for so long ends.
    pub idle: Period,
}

impl Default for Scale {
    fn default() -> Self {
        Self { min: 0, max: 8, idle: Period::minutes(10) }
    }
}

/// What the node fills in where a manifest is silent (`[defaults]` of `spryd.toml`).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Defaults {
    /// For `[limits]`.
    pub limits: Limits,
    /// For `[scale]`.
    pub scale: Scale,
    /// For `[async]`.
    pub asynchronous: Policy,
}

/// The network section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// What the function can reach.
    pub egress: Egress,
}

/// A function, checked: every value is present and within its bounds.
///
/// Serialised it is a full `spry.toml`: the same keys in the same words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Its name.
    pub name: Name,
    /// What runs it.
    pub runtime: Runtime,
    /// Python: `module:function`; native: the `.so` file, relative to the folder.
    pub handler: String,
    /// What separates one request from the next.
    pub isolation: Isolation,
    /// Python packages that it needs, those of its `requirements` file among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<Requirement>,
    /// Secrets that it gets, as files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// What an instance may use.
    pub limits: Limits,
    /// How many instances there are.
    pub scale: Scale,
    /// Environment variables of the function.
    pub env: BTreeMap<String, String>,
    /// What it can reach.
    pub network: Network,
    /// How its asynchronous calls are retried. (Functions that were stored before there were any have the defaults.)
    #[serde(rename = "async", default)]
    pub asynchronous: Policy,
    /// Who may call it. (Functions that were stored before there was this have the default.)
    #[serde(default)]
    pub access: AccessRule,
}

/// Who may call a function over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// Only who shows a token with the scope `invoke`.
    pub token: bool,
}

/// One `--set KEY=VALUE`: `limits.memory=64MiB`, `env.GREETING=hello`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Dotted key.
    pub key: String,
    /// As written; read by the key's own type.
    pub value: String,
}

impl std::str::FromStr for Override {
    type Err = ManifestError;
    fn from_str(text: &str) -> Result<Self, ManifestError> {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok(Self { key: key.trim().to_owned(), value: value.to_owned() })
            }
            _ => Err(ManifestError::NotAnOverride(text.to_owned())),
        }
    }
}

/// Why a folder is no deployable function. The author's to mend, all of them.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file can't be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is longer than a manifest can be.
    #[error("{} is {bytes} bytes long; {limit} are the most that is read", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// How long.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// The file isn't TOML, has an unknown key, or a value of the wrong kind.
    #[error("{FILE_NAME}: {0}")]
    Toml(String),
    /// There is no `spry.toml` and the files don't tell what the function is.
    #[error("what is to be run is not said by a {FILE_NAME}, and {0}")]
    Unclear(String),
    /// A key must be given and wasn't.
    #[error("{FILE_NAME}: `{key}` is missing: {hint}")]
    Missing {
        /// Which.
        key: &'static str,
        /// What to write.
        hint: String,
    },
    /// The name is no name.
    #[error("name: {0}")]
    Name(#[from] NameError),
    /// A size or a period can't be read.
    #[error("{key}: {source}")]
    Unit {
        /// Which key.
        key: &'static str,
        /// What is wrong.
        source: UnitError,
    },
    /// A value is outside its bounds.
    #[error("{key} is {value}, but must be {bound}")]
    Bound {
        /// Which key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What is allowed.
        bound: String,
    },
    /// A word is not one of those that are known.
    #[error("{key} is \"{value}\", but must be one of {known}")]
    Word {
        /// Which key.
        key: &'static str,
        /// What it says.
        value: String,
        /// The words there are.
        known: &'static str,
    },
    /// A runtime that is planned but not here.
    #[error("runtime \"{0}\" is not in this version; \"python\" and \"native\" are")]
    NotInThisVersion(String),
    /// The handler doesn't fit the runtime.
    #[error("handler is \"{handler}\", but {why}")]
    Handler {
        /// What it says.
        handler: String,
        /// What is wrong.
        why: String,
    },
    /// One of `packages`, or a line of the file that `requirements` names.
    #[error("packages: {0}")]
    Requirement(#[from] RequirementError),
    /// One of `secrets` is no secret's name.
    #[error("secrets: {0}")]
    Secret(#[from] SecretNameError),
    /// A variable that can't be set.
    #[error("env.{name} can't be set: {why}")]
    Env {
        /// Which.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// A `--set` without `=`.
    #[error("\"{0}\" is no KEY=VALUE (write it like limits.memory=64MiB)")]
    NotAnOverride(String),
    /// A `--set` whose key is not a manifest's.
    #[error("\"{0}\" is no key of {FILE_NAME}; there are: {keys}", keys = raw::KEYS.join(", "))]
    NoSuchKey(String),
}

impl Manifest {
    /// Reads the function that lies in `folder`: its `spry.toml`, or what its files say without one. `name`
    /// (of `--name`) and `overrides` win over the file.
    pub fn of_folder(
        folder: &Path,
        name: Option<&str>,
        overrides: &[Override],
        defaults: &Defaults,
    ) -> Result<Self, ManifestError> {
        let raw = match read_if_there(&folder.join(FILE_NAME))? {
            Some(text) => raw::RawManifest::parse(&text, overrides)?,
            None => raw::RawManifest::parse("", overrides)?,
        };
        let filled = requirement::merge(infer::fill_in(raw, folder, name)?, folder)?;
        let manifest = filled.check(defaults)?;
        infer::handler_is_there(&manifest, folder)?;
        Ok(manifest)
    }

    /// Environment variables as `NAME=value`, sorted.
    pub fn env_strings(&self) -> impl Iterator<Item = String> + '_ {
        self.env.iter().map(|(name, value)| format!("{name}={value}"))
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, ManifestError> {
    let failed = |source| ManifestError::Read { path: path.to_owned(), source };
    let bytes = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(metadata) => metadata.len(),
    };
    if bytes > FILE_MAX {
        return Err(ManifestError::TooLong { path: path.to_owned(), bytes, limit: FILE_MAX });
    }
    std::fs::read_to_string(path).map(Some).map_err(failed)
}

#[cfg(test)]
mod tests;
