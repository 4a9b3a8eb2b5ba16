use super::*;
use crate::activation::Start;
use crate::units::Period;

fn record(n: u64, at: u64, status: u16) -> Record {
    Record {
        call_id: CallId::new(9, n),
        version: 1,
        started_unix_ms: at,
        start: Some(Start::Warm),
        queue_ns: 0,
        start_ns: 0,
        exec_ns: 1_000_000,
        cpu_ns: Some(500_000),
        memory_bytes: Some(1 << 20),
        status,
        error: (status == 500).then_some("function_failed"),
        steps: None,
    }
}

fn ids(list: &[StoredRecord]) -> Vec<u64> {
    list.iter().map(|stored| stored.record.call_id.halves().1).collect()
}

#[test]
fn records_and_lines_are_found_by_id_function_status_and_time_and_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let recorder = Recorder::open(folder.path(), Settings::default()).expect("opens");
    let now = unix_ms();
    for n in 0..10 {
        let function = if n % 2 == 0 { "even" } else { "odd" };
        recorder.line(function, Some(CallId::new(9, n)), now + n, Stream::Stdout, &format!("line of {n}"));
        recorder.record(function, &record(n, now + n, if n == 3 { 500 } else { 200 }));
        if n % 4 == 0 {
            recorder.flush(); // several batches
        }
    }
    let check = |recorder: &Recorder| {
        let list = |filter: Filter| ids(&recorder.list(&filter, 100).expect("readable"));
        assert_eq!(list(Filter::default()), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(list(Filter { function: Some("odd".into()), ..Filter::default() }), [9, 7, 5, 3, 1]);
        assert_eq!(list(Filter { status: Some(Status::Failed), ..Filter::default() }), [3]);
        assert_eq!(list(Filter { status: "function_failed".parse().ok(), ..Filter::default() }), [3]);
        assert_eq!(list(Filter { status: "200".parse().ok(), ..Filter::default() }).len(), 9);
        let window =
            Filter { since_unix_ms: Some(now + 4), until_unix_ms: Some(now + 6), ..Filter::default() };
        assert_eq!(list(window), [5, 4]);
        assert_eq!(ids(&recorder.list(&Filter::default(), 3).expect("readable")), [9, 8, 7]);
        let (records, lines) = recorder.call(CallId::new(9, 3)).expect("readable");
        assert_eq!((records.len(), records[0].error.as_deref()), (1, Some("function_failed")));
        assert_eq!((lines.len(), lines[0].text.as_str()), (1, "line of 3"));
        assert_eq!(recorder.call(CallId::new(9, 77)).expect("readable"), (vec![], vec![]));
    };
    check(&recorder);
    recorder.close();
    check(&Recorder::open(folder.path(), Settings::default()).expect("opens again"));
    assert!("Failed!".parse::<Status>().is_err());
}

#[test]
fn what_is_kept_is_bounded_by_count_bytes_and_age() {
    let of = |count, bytes, age| Settings {
        keep: Keep { count, bytes, age: Period::seconds(age).as_duration() },
        ..Settings::default()
    };
    let now = unix_ms();
    for (settings, age_s) in
        [(of(50, 1 << 30, 3600), 0), (of(1 << 30, 10_000, 3600), 0), (of(1 << 30, 1 << 30, 60), 600)]
    {
        let folder = tempfile::tempdir().expect("a folder");
        let recorder = Recorder::open(folder.path(), settings).expect("opens");
        for n in 0..200 {
            recorder.record("f", &record(n, now - age_s * 1000, 200));
            recorder.flush();
        }
        recorder.record("f", &record(200, now, 200));
        let left = recorder.list(&Filter::default(), 1000).expect("readable");
        assert_eq!(ids(&left)[0], 200, "the newest is there");
        assert!(left.len() < 100, "{}", left.len());
        let counts = recorder.counts();
        assert!(counts.kept <= settings.keep.count && counts.kept_bytes <= settings.keep.bytes, "{counts:?}");
        recorder.close();
    }
}

#[test]
fn what_the_disk_does_not_take_is_dropped_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = Settings { buffer: 64 * 1024, ..Settings::default() };
    let recorder = Recorder::open(folder.path(), settings).expect("opens");
    let blocker = rusqlite::Connection::open(database::path(folder.path())).expect("opens");
    blocker.execute_batch("BEGIN IMMEDIATE").expect("holds the writer up");
    for n in 0..10_000 {
        recorder.record("f", &record(n, unix_ms(), 200));
    }
    assert!(recorder.counts().dropped > 0);
    blocker.execute_batch("ROLLBACK").expect("lets it go on");
    recorder.flush();
    recorder.record("f", &record(20_000, unix_ms(), 200));
    let counts = |recorder: &Recorder| {
        recorder.flush();
        recorder.counts()
    };
    let counts = counts(&recorder);
    assert_eq!(counts.written + counts.dropped, 10_001, "{counts:?}");
    recorder.close();
}

#[test]
fn answers_are_found_by_their_call_whatever_batch_they_are_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let recorder =
        Recorder::open(folder.path(), Settings { result_max: 10, ..Settings::default() }).expect("opens");
    assert_eq!((recorder.result_max(), Recorder::off().result_max()), (10, 0));
    let result = |n: u64, body: &[u8]| StoredResult {
        function: "f".into(),
        call: CallId::new(9, n),
        at_unix_ms: unix_ms(),
        status: 200,
        truncated: false,
        content_type: String::new(),
        body: body.to_vec(),
    };
    recorder.result(&result(1, b"first attempt"));
    recorder.flush(); // its record comes with another batch
    recorder.record("f", &record(1, unix_ms(), 500));
    recorder.result(&result(1, b"second"));
    recorder.record("f", &record(1, unix_ms(), 200));
    let found = recorder.answer(CallId::new(9, 1)).expect("readable").expect("kept");
    assert_eq!(found.body, b"second");
    assert_eq!(recorder.call(CallId::new(9, 1)).expect("readable").0.len(), 2, "answers are no records");
    assert_eq!(recorder.answer(CallId::new(9, 2)).expect("readable"), None);
    recorder.close();
}

#[test]
fn a_damaged_file_is_put_aside() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(database::path(folder.path()), [b'x'; 5000]).expect("written");
    let recorder = Recorder::open(folder.path(), Settings::default()).expect("opens");
    recorder.record("f", &record(1, unix_ms(), 200));
    assert_eq!(recorder.list(&Filter::default(), 9).expect("readable").len(), 1);
    assert!(folder.path().join("activations.db.damaged").exists());
    recorder.close();
}

#[test]
fn with_a_count_of_zero_nothing_is_kept_and_no_file_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let keep = Keep { count: 0, ..Settings::default().keep };
    let recorder = Recorder::open(folder.path(), Settings { keep, ..Settings::default() }).expect("opens");
    recorder.record("f", &record(1, unix_ms(), 200));
    recorder.flush();
    assert!(recorder.list(&Filter::default(), 9).expect("readable").is_empty());
    assert!(std::fs::read_dir(folder.path()).expect("readable").next().is_none());
    recorder.close();
}
