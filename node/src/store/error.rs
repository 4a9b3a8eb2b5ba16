//! Why the store can't do what was asked, in words that say what to do.

use std::path::{Path, PathBuf};

use super::unpack::UnpackError;
use crate::chain::spec::ChainError;
use crate::config::raw::UID_COUNT;
use crate::manifest::ManifestError;

/// Why the store can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon has the state folder.
    #[error("{} is in use by another spryd ({owner}); stop it, or use another --state-dir", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// `pid 123`, or that it isn't known.
        owner: String,
    },
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Os {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The database is damaged.
    #[error(
        "the database {} is damaged ({problem}). Restore it from a backup; or move it and its -wal and -shm \
         files away, start spryd, and deploy the functions again", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        problem: String,
    },
    /// The database belongs to another program, or to a newer spry.
    #[error("the database {} has {found}; this spryd reads version {known}. {advice}", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// What it says of itself.
        found: String,
        /// What is known here.
        known: i32,
        /// What to do.
        advice: &'static str,
    },
    /// A database operation failed (a full disk, most often).
    #[error("{operation} in the database: {source}")]
    Database {
        /// What was being done.
        operation: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A stored manifest can't be read: it was written by another version.
    #[error("the stored manifest of \"{name}\" can't be read: {source}; deploy it again")]
    StoredManifest {
        /// Which function.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The upload is longer than what is accepted.
    #[error("the upload is over the limit of {limit} bytes (`upload.size` of spryd.toml)")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// The upload is no archive that is accepted.
    #[error("the uploaded archive: {0}")]
    Archive(#[from] UnpackError),
    /// The upload holds no function.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// There is no such function.
    #[error("no function named \"{0}\" is stored")]
    NoSuchFunction(String),
    /// There is nothing to go back to.
    #[error("version {version} of \"{name}\" is the current one")]
    IsCurrent {
        /// Which function.
        name: String,
        /// Which version.
        version: u64,
    },
    /// There is no such version to go back to.
    #[error("{}", no_such_version(name, *to, kept))]
    NoSuchVersion {
        /// Which function.
        name: String,
        /// Which version was asked for.
        to: Option<u64>,
        /// Those that there are beside the current one, the newest first.
        kept: Vec<u64>,
    },
    /// A version's files were changed.
    #[error(
        "the files of version {version} of \"{name}\" in {} are not those that were deployed: something changed, tore or \
         removed them. Deploy it again, or go back to another version with `spry rollback {name}`", path.display()
    )]
    Altered {
        /// Which function.
        name: String,
        /// Which version.
        version: u64,
        /// Its files.
        path: PathBuf,
    },
    /// All user ids are taken.
    #[error("all {UID_COUNT} user ids for functions are taken")]
    NoSlot,
    /// The text is no chain that can be applied.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A chain that goes through this one would no longer be one.
    #[error("the chain \"{chain}\" goes through this one, and with it would be refused: {source}")]
    Dependent {
        /// Which.
        chain: String,
        /// Why.
        source: ChainError,
    },
    /// There is no such chain.
    #[error("no chain named \"{0}\" is stored")]
    NoSuchChain(String),
    /// A function can't have the name of a chain.
    #[error("\"{0}\" is the name of a chain; give the function another one, or remove the chain first")]
    NameIsChain(String),
    /// A chain can't have the name of a function.
    #[error("\"{0}\" is the name of a function; give the chain another one, or remove the function first")]
    NameIsFunction(String),
    /// Chains name it.
    #[error("\"{name}\" is used by {}; change or remove that first", chains_in_words(chains))]
    InUse {
        /// What was to be removed.
        name: String,
        /// By which chains.
        chains: Vec<String>,
    },
    /// What a chain names changed between its check and its commit.
    #[error("what the chain \"{0}\" names was changed meanwhile by somebody else; apply it again")]
    ChainOvertaken(String),
    /// A secret that it lists was removed after its processes had been given it.
    #[error(
        "the secret \"{secret}\" of \"{name}\" was removed meanwhile; set it with `spry secret set {secret}`"
    )]
    SecretRemoved {
        /// Which function.
        name: String,
        /// Which secret.
        secret: String,
    },
    /// A newer upload of the same function was committed first.
    #[error("version {version} of \"{name}\" was overtaken by a later deploy")]
    Overtaken {
        /// Which function.
        name: String,
        /// Which version.
        version: u64,
    },
}

fn no_such_version(name: &str, to: Option<u64>, kept: &[u64]) -> String {
    let wanted = to.map_or("no earlier version".into(), |version| format!("no version {version}"));
    match kept {
        [] => format!("{wanted} of \"{name}\" is kept: there is only the current one"),
        _ => {
            let kept: Vec<String> = kept.iter().map(u64::to_string).collect();
            format!("{wanted} of \"{name}\" is kept; there is {}", kept.join(", "))
        }
    }
}

fn chains_in_words(chains: &[String]) -> String {
    let named: Vec<String> = chains.iter().map(|name| format!("\"{name}\"")).collect();
    let word = if named.len() == 1 { "the chain" } else { "the chains" };
    format!("{word} {}", named.join(", "))
}

impl StoreError {
    pub(crate) fn os(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Os { operation, path, source }
    }
}
