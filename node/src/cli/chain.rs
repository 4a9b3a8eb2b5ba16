//! `spry chain`: apply, list, describe, remove.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Subcommand;
use http::{Method, Request};
use http_body_util::Full;

use super::client::{self, Client};
use super::table::{Table, ago, instant, pairs};
use super::{Failure, Output, print, print_json, read_file, segment, show};
use crate::api::{Applied, ChainView};
use crate::chain::graph;
use crate::chain::spec::{ChainError, ChainSpec};

/// Columns of a drawing.
const WIDTH: usize = 80;

#[derive(Debug, Subcommand)]
pub(super) enum Chain {
    /// Put a chain in service, or replace it
    Apply {
        /// The chain.toml
        file: PathBuf,
    },
    /// List the chains
    List,
    /// Draw one chain, with its functions and their processes
    Describe {
        /// The chain
        name: String,
    },
    /// Take a chain out of service and forget it; its functions stay
    Remove {
        /// The chain
        name: String,
    },
}

pub(super) async fn chain(client: &Client, wanted: Chain, output: Output) -> Result<(), Failure> {
    match wanted {
        Chain::Apply { file } => apply(client, &file, output).await,
        Chain::List => {
            super::show_at(client, "/system/chains", output, |list: Vec<ChainView>| table(&list)).await
        }
        Chain::Describe { name } => {
            let path = format!("/system/chain/{}", segment(&name)?);
            super::show_at(client, &path, output, |view: ChainView| description(&view)).await
        }
        Chain::Remove { name } => {
            client.call(Method::DELETE, &format!("/system/chain/{}", segment(&name)?)).await?;
            match output {
                Output::Text => print(&format!("removed {name}\n")),
                Output::Json => Ok(()),
            }
        }
    }
}

/// The drawing for graphviz.
pub(super) async fn dot(client: &Client, name: &str) -> Result<(), Failure> {
    let path = format!("/system/chain/{}", segment(name)?);
    let view: ChainView = client::read(&client.call(Method::GET, &path).await?)?;
    print(&graph::dot(&view))
}

/// What can be said of a chain without knowing what is deployed.
pub(super) fn check(file: &Path, output: Output) -> Result<(), Failure> {
    let (spec, _) = parse(file)?;
    match output {
        Output::Text => print(&format!(
            "{} is valid: chain {} of {}; what it names is looked up when it is applied\n",
            file.display(),
            spec.name,
            counted(spec.steps.len(), "step"),
        )),
        Output::Json => print("{\"valid\":true}\n"),
    }
}

async fn apply(client: &Client, file: &Path, output: Output) -> Result<(), Failure> {
    let (spec, text) = parse(file)?;
    let request = Request::put(format!("/system/chain/{}", spec.name))
        .header("host", "spry")
        .header("content-type", "application/toml")
        .body(Full::new(Bytes::from(text)))
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let body = client::good(client.send(request).await?).await?;
    match output {
        Output::Json => print_json(&body),
        Output::Text => print(&summary(&client::read(&body)?)),
    }
}

/// What is wrong here would be found by the daemon as well, but without the file's name.
fn parse(file: &Path) -> Result<(ChainSpec, String), Failure> {
    let text = read_file(file)?;
    let spec = ChainSpec::parse(&text)
        .map_err(|error: ChainError| Failure::Node(format!("{}: {error}", file.display())))?;
    Ok((spec, text))
}

fn summary(applied: &Applied) -> String {
    let view = &applied.chain;
    let replaced = if applied.replaced { ", replacing the one before" } else { "" };
    let functions = counted(view.functions.len(), "function");
    let mut text =
        format!("{} is applied{replaced}: {} with {functions}\n", view.name, counted(view.steps(), "step"));
    if !applied.dependents.is_empty() {
        text += &format!("changed with it: {}\n", applied.dependents.join(", "));
    }
    text
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn table(list: &[ChainView]) -> String {
    if list.is_empty() {
        return "no chains; `spry chain apply FILE` applies one\n".into();
    }
    let mut table = Table::new([
        "NAME",
        "STATE",
        ">STEPS",
        ">FUNCTIONS",
        ">IDLE",
        ">BUSY",
        ">QUEUED",
        ">OK",
        ">FAILED",
        "APPLIED",
    ]);
    for view in list {
        let sum = |of: fn(&crate::api::MemberView) -> u64| view.functions.iter().map(of).sum::<u64>();
        table.row([
            view.name.clone(),
            show::state(view.state).into(),
            view.steps().to_string(),
            view.functions.len().to_string(),
            sum(|member| member.instances.idle.into()).to_string(),
            sum(|member| member.instances.busy.into()).to_string(),
            sum(|member| member.queued).to_string(),
            view.calls.ok.to_string(),
            view.calls.failed.to_string(),
            ago(view.applied_unix_ms),
        ]);
    }
    table.print()
}

fn description(view: &ChainView) -> String {
    let mut rows = vec![
        ("name", view.name.clone()),
        ("applied", instant(view.applied_unix_ms)),
        ("state", show::state(view.state).into()),
    ];
    if let Some(problem) = &view.problem {
        rows.push(("problem", problem.replace('\n', "\n         ")));
        return pairs(&rows);
    }
    rows.extend([
        ("limits", format!("timeout {}, payload {}", view.timeout, view.payload)),
        ("calls", show::calls(&view.calls)),
    ]);
    let mut table =
        Table::new(["FUNCTION", ">VERSION", "ZYGOTE", ">IDLE", ">BUSY", ">STARTING", ">QUEUED", "PROBLEM"]);
    for member in &view.functions {
        let problem = member.problem.as_deref().unwrap_or_default();
        table.row([
            member.name.clone(),
            member.version.to_string(),
            show::zygote(member.zygote).into(),
            member.instances.idle.to_string(),
            member.instances.busy.to_string(),
            member.instances.starting.to_string(),
            member.queued.to_string(),
            problem.lines().next().unwrap_or_default().to_owned(),
        ]);
    }
    format!("{}\n{}\n{}", pairs(&rows), table.print(), graph::text(view, WIDTH))
}
