//! The API's types as text for people.

use super::table::{Table, ago, instant, pairs, span};
use spry_wire::freeze::{Freeze, Frozen};

use crate::api::{
    ActivationView, Calls, FunctionState, FunctionView, Installed, Instances, LayerView, LogLine, LogStream,
    Rewound, SchedulerView, StatusView, ZygoteStart, ZygoteState,
};
use crate::units::Size;

pub(super) fn functions(list: &[FunctionView]) -> String {
    if list.is_empty() {
        return "no functions; `spry deploy PATH` deploys one\n".into();
    }
    let mut table = Table::new([
        "NAME", ">VERSION", "RUNTIME", "STATE", ">IDLE", ">BUSY", ">QUEUED", ">OK", ">FAILED", "DEPLOYED",
    ]);
    for view in list {
        table.row([
            view.name.clone(),
            view.version.to_string(),
            view.runtime.to_string(),
            state(view.state).into(),
            view.instances.idle.to_string(),
            view.instances.busy.to_string(),
            view.queued.to_string(),
            view.calls.ok.to_string(),
            view.calls.failed.to_string(),
            ago(view.deployed_unix_ms),
        ]);
    }
    table.print()
}

pub(super) fn function(view: &FunctionView) -> String {
    let (limits, scale) = (&view.limits, &view.scale);
    let mut rows = vec![
        ("name", view.name.clone()),
        ("version", format!("{}, deployed {}", view.version, instant(view.deployed_unix_ms))),
        ("code", format!("sha256 {}", view.sha256)),
        ("runtime", view.runtime.to_string()),
        ("handler", view.handler.clone()),
        ("state", state(view.state).into()),
    ];
    if let Some(problem) = &view.problem {
        rows.push(("problem", problem.replace('\n', "\n         ")));
    }
    rows.extend([
        (
            "zygote",
            view.start.as_ref().map_or_else(|| zygote(view.zygote).into(), |start| begun(view, start)),
        ),
        ("memory", view.frozen.as_ref().map_or("-".into(), frozen)),
        ("instances", instances(view.instances)),
        ("queued", view.queued.to_string()),
        ("calls", calls(&view.calls)),
        ("isolation", isolation(view)),
        (
            "limits",
            format!(
                "memory {}, cpu {}, timeout {}, payload {}, processes {}, tmpfs {}",
                limits.memory, limits.cpu, limits.timeout, limits.payload, limits.processes, limits.tmpfs
            ),
        ),
        ("scale", format!("{} to {}, idle ones end after {}", scale.min, scale.max, scale.idle)),
        ("env", if view.env.is_empty() { "-".into() } else { view.env.join(", ") }),
        ("egress", view.egress.to_string()),
    ]);
    let listed = |names: Vec<&str>| names.join(", ");
    if !view.packages.is_empty() {
        rows.push(("packages", listed(view.packages.iter().map(|name| name.as_str()).collect())));
    }
    if let Some(Installed { distributions, whole }) = &view.installed {
        let how = match whole {
            None => distributions.join(", "),
            Some(why) => format!("in a folder of their own: {why}"),
        };
        rows.push(("installed", how));
    }
    let kept = view.versions.iter().map(|one| {
        let note = if one.current { " (serves)" } else { "" };
        format!("{}{note}, {}, {}", one.version, one.size.rounded(), instant(one.deployed_unix_ms))
    });
    let kept: Vec<String> = kept.collect();
    if kept.len() > 1 {
        rows.push(("versions", kept.join("\n           ")));
    }
    if !view.secrets.is_empty() {
        rows.push(("secrets", listed(view.secrets.iter().map(|name| name.as_str()).collect())));
    }
    pairs(&rows)
}

pub(super) fn status(view: &StatusView) -> String {
    let mut rows = vec![
        ("spryd", format!("{}, pid {}, up {}", view.version, view.pid, span(view.uptime_ms))),
        ("listen", format!("{}://{}", if view.tls { "https" } else { "http" }, view.listen)),
        ("state", view.state_dir.clone()),
        ("transport", view.transport.clone()),
    ];
    for passed_over in &view.passed_over {
        rows.push(("", format!("not {}: {}", passed_over.name, passed_over.why)));
    }
    rows.extend([
        ("workers", view.workers.to_string()),
        ("cgroup", view.cgroup.clone()),
        ("scheduler", scheduler(&view.scheduler)),
        ("signals", view.scheduler.signals.clone()),
        ("functions", view.functions.to_string()),
        ("instances", instances(view.instances)),
        ("queued", view.queued.to_string()),
        ("memory", memory(view)),
        ("keepalive", view.keepalive.clone()),
        ("layers", layers(view)),
    ]);
    rows.extend(view.layers.iter().map(|one| ("", layer(one))));
    rows.push(("calls", calls(&view.calls)));
    let (records, bytes) = (&view.records, Size::bytes(view.records.kept_bytes));
    rows.push((
        "records",
        format!("{} kept ({}), {} dropped", records.kept, bytes.rounded(), records.dropped),
    ));
    let later = &view.later;
    rows.push((
        "asynchronous",
        format!(
            "{} queued, {} delayed, {} running, {} dead",
            later.queued, later.delayed, later.running, later.dead
        ),
    ));
    if later.broken {
        rows.push(("", "calls can't be written now: is the disk full?".into()));
    }
    pairs(&rows)
}

fn memory(view: &StatusView) -> String {
    let (budget, promised) = (view.memory_budget.as_bytes(), view.memory_promised.as_bytes());
    let free = Size::bytes(budget.saturating_sub(promised)).rounded();
    format!("{} promised of {}, {free} free", view.memory_promised.rounded(), view.memory_budget.rounded())
}

fn scheduler(view: &SchedulerView) -> String {
    let held = if view.held > 0 { format!("; {} kept back", view.held) } else { String::new() };
    format!("{} by {}: {}{held}", view.policy, view.backend, view.how)
}

pub(super) fn activations(list: &[ActivationView]) -> String {
    if list.is_empty() {
        return "no calls are remembered\n".into();
    }
    let mut table = Table::new([
        "CALL",
        "FUNCTION",
        "STARTED",
        "START",
        ">STATUS",
        ">QUEUE ms",
        ">START ms",
        ">EXEC ms",
        "ERROR",
    ]);
    for view in list {
        table.row([
            view.call_id.clone(),
            view.function.clone(),
            instant(view.started_unix_ms),
            view.start.map_or("-", |start| start.as_str()).into(),
            view.status.to_string(),
            format!("{:.2}", view.queue_ms),
            format!("{:.2}", view.start_ms),
            format!("{:.2}", view.exec_ms),
            view.error.clone().unwrap_or_default(),
        ]);
    }
    table.print()
}

pub(super) fn activation(view: &ActivationView) -> String {
    let mut rows = vec![
        ("call", view.call_id.clone()),
        ("function", format!("{} version {}", view.function, view.version)),
        ("started", instant(view.started_unix_ms)),
        ("start", view.start.map_or("-", |start| start.as_str()).into()),
        ("status", view.status.to_string()),
    ];
    if let Some(error) = &view.error {
        rows.push(("error", error.clone()));
    }
    if let Some(later) = &view.later {
        let due = later.due_ms.map(|ms| format!(", due in {}", span(ms))).unwrap_or_default();
        let attempts = later.attempts;
        rows.push(("asynchronous", format!("{}, {attempts} attempts{due}", later.state.as_str())));
    }
    let times = [("queue", view.queue_ms), ("start", view.start_ms), ("exec", view.exec_ms)];
    let times: Vec<String> = times.iter().map(|(name, ms)| format!("{name} {ms:.2} ms")).collect();
    rows.push(("time", times.join(", ")));
    if let Some(cpu_ms) = view.cpu_ms {
        rows.push(("cpu", format!("{cpu_ms:.2} ms")));
    }
    if let Some(peak) = view.memory_peak {
        rows.push(("memory", format!("{} at most", peak.rounded())));
    }
    for step in &view.steps {
        let how = if step.hop { "to " } else { "" };
        rows.push(("", format!("{how}{} {:.3} ms", step.step, step.ms)));
    }
    pairs(&rows) + &lines(&view.logs)
}

pub(super) fn lines(lines: &[LogLine]) -> String {
    let one = |line: &LogLine| {
        let stream = match line.stream {
            LogStream::Stdout => "out",
            LogStream::Stderr => "err",
        };
        // A function must not steer the terminal of whoever reads its output.
        let text: String =
            line.text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
        format!("{} {stream} {text}\n", instant(line.at_unix_ms))
    };
    lines.iter().map(one).collect()
}

pub(super) fn state(state: FunctionState) -> &'static str {
    match state {
        FunctionState::Ready => "ready",
        FunctionState::Starting => "starting",
        FunctionState::Broken => "broken",
        FunctionState::Removing => "removing",
    }
}

/// How its requests are kept apart, and how that is done.
fn isolation(view: &FunctionView) -> String {
    match &view.rewound {
        None => view.isolation.to_string(),
        Some(Rewound { why: None, rewinds, replaced }) => format!(
            "{}, instances are rewound in place ({rewinds} times, {replaced} replaced)",
            view.isolation
        ),
        Some(Rewound { why: Some(why), .. }) => {
            format!("{}, an instance each, which isn't rewound: {why}", view.isolation)
        }
    }
}

/// What a zygote has done to its memory.
fn frozen(frozen: &Frozen) -> String {
    let mib = frozen.bytes as f64 / f64::from(1 << 20);
    let what = match frozen.how {
        Freeze::Off | Freeze::Auto => return format!("not frozen: {}", frozen.why.as_deref().unwrap_or("-")),
        Freeze::Memfd => format!("frozen, {mib:.1} MiB in {} pieces", frozen.pieces),
        Freeze::Huge => format!("{mib:.0} MiB of huge pages"),
    };
    let took = format!("{what}, took {:.1} ms", frozen.took_us as f64 / 1e3);
    frozen.why.as_ref().map_or(took.clone(), |why| format!("{took}; {why}"))
}

/// How a zygote began, and what that saved.
fn begun(view: &FunctionView, start: &ZygoteStart) -> String {
    let state = zygote(view.zygote);
    let how = match (start.layer_modules, start.alone_ms) {
        (None, _) => return format!("{state}, began by itself in {:.0} ms{}", start.took_ms, problem(start)),
        (Some(modules), alone_ms) => {
            let alone =
                alone_ms.map(|alone_ms| format!(" (by itself: {alone_ms:.0} ms)")).unwrap_or_default();
            format!("began from a layer of {modules} modules in {:.0} ms{alone}", start.took_ms)
        }
    };
    format!("{state}, {how}")
}

fn problem(start: &ZygoteStart) -> String {
    start.problem.as_ref().map(|problem| format!("; {problem}")).unwrap_or_default()
}

/// A layer, or why there is none, on a line.
fn layer(layer: &LayerView) -> String {
    let functions = layer.functions.join(", ");
    let packages = match layer.packages.is_empty() {
        true => "the standard library".to_owned(),
        false => layer.packages.join(", "),
    };
    match &layer.problem {
        Some(problem) => format!("none of {packages} for {functions}: {problem}"),
        None => format!(
            "{} modules of {packages} for {functions}: {}, made in {:.0} ms",
            layer.modules,
            layer.memory.rounded(),
            layer.took_ms
        ),
    }
}

/// All of them.
fn layers(view: &StatusView) -> String {
    if view.layers_memory == Size::default() {
        return "switched off (zygotes.layers_memory)".into();
    }
    let there = view.layers.iter().filter(|layer| layer.problem.is_none());
    let bytes = there.clone().map(|layer| layer.memory.as_bytes()).sum();
    format!("{}, {} of {}", there.count(), Size::bytes(bytes).rounded(), view.layers_memory.rounded())
}

pub(super) fn zygote(state: ZygoteState) -> &'static str {
    match state {
        ZygoteState::None => "not started",
        ZygoteState::Starting => "starting",
        ZygoteState::Ready => "ready",
        ZygoteState::Failed => "failed",
    }
}

fn instances(count: Instances) -> String {
    format!("{} idle, {} busy, {} starting", count.idle, count.busy, count.starting)
}

pub(super) fn calls(calls: &Calls) -> String {
    format!(
        "{} ok, {} failed ({} cold, {} forked, {} warm)",
        calls.ok, calls.failed, calls.cold, calls.forked, calls.warm
    )
}
