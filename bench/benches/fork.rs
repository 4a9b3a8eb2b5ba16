//! What making a process costs here, end to end: made, ended, reaped. The baselines for spry's own forks.
//!
//! The child ends at once, so what is timed is the kernel's work: copying page tables of this (small) process,
//! scheduling, exit, wait. `touched` repeats it with anonymous memory in the parent, whose page tables every fork
//! copies: the cost that a frozen zygote avoids.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::hint::black_box;
use std::process::Command;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use spry_bench::sys;

fn baselines(c: &mut Criterion) {
    let mut group = c.benchmark_group("process");
    group.bench_function("fork", |b| b.iter(|| sys::fork_and_reap().expect("fork")));
    group.bench_function("clone3_pidfd", |b| b.iter(|| sys::clone3_and_reap().expect("clone3")));
    group.bench_function("vfork_exec", |b| {
        b.iter(|| {
            // std uses posix_spawn here: CLONE_VM | CLONE_VFORK, then exec.
            assert!(Command::new("/bin/true").status().expect("spawn /bin/true").success());
        });
    });
    group.finish();
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

criterion_group!(benches, baselines, touched);
criterion_main!(benches);
