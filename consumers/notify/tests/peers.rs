//! Real servers: mail (aiosmtpd) and HTTP (nginx, and one that does what its paths say).

#![allow(missing_docs, clippy::unwrap_used)] // a test's name says what it is about

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use weir_consumer::testkit::build;
use weir_consumer::{Consumer, Message};
use weir_notify::kind;

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A program that ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn start(command: &mut Command, port: u16) -> Self {
        let child = command.stdin(Stdio::null()).spawn();
        let mut program = Program(child.expect("run `make setup`"));
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = program.0.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        program
    }

    fn python(script: &str, port: u16, arguments: &[&str]) -> Self {
        let mut command = Command::new(peers().join("installed/venv/bin/python"));
        command.arg(peers().join(script)).args(arguments);
        Program::start(&mut command, port)
    }
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // The last may be half written.
    (text.lines())
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

struct Mail {
    dir: tempfile::TempDir,
    port: u16,
    options: Vec<String>,
    program: Option<Program>,
}

impl Mail {
    fn start(options: &[&str]) -> Self {
        let mut mail = Mail {
            dir: tempfile::tempdir().unwrap(),
            port: free_port(),
            options: options.iter().map(ToString::to_string).collect(),
            program: None,
        };
        mail.again();
        mail
    }

    fn again(&mut self) {
        let (dir, port) = (self.dir.path().display().to_string(), self.port.to_string());
        let mut all = vec!["--dir", &dir, "--port", &port];
        all.extend(self.options.iter().map(String::as_str));
        self.program = Some(Program::python("smtp_server.py", self.port, &all));
    }

    fn mode(&self, mode: &str) {
        std::fs::write(self.dir.path().join("mode"), mode).unwrap();
    }

    fn mails(&self) -> Vec<Value> {
        lines(&self.dir.path().join("mails"))
    }

    /// The texts that came to this address, without the line break at their ends.
    fn texts(&self, to: &str) -> Vec<String> {
        (self.mails().iter())
            .filter(|mail| mail["to"][0] == to)
            .map(|mail| mail["text"].as_str().unwrap().trim_end().to_owned())
            .collect()
    }

    fn settings(&self) -> String {
        format!(
            "texts = {{ mail = '{{{{ payload }}}}' }}\n\
             email = {{ server = '127.0.0.1:{}', tls = 'none', from = 'weir@example.org', \
             timeout = '1s' }}\n",
            self.port
        )
    }
}

struct Hooks {
    dir: tempfile::TempDir,
    port: u16,
    program: Option<Program>,
}

impl Hooks {
    fn start() -> Self {
        let mut hooks = Hooks {
            dir: tempfile::tempdir().unwrap(),
            port: free_port(),
            program: None,
        };
        std::fs::write(hooks.dir.path().join("secret"), "s3cret\n").unwrap();
        hooks.again();
        hooks
    }

    fn again(&mut self) {
        let (dir, port) = (self.dir.path().display().to_string(), self.port.to_string());
        let all = [dir.as_str(), &port, "s3cret"];
        self.program = Some(Program::python("webhook_server.py", self.port, &all));
    }

    fn all(&self) -> Vec<Value> {
        lines(&self.dir.path().join("hooks"))
    }

    /// The texts that came to this path.
    fn texts(&self, path: &str) -> Vec<String> {
        (self.all().iter())
            .filter(|hook| hook["path"] == path)
            .map(|hook| hook["body"]["text"].as_str().unwrap().to_owned())
            .collect()
    }

    fn settings(&self) -> String {
        let secret = self.dir.path().join("secret");
        format!(
            "texts = {{ line = '{{{{ payload }}}}' }}\n\
             webhook = {{ timeout = '1s', secret = {{ file = {secret:?} }} }}\n"
        )
    }
}

fn mail_user(name: &str, more: &str) -> String {
    format!(
        "[[user]]\nname = '{name}'\nemail = '{name}@example.org'\n{more}\n\
         rules = [{{ topics = [''] }}]\n"
    )
}

fn hook_user(name: &str, url: &str) -> String {
    format!("[[user]]\nname = '{name}'\nwebhook = '{url}'\nrules = [{{ topics = [''] }}]\n")
}

struct Notify {
    consumer: Box<dyn Consumer>,
    seq: u64,
}

impl Notify {
    fn new(settings: &str, data_dir: &Path) -> Self {
        let consumer = build(&kind(), settings, data_dir);
        Notify {
            consumer: consumer.unwrap_or_else(|mistakes| panic!("{mistakes:?}")),
            seq: 0,
        }
    }

    fn message(&mut self, payload: &str) -> Message {
        self.seq += 1;
        let payload = payload.to_owned().into();
        Message::new("org.a".into(), payload, SystemTime::now(), self.seq)
    }

    fn tell(&mut self, payload: &str) {
        let message = self.message(payload);
        self.consumer.consume(&message).unwrap();
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "still not: {what}");
            self.consumer.tick().unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What waits in an outbox that is closed, by user.
fn left(data_dir: &Path) -> BTreeMap<String, i64> {
    let outbox = rusqlite::Connection::open(data_dir.join("notify.db")).unwrap();
    let mut select = outbox
        .prepare("SELECT user, count(*) FROM notifications GROUP BY user")
        .unwrap();
    let left = select.query_map((), |row| Ok((row.get(0)?, row.get(1)?)));
    left.unwrap().map(Result::unwrap).collect()
}

fn certificate(dir: &Path) -> [String; 2] {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    [cert.display().to_string(), key.display().to_string()]
}

#[test]
#[ignore = "needs peers: make test"]
fn a_mail_arrives_as_it_was_meant() {
    let mail = Mail::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let user = mail_user("ann", "").replace(
        "topics = ['']",
        "topics = [''], subject = '{{ json.s }}', format = '{{ json.t }}'",
    );
    let mut notify = Notify::new(&(mail.settings() + &user), dir.path());
    let text = ".\\n..\\r\\nBcc: eve@example.org\\r\\n.\\r\\nQUIT\\r\\nGrüße";
    notify.tell(&format!(
        r#"{{"s": "Grüße\r\nBcc: eve@example.org", "t": "{text}"}}"#
    ));
    notify.until("one mail", || mail.mails().len() == 1);
    let got = &mail.mails()[0];
    assert_eq!(got["subject"], "Grüße Bcc: eve@example.org");
    let lines = ".\n..\nBcc: eve@example.org\n.\nQUIT\nGrüße";
    assert_eq!(got["text"].as_str().unwrap().trim_end(), lines);
    assert_eq!(got["to"], serde_json::json!(["ann@example.org"]));
    let headers = got["headers"].to_string();
    assert!(!headers.contains("Bcc"), "{headers}");
    assert!(headers.contains("Auto-Submitted"), "{headers}");
}

#[test]
#[ignore = "needs peers: make test"]
fn tls_and_logging_in() {
    let dir = tempfile::tempdir().unwrap();
    let [cert, key] = certificate(dir.path());
    std::fs::write(dir.path().join("password"), "w€ord").unwrap();
    for (tls, mechanism) in [("starttls", "PLAIN"), ("starttls", "LOGIN"), ("tls", "")] {
        let mut options = vec!["--tls", tls, "--cert", &cert, "--key", &key];
        if !mechanism.is_empty() {
            options.extend(["--auth", "weir:w€ord", "--mechanisms", mechanism]);
        }
        let mail = Mail::start(&options);
        let login = match mechanism {
            "" => "",
            _ => ", user = 'weir', password = { file = 'password' }",
        };
        let settings = |name: &str, ca: &str| {
            format!(
                "email = {{ server = 'localhost:{}', tls = '{tls}', from = 'weir@example.org'\
                 {ca}{login} }}\nstore = '{name}'\n{}",
                mail.port,
                mail_user("ann", "")
            )
        };
        // Who is not trusted gets nothing, the password least of all.
        let name = format!("{tls}{mechanism}");
        let mut wary = Notify::new(&settings(&format!("{name}1"), ""), dir.path());
        wary.tell("x");
        wary.consumer.tick().unwrap();
        assert!(mail.mails().is_empty());
        let mut trusting = Notify::new(&settings(&name, ", ca = 'cert.pem'"), dir.path());
        trusting.tell("x");
        trusting.until("one mail", || mail.mails().len() == 1);
        let got = &mail.mails()[0];
        assert_eq!(got["tls"], true);
        assert_eq!(got["user"], if login.is_empty() { "" } else { "weir" });
    }
}

#[test]
#[ignore = "needs peers: make test"]
fn a_wrong_password_is_everybodys_trouble_and_gives_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [cert, key] = certificate(dir.path());
    let mail = Mail::start(&[
        "--tls",
        "starttls",
        "--cert",
        &cert,
        "--key",
        &key,
        "--auth",
        "weir:word",
    ]);
    std::fs::write(dir.path().join("password"), "other").unwrap();
    let settings = format!(
        "email = {{ server = 'localhost:{}', from = 'weir@example.org', ca = 'cert.pem', \
         user = 'weir', password = {{ file = 'password' }} }}\n{}",
        mail.port,
        mail_user("ann", "")
    );
    let mut notify = Notify::new(&settings, dir.path());
    notify.tell("x");
    notify.consumer.tick().unwrap();
    assert!(mail.mails().is_empty());
    // It is read for each connection, so that it can be changed.
    std::fs::write(dir.path().join("password"), "word\n").unwrap();
    notify.until("one mail", || mail.mails().len() == 1);
}

#[test]
#[ignore = "needs peers: make test"]
fn a_recipient_that_is_refused_holds_up_nobody() {
    let mail = Mail::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let users = ["r550", "r450", "d552", "d451", "ann"];
    let users = users.map(|name| mail_user(name, "")).concat();
    let mut notify = Notify::new(&(mail.settings() + &users), dir.path());
    for number in 0..10 {
        notify.tell(&number.to_string());
    }
    notify.until("ten mails", || mail.texts("ann@example.org").len() == 10);
    // The last turn is over: what was refused for good is gone.
    notify.consumer.tick().unwrap();
    let expected: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    assert_eq!(mail.texts("ann@example.org"), expected);
    assert_eq!(mail.mails().len(), 10);
    drop(notify);
    let waits = BTreeMap::from([("d451".into(), 10), ("r450".into(), 10)]);
    assert_eq!(left(dir.path()), waits);
}

#[test]
#[ignore = "needs peers: make test"]
fn a_server_that_fails_or_hangs_gets_everything_later() {
    let mut mail = Mail::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let settings = mail.settings() + "pause_max = '1s'\n" + &mail_user("ann", "");
    let mut notify = Notify::new(&settings, dir.path());
    let mut expected = Vec::new();
    for mode in ["451", "421", "hang"] {
        mail.mode(mode);
        notify.tell(mode);
        notify.consumer.tick().unwrap();
        assert_eq!(mail.mails().len(), expected.len(), "{mode}");
        expected.push(mode);
        mail.mode("");
        notify.until(mode, || mail.mails().len() == expected.len());
    }
    mail.program = None;
    notify.tell("dead");
    notify.consumer.tick().unwrap();
    mail.again();
    expected.push("dead");
    notify.until("dead", || mail.mails().len() == expected.len());
    assert_eq!(mail.texts("ann@example.org"), expected);
    // The answer got lost: it comes twice, and says so.
    mail.mode("lose");
    notify.tell("lost");
    notify.until("taken", || mail.mails().len() > expected.len());
    mail.mode("");
    let taken = mail.mails().len();
    notify.until("taken again", || mail.mails().len() > taken);
    let mails = mail.mails();
    let [.., first, second] = &mails[..] else {
        panic!("{mails:?}")
    };
    assert_eq!(
        (&first["text"], &first["id"]),
        (&second["text"], &second["id"])
    );
    assert_ne!(mails[0]["id"], first["id"]);
}

#[test]
#[ignore = "needs peers: make test"]
fn digests_survive_a_restart() {
    let mail = Mail::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let settings = mail.settings() + &mail_user("ann", "digest = { every = '1h', count = 5 }");
    let mut first = Notify::new(&settings, dir.path());
    for number in 0..3 {
        first.tell(&number.to_string());
    }
    first.consumer.tick().unwrap();
    drop(first);
    assert!(mail.mails().is_empty());
    let mut second = Notify::new(&settings, dir.path());
    second.seq = 3;
    second.tell("3");
    second.tell("4");
    second.until("a digest", || !mail.mails().is_empty());
    let text = mail.texts("ann@example.org").concat();
    let parts: Vec<usize> = (0..5)
        .filter_map(|number| text.find(&format!("org.a\n{number}")))
        .collect();
    assert!(parts.len() == 5 && parts.is_sorted(), "{text}");
    let subject = &mail.mails()[0]["subject"];
    assert_eq!(subject, "5 messages, the last of org.a");
    assert_eq!(mail.mails().len(), 1);
}

/// Feeds messages while the server is killed again and again.
fn killed_under_load(
    notify: &mut Notify,
    mut kill: impl FnMut(),
    mut came: impl FnMut() -> Vec<String>,
) {
    const MESSAGES: usize = 200;
    const KILLS: usize = 4;
    for turn in 0..KILLS {
        let part = MESSAGES / KILLS;
        for ten in 0..part / 10 {
            let first = turn * part + ten * 10;
            let batch: Vec<Message> = (first..first + 10)
                .map(|number| notify.message(&number.to_string()))
                .collect();
            notify.consumer.consume_batch(&batch).unwrap();
        }
        kill();
    }
    let counts = |came: Vec<String>| {
        let mut counts = BTreeMap::<usize, usize>::new();
        for text in came {
            *counts.entry(text.parse().unwrap()).or_default() += 1;
        }
        counts
    };
    notify.until("all came", || counts(came()).len() == MESSAGES);
    let twice = counts(came()).values().filter(|count| **count > 1).count();
    println!("{MESSAGES} messages, {KILLS} kills, {twice} came twice");
    assert!(twice <= KILLS, "{twice} came twice");
}

#[test]
#[ignore = "needs peers: make test"]
fn a_mail_server_that_is_killed_loses_nothing() {
    let mail = RefCell::new(Mail::start(&[]));
    mail.borrow().mode("slow");
    let dir = tempfile::tempdir().unwrap();
    let settings = mail.borrow().settings() + "pause_max = '1s'\n" + &mail_user("ann", "");
    let mut notify = Notify::new(&settings, dir.path());
    // It works while it is killed.
    let kill = || {
        let program = mail.borrow_mut().program.take();
        drop(program);
        mail.borrow_mut().again();
    };
    killed_under_load(&mut notify, kill, || mail.borrow().texts("ann@example.org"));
}

#[test]
#[ignore = "needs peers: make test"]
fn a_receiver_of_webhooks_that_is_killed_loses_nothing() {
    let hooks = RefCell::new(Hooks::start());
    std::fs::write(hooks.borrow().dir.path().join("mode"), "slow").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://127.0.0.1:{}/ok", hooks.borrow().port);
    let settings = hooks.borrow().settings() + "pause_max = '1s'\n" + &hook_user("ann", &url);
    let mut notify = Notify::new(&settings, dir.path());
    let kill = || {
        let program = hooks.borrow_mut().program.take();
        drop(program);
        hooks.borrow_mut().again();
    };
    killed_under_load(&mut notify, kill, || hooks.borrow().texts("/ok"));
    let all = hooks.borrow().all();
    assert!(all.iter().all(|hook| hook["signed"] == true));
}

#[test]
#[ignore = "needs peers: make test"]
fn endpoints_that_fail_hang_and_refuse_hold_up_nobody() {
    let hooks = Hooks::start();
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| format!("http://127.0.0.1:{}{path}", hooks.port);
    let users = [
        hook_user("fails", &at("/status/500")),
        hook_user("hangs", &at("/hang")),
        hook_user("refuses", &at("/status/404")),
        hook_user("redirects", &at("/redirect")),
        hook_user("lies", &at("/garbage")),
        hook_user("floods", &at("/endless")),
        hook_user("drips", &at("/drip")),
        hook_user("listens not", &format!("http://127.0.0.1:{}/", free_port())),
        hook_user("exists not", "http://nowhere.invalid/"),
        // As a host of its own, so that the others' silence is not its own.
        hook_user("well", &format!("http://localhost:{}/ok", hooks.port)),
    ];
    let mut notify = Notify::new(&(hooks.settings() + &users.concat()), dir.path());
    let begin = Instant::now();
    for number in 0..20 {
        notify.tell(&number.to_string());
    }
    notify.until("all came", || hooks.texts("/ok").len() == 20);
    println!("20 beside nine in trouble: {:?}", begin.elapsed());
    notify.until("refused", || hooks.texts("/status/404").len() == 20);
    notify.until("floods", || hooks.texts("/endless").len() == 20);
    notify.until("drips", || hooks.texts("/drip").len() > 1);
    notify.until("redirects", || hooks.texts("/redirect").len() == 20);
    let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(hooks.texts("/ok"), expected, "in order, nothing redirected");
    assert!(hooks.all().iter().all(|hook| hook["signed"] == true));
    notify.consumer.tick().unwrap();
    drop(notify);
    let mut left = left(dir.path());
    left.remove("drips"); // each takes its whole time
    let waits = ["exists not", "fails", "hangs", "lies", "listens not"];
    assert_eq!(left, waits.map(|user| (user.to_owned(), 20)).into());
}

#[test]
#[ignore = "needs peers: make test"]
fn an_answer_that_got_lost_is_recognised_by_its_id() {
    let hooks = Hooks::start();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://127.0.0.1:{}/lose", hooks.port);
    let mut notify = Notify::new(&(hooks.settings() + &hook_user("ann", &url)), dir.path());
    notify.tell(r#"{"a": 1}"#);
    notify.until("two came", || hooks.all().len() >= 2);
    let all = hooks.all();
    assert_eq!(all[0]["body"], all[1]["body"]);
    assert_eq!(all[0]["body"]["json"]["a"], 1);
}

#[test]
#[ignore = "needs peers: make test"]
fn a_receiver_with_a_certificate_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let [cert, key] = certificate(dir.path());
    let hooks = Hooks::start();
    let port = free_port();
    let server = format!(
        "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {cert}; \
         ssl_certificate_key {key};\n\
         location / {{ proxy_pass http://127.0.0.1:{}; }} }}",
        hooks.port
    );
    let _nginx = nginx(dir.path(), port, &server);
    let user = hook_user("ann", &format!("https://localhost:{port}/ok"));
    let settings =
        |store: &str, ca: &str| format!("store = '{store}'\nwebhook = {{ {ca} }}\n{user}");
    let mut wary = Notify::new(&settings("wary.db", ""), dir.path());
    wary.tell("x");
    wary.consumer.tick().unwrap();
    assert!(hooks.all().is_empty());
    let mut trusting = Notify::new(&settings("notify.db", "ca = 'cert.pem'"), dir.path());
    trusting.tell("x");
    trusting.until("one came", || hooks.all().len() == 1);
}

/// nginx with these servers.
fn nginx(dir: &Path, port: u16, http: &str) -> Program {
    let config = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/error.log;\n\
         events {{ }}\n\
         http {{\n access_log {0}/access.log; client_body_temp_path {0}/body;\n\
         proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; \
         scgi_temp_path {0}/s;\n{http}\n}}\n",
        dir.display(),
    );
    std::fs::write(dir.join("nginx.conf"), config).unwrap();
    let mut nginx = Command::new(peers().join("installed/nginx/usr/sbin/nginx"));
    nginx.arg("-c").arg(dir.join("nginx.conf"));
    // Its own directory would be /var/log, before it has read the configuration.
    Program::start(nginx.arg("-e").arg(dir.join("error.log")), port)
}

#[test]
#[ignore = "needs peers: make test"]
fn an_endpoint_that_asks_for_no_pause_is_not_asked_without_one() {
    let hooks = Hooks::start();
    for (number, after) in ["0", "Sun,%2006%20Nov%201994%2008:49:37%20GMT"]
        .iter()
        .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("http://127.0.0.1:{}/status/503?after={after}", hooks.port);
        let mut notify = Notify::new(&(hooks.settings() + &hook_user("ann", &url)), dir.path());
        // It works for a while at what it can send, which is nothing after the first answer.
        notify.tell("x");
        assert_eq!(hooks.all().len(), number + 1, "{after}");
    }
}

#[test]
#[ignore = "needs peers: make test"]
fn nginx_says_when_it_wants_to_be_asked_again() {
    let hooks = Hooks::start();
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let servers = format!(
        "limit_req_zone $server_name zone=one:1m rate=30r/m; limit_req_status 429;\n\
         server {{ server_name one; listen 127.0.0.1:{port};\n\
         location /limited {{ limit_req zone=one; error_page 429 = @later; \
         proxy_pass http://127.0.0.1:{0}/ok; }}\n\
         location @later {{ add_header Retry-After 2 always; return 429; }}\n\
         location /free {{ proxy_pass http://127.0.0.1:{0}/status/204; }} }}",
        hooks.port
    );
    let _nginx = nginx(dir.path(), port, &servers);
    let users = hook_user("limited", &format!("http://127.0.0.1:{port}/limited"))
        + &hook_user("free", &format!("http://127.0.0.1:{port}/free"));
    let mut notify = Notify::new(&(hooks.settings() + &users), dir.path());
    for number in 0..4 {
        notify.tell(&number.to_string());
    }
    let free = || hooks.texts("/status/204").len() == 4;
    notify.until("the free one has all", free);
    assert!(hooks.texts("/ok").len() < 4);
    notify.until("the limited one has all", || hooks.texts("/ok").len() == 4);
    assert_eq!(hooks.texts("/ok"), ["0", "1", "2", "3"]);
    let log = std::fs::read_to_string(dir.path().join("access.log")).unwrap();
    let refused = log.lines().filter(|line| line.contains(" 429 ")).count();
    println!("nginx said 429 {refused} times");
    // Three had to wait. Asked when it says so, it refuses each at most twice, its clock being
    // coarse; asked as soon as it could be, it would refuse dozens.
    assert!((1..=6).contains(&refused), "{log}");
}

/// A mail server that says what it wants, for each connection one script.
fn liar(script: impl Fn(&mut TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            script(&mut client);
        }
    });
    port
}

#[test]
fn a_mail_server_that_lies_gets_nothing_and_ends_nothing() {
    type Script = fn(&mut TcpStream);
    let scripts: [(&str, Script); 8] = [
        ("closes", |_| {}),
        ("garbage", |client| {
            drop(client.write_all(b"\xff\xfe\0 what\r\n"));
        }),
        ("half", |client| drop(client.write_all(b"220"))),
        ("endless line", |client| {
            while client.write_all(&[b'2'; 4096]).is_ok() {}
        }),
        ("endless answer", |client| {
            while client.write_all(b"220-more\r\n").is_ok() {}
        }),
        ("drips", |client| {
            while client.write_all(b"2").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
        }),
        ("says nothing", |client| drop(client.read(&mut [0]))),
        ("injects before TLS", |client| {
            let _ = client.write_all(b"220 x\r\n250-x\r\n250 STARTTLS\r\n");
            let _ = client.write_all(b"220 go\r\n250 injected\r\n");
            let _ = client.read(&mut [0; 1000]);
        }),
    ];
    for (name, script) in scripts {
        let dir = tempfile::tempdir().unwrap();
        let tls = match name {
            "injects before TLS" => "starttls",
            _ => "none",
        };
        let settings = format!(
            "email = {{ server = '127.0.0.1:{}', tls = '{tls}', from = 'weir@example.org', \
             timeout = '300ms' }}\n{}",
            liar(script),
            mail_user("ann", "")
        );
        let mut notify = Notify::new(&settings, dir.path());
        notify.tell("x");
        drop(notify);
        let outbox = rusqlite::Connection::open(dir.path().join("notify.db")).unwrap();
        let attempts = "SELECT attempts FROM notifications";
        let attempts = outbox.query_row(attempts, (), |row| row.get::<_, i64>(0));
        assert_eq!(attempts, Ok(1), "{name}");
    }
}

/// Enough of an IRC server for one client: it answers, and tells what was said.
fn irc() -> (u16, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (said, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let mut answers = client.try_clone().unwrap();
            for line in BufReader::new(client).lines().map_while(Result::ok) {
                let answer = match line.split_once(' ').unwrap_or((&line, "")) {
                    ("USER", _) => ":here 001 weir :Welcome\r\n:here 376 weir :End\r\n".into(),
                    ("PING", token) => format!(":here PONG here {token}\r\n"),
                    ("PRIVMSG", what) if what.starts_with("gone ") => {
                        ":here 401 weir gone :No such nick\r\n".into()
                    }
                    ("PRIVMSG", what) => {
                        let _ = said.send(what.to_owned());
                        String::new()
                    }
                    _ => String::new(),
                };
                let _ = answers.write_all(answer.as_bytes());
            }
        }
    });
    (port, hears)
}

#[test]
fn nicks_are_told_over_the_connection_of_irc() {
    let (port, hears) = irc();
    let dir = tempfile::tempdir().unwrap();
    let settings = format!(
        "irc = {{ server = '127.0.0.1:{port}', tls = false, nick = 'weir' }}
         [[user]]\nname = 'one who left'\nirc = 'gone'\nrules = [{{ topics = [''] }}]
         [[user]]\nname = 'ann'\nirc = 'ann'\nrules = [{{ topics = [''] }}]"
    );
    let mut notify = Notify::new(&settings, dir.path());
    notify.tell("hello");
    let mut heard = Vec::new();
    notify.until("heard", || {
        heard.extend(hears.try_iter());
        !heard.is_empty()
    });
    assert_eq!(heard, ["ann :org.a: hello"]);
    drop(notify);
    // Who is not there may come back.
    assert_eq!(left(dir.path()), [("one who left".into(), 1)].into());
}
