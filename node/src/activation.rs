//! What one invocation was like, and a function's output: a bounded ring of lines in memory, for those who follow it.
//! Both are passed on to [`crate::records`], which keeps them over restarts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use crate::gateway::call_id::CallId;
use crate::records::{Recorder, StoredResult};

/// Bytes of output remembered per function, over all its invocations, with what each line takes beside its text.
const LOG_BYTES: usize = 256 * 1024;

/// What kind of process served an invocation, the coldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Start {
    /// The zygote had to be started for it.
    Cold,
    /// A process was forked for it.
    Forked,
    /// It met an idle process.
    Warm,
}

impl Start {
    /// As shown to users.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Forked => "forked",
            Self::Warm => "warm",
        }
    }
}

/// Where a line of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As shown to users.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line of a function's output.
#[derive(Clone, Debug)]
pub struct Line {
    /// Counts the function's lines; a cursor for following.
    pub number: u64,
    /// When spryd read it: milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The invocation that wrote it; `None` for the zygote's own (initialisation).
    pub call: Option<CallId>,
    /// Which stream.
    pub stream: Stream,
    /// The text, without the line end.
    pub text: String,
}

impl Line {
    /// What it takes.
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.text.len()
    }
}

/// How one invocation went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its public name.
    pub call_id: CallId,
    /// The function's version.
    pub version: u64,
    /// When it was accepted: milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// What served it; `None` when nothing did.
    pub start: Option<Start>,
    /// Waiting for a free instance.
    pub queue_ns: u64,
    /// Waiting for an instance to start.
    pub start_ns: u64,
    /// From the descriptor's leaving to the answer's coming.
    pub exec_ns: u64,
    /// CPU time of the process that served it, since its answer before; `None`: not known (a chain's is its steps').
    pub cpu_ns: Option<u64>,
    /// The most memory that this process has had, shared pages included.
    pub memory_bytes: Option<u64>,
    /// The HTTP status that the client got.
    pub status: u16,
    /// The error's code, for those that failed.
    pub error: Option<&'static str>,
    /// Of a chain: its steps and hops, as in `Server-Timing`.
    pub steps: Option<Box<str>>,
}

/// The last output of one function, and the way to what is kept.
#[derive(Debug)]
pub struct History {
    name: Box<str>,
    recorder: Arc<Recorder>,
    lines: VecDeque<Line>,
    line_bytes: usize,
    next_line: u64,
    news: Arc<Notify>,
}

impl History {
    /// Of the function or chain of that name.
    pub fn new(name: &str, recorder: Arc<Recorder>) -> Self {
        let (lines, news) = (VecDeque::new(), Arc::default());
        Self { name: name.into(), recorder, lines, line_bytes: 0, next_line: 0, news }
    }

    /// Remembers an invocation.
    pub fn record(&self, record: &Record) {
        self.recorder.record(&self.name, record);
    }

    /// Bytes that are kept of an answer; 0: none is kept.
    pub fn result_max(&self) -> usize {
        self.recorder.result_max()
    }

    /// Remembers what a call answered.
    pub fn result(&self, call: CallId, status: u16, content_type: &[u8], body: &[u8]) {
        let kept = &body[..body.len().min(self.result_max())];
        self.recorder.result(&StoredResult {
            function: self.name.to_string(),
            call,
            at_unix_ms: unix_ms(),
            status,
            truncated: kept.len() < body.len(),
            content_type: String::from_utf8_lossy(content_type).into_owned(),
            body: kept.to_vec(),
        });
    }

    /// Remembers output; the oldest makes room.
    pub fn log(&mut self, call: Option<CallId>, stream: Stream, bytes: &[u8]) {
        let at_unix_ms = unix_ms();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let text = String::from_utf8_lossy(line).into_owned();
            self.recorder.line(&self.name, call, at_unix_ms, stream, &text);
            let line = Line { number: self.next_line, at_unix_ms, call, stream, text };
            self.line_bytes += line.bytes();
            self.lines.push_back(line);
            self.next_line += 1;
        }
        self.news.notify_waiters();
        while self.line_bytes > LOG_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.line_bytes -= oldest.bytes();
        }
    }

    /// The output lines with at least this number, oldest first.
    pub fn lines_from(&self, number: u64) -> impl Iterator<Item = &Line> {
        self.lines.iter().skip_while(move |line| line.number < number)
    }

    /// Wakes those who follow the output, when there is some.
    pub fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// The number that the next line will get.
    pub fn next_line(&self) -> u64 {
        self.next_line
    }
}

/// Milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_bounded() {
        let mut history = History::new("f", Recorder::off());
        for _ in 0..100 {
            history.log(None, Stream::Stdout, &[b'x'; 10_000]);
        }
        assert!(history.line_bytes <= LOG_BYTES);
        assert_eq!(history.next_line(), 100);
        assert_eq!(history.lines_from(99).count(), 1);
    }

    #[test]
    fn short_lines_take_room_too() {
        let mut history = History::new("f", Recorder::off());
        history.log(None, Stream::Stdout, &b"x\n".repeat(LOG_BYTES));
        let lines = history.lines_from(0).count();
        assert!(lines > 0 && lines * size_of::<Line>() <= LOG_BYTES, "{lines}");
    }
}
