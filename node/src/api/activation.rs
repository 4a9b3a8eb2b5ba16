//! Single calls: how one went, where an asynchronous one is, and what functions wrote.

use serde::{Deserialize, Serialize};

use crate::units::Size;

/// What served a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    /// The zygote had to be started.
    Cold,
    /// A process was forked for it.
    Forked,
    /// It met an idle process.
    Warm,
}

impl StartKind {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Forked => "forked",
            Self::Warm => "warm",
        }
    }
}

/// One invocation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActivationView {
    /// `X-Call-Id`.
    pub call_id: String,
    /// Which function.
    pub function: String,
    /// Which version of it.
    pub version: u64,
    /// When it was accepted.
    pub started_unix_ms: u64,
    /// What served it; `null`: nothing did.
    pub start: Option<StartKind>,
    /// Waiting for a free instance.
    pub queue_ms: f64,
    /// Waiting for an instance to start.
    pub start_ms: f64,
    /// In the function.
    pub exec_ms: f64,
    /// CPU time of its process; `null`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<f64>,
    /// The most memory that its process has had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak: Option<Size>,
    /// The HTTP status.
    pub status: u16,
    /// The error's code, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Of a chain: where its time went.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepTime>,
    /// Where an asynchronous call is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub later: Option<LaterView>,
    /// What it wrote; empty in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogLine>,
}

/// How long a chain's call was in a step, or on its way to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// The step.
    pub step: String,
    /// On its way to it.
    pub hop: bool,
    /// How long.
    pub ms: f64,
}

/// Where an asynchronous call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaterState {
    /// It waits for its turn.
    Queued,
    /// It waits for its time: it was put off, or has failed and is to run again.
    Delayed,
    /// It runs.
    Running,
    /// It has ended with an answer.
    Done,
    /// It was given up.
    Dead,
    /// It was cancelled.
    Cancelled,
}

impl LaterState {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delayed => "delayed",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What is known of an asynchronous call beyond its last run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaterView {
    /// Where it is.
    pub state: LaterState,
    /// How often it has run (while it runs: has failed).
    pub attempts: u32,
    /// When it was accepted.
    pub accepted_unix_ms: u64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_unix_ms: Option<u64>,
    /// Until it may run, when it is delayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<u64>,
}

/// Which stream a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Counts the function's lines; a cursor.
    pub number: u64,
    /// When spryd read it.
    pub at_unix_ms: u64,
    /// The invocation that wrote it; `null`: the zygote, while it loaded the function.
    pub call_id: Option<String>,
    /// Where it was written.
    pub stream: LogStream,
    /// The text, without the line end.
    pub text: String,
}

/// Some of a function's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// What to ask for next (`since`).
    pub next: u64,
    /// How many lines between `since` and the first one here are no longer kept.
    pub missed: u64,
}
