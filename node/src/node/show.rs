//! Functions, chains and calls as the control API shows them.

use std::sync::atomic::Ordering;

use shm_bus::transport::Transport;

use crate::activation::{Line, Start, Stream};
use crate::api::{
    ActivationView, Calls, ChainView, FunctionState, FunctionView, Installed, Instances, LogLine, LogStream,
    MemberView, Rewound, SchedulerView, StartKind, StepTime, ZygoteState,
};
use crate::chain::Chain;
use crate::dispatch::Bus;
use crate::function::{Counts, Entered, Function};
use crate::manifest::Isolation;
use crate::records::{StoredLine, StoredRecord};
use crate::units::Size;

/// How one function stands.
pub fn view(function: &Function) -> FunctionView {
    let stored = &function.stored;
    let manifest = &stored.manifest;
    let zygote = function.zygote_state();
    FunctionView {
        name: function.name().to_owned(),
        version: stored.version,
        sha256: stored.sha256.clone(),
        runtime: manifest.runtime,
        handler: manifest.handler.clone(),
        isolation: manifest.isolation,
        limits: manifest.limits,
        scale: manifest.scale,
        env: manifest.env.keys().cloned().collect(),
        egress: manifest.network.egress,
        packages: manifest.packages.clone(),
        installed: function
            .site()
            .map(|site| Installed { distributions: site.distributions(), whole: site.whole }),
        secrets: manifest.secrets.clone(),
        state: if function.is_superseded() {
            FunctionState::Removing
        } else if zygote == ZygoteState::Failed {
            FunctionState::Broken
        } else {
            FunctionState::Ready
        },
        problem: function.problem(),
        instances: instances(function),
        zygote,
        frozen: function.frozen(),
        start: function.start(),
        rewound: function
            .rewinding()
            .filter(|_| manifest.isolation == Isolation::Request)
            .map(|rewinding| rewound(function, rewinding.err())),
        queued: function.waiting() as u64,
        calls: calls(&function.counts),
        deployed_unix_ms: stored.deployed_unix_ms,
        versions: Vec::new(),
    }
}

fn rewound(function: &Function, why: Option<String>) -> Rewound {
    let rewinds = &function.counts.rewinds;
    let replaced = rewinds.replaced_counts().iter().map(|(_, count)| count).sum();
    Rewound { why, rewinds: rewinds.done_count(), replaced }
}

/// How one chain stands.
pub fn chain_view(chain: &Chain, transport: &dyn Transport) -> ChainView {
    let member = |member: &Entered| {
        let total = member.instances().count() as u32;
        let idle = transport.idle(member.index).min(total);
        MemberView {
            name: member.name().to_owned(),
            version: member.stored.version,
            instances: Instances { idle, busy: total - idle, starting: member.starting() },
            zygote: member.zygote_state(),
            queued: member.queue.len() as u64,
            problem: member.problem(),
        }
    };
    let functions = chain.members.iter().map(member).collect();
    ChainView { functions, calls: calls(&chain.counts), ..ChainView::new(&chain.stored, &chain.plan) }
}

pub(super) fn instances(function: &Function) -> Instances {
    let total = function.instances().count() as u32;
    let at_work = function.users().saturating_sub(function.waiting() as u32);
    let busy = at_work.min(total);
    Instances { idle: total - busy, busy, starting: function.starting() }
}

/// Who goes first on the node, and by what.
pub fn scheduler(bus: &Bus, signals: &str) -> SchedulerView {
    let signals = signals.to_owned();
    let Some(scheduler) = &bus.cores.scheduler else {
        let how = "left to the kernel's fair class".into();
        return SchedulerView {
            policy: "eevdf".into(),
            backend: "none".into(),
            how,
            signals,
            fallbacks: 0,
            held: 0,
            begun: 0,
        };
    };
    let (backend, now) = (scheduler.backend(), scheduler.standings());
    SchedulerView {
        policy: scheduler.policy().as_str().into(),
        backend: backend.kind().as_str().into(),
        how: backend.describe(),
        signals,
        fallbacks: backend.fallbacks(),
        held: now.waiting as u64,
        begun: now.begun as u64,
    }
}

pub(super) fn calls(counts: &Counts) -> Calls {
    Calls {
        ok: counts.ok.load(Ordering::Relaxed),
        failed: counts.failed.load(Ordering::Relaxed),
        cold: counts.cold.load(Ordering::Relaxed),
        forked: counts.forked.load(Ordering::Relaxed),
        warm: counts.warm.load(Ordering::Relaxed),
    }
}

pub(super) fn activation(stored: &StoredRecord) -> ActivationView {
    let record = &stored.record;
    let ms = |ns: u64| ns as f64 / 1e6;
    ActivationView {
        call_id: record.call_id.to_string(),
        function: stored.function.clone(),
        version: record.version,
        started_unix_ms: record.started_unix_ms,
        start: record.start.map(|start| match start {
            Start::Cold => StartKind::Cold,
            Start::Forked => StartKind::Forked,
            Start::Warm => StartKind::Warm,
        }),
        queue_ms: ms(record.queue_ns),
        start_ms: ms(record.start_ns),
        exec_ms: ms(record.exec_ns),
        cpu_ms: record.cpu_ns.map(ms),
        memory_peak: record.memory_bytes.map(Size::bytes),
        status: record.status,
        error: stored.error.clone(),
        steps: record.steps.as_deref().map(steps).unwrap_or_default(),
        later: None,
        logs: Vec::new(),
    }
}

/// `, s0;dur=1.234;desc="decode", h0;dur=0.006;desc="to resize"`, entry by entry.
fn steps(header: &str) -> Vec<StepTime> {
    let entry = |text: &str| {
        let (label, rest) = text.split_once(";dur=")?;
        let (ms, name) = rest.split_once(";desc=")?;
        let name = name.trim_matches('"');
        let hop = label.starts_with('h');
        let name = if hop { name.strip_prefix("to ").unwrap_or(name) } else { name };
        Some(StepTime { step: name.to_owned(), hop, ms: ms.parse().ok()? })
    };
    header.split(", ").filter_map(entry).collect()
}

pub(super) fn stored_line(line: &StoredLine, number: u64) -> LogLine {
    LogLine {
        number,
        at_unix_ms: line.at_unix_ms,
        call_id: line.call.map(|call| call.to_string()),
        stream: stream(line.stream),
        text: line.text.clone(),
    }
}

fn stream(stream: Stream) -> LogStream {
    match stream {
        Stream::Stdout => LogStream::Stdout,
        Stream::Stderr => LogStream::Stderr,
    }
}

pub(super) fn log_line(line: &Line) -> LogLine {
    LogLine {
        number: line.number,
        at_unix_ms: line.at_unix_ms,
        call_id: line.call.map(|call| call.to_string()),
        stream: stream(line.stream),
        text: line.text.clone(),
    }
}

pub(super) fn add(sum: &mut Calls, one: Calls) {
    sum.ok += one.ok;
    sum.failed += one.failed;
    sum.cold += one.cold;
    sum.forked += one.forked;
    sum.warm += one.warm;
}
