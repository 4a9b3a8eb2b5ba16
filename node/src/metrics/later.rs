//! Asynchronous calls, and what is kept of calls.

use super::page::{Kind, Page};
use crate::calls;
use crate::node::Node;

/// What asynchronous calls do.
pub(super) fn calls(page: &mut Page, counts: &calls::Counts) {
    page.family("spry_async_calls", Kind::Gauge, "Asynchronous calls by state.");
    for (state, count) in [
        ("queued", counts.queued),
        ("delayed", counts.delayed),
        ("running", counts.running),
        ("dead", counts.dead),
    ] {
        page.sample(&[("state", state)], count);
    }
    use Kind::{Counter, Gauge};
    for (name, kind, help, value) in [
        ("spry_async_bytes", Gauge, "Bytes of the heads and bodies of calls that wait.", counts.bytes),
        ("spry_async_accepted_total", Counter, "Asynchronous calls that were accepted.", counts.accepted),
        ("spry_async_done_total", Counter, "Those that ended with an answer.", counts.done),
        ("spry_async_retried_total", Counter, "Failed runs that were followed by another.", counts.retried),
        ("spry_async_dead_total", Counter, "Those that were given up.", counts.died),
        ("spry_async_cancelled_total", Counter, "Those that were cancelled.", counts.cancelled),
        ("spry_async_callbacks_total", Counter, "Callbacks that were taken.", counts.callbacks),
        ("spry_async_callbacks_lost_total", Counter, "Callbacks that were given up.", counts.callbacks_lost),
        ("spry_async_commits_total", Counter, "Transactions that are on disk.", counts.commits),
        ("spry_async_commit_failures_total", Counter, "Transactions that failed.", counts.commit_failures),
        ("spry_async_broken", Gauge, "1 while calls can't be written.", u64::from(counts.broken)),
    ] {
        page.single(name, kind, help, value);
    }
}

/// What is kept of calls.
pub(super) fn records(page: &mut Page, node: &Node) {
    let counts = node.recorder().counts();
    for (name, kind, help, value) in [
        ("spry_records_written_total", Kind::Counter, "Records of calls that were written.", counts.written),
        (
            "spry_records_dropped_total",
            Kind::Counter,
            "Records and log lines that were dropped.",
            counts.dropped,
        ),
        ("spry_records", Kind::Gauge, "Records of calls that are kept.", counts.kept),
        ("spry_records_bytes", Kind::Gauge, "Their bytes.", counts.kept_bytes),
    ] {
        page.single(name, kind, help, value);
    }
}
