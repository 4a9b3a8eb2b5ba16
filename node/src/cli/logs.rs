//! `spry logs`: what a function wrote.

use std::io::{self, Write};

use clap::Args;
use http::Method;

use super::client::{self, Client};
use super::{Failure, Output, print, segment, show};
use crate::api::LogPage;

/// What `spry logs` takes.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The function
    name: String,
    /// Go on printing as lines come
    #[arg(short, long)]
    follow: bool,
    /// Print this many lines of the past
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    lines: usize,
}

pub(super) async fn logs(client: &Client, wanted: &Logs, output: Output) -> Result<(), Failure> {
    let base = format!("/system/function/{}/logs", segment(&wanted.name)?);
    let mut path = format!("{base}?limit={}", wanted.lines);
    loop {
        let page: LogPage = client::read(&client.call(Method::GET, &path).await?)?;
        if page.missed > 0 {
            let _ = writeln!(io::stderr(), "spry: {} lines are no longer kept", page.missed);
        }
        match output {
            Output::Text => print(&show::lines(&page.lines))?,
            Output::Json => page.lines.iter().try_for_each(|line| match serde_json::to_string(line) {
                Ok(text) => print(&(text + "\n")),
                Err(error) => Err(Failure::Node(error.to_string())),
            })?,
        }
        if !wanted.follow {
            return Ok(());
        }
        path = format!("{base}?since={}&limit=1000&wait=30s", page.next);
    }
}
