//! What functions and chains use, for `spry top`: read from their counters and from `/proc`.

use std::sync::Arc;
use std::time::Duration;

use shm_bus::transport::Transport;

use super::show::{calls, chain_view, instances};
use super::transport_name;
use crate::activation::unix_ms;
use crate::api::{Instances, ProcessUsage, Usage, UsageView};
use crate::chain::Chain;
use crate::function::Function;
use crate::metrics::{self, BOUNDS, Counts};

/// Reads a few files for each process: not for a thread that serves requests.
pub(super) fn usage(
    functions: &[Arc<Function>],
    chains: &[Arc<Chain>],
    transport: &dyn Transport,
    uptime: Duration,
) -> UsageView {
    let functions = functions.iter().map(|function| of_function(function));
    let chains = chains.iter().map(|chain| of_chain(chain, transport));
    let own = metrics::Usage::of_process(std::process::id() as i32);
    UsageView {
        at_unix_ms: unix_ms(),
        uptime_ms: uptime.as_millis() as u64,
        transport: transport_name(transport.kind()).to_owned(),
        cpus: crate::sys::allowed_cpus().len().max(1) as u32,
        spryd: shown(own.cpu, own.resident_bytes),
        bounds_ms: BOUNDS.iter().map(|(ns, _)| *ns as f64 / 1e6).collect(),
        all: functions.chain(chains).collect(),
    }
}

fn of_function(function: &Function) -> Usage {
    let running = metrics::Usage::of_instances(function);
    Usage {
        name: function.name().to_owned(),
        is_chain: false,
        instances: instances(function),
        queued: function.queue.len() as u64,
        calls: calls(&function.counts),
        exec: exec(&function.counts),
        processes: shown(function.counts.used.cpu(running.cpu), running.resident_bytes),
    }
}

fn of_chain(chain: &Chain, transport: &dyn Transport) -> Usage {
    let view = chain_view(chain, transport);
    let mut sum = Instances::default();
    for member in &view.functions {
        sum.idle += member.instances.idle;
        sum.busy += member.instances.busy;
        sum.starting += member.instances.starting;
    }
    let (mut cpu, mut resident_bytes) = (Duration::ZERO, 0);
    for member in &chain.members {
        let running = metrics::Usage::of_instances(member);
        cpu += member.counts.used.cpu(running.cpu);
        resident_bytes += running.resident_bytes;
    }
    Usage {
        name: chain.name().to_owned(),
        is_chain: true,
        instances: sum,
        queued: view.functions.iter().map(|member| member.queued).sum(),
        calls: calls(&chain.counts),
        exec: exec(&chain.counts),
        processes: shown(cpu, resident_bytes),
    }
}

fn exec(counts: &Counts) -> Vec<u64> {
    counts.exec.snapshot().cumulative.to_vec()
}

fn shown(cpu: Duration, resident_bytes: u64) -> ProcessUsage {
    ProcessUsage { cpu_ms: cpu.as_secs_f64() * 1e3, resident_bytes }
}
