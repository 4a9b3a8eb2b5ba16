//! The kernel program's own log lines (rare: violations), handed on to `tracing`.

use ::log::{Level, Log, Metadata, Record};
use aya::Ebpf;
use aya_log::EbpfLogger;

/// Where the program's lines arrive.
pub(super) struct KernelLog(EbpfLogger<ToTracing>);

impl KernelLog {
    /// `None`: the object has no log; then there is nothing to hand on.
    pub(super) fn of(bpf: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init_with_logger(bpf, ToTracing).ok().map(Self)
    }

    /// Hands on what has arrived.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        match record.level() {
            Level::Error => tracing::error!(target: "spry_bus", "{}", record.args()),
            Level::Warn => tracing::warn!(target: "spry_bus", "{}", record.args()),
            _ => tracing::debug!(target: "spry_bus", "{}", record.args()),
        }
    }
    fn flush(&self) {}
}
