//! What can be checked before anything is done: this kernel and these rights, and files that people write.

use std::io::{self, Write};
use std::path::Path;

use http::Method;

use super::client::{self, Client};
use super::{Failure, Output, chain, print, print_json, read_file, trigger};
use crate::config::Config;
use crate::doctor;
use crate::gateway::tls;
use crate::manifest::{self, Manifest};
use crate::schema;

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
    match kind(file) {
        schema::File::Chain => return chain::check(file, output),
        schema::File::Trigger => return trigger::check(file, output),
        schema::File::Spry => return check_manifest(file, output),
        schema::File::Spryd => {}
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

/// Which file it is: by its name, or by a key that only that one has, or else all have but the node's.
fn kind(file: &Path) -> schema::File {
    let named = file.file_name().and_then(|name| name.to_str());
    match named {
        Some(manifest::FILE_NAME) => return schema::File::Spry,
        Some("chain.toml") => return schema::File::Chain,
        Some("trigger.toml") => return schema::File::Trigger,
        Some("spryd.toml") => return schema::File::Spryd,
        _ => {}
    }
    let table = read_file(file).ok().and_then(|text| text.parse::<toml::Table>().ok()).unwrap_or_default();
    let has = |keys: &[&str]| keys.iter().any(|key| table.contains_key(*key));
    if has(&["step", "trigger"]) {
        schema::File::Chain
    } else if has(&["call", "cron", "spool"]) {
        schema::File::Trigger
    } else if has(&["name"]) {
        // A function's has a name that must be its file's.
        schema::File::Chain
    } else {
        schema::File::Spryd
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
