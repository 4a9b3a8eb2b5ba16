//! `spry dead`: calls that were given up.

use std::collections::HashSet;

use clap::{Args, Subcommand};
use http::Method;

use super::client::{self, Client};
use super::table::{Table, instant};
use super::{Failure, Output, print, segment, show_at};
use crate::calls::rows::DeadLetter;

/// What `spry dead` takes.
#[derive(Debug, Subcommand)]
pub(super) enum Dead {
    /// List them, newest first
    List {
        /// Only this function's or chain's
        name: Option<String>,
        /// At most this many
        #[arg(short = 'n', long, value_name = "N", default_value_t = 30)]
        limit: usize,
    },
    /// Run them again, with all their chances
    Retry(Which),
    /// Forget them
    Drop(Which),
}

/// Dead letters.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// The calls' ids (X-Call-Id)
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All of this function's or chain's
    #[arg(long, value_name = "NAME")]
    all_of: Option<String>,
}

/// Dead letters that are asked for at once.
const PAGE: usize = 1000;

pub(super) async fn dead(client: &Client, wanted: Dead, output: Output) -> Result<(), Failure> {
    let (method, which, done) = match wanted {
        Dead::List { name, limit } => {
            let path = list_of(name.as_deref(), limit)?;
            return show_at(client, &path, output, |list: Vec<DeadLetter>| text(&list)).await;
        }
        Dead::Retry(which) => (Method::POST, which, "runs again"),
        Dead::Drop(which) => (Method::DELETE, which, "is forgotten"),
    };
    let each = async |id: &str| -> Result<(), Failure> {
        client.call(method.clone(), &format!("/system/dead/{}", segment(id)?)).await?;
        if output == Output::Text { print(&format!("{id} {done}\n")) } else { Ok(()) }
    };
    for id in &which.ids {
        each(id).await?;
    }
    let Some(name) = which.all_of else { return Ok(()) };
    // Those that there are now, page by page: one that dies again meanwhile is a new one, and in nobody's way.
    let path = format!("{}&until={}", list_of(Some(&name), PAGE)?, crate::activation::unix_ms());
    let mut done = HashSet::new();
    loop {
        let page: Vec<DeadLetter> = client::read(&client.call(Method::GET, &path).await?)?;
        // (With a clock that was set back, one that has died again looks like an old one.)
        let old: Vec<_> = page.into_iter().filter(|dead| done.insert(dead.call_id.clone())).collect();
        if old.is_empty() {
            let is_news = output == Output::Text && done.is_empty();
            return if is_news { print(&format!("no call of {name:?} was given up\n")) } else { Ok(()) };
        }
        for dead in old {
            each(&dead.call_id).await?;
        }
    }
}

fn list_of(name: Option<&str>, limit: usize) -> Result<String, Failure> {
    let of = name.map(|name| segment(name).map(|name| format!("&function={name}"))).transpose()?;
    Ok(format!("/system/dead?limit={limit}{}", of.unwrap_or_default()))
}

fn text(list: &[DeadLetter]) -> String {
    if list.is_empty() {
        return "no call was given up\n".into();
    }
    let mut rows = Table::new(["CALL", "FUNCTION", "DIED", ">ATTEMPTS", ">STATUS", "REASON"]);
    for dead in list {
        let first = dead.reason.lines().next().unwrap_or_default();
        // A function must not steer the terminal of whoever reads its output.
        let shown = first.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let reason = dead.error.clone().unwrap_or(shown);
        rows.row([
            dead.call_id.clone(),
            dead.function.clone(),
            instant(dead.died_unix_ms),
            dead.attempts.to_string(),
            dead.status.to_string(),
            reason,
        ]);
    }
    rows.print()
}
