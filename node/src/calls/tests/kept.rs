//! How much is remembered of what is over, and for how long.

use super::*;

/// The `n`th end, in second `n`, with an answer of a thousand bytes.
fn ended(n: u64) -> Ended {
    Ended {
        id: CallId::new(7, n),
        function: "f".into(),
        outcome: Outcome {
            status: 200,
            headers: HeaderMap::new(),
            body: Bytes::from(vec![b'x'; 1000]),
            truncated: false,
            error: None,
            took: Duration::ZERO,
        },
        attempts: 1,
        accepted_unix_ms: 0,
        ended_unix_ms: n * 1000,
        dead: false,
    }
}

/// Bounds that nothing here comes near to.
const PLENTY: database::Keep = database::Keep {
    count: 1 << 40,
    bytes: 1 << 40,
    age: Duration::from_secs(1 << 30),
    dead_count: 1 << 40,
    key_age: Duration::from_secs(1 << 30),
};

#[test]
fn what_is_over_is_forgotten_by_count_age_and_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut database = Database::open(&database::path(folder.path())).expect("opens");
    let mut batch = database.begin().expect("begins");
    (1..=200).for_each(|n| batch.end(&ended(n)).expect("written"));
    batch.commit().expect("commits");
    let reader = Reader::open(&database::path(folder.path())).expect("opens");
    let mut left = |count, bytes, age_s, now_s: u64| {
        let keep = database::Keep {
            count,
            bytes,
            age: Duration::from_secs(age_s),
            dead_count: 10,
            key_age: Duration::from_secs(1),
        };
        let mut batch = database.begin().expect("begins");
        batch.trim(&keep, now_s * 1000).expect("trims");
        batch.commit().expect("commits");
        let known: HashMap<u64, bool> =
            (1..=200).map(|n| (n, reader.ended(CallId::new(7, n)).expect("readable").is_some())).collect();
        (known.values().filter(|known| **known).count(), known[&200])
    };
    assert_eq!(left(150, u64::MAX >> 1, 1 << 30, 200), (150, true));
    assert_eq!(left(150, u64::MAX >> 1, 99, 200), (100, true));
    let (count, newest) = left(150, 50_000, 1 << 30, 200);
    assert!(count <= 50_000 / 1000 && count > 0 && newest, "{count}");
    assert_eq!(left(150, u64::MAX >> 1, 1, 10_000), (0, false));
}

#[test]
fn no_end_goes_for_those_that_went_before_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut database = Database::open(&database::path(folder.path())).expect("opens");
    let now = Instant::now();
    let call = |n: u64| Call {
        id: CallId::new(7, n),
        seq: n,
        function: "f".into(),
        head: Arc::new(new("").head),
        body: None,
        body_len: 0,
        callback: None,
        accepted_unix_ms: 0,
        ripe_at: now,
        due: now,
        failures: 0,
        refusals: 0,
    };
    // The first is left alone; all others are tried again by hand, and die again, over and over.
    let mut batch = database.begin().expect("begins");
    for n in 1..=3 {
        batch.insert(&call(n), Duration::ZERO).expect("written");
        batch.bury(n, &ended(n)).expect("buried");
        batch.end(&ended(n)).expect("written");
    }
    for n in [2, 3].repeat(10) {
        batch.revive(CallId::new(7, n), n, 0, now).expect("written").expect("it is there");
        batch.bury(n, &ended(n)).expect("buried");
        batch.end(&ended(n)).expect("written");
    }
    let keep = database::Keep { dead_count: 3, count: 3, ..PLENTY };
    assert_eq!(batch.trim(&keep, 3000).expect("trims").dead, 0);
    batch.commit().expect("commits");
    let reader = Reader::open(&database::path(folder.path())).expect("opens");
    assert_eq!(reader.dead_count().expect("readable"), 3);
    assert!((1..=3).all(|n| reader.ended(CallId::new(7, n)).expect("readable").is_some()));
    // One too many, and the oldest goes.
    let mut batch = database.begin().expect("begins");
    let keep = database::Keep { dead_count: 2, count: 2, ..PLENTY };
    assert_eq!(batch.trim(&keep, 3000).expect("trims").dead, 1);
    batch.commit().expect("commits");
    assert!(reader.ended(CallId::new(7, 1)).expect("readable").is_none());
    assert!(
        reader
            .dead(None, u64::MAX, 9)
            .expect("readable")
            .iter()
            .all(|dead| dead.call_id != call(1).id.to_string())
    );
}

#[test]
fn what_gets_too_old_next_is_known() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut database = Database::open(&database::path(folder.path())).expect("opens");
    let second = Duration::from_secs(1);
    let keep = database::Keep { age: 10 * second, key_age: 20 * second, ..PLENTY };
    let mut batch = database.begin().expect("begins");
    let again_in = |batch: &mut database::Batch<'_>, now_s: u64| {
        batch.trim(&keep, now_s * 1000).expect("trims").again_in
    };
    assert_eq!(again_in(&mut batch, 1), None);
    let key = Key { key: b"k".to_vec(), digest: [0; 32] };
    batch.know("f", &key, CallId::new(7, 1), 1000, keep.key_age).expect("written");
    [1, 3].into_iter().for_each(|n| batch.end(&ended(n)).expect("written"));
    assert_eq!(again_in(&mut batch, 3), Some(8 * second), "the first end");
    assert_eq!(again_in(&mut batch, 12), Some(second), "the second");
    assert_eq!(again_in(&mut batch, 14), Some(7 * second), "the key");
    assert_eq!(again_in(&mut batch, 22), None);
}

impl Rig {
    /// Returns when the writer has done what it had to do.
    async fn settle(&self) {
        assert!(!self.calls.remove_trigger("none").await.expect("asked"));
    }
}

#[tokio::test]
async fn results_have_no_more_bytes_than_they_may() {
    let keep = database::Keep { bytes: 64 * 1024, ..PLENTY };
    let settings = Settings { keep, ..Settings::default() };
    let mut rig = Rig::on(tempfile::tempdir().expect("a folder"), settings, 1);
    let answer: &'static str = "0123456789".repeat(1000).leak();
    let mut ids = Vec::new();
    for n in 0..20 {
        let id = rig.submit("x").await;
        ids.push(id);
        let mut response = response(200, if n % 2 == 0 { answer } else { "" });
        response.headers_mut().insert("x-answer", HeaderValue::from_static(answer));
        rig.launch().await.answer(response).await;
        while let Some(live) = rig.calls.live(id).await {
            let _ = live.over.await;
        }
        rig.settle().await;
        let known = ids.iter().filter_map(|id| rig.calls.ended(*id).expect("readable"));
        let bytes: usize =
            known.map(|ended| ended.outcome.body.len() + ended.outcome.headers["x-answer"].len()).sum();
        assert!(bytes <= 64 * 1024, "{bytes} after {n}");
        assert!(rig.calls.ended(id).expect("readable").is_some(), "the newest is there");
    }
}

#[tokio::test]
async fn what_is_cancelled_is_forgotten_as_well() {
    const CALLS: u64 = 1100;
    let keep = database::Keep { count: 10, ..PLENTY };
    let settings = Settings { keep, ..Settings::default() };
    let rig = Rig::on(tempfile::tempdir().expect("a folder"), settings, 1);
    let delay = Duration::from_secs(600);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CALLS {
        let calls = Arc::clone(&rig.calls);
        tasks.spawn(async move {
            let id = calls.accept(NewCall { delay, ..new("x") }).await.expect("accepted").id;
            calls.cancel(id).await.expect("it waits");
            id
        });
    }
    let ids = tasks.join_all().await;
    rig.settle().await;
    let known = ids.iter().filter(|id| rig.calls.ended(**id).expect("readable").is_some()).count() as u64;
    // Of the first 1024 ten are left.
    assert!(known <= 10 + CALLS - 1024, "{known}");
}
