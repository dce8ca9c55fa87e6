//! A PostgreSQL server of a test's own, in a temporary directory, on a free port.
//!
//! Other tests include this file by its path.

#![allow(dead_code)] // none of them uses all of it

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// What the user `weir` has to say over TCP; over the socket nobody asks.
pub const PASSWORD: &str = "a secret of the tests";

pub struct Server {
    child: Option<Child>,
    bin: PathBuf,
    /// Has `data`, the socket, `password`, and with TLS `ca.pem`.
    pub dir: tempfile::TempDir,
    pub port: u16,
}

impl Server {
    /// Starts one that speaks TLS with this certificate and key, in PEM, if they are given.
    pub fn start(tls: Option<(&str, &str)>) -> Self {
        let bin = bin();
        let dir = tempfile::tempdir().unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        fs::write(dir.path().join("password"), format!("{PASSWORD}\n")).unwrap();
        let mut server = Server {
            child: None,
            bin,
            dir,
            port,
        };
        let owned = |name: &str| {
            if let Some((uid, gid)) = owner() {
                chown(server.dir.path().join(name), Some(uid), Some(gid)).unwrap();
            }
        };
        owned("");
        owned("password");
        let initdb = server.run(
            "initdb",
            &[
                "--no-sync",
                "--username=weir",
                "--encoding=UTF8",
                "--locale=C",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--pwfile=password",
                "--pgdata=data",
            ],
        );
        assert!(initdb.status.success(), "{initdb:?}");
        if let Some((certificate, key)) = tls {
            for (name, text) in [("data/server.crt", certificate), ("data/server.key", key)] {
                let path = server.dir.path().join(name);
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                owned(name);
            }
            let configuration = server.dir.path().join("data/postgresql.auto.conf");
            fs::write(configuration, "ssl = on\n").unwrap();
        }
        drop(socket);
        server.go_on();
        server
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(self.dir.path());
        // The server refuses to run as root.
        if let Some((uid, gid)) = owner() {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).output().unwrap()
    }

    /// Starts it after a stop, and waits until it answers.
    pub fn go_on(&mut self) {
        let port = self.port.to_string();
        let child = self
            .command("postgres")
            .args(["-D", "data", "-p", &port, "-k"])
            .arg(self.dir.path())
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
            .stderr(fs::File::create(self.dir.path().join("log")).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let patience = Instant::now() + Duration::from_secs(60);
        while !self
            .sql("postgres", "SELECT 1")
            .is_ok_and(|answer| answer == "1")
        {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(
                Instant::now() < patience,
                "PostgreSQL does not start: {log}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A signal to its first process.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Ends it as `pg_ctl stop -m immediate` does: as a crash.
    pub fn crash(&mut self) {
        self.signal("-QUIT");
        self.child.take().unwrap().wait().unwrap();
    }

    /// What psql says to this, on its socket, without headings.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let (dir, port) = (self.dir.path().display().to_string(), self.port.to_string());
        let psql = self.run(
            "psql",
            &[
                "--no-psqlrc",
                "--host",
                &dir,
                "--port",
                &port,
                "--username=weir",
                "--dbname",
                database,
                "--tuples-only",
                "--no-align",
                "--command",
                sql,
            ],
        );
        match psql.status.success() {
            true => Ok(String::from_utf8(psql.stdout)
                .unwrap()
                .trim_end()
                .to_owned()),
            false => Err(String::from_utf8_lossy(&psql.stderr).into_owned()),
        }
    }

    /// A database of this name, as the URL of the socket.
    pub fn database(&self, name: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE {name}"))
            .unwrap();
        let dir = self.dir.path().display();
        format!("postgres://weir@/{name}?host={dir}&port={}", self.port)
    }

    /// The URL of a database over TCP.
    pub fn tcp(&self, name: &str) -> String {
        format!("postgres://weir@127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = child.id().to_string();
            // It may have been stopped by a signal.
            let _ = Command::new("kill").args(["-CONT", &pid]).status();
            let _ = Command::new("kill").args(["-QUIT", &pid]).status();
            let _ = child.wait();
        }
    }
}

/// Where the server's programs are: Debian has them outside of the PATH.
fn bin() -> PathBuf {
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let found = debian.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let newest = found.filter(|bin| bin.join("initdb").exists()).max();
    newest.unwrap_or_else(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let here = std::env::split_paths(&path).find(|dir| dir.join("initdb").exists());
        here.expect("initdb is missing; run `make setup`")
    })
}

/// Whom to be instead of root.
fn owner() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim()
            .parse::<u32>()
            .expect("the user postgres; run `make setup`")
    };
    match id(&["-u"]) {
        0 => Some((id(&["-u", "postgres"]), id(&["-g", "postgres"]))),
        _ => None,
    }
}
