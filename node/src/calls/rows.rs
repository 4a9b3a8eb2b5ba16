//! What lies in `calls.db`, row by row: plain values, no connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Row, Statement, params};

use super::call::{Call, Head, decode_headers, encode_headers, encoded_headers_len, instant_of, remaining};
use crate::gateway::call_id::CallId;

impl ToSql for CallId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.as_bytes())))
    }
}

impl FromSql for CallId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str().and_then(|text| Self::parse(text).ok_or(FromSqlError::InvalidType))
    }
}

/// What came of one run of a call.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The HTTP status.
    pub status: u16,
    /// The answer's headers.
    pub headers: HeaderMap,
    /// Its body, or as much of it as is kept.
    pub body: Bytes,
    /// Whether the body was cut.
    pub truncated: bool,
    /// The error's code, when spry answered and not the function.
    pub error: Option<String>,
    /// How long the run took.
    pub took: Duration,
}

/// How a call ended, as it is remembered.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Which call.
    pub id: CallId,
    /// Whom it called.
    pub function: Arc<str>,
    /// What came of its last run.
    pub outcome: Outcome,
    /// How often it ran.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted_unix_ms: u64,
    /// When it ended.
    pub ended_unix_ms: u64,
    /// It was given up: it is (or was) among the dead letters.
    pub dead: bool,
}

impl Ended {
    /// In the order of [`Self::COLUMNS`].
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let headers: Vec<u8> = row.get(3)?;
        Ok(Self {
            id: row.get(0)?,
            function: row.get::<_, String>(1)?.into(),
            outcome: Outcome {
                status: row.get(2)?,
                headers: decode_headers(headers.split(|byte| *byte == b'\n')).unwrap_or_default(),
                body: row.get::<_, Vec<u8>>(4)?.into(),
                truncated: row.get(5)?,
                error: row.get(6)?,
                took: Duration::from_millis(row.get(7)?),
            },
            attempts: row.get(8)?,
            accepted_unix_ms: row.get(9)?,
            ended_unix_ms: row.get(10)?,
            dead: row.get(11)?,
        })
    }

    pub(super) const COLUMNS: &str = "id, function, status, headers, body, truncated, error, took_ms, attempts, \
                                      accepted_unix_ms, ended_unix_ms, dead";

    /// Binds the first parameters of a statement, in the order of [`Self::COLUMNS`].
    pub(super) fn bind(&self, statement: &mut Statement<'_>) -> rusqlite::Result<()> {
        let o = &self.outcome;
        let mut headers = Vec::new();
        encode_headers(&o.headers, &mut headers);
        let took_ms = o.took.as_millis() as u64;
        let values = params![
            self.id,
            &*self.function,
            o.status,
            headers,
            &*o.body,
            o.truncated,
            o.error,
            took_ms,
            self.attempts,
            self.accepted_unix_ms,
            self.ended_unix_ms,
            self.dead,
        ];
        values
            .iter()
            .enumerate()
            .try_for_each(|(index, value)| statement.raw_bind_parameter(index + 1, value))
    }

    /// Bytes of its answer.
    pub(super) fn bytes(&self) -> u64 {
        (encoded_headers_len(&self.outcome.headers) + self.outcome.body.len()) as u64
    }

    /// Bytes that it takes on disk, roughly.
    pub(super) fn weight(&self) -> u64 {
        128 + self.bytes()
    }
}

/// Somebody wants to be told of an end. What they are told lies on disk until then: see [`super::database::Reader::told`].
#[derive(Debug, Clone)]
pub struct Callback {
    /// Its place on disk.
    pub seq: u64,
    /// Which call has ended.
    pub id: CallId,
    /// Whom to tell.
    pub url: Arc<str>,
    /// What it takes of the room for calls that wait.
    pub bytes: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next.
    pub due: Instant,
}

/// A trigger, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTrigger {
    /// Its name.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Whether it rests.
    pub paused: bool,
    /// The last instant that it has fired for, or when it was applied.
    pub fired_unix_ms: u64,
}

/// A call that was given up.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct DeadLetter {
    /// Its public name.
    pub call_id: String,
    /// Whom it called.
    pub function: String,
    /// When it was accepted.
    pub accepted_unix_ms: u64,
    /// When it was given up.
    pub died_unix_ms: u64,
    /// How often it ran.
    pub attempts: u32,
    /// The status of its last run.
    pub status: u16,
    /// The error's code, when spry answered and not the function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The beginning of what the last run answered.
    pub reason: String,
    /// Bytes of its request's body.
    pub body_bytes: u64,
}

impl DeadLetter {
    pub(super) const COLUMNS: &str = "id, function, accepted_unix_ms, died_unix_ms, attempts, status, error, \
                                      reason, length(body)";

    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            call_id: row.get(0)?,
            function: row.get(1)?,
            accepted_unix_ms: row.get(2)?,
            died_unix_ms: row.get(3)?,
            attempts: row.get(4)?,
            status: row.get(5)?,
            error: row.get(6)?,
            reason: row.get(7)?,
            body_bytes: row.get(8)?,
        })
    }
}

/// A call as a row of `calls`, without its body.
pub(super) const CALL_COLUMNS: &str = "seq, id, function, head, length(body), callback, accepted_unix_ms, \
                                       noted_unix_ms, delay_ms, failures, ripe_unix_ms";

/// Reads [`CALL_COLUMNS`]; `None`: its head can't be read.
pub(super) fn read_call(row: &Row<'_>, now_unix_ms: u64, now: Instant) -> rusqlite::Result<Option<Call>> {
    let head: Vec<u8> = row.get(3)?;
    let Some(head) = Head::decode(&head) else { return Ok(None) };
    let (noted_unix_ms, ripe_unix_ms) = (row.get(7)?, row.get(10)?);
    let delay = Duration::from_millis(row.get(8)?);
    let due = now + remaining(delay, noted_unix_ms, now_unix_ms);
    let has_been_due = ripe_unix_ms <= now_unix_ms;
    Ok(Some(Call {
        id: row.get(1)?,
        seq: row.get(0)?,
        function: row.get::<_, String>(2)?.into(),
        head: Arc::new(head),
        body: None,
        body_len: row.get(4)?,
        callback: row.get::<_, Option<String>>(5)?.map(Into::into),
        accepted_unix_ms: row.get(6)?,
        ripe_at: if has_been_due { instant_of(ripe_unix_ms, now_unix_ms, now) } else { due },
        due,
        failures: row.get(9)?,
        refusals: 0,
    }))
}
