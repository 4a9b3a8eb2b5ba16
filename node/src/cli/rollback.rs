//! `spry rollback`: an earlier version serves again, in the way in which a new one comes.

use std::io::{self, Write};

use clap::Args;
use http::Method;

use super::client::{self, Client};
use super::deploy::{self, summary};
use super::{Failure, Output, print, print_json, segment};

/// What `spry rollback` takes.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// The function
    name: String,
    /// The version [default: the one before the current one]; `spry describe` shows those that are kept
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
}

pub(super) async fn roll_back(client: &Client, wanted: Rollback, output: Output) -> Result<(), Failure> {
    let say = |text: &str| {
        if output == Output::Text {
            let _ = writeln!(io::stderr(), "{text}");
        }
    };
    let progress = deploy::progress_name(output);
    let mut path = format!("/system/function/{}/rollback", segment(&wanted.name)?);
    let mut join = '?';
    for (key, value) in [("to", wanted.to.map(|to| to.to_string())), ("progress", progress.clone())] {
        if let Some(value) = value {
            path.push_str(&format!("{join}{key}={value}"));
            join = '&';
        }
    }
    let answer = client.call(Method::POST, &path);
    let body = deploy::while_it_tells(client, progress.as_deref(), &say, answer).await?;
    match output {
        Output::Json => print_json(&body),
        Output::Text => print(&summary(&client::read(&body)?)),
    }
}
