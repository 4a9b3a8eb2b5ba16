//! Traces as files: JSON lines, one invocation a line, in order of arrival.
//!
//! ```text
//! {"arrival_ns":0,"function":3,"bursts_ns":[5000000]}
//! {"arrival_ns":1200000,"function":0,"size_bytes":4096,"bursts_ns":[2000000,10000000,3000000]}
//! ```
//!
//! `bursts_ns` is CPU, I/O, CPU … and ends with CPU. `size_bytes` may be left out. Functions are small numbers.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use spry_sched::FunctionId;
use spry_sched::sim::{Job, check};

use super::{SimError, file_error};

/// More functions than any node has; arrays are kept by their numbers.
const FUNCTION_MAX: u32 = 65_535;
/// A longer line is none of ours.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// So many fit into memory with room to spare.
const JOBS_MAX: usize = 10_000_000;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    arrival_ns: u64,
    function: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    bursts_ns: Vec<u64>,
}

/// Reads and checks a trace.
pub fn read(path: &Path) -> Result<Vec<Job>, SimError> {
    let mut file = BufReader::new(File::open(path).map_err(file_error("open", path))?);
    let mut trace = Vec::new();
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let read = std::io::Read::take(&mut file, LINE_BYTES_MAX + 1).read_until(b'\n', &mut text);
        if read.map_err(file_error("read", path))? == 0 {
            break;
        }
        let bad = |what: String| SimError::Line { path: path.to_owned(), line, what };
        if text.len() as u64 > LINE_BYTES_MAX {
            return Err(bad(format!("is longer than {LINE_BYTES_MAX} bytes")));
        }
        if trace.len() == JOBS_MAX {
            return Err(bad(format!("is one more than {JOBS_MAX} invocations")));
        }
        let Line { arrival_ns, function, size_bytes, bursts_ns } =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if function > FUNCTION_MAX {
            return Err(bad(format!("function {function} is above {FUNCTION_MAX}")));
        }
        trace.push(Job { arrival_ns, function: FunctionId(function), size_bytes, bursts_ns });
    }
    check(&trace)?;
    Ok(trace)
}

/// Writes a trace.
pub fn write(path: &Path, trace: &[Job]) -> Result<(), SimError> {
    let mut file = BufWriter::new(File::create(path).map_err(file_error("create", path))?);
    for job in trace {
        let Job { arrival_ns, function, size_bytes, bursts_ns } = job.clone();
        let line = Line { arrival_ns, function: function.0, size_bytes, bursts_ns };
        serde_json::to_writer(&mut file, &line).map_err(|error| file_error("write", path)(error.into()))?;
        file.write_all(b"\n").map_err(file_error("write", path))?;
    }
    file.flush().map_err(file_error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Job>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let name = file.path().display().to_string();
        read(file.path()).map_err(|error| error.to_string().replace(&name, "FILE"))
    }

    #[test]
    fn what_is_written_is_read_again() {
        let plain = Job { arrival_ns: 5, function: FunctionId(1), size_bytes: None, bursts_ns: vec![7] };
        let sleeps = Job { size_bytes: Some(4096), bursts_ns: vec![1, 2, 3], ..plain.clone() };
        let trace = vec![plain, sleeps];
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), &trace).unwrap();
        assert_eq!(read(file.path()).unwrap(), trace);
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.starts_with("{\"arrival_ns\":5,\"function\":1,\"bursts_ns\":[7]}\n"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let good = "{\"arrival_ns\":5,\"function\":1,\"bursts_ns\":[7]}\n";
        for (line, what) in [
            ("{", "FILE:2: EOF"),
            ("\n", "FILE:2: EOF"),
            ("{\"arrival_ns\":6,\"function\":1,\"bursts_ns\":[7],\"x\":1}", "FILE:2: unknown field"),
            ("{\"arrival_ns\":-6,\"function\":1,\"bursts_ns\":[7]}", "FILE:2: invalid value"),
            (
                "{\"arrival_ns\":6,\"function\":65536,\"bursts_ns\":[7]}",
                "FILE:2: function 65536 is above 65535",
            ),
            ("{\"arrival_ns\":4,\"function\":1,\"bursts_ns\":[7]}", "job 1 of the trace arrives before"),
            ("{\"arrival_ns\":6,\"function\":1,\"bursts_ns\":[7,8]}", "job 1 of the trace must have bursts"),
            ("\u{0}\u{1}", "FILE:2: expected value"),
        ] {
            let got = read_text(&format!("{good}{line}")).unwrap_err();
            assert!(got.starts_with(what), "{line}: {got}");
        }
        let long = format!("{good}{}", " ".repeat(LINE_BYTES_MAX as usize + 5));
        assert_eq!(read_text(&long).unwrap_err(), "FILE:2: is longer than 1048576 bytes");
        assert!(
            read(Path::new("/nonexistent/trace")).unwrap_err().to_string().starts_with("open /nonexistent")
        );
    }
}
