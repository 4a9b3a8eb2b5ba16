//! What making a process costs here, end to end, and what an instance of a function costs beside it.
//!
//! - `process`: the kernel's own ways. The child ends at once, so what is timed is the kernel's work: copying page
//!   tables of this (small) process, scheduling, exit, wait; for the last two also what exec brings along.
//! - `clone3_with_anonymous_memory` repeats it with anonymous memory in the parent, whose page tables every fork
//!   copies.
//! - `zygote`: spryd's way, with the real runtimes ([`zygotes`]).
//! - `first_instruction`: until the function itself runs, for frozen zygotes and others of many sizes ([`frozen`]).
//! - `fresh_process`: an experiment: a process that goes back to what it was, beside a fork ([`rewind`]).

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

#[path = "fork/frozen.rs"]
mod frozen;
#[path = "fork/rewind.rs"]
mod rewind;
#[path = "fork/zygotes.rs"]
mod zygotes;

use std::hint::black_box;
use std::process::{Command, Stdio};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use spry_bench::sys;

fn baselines(c: &mut Criterion) {
    let mut group = c.benchmark_group("process");
    group.bench_function("fork", |b| b.iter(|| sys::fork_and_reap().expect("fork")));
    group.bench_function("clone3_pidfd", |b| b.iter(|| sys::clone3_and_reap().expect("clone3")));
    // std uses posix_spawn for these: CLONE_VM | CLONE_VFORK, then exec.
    group.bench_function("vfork_exec_true", |b| {
        b.iter(|| assert!(Command::new("/bin/true").status().expect("spawn /bin/true").success()));
    });
    group.sample_size(20);
    match python() {
        Some(mut python) => group.bench_function("vfork_exec_python", |b| {
            b.iter(|| assert!(python.status().expect("spawn python3").success()));
        }),
        None => return eprintln!("process/vfork_exec_python is left out: there is no python3"),
    };
    group.finish();
}

/// A Python that does nothing, started with the options that a Python zygote has.
fn python() -> Option<Command> {
    let interpreter = spry_node::zygote::find_interpreter(None, None).ok()?;
    let mut command = Command::new(interpreter);
    command.args(spry_node::embedded::PYTHON_OPTIONS).arg("pass").stdin(Stdio::null());
    Some(command)
}

fn touched(c: &mut Criterion) {
    let mut group = c.benchmark_group("clone3_with_anonymous_memory");
    group.sample_size(20);
    for mebibytes in [0usize, 10, 50] {
        let memory = vec![1u8; mebibytes << 20];
        group.bench_function(BenchmarkId::from_parameter(format!("{mebibytes}MiB")), |b| {
            b.iter(|| sys::clone3_and_reap().expect("clone3"));
        });
        black_box(memory);
    }
    group.finish();
}

// The zygotes last: from there on Ctrl-C is noted instead of ending this process at once.
criterion_group!(benches, baselines, touched, rewind::fresh_process, zygotes::zygotes);
criterion_main!(benches);
