//! What is written together: everything that came while the disk was busy, in one transaction.

use std::time::{Duration, Instant};

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Keep, Key, Known, Sql};
use crate::calls::call::Call;
use crate::calls::rows::{CALL_COLUMNS, Callback, Ended, StoredTrigger, read_call};
use crate::gateway::call_id::CallId;

/// Bytes of an answer that a dead letter shows.
const REASON_MAX: usize = 4096;
/// SQL for [`Ended::weight`].
pub(super) const END_WEIGHT: &str = "128 + length(headers) + length(body)";

/// One transaction: many operations, one flush.
pub(in crate::calls) struct Batch<'a> {
    pub(super) transaction: Transaction<'a>,
    pub(super) end_bytes: &'a mut u64,
    /// What `end_bytes` will be when this is on disk.
    pub(super) end_bytes_then: u64,
}

impl Batch<'_> {
    pub(in crate::calls) fn commit(self) -> Sql<()> {
        self.transaction.commit()?;
        *self.end_bytes = self.end_bytes_then;
        Ok(())
    }

    /// Whether this key was used before; if not, it is used now.
    pub(in crate::calls) fn know(
        &self,
        function: &str,
        key: &Key,
        id: CallId,
        now_unix_ms: u64,
        age: Duration,
    ) -> Sql<Option<Known>> {
        let oldest = now_unix_ms.saturating_sub(age.as_millis() as u64);
        let sql = "SELECT id, digest FROM keys WHERE function = ?1 AND key = ?2 AND unix_ms >= ?3";
        let mut statement = self.transaction.prepare_cached(sql)?;
        let known = statement.query_row(params![function, key.key, oldest], |row| {
            Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?))
        });
        if let Some((known, digest)) = known.optional()? {
            return Ok(Some(if digest == key.digest { Known::Same(known) } else { Known::Other(known) }));
        }
        let sql = "INSERT OR REPLACE INTO keys VALUES (?1, ?2, ?3, ?4, ?5)";
        self.transaction.prepare_cached(sql)?.execute(params![
            function,
            key.key,
            id,
            key.digest,
            now_unix_ms
        ])?;
        Ok(None)
    }

    pub(in crate::calls) fn insert(&self, call: &Call, delay: Duration) -> Sql<()> {
        let sql = "INSERT INTO calls VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6 + ?7, ?6, ?7, 0, ?8)";
        let body = call.body.as_deref().unwrap_or_default();
        self.transaction.prepare_cached(sql)?.execute(params![
            call.seq,
            call.id,
            &*call.function,
            call.head.encode(),
            call.callback.as_deref(),
            call.accepted_unix_ms,
            delay.as_millis() as u64,
            body,
        ])?;
        Ok(())
    }

    pub(in crate::calls) fn delete(&self, seq: u64) -> Sql<()> {
        self.transaction.prepare_cached("DELETE FROM calls WHERE seq = ?1")?.execute([seq])?;
        Ok(())
    }

    pub(in crate::calls) fn postpone(
        &self,
        seq: u64,
        failures: u32,
        now_unix_ms: u64,
        delay: Duration,
    ) -> Sql<()> {
        let sql = "UPDATE calls SET failures = ?2, noted_unix_ms = ?3, delay_ms = ?4 WHERE seq = ?1";
        let values = params![seq, failures, now_unix_ms, delay.as_millis() as u64];
        self.transaction.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    pub(in crate::calls) fn end(&mut self, ended: &Ended) -> Sql<()> {
        let columns = Ended::COLUMNS;
        let sql = format!(
            "INSERT OR REPLACE INTO ends ({columns}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)"
        );
        let mut statement = self.transaction.prepare_cached(&sql)?;
        ended.bind(&mut statement)?;
        statement.raw_execute()?;
        self.end_bytes_then += ended.weight();
        Ok(())
    }

    pub(in crate::calls) fn call_back(&self, callback: &Callback, told: &Ended) -> Sql<()> {
        let columns = Ended::COLUMNS;
        let sql = format!(
            "INSERT INTO callbacks ({columns}, seq, url, noted_unix_ms, delay_ms, tries) \
             VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?11,0,0)"
        );
        let mut statement = self.transaction.prepare_cached(&sql)?;
        told.bind(&mut statement)?;
        statement.raw_bind_parameter(13, callback.seq)?;
        statement.raw_bind_parameter(14, &*callback.url)?;
        statement.raw_execute()?;
        Ok(())
    }

    pub(in crate::calls) fn call_back_later(
        &self,
        seq: u64,
        tries: u32,
        now_unix_ms: u64,
        delay: Duration,
    ) -> Sql<()> {
        let sql = "UPDATE callbacks SET tries = ?2, noted_unix_ms = ?3, delay_ms = ?4 WHERE seq = ?1";
        let values = params![seq, tries, now_unix_ms, delay.as_millis() as u64];
        self.transaction.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    pub(in crate::calls) fn called_back(&self, seq: u64) -> Sql<()> {
        self.transaction.prepare_cached("DELETE FROM callbacks WHERE seq = ?1")?.execute([seq])?;
        Ok(())
    }

    /// Moves a call to the dead letters.
    pub(in crate::calls) fn bury(&self, seq: u64, ended: &Ended) -> Sql<()> {
        let sql = "INSERT OR REPLACE INTO dead (id, function, head, callback, accepted_unix_ms, died_unix_ms, attempts, \
                   status, error, reason, body) \
                   SELECT id, function, head, callback, accepted_unix_ms, ?2, ?3, ?4, ?5, ?6, body \
                   FROM calls WHERE seq = ?1";
        let shown = &ended.outcome.body[..ended.outcome.body.len().min(REASON_MAX)];
        let reason = String::from_utf8_lossy(shown);
        let values = params![
            seq,
            ended.ended_unix_ms,
            ended.attempts,
            ended.outcome.status,
            ended.outcome.error,
            reason,
        ];
        self.transaction.prepare_cached(sql)?.execute(values)?;
        self.delete(seq)
    }

    /// Makes a dead letter a call again; `None`: there is none.
    pub(in crate::calls) fn revive(
        &self,
        id: CallId,
        seq: u64,
        now_unix_ms: u64,
        now: Instant,
    ) -> Sql<Option<Call>> {
        // Its age counts from now on: it gets all its chances again.
        let sql = "INSERT INTO calls SELECT ?2, id, function, head, callback, ?3, ?3, ?3, 0, 0, body \
                   FROM dead WHERE id = ?1";
        if self.transaction.execute(sql, params![id, seq, now_unix_ms])? == 0 {
            return Ok(None);
        }
        self.transaction.execute("DELETE FROM dead WHERE id = ?1", [id])?;
        self.transaction.execute("DELETE FROM ends WHERE id = ?1", [id])?;
        let sql = format!("SELECT {CALL_COLUMNS} FROM calls WHERE seq = ?1");
        self.transaction.query_row(&sql, [seq], |row| read_call(row, now_unix_ms, now))
    }

    /// Removes a dead letter; false: there is none.
    pub(in crate::calls) fn drop_dead(&self, id: CallId) -> Sql<bool> {
        Ok(self.transaction.execute("DELETE FROM dead WHERE id = ?1", [id])? > 0)
    }

    /// Stores a trigger in the place of the one of its name.
    pub(in crate::calls) fn put_trigger(&self, trigger: &StoredTrigger) -> Sql<()> {
        let sql = "INSERT OR REPLACE INTO triggers VALUES (?1, ?2, ?3, ?4)";
        let values = params![trigger.name, trigger.text, trigger.paused, trigger.fired_unix_ms];
        self.transaction.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    /// Notes the instant that a trigger has fired for.
    pub(in crate::calls) fn fired(&self, name: &str, unix_ms: u64) -> Sql<()> {
        let sql = "UPDATE triggers SET fired_unix_ms = ?2 WHERE name = ?1";
        self.transaction.prepare_cached(sql)?.execute(params![name, unix_ms])?;
        Ok(())
    }

    /// Removes a trigger; false: there is none.
    pub(in crate::calls) fn remove_trigger(&self, name: &str) -> Sql<bool> {
        Ok(self.transaction.execute("DELETE FROM triggers WHERE name = ?1", [name])? > 0)
    }

    /// Forgets what is beyond its bounds.
    pub(in crate::calls) fn trim(&mut self, keep: &Keep, now_unix_ms: u64) -> Sql<Trimmed> {
        let before = |age: Duration| now_unix_ms.saturating_sub(age.as_millis() as u64);
        let tx = &self.transaction;
        tx.execute("DELETE FROM keys WHERE unix_ms < ?1", [before(keep.key_age)])?;
        // The oldest are first; the clock may have been set meanwhile, which costs an end its place at worst.
        let by_age = "DELETE FROM ends WHERE n < (SELECT coalesce(min(n), 9223372036854775807) FROM ends WHERE ended_unix_ms >= ?1)";
        tx.execute(by_age, [before(keep.age)])?;
        let (bytes, beyond) = self.newest_ends(keep)?;
        if let Some(beyond) = beyond {
            tx.execute("DELETE FROM ends WHERE n <= ?1", [beyond])?;
        }
        self.end_bytes_then = bytes;
        // By their number, not by the numbers that they have: many have been tried again or dropped since.
        let by_count = "DELETE FROM dead WHERE n <= (SELECT n FROM dead ORDER BY n DESC LIMIT 1 OFFSET ?1)";
        let dead = tx.execute(by_count, [keep.dead_count])?;
        let oldest = |sql: &str| tx.query_row(sql, [], |row| row.get::<_, Option<u64>>(0));
        let end = oldest("SELECT ended_unix_ms FROM ends ORDER BY n LIMIT 1").optional()?.flatten();
        let key = oldest("SELECT min(unix_ms) FROM keys")?;
        let left = |unix_ms: u64, age: Duration| {
            age.saturating_sub(Duration::from_millis(now_unix_ms.saturating_sub(unix_ms)))
        };
        let ends = end.map(|unix_ms| left(unix_ms, keep.age));
        let again_in = ends.into_iter().chain(key.map(|unix_ms| left(unix_ms, keep.key_age))).min();
        Ok(Trimmed { dead, again_in })
    }

    /// Bytes of the ends that are kept, and the newest that isn't. When there are too many bytes, an eighth goes with them: not
    /// every end that comes is to cost a look at all of them.
    fn newest_ends(&self, keep: &Keep) -> Sql<(u64, Option<i64>)> {
        let sql = format!("SELECT n, {END_WEIGHT} FROM ends ORDER BY n DESC");
        let mut statement = self.transaction.prepare_cached(&sql)?;
        let mut rows = statement.query([])?;
        let most = if self.end_bytes_then > keep.bytes { keep.bytes - keep.bytes / 8 } else { keep.bytes };
        let (mut count, mut bytes) = (0, 0_u64);
        while let Some(row) = rows.next()? {
            let (n, weight): (i64, u64) = (row.get(0)?, row.get(1)?);
            let most = if count == 0 { keep.bytes } else { most };
            if count == keep.count || bytes + weight > most {
                return Ok((bytes, Some(n)));
            }
            (count, bytes) = (count + 1, bytes + weight);
        }
        Ok((bytes, None))
    }
}

/// What a look for what can be forgotten came to.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::calls) struct Trimmed {
    /// Dead letters that had to make room.
    pub(in crate::calls) dead: usize,
    /// When the next thing gets too old.
    pub(in crate::calls) again_in: Option<Duration>,
}
