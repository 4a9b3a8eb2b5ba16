//! `spry trigger`: what starts functions and chains by itself.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Subcommand;
use http::{Method, Request};
use http_body_util::Full;

use super::client::{self, Client};
use super::table::{Table, ago, instant};
use super::{Failure, Output, print, print_json, read_file, segment, show_at};
use crate::triggers::TriggerState;
use crate::triggers::spec::Spec;

/// What `spry trigger` takes.
#[derive(Debug, Subcommand)]
pub(super) enum Trigger {
    /// Put a trigger in force, or replace it
    Apply {
        /// The trigger.toml
        file: PathBuf,
    },
    /// List the triggers
    List,
    /// Let a trigger rest
    Pause {
        /// The trigger
        name: String,
    },
    /// Let a paused trigger fire again; what passed meanwhile isn't made up for
    Resume {
        /// The trigger
        name: String,
    },
    /// Remove a trigger; calls that it has made stay
    Remove {
        /// The trigger
        name: String,
    },
}

pub(super) async fn trigger(client: &Client, wanted: Trigger, output: Output) -> Result<(), Failure> {
    let (method, name, action, done) = match wanted {
        Trigger::Apply { file } => return apply(client, &file, output).await,
        Trigger::List => {
            return show_at(client, "/system/triggers", output, |list: Vec<TriggerState>| text(&list)).await;
        }
        Trigger::Pause { name } => (Method::POST, name, "/pause", "rests"),
        Trigger::Resume { name } => (Method::POST, name, "/resume", "fires again"),
        Trigger::Remove { name } => (Method::DELETE, name, "", "is removed"),
    };
    client.call(method, &format!("/system/trigger/{}{action}", segment(&name)?)).await?;
    match output {
        Output::Text => print(&format!("{name} {done}\n")),
        Output::Json => Ok(()),
    }
}

fn parse(file: &Path) -> Result<(Spec, String), Failure> {
    let text = read_file(file)?;
    let spec = text.parse().map_err(|error| Failure::Node(format!("{}: {error}", file.display())))?;
    Ok((spec, text))
}

/// What can be said of a trigger without knowing what is deployed.
pub(super) fn check(file: &Path, output: Output) -> Result<(), Failure> {
    let (spec, _) = parse(file)?;
    match output {
        Output::Text => print(&format!(
            "{} is valid: trigger {} of {}, which is looked up when it is applied\n",
            file.display(),
            spec.name,
            spec.call,
        )),
        Output::Json => print("{\"valid\":true}\n"),
    }
}

async fn apply(client: &Client, file: &Path, output: Output) -> Result<(), Failure> {
    let (spec, text) = parse(file)?;
    let path = format!("/system/trigger/{}", spec.name);
    let request = Request::put(path).header("host", "spry").body(Full::new(Bytes::from(text)));
    let request = request.map_err(|error| Failure::Usage(error.to_string()))?;
    let body = client::good(client.send(request).await?).await?;
    match output {
        Output::Text => print(&format!("{} calls {} from now on\n", spec.name, spec.call)),
        Output::Json => print_json(&body),
    }
}

fn text(list: &[TriggerState]) -> String {
    if list.is_empty() {
        return "no trigger is applied\n".into();
    }
    let mut table = Table::new(["TRIGGER", "CALLS", "KIND", "SOURCE", "LAST", "NEXT", ">FIRED", "STATE"]);
    for view in list {
        let last = if view.fired == 0 { "-".into() } else { ago(view.fired_unix_ms) };
        let state = match (&view.problem, view.paused) {
            (_, true) => "paused".into(),
            (Some(problem), false) => problem.clone(),
            (None, false) => "ready".into(),
        };
        table.row([
            view.name.clone(),
            view.call.clone(),
            view.kind.clone(),
            view.source.clone(),
            last,
            view.next_unix_ms.map_or("-".into(), instant),
            view.fired.to_string(),
            state,
        ]);
    }
    table.print()
}
