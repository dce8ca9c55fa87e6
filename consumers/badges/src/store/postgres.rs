//! The tables in PostgreSQL, in the archive's schema.
//!
//! Statements take whole batches as arrays: a batch costs as many round trips as a message.

use weir_archive::database::Postgres;
use weir_archive::database::tokio_postgres::types::ToSql;
use weir_archive::database::tokio_postgres::{Error, Transaction};
use weir_consumer::Result;

use super::{PORTION, Portion, Publish, VERSION};
use crate::award::Award;
use crate::count::{Changes, Hit, Known, Pair, Standing, Wanted};

// As in the archive, texts are compared byte by byte.
const SCHEMA: &str = r#"
    CREATE TABLE badge_schema (version bigint NOT NULL);
    CREATE TABLE badge_awards (
        rule text COLLATE "C" NOT NULL,
        recipient text COLLATE "C" NOT NULL,
        number bigint NOT NULL,
        awarded_ns bigint NOT NULL,
        message text COLLATE "C" NOT NULL,
        id text NOT NULL,
        topic text NOT NULL,
        body text NOT NULL,
        published_ns bigint,
        PRIMARY KEY (rule, recipient, number)
    );
    CREATE INDEX badge_unpublished ON badge_awards (awarded_ns) WHERE published_ns IS NULL;
    CREATE TABLE badge_counts (
        rule text COLLATE "C" NOT NULL,
        recipient text COLLATE "C" NOT NULL,
        count bigint NOT NULL,
        PRIMARY KEY (rule, recipient)
    );
    CREATE TABLE badge_events (
        rule text COLLATE "C" NOT NULL,
        recipient text COLLATE "C" NOT NULL,
        value text COLLATE "C" NOT NULL,
        at_ns bigint NOT NULL,
        PRIMARY KEY (rule, recipient, value)
    );
    CREATE TABLE badge_counted (
        rule text COLLATE "C" NOT NULL,
        message text COLLATE "C" NOT NULL,
        received_ns bigint NOT NULL,
        PRIMARY KEY (rule, message)
    );
"#;

/// What a transaction begins with: nobody else has this lock until its end.
const LOCK: &str = "LOCK TABLE badge_schema IN SHARE ROW EXCLUSIVE MODE";

/// The version of the tables that are there then.
pub(super) fn recognise_or_make(server: &mut Postgres) -> Result<i64> {
    server.run(async |client| {
        let transaction = client.transaction().await?;
        // There is no table to lock yet. The number is the bytes "badg".
        let lock = "SELECT pg_advisory_xact_lock(1650549863)";
        transaction.batch_execute(lock).await?;
        let there = "SELECT to_regclass('badge_schema') IS NOT NULL";
        if !(transaction.query_one(there, &[]).await?).get::<_, bool>(0) {
            transaction.batch_execute(SCHEMA).await?;
            let insert = "INSERT INTO badge_schema VALUES ($1)";
            transaction.execute(insert, &[&VERSION]).await?;
        }
        let version = "SELECT coalesce(max(version), 0) FROM badge_schema";
        let version = transaction.query_one(version, &[]).await?.get(0);
        transaction.commit().await?;
        Ok(version)
    })
}

pub(super) fn count(server: &mut Postgres, hits: &[Hit<'_>], award_topic: &str) -> Result<usize> {
    let wanted = Wanted::of(hits);
    server.run(async |client| {
        let transaction = client.transaction().await?;
        transaction.batch_execute(LOCK).await?;
        let known = Known {
            counted: counted(&transaction, &wanted.keys).await?,
            standings: standings(&transaction, &wanted.pairs).await?,
        };
        let changes = wanted.count(hits, known, award_topic);
        save(&transaction, &changes).await?;
        transaction.commit().await?;
        Ok(changes.awards.len())
    })
}

pub(super) fn publish(server: &mut Postgres, at_ns: i64, publish: &Publish<'_>) -> Result<Portion> {
    server.run(async |client| {
        let transaction = client.transaction().await?;
        transaction.batch_execute(LOCK).await?;
        let waiting = unpublished(&transaction).await?;
        let portion = Portion::publish(&waiting, publish);
        mark_published(&transaction, &waiting[..portion.taken], at_ns).await?;
        transaction.commit().await?;
        Ok(portion)
    })
}

pub(super) fn expire(server: &mut Postgres, horizons: &[(&str, i64)]) -> Result {
    let (rules, horizons): (Vec<&str>, Vec<i64>) = horizons.iter().copied().unzip();
    server.run(async |client| {
        let transaction = client.transaction().await?;
        transaction.batch_execute(LOCK).await?;
        let delete = "DELETE FROM badge_events
             USING unnest($1::text[], $2::bigint[]) AS old (rule, horizon_ns)
             WHERE badge_events.rule = old.rule AND at_ns <= horizon_ns";
        transaction.execute(delete, &[&rules, &horizons]).await?;
        transaction.commit().await
    })
}

type Answer<T> = std::result::Result<T, Error>;

async fn counted(transaction: &Transaction<'_>, keys: &[(&str, &str)]) -> Answer<Vec<bool>> {
    let (rules, messages): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
    let select = "SELECT wanted.number FROM badge_counted
         JOIN unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (rule, message, number)
         USING (rule, message)";
    let mut counted = vec![false; keys.len()];
    for row in transaction.query(select, &[&rules, &messages]).await? {
        counted[place(row.get(0))] = true;
    }
    Ok(counted)
}

async fn standings(transaction: &Transaction<'_>, pairs: &[Pair<'_>]) -> Answer<Vec<Standing>> {
    let (rules, recipients) = keys(pairs.iter());
    let keys: &[&(dyn ToSql + Sync)] = &[&rules, &recipients];
    let select = |what: &str, from: &str| {
        format!(
            "SELECT wanted.number, {what} FROM {from}
             JOIN unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (rule, recipient, number)
             USING (rule, recipient)"
        )
    };
    let mut standings = vec![Standing::default(); pairs.len()];
    let awards = select("badge_awards.number", "badge_awards");
    for row in transaction.query(&awards, keys).await? {
        let awards = &mut standings[place(row.get(0))].awards;
        *awards = row.get::<_, i64>(1).max(*awards);
    }
    let counts = select("count", "badge_counts");
    for row in transaction.query(&counts, keys).await? {
        standings[place(row.get(0))].count = row.get(1);
    }
    let events = select("value, at_ns", "badge_events");
    for row in transaction.query(&events, keys).await? {
        let events = &mut standings[place(row.get(0))].events;
        events.insert(row.get(1), row.get(2));
    }
    Ok(standings)
}

/// Where in an array, of what PostgreSQL counts from 1.
fn place(number: i64) -> usize {
    number as usize - 1
}

/// Rules and recipients, each an array.
fn keys<'p>(pairs: impl Iterator<Item = &'p Pair<'p>>) -> (Vec<&'p str>, Vec<&'p str>) {
    pairs
        .map(|pair| (pair.rule.id.as_str(), pair.recipient))
        .unzip()
}

async fn save(transaction: &Transaction<'_>, changes: &Changes<'_>) -> Answer<()> {
    if !changes.counted.is_empty() {
        let rules: Vec<&str> = changes.counted.iter().map(|row| row.0).collect();
        let messages: Vec<&str> = changes.counted.iter().map(|row| row.1).collect();
        let times: Vec<i64> = changes.counted.iter().map(|row| row.2).collect();
        let insert = "INSERT INTO badge_counted
             SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])";
        (transaction.execute(insert, &[&rules, &messages, &times])).await?;
    }
    if !changes.counts.is_empty() {
        let (rules, recipients) = keys(changes.counts.iter().map(|row| &row.0));
        let counts: Vec<i64> = changes.counts.iter().map(|row| row.1).collect();
        let write = "INSERT INTO badge_counts
             SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
             ON CONFLICT (rule, recipient) DO UPDATE SET count = excluded.count";
        (transaction.execute(write, &[&rules, &recipients, &counts])).await?;
        if counts.contains(&0) {
            let delete = "DELETE FROM badge_counts
                 USING unnest($1::text[], $2::text[]) AS written (rule, recipient)
                 WHERE badge_counts.rule = written.rule
                   AND badge_counts.recipient = written.recipient AND count = 0";
            (transaction.execute(delete, &[&rules, &recipients])).await?;
        }
    }
    if !changes.events_gone.is_empty() {
        let (rules, recipients) = keys(changes.events_gone.iter().map(|row| &row.0));
        let values: Vec<&str> = changes.events_gone.iter().map(|row| &*row.1).collect();
        let delete = "DELETE FROM badge_events
             USING unnest($1::text[], $2::text[], $3::text[]) AS gone (rule, recipient, value)
             WHERE badge_events.rule = gone.rule AND badge_events.recipient = gone.recipient
               AND badge_events.value = gone.value";
        (transaction.execute(delete, &[&rules, &recipients, &values])).await?;
    }
    if !changes.events.is_empty() {
        let (rules, recipients) = keys(changes.events.iter().map(|row| &row.0));
        let values: Vec<&str> = changes.events.iter().map(|row| &*row.1).collect();
        let times: Vec<i64> = changes.events.iter().map(|row| row.2).collect();
        let write = "INSERT INTO badge_events
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
             ON CONFLICT (rule, recipient, value) DO UPDATE SET at_ns = excluded.at_ns";
        (transaction.execute(write, &[&rules, &recipients, &values, &times])).await?;
    }
    for award in &changes.awards {
        let insert = "INSERT INTO badge_awards VALUES ($1, $2, $3, $4, $5, $6, $7, $8, NULL)";
        let Award {
            rule,
            recipient,
            number,
            awarded_ns,
            message,
            id,
            topic,
            body,
        } = award;
        #[rustfmt::skip]
        (transaction.execute(
            insert,
            &[rule, recipient, number, awarded_ns, message, id, topic, body],
        ))
        .await?;
    }
    Ok(())
}

async fn unpublished(transaction: &Transaction<'_>) -> Answer<Vec<Award>> {
    let select = "SELECT rule, recipient, number, awarded_ns, message, id, topic, body
         FROM badge_awards WHERE published_ns IS NULL
         ORDER BY awarded_ns, rule, recipient, number LIMIT $1";
    let rows = transaction.query(select, &[&PORTION]).await?;
    let awards = rows.iter().map(|row| Award {
        rule: row.get(0),
        recipient: row.get(1),
        number: row.get(2),
        awarded_ns: row.get(3),
        message: row.get(4),
        id: row.get(5),
        topic: row.get(6),
        body: row.get(7),
    });
    Ok(awards.collect())
}

async fn mark_published(transaction: &Transaction<'_>, awards: &[Award], at_ns: i64) -> Answer<()> {
    let rules: Vec<&str> = awards.iter().map(|award| &*award.rule).collect();
    let recipients: Vec<&str> = awards.iter().map(|award| &*award.recipient).collect();
    let numbers: Vec<i64> = awards.iter().map(|award| award.number).collect();
    let mark = "UPDATE badge_awards SET published_ns = $4
         FROM unnest($1::text[], $2::text[], $3::bigint[]) AS taken (rule, recipient, number)
         WHERE badge_awards.rule = taken.rule AND badge_awards.recipient = taken.recipient
           AND badge_awards.number = taken.number";
    (transaction.execute(mark, &[&rules, &recipients, &numbers, &at_ns])).await?;
    Ok(())
}
