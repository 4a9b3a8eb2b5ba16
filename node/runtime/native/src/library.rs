//! Loading a function's shared library, with messages that say what to do when it can't be.

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};
use spry_fn::abi::{ABI_VERSION, AbiVersionFn, HandleFn, InitFn};

/// Why a library is no function.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    /// There is no such file.
    #[error("{0} is not there: `handler` in spry.toml must name the .so within the function's folder")]
    Missing(PathBuf),
    /// The file is no shared library for this machine.
    #[error(
        "{path} is not a shared library for this machine ({why}): build it with `crate-type = [\"cdylib\"]` (Rust) \
         or `cc -shared -fPIC` (C), for {}",
        std::env::consts::ARCH
    )]
    NotALibrary {
        /// The file.
        path: PathBuf,
        /// The dynamic linker's words.
        why: String,
    },
    /// It needs something that isn't to be had.
    #[error("{path} can't be loaded: {why}. {advice}")]
    Unresolved {
        /// The file.
        path: PathBuf,
        /// The dynamic linker's words.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// A symbol of the ABI is missing.
    #[error("{path} has no `{symbol}`: {advice}")]
    NoSymbol {
        /// The file.
        path: PathBuf,
        /// What is missing.
        symbol: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// Built for another version of the ABI.
    #[error(
        "{path} was built for version {found} of the function ABI, this node has version {ABI_VERSION}: build it \
         again with the spry-fn crate or the spry.h of this node's release"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What the library says.
        found: u32,
    },
    /// `spry_init` returned an error.
    #[error("{path}: spry_init failed with {code}; what it wrote to stderr is in the function's log")]
    Init {
        /// The file.
        path: PathBuf,
        /// What it returned.
        code: i32,
    },
}

/// A loaded function. Never unloaded: its code may have left pointers anywhere.
#[derive(Debug)]
pub(crate) struct Library {
    pub(crate) handle: HandleFn,
}

impl Library {
    /// Loads the file, checks its version, and runs its `spry_init`.
    pub(crate) fn load(path: &Path) -> Result<Self, LibraryError> {
        if !path.is_file() {
            return Err(LibraryError::Missing(path.to_owned()));
        }
        // SAFETY: this runs the library's constructors: user code, in a process that is there for it alone.
        let loaded = unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let library = loaded.map_err(|error| explain(path, &error))?;
        // SAFETY: the type is what spry.h declares for this symbol. The same goes for the symbols below; that a
        // library declares them so is what its version number vouches for.
        let version: AbiVersionFn = unsafe { symbol(&library, "spry_abi_version") }.ok_or_else(|| {
            no_symbol(
                path,
                "spry_abi_version",
                "use `spry_fn::handler!` (Rust), or write SPRY_FUNCTION after including spry.h (C)",
            )
        })?;
        // SAFETY: a function without arguments; see above.
        let found = unsafe { version() };
        if found != ABI_VERSION {
            return Err(LibraryError::Version { path: path.to_owned(), found });
        }
        // SAFETY: see above.
        let handle: HandleFn = unsafe { symbol(&library, "spry_handle") }.ok_or_else(|| no_symbol(
            path,
            "spry_handle",
            "define `int spry_handle(const struct spry_request *, struct spry_response *)` with default visibility",
        ))?;
        // SAFETY: see above.
        let init: Option<InitFn> = unsafe { symbol(&library, "spry_init") };
        if let Some(init) = init {
            // SAFETY: called once, before any other function of the library but its version.
            let code = unsafe { init() };
            if code != 0 {
                return Err(LibraryError::Init { path: path.to_owned(), code });
            }
        }
        std::mem::forget(library);
        Ok(Self { handle })
    }
}

/// # Safety
///
/// `F` is the symbol's type.
unsafe fn symbol<F: Copy>(library: &Handle, name: &'static str) -> Option<F> {
    // SAFETY: by the caller. A symbol that is there but null is taken as missing.
    unsafe { library.get::<Option<F>>(name.as_bytes()).ok().and_then(|symbol| *symbol) }
}

fn no_symbol(path: &Path, symbol: &'static str, advice: &'static str) -> LibraryError {
    LibraryError::NoSymbol { path: path.to_owned(), symbol, advice }
}

/// Sorts the dynamic linker's messages by what the author has to do.
fn explain(path: &Path, error: &libloading::Error) -> LibraryError {
    let message = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    // glibc starts its messages with the file's name, or with the name of what it needs.
    let why = message.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&message).to_owned();
    let not_a_library =
        ["invalid ELF header", "file too short", "wrong ELF class", "cannot open shared object file: Exec"];
    let advice = if why.contains("undefined symbol") {
        "Link the library that defines it into the function (Rust: a dependency of the crate; C: -l…)"
    } else if why.contains("version `") {
        "It was built on a newer system than this node: build it on this one, or on an older one"
    } else if why.contains("cannot open shared object file") {
        "A library that it needs is not on this node: link it statically, or put it beside the function and link \
         with `-Wl,-rpath,'$ORIGIN'`"
    } else if not_a_library.iter().any(|known| why.contains(known)) || why.contains("ELF") {
        return LibraryError::NotALibrary { path: path.to_owned(), why };
    } else {
        "The words are the dynamic linker's"
    };
    LibraryError::Unresolved { path: path.to_owned(), why, advice }
}
