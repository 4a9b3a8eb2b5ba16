//! `spry token`: who may call over HTTP.

use clap::Subcommand;
use http::{Method, Request};
use http_body_util::Full;

use super::client::{self, Client};
use super::table::{Table, instant};
use super::{Failure, Output, print, print_json, segment};
use crate::access::Scope;
use crate::api::{TokenMade, TokenView, TokenWanted};

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token; its text goes to stdout and is never shown again
    Create(Create),
    /// List the tokens, without their texts
    List,
    /// End a token at once
    Revoke {
        /// The token's id, as in `spry token list`
        id: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// What its bearer may do; any number of times
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<Scope>,
    /// With this function or chain only; any number of times [default: with all, and with the node]
    #[arg(long = "function", value_name = "NAME")]
    functions: Vec<String>,
    /// How long it lives, such as 30d [default: until it is revoked]
    #[arg(long, value_name = "PERIOD")]
    expires: Option<String>,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
}

pub(super) async fn token(client: &Client, wanted: Token, output: Output) -> Result<(), Failure> {
    match wanted {
        Token::Create(wanted) => create(client, wanted, output).await,
        Token::List => {
            super::show_at(client, "/system/tokens", output, |list: Vec<TokenView>| table(&list)).await
        }
        Token::Revoke { id } => {
            client.call(Method::DELETE, &format!("/system/token/{}", segment(&id)?)).await?;
            if output == Output::Text { print(&format!("revoked {id}\n")) } else { Ok(()) }
        }
    }
}

async fn create(client: &Client, wanted: Create, output: Output) -> Result<(), Failure> {
    let wanted = TokenWanted {
        scopes: wanted.scopes,
        functions: (!wanted.functions.is_empty()).then_some(wanted.functions),
        expires: wanted.expires,
        note: wanted.note,
    };
    let body = serde_json::to_vec(&wanted).map_err(|error| Failure::Node(error.to_string()))?;
    let request = Request::post("/system/tokens").header("host", "spry").body(Full::from(body));
    let request = request.map_err(|error| Failure::Usage(error.to_string()))?;
    let body = client::good(client.send(request).await?).await?;
    match output {
        Output::Json => print_json(&body),
        Output::Text => {
            let made: TokenMade = client::read(&body)?;
            eprintln!(
                "spry: token {} was made; this is the only time that its text is shown:",
                made.about.id
            );
            print(&format!("{}\n", made.token))
        }
    }
}

fn table(list: &[TokenView]) -> String {
    if list.is_empty() {
        return "no tokens; `spry token create` makes one (the first one is in the state folder's api-token)\n".into();
    }
    let mut table = Table::new(["ID", "SCOPES", "FUNCTIONS", "MADE", "ENDS", "NOTE"]);
    for token in list {
        let scopes: Vec<&str> = token.scopes.iter().map(|scope| scope.as_str()).collect();
        let ends = match token.expires_unix_ms {
            None => "-".to_owned(),
            Some(_) if token.expired => "expired".to_owned(),
            Some(at) => instant(at),
        };
        table.row([
            token.id.clone(),
            scopes.join(","),
            token.functions.as_ref().map_or_else(|| "all".to_owned(), |names| names.join(",")),
            instant(token.created_unix_ms),
            ends,
            token.note.clone(),
        ]);
    }
    table.print()
}
