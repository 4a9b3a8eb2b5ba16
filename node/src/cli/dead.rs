//! `spry dead`: calls that were given up.

use clap::Subcommand;
use http::Method;

use super::client::Client;
use super::table::{Table, instant};
use super::{Failure, Output, print, segment, show};
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
    /// Run one again, with all its chances
    Retry {
        /// The call's id (X-Call-Id)
        id: String,
    },
    /// Forget one
    Drop {
        /// The call's id (X-Call-Id)
        id: String,
    },
}

pub(super) async fn dead(client: &Client, wanted: Dead, output: Output) -> Result<(), Failure> {
    let (method, id, done) = match wanted {
        Dead::List { name, limit } => {
            let of = name.map(|name| segment(&name).map(|name| format!("&function={name}"))).transpose()?;
            let path = format!("/system/dead?limit={limit}{}", of.unwrap_or_default());
            return show(client, &path, output, |list: Vec<DeadLetter>| text(&list)).await;
        }
        Dead::Retry { id } => (Method::POST, id, "runs again"),
        Dead::Drop { id } => (Method::DELETE, id, "is forgotten"),
    };
    client.call(method, &format!("/system/dead/{}", segment(&id)?)).await?;
    if output == Output::Text {
        print(&format!("{id} {done}\n"))?;
    }
    Ok(())
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
