//! `GET /metrics`: the node's counters in Prometheus' text format. Names end in their unit; `docs/operations.md` lists them.

mod counts;
mod histogram;
mod later;
mod page;
mod rewinds;
mod usage;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::api::Instances;
use crate::chain::Chain;
use crate::function::Function;
use crate::node::{Node, chain_view, scheduler, transport_name, view};
pub use counts::{Counts, Outcome, Totals, Used};
pub use histogram::{BOUNDS, Histogram, Snapshot};
use page::{Kind, Page};
pub use rewinds::{Replaced, Rewinds};
pub use usage::Usage;

/// The page's media type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page. Reads a few files for each process there is: not for a thread that serves requests.
pub fn render(node: &Node, calls_later: &crate::calls::Counts) -> String {
    let mut page = Page::default();
    of_the_node(&mut page, node);
    let functions = node.all();
    calls(&mut page, "function", &FUNCTIONS, &functions, |function| (function.name(), &function.counts));
    processes_of_functions(&mut page, &functions);
    rewinds_of_functions(&mut page, &functions);
    let chains = node.served_chains();
    calls(&mut page, "chain", &CHAINS, &chains, |chain| (chain.name(), &chain.counts));
    of_chains(&mut page, node, &chains);
    later::calls(&mut page, calls_later);
    later::records(&mut page, node);
    page.finish()
}

fn of_the_node(page: &mut Page, node: &Node) {
    page.family("spry_build_info", Kind::Gauge, "Which spryd this is; always 1.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.family("spry_transport_info", Kind::Gauge, "How descriptors travel; always 1.");
    page.sample(&[("transport", transport_name(node.bus().transport.kind()))], 1);
    page.family("spry_scheduler_info", Kind::Gauge, "Who goes first, and by what; always 1.");
    let scheduler = scheduler(node.bus(), "");
    page.sample(&[("policy", &scheduler.policy), ("backend", &scheduler.backend)], 1);
    page.single(
        "spry_uptime_seconds",
        Kind::Gauge,
        "Since the start of spryd.",
        format_args!("{:.3}", node.uptime().as_secs_f64()),
    );
    page.single("spry_functions", Kind::Gauge, "Functions deployed.", node.all().len());
    page.single(
        "spry_node_queued_invocations",
        Kind::Gauge,
        "Waiting for an instance, on the whole node.",
        node.bus().queued(),
    );
    let totals = &node.bus().totals;
    page.family(
        "spry_fork_seconds",
        Kind::Histogram,
        "From asking a zygote for an instance to the instance's readiness.",
    );
    page.histogram(&[], &totals.fork.snapshot());
    page.family("spry_zygote_start_seconds", Kind::Histogram, "Starts of zygotes, function loaded.");
    page.histogram(&[], &totals.zygote.snapshot());
    for (name, help, counter) in [
        (
            "spry_start_failures_total",
            "Instances and zygotes that could not be started.",
            &totals.start_failures,
        ),
        ("spry_pool_misses_total", "Calls that met no idle instance.", &totals.pool_misses),
        (
            "spry_dropped_output_bytes_total",
            "Output of functions over logs.per_invocation.",
            &totals.dropped_output_bytes,
        ),
    ] {
        page.single(name, Kind::Counter, help, counter.load(Ordering::Relaxed));
    }
    if let Some(spans) = totals.spans.get() {
        page.family("spry_spans_total", Kind::Counter, "Spans of calls, told to the collector or dropped.");
        page.sample(&[("outcome", "sent")], spans.sent.load(Ordering::Relaxed));
        page.sample(&[("outcome", "dropped")], spans.dropped.load(Ordering::Relaxed));
    }
    let layers = node.layers();
    let layers: Vec<_> = layers.iter().filter(|layer| layer.problem.is_none()).collect();
    page.single(
        "spry_package_layers",
        Kind::Gauge,
        "Sets of packages that are imported once for the zygotes of several functions.",
        layers.len(),
    );
    page.single(
        "spry_package_layer_bytes",
        Kind::Gauge,
        "Memory that they hold.",
        layers.iter().map(|layer| layer.memory.as_bytes()).sum::<u64>(),
    );
    of_the_scheduler(page, node);
    of_spryd(page);
}

/// What a policy has decided; nothing where all is left to the kernel.
fn of_the_scheduler(page: &mut Page, node: &Node) {
    let Some(scheduler) = &node.bus().cores.scheduler else { return };
    let (counts, now) = (scheduler.counts(), scheduler.standings());
    for (name, help, counter) in [
        ("spry_scheduled_total", "Invocations that the policy was asked about.", &counts.scheduled),
        ("spry_held_total", "Those of them that had to wait before they began.", &counts.held),
        ("spry_scheduler_moves_total", "Processes set to another level.", &counts.moves),
    ] {
        page.single(name, Kind::Counter, help, counter.load(Ordering::Relaxed));
    }
    let (name, help) = ("spry_scheduler_fallbacks_total", "How often sched_ext was left for posix.");
    page.single(name, Kind::Counter, help, scheduler.backend().fallbacks());
    page.family("spry_scheduled_invocations", Kind::Gauge, "Invocations that the policy orders, by place.");
    let back = now.begun.saturating_sub(now.front);
    for (place, count) in [("held", now.waiting), ("front", now.front), ("back", back)] {
        page.sample(&[("place", place)], count);
    }
}

/// The names that every Prometheus client library uses for its own process.
fn of_spryd(page: &mut Page) {
    let own = Usage::of_process(std::process::id() as i32);
    let (open, most) = usage::descriptors();
    page.single("process_cpu_seconds_total", Kind::Counter, "CPU time of spryd.", own.cpu.as_secs_f64());
    page.single(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "Resident memory of spryd.",
        own.resident_bytes,
    );
    page.single("process_open_fds", Kind::Gauge, "Descriptors that spryd has open.", open);
    page.single("process_max_fds", Kind::Gauge, "Descriptors that spryd may have open.", most);
}

/// What is said of functions and of chains alike.
struct Families {
    calls: &'static str,
    starts: &'static str,
    phases: &'static str,
}

const FUNCTIONS: Families = Families {
    calls: "spry_invocations_total",
    starts: "spry_starts_total",
    phases: "spry_invocation_phase_seconds",
};

const CHAINS: Families = Families {
    calls: "spry_chain_calls_total",
    starts: "spry_chain_starts_total",
    phases: "spry_chain_phase_seconds",
};

fn calls<'a, T>(
    page: &mut Page,
    label: &'static str,
    families: &Families,
    all: &'a [T],
    of: impl Fn(&'a T) -> (&'a str, &'a Counts),
) {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    page.family(families.calls, Kind::Counter, "Ended calls by what became of them.");
    for (name, counts) in all.iter().map(&of) {
        for (outcome, counter) in Outcome::ALL.iter().zip(&counts.outcomes) {
            page.sample(&[(label, name), ("outcome", outcome.as_str())], read(counter));
        }
    }
    page.family(families.starts, Kind::Counter, "Served calls by what served them.");
    for (name, counts) in all.iter().map(&of) {
        for (kind, counter) in [("cold", &counts.cold), ("forked", &counts.forked), ("warm", &counts.warm)] {
            page.sample(&[(label, name), ("kind", kind)], read(counter));
        }
    }
    page.family(
        families.phases,
        Kind::Histogram,
        "Served calls: waiting for an instance (queue), for its start (start, when there was one), and the work (exec).",
    );
    for (name, counts) in all.iter().map(&of) {
        for (phase, histogram) in [("queue", &counts.queue), ("start", &counts.start), ("exec", &counts.exec)]
        {
            page.histogram(&[(label, name), ("phase", phase)], &histogram.snapshot());
        }
    }
}

fn processes_of_functions(page: &mut Page, functions: &[Arc<Function>]) {
    page.family("spry_queued_invocations", Kind::Gauge, "Waiting for an instance of this function.");
    for function in functions {
        page.sample(&[("function", function.name())], function.waiting());
    }
    page.family("spry_instances", Kind::Gauge, "Processes by state.");
    for function in functions {
        by_state(page, &[("function", function.name())], view(function).instances);
    }
    let usages: Vec<_> = functions.iter().map(|function| (function, Usage::of_instances(function))).collect();
    page.family(
        "spry_function_cpu_seconds_total",
        Kind::Counter,
        "CPU time of instances, those that have ended included.",
    );
    for (function, usage) in &usages {
        let cpu = function.counts.used.cpu(usage.cpu);
        page.sample(&[("function", function.name())], cpu.as_secs_f64());
    }
    page.family(
        "spry_function_core_wait_seconds_total",
        Kind::Counter,
        "Time in which calls could run and had no core; only where the scheduler's signals are read.",
    );
    for function in functions {
        let wait_ns = function.counts.core_wait_ns.load(Ordering::Relaxed);
        page.sample(&[("function", function.name())], wait_ns as f64 / 1e9);
    }
    page.family(
        "spry_function_resident_bytes",
        Kind::Gauge,
        "Resident memory of instances; pages that they share count for each.",
    );
    for (function, usage) in &usages {
        page.sample(&[("function", function.name())], usage.resident_bytes);
    }
    page.family(
        "spry_function_peak_resident_bytes",
        Kind::Gauge,
        "The largest resident memory of an instance that has ended.",
    );
    for function in functions {
        page.sample(&[("function", function.name())], function.counts.used.peak_bytes());
    }
}

fn rewinds_of_functions(page: &mut Page, functions: &[Arc<Function>]) {
    page.family("spry_rewinds_total", Kind::Counter, "Instances put back after an answer, which serve on.");
    for function in functions {
        page.sample(&[("function", function.name())], function.counts.rewinds.done_count());
    }
    page.family(
        "spry_rewind_replacements_total",
        Kind::Counter,
        "Instances that were to be put back and were replaced instead, by why.",
    );
    for function in functions {
        for (why, count) in function.counts.rewinds.replaced_counts() {
            page.sample(&[("function", function.name()), ("reason", why.as_str())], count);
        }
    }
}

fn by_state(page: &mut Page, labels: page::Labels<'_>, instances: Instances) {
    let Instances { idle, busy, starting } = instances;
    for (state, count) in [("idle", idle), ("busy", busy), ("starting", starting)] {
        let all: Vec<_> = labels.iter().copied().chain([("state", state)]).collect();
        page.sample(&all, count);
    }
}

/// What the chains do. Their members' processes are theirs, whatever the functions do by themselves.
fn of_chains(page: &mut Page, node: &Node, chains: &[Arc<Chain>]) {
    page.family("spry_chain_instances", Kind::Gauge, "Processes of a chain's functions by state.");
    for chain in chains {
        for member in chain_view(chain, &*node.bus().transport).functions {
            by_state(page, &[("chain", chain.name()), ("function", &member.name)], member.instances);
        }
    }
    page.family("spry_chain_cpu_seconds_total", Kind::Counter, "CPU time of a chain's instances.");
    for chain in chains {
        for member in &chain.members {
            let cpu = member.counts.used.cpu(Usage::of_instances(member).cpu);
            page.sample(&[("chain", chain.name()), ("function", member.name())], cpu.as_secs_f64());
        }
    }
    page.family(
        "spry_chain_dropped_values_total",
        Kind::Counter,
        "Emitted values that no trigger had a place for.",
    );
    for chain in chains {
        page.sample(&[("chain", chain.name())], chain.dropped_values.load(Ordering::Relaxed));
    }
}
