//! `spry completions`, and the man pages that the package installs: made from the command lines' own definition.

use std::fs::File;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory, Parser};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, Failure, print};

/// spryd's command line.
#[derive(Debug, Parser)]
#[command(
    name = "spryd",
    about = "Runs functions on this node, over HTTP",
    version,
    after_help = "The log's detail: SPRY_LOG=debug, or log.level in the file. Manual: docs/operations.md"
)]
pub struct Spryd {
    /// What can be said.
    #[command(flatten)]
    pub flags: crate::config::Flags,
}

/// The completions of `spry` for one shell, to stdout.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "spry", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// `spry.1`, a page for each of its commands, and `spryd.8`.
pub(super) fn man_pages(folder: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Node(format!("write the man pages: {error}"));
    std::fs::create_dir_all(folder).map_err(failed)?;
    for (mut command, section) in [(Cli::command(), "1"), (Spryd::command(), "8")] {
        command = command.disable_help_subcommand(true);
        // Names the commands below it after it: `spry-token-create`.
        command.build();
        page(folder, &command, section).map_err(failed)?;
    }
    Ok(())
}

/// A command's page, and those of the commands below it.
fn page(folder: &Path, command: &Command, section: &str) -> io::Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        page(folder, inner, section)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let mut file = File::create(folder.join(format!("{name}.{section}")))?;
    Man::new(command.clone()).section(section).render(&mut file)
}
