//! The segment allocator: one block, in an idle and in a crowded segment; giving halves back; and what it is
//! measured against, copying the bytes themselves.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shm_bus::alloc::Allocator;
use shm_bus::segment::{Writer, create};

fn allocator(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("allocator");
    for (name, len) in [("1KiB", 1 << 10), ("1MiB", 1 << 20)] {
        let mut idle = Allocator::new(1 << 30);
        group.bench_function(format!("idle_1GiB/{name}"), |bencher| {
            bencher.iter(|| {
                let block = idle.allocate(black_box(len)).expect("room");
                idle.free(block.offset)
            });
        });
    }
    // Every other of 20,000 small blocks is free: thousands of holes.
    let mut crowded = Allocator::new(1 << 30);
    let blocks: Vec<_> = (0..20_000).map(|_| crowded.allocate(256).expect("room")).collect();
    blocks.iter().step_by(2).for_each(|block| assert!(crowded.free(block.offset).is_some()));
    for (name, len) in [("256B", 256), ("1KiB", 1 << 10)] {
        group.bench_function(format!("crowded_1GiB/{name}"), |bencher| {
            bencher.iter(|| {
                let block = crowded.allocate(black_box(len)).expect("room");
                crowded.free(block.offset)
            });
        });
    }
    let mut streaming = Allocator::new(1 << 30);
    group.bench_function("streaming_6MiB_shrunk_to_1KiB", |bencher| {
        bencher.iter(|| {
            let block = streaming.allocate(6 << 20).expect("room");
            let left = streaming.shrink(block, black_box(1 << 10));
            streaming.free(left.offset)
        });
    });
    group.finish();
}

fn copy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy");
    let len = 64 << 20;
    let segment = Writer::map(create("spry-bench", len).expect("a segment"), len).expect("map it");
    for bytes in [1 << 10, 64 << 10, 1 << 20, 6 << 20] {
        let source = vec![7u8; bytes];
        let mut private = vec![0u8; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("memcpy/{}KiB", bytes >> 10), |bencher| {
            bencher.iter(|| black_box(&mut private).copy_from_slice(black_box(&source)));
        });
        group.bench_function(format!("segment_warm/{}KiB", bytes >> 10), |bencher| {
            bencher.iter(|| segment.write_at(64, black_box(&source)).expect("room"));
        });
    }
    let bytes = 6 << 20;
    let source = vec![7u8; bytes];
    group.throughput(Throughput::Bytes(bytes as u64));
    group.sample_size(20);
    group.bench_function(format!("segment_cold/{}KiB", bytes >> 10), |bencher| {
        bencher.iter_with_large_drop(|| {
            let cold = Writer::map(create("spry-bench", 8 << 20).expect("a segment"), 8 << 20).expect("map");
            cold.write_at(0, black_box(&source)).expect("room");
            cold
        });
    });
    group.finish();
}

criterion_group!(benches, allocator, copy);
criterion_main!(benches);
