//! `GET /metrics`: the node's counters in Prometheus' text format. Names end in their unit.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use crate::api::Instances;
use crate::calls;
use crate::node::{Node, view};

/// The page.
pub fn render(node: &Node) -> String {
    let mut page = String::with_capacity(4096);
    let functions = node.all();
    describe(&mut page, "spry_uptime_seconds", "gauge", "Since the start of spryd.");
    let _ = writeln!(page, "spry_uptime_seconds {:.3}", node.uptime().as_secs_f64());
    describe(&mut page, "spry_queued_invocations", "gauge", "Waiting for an instance.");
    for function in &functions {
        let _ = writeln!(
            page,
            "spry_queued_invocations{{function=\"{}\"}} {}",
            function.name(),
            function.queue_len()
        );
    }
    describe(&mut page, "spry_instances", "gauge", "Processes by state.");
    for function in &functions {
        let instances = view(function).instances;
        for (state, count) in
            [("idle", instances.idle), ("busy", instances.busy), ("starting", instances.starting)]
        {
            let _ = writeln!(
                page,
                "spry_instances{{function=\"{}\",state=\"{state}\"}} {count}",
                function.name()
            );
        }
    }
    describe(&mut page, "spry_invocations_total", "counter", "Ended invocations by result.");
    for function in &functions {
        for (result, count) in [("ok", &function.counts.ok), ("failed", &function.counts.failed)] {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(
                page,
                "spry_invocations_total{{function=\"{}\",result=\"{result}\"}} {count}",
                function.name()
            );
        }
    }
    describe(&mut page, "spry_starts_total", "counter", "Served invocations by what served them.");
    for function in &functions {
        let counts = &function.counts;
        for (kind, count) in [("cold", &counts.cold), ("forked", &counts.forked), ("warm", &counts.warm)] {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(
                page,
                "spry_starts_total{{function=\"{}\",kind=\"{kind}\"}} {count}",
                function.name()
            );
        }
    }
    describe(
        &mut page,
        "spry_exec_seconds_total",
        "counter",
        "Time in functions, from descriptor to answer.",
    );
    for function in &functions {
        let seconds = function.counts.exec_ns_sum.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(page, "spry_exec_seconds_total{{function=\"{}\"}} {seconds:.6}", function.name());
    }
    chains(&mut page, node);
    records(&mut page, node);
    page
}

/// What asynchronous calls do.
pub fn calls(counts: &calls::Counts) -> String {
    let mut page = String::with_capacity(2048);
    describe(&mut page, "spry_async_calls", "gauge", "Asynchronous calls by state.");
    for (state, count) in [
        ("queued", counts.queued),
        ("delayed", counts.delayed),
        ("running", counts.running),
        ("dead", counts.dead),
    ] {
        let _ = writeln!(page, "spry_async_calls{{state=\"{state}\"}} {count}");
    }
    for (name, kind, help, value) in [
        ("spry_async_bytes", "gauge", "Bytes of the bodies of calls that wait.", counts.bytes),
        ("spry_async_accepted_total", "counter", "Asynchronous calls that were accepted.", counts.accepted),
        ("spry_async_done_total", "counter", "Those that ended with an answer.", counts.done),
        ("spry_async_retried_total", "counter", "Failed runs that were followed by another.", counts.retried),
        ("spry_async_dead_total", "counter", "Those that were given up.", counts.died),
        ("spry_async_cancelled_total", "counter", "Those that were cancelled.", counts.cancelled),
        ("spry_async_callbacks_total", "counter", "Callbacks that were taken.", counts.callbacks),
        (
            "spry_async_callbacks_lost_total",
            "counter",
            "Callbacks that were given up.",
            counts.callbacks_lost,
        ),
        ("spry_async_commits_total", "counter", "Transactions that are on disk.", counts.commits),
        ("spry_async_commit_failures_total", "counter", "Transactions that failed.", counts.commit_failures),
        ("spry_async_broken", "gauge", "1 while calls can't be written.", u64::from(counts.broken)),
    ] {
        describe(&mut page, name, kind, help);
        let _ = writeln!(page, "{name} {value}");
    }
    page
}

/// What is kept of calls.
fn records(page: &mut String, node: &Node) {
    let counts = node.recorder().counts();
    for (name, kind, help, value) in [
        ("spry_records_written_total", "counter", "Records of calls that were written.", counts.written),
        ("spry_records_dropped_total", "counter", "Records and log lines that were dropped.", counts.dropped),
        ("spry_records", "gauge", "Records of calls that are kept.", counts.kept),
        ("spry_records_bytes", "gauge", "Their bytes.", counts.kept_bytes),
    ] {
        describe(page, name, kind, help);
        let _ = writeln!(page, "{name} {value}");
    }
}

/// What the chains do. Their members' processes are theirs, whatever the functions do by themselves.
fn chains(page: &mut String, node: &Node) {
    let chains = node.served_chains();
    describe(page, "spry_chain_instances", "gauge", "Processes of a chain's functions by state.");
    for chain in &chains {
        for member in crate::node::chain_view(chain, &*node.bus().transport).functions {
            let Instances { idle, busy, starting } = member.instances;
            for (state, count) in [("idle", idle), ("busy", busy), ("starting", starting)] {
                let (chain, function) = (chain.name(), &member.name);
                let labels = format!("chain=\"{chain}\",function=\"{function}\",state=\"{state}\"");
                let _ = writeln!(page, "spry_chain_instances{{{labels}}} {count}");
            }
        }
    }
    describe(
        page,
        "spry_chain_calls_total",
        "counter",
        "Ended calls of chains by result, those of triggers included.",
    );
    for chain in &chains {
        for (result, count) in [("ok", &chain.counts.ok), ("failed", &chain.counts.failed)] {
            let (name, count) = (chain.name(), count.load(Ordering::Relaxed));
            let _ = writeln!(page, "spry_chain_calls_total{{chain=\"{name}\",result=\"{result}\"}} {count}");
        }
    }
    describe(
        page,
        "spry_chain_dropped_values_total",
        "counter",
        "Emitted values that no trigger had a place for.",
    );
    for chain in &chains {
        let count = chain.dropped_values.load(Ordering::Relaxed);
        let _ = writeln!(page, "spry_chain_dropped_values_total{{chain=\"{}\"}} {count}", chain.name());
    }
}

fn describe(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
