//! A connection to an archive in PostgreSQL: how the database is recognised, made and written.
//!
//! What it promises:
//!
//! 1. No call waits longer than the location's `timeout`, whatever the server does or does not do.
//! 2. Everything is in the schema `weir` of the database; one that holds something else is not
//!    touched.
//! 3. No error and no `Debug` shows a password.
//!
//! The schema's version is the one row of `weir.archive`.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error, Transaction};
use tokio_postgres_rustls::MakeRustlsConnect;
use weir_consumer::{Failure, Message, Result};

use crate::database::{Location, Tls, VERSION};

// Texts are compared byte by byte: as fast as can be, and an index stays right when the operating
// system learns to sort anew. The key is the primary key, in the order of its columns: messages
// come in the order of time, so its index grows at its end. No other index but that of message ids;
// see sqlite.rs for why.
const SCHEMA: &str = r#"
    CREATE SCHEMA IF NOT EXISTS weir;
    CREATE TABLE weir.archive (version integer NOT NULL);
    INSERT INTO weir.archive VALUES (2);
    CREATE TABLE weir.messages (
        received_ns bigint NOT NULL,
        seq bigint NOT NULL,
        hub text COLLATE "C" NOT NULL,
        topic text COLLATE "C" NOT NULL,
        message_id text COLLATE "C",
        payload bytea NOT NULL,
        PRIMARY KEY (received_ns, seq, hub)
    );
    CREATE UNIQUE INDEX message_ids ON weir.messages (message_id) WHERE message_id IS NOT NULL;
    CREATE FUNCTION weir.payload_text(payload bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT
    AS 'BEGIN RETURN convert_from(payload, ''UTF8''); EXCEPTION WHEN OTHERS THEN RETURN NULL; END';
    CREATE FUNCTION weir.payload_json(payload bytea) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE STRICT
    AS 'BEGIN RETURN convert_from(payload, ''UTF8'')::jsonb;
        EXCEPTION WHEN OTHERS THEN RETURN NULL; END';
"#;

// Measured with messages of 500 bytes, 1000 at a time, on the server's machine, two busy cores:
// 64,000 and 54,000 a second, with ids 36,000 and 32,000. By binary COPY into a temporary table and
// from there with the same ON CONFLICT: 44,000 and 38,000, with ids 31,000 and 24,000, and it is
// more to go wrong.
const INSERT: &str = "
    INSERT INTO weir.messages (received_ns, seq, hub, topic, message_id, payload)
    SELECT received_ns, seq, $1, topic, message_id, payload
    FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bytea[])
        AS new (received_ns, seq, topic, message_id, payload)
    ON CONFLICT DO NOTHING";

/// A connection to a database of PostgreSQL.
pub struct Postgres {
    /// Runs nothing between calls.
    runtime: Runtime,
    client: Client,
    url: String,
    timeout: Duration,
}

/// What a database is to us.
enum Found {
    Archive(i32),
    Nothing,
    Foreign,
    Encoding(String),
}

impl Postgres {
    /// Connects to what may not be an archive.
    pub(crate) fn open(url: &str, location: &Location, data_dir: &Path) -> Result<Self> {
        let config = config(url, location, data_dir)?;
        let tls = tls(location, data_dir)?;
        let timeout = location.timeout;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let connecting = async {
            let (client, connection) = config.connect(tls).await?;
            // It ends with the connection, and whoever uses the client then learns why.
            tokio::spawn(async move { drop(connection.await) });
            let millis = timeout.as_millis().max(1);
            let set = format!("SET statement_timeout = {millis}; SET search_path = weir");
            client.batch_execute(&set).await?;
            Ok(client)
        };
        let connected = runtime.block_on(async { tokio::time::timeout(timeout, connecting).await });
        let failure = match connected {
            Ok(Ok(client)) => {
                return Ok(Postgres {
                    runtime,
                    client,
                    url: url.to_owned(),
                    timeout,
                });
            }
            Ok(Err(error)) => failure(url, &error),
            Err(_) => hangs(url, timeout),
        };
        // Without waiting for a resolver that hangs.
        runtime.shutdown_background();
        Err(failure)
    }

    /// Makes an archive where there is none.
    pub(crate) fn make_archive(&mut self) -> Result {
        let found = self.run(recognise_or_make)?;
        self.accept(found)
    }

    /// Makes sure that it is an archive.
    pub(crate) fn expect_archive(&mut self) -> Result {
        let found = self.run(async |client| recognise(&client.transaction().await?).await)?;
        self.accept(found)
    }

    fn accept(&self, found: Found) -> Result {
        let why = match found {
            Found::Archive(VERSION) => return Ok(()),
            Found::Archive(other) => format!(
                "this is an archive of version {other}; this weir knows versions up to {VERSION}"
            ),
            Found::Nothing => {
                "there is no archive; a hub makes it with the first message that it archives".into()
            }
            Found::Foreign => "the schema `weir` there is of something else, not an archive of \
                               weir; choose another database"
                .into(),
            Found::Encoding(encoding) => format!(
                "this database is encoded in {encoding}; an archive needs one made with `createdb \
                 --encoding UTF8 --template template0`"
            ),
        };
        Err(Failure::halt(format!("{}: {why}", self.url)))
    }

    /// Does something with the client, within the location's time-out; relative names mean the
    /// schema `weir`.
    ///
    /// After an error throw the connection away: what was begun is undone then, and the next
    /// attempt connects.
    ///
    /// # Errors
    /// Dead-letter for values that the server refuses, else retry.
    pub fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Client) -> std::result::Result<T, Error>,
    ) -> Result<T> {
        let (client, timeout) = (&mut self.client, self.timeout);
        let done = (self.runtime)
            .block_on(async { tokio::time::timeout(timeout, work(client)).await })
            .map_err(|_| hangs(&self.url, timeout))?;
        done.map_err(|error| failure(&self.url, &error))
    }

    /// Writes those of these messages that are not there yet, or none when it fails.
    pub(crate) fn insert(
        &mut self,
        hub: &str,
        batch: &[Message],
        ids: &[Option<String>],
    ) -> Result {
        if let Some(message) = batch.iter().find(|message| message.topic().contains('\0')) {
            let topic = message.topic();
            return Err(Failure::dead_letter(format!(
                "the topic {topic:?} has a NUL, which PostgreSQL can't store"
            )));
        }
        // PostgreSQL's integers are signed; these end in the year 2262.
        let integer = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let times: Vec<i64> = batch.iter().map(|m| integer(m.received_ns())).collect();
        let seqs: Vec<i64> = batch.iter().map(|m| integer(m.seq())).collect();
        let topics: Vec<&str> = batch.iter().map(Message::topic).collect();
        let payloads: Vec<&[u8]> = batch.iter().map(|m| &m.payload()[..]).collect();
        self.run(async |client| {
            client
                .execute(INSERT, &[&hub, &times, &seqs, &topics, &ids, &payloads])
                .await
        })?;
        Ok(())
    }
}

async fn recognise_or_make(client: &mut Client) -> std::result::Result<Found, Error> {
    let transaction = client.transaction().await?;
    // Of two hubs that come at once only one makes it. The number is the bytes "weir".
    let lock = "SELECT pg_advisory_xact_lock(2003134834)";
    transaction.batch_execute(lock).await?;
    let mut found = recognise(&transaction).await?;
    if let Found::Nothing = found {
        transaction.batch_execute(SCHEMA).await?;
        found = Found::Archive(VERSION);
    }
    transaction.commit().await?;
    Ok(found)
}

async fn recognise(transaction: &Transaction<'_>) -> std::result::Result<Found, Error> {
    let look = "SELECT current_setting('server_encoding'),
                    to_regclass('weir.archive') IS NOT NULL,
                    EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace('weir')::oid)";
    let found = transaction.query_one(look, &[]).await?;
    let (encoding, ours, something): (String, bool, bool) =
        (found.try_get(0)?, found.try_get(1)?, found.try_get(2)?);
    if encoding != "UTF8" {
        return Ok(Found::Encoding(encoding));
    }
    if !ours {
        return Ok(if something {
            Found::Foreign
        } else {
            Found::Nothing
        });
    }
    let version = "SELECT coalesce(max(version), 0)::int4 FROM weir.archive";
    Ok(Found::Archive(
        transaction.query_one(version, &[]).await?.try_get(0)?,
    ))
}

/// Whether this is the URL of a database and nothing more: what else there is to set has settings
/// of its own. No text shows what may be a secret.
pub(crate) fn check_url(url: &str) -> std::result::Result<(), String> {
    const EXPECTED: &str = "expected postgres://USER@HOST:PORT/DATABASE, or \
                            postgres://USER@/DATABASE?host=/DIRECTORY for a socket";
    let (_, rest) = url.split_once(':').unwrap_or_default();
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(format!("there is no // after the scheme; {EXPECTED}"));
    };
    let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, _) = place.split_once('/').unwrap_or((place, ""));
    // The last @: whoever writes a password there does not always escape it.
    let user = place.rsplit_once('@').map_or("", |(user, _)| user);
    if user.contains(':') {
        return Err(
            "a password does not stand in the URL; take it and the colon out, and set \
             password = { file = \"PATH\" } or { env = \"NAME\" }"
                .into(),
        );
    }
    if user.contains('/') || authority.contains(',') {
        return Err(EXPECTED.into());
    }
    for option in options.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")).0 {
            "host" | "port" => {}
            "sslmode" => return Err("`sslmode` is the setting `tls` here".into()),
            "password" => return Err("the password is the setting `password` here".into()),
            other => return Err(format!("there is no option {other:?}; {EXPECTED}")),
        }
    }
    let config: Config = (url.parse()).map_err(|error: Error| {
        let cause = error.source().map(|cause| format!(": {cause}"));
        format!(
            "that can't be read{}; {EXPECTED}",
            cause.unwrap_or_default()
        )
    })?;
    match (config.get_hosts(), config.get_dbname()) {
        ([_], Some(_)) => Ok(()),
        ([_], None) => Err(format!("no database is named; {EXPECTED}")),
        _ => Err(format!("one host has to be named; {EXPECTED}")),
    }
}

fn config(url: &str, location: &Location, data_dir: &Path) -> Result<Config> {
    let mut config: Config = url.parse()?;
    let encryption = match (location.tls, config.get_hosts()) {
        (_, [Host::Unix(_)]) | (Tls::Disable, _) => SslMode::Disable,
        (Tls::Prefer, _) => SslMode::Prefer,
        (Tls::Require, _) => SslMode::Require,
    };
    config
        .application_name("weir")
        .connect_timeout(location.timeout)
        .tcp_user_timeout(location.timeout)
        .keepalives_idle(Duration::from_secs(30))
        .ssl_mode(encryption);
    if let Some(password) = &location.password {
        let password = password.read(data_dir).map_err(Failure::retry)?;
        config.password(password.expose());
    }
    Ok(config)
}

fn tls(location: &Location, data_dir: &Path) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let config = match (location.tls, &location.ca) {
        (Tls::Require, ca) => {
            let mut roots = RootCertStore::empty();
            match ca {
                Some(ca) => {
                    let ca = data_dir.join(ca);
                    let wrong = |why: &dyn std::fmt::Display| {
                        Failure::retry(format!(
                            "can't use the certificates in {}: {why}; `ca` has to be a file in PEM",
                            ca.display()
                        ))
                    };
                    let pem = fs::read(&ca).map_err(|error| wrong(&error))?;
                    for certificate in CertificateDer::pem_slice_iter(&pem) {
                        let certificate = certificate.map_err(|error| wrong(&error))?;
                        roots.add(certificate).map_err(|error| wrong(&error))?;
                    }
                    if roots.is_empty() {
                        return Err(wrong(&"there is none in it"));
                    }
                }
                None => {
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                }
            }
            config.with_root_certificates(roots)
        }
        _ => config
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    Ok(MakeRustlsConnect::new(config.with_no_client_auth()))
}

/// For `prefer`, which takes a server without encryption, too: whom it would check there, it could
/// not keep from pretending to have none. Debian's servers have a certificate that nobody signed.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn hangs(url: &str, timeout: Duration) -> Failure {
    Failure::retry(format!(
        "{url}: no answer within {timeout:?}; does the server run, and is it overloaded?"
    ))
}

/// Values that the server refuses will be refused for ever. All else can pass or be repaired while
/// messages wait.
fn failure(url: &str, error: &Error) -> Failure {
    let Some(refusal) = error.as_db_error() else {
        let mut text = format!("{url}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        return Failure::retry(text);
    };
    let said = refusal.message();
    let code = refusal.code();
    let remedy = match *code {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "; look at the user in `url`, at `password`, and at the server's pg_hba.conf"
        }
        SqlState::INVALID_CATALOG_NAME => "; make it with `createdb --encoding UTF8`",
        SqlState::INSUFFICIENT_PRIVILEGE => {
            "; let a database administrator give the user CREATE on the database, or a schema \
             `weir` of its own"
        }
        SqlState::QUERY_CANCELED => "; `timeout` says how long to wait",
        _ => "",
    };
    let text = format!("{url}: {said} ({}){remedy}", code.code());
    match &code.code()[..2] {
        "22" | "23" | "54" => Failure::dead_letter(text),
        _ => Failure::retry(text),
    }
}

#[cfg(test)]
mod tests {

    use crate::database::Url;
    use proptest::prelude::*;

    fn problem(url: &str) -> String {
        Url::try_from(url.to_owned()).unwrap_err()
    }

    #[test]
    fn a_url_says_where_and_nothing_else() {
        for good in [
            "postgres://weir@db.example.org/weir",
            "postgresql://weir@db.example.org:5433/weir",
            "postgres://weir@[::1]/weir",
            "postgres:///weir?host=/run/postgresql",
            "postgres://weir@/weir?host=/run/postgresql&port=5433",
        ] {
            assert_eq!(
                Url::try_from(good.to_owned()),
                Ok(Url::Postgres(good.into()))
            );
        }
        for (wrong, told) in [
            ("postgres:weir", "no // after the scheme"),
            ("postgres://", "one host has to be named"),
            ("postgres://weir@db.example.org", "no database is named"),
            ("postgres://weir@one,two/weir", "expected postgres://"),
            ("postgres://weir@db:port/weir", "can't be read"),
            ("postgres://db/weir?sslmode=require", "the setting `tls`"),
            (
                "postgres://db/weir?options=-c",
                "there is no option \"options\"",
            ),
            ("postgres:///weir", "one host has to be named"),
            ("postgres://db/weir?host=/run", "one host has to be named"),
        ] {
            let problem = problem(wrong);
            assert!(problem.contains(told), "{wrong}: {problem}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_shown() {
        for url in [
            "postgres://weir:hunter2@db/weir",
            "postgres://weir:hunter2/x@db/weir",
            "postgres://weir:hun@ter2@db/weir",
            "postgres://db/weir?password=hunter2",
        ] {
            let problem = problem(url);
            assert!(!problem.contains("ter2"), "{problem}");
            assert!(
                problem.contains("`password`") || problem.contains("password = "),
                "{problem}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_url_is_judged_without_a_panic(rest in ".*") {
            let _ = Url::try_from(format!("postgres://{rest}"));
            let _ = Url::try_from(format!("postgres:{rest}"));
        }
    }
}
