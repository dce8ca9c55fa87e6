//! The tables in SQLite.

use std::collections::BTreeMap;

use weir_archive::database::rusqlite::TransactionBehavior::Immediate;
use weir_archive::database::rusqlite::{self, Connection, OptionalExtension, Transaction};
use weir_consumer::Result;

use super::{PORTION, Portion, Publish, VERSION};
use crate::award::Award;
use crate::count::{Changes, Hit, Known, Pair, Standing, Wanted};

const SCHEMA: &str = "
    CREATE TABLE badge_schema (version INTEGER NOT NULL);
    CREATE TABLE badge_awards (
        rule TEXT NOT NULL,
        recipient TEXT NOT NULL,
        number INTEGER NOT NULL,
        awarded_ns INTEGER NOT NULL,
        message TEXT NOT NULL,
        id TEXT NOT NULL,
        topic TEXT NOT NULL,
        body TEXT NOT NULL,
        published_ns INTEGER,
        PRIMARY KEY (rule, recipient, number)
    );
    CREATE INDEX badge_unpublished ON badge_awards (awarded_ns) WHERE published_ns IS NULL;
    CREATE TABLE badge_counts (
        rule TEXT NOT NULL,
        recipient TEXT NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (rule, recipient)
    ) WITHOUT ROWID;
    CREATE TABLE badge_events (
        rule TEXT NOT NULL,
        recipient TEXT NOT NULL,
        value TEXT NOT NULL,
        at_ns INTEGER NOT NULL,
        PRIMARY KEY (rule, recipient, value)
    ) WITHOUT ROWID;
    CREATE TABLE badge_counted (
        rule TEXT NOT NULL,
        message TEXT NOT NULL,
        received_ns INTEGER NOT NULL,
        PRIMARY KEY (rule, message)
    ) WITHOUT ROWID;
";

/// Immediate: the one lock for writing is waited for at the start, when nothing was read yet.
fn begin(connection: &mut Connection) -> Result<Transaction<'_>> {
    Ok(connection.transaction_with_behavior(Immediate)?)
}

/// The version of the tables that are there then.
pub(super) fn recognise_or_make(connection: &mut Connection) -> Result<i64> {
    let transaction = begin(connection)?;
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'badge_schema'";
    let tables: i64 = transaction.query_row(tables, (), |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(SCHEMA)?;
        transaction.execute("INSERT INTO badge_schema VALUES (?1)", [VERSION])?;
    }
    let version = "SELECT coalesce(max(version), 0) FROM badge_schema";
    let version = transaction.query_row(version, (), |row| row.get(0))?;
    transaction.commit()?;
    Ok(version)
}

pub(super) fn count(
    connection: &mut Connection,
    hits: &[Hit<'_>],
    award_topic: &str,
) -> Result<usize> {
    let transaction = begin(connection)?;
    let wanted = Wanted::of(hits);
    let known = Known {
        counted: counted(&transaction, &wanted.keys)?,
        standings: standings(&transaction, &wanted.pairs)?,
    };
    let changes = wanted.count(hits, known, award_topic);
    save(&transaction, &changes)?;
    transaction.commit()?;
    Ok(changes.awards.len())
}

pub(super) fn publish(
    connection: &mut Connection,
    at_ns: i64,
    publish: &Publish<'_>,
) -> Result<Portion> {
    let transaction = begin(connection)?;
    let waiting = unpublished(&transaction)?;
    let portion = Portion::publish(&waiting, publish);
    mark_published(&transaction, &waiting[..portion.taken], at_ns)?;
    transaction.commit()?;
    Ok(portion)
}

pub(super) fn expire(connection: &mut Connection, horizons: &[(&str, i64)]) -> Result {
    let transaction = begin(connection)?;
    for horizon in horizons {
        let delete = "DELETE FROM badge_events WHERE rule = ?1 AND at_ns <= ?2";
        transaction.prepare_cached(delete)?.execute(*horizon)?;
    }
    Ok(transaction.commit()?)
}

fn counted(transaction: &Transaction<'_>, keys: &[(&str, &str)]) -> Result<Vec<bool>> {
    let mut counted = transaction
        .prepare_cached("SELECT 1 FROM badge_counted WHERE rule = ?1 AND message = ?2")?;
    let counted = keys.iter().map(|key| counted.exists(*key));
    Ok(counted.collect::<rusqlite::Result<_>>()?)
}

fn standings(transaction: &Transaction<'_>, pairs: &[Pair<'_>]) -> Result<Vec<Standing>> {
    let mut awards = transaction.prepare_cached(
        "SELECT coalesce(max(number), 0) FROM badge_awards WHERE rule = ?1 AND recipient = ?2",
    )?;
    let mut count = transaction
        .prepare_cached("SELECT count FROM badge_counts WHERE rule = ?1 AND recipient = ?2")?;
    let mut events = transaction.prepare_cached(
        "SELECT value, at_ns FROM badge_events WHERE rule = ?1 AND recipient = ?2",
    )?;
    let mut standings = Vec::with_capacity(pairs.len());
    for Pair { rule, recipient } in pairs {
        let key = (&rule.id, recipient);
        let mut standing = Standing {
            awards: awards.query_row(key, |row| row.get(0))?,
            ..Standing::default()
        };
        if rule.keeps_events() {
            let rows = events.query_map(key, |row| Ok((row.get(0)?, row.get(1)?)))?;
            standing.events = rows.collect::<rusqlite::Result<BTreeMap<_, _>>>()?;
        } else {
            let found = count.query_row(key, |row| row.get(0)).optional()?;
            standing.count = found.unwrap_or_default();
        }
        standings.push(standing);
    }
    Ok(standings)
}

fn save(transaction: &Transaction<'_>, changes: &Changes<'_>) -> Result {
    let mut insert = transaction.prepare_cached("INSERT INTO badge_counted VALUES (?1, ?2, ?3)")?;
    for row in &changes.counted {
        insert.execute(*row)?;
    }
    let mut write = transaction.prepare_cached("REPLACE INTO badge_counts VALUES (?1, ?2, ?3)")?;
    let mut remove = transaction
        .prepare_cached("DELETE FROM badge_counts WHERE rule = ?1 AND recipient = ?2")?;
    for (pair, count) in &changes.counts {
        match count {
            0 => remove.execute((&pair.rule.id, pair.recipient))?,
            count => write.execute((&pair.rule.id, pair.recipient, count))?,
        };
    }
    let mut remove = transaction.prepare_cached(
        "DELETE FROM badge_events WHERE rule = ?1 AND recipient = ?2 AND value = ?3",
    )?;
    for (pair, value) in &changes.events_gone {
        remove.execute((&pair.rule.id, pair.recipient, value))?;
    }
    let mut write =
        transaction.prepare_cached("REPLACE INTO badge_events VALUES (?1, ?2, ?3, ?4)")?;
    for (pair, value, at_ns) in &changes.events {
        write.execute((&pair.rule.id, pair.recipient, value, at_ns))?;
    }
    let mut insert = transaction
        .prepare_cached("INSERT INTO badge_awards VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, NULL)")?;
    for award in &changes.awards {
        insert.execute((
            &award.rule,
            &award.recipient,
            award.number,
            award.awarded_ns,
            &award.message,
            &award.id,
            &award.topic,
            &award.body,
        ))?;
    }
    Ok(())
}

fn unpublished(transaction: &Transaction<'_>) -> Result<Vec<Award>> {
    let mut select = transaction.prepare_cached(
        "SELECT rule, recipient, number, awarded_ns, message, id, topic, body
         FROM badge_awards WHERE published_ns IS NULL
         ORDER BY awarded_ns, rule, recipient, number LIMIT ?1",
    )?;
    let awards = select.query_map([PORTION], |row| {
        Ok(Award {
            rule: row.get(0)?,
            recipient: row.get(1)?,
            number: row.get(2)?,
            awarded_ns: row.get(3)?,
            message: row.get(4)?,
            id: row.get(5)?,
            topic: row.get(6)?,
            body: row.get(7)?,
        })
    })?;
    Ok(awards.collect::<rusqlite::Result<_>>()?)
}

fn mark_published(transaction: &Transaction<'_>, awards: &[Award], at_ns: i64) -> Result {
    let mut mark = transaction.prepare_cached(
        "UPDATE badge_awards SET published_ns = ?4
         WHERE rule = ?1 AND recipient = ?2 AND number = ?3",
    )?;
    for award in awards {
        mark.execute((&award.rule, &award.recipient, award.number, at_ns))?;
    }
    Ok(())
}
