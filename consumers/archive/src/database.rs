//! Where an archive is, and a connection to it: SQLite or PostgreSQL, recognised or made.
//!
//! Both have the same table, version 2:
//!
//! | column      |                                                                            |
//! |-------------|----------------------------------------------------------------------------|
//! | id          | SQLite only: the number of the row                                         |
//! | received_ns | when the hub took the message in, in nanoseconds since 1970                |
//! | seq         | its number in that hub's order of intake                                   |
//! | hub         | the hub's name; `''` in what version 1 stored, whose seq is the row's id   |
//! | topic       |                                                                            |
//! | message_id  | what the setting `id` found in it, else NULL                               |
//! | payload     | SQLite: TEXT when it is UTF-8, so that its JSON functions work, else BLOB; |
//! |             | PostgreSQL: bytea, read with `payload_json` and `payload_text`             |
//!
//! (received_ns, seq, hub) is unique, and so is message_id where there is one. Whoever keeps
//! something beside the messages, makes tables of its own there: an archive with tables and indices
//! added is still an archive.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use weir_consumer::settings::duration;
use weir_consumer::{Failure, Result, Secret};

#[cfg(feature = "postgres")]
pub use crate::postgres::Postgres;
pub use rusqlite;
#[cfg(feature = "postgres")]
pub use tokio_postgres;

/// The version of the schema.
pub(crate) const VERSION: i32 = 2;

/// Where an archive is, and how to talk to it: the settings for it.
///
/// A kind that keeps something in the archive has it as a table of its settings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Location {
    /// The database.
    pub url: Url,
    /// The password, for PostgreSQL.
    pub password: Option<Secret>,
    /// Whether to encrypt, for PostgreSQL.
    pub tls: Tls,
    /// The certificates to trust instead of the system's, in PEM.
    pub ca: Option<PathBuf>,
    /// When SQLite waits for the disk.
    pub synchronous: Synchronous,
    /// How long to wait: for a connection, for a statement, for another writer.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

impl Default for Location {
    fn default() -> Self {
        Location {
            url: Url::Sqlite("archive.db".into()),
            password: None,
            tls: Tls::Prefer,
            ca: None,
            synchronous: Synchronous::Normal,
            timeout: Duration::from_secs(5),
        }
    }
}

/// Where the database is; one variant for each kind of database.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub enum Url {
    /// A file of SQLite.
    Sqlite(PathBuf),
    /// A database of PostgreSQL: its URL, which holds no secret.
    Postgres(String),
}

/// Whether a connection to PostgreSQL is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// When the server can; who the server is, is not checked.
    Prefer,
    /// Always, with a server that proves who it is.
    Require,
    /// Never.
    Disable,
}

/// When SQLite waits for the disk; see `sample.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Synchronous {
    /// A crash of the machine can undo the last transactions.
    Normal,
    /// Each transaction is on the disk before it is done.
    Full,
    /// A crash of the machine can spoil the file.
    Off,
}

impl TryFrom<String> for Url {
    type Error = String;

    fn try_from(url: String) -> std::result::Result<Self, String> {
        const SUPPORTED: &str = "supported is a file of SQLite, such as \"sqlite:archive.db\" or \
                                 \"sqlite:/var/lib/weir/archive.db\", and a database of \
                                 PostgreSQL, such as \"postgres://weir@db.example.org/weir\"";
        let problem = match url.split_once(':') {
            None => format!("{url:?} has no scheme"),
            Some(("sqlite", "")) => "the path is missing".into(),
            Some(("sqlite", ":memory:")) => "an archive in memory would archive nothing".into(),
            // Nobody means `//name` as a path from the root, or `?` as a part of the name.
            Some(("sqlite", path)) if path.starts_with("//") && !path.starts_with("///") => {
                format!("{url:?} names a host; SQLite knows none")
            }
            Some(("sqlite", path)) if path.contains('?') => {
                format!("{url:?} has options after `?`; there are none")
            }
            Some(("sqlite", path)) => return Ok(Url::Sqlite(path.into())),
            #[cfg(feature = "postgres")]
            Some(("postgres" | "postgresql", _)) => {
                crate::postgres::check_url(&url)?;
                return Ok(Url::Postgres(url));
            }
            #[cfg(not(feature = "postgres"))]
            Some(("postgres" | "postgresql", _)) => {
                return Err(
                    "this weir was built without PostgreSQL (the feature `postgres`)".into(),
                );
            }
            Some((scheme, _)) => format!("the scheme `{scheme}` is not supported"),
        };
        Err(format!("{problem}; {SUPPORTED}"))
    }
}

/// A connection to an archive.
///
/// ```
/// use weir_archive::database::{Database, Location};
/// use weir_consumer::Result;
///
/// fn count(database: &mut Database) -> Result<i64> {
///     let sql = "SELECT count(*) FROM messages";
///     match database {
///         Database::Sqlite(connection) => Ok(connection.query_row(sql, (), |row| row.get(0))?),
///         # #[cfg(feature = "postgres")]
///         Database::Postgres(postgres) => {
///             postgres.run(async |client| client.query_one(sql, &[]).await?.try_get(0))
///         }
///     }
/// }
///
/// let dir = tempfile::tempdir()?;
/// let mut database = Location::default().connect(dir.path())?;
/// assert_eq!(count(&mut database)?, 0);
/// # Ok::<(), weir_consumer::Failure>(())
/// ```
pub enum Database {
    /// To a file.
    Sqlite(rusqlite::Connection),
    /// To a server.
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
}

impl Location {
    /// Whether these settings go together; for builders, which connect to nothing.
    ///
    /// # Errors
    /// What does not, and what to do about it.
    pub fn check(&self) -> Result {
        let problem = match &self.url {
            _ if self.timeout.is_zero() => "`timeout` has to be more than no time",
            Url::Sqlite(_) if self.password.is_some() => "`password` is for PostgreSQL only",
            Url::Sqlite(_) if self.ca.is_some() => "`ca` is for PostgreSQL only",
            _ if self.ca.is_some() && self.tls != Tls::Require => {
                "`ca` is used only with tls = \"require\""
            }
            Url::Postgres(url) if self.tls == Tls::Require && url.contains("host=") => {
                "a Unix socket is not encrypted; tls = \"require\" needs a host"
            }
            _ => return Ok(()),
        };
        Err(Failure::halt(problem))
    }

    /// Connects, and makes the archive where there is nothing yet; relative paths start at
    /// `data_dir`.
    ///
    /// # Errors
    /// Halt when there is something else, or an archive of a later version; retry when the server
    /// or the disk does not do its part.
    pub fn connect(&self, data_dir: &Path) -> Result<Database> {
        match &self.url {
            Url::Sqlite(path) => {
                let path = data_dir.join(path);
                let synchronous = self.synchronous;
                crate::sqlite::connect(&path, synchronous, self.timeout).map(Database::Sqlite)
            }
            #[cfg(feature = "postgres")]
            Url::Postgres(url) => {
                let mut postgres = Postgres::open(url, self, data_dir)?;
                postgres.make_archive()?;
                Ok(Database::Postgres(postgres))
            }
            #[cfg(not(feature = "postgres"))]
            Url::Postgres(_) => Err(Failure::halt("this weir was built without PostgreSQL")),
        }
    }
}
