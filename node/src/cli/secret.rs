//! `spry secret`: set, list, remove.

use std::io::{IsTerminal, Read};

use bytes::Bytes;
use clap::Subcommand;
use http::{Method, Request};
use http_body_util::Full;

use super::client::{self, Client};
use super::table::{Table, ago};
use super::{Failure, Output, print, segment};
use crate::secrets::{SecretName, SecretView, VALUE_MAX};

#[derive(Debug, Subcommand)]
pub(super) enum Secret {
    /// Set a secret, or replace it: the value is read from the standard input, as it comes
    Set {
        /// Its name; a function that lists it finds it in /run/secrets/NAME
        name: String,
    },
    /// List the secrets: their names, not their values
    List,
    /// Forget a secret that no function lists
    Remove {
        /// Its name
        name: String,
    },
}

pub(super) async fn secret(client: &Client, wanted: Secret, output: Output) -> Result<(), Failure> {
    match wanted {
        Secret::Set { name } => set(client, &name, output).await,
        Secret::List => {
            super::show_at(client, "/system/secrets", output, |list: Vec<SecretView>| table(&list)).await
        }
        Secret::Remove { name } => {
            client.call(Method::DELETE, &format!("/system/secret/{}", segment(&name)?)).await?;
            say(output, &format!("removed {name}\n"))
        }
    }
}

async fn set(client: &Client, name: &str, output: Output) -> Result<(), Failure> {
    name.parse::<SecretName>().map_err(|error| Failure::Usage(error.to_string()))?;
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let hint =
            "the value is read from the standard input: printf %s VALUE | spry secret set NAME, or < FILE";
        return Err(Failure::Usage(hint.into()));
    }
    let mut value = Vec::with_capacity(VALUE_MAX + 1);
    let read = stdin.lock().take(VALUE_MAX as u64 + 1).read_to_end(&mut value);
    read.map_err(|error| Failure::Usage(format!("read the standard input: {error}")))?;
    if value.is_empty() || value.len() > VALUE_MAX {
        return Err(Failure::Usage(format!("a secret has 1 to {VALUE_MAX} bytes")));
    }
    let request = Request::put(format!("/system/secret/{}", segment(name)?)).header("host", "spry");
    let request = request.body(Full::new(Bytes::from(value)));
    let request = request.map_err(|error| Failure::Usage(error.to_string()))?;
    client::good(client.send(request).await?).await?;
    say(output, &format!("set {name}; functions see it when they are next started\n"))
}

fn say(output: Output, text: &str) -> Result<(), Failure> {
    match output {
        Output::Text => print(text),
        Output::Json => Ok(()),
    }
}

fn table(list: &[SecretView]) -> String {
    if list.is_empty() {
        return "no secrets; `spry secret set NAME` sets one\n".into();
    }
    let mut table = Table::new(["NAME", "SET"]);
    for secret in list {
        table.row([secret.name.to_string(), ago(secret.set_unix_ms)]);
    }
    table.print()
}
