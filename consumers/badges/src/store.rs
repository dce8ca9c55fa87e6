//! The badges' own tables in the archive's database.
//!
//! | table           | holds                                                                   |
//! |-----------------|-------------------------------------------------------------------------|
//! | `badge_awards`  | who has what: rule, recipient, number, when, for which message; whether |
//! |                 | it was published, and the message that tells of it                      |
//! | `badge_counts`  | how far a recipient has come with a rule that only counts               |
//! | `badge_events`  | the same for a rule with a period or different values                   |
//! | `badge_counted` | which messages were counted for which rule                              |
//! | `badge_schema`  | the version of these tables                                             |
//!
//! What it promises:
//!
//! 1. A batch is one transaction: what it counted and the awards it made are there together or not
//!    at all.
//! 2. Whatever is written is written under a lock that one connection holds at a time, whichever
//!    worker or hub it is of, so that nobody counts or publishes what another one is at.
//! 3. Tables of a later version are not touched.

#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;

use std::path::Path;

use weir_archive::database::{Database, Location};
use weir_consumer::{Failure, PublishError, Result};

use crate::award::Award;
use crate::count::Hit;

/// The version of the tables.
const VERSION: i64 = 1;
/// How many awards are published in one transaction.
const PORTION: i64 = 100;

/// A connection to the database, whose tables were recognised or made.
pub(crate) struct Store(Database);

impl Store {
    pub(crate) fn connect(location: &Location, data_dir: &Path) -> Result<Self> {
        let mut database = location.connect(data_dir)?;
        let version = match &mut database {
            Database::Sqlite(connection) => sqlite::recognise_or_make(connection)?,
            #[cfg(feature = "postgres")]
            Database::Postgres(server) => postgres::recognise_or_make(server)?,
        };
        match version {
            VERSION => Ok(Store(database)),
            other => Err(Failure::halt(format!(
                "the badges in the database are of version {other}; this weir knows versions up \
                 to {VERSION}"
            ))),
        }
    }

    /// Counts these and makes the awards, all or nothing; answers how many awards.
    pub(crate) fn count(&mut self, hits: &[Hit<'_>], award_topic: &str) -> Result<usize> {
        match &mut self.0 {
            Database::Sqlite(connection) => sqlite::count(connection, hits, award_topic),
            #[cfg(feature = "postgres")]
            Database::Postgres(server) => postgres::count(server, hits, award_topic),
        }
    }

    /// Hands some of the awards that are not published yet to `publish`, and marks those that it
    /// took.
    pub(crate) fn publish(&mut self, at_ns: i64, publish: &Publish<'_>) -> Result<Portion> {
        match &mut self.0 {
            Database::Sqlite(connection) => sqlite::publish(connection, at_ns, publish),
            #[cfg(feature = "postgres")]
            Database::Postgres(server) => postgres::publish(server, at_ns, publish),
        }
    }

    /// Removes what came for these rules at these times or before.
    pub(crate) fn expire(&mut self, horizons: &[(&str, i64)]) -> Result {
        match &mut self.0 {
            Database::Sqlite(connection) => sqlite::expire(connection, horizons),
            #[cfg(feature = "postgres")]
            Database::Postgres(server) => postgres::expire(server, horizons),
        }
    }
}

type Publish<'p> = dyn Fn(&Award) -> std::result::Result<(), PublishError> + 'p;

/// What came of publishing a portion.
#[derive(Debug, PartialEq)]
pub(crate) struct Portion {
    /// How many were taken.
    pub(crate) taken: usize,
    /// Why the next one was not.
    pub(crate) refused: Option<PublishError>,
    /// Whether these were the last.
    pub(crate) last: bool,
}

impl Portion {
    /// Hands over what waits until one is refused.
    fn publish(waiting: &[Award], publish: &Publish<'_>) -> Self {
        let mut portion = Portion {
            taken: 0,
            refused: None,
            last: (waiting.len() as i64) < PORTION,
        };
        for award in waiting {
            match publish(award) {
                Ok(()) => portion.taken += 1,
                Err(error) => {
                    portion.refused = Some(error);
                    break;
                }
            }
        }
        portion
    }
}
