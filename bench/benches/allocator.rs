//! The segment allocator: one block, in an idle and in a crowded segment; giving halves back; and what it is
//! measured against, copying the bytes themselves.
//!
//! The copies all start at the same places within their pages: `memcpy` with `rep movsb` (what glibc uses here from 2
//! KiB up to where it goes past the cache) is 15 times slower on some AMD cores when the destination lies 1 to 31 bytes further into its page than
//! the source into its own, as two large heap blocks may. `memcpy_unlucky` shows that case on purpose.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shm_bus::alloc::Allocator;
use shm_bus::segment::{Writer, create, page_len};

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

/// Bytes from a page's start to where a copy's source and destination begin.
const SOURCE_AT: usize = 0;
const TARGET_AT: usize = 64;
/// The destination for which `rep movsb` may be slow.
const UNLUCKY_AT: usize = 16;

/// Touched memory whose first byte begins a page.
struct Pages {
    memory: Vec<u8>,
    start: usize,
}

impl Pages {
    fn new(bytes: usize) -> Self {
        let page = page_len() as usize;
        let memory = vec![7u8; bytes + 2 * page];
        let start = memory.as_ptr().align_offset(page);
        Self { memory, start }
    }

    fn at(&mut self, offset: usize, bytes: usize) -> &mut [u8] {
        &mut self.memory[self.start + offset..][..bytes]
    }
}

fn copy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy");
    let len = 64 << 20;
    let segment = Writer::map(create("spry-bench", len).expect("a segment"), len).expect("map it");
    for (name, bytes) in [("1KiB", 1 << 10), ("64KiB", 64 << 10), ("1MiB", 1 << 20), ("6MiB", 6 << 20)] {
        let (mut source, mut private) = (Pages::new(bytes), Pages::new(bytes));
        let source = source.at(SOURCE_AT, bytes);
        group.throughput(Throughput::Bytes(bytes as u64));
        for (case, at) in [("memcpy", TARGET_AT), ("memcpy_unlucky", UNLUCKY_AT)] {
            let private = private.at(at, bytes);
            group.bench_function(format!("{case}/{name}"), |bencher| {
                bencher.iter(|| black_box(&mut *private).copy_from_slice(black_box(&*source)));
            });
        }
        group.bench_function(format!("segment_warm/{name}"), |bencher| {
            bencher.iter(|| segment.write_at(TARGET_AT as u64, black_box(&*source)).expect("room"));
        });
    }
    let bytes = 6 << 20;
    let mut source = Pages::new(bytes);
    let source = source.at(SOURCE_AT, bytes);
    group.throughput(Throughput::Bytes(bytes as u64));
    group.sample_size(20);
    group.bench_function("segment_cold/6MiB", |bencher| {
        bencher.iter_with_large_drop(|| {
            let cold = Writer::map(create("spry-bench", 8 << 20).expect("a segment"), 8 << 20).expect("map");
            cold.write_at(TARGET_AT as u64, black_box(&*source)).expect("room");
            cold
        });
    });
    group.finish();
}

criterion_group!(benches, allocator, copy);
criterion_main!(benches);
