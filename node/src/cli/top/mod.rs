//! `spry top`: what the node does now, function by function. A screen on a terminal, a table elsewhere.

mod model;
mod screen;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use http::Method;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use super::client::{self, Client};
use super::{Failure, print};
use crate::api::{ActivationView, UsageView};
use crate::units::Period;
use model::{Done, Model};

/// Calls that are shown of one function.
const CALLS: usize = 50;
/// Keys are looked for this often.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct Top {
    /// Between two looks at the node
    #[arg(short, long, value_name = "PERIOD", default_value = "1s")]
    interval: Period,
    /// Print one table of what happens within one interval, and end
    #[arg(long)]
    once: bool,
    /// Only functions and chains whose names contain this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// What is shown first
    #[arg(long, value_name = "COLUMN", default_value = "rate")]
    sort: model::Column,
}

pub(super) async fn top(client: &Client, wanted: Top) -> Result<(), Failure> {
    let interval = wanted.interval.as_duration().clamp(Duration::from_millis(100), Duration::from_secs(60));
    let mut model = Model::new(wanted.sort, wanted.filter);
    model.feed(look(client).await?);
    if wanted.once || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        loop {
            tokio::time::sleep(interval).await;
            model.feed(look(client).await?);
            print(&screen::text(&model))?;
            if wanted.once {
                return Ok(());
            }
            print("\n")?;
        }
    }
    let mut terminal =
        ratatui::try_init().map_err(|error| Failure::Node(format!("set up the terminal: {error}")))?;
    // Whatever happens in there, the terminal is as it was afterwards.
    let ended = screen_loop(client, &mut model, interval, &mut terminal).await;
    ratatui::restore();
    ended
}

async fn screen_loop(
    client: &Client,
    model: &mut Model,
    interval: Duration,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<(), Failure> {
    let mut next = Instant::now() + interval;
    loop {
        if let Some(name) = model.wants_calls() {
            let path = format!("/system/activations?limit={CALLS}&function={name}");
            let calls: Vec<ActivationView> = client::read(&client.call(Method::GET, &path).await?)?;
            model.feed_calls(calls);
        }
        terminal.draw(|frame| screen::draw(frame, model)).map_err(Failure::output)?;
        let patience = next.saturating_duration_since(Instant::now()).min(LOOK);
        if event::poll(patience).map_err(Failure::output)?
            && let Event::Key(key) = event::read().map_err(Failure::output)?
            && key.kind == KeyEventKind::Press
            && model.key(key) == Done::Yes
        {
            return Ok(());
        }
        if Instant::now() >= next {
            next = Instant::now() + interval;
            model.feed(look(client).await?);
        }
    }
}

async fn look(client: &Client) -> Result<UsageView, Failure> {
    client::read(&client.call(Method::GET, "/system/usage").await?)
}
