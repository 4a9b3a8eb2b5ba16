//! One trigger at work: it waits for its instant, or for a file, and makes a call of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::Shared;
use super::spec::{Schedule, Source, Spec};
use super::spool::{Refused, Spool};
use crate::activation::unix_ms;
use crate::calls::call::Head;
use crate::calls::runner::Callees;
use crate::calls::{BODY_MAX, Calls, CallsError, NewCall};

/// Missed instants that are made up for.
const MISSED_MAX: usize = 1000;
/// How late an instant may be noticed and not be a missed one.
const GRACE_MS: u64 = 60_000;
/// When the queue is full or the disk is, or there are no descriptors, this is how long the next try waits.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// A trigger at work.
pub(super) struct Firing {
    pub(super) spec: Spec,
    pub(super) calls: Arc<Calls>,
    pub(super) callees: Arc<dyn Callees>,
    pub(super) shared: Arc<Shared>,
}

impl Firing {
    pub(super) async fn run(self) {
        let ended = match &self.spec.source {
            Source::Cron(schedule) => self.keep_time(schedule).await,
            Source::Spool { folder, done } => self.watch(folder, done.as_deref()).await,
        };
        if let Err(error) = ended {
            tracing::error!(trigger = %self.spec.name, %error, "a trigger can't fire any more; apply it again");
            *self.shared.problem.lock() = Some(error.to_string());
        }
    }

    async fn keep_time(&self, schedule: &Schedule) -> std::io::Result<()> {
        let timer =
            TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let ready = crate::sys::watch_readable(std::os::fd::AsFd::as_fd(&timer).try_clone_to_owned()?)?;
        loop {
            let fired = self.shared.fired_unix_ms.load(Ordering::Relaxed);
            for at in schedule.due(fired, unix_ms(), GRACE_MS, MISSED_MAX) {
                // What is refused for good would be again: that instant is over, too.
                self.submit(
                    &format!("at:{at}"),
                    self.spec.body.clone().into(),
                    ("x-spry-scheduled", at.to_string()),
                )
                .await;
                self.shared.fired_unix_ms.store(at, Ordering::Relaxed);
                self.calls.note_fired(self.spec.name.as_str(), at);
            }
            let fired = self.shared.fired_unix_ms.load(Ordering::Relaxed);
            let Some(next) = schedule.next(fired.max(unix_ms())) else { return Ok(()) };
            let at = TimeSpec::from_duration(Duration::from_millis(next));
            // Woken at that instant, and when somebody sets the clock: then the instant is another one.
            let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
            timer.set(Expiration::OneShot(at), flags)?;
            if unix_ms() >= next {
                continue;
            }
            let mut guard = ready.readable().await?;
            guard.clear_ready();
            let _ = timer.wait(); // takes the expiry, or the news that the clock was set
        }
    }

    async fn watch(&self, folder: &Path, done: Option<&Path>) -> std::io::Result<()> {
        let spool = Spool::open(folder, done)?;
        let ready = crate::sys::watch_readable(spool.fd()?)?;
        let mut names = None;
        loop {
            let here = match names.take() {
                Some(names) => names,
                None => self.patiently(|| spool.all()).await?,
            };
            for name in here {
                self.take(&spool, &name).await;
            }
            let mut guard = ready.readable().await?;
            guard.clear_ready();
            names = spool.news()?;
        }
    }

    /// Tries again what fails because the node has no more descriptors or memory: nobody would say of a file a second time that it
    /// is there.
    pub(super) async fn patiently<T>(
        &self,
        mut what: impl FnMut() -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        loop {
            match what() {
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) =>
                {
                    *self.shared.problem.lock() = Some(error.to_string());
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Makes a call of a file, which goes once that is accepted.
    pub(super) async fn take(&self, spool: &Spool, name: &str) {
        let limit = self.callees.payload(self.spec.call.as_str()).unwrap_or(0).min(BODY_MAX);
        let read = || match spool.read(name, limit) {
            Err(Refused::Os(error)) => Err(error),
            read => Ok(read),
        };
        let found = match self.patiently(read).await.map_err(Refused::Os).flatten() {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(trigger = %self.spec.name, file = name, %error, "a file in the spool folder is left there");
                return;
            }
        };
        let shown: String = name.chars().filter(char::is_ascii_graphic).take(255).collect();
        if !self.submit(&found.key(), found.content.clone().into(), ("x-spry-file", shown)).await {
            return;
        }
        self.shared.fired_unix_ms.store(unix_ms(), Ordering::Relaxed);
        if let Err(error) = spool.finish(&found) {
            tracing::warn!(trigger = %self.spec.name, file = name, %error, "a file that was sent can't be moved on");
            *self.shared.problem.lock() = Some(format!("{name}: {error}"));
        }
    }

    /// Makes a call, however long that takes; false: it was refused for good. `what` tells this firing from all others of
    /// the trigger.
    async fn submit(&self, what: &str, body: bytes::Bytes, (name, value): (&'static str, String)) -> bool {
        let mut headers = HeaderMap::new();
        let text = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("-"));
        headers.insert(header::CONTENT_TYPE, text(&self.spec.content_type));
        headers.insert(HeaderName::from_static("x-spry-trigger"), text(self.spec.name.as_str()));
        headers.insert(HeaderName::from_static(name), text(&value));
        // No client's key begins so: a header has no NUL byte in it.
        let key = format!("\0trigger:{}:{what}", self.spec.name).into_bytes();
        loop {
            let call = NewCall {
                function: self.spec.call.as_str().into(),
                head: Head { method: Method::POST, rest: String::new(), headers: headers.clone() },
                body: body.clone(),
                callback: None,
                delay: Duration::ZERO,
                key: Some(key.clone()),
            };
            match self.calls.accept(call).await {
                Ok(_) => {
                    self.shared.fired.fetch_add(1, Ordering::Relaxed);
                    *self.shared.problem.lock() = None;
                    return true;
                }
                Err(
                    error
                    @ (CallsError::Full { .. } | CallsError::TooMuch { .. } | CallsError::Unwritable(_)),
                ) => {
                    *self.shared.problem.lock() = Some(error.to_string());
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                Err(error) => {
                    tracing::error!(trigger = %self.spec.name, %error, "a trigger's call was not accepted");
                    *self.shared.problem.lock() = Some(error.to_string());
                    return false;
                }
            }
        }
    }
}
