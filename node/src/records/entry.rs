//! What is written down, byte by byte: one call's record, one line of output, or what a call answered.
//!
//! ```text
//! entry   u32 length of the rest │ u8 kind │ …
//! record  id 32 │ u8 function… │ u64 started │ u8 start │ u64 version, queue, start, exec, cpu, memory │ u16 status
//!         │ u8 error… │ u16 steps…
//! line    u8 has id │ id 32 │ u8 function… │ u64 at │ u8 stream │ u16 text…
//! result  id 32 │ u8 function… │ u64 at │ u16 status │ u8 truncated │ u8 content type… │ u32 body…
//! ```
//!
//! Little-endian, nothing aligned; `u8 x…` is a length and so many bytes. It is written by request threads, so it is a few
//! copies and nothing else; it is read back from a file that somebody else may have damaged, so nothing is trusted.

use crate::activation::{Record, Start, Stream};
use crate::gateway::call_id::CallId;

const RECORD: u8 = 1;
const LINE: u8 = 2;
const RESULT: u8 = 3;
/// Bytes of one line that are kept.
const TEXT_MAX: usize = 16 * 1024;
/// Bytes of a chain's steps.
const STEPS_MAX: usize = 16 * 1024;

/// A call's record as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// Whose.
    pub function: String,
    /// The record; its error's code stands in `error`.
    pub record: Record,
    /// The error's code.
    pub error: Option<String>,
}

/// A line as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLine {
    /// Whose.
    pub function: String,
    /// Which call's; `None`: written while the function was loaded.
    pub call: Option<CallId>,
    /// When it was read: milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// Where it was written.
    pub stream: Stream,
    /// The text.
    pub text: String,
}

/// What a call answered, as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResult {
    /// Whose.
    pub function: String,
    /// Which call's.
    pub call: CallId,
    /// When: milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The HTTP status.
    pub status: u16,
    /// Whether there was more of the body.
    pub truncated: bool,
    /// The `Content-Type`; nothing, if there was none.
    pub content_type: String,
    /// The body, or its beginning.
    pub body: Vec<u8>,
}

/// One of the three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A call.
    Record(StoredRecord),
    /// A line.
    Line(StoredLine),
    /// An answer.
    Result(StoredResult),
}

fn entry(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn short(out: &mut Vec<u8>, text: &str) {
    let length = text.len().min(255);
    out.push(length as u8);
    out.extend_from_slice(&text.as_bytes()[..length]);
}

fn long(out: &mut Vec<u8>, text: &str, most: usize) {
    let mut length = text.len().min(most);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    out.extend_from_slice(&(length as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..length]);
}

/// Appends a record.
pub(super) fn put_record(out: &mut Vec<u8>, function: &str, record: &Record) {
    entry(out, |out| {
        out.push(RECORD);
        out.extend_from_slice(record.call_id.as_bytes());
        short(out, function);
        out.extend_from_slice(&record.started_unix_ms.to_le_bytes());
        out.push(match record.start {
            None => 0,
            Some(Start::Cold) => 1,
            Some(Start::Forked) => 2,
            Some(Start::Warm) => 3,
        });
        let numbers = [
            record.version,
            record.queue_ns,
            record.start_ns,
            record.exec_ns,
            record.cpu_ns.map_or(u64::MAX, |ns| ns),
            record.memory_bytes.map_or(u64::MAX, |bytes| bytes),
        ];
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&record.status.to_le_bytes());
        short(out, record.error.unwrap_or_default());
        long(out, record.steps.as_deref().unwrap_or_default(), STEPS_MAX);
    });
}

/// Appends a line.
pub(super) fn put_line(
    out: &mut Vec<u8>,
    function: &str,
    call: Option<CallId>,
    at_unix_ms: u64,
    stream: Stream,
    text: &str,
) {
    entry(out, |out| {
        out.push(LINE);
        out.push(u8::from(call.is_some()));
        out.extend_from_slice(call.unwrap_or(CallId::new(0, 0)).as_bytes());
        short(out, function);
        out.extend_from_slice(&at_unix_ms.to_le_bytes());
        out.push(u8::from(stream == Stream::Stderr));
        long(out, text, TEXT_MAX);
    });
}

/// Appends an answer.
pub(super) fn put_result(out: &mut Vec<u8>, result: &StoredResult) {
    entry(out, |out| {
        out.push(RESULT);
        out.extend_from_slice(result.call.as_bytes());
        short(out, &result.function);
        out.extend_from_slice(&result.at_unix_ms.to_le_bytes());
        out.extend_from_slice(&result.status.to_le_bytes());
        out.push(u8::from(result.truncated));
        short(out, &result.content_type);
        out.extend_from_slice(&(result.body.len() as u32).to_le_bytes());
        out.extend_from_slice(&result.body);
    });
}

/// Reads entries one after another; ends at the first that is no entry.
#[derive(Debug, Clone)]
pub(super) struct Entries<'a>(pub(super) &'a [u8]);

impl Iterator for Entries<'_> {
    type Item = Entry;
    fn next(&mut self) -> Option<Entry> {
        let mut rest = Bytes(self.0);
        let length = u32::from_le_bytes(rest.array()?) as usize;
        let body = rest.take(length)?;
        self.0 = rest.0;
        read(Bytes(body))
    }
}

fn read(mut from: Bytes<'_>) -> Option<Entry> {
    match from.array::<1>()?[0] {
        RECORD => {
            let call_id = from.call_id()?;
            let function = from.short()?;
            let started_unix_ms = from.number()?;
            let start = match from.array::<1>()?[0] {
                1 => Some(Start::Cold),
                2 => Some(Start::Forked),
                3 => Some(Start::Warm),
                _ => None,
            };
            let (version, queue_ns, start_ns, exec_ns) =
                (from.number()?, from.number()?, from.number()?, from.number()?);
            let known = |number| (number != u64::MAX).then_some(number);
            let (cpu_ns, memory_bytes) = (known(from.number()?), known(from.number()?));
            let status = u16::from_le_bytes(from.array()?);
            let error = Some(from.short()?).filter(|text| !text.is_empty());
            let steps = Some(from.long()?).filter(|text| !text.is_empty()).map(Into::into);
            let record = Record {
                call_id,
                version,
                started_unix_ms,
                start,
                queue_ns,
                start_ns,
                exec_ns,
                cpu_ns,
                memory_bytes,
                status,
                error: None,
                steps,
            };
            Some(Entry::Record(StoredRecord { function, record, error }))
        }
        LINE => {
            let has_call = from.array::<1>()?[0] != 0;
            let call = Some(from.call_id()?).filter(|_| has_call);
            let (function, at_unix_ms) = (from.short()?, from.number()?);
            let stream = if from.array::<1>()?[0] == 0 { Stream::Stdout } else { Stream::Stderr };
            Some(Entry::Line(StoredLine { function, call, at_unix_ms, stream, text: from.long()? }))
        }
        RESULT => {
            let call = from.call_id()?;
            let (function, at_unix_ms) = (from.short()?, from.number()?);
            let status = u16::from_le_bytes(from.array()?);
            let truncated = from.array::<1>()?[0] != 0;
            let content_type = from.short()?;
            let length = u32::from_le_bytes(from.array()?) as usize;
            let body = from.take(length)?.to_vec();
            let result = StoredResult { function, call, at_unix_ms, status, truncated, content_type, body };
            Some(Entry::Result(result))
        }
        _ => None,
    }
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn call_id(&mut self) -> Option<CallId> {
        CallId::parse(std::str::from_utf8(self.take(32)?).ok()?)
    }
    fn text(&mut self, length: usize) -> Option<String> {
        self.take(length).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
    fn short(&mut self) -> Option<String> {
        let length = self.array::<1>()?[0];
        self.text(length.into())
    }
    fn long(&mut self) -> Option<String> {
        let length = u16::from_le_bytes(self.array()?);
        self.text(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> Record {
        Record {
            call_id: CallId::new(1, 2),
            version: 3,
            started_unix_ms: 4,
            start: Some(Start::Forked),
            queue_ns: 5,
            start_ns: 6,
            exec_ns: 7,
            cpu_ns: Some(8),
            memory_bytes: None,
            status: 500,
            error: Some("function_failed"),
            steps: Some("a;dur=1.0".into()),
        }
    }

    fn result() -> StoredResult {
        StoredResult {
            function: "f".into(),
            call: CallId::new(1, 2),
            at_unix_ms: 11,
            status: 404,
            truncated: true,
            content_type: "text/plain".into(),
            body: vec![0, 255, 7],
        }
    }

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        put_record(&mut bytes, "f", &record());
        put_line(&mut bytes, "f", Some(CallId::new(1, 2)), 9, Stream::Stderr, "é text");
        put_line(&mut bytes, "g", None, 10, Stream::Stdout, &"é".repeat(TEXT_MAX));
        put_result(&mut bytes, &result());
        bytes
    }

    #[test]
    fn entries_come_back_as_they_went() {
        let bytes = written();
        let entries: Vec<_> = Entries(&bytes).collect();
        let Entry::Record(stored) = &entries[0] else { panic!("a record") };
        assert_eq!((stored.function.as_str(), stored.error.as_deref()), ("f", Some("function_failed")));
        assert_eq!(stored.record, Record { error: None, ..record() });
        let Entry::Line(line) = &entries[1] else { panic!("a line") };
        assert_eq!(
            (line.call, line.text.as_str(), line.stream),
            (Some(CallId::new(1, 2)), "é text", Stream::Stderr)
        );
        let Entry::Line(line) = &entries[2] else { panic!("a line") };
        assert_eq!((line.call, line.text.len(), entries.len()), (None, TEXT_MAX, 4));
        assert_eq!(entries[3], Entry::Result(result()));
    }

    proptest! {
        #[test]
        fn damaged_entries_end_the_reading_and_nothing_else(cut in 0usize..400, at in 0usize..400, with in any::<u8>()) {
            let mut bytes = written();
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            prop_assert!(Entries(&bytes).count() <= 400);
        }
    }
}
