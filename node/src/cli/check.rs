//! What can be checked before anything is done: this kernel and these rights, and files that people write.

use std::io::{self, Write};
use std::path::Path;

use http::Method;

use super::client::{self, Client};
use super::{Failure, Output, chain, print, print_json};
use crate::config::Config;
use crate::doctor;
use crate::gateway::tls;
use crate::manifest::{self, Manifest};

/// As the daemon finds it, if there is one that can be asked; else as this process does.
pub(super) async fn examine(client: &Client, output: Output) -> Result<u8, Failure> {
    let report: doctor::Report = match client.call(Method::GET, "/system/doctor").await {
        Ok(body) => client::read(&body)?,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "spry: {failure}\nspry: what follows is how this user finds it.");
            doctor::examine(&doctor::Options::of(&configured()))
        }
    };
    match output {
        Output::Text => print(&doctor::text(&report))?,
        Output::Json => print_json(&serde_json::to_vec(&report).unwrap_or_default())?,
    }
    Ok(if report.usable { 0 } else { 2 })
}

/// The node's configuration if it can be read, for what the checks need of it.
fn configured() -> Config {
    Config::load(&crate::config::Flags::default()).unwrap_or_else(|_| {
        crate::config::raw::RawConfig::default()
            .try_into()
            .expect("a test holds the defaults to their bounds")
    })
}

pub(super) fn check_config(file: &Path, output: Output) -> Result<(), Failure> {
    if chain::is_chain_file(file) {
        return chain::check(file, output);
    }
    if file.file_name().is_some_and(|name| name == manifest::FILE_NAME) {
        return check_manifest(file, output);
    }
    let config = Config::check_file(file).map_err(|error| Failure::Node(error.to_string()))?;
    if let Some(files) = &config.tls {
        tls::Door::open(files).map_err(|error| Failure::Node(error.to_string()))?;
    }
    match output {
        Output::Text => print(&format!(
            "{} is valid: state in {}, HTTP on {}\n",
            file.display(),
            config.state_dir.display(),
            config.listen
        )),
        Output::Json => print("{\"valid\":true}\n"),
    }
}

/// A function's manifest, with the folder that it lies in: what it names must be there.
fn check_manifest(file: &Path, output: Output) -> Result<(), Failure> {
    std::fs::metadata(file).map_err(|error| Failure::Node(format!("read {}: {error}", file.display())))?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let manifest = Manifest::of_folder(folder, None, &[], &configured().defaults);
    let manifest = manifest.map_err(|error| Failure::Node(error.to_string()))?;
    match output {
        Output::Text => print(&format!(
            "{} is valid: the {} function {}, handler {}\n",
            file.display(),
            manifest.runtime,
            manifest.name,
            manifest.handler
        )),
        Output::Json => print("{\"valid\":true}\n"),
    }
}
