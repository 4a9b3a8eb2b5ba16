//! Functions, chains and calls as the control API shows them.

use std::sync::atomic::Ordering;

use shm_bus::transport::Transport;

use crate::activation::{Line, Record, Start, Stream};
use crate::api::{
    ActivationView, Calls, ChainView, FunctionState, FunctionView, Instances, LogLine, LogStream, MemberView,
    StartKind, ZygoteState,
};
use crate::chain::Chain;
use crate::function::{Counts, Entered, Function};

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
        queued: function.queue_len() as u64,
        calls: calls(&function.counts),
        deployed_unix_ms: stored.deployed_unix_ms,
    }
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
            queued: member.queue_len() as u64,
            problem: member.problem(),
        }
    };
    let functions = chain.members.iter().map(member).collect();
    ChainView { functions, calls: calls(&chain.counts), ..ChainView::new(&chain.stored, &chain.plan) }
}

pub(super) fn instances(function: &Function) -> Instances {
    let total = function.instances().count() as u32;
    let at_work = function.users().saturating_sub(function.queue_len() as u32);
    let busy = at_work.min(total);
    Instances { idle: total - busy, busy, starting: function.starting() }
}

/// The memory that a function's processes may take.
pub(super) fn promised_to(function: &Function, instances: Instances) -> u64 {
    let zygotes = u64::from(function.zygote_state() == ZygoteState::Ready);
    (u64::from(instances.total()) + zygotes) * function.stored.manifest.limits.memory.as_bytes()
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

pub(super) fn activation(function: &Function, record: &Record) -> ActivationView {
    let ms = |ns: u64| ns as f64 / 1e6;
    ActivationView {
        call_id: record.call_id.to_string(),
        function: function.name().to_owned(),
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
        status: record.status,
        error: record.error.map(str::to_owned),
        later: None,
        logs: Vec::new(),
    }
}

pub(super) fn log_line(line: &Line) -> LogLine {
    LogLine {
        number: line.number,
        at_unix_ms: line.at_unix_ms,
        call_id: line.call.map(|call| call.to_string()),
        stream: match line.stream {
            Stream::Stdout => LogStream::Stdout,
            Stream::Stderr => LogStream::Stderr,
        },
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
