//! `weir top` in a terminal: Debian's tmux.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const WEIR: &str = env!("CARGO_BIN_EXE_weir");

/// A terminal with a shell in it, and a hub to look at.
struct Scene {
    dir: tempfile::TempDir,
    hub: Option<Child>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop_hub();
        let _ = self.tmux(&["kill-server"]).status();
    }
}

impl Scene {
    fn new(width: u16, height: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // What waits for the one that fails is a backlog that does not go away.
        let config = "[hub]\nname = 'test'\nhttp = ''\nstop_deadline = '100ms'\n\
            [consumers.archive]\nkind = 'null'\ntopics = ''\n\
            [consumers.irc]\nkind = 'log'\nfile = '/dev/full'\ntopics = ''\n\
            retry = { attempts = 0, delay = '100ms', delay_max = '200ms' }\n\
            [producers.pulse]\nkind = 'heartbeat'\ntopic = 'org.pulse'\ninterval = '100ms'\n";
        let endpoint = format!("ipc://{}", dir.path().join("bus").display());
        let config = format!(
            "{config}[publish]\nbind = ['{endpoint}']\n[[backend]]\nconnect = ['{endpoint}']\n"
        );
        let config = config.replacen(
            "[hub]\n",
            &format!("[hub]\ndata_dir = {:?}\n", dir.path().join("data")),
            1,
        );
        std::fs::write(dir.path().join("weir.toml"), config).unwrap();
        let mut scene = Scene { dir, hub: None };
        scene.start_hub();
        let (width, height) = (width.to_string(), height.to_string());
        let mut start = scene.tmux(&["new-session", "-d", "-x", &width, "-y", &height]);
        let started = start.args(["env", "-i", "TERM=screen-256color", "PS1=ready$ "]);
        let started = started.args(["LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin", "sh"]);
        assert!(started.status().expect("tmux; run `make setup`").success());
        scene.sees(&["ready$"]);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start_hub(&mut self) {
        let mut weir = Command::new(WEIR);
        weir.args(["hub", "--config"]).arg(self.path("weir.toml"));
        weir.env_remove("NOTIFY_SOCKET").current_dir(&self.dir);
        self.hub = Some(weir.stderr(Stdio::null()).spawn().unwrap());
    }

    /// As `kill -9` ends it.
    fn stop_hub(&mut self) {
        if let Some(mut hub) = self.hub.take() {
            let _ = hub.kill();
            let _ = hub.wait();
        }
    }

    /// tmux with a server of our own.
    fn tmux(&self, arguments: &[&str]) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.args(["-u", "-f", "/dev/null", "-S"]);
        tmux.arg(self.path("tmux"))
            .args(arguments)
            .env_remove("TMUX");
        tmux.stdin(Stdio::null());
        tmux
    }

    fn does(&self, arguments: &[&str]) -> String {
        let output = self.tmux(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        self.does(&[&["send-keys"], keys].concat());
    }

    fn types(&self, line: &str) {
        self.keys(&["-l", line]);
        self.keys(&["Enter"]);
    }

    fn capture(&self) -> String {
        self.does(&["capture-pane", "-p"])
    }

    /// Waits until all of it is on the screen, and answers the screen.
    #[track_caller]
    fn sees(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.capture();
            match words.iter().find(|word| !screen.contains(**word)) {
                None => return screen,
                Some(word) => assert!(Instant::now() < deadline, "no {word:?} in\n{screen}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn top(&self, options: &str) {
        let config = self.path("weir.toml");
        self.types(&format!(
            "cd {}; echo before; {WEIR} top --config {} {options}",
            self.dir.path().display(),
            config.display()
        ));
    }

    /// The shell has its terminal again, as it was.
    #[track_caller]
    fn is_restored(&self) {
        // Not before: what is typed earlier is read by whoever still has the terminal.
        let deadline = Instant::now() + PATIENCE;
        while !self.capture().trim_end().ends_with("\nready$") {
            assert!(Instant::now() < deadline, "{}", self.capture());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.types("stty -a | tr -s ' ;' '\\n' | grep -cx 'icanon\\|echo'; echo 'and a'fter");
        let screen = self.sees(&["before", "and after"]);
        assert_eq!(
            self.does(&["display-message", "-p", "#{alternate_on}"]),
            "0\n"
        );
        assert_eq!(
            self.does(&["display-message", "-p", "#{cursor_flag}"]),
            "1\n"
        );
        assert!(screen.lines().any(|line| line == "2"), "{screen}");
        assert!(!screen.contains("weir top  "), "{screen}");
    }

    fn state_of_irc(&self) -> Value {
        let mut top = Command::new(WEIR);
        top.args(["top", "--json", "--filter", "irc", "--config"]);
        let output = top.arg(self.path("weir.toml")).output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        status["consumers"][0]["state"].clone()
    }
}

/// Kept for whoever wants to look at it.
fn keep(name: &str, screen: &str) {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(dir.join(name), screen).unwrap();
}

#[test]
#[ignore = "needs peers: make test"]
fn a_terminal_of_two_sizes_shows_who_is_behind_and_why() {
    let scene = Scene::new(80, 24);
    scene.top("");
    let screen = scene.sees(&["weir top  test", "backing off", "archive ", "q quit"]);
    assert_eq!(screen.lines().count(), 24, "{screen}");
    let titles = screen
        .lines()
        .find(|line| line.starts_with("NAME"))
        .unwrap();
    assert!(
        titles.contains("FORECAST") && titles.contains("LAG"),
        "{screen}"
    );
    keep("top-80x24.txt", &screen);

    scene.keys(&["Enter"]);
    let screen = scene.sees(&[
        "irc (log), 1 worker",
        "backing off",
        "Esc back",
        "why       It waits to try again",
    ]);
    keep("top-80x24-detail.txt", &screen);
    scene.keys(&["Escape"]);
    scene.sees(&["by lag"]);
    scene.keys(&["s"]);
    scene.sees(&["by depth"]);
    scene.keys(&["?"]);
    keep(
        "top-80x24-help.txt",
        &scene.sees(&["keys and words", "FORECAST  when"]),
    );
    scene.keys(&["?"]);

    scene.does(&["resize-window", "-x", "200", "-y", "50"]);
    let screen = scene.sees(&["STATE", "DEPTH, 10 MIN", "backing off"]);
    assert_eq!(screen.lines().count(), 50, "{screen}");
    keep("top-200x50.txt", &screen);

    scene.keys(&["-l", "/arch"]);
    scene.sees(&["filter: arch_", "1 with \"arch\""]);
    scene.keys(&["Escape"]);
    scene.sees(&["irc "]);
    scene.keys(&["q"]);
    scene.is_restored();
}

#[test]
#[ignore = "needs peers: make test"]
fn pausing_asks_first_and_resuming_too() {
    let scene = Scene::new(80, 24);
    scene.top("--filter irc");
    scene.sees(&["backing off", "irc "]);
    scene.keys(&["p"]);
    scene.sees(&["Pause irc?"]);
    scene.keys(&["n"]);
    scene.sees(&["nothing was done"]);
    assert_eq!(scene.state_of_irc(), "backing_off");
    scene.keys(&["p"]);
    scene.sees(&["Pause irc?"]);
    scene.keys(&["y"]);
    scene.sees(&["irc is paused", "paused"]);
    let deadline = Instant::now() + PATIENCE;
    while scene.state_of_irc() != "paused" {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    scene.sees(&["1 paused"]);
    scene.keys(&["p"]);
    scene.sees(&["Resume irc?"]);
    scene.keys(&["y"]);
    scene.sees(&["irc is resumed"]);
    scene.keys(&["C-c"]);
    scene.is_restored();
}

#[test]
#[ignore = "needs peers: make test"]
fn a_hub_that_is_away_is_waited_for() {
    let mut scene = Scene::new(80, 24);
    scene.top("");
    scene.sees(&["backing off", "archive "]);
    scene.stop_hub();
    let screen = scene.sees(&[
        "no hub answers at",
        "does it run",
        "it is asked again",
        "irc ",
    ]);
    keep("top-80x24-away.txt", &screen);
    scene.start_hub();
    let deadline = Instant::now() + PATIENCE;
    while scene.capture().contains("no hub answers") {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    scene.sees(&["irc ", "archive "]);
    scene.keys(&["q"]);
    scene.is_restored();
}

#[test]
#[ignore = "needs peers: make test"]
fn a_signal_gives_the_terminal_back_and_no_colour_means_none() {
    for signal in ["TERM", "INT", "HUP"] {
        let scene = Scene::new(80, 24);
        scene.types("export NO_COLOR=1");
        scene.top("");
        scene.sees(&["irc ", "q quit"]);
        let coloured = scene.does(&["capture-pane", "-p", "-e"]);
        let colours = [
            "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m", "\x1b[38;", "\x1b[90m",
        ];
        assert!(
            colours.iter().all(|code| !coloured.contains(code)),
            "{coloured}"
        );
        let shell = scene.does(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        let kill = format!("kill -{signal} {}", children.unwrap());
        assert!(
            Command::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
        scene.is_restored();
    }
}
