//! The whole of it without a node: a fake worker answers what it is told to.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::atomic::AtomicBool;

use http::{HeaderMap, HeaderValue, Method, Response};
use http_body_util::Full;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::database::Database;
use super::rows::Outcome;
use super::runner::Callees;
use super::target::Rules;
use super::*;
use crate::calls::launch::{Again, Launch, Why};
use crate::dispatch::ToWorker;
use crate::store::StoreError;
use crate::store::fault::Step;
use crate::units::Period;

mod kept;

struct Everybody(Policy);

impl Callees for Everybody {
    fn policy(&self, _: &str) -> Option<Policy> {
        Some(self.0)
    }
    fn payload(&self, _: &str) -> Option<u64> {
        Some(1000)
    }
}

/// Calls on a state folder, with a worker that the test plays.
struct Rig {
    folder: tempfile::TempDir,
    calls: Arc<Calls>,
    worker: UnboundedReceiver<ToWorker>,
    now_unix_ms: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
    /// No transaction begins while the test holds it.
    gate: Arc<Mutex<()>>,
}

const QUICK: Policy = Policy {
    retries: 2,
    backoff: Period::millis(1),
    backoff_max: Period::millis(2),
    age: Period::minutes(60),
    in_flight: 4,
};

impl Rig {
    fn new() -> Self {
        Self::on(tempfile::tempdir().expect("a folder"), Settings::default(), 1_700_000_000_000)
    }

    fn on(folder: tempfile::TempDir, settings: Settings, now: u64) -> Self {
        let (now_unix_ms, broken) = (Arc::new(AtomicU64::new(now)), Arc::new(AtomicBool::new(false)));
        let (clock, breaks) = (Arc::clone(&now_unix_ms), Arc::clone(&broken));
        let gate: Arc<Mutex<()>> = Arc::default();
        let entry = Arc::clone(&gate);
        let calls = Calls::open(Parts {
            state_dir: folder.path(),
            settings,
            defaults: QUICK,
            clock: Arc::new(move || clock.load(Ordering::SeqCst)),
            seam: Seam::new(move |step| match step {
                Step::CallsBegin => {
                    drop(entry.lock());
                    Ok(())
                }
                Step::CallsBeforeCommit if breaks.load(Ordering::SeqCst) => {
                    Err(std::io::ErrorKind::StorageFull.into())
                }
                _ => Ok(()),
            }),
        })
        .expect("calls open");
        let (mailbox, worker) = unbounded_channel();
        calls.start(vec![mailbox], Arc::new(Everybody(QUICK))).expect("the runner starts");
        Self { folder, calls, worker, now_unix_ms, broken, gate }
    }

    /// As after a crash: nothing was closed in order. (The threads are ended, so that the files are free.)
    fn restarted(self, now: u64) -> Self {
        self.calls.close();
        Self::on(self.folder, Settings::default(), now)
    }

    async fn submit(&self, body: &'static str) -> CallId {
        self.calls.accept(new(body)).await.expect("accepted").id
    }

    async fn launch(&mut self) -> Launch {
        match self.worker.recv().await {
            Some(ToWorker::Call(launch)) => *launch,
            _ => panic!("the runner is gone"),
        }
    }

    async fn over(&self, id: CallId) -> Ended {
        while let Some(live) = self.calls.live(id).await {
            let _ = live.over.await;
        }
        self.calls.ended(id).expect("readable").expect("it has ended")
    }

    fn nothing_starts(&mut self) -> bool {
        self.worker.try_recv().is_err()
    }
}

fn new(body: &'static str) -> NewCall {
    NewCall {
        function: "f".into(),
        head: Head { method: Method::POST, rest: "/rest?q=1".into(), headers: HeaderMap::new() },
        body: Bytes::from_static(body.as_bytes()),
        callback: None,
        delay: Duration::ZERO,
        key: None,
    }
}

fn response(status: u16, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status.try_into().expect("a status");
    response
}

#[tokio::test]
async fn an_accepted_call_runs_once_as_it_was_sent_and_its_result_is_kept() {
    let mut rig = Rig::new();
    let id = rig.submit("hello").await;
    let mut launch = rig.launch().await;
    assert_eq!(launch.id(), id);
    let request = launch.take_request().expect("a request");
    assert_eq!(request.uri(), "/function/f/rest?q=1");
    launch.answer(response(201, "done")).await;
    let ended = rig.over(id).await;
    assert_eq!((ended.outcome.status, &*ended.outcome.body, ended.attempts), (201, &b"done"[..], 1));
    // After a restart it is known, and doesn't run again.
    let mut rig = rig.restarted(1_700_000_000_000);
    assert_eq!(rig.over(id).await.outcome.status, 201);
    assert!(rig.calls.live(id).await.is_none() && rig.nothing_starts());
}

#[tokio::test]
async fn what_was_not_ended_runs_after_a_restart_in_its_order() {
    let mut rig = Rig::new();
    let ids = [rig.submit("a").await, rig.submit("b").await, rig.submit("c").await];
    // One is running when the node dies.
    let running = rig.launch().await;
    assert_eq!(running.id(), ids[0]);
    std::mem::forget(running);
    let mut rig = rig.restarted(1_700_000_000_000);
    for id in ids {
        let launch = rig.launch().await;
        assert_eq!(launch.id(), id);
        launch.answer(response(200, "")).await;
        rig.over(id).await;
    }
}

#[tokio::test]
async fn failures_are_retried_then_buried_and_can_be_revived() {
    let mut rig = Rig::new();
    let id = rig.submit("x").await;
    for _ in 0..3 {
        rig.launch().await.answer(response(500, "boom")).await;
    }
    let ended = rig.over(id).await;
    assert!(ended.dead && ended.attempts == 3, "{ended:?}");
    let dead = rig.calls.dead(None, u64::MAX, 10).expect("readable");
    assert_eq!((dead.len(), dead[0].reason.as_str(), dead[0].attempts), (1, "boom", 3));
    assert!(rig.calls.dead(Some("other"), u64::MAX, 10).expect("readable").is_empty());
    rig.calls.revive(id).await.expect("it is there");
    assert_eq!(rig.calls.revive(id).await, Err(CallsError::NoSuchDead(id)));
    let launch = rig.launch().await;
    assert_eq!(launch.id(), id);
    launch.answer(response(200, "at last")).await;
    assert!(!rig.over(id).await.dead);
    // A client's fault isn't retried: it is the answer.
    let id = rig.submit("y").await;
    rig.launch().await.answer(response(404, "no")).await;
    let ended = rig.over(id).await;
    assert!(!ended.dead && ended.outcome.status == 404);
}

#[tokio::test]
async fn a_call_that_was_not_begun_has_lost_no_chance() {
    let mut rig = Rig::new();
    let id = rig.submit("x").await;
    for _ in 0..10 {
        drop(rig.launch().await);
    }
    rig.launch().await.answer(response(200, "")).await;
    assert_eq!(rig.over(id).await.attempts, 1);
}

#[tokio::test]
async fn a_call_is_as_old_as_since_it_is_due() {
    const NOW: u64 = 1_700_000_000_000;
    let day_ms = 24 * 3_600_000;
    let rig = Rig::new();
    let delay = Duration::from_millis(day_ms);
    let id = rig.calls.accept(NewCall { delay, ..new("x") }).await.expect("accepted").id;
    // It waits for longer than its age allows, over a restart; then the node has no room for it at first.
    let mut rig = rig.restarted(NOW + day_ms / 2).restarted(NOW + day_ms);
    drop(rig.launch().await);
    rig.launch().await.answer(response(500, "")).await;
    rig.launch().await.answer(response(200, "")).await;
    let ended = rig.over(id).await;
    assert!(!ended.dead && ended.attempts == 2, "{ended:?}");
}

#[tokio::test]
async fn what_the_end_of_the_node_refuses_runs_after_the_restart_however_old_it_is() {
    const NOW: u64 = 1_700_000_000_000;
    let rig = Rig::new();
    let ids = [rig.submit("a").await, rig.submit("b").await];
    let mut rig = rig.restarted(NOW + 48 * 3_600_000);
    let (dropped, refused) = (rig.launch().await, rig.launch().await);
    rig.calls.stop();
    drop(dropped);
    let mut shutting_down = response(503, "");
    shutting_down.extensions_mut().insert(Why { code: "shutting_down", again: Again::Free });
    refused.answer(shutting_down).await;
    let mut rig = rig.restarted(NOW + 48 * 3_600_000);
    for id in ids {
        rig.launch().await.answer(response(200, "")).await;
        assert!(!rig.over(id).await.dead);
    }
}

#[tokio::test]
async fn a_cancelled_call_never_runs() {
    let mut rig = Rig::new();
    let delayed =
        rig.calls.accept(NewCall { delay: Duration::from_secs(600), ..new("x") }).await.expect("accepted").id;
    rig.calls.cancel(delayed).await.expect("it waits");
    assert_eq!(rig.calls.cancel(delayed).await, Err(CallsError::NoSuchCall(delayed)));
    let id = rig.submit("runs").await;
    let launch = rig.launch().await;
    assert_eq!(rig.calls.cancel(id).await, Err(CallsError::Running(id)));
    launch.answer(response(200, "")).await;
    assert_eq!(rig.over(delayed).await.outcome.error.as_deref(), Some("cancelled"));
    let mut rig = rig.restarted(1_800_000_000_000);
    assert!(rig.calls.live(delayed).await.is_none() && rig.nothing_starts());
}

#[tokio::test]
async fn a_full_disk_refuses_loses_nothing_and_heals() {
    let mut rig = Rig::new();
    let (before, delayed) =
        (rig.submit("before").await, NewCall { delay: Duration::from_secs(600), ..new("d") });
    let delayed = rig.calls.accept(delayed).await.expect("accepted").id;
    let launch = rig.launch().await;
    rig.broken.store(true, Ordering::SeqCst);
    assert!(matches!(rig.calls.accept(new("x")).await, Err(CallsError::Unwritable(_))));
    // What can't be written isn't cancelled either.
    assert!(matches!(rig.calls.cancel(delayed).await, Err(CallsError::Unwritable(_))));
    assert!(rig.calls.live(delayed).await.is_some());
    // An end is owed: it is told only once it is written.
    launch.answer(response(200, "kept")).await;
    assert!(rig.calls.live(before).await.is_some());
    assert!(rig.calls.counts().broken);
    rig.broken.store(false, Ordering::SeqCst);
    assert_eq!(&*rig.over(before).await.outcome.body, b"kept");
    rig.calls.cancel(delayed).await.expect("writing works again");
    let id = rig.submit("after").await;
    rig.launch().await.answer(response(200, "")).await;
    rig.over(id).await;
    assert_eq!(rig.calls.counts().bytes, 0);
}

#[tokio::test]
async fn a_key_makes_one_call_of_two_submissions() {
    let mut rig = Rig::new();
    let keyed = |body| NewCall { key: Some(b"k".to_vec()), ..new(body) };
    let first = rig.calls.accept(keyed("x")).await.expect("accepted");
    let second = rig.calls.accept(keyed("x")).await.expect("accepted");
    assert_eq!((second.id, first.repeated, second.repeated), (first.id, false, true));
    assert_eq!(rig.calls.accept(keyed("y")).await, Err(CallsError::KeyReused));
    let other =
        rig.calls.accept(NewCall { function: "g".into(), ..keyed("y") }).await.expect("another function");
    assert!(!other.repeated);
    for _ in 0..2 {
        rig.launch().await.answer(response(200, "")).await;
    }
    rig.over(first.id).await;
    // Also after a restart, and when the call has long ended; until the key is too old.
    let rig = rig.restarted(1_700_000_000_000 + 3_600_000);
    assert_eq!(rig.calls.accept(keyed("x")).await.expect("known").id, first.id);
    rig.now_unix_ms.store(1_700_000_000_000 + 25 * 3_600_000, Ordering::SeqCst);
    assert!(!rig.calls.accept(keyed("x")).await.expect("accepted").repeated);
}

#[tokio::test]
async fn who_leaves_before_the_answer_takes_no_room_along() {
    let mut rig = Rig::new();
    let keyed = |body| NewCall { key: Some(b"k".to_vec()), ..new(body) };
    let first = rig.calls.accept(keyed("x")).await.expect("accepted").id;
    let (gate, calls) = (Arc::clone(&rig.gate), Arc::clone(&rig.calls));
    let leave = |new: NewCall| {
        let mut submission = std::pin::pin!(calls.accept(new));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(submission.as_mut().poll(&mut context).is_pending(), "nothing is written yet");
    };
    // A repetition and another request under its key; then one that can't be written.
    {
        let _held = gate.lock();
        leave(keyed("x"));
        leave(keyed("y"));
    }
    assert_eq!(rig.calls.accept(keyed("y")).await, Err(CallsError::KeyReused));
    {
        let _held = gate.lock();
        rig.broken.store(true, Ordering::SeqCst);
        leave(new("z"));
    }
    assert!(matches!(rig.calls.accept(new("z")).await, Err(CallsError::Unwritable(_))));
    rig.broken.store(false, Ordering::SeqCst);
    rig.launch().await.answer(response(200, "")).await;
    rig.over(first).await;
    let room = &rig.calls.room;
    assert_eq!((room.calls.load(Ordering::SeqCst), room.bytes.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test]
async fn a_clock_that_is_set_back_an_hour_stalls_nothing() {
    const NOW: u64 = 1_700_000_000_000;
    let mut rig = Rig::new();
    let id = rig.submit("x").await;
    let launch = rig.launch().await;
    rig.now_unix_ms.store(NOW - 3_600_000, Ordering::SeqCst);
    launch.answer(response(500, "")).await;
    // The retry comes by the clock that doesn't jump.
    rig.launch().await.answer(response(200, "")).await;
    rig.over(id).await;
    // Over a restart, a wait is never longer than it was to begin with.
    let wait = NewCall { delay: Duration::from_secs(60), ..new("later") };
    let later = rig.calls.accept(wait).await.expect("accepted").id;
    let rig = rig.restarted(NOW - 2 * 3_600_000);
    let due_in = rig.calls.live(later).await.expect("it waits").due_in;
    assert!(due_in <= Duration::from_secs(60), "{due_in:?}");
    // And one that is set forward doesn't make it old.
    let mut rig = rig.restarted(NOW);
    rig.now_unix_ms.store(NOW + 3_600_000, Ordering::SeqCst);
    let again = rig.submit("young").await;
    rig.launch().await.answer(response(500, "")).await;
    rig.launch().await.answer(response(200, "")).await;
    assert!(!rig.over(again).await.dead);
}

#[tokio::test]
async fn what_waits_is_bounded_by_count_and_by_bytes() {
    let mut settings = Settings { calls: 2, bytes: 100, ..Settings::default() };
    settings.memory = 0; // bodies are read from the disk again
    let mut rig = Rig::on(tempfile::tempdir().expect("a folder"), settings, 1);
    let put_off = |body: &'static str| NewCall { delay: Duration::from_secs(600), ..new(body) };
    let first = rig.calls.accept(put_off("a")).await.expect("accepted").id;
    let long: &'static str = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";
    assert!(matches!(rig.calls.accept(put_off(long)).await, Err(CallsError::TooMuch { .. })));
    // So are heads.
    let mut headers = HeaderMap::new();
    headers.insert("x-long", long.parse().expect("text"));
    let head = Head { headers, ..new("").head };
    let long_head = rig.calls.accept(NewCall { head, ..put_off("") }).await;
    assert!(matches!(long_head, Err(CallsError::TooMuch { .. })));
    rig.calls.accept(put_off("b")).await.expect("accepted");
    assert_eq!(rig.calls.accept(put_off("c")).await, Err(CallsError::Full { waiting: 2 }));
    rig.calls.cancel(first).await.expect("it waits");
    let id = rig.submit("now").await;
    let mut launch = rig.launch().await;
    let body = http_body_util::BodyExt::collect(launch.take_request().expect("a request").into_body()).await;
    assert_eq!(body.expect("no error").to_bytes(), "now");
    launch.answer(response(200, "")).await;
    rig.over(id).await;
}

#[test]
fn the_longest_body_can_be_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = database::path(folder.path());
    drop(Database::open(&path).expect("opens"));
    let database = rusqlite::Connection::open(&path).expect("opens");
    let fits = |bytes: u64| {
        // (Nothing is written, and no memory taken.)
        database.query_row("SELECT length(zeroblob(?1))", [bytes], |row| row.get::<_, u64>(0)).is_ok()
    };
    let beside = 1 << 20; // a head, a URL
    assert!(fits(BODY_MAX + beside) && !fits(1 << 30), "what may be sent may be more");
}

/// Takes callbacks, and says what each of them brought.
fn receiver(listener: std::net::TcpListener) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (mut reader, mut length) = (BufReader::new(stream), None);
            for line in reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = Some(value.parse().expect("a number"));
                }
            }
            // A node that was ended had no more than connected.
            let Some(length) = length else { continue };
            let mut body = vec![0; length];
            let whole = reader.read_exact(&mut body).is_ok();
            let _ = reader.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
            if whole && sender.send(body).is_err() {
                return;
            }
        }
    });
    received
}

#[tokio::test]
async fn an_answer_holds_room_until_its_callback_is_made() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let mut settings = Settings { bytes: 100, ..Settings::default() };
    settings.callback.rules = Rules::parse(&["127.0.0.1".into()]).expect("a rule");
    let mut rig = Rig::on(tempfile::tempdir().expect("a folder"), settings.clone(), 1);
    let callback = Some(url);
    let id = rig.calls.accept(NewCall { callback, ..new("x") }).await.expect("accepted").id;
    let answer: &'static str = "0123456789".repeat(30).leak();
    rig.launch().await.answer(response(200, answer)).await;
    rig.over(id).await;
    // Nobody has taken it: it is in the way of others, after a restart too.
    assert_eq!(rig.calls.accept(new("y")).await, Err(CallsError::TooMuch { bytes: 300 }));
    rig.calls.close();
    let mut rig = Rig::on(rig.folder, settings, 1);
    assert_eq!(rig.calls.accept(new("y")).await, Err(CallsError::TooMuch { bytes: 300 }));
    assert_eq!(receiver(listener).recv().expect("it comes"), answer.as_bytes());
    while rig.calls.counts().callbacks == 0 {
        // Each look is a word with the runner.
        assert!(rig.calls.live(id).await.is_none());
    }
    assert_eq!(rig.calls.room.calls.load(Ordering::SeqCst), 0);
    let id = rig.submit("y").await;
    rig.launch().await.answer(response(200, "")).await;
    rig.over(id).await;
}

#[tokio::test]
async fn an_answer_that_is_too_long_to_be_stored_is_cut_for_its_callback_as_well() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let mut settings = Settings { result_max: 10, ..Settings::default() };
    settings.callback.rules = Rules::parse(&["127.0.0.1".into()]).expect("a rule");
    settings.callback.body_max = 20;
    let mut rig = Rig::on(tempfile::tempdir().expect("a folder"), settings, 1);
    let id = rig.calls.accept(NewCall { callback: Some(url), ..new("x") }).await.expect("accepted").id;
    rig.launch().await.answer(response(200, "a hundred of these is what it says")).await;
    let kept = rig.over(id).await.outcome;
    assert_eq!((&*kept.body, kept.truncated), (&b"a hundred "[..], true));
    assert_eq!(receiver(listener).recv().expect("it comes"), b"a hundred of these i");
}

#[tokio::test]
async fn a_file_of_another_program_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(database::path(folder.path()), b"this is no database, whatever its name says")
        .expect("written");
    let error = Calls::open(Parts {
        state_dir: folder.path(),
        settings: Settings::default(),
        defaults: QUICK,
        clock: Arc::new(|| 0),
        seam: Seam::default(),
    });
    assert!(matches!(error.err(), Some(StoreError::Corrupt { .. })));
}
