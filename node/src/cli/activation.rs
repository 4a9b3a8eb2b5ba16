//! `spry activation`: single calls, asynchronous ones above all.

use std::time::{Duration, Instant};

use clap::Subcommand;
use http::Method;

use super::client::{self, Client};
use super::{Failure, Output, invoke, print, print_json, segment, show, show_at};
use crate::api::{ActivationView, LaterState, LogLine};
use crate::gateway::call_id::CallId;
use crate::units::Period;

/// What one request may wait for; longer waits are made of several.
const WAIT_EACH: Duration = Duration::from_secs(60);

/// What `spry activation` takes.
#[derive(Debug, Subcommand)]
pub(super) enum Activation {
    /// List the latest calls, newest first
    List {
        /// Only this function's
        name: Option<String>,
        /// Only those that went so: ok, failed, an HTTP status, or an error's code
        #[arg(long, value_name = "HOW")]
        status: Option<String>,
        /// Only those accepted since then: a period before now (10m), or milliseconds since the Unix epoch
        #[arg(long, value_name = "WHEN")]
        since: Option<String>,
        /// Only those accepted before then
        #[arg(long, value_name = "WHEN")]
        until: Option<String>,
        /// At most this many
        #[arg(short = 'n', long, value_name = "N", default_value_t = 30)]
        limit: usize,
    },
    /// Show one call
    Get {
        /// The call's id (X-Call-Id)
        id: String,
        /// Wait so long for an asynchronous call to end
        #[arg(long, value_name = "PERIOD")]
        wait: Option<Period>,
    },
    /// Print what an asynchronous call answered
    Result {
        /// The call's id (X-Call-Id)
        id: String,
        /// Wait so long for it to end
        #[arg(long, value_name = "PERIOD")]
        wait: Option<Period>,
    },
    /// Cancel an asynchronous call that has not begun to run
    Cancel {
        /// The call's id (X-Call-Id)
        id: String,
    },
    /// Print what one call wrote
    Logs {
        /// The call's id (X-Call-Id)
        id: String,
    },
}

pub(super) async fn activation(client: &Client, wanted: Activation, output: Output) -> Result<(), Failure> {
    match wanted {
        Activation::List { name, status, since, until, limit } => {
            let mut path = format!("/system/activations?limit={limit}");
            for (key, value) in [("function", name), ("status", status), ("since", since), ("until", until)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{key}={}", segment(&value)?));
                }
            }
            show_at(client, &path, output, |list: Vec<ActivationView>| show::activations(&list)).await
        }
        Activation::Result { id, wait } => result(client, &id, wait).await,
        Activation::Get { id, wait } => get(client, &id, wait, output).await,
        Activation::Cancel { id } => {
            if CallId::parse(&id).is_none() {
                return Err(Failure::Usage(format!(
                    "{id:?} is no call's id: these have 32 digits, 0 to 9 and a to f"
                )));
            }
            client.call(Method::DELETE, &format!("/async-function/{}", segment(&id)?)).await?;
            if output == Output::Text {
                print(&format!("{id} is cancelled and won't run\n"))?;
            }
            Ok(())
        }
        Activation::Logs { id } => {
            let path = format!("/system/activation/{}/logs", segment(&id)?);
            show_at(client, &path, output, |lines: Vec<LogLine>| show::lines(&lines)).await
        }
    }
}

async fn get(client: &Client, id: &str, wait: Option<Period>, output: Output) -> Result<(), Failure> {
    let mut waits = Waits::new(wait);
    let body = loop {
        let path = format!("/system/activation/{}{}", segment(id)?, waits.next());
        let body = client.call(Method::GET, &path).await?;
        let view: ActivationView = client::read(&body)?;
        let runs = view.later.is_some_and(|later| {
            matches!(later.state, LaterState::Queued | LaterState::Delayed | LaterState::Running)
        });
        if !runs || waits.are_over() {
            break body;
        }
    };
    match output {
        Output::Json => print_json(&body),
        Output::Text => print(&show::activation(&client::read(&body)?)),
    }
}

async fn result(client: &Client, id: &str, wait: Option<Period>) -> Result<(), Failure> {
    let mut waits = Waits::new(wait);
    loop {
        let path = format!("/system/activation/{}/result{}", segment(id)?, waits.next());
        match invoke::result(client, &path).await? {
            invoke::Ended::Not(why) if waits.are_over() => return Err(why),
            invoke::Ended::Not(_) => {}
            invoke::Ended::Shown => return Ok(()),
        }
    }
}

/// A wait, in pieces that one request may have.
struct Waits {
    until: Option<Instant>,
}

impl Waits {
    fn new(wait: Option<Period>) -> Self {
        Self { until: wait.and_then(|wait| Instant::now().checked_add(wait.as_duration())) }
    }

    /// The query of the next request.
    fn next(&mut self) -> String {
        let Some(until) = self.until else { return String::new() };
        let left = until.saturating_duration_since(Instant::now()).min(WAIT_EACH);
        format!("?wait={}ms", left.as_millis())
    }

    fn are_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }
}
