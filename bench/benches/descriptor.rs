//! Validation of a descriptor: what every answer costs the gateway before it looks at a byte. The baseline is
//! copying one, which has to be done in any case.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use shm_bus::Descriptor;
use shm_bus::descriptor::{check, name, one_of};
use shm_bus::ids::InvocationId;
use shm_bus::segment::{SegmentName, Table};

fn descriptor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("descriptor");
    let mut table = Table::default();
    let names: Vec<SegmentName> = (0..1000).map(|_| table.insert(1u64 << 20)).collect();
    let SegmentName { id, generation } = names[700];
    let good = Descriptor {
        segment: id,
        generation,
        offset: 64,
        length: 1024,
        invocation: 7,
        ..Descriptor::default()
    };
    group.bench_function("baseline_copy", |bencher| bencher.iter(|| *black_box(&good)));
    let held = InvocationId(7);
    let known = [(names[3], 1 << 20), (name(&good), 1 << 20)];
    group.bench_function("check/one_of_two", |bencher| {
        bencher.iter(|| check(black_box(&good), held, one_of(&known)));
    });
    group.bench_function("check/table_of_1000", |bencher| {
        bencher.iter(|| check(black_box(&good), held, |name| table.get(name).copied()));
    });
    let stale = Descriptor { generation: generation + 1, ..good };
    group.bench_function("check/refused", |bencher| {
        bencher.iter(|| check(black_box(&stale), held, |name| table.get(name).copied()));
    });
    group.finish();
}

criterion_group!(benches, descriptor);
criterion_main!(benches);
