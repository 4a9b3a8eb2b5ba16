//! `GET /metrics`: the node's counters in Prometheus' text format. Names end in their unit.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use crate::api::Instances;
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
    page
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
