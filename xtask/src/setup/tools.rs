//! Cargo's own extensions, installed for this clone alone, in exactly these versions.

use std::path::PathBuf;
use std::process::Command;

use crate::failure::Failure;
use crate::process;

/// A tool from crates.io.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tool {
    CargoDeny,
    CargoFuzz,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::CargoDeny => "cargo-deny",
            Self::CargoFuzz => "cargo-fuzz",
        }
    }
    fn version(self) -> &'static str {
        match self {
            Self::CargoDeny => "0.20.2",
            Self::CargoFuzz => "0.13.2",
        }
    }
}

/// The tool's program, installed when it isn't there in its version.
pub(crate) fn tool(tool: Tool) -> Result<PathBuf, Failure> {
    let folder = process::target_dir().join("tools");
    let own = folder.join("bin").join(tool.name());
    let candidates = [Some(own.clone()), process::find_program(tool.name())];
    if let Some(found) = candidates.into_iter().flatten().find(|program| is_version(program, tool)) {
        return Ok(found);
    }
    println!("setup: installing {} {} into target/tools (a minute or two)", tool.name(), tool.version());
    // The tool is used once or twice: the minute that optimising it takes would not come back.
    let mut install = process::cargo(["install", tool.name(), "--version", tool.version()]);
    install.args(["--locked", "--debug", "--quiet", "--root"]).arg(&folder);
    process::run(install.env("CARGO_PROFILE_DEV_DEBUG", "0").env_remove("CARGO_TARGET_DIR"))?;
    Ok(own)
}

fn is_version(program: &PathBuf, tool: Tool) -> bool {
    let output = Command::new(program).arg("--version").output();
    // "cargo-deny 0.20.2"
    output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).split_whitespace().nth(1) == Some(tool.version()))
}
