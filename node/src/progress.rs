//! What a long request has to say while it works: lines that its sender reads meanwhile.
//!
//! A deploy may name a progress of its own; whoever knows the name reads its lines by `GET /system/progress/NAME`. Lines
//! are kept in memory, within bounds, until newer requests need the room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Progresses that are kept at once.
const KEPT_MAX: usize = 64;
/// Lines kept of one; the first go.
const LINES_MAX: usize = 1000;
/// Bytes of one line.
const LINE_MAX: usize = 1024;

/// Where lines are put.
#[derive(Debug, Clone, Default)]
pub struct Progress(Option<Arc<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    kept: Mutex<Kept>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    /// The number of the first of them.
    first: u64,
    done: bool,
}

/// Some lines of a progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressPage {
    /// In order.
    pub lines: Vec<String>,
    /// What to ask from next.
    pub next: u64,
    /// Whether the request has ended: nothing more will come.
    pub done: bool,
}

impl Progress {
    /// Nobody listens.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Puts a line; control characters are left out, and what is too long is cut.
    pub fn say(&self, text: &str) {
        let Some(lines) = &self.0 else { return };
        let end = text.floor_char_boundary(LINE_MAX);
        let text: String =
            text[..end].chars().filter(|letter| !letter.is_control() || *letter == '\t').collect();
        let mut kept = lines.kept.lock();
        if kept.lines.len() == LINES_MAX {
            kept.lines.pop_front();
            kept.first += 1;
        }
        kept.lines.push_back(text);
        drop(kept);
        lines.news.notify_waiters();
    }

    /// The request has ended.
    pub fn end(&self) {
        let Some(lines) = &self.0 else { return };
        lines.kept.lock().done = true;
        lines.news.notify_waiters();
    }

    /// The lines from number `since` on; while there are none, waits up to `wait` for one.
    pub async fn read(&self, since: u64, wait: Duration) -> ProgressPage {
        let Some(lines) = &self.0 else { return ProgressPage { lines: vec![], next: since, done: true } };
        let until = tokio::time::Instant::now() + wait;
        loop {
            // Before the look: a line that comes after it is not missed.
            let more = lines.news.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            let page = lines.page(since);
            if page.done || !page.lines.is_empty() || tokio::time::timeout_at(until, more).await.is_err() {
                return page;
            }
        }
    }
}

impl Lines {
    fn page(&self, since: u64) -> ProgressPage {
        let kept = self.kept.lock();
        let skipped = usize::try_from(since.saturating_sub(kept.first)).unwrap_or(usize::MAX);
        let lines: Vec<String> = kept.lines.iter().skip(skipped).cloned().collect();
        ProgressPage { lines, next: since.max(kept.first + kept.lines.len() as u64), done: kept.done }
    }
}

/// All progresses that somebody may read, by name.
#[derive(Debug, Default)]
pub struct Board(Mutex<VecDeque<(String, Progress)>>);

impl Board {
    /// The one of that name; made if nobody has spoken of it yet (who reads may come before who writes).
    pub fn named(&self, name: &str) -> Progress {
        let mut kept = self.0.lock();
        if let Some((_, known)) = kept.iter().find(|(known, _)| known == name) {
            return known.clone();
        }
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        let made = Progress(Some(Arc::default()));
        kept.push_back((name.to_owned(), made.clone()));
        made
    }
}

/// Whether a text can name a progress: 8 to 64 letters, digits and hyphens.
pub fn is_name(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_gets_every_line_in_order_and_the_end() {
        let board = Board::default();
        let reader = board.named("deploy-1");
        let writer = board.named("deploy-1");
        let reading = tokio::spawn(async move {
            let (mut lines, mut since) = (Vec::new(), 0);
            loop {
                let page = reader.read(since, Duration::from_secs(60)).await;
                lines.extend(page.lines);
                since = page.next;
                if page.done {
                    return lines;
                }
            }
        });
        for number in 0..100 {
            writer.say(&format!("line {number}\u{1b}[2J"));
            tokio::task::yield_now().await;
        }
        writer.end();
        let lines = reading.await.expect("read");
        assert_eq!(lines.len(), 100);
        assert_eq!(lines[99], "line 99[2J", "no control characters");
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let board = Board::default();
        let progress = board.named("deploy-1");
        for _ in 0..LINES_MAX + 5 {
            progress.say(&"é".repeat(LINE_MAX));
        }
        let page = progress.read(0, Duration::ZERO).await;
        assert_eq!((page.lines.len(), page.next), (LINES_MAX, LINES_MAX as u64 + 5));
        assert!(page.lines.iter().all(|line| line.len() <= LINE_MAX));
        for number in 0..KEPT_MAX {
            board.named(&format!("another-{number}"));
        }
        assert_eq!(board.named("deploy-1").read(0, Duration::ZERO).await.lines.len(), 0, "it had to go");
        assert!(
            is_name("0123abcd-x") && !is_name("short") && !is_name("with space") && !is_name(&"x".repeat(65))
        );
    }
}
