//! A crate that `weir new` wrote, built by the real cargo, and its hub.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A test that fails leaves no hub behind.
struct Hub(Child);

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn done(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{command:?}:\n{out}{err}");
    out.into_owned()
}

/// Where the tests' own build is: most of what a crate needs is there already.
fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// Makes a crate, runs its tests and its `config check`; answers its directory and its program.
fn made(dir: &Path, name: &str, role: &str) -> (PathBuf, PathBuf) {
    let weir = env!("CARGO_BIN_EXE_weir");
    let arguments = ["new", "consumer", name, "--kind", role];
    done(Command::new(weir).args(arguments).current_dir(dir));
    let place = dir.join(name);
    let cargo = |arguments: &[&str]| {
        done(
            Command::new(env!("CARGO"))
                .args(arguments)
                .arg("--offline")
                .current_dir(&place)
                .env("CARGO_TARGET_DIR", target()),
        )
    };
    let tested = cargo(&["test"]);
    assert!(
        tested.contains("the_sample_shows_the_defaults ... ok"),
        "{tested}"
    );
    cargo(&["build"]);
    let program = target().join("debug").join(name);
    let kinds = done(Command::new(&program).arg("kinds"));
    assert!(kinds.contains(name) && kinds.contains("archive"), "{kinds}");

    // Its ports may be somebody's: those of this machine that are free take their place.
    let file = place.join("weir.toml");
    let mut toml = std::fs::read_to_string(&file).unwrap();
    for port in ["8907", "9941"] {
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(toml.contains(port));
        toml = toml.replace(port, &free.port().to_string());
    }
    std::fs::write(&file, toml).unwrap();
    done(
        Command::new(&program)
            .args(["config", "check", "-c", "weir.toml"])
            .current_dir(&place),
    );
    (place, program)
}

/// Starts the hub; what it prints comes line by line.
fn run(place: &Path, program: &Path) -> (Hub, impl Iterator<Item = String>) {
    let mut hub = Command::new(program)
        .args(["hub", "--config", "weir.toml"])
        .current_dir(place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(hub.stdout.take().unwrap()).lines();
    (Hub(hub), lines.map_while(Result::ok))
}

#[test]
#[ignore = "needs peers: make test"]
fn a_new_consumer_compiles_passes_its_tests_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (place, program) = made(dir.path(), "new-consumer-of-the-test", "consumer");
    let (_hub, mut lines) = run(&place, &program);
    let arguments = [
        "publish",
        "--wait",
        "60s",
        "-c",
        "weir.toml",
        "org.example.a",
    ];
    let body = r#"{"msg": "hello"}"#;
    done(
        Command::new(&program)
            .args(arguments)
            .arg(body)
            .current_dir(&place),
    );
    assert!(lines.any(|line| line == "org.example.a \"hello\""));
}

#[test]
#[ignore = "needs peers: make test"]
fn a_new_producer_compiles_passes_its_tests_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (place, program) = made(dir.path(), "new-producer-of-the-test", "producer");
    let (_hub, mut lines) = run(&place, &program);
    assert!(lines.any(|line| line.starts_with("org.example.count {\"msg\":{\"count\":")));
}
