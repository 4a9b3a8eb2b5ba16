use super::*;
use crate::api::{Calls, Instances, ProcessUsage};

pub(in crate::cli::top) fn usage(name: &str, ok: u64, failed: u64, cpu_ms: f64, exec: [u64; 3]) -> Usage {
    Usage {
        name: name.into(),
        is_chain: false,
        instances: Instances { idle: 1, busy: 2, starting: 0 },
        queued: 4,
        calls: Calls { ok, failed, cold: 0, forked: ok / 2, warm: ok - ok / 2 },
        exec: exec.to_vec(),
        processes: ProcessUsage { cpu_ms, resident_bytes: 5 << 20 },
    }
}

pub(in crate::cli::top) fn view(uptime_ms: u64, all: Vec<Usage>) -> UsageView {
    UsageView {
        at_unix_ms: 0,
        uptime_ms,
        transport: "sockmap".into(),
        cpus: 2,
        spryd: ProcessUsage { cpu_ms: uptime_ms as f64 / 2.0, resident_bytes: 30 << 20 },
        bounds_ms: vec![0.1, 1.0],
        all,
    }
}

/// `busy` had 100 calls in the two seconds between, 10 of them failed; `still` had none; `new` wasn't there before.
pub(in crate::cli::top) fn two_looks() -> Model {
    let mut model = Model::new(Column::Rate, String::new());
    let still = || usage("still", 7, 0, 5.0, [7, 7, 7]);
    model.feed(view(1000, vec![usage("busy", 10, 0, 0.0, [10, 10, 10]), still()]));
    let busy = usage("busy", 100, 10, 1000.0, [60, 105, 110]);
    model.feed(view(3000, vec![busy, still(), usage("new", 4, 0, 0.0, [4, 4, 4])]));
    model
}

fn names(model: &Model) -> Vec<String> {
    model.rows().into_iter().map(|row| row.name).collect()
}

fn press(model: &mut Model, code: KeyCode) -> Done {
    model.key(KeyEvent::from(code))
}

#[test]
fn a_row_is_what_happened_between_two_looks() {
    let model = two_looks();
    let rows = model.rows();
    assert_eq!(names(&model), ["busy", "new", "still"]);
    let busy = &rows[0];
    assert_eq!((busy.rate, busy.failed, busy.cpu_percent), (50.0, 5.0, 50.0));
    assert_eq!((busy.p50_ms, busy.p99_ms), (Some(0.1), Some(f64::INFINITY)));
    assert_eq!(busy.spread, [50, 45, 5]);
    assert_eq!((rows[1].rate, rows[1].p99_ms), (2.0, Some(0.1)));
    assert_eq!((rows[2].rate, rows[2].p50_ms), (0.0, None));
}

#[test]
fn after_a_restart_of_spryd_counters_begin_anew() {
    let mut model = two_looks();
    model.feed(view(500, vec![usage("busy", 3, 0, 1.0, [3, 3, 3])]));
    assert_eq!(model.rows()[0].spread, [3, 0, 0]);
}

#[test]
fn rows_are_sorted_filtered_and_entered() {
    let mut model = two_looks();
    press(&mut model, KeyCode::Char('r'));
    assert_eq!(names(&model), ["still", "new", "busy"]);
    while model.sort().0 != Column::Name {
        press(&mut model, KeyCode::Char('s'));
    }
    press(&mut model, KeyCode::Char('r'));
    assert_eq!(names(&model), ["busy", "new", "still"]);
    press(&mut model, KeyCode::Char('/'));
    for letter in "s".chars() {
        // (Keys are letters while the filter is typed.)
        assert_eq!(press(&mut model, KeyCode::Char(letter)), Done::No);
    }
    assert_eq!(names(&model), ["busy", "still"]);
    press(&mut model, KeyCode::Char('q'));
    assert_eq!(names(&model), Vec::<String>::new());
    press(&mut model, KeyCode::Backspace);
    press(&mut model, KeyCode::Enter);
    press(&mut model, KeyCode::Down);
    press(&mut model, KeyCode::Down);
    press(&mut model, KeyCode::Enter);
    assert_eq!(model.wants_calls(), Some("still"));
    model.feed_calls(Vec::new());
    assert_eq!(model.wants_calls(), None);
    assert_eq!(
        model.inside().map(|(name, row)| (name.to_owned(), row.is_some())),
        Some(("still".into(), true))
    );
    press(&mut model, KeyCode::Esc);
    assert!(model.inside().is_none());
    assert_eq!(press(&mut model, KeyCode::Char('q')), Done::Yes);
}
