//! What criterion has measured, as [`Row`]s: read from the files that it leaves, compared with baselines.
//!
//! `cargo xtask bench ipc` (and `fork`) runs criterion benches with a results folder of its own, then has this read
//! it. Criterion leaves two files per case, `…/new/benchmark.json` (its names) and `…/new/estimates.json` (mean,
//! median and their like, in nanoseconds). Which case is compared with which is said by [`baseline`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::ValueEnum;
use serde::Deserialize;

use crate::report::Row;

/// Which benches were run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// transports, allocator, descriptor
    Ipc,
    /// fork
    Fork,
}

impl Bench {
    fn name(self) -> &'static str {
        match self {
            Self::Ipc => "ipc",
            Self::Fork => "fork",
        }
    }
}

/// Results can't be read.
#[derive(Debug, thiserror::Error)]
pub enum MicroError {
    /// A file or folder.
    #[error("read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It isn't what criterion writes.
    #[error("{} is not as criterion writes it: {source}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Where it differs.
        source: serde_json::Error,
    },
    /// There is nothing.
    #[error("no result of criterion is below {}", .0.display())]
    Nothing(PathBuf),
}

/// One case's result.
#[derive(Debug, Clone, PartialEq)]
struct Case {
    name: String,
    mean_ns: f64,
    median_ns: f64,
}

/// `benchmark.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Benchmark {
    full_id: String,
}

/// `estimates.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Estimates {
    mean: Estimate,
    median: Estimate,
}

#[derive(Debug, Deserialize)]
struct Estimate {
    point_estimate: f64,
}

/// The rows of all results below a folder, in the order in which they were measured. The table shows medians.
pub fn rows(bench: Bench, folder: &Path) -> Result<Vec<Row>, MicroError> {
    let mut found = Vec::new();
    collect(folder, &mut found)?;
    if found.is_empty() {
        return Err(MicroError::Nothing(folder.to_owned()));
    }
    found.sort_by(|(at, one), (then, other)| at.cmp(then).then_with(|| one.name.cmp(&other.name)));
    let cases: Vec<Case> = found.into_iter().map(|(_, case)| case).collect();
    Ok(compare(bench, &cases))
}

/// The case that another one is compared with: the first of its family that is named here. A baseline is its own.
fn baseline(case: &str) -> Option<String> {
    let parts: Vec<&str> = case.split('/').collect();
    Some(match parts[..] {
        ["roundtrip", place, _] => format!("roundtrip/{place}/baseline_seqpacket"),
        ["hop", kind, _] => format!("hop/{kind}/roundtrip"),
        ["copy", _, size] => format!("copy/memcpy/{size}"),
        // Allocating is worth it if it costs less than copying what is allocated.
        ["allocator", _, size] => format!("copy/memcpy/{size}"),
        ["descriptor", ..] => "descriptor/baseline_copy".to_owned(),
        ["process" | "zygote", ..] => "process/fork".to_owned(),
        ["clone3_with_anonymous_memory", _] => "clone3_with_anonymous_memory/0MiB".to_owned(),
        // What freezing brings: each size beside the same size as it would be without.
        ["first_instruction", language, size, _] => format!("first_instruction/{language}/{size}/unfrozen"),
        ["fresh_process", shape, _] => format!("fresh_process/{shape}/forked"),
        _ => return None,
    })
}

fn compare(bench: Bench, cases: &[Case]) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in cases {
        let name = baseline(&case.name);
        let base = name.and_then(|name| cases.iter().find(|other| other.name == name));
        let row = |metric, of: fn(&Case) -> f64| {
            let row = Row::new(bench.name(), &case.name, metric, of(case), "ns");
            base.map_or(row.clone(), |base| row.against(of(base)))
        };
        rows.push(row("median", |case| case.median_ns));
        rows.push(row("mean", |case| case.mean_ns).shown(false));
    }
    rows
}

/// Walks the tree; a folder `new` with `benchmark.json` is a case. The file's time says when it was measured.
fn collect(folder: &Path, found: &mut Vec<(SystemTime, Case)>) -> Result<(), MicroError> {
    let failed = |source| MicroError::Read { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_type().map_err(failed)?.is_dir() {
            continue;
        }
        let path = entry.path();
        let file = path.join("benchmark.json");
        if entry.file_name() != "new" || !file.is_file() {
            collect(&path, found)?;
            continue;
        }
        let modified = fs::metadata(&file).and_then(|metadata| metadata.modified());
        let measured_at = modified.map_err(|source| MicroError::Read { path: file.clone(), source })?;
        let Benchmark { full_id } = read(&file)?;
        let Estimates { mean, median } = read(&path.join("estimates.json"))?;
        let case = Case { name: full_id, mean_ns: mean.point_estimate, median_ns: median.point_estimate };
        found.push((measured_at, case));
    }
    Ok(())
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, MicroError> {
    let text = fs::read(path).map_err(|source| MicroError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| MicroError::Format { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As criterion 0.8.2 wrote them.
    const ESTIMATES: &str = r#"{"mean":{"confidence_interval":{"confidence_level":0.95,"lower_bound":40.1,
        "upper_bound":41.2},"point_estimate":MEAN,"standard_error":0.3},"median":{"confidence_interval":
        {"confidence_level":0.95,"lower_bound":39.8,"upper_bound":40.3},"point_estimate":MEDIAN,"standard_error":0.1},
        "median_abs_dev":{"confidence_interval":{"confidence_level":0.95,"lower_bound":0.2,"upper_bound":0.5},
        "point_estimate":0.4,"standard_error":0.05},"slope":null,"std_dev":{"confidence_interval":
        {"confidence_level":0.95,"lower_bound":1.0,"upper_bound":2.0},"point_estimate":1.5,"standard_error":0.2}}"#;

    fn record(folder: &Path, id: &str, second: u64, mean: &str, median: &str) {
        let case = folder.join(id.replace('/', "_")).join("new");
        fs::create_dir_all(&case).expect("a folder");
        let name = format!(
            r#"{{"group_id":"g","function_id":null,"value_str":null,"throughput":null,"full_id":"{id}",
            "directory_name":"g","title":"{id}"}}"#
        );
        let file = case.join("benchmark.json");
        fs::write(&file, name).expect("write");
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
        fs::File::options().write(true).open(file).expect("open").set_modified(at).expect("set the time");
        let estimates = ESTIMATES.replace("MEAN", mean).replace("MEDIAN", median);
        fs::write(case.join("estimates.json"), estimates).expect("write");
    }

    #[test]
    fn rows_come_in_order_and_beside_their_baseline() {
        let folder = tempfile::tempdir().expect("a folder");
        record(folder.path(), "roundtrip/same_core/sockmap", 2, "9000", "8000");
        record(folder.path(), "roundtrip/same_core/baseline_seqpacket", 1, "4500", "4000.5");
        record(folder.path(), "roundtrip/cross_core/sockmap", 3, "5", "4");
        let rows = rows(Bench::Ipc, folder.path()).expect("rows");
        let seen: Vec<_> =
            rows.iter().map(|row| (&*row.case, row.metric, row.value, row.baseline, row.ratio)).collect();
        let expect = [
            ("roundtrip/same_core/baseline_seqpacket", "median", 4000.5, Some(4000.5), Some(1.0)),
            ("roundtrip/same_core/baseline_seqpacket", "mean", 4500.0, Some(4500.0), Some(1.0)),
            ("roundtrip/same_core/sockmap", "median", 8000.0, Some(4000.5), Some(8000.0 / 4000.5)),
            ("roundtrip/same_core/sockmap", "mean", 9000.0, Some(4500.0), Some(2.0)),
            // Its baseline was not measured in this run.
            ("roundtrip/cross_core/sockmap", "median", 4.0, None, None),
            ("roundtrip/cross_core/sockmap", "mean", 5.0, None, None),
        ];
        assert_eq!(seen, expect);
        assert!(rows.iter().all(|row| (row.bench, row.unit) == ("ipc", "ns")));
    }

    #[test]
    fn only_the_newest_results_count() {
        let folder = tempfile::tempdir().expect("a folder");
        record(folder.path(), "process/fork", 1, "2", "1");
        let case = folder.path().join("process_fork");
        fs::create_dir(case.join("base")).expect("a folder");
        for file in ["benchmark.json", "estimates.json"] {
            fs::copy(case.join("new").join(file), case.join("base").join(file)).expect("copy");
        }
        assert_eq!(rows(Bench::Fork, folder.path()).expect("rows").len(), 2);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = rows(Bench::Fork, folder.path()).expect_err("nothing there").to_string();
        assert!(error.starts_with("no result of criterion is below"), "{error}");
        record(folder.path(), "process/fork", 1, "null", "1");
        let error = rows(Bench::Fork, folder.path()).expect_err("no mean").to_string();
        assert!(error.contains("estimates.json is not as criterion writes it"), "{error}");
        let missing = folder.path().join("missing");
        let error = rows(Bench::Fork, &missing).expect_err("no folder").to_string();
        assert!(error.starts_with("read ") && error.contains("missing"), "{error}");
    }

    #[test]
    fn every_family_has_a_baseline_that_is_its_own() {
        for case in [
            "roundtrip/same_core/futex",
            "copy/segment_warm/64KiB",
            "allocator/idle_1GiB/1KiB",
            "descriptor/check/refused",
            "zygote/fork to hello, native",
            "clone3_with_anonymous_memory/50MiB",
            "first_instruction/native/50MiB/memfd",
            "fresh_process/2MiB, 15 written/rewound",
        ] {
            let of = baseline(case).expect(case);
            assert_eq!(baseline(&of).as_ref(), Some(&of), "{case}");
        }
        assert_eq!(baseline("something/else"), None);
    }
}
