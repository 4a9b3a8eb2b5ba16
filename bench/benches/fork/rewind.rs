//! A request to a process that is as it was before the last one: rewound, or forked anew; beside one that just goes on.

use criterion::{BenchmarkId, Criterion};
use spry_bench::process;
use spry_bench::rewind::{Answering, Shape, Way};

/// A name, and what it looks like: a native function, Python, Python with much in memory.
const SHAPES: [(&str, Shape); 4] = [
    ("2MiB, 15 written", Shape { heap: 2 << 20, written: 15, ranges: 12 }),
    ("20MiB, 100 written", Shape { heap: 20 << 20, written: 100, ranges: 60 }),
    ("20MiB, 250 written", Shape { heap: 20 << 20, written: 250, ranges: 60 }),
    ("200MiB, 250 written", Shape { heap: 200 << 20, written: 250, ranges: 60 }),
];

pub(super) fn fresh_process(criterion: &mut Criterion) {
    let before = process::allowed_cpus().expect("this thread's CPUs");
    process::restrict_this_thread(*before.last().expect("a CPU")).expect("stay on one CPU");
    let mut group = criterion.benchmark_group("fresh_process");
    group.sample_size(20);
    for (name, shape) in SHAPES {
        for (way, word) in [(Way::Warm, "warm"), (Way::Rewound, "rewound"), (Way::Forked, "forked")] {
            let process = match Answering::start(way, shape) {
                Ok(process) => process,
                Err(error) => {
                    eprintln!("fresh_process/{name}/{word} is left out: {error}");
                    continue;
                }
            };
            group.bench_function(BenchmarkId::from_parameter(format!("{name}/{word}")), |bencher| {
                bencher.iter(|| process.ask().expect("an answer"));
            });
        }
    }
    group.finish();
    process::restrict_this_thread_to(&before).expect("go back to all CPUs");
}
