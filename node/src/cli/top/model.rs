//! What is shown, without how: two looks at the node, and what lies between them.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::api::{ActivationView, Usage, UsageView};

/// What rows can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Column {
    Name,
    Rate,
    Failed,
    P50,
    P99,
    Queue,
    Cpu,
    Memory,
    Instances,
}

impl Column {
    const ALL: [Self; 9] = [
        Self::Name,
        Self::Rate,
        Self::Failed,
        Self::P50,
        Self::P99,
        Self::Queue,
        Self::Cpu,
        Self::Memory,
        Self::Instances,
    ];

    /// The column's heading.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::Rate => "CALLS/s",
            Self::Failed => "FAILED/s",
            Self::P50 => "P50 ms",
            Self::P99 => "P99 ms",
            Self::Queue => "QUEUED",
            Self::Cpu => "CPU %",
            Self::Memory => "MEMORY",
            Self::Instances => "BUSY/ALL",
        }
    }
}

/// One function or chain, between two looks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) is_chain: bool,
    pub(super) rate: f64,
    pub(super) failed: f64,
    /// Upper bounds, in milliseconds; `None`: nothing was served.
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    pub(super) queued: u64,
    /// Of one CPU.
    pub(super) cpu_percent: f64,
    pub(super) resident_bytes: u64,
    pub(super) busy: u32,
    pub(super) processes: u32,
    /// Served by a process that was started for it, of 100 that were served.
    pub(super) started_percent: f64,
    /// How many took at most as long as each bound, and longer than the one before.
    pub(super) spread: Vec<u64>,
}

/// Whether the user has seen enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    No,
    Yes,
}

/// Everything that is on the screen.
#[derive(Debug)]
pub(super) struct Model {
    before: Option<UsageView>,
    now: Option<UsageView>,
    sort: Column,
    reversed: bool,
    filter: String,
    /// The filter is being typed.
    pub(super) is_typing: bool,
    selected: usize,
    /// The one that is looked at closely.
    inside: Option<String>,
    calls: Vec<ActivationView>,
    calls_are_old: bool,
}

impl Model {
    pub(super) fn new(sort: Column, filter: String) -> Self {
        Self {
            before: None,
            now: None,
            sort,
            reversed: false,
            filter,
            is_typing: false,
            selected: 0,
            inside: None,
            calls: Vec::new(),
            calls_are_old: false,
        }
    }

    /// Another look.
    pub(super) fn feed(&mut self, view: UsageView) {
        self.before = self.now.replace(view);
        self.calls_are_old = self.inside.is_some();
    }

    /// Whose calls are to be asked for.
    pub(super) fn wants_calls(&self) -> Option<&str> {
        self.inside.as_deref().filter(|_| self.calls_are_old)
    }

    /// The latest calls of the one that is looked at.
    pub(super) fn feed_calls(&mut self, calls: Vec<ActivationView>) {
        self.calls = calls;
        self.calls_are_old = false;
    }

    pub(super) fn now(&self) -> Option<&UsageView> {
        self.now.as_ref()
    }

    pub(super) fn sort(&self) -> (Column, bool) {
        (self.sort, self.reversed)
    }

    pub(super) fn filter(&self) -> &str {
        &self.filter
    }

    pub(super) fn selected(&self) -> usize {
        self.selected
    }

    pub(super) fn calls(&self) -> &[ActivationView] {
        &self.calls
    }

    /// The row of the one that is looked at; it may have been removed meanwhile.
    pub(super) fn inside(&self) -> Option<(&str, Option<Row>)> {
        let name = self.inside.as_deref()?;
        Some((name, self.all_rows().into_iter().find(|row| row.name == name)))
    }

    /// What happened since the look before, in the order that is wanted.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = self.all_rows();
        rows.retain(|row| row.name.contains(&self.filter));
        rows.sort_by(|one, other| {
            let by_number = |of: fn(&Row) -> f64| of(other).total_cmp(&of(one));
            let order = match self.sort {
                Column::Name => one.name.cmp(&other.name),
                Column::Rate => by_number(|row| row.rate),
                Column::Failed => by_number(|row| row.failed),
                Column::P50 => by_number(|row| row.p50_ms.unwrap_or(-1.0)),
                Column::P99 => by_number(|row| row.p99_ms.unwrap_or(-1.0)),
                Column::Queue => other.queued.cmp(&one.queued),
                Column::Cpu => by_number(|row| row.cpu_percent),
                Column::Memory => other.resident_bytes.cmp(&one.resident_bytes),
                Column::Instances => other.processes.cmp(&one.processes),
            };
            let order = if self.reversed { order.reverse() } else { order };
            order.then_with(|| one.name.cmp(&other.name))
        });
        rows
    }

    fn all_rows(&self) -> Vec<Row> {
        let (Some(before), Some(now)) = (&self.before, &self.now) else { return Vec::new() };
        // spryd's own clock of its life: the calendar may be set back between two looks.
        let seconds = (now.uptime_ms.saturating_sub(before.uptime_ms) as f64 / 1e3).max(1e-3);
        let restarted = now.uptime_ms < before.uptime_ms;
        let row = |usage: &Usage| {
            let old = before.all.iter().find(|old| old.name == usage.name && old.is_chain == usage.is_chain);
            row(usage, old.filter(|_| !restarted), seconds, &now.bounds_ms)
        };
        now.all.iter().map(row).collect()
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Done {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Done::Yes;
        }
        if self.is_typing {
            match key.code {
                KeyCode::Enter => self.is_typing = false,
                KeyCode::Esc => (self.is_typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(letter) if self.filter.len() < 63 => self.filter.push(letter),
                _ => {}
            }
            self.selected = 0;
            return Done::No;
        }
        match key.code {
            KeyCode::Char('q') => return Done::Yes,
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => self.inside = None,
            KeyCode::Char('/') => (self.is_typing, self.inside) = (true, None),
            KeyCode::Char('s') => {
                let at = Column::ALL.iter().position(|column| *column == self.sort).unwrap_or(0);
                self.sort = Column::ALL[(at + 1) % Column::ALL.len()];
            }
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => {
                self.selected = (self.selected + 1).min(self.rows().len().saturating_sub(1));
            }
            KeyCode::Home => self.selected = 0,
            KeyCode::Enter | KeyCode::Right => {
                self.inside = self.rows().into_iter().nth(self.selected).map(|row| row.name);
                self.calls = Vec::new();
                self.calls_are_old = self.inside.is_some();
            }
            _ => {}
        }
        Done::No
    }
}

/// The difference between two looks at one function. One that wasn't there before began with nothing.
fn row(now: &Usage, old: Option<&Usage>, seconds: f64, bounds_ms: &[f64]) -> Row {
    let since = |of: fn(&Usage) -> u64| of(now).saturating_sub(old.map_or(0, of));
    let ended = since(|usage| usage.calls.ok) + since(|usage| usage.calls.failed);
    let started = since(|usage| usage.calls.cold) + since(|usage| usage.calls.forked);
    let cumulative: Vec<u64> = (0..now.exec.len())
        .map(|at| now.exec[at].saturating_sub(old.and_then(|old| old.exec.get(at)).copied().unwrap_or(0)))
        .collect();
    let served = cumulative.last().copied().unwrap_or(0);
    let before = std::iter::once(0).chain(cumulative.iter().copied());
    let spread = cumulative.iter().zip(before).map(|(sum, before)| sum.saturating_sub(before)).collect();
    let cpu_ms = now.processes.cpu_ms - old.map_or(0.0, |old| old.processes.cpu_ms);
    Row {
        name: now.name.clone(),
        is_chain: now.is_chain,
        rate: ended as f64 / seconds,
        failed: since(|usage| usage.calls.failed) as f64 / seconds,
        p50_ms: quantile(&cumulative, bounds_ms, 0.5),
        p99_ms: quantile(&cumulative, bounds_ms, 0.99),
        queued: now.queued,
        cpu_percent: cpu_ms.max(0.0) / seconds / 10.0,
        resident_bytes: now.processes.resident_bytes,
        busy: now.instances.busy,
        processes: now.instances.total(),
        started_percent: if served == 0 { 0.0 } else { 100.0 * started as f64 / served as f64 },
        spread,
    }
}

/// The bound that this part of them doesn't pass; beyond the last one, infinity.
fn quantile(cumulative: &[u64], bounds_ms: &[f64], part: f64) -> Option<f64> {
    let count = cumulative.last().copied().filter(|count| *count > 0)?;
    let rank = (part * count as f64).ceil().max(1.0) as u64;
    let at = cumulative.iter().position(|sum| *sum >= rank)?;
    Some(bounds_ms.get(at).copied().unwrap_or(f64::INFINITY))
}

#[cfg(test)]
#[path = "model_tests.rs"]
pub(super) mod tests;
