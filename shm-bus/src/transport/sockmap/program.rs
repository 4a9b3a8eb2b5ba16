//! Loading the program: the object that is checked in, with tables of the wanted size.

use std::os::fd::AsFd;

use aya::maps::{Map, MapData, SockMap};
use aya::programs::SkMsg;
use aya::{Ebpf, EbpfLoader};
use spry_ebpf_common::{COUNTERS, DEFAULT_ROUTES, MAX_PORTS, SLOTS_PER_FUNCTION, TRAILS_PER_PORT};

use super::log::KernelLog;
use super::sys::MappedArray;
use super::tables::Arrays;
use crate::sys::Cell;
use crate::transport::{BusError, Config, Kind};

/// `cargo xtask ebpf` makes it from `ebpf/programs`.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/spry-bus.bpf.o"));

/// The loaded program. Dropped: it is detached, and sockets that are left become plain TCP.
pub(super) struct Program {
    /// Keeps program and maps alive.
    _bpf: Ebpf,
    pub(super) sockets: SockMap<MapData>,
    pub(super) log: Option<KernelLog>,
}

/// Loads the program, attaches it to its socket map, and maps its arrays.
pub(super) fn load(config: &Config) -> Result<(Program, Arrays), BusError> {
    let slots = config.functions * SLOTS_PER_FUNCTION;
    let trails = config.ports * TRAILS_PER_PORT;
    let mut bpf = EbpfLoader::new()
        // No field of a kernel structure is read, so the kernel's own types (megabytes to parse) aren't needed.
        .btf(None)
        .map_max_entries("SOCKETS", MAX_PORTS + slots)
        .map_max_entries("SLOTS", slots)
        .map_max_entries("PORTS", MAX_PORTS)
        .map_max_entries("FUNCTIONS", config.functions)
        .map_max_entries("COUNTERS", COUNTERS)
        .map_max_entries("ROUTES", DEFAULT_ROUTES)
        .map_max_entries("TRAILS", trails)
        .load(OBJECT)
        .map_err(|error| refused("load the maps", &error))?;
    let log = KernelLog::of(&mut bpf);
    let sockets = bpf.take_map("SOCKETS").ok_or_else(|| missing("SOCKETS"))?;
    let sockets = SockMap::try_from(sockets).map_err(|error| refused("open the socket map", &error))?;
    let program = bpf.program_mut("spry_bus").ok_or_else(|| missing("spry_bus"))?;
    let program: &mut SkMsg = program.try_into().map_err(|error| refused("find the program", &error))?;
    program.load().map_err(|error| refused("verify the program", &error))?;
    program.attach(sockets.fd()).map_err(|error| refused("attach the program", &error))?;
    let arrays = Arrays {
        slots: mapped(&bpf, "SLOTS", slots)?,
        functions: mapped(&bpf, "FUNCTIONS", config.functions)?,
        masks: mapped(&bpf, "FUNCTIONS", config.functions)?,
        ports: mapped(&bpf, "PORTS", MAX_PORTS)?,
        counters: mapped(&bpf, "COUNTERS", COUNTERS)?,
        routes: mapped(&bpf, "ROUTES", DEFAULT_ROUTES)?,
        trails: mapped(&bpf, "TRAILS", trails)?,
    };
    Ok((Program { _bpf: bpf, sockets, log }, arrays))
}

fn mapped<T: Cell>(bpf: &Ebpf, name: &'static str, count: u32) -> Result<MappedArray<T>, BusError> {
    let Some(Map::Array(array)) = bpf.map(name) else { return Err(missing(name)) };
    MappedArray::new(array.fd().as_fd(), count as usize)
        .map_err(|source| BusError::Os { operation: "map a table of the bus program", source })
}

fn missing(name: &str) -> BusError {
    BusError::Program(format!("the object has no {name}"))
}

/// The whole chain of causes; a refusal for want of rights is told apart from a broken program.
fn refused(operation: &str, error: &dyn std::error::Error) -> BusError {
    let mut text = format!("{operation}: {error}");
    let mut cause = error.source();
    let mut denied = false;
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        denied |= inner
            .downcast_ref::<std::io::Error>()
            // (The verifier's refusals are EACCES.)
            .is_some_and(|error| error.raw_os_error() == Some(libc::EPERM));
        cause = inner.source();
    }
    if denied {
        let why = format!("no right to load BPF programs (CAP_BPF and CAP_NET_ADMIN): {text}");
        return BusError::Unavailable { kind: Kind::Sockmap, why };
    }
    BusError::Program(text)
}
