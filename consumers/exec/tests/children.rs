//! Children that behave, and children that do not: each a script for `sh`.

#![allow(missing_docs, clippy::unwrap_used)] // a test's name says what it is about

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use weir_consumer::testkit::{Published, conformance, recorder};
use weir_consumer::{Consumer, Context, Failure, Message, PublishError, Publisher, Verdict};
use weir_consumer::{Kind, settings::Settings};

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first lines, and what finds a message's `id` in its line.
const BEGIN: &str = r#"
    read -r hello; echo '{"weir":1}'
    id() { id=${1#*'"id":'}; id=${id%%,*}; }
    answer() { id "$1"; echo "{\"id\":$id,\"result\":\"$2\"}"; }
"#;

/// Notes each message's line in `seen` and answers it so.
fn answering(result: &str) -> String {
    format!("while read -r line; do echo \"$line\" >> seen; answer \"$line\" {result}; done")
}

struct Scene {
    dir: tempfile::TempDir,
    published: Published,
    consumer: Box<dyn Consumer>,
    seq: u64,
}

impl Scene {
    /// A consumer whose child is this script, after the first lines.
    fn new(script: &str) -> Self {
        Scene::with("", &format!("{BEGIN}\n{script}"))
    }

    /// A consumer with these settings whose child is this script.
    fn with(settings: &str, script: &str) -> Self {
        let (publisher, published) = recorder();
        let dir = tempfile::tempdir().unwrap();
        let consumer = build(dir.path(), settings, script, publisher);
        Scene {
            dir,
            published,
            consumer,
            seq: 0,
        }
    }

    fn message(&mut self) -> Message {
        self.seq += 1;
        let payload = format!("payload {}", self.seq).into_bytes();
        Message::new(
            "org.example.a".into(),
            payload.into(),
            SystemTime::now(),
            self.seq,
        )
    }

    fn messages(&mut self, count: usize) -> Vec<Message> {
        (0..count).map(|_| self.message()).collect()
    }

    /// Delivers one message.
    fn feed(&mut self) -> Result<(), Failure> {
        let message = self.message();
        self.consumer.consume(&message)
    }

    /// How a delivery failed, which the hub would try again.
    #[track_caller]
    fn retried(&mut self) -> String {
        let failure = self.feed().unwrap_err();
        assert_eq!(failure.verdict(), Verdict::Retry, "{failure}");
        failure.to_string()
    }

    /// The payloads that children saw, in order.
    fn seen(&self) -> Vec<String> {
        let lines = fs::read_to_string(self.dir.path().join("seen")).unwrap_or_default();
        let lines = lines.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["payload"].as_str().unwrap().to_owned()
        });
        lines.collect()
    }

    /// A number that a child wrote into a file.
    fn pid(&self, file: &str) -> u32 {
        let mut read = String::new();
        eventually("a child wrote its number", || {
            read = fs::read_to_string(self.dir.path().join(file)).unwrap_or_default();
            read.ends_with('\n')
        });
        read.trim().parse().unwrap()
    }
}

fn build(dir: &Path, settings: &str, script: &str, publisher: Publisher) -> Box<dyn Consumer> {
    fs::write(dir.join("child.sh"), script).unwrap();
    // Patience, where a test says nothing else; a test's own line stands instead.
    let mut toml = format!("command = ['sh', 'child.sh']\n{settings}\n");
    for (key, value) in [
        ("timeout", "'60s'"),
        ("start_timeout", "'60s'"),
        ("stop_timeout", "'60s'"),
        ("restart", "{ delay = '10ms', delay_max = '10ms' }"),
    ] {
        if !settings.lines().any(|line| line.starts_with(key)) {
            toml.push_str(&format!("{key} = {value}\n"));
        }
    }
    let settings = Settings::from_toml(&toml, "test").unwrap();
    let kind: Kind = weir_exec::kind();
    let context = Context::new("exec", dir, publisher).in_hub("here");
    let built = kind.build_consumer(&settings, &context);
    built.unwrap_or_else(|mistakes| panic!("{}", mistakes[0]))
}

/// Waits until it holds, for what can only be polled.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process runs: neither gone nor waiting to be reaped.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, state)| !state.starts_with('Z'))
}

fn kill(pid: u32) {
    let mut command = std::process::Command::new("kill");
    let status = command.args(["-9", &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// Whether a process is there, if only to be reaped.
fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn every_answer_is_a_verdict() {
    let script = r#"
        while read -r line; do
            id "$line"
            case $line in
                *'payload 1"'*) echo "{\"id\":$id,\"result\":\"ok\"}";;
                *'payload 2"'*) echo "{\"id\":$id,\"result\":\"retry\",\"reason\":\"not now\"}";;
                *'payload 3"'*) echo "{\"id\":$id,\"result\":\"drop\",\"more\":[1]}";;
                *'payload 4"'*) echo "{\"reason\":\"bad\",\"result\":\"dead_letter\",\"id\":$id}";;
                *) echo "{\"id\":$id,\"result\":\"halt\"}";;
            esac
        done"#;
    let mut scene = Scene::new(script);
    let mut outcomes = Vec::new();
    for _ in 0..5 {
        let outcome = scene.feed();
        outcomes.push(outcome.map_err(|failure| (failure.verdict(), failure.to_string())));
    }
    let no_reason = || "the child gave no reason".to_owned();
    assert_eq!(
        outcomes,
        [
            Ok(()),
            Err((Verdict::Retry, "not now".to_owned())),
            Err((Verdict::Drop, no_reason())),
            Err((Verdict::DeadLetter, "bad".to_owned())),
            Err((Verdict::Halt, no_reason())),
        ]
    );
}

#[test]
fn the_child_gets_its_settings_its_environment_and_not_the_hub_s() {
    let script = r#"
        read -r hello; echo "$hello" > hello; env > env; pwd > pwd; echo '{"weir":1}'
        read -r line; echo "$line" > message; echo '{"id":1,"result":"ok"}'"#;
    let settings = "settings = { level = 3, names = ['a', 'b'] }\nbatch_max = 7\n\
                    environment = { GREETING = 'a $HOME b' }\nsecrets = { TOKEN = { file = 'token' } }\n\
                    directory = 'inner'";
    let scene = Scene::with(settings, "");
    let inner = scene.dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("child.sh"), script).unwrap();
    fs::write(scene.dir.path().join("token"), "hunter2\n").unwrap();
    let mut scene = scene;
    scene.feed().unwrap();
    let read = |file: &str| fs::read_to_string(inner.join(file)).unwrap();
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    assert_eq!(
        json(read("hello")),
        serde_json::json!({
            "weir": 1, "hub": "here", "consumer": "exec", "batch_max": 7,
            "settings": {"level": 3, "names": ["a", "b"]},
        })
    );
    let env = read("env");
    assert!(env.contains("\nGREETING=a $HOME b\n") || env.starts_with("GREETING=a $HOME b\n"));
    assert!(env.contains("TOKEN=hunter2\n"), "{env}");
    assert!(env.contains("PATH="), "{env}");
    // Those of the test, which are many under cargo, without those that the shell sets itself.
    let known = [
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PWD",
        "OLDPWD", "SHLVL", "_",
    ];
    let names = std::env::vars().map(|(name, _)| name);
    let others: Vec<String> = names
        .filter(|name| !known.contains(&name.as_str()))
        .collect();
    assert!(!others.is_empty());
    let has = |env: &str, name: &str| {
        env.lines()
            .any(|line| line.starts_with(&format!("{name}=")))
    };
    assert!(!others.iter().any(|name| has(&env, name)), "{env}");
    assert_eq!(Path::new(read("pwd").trim()), inner.canonicalize().unwrap());
    let message = json(read("message"));
    assert_eq!(message["topic"], "org.example.a");
    assert_eq!(message["payload"], "payload 1");
    assert_eq!(message["replayed"], false);
}

#[test]
fn the_child_gets_all_of_the_environment_when_it_is_to() {
    let script = "env > env\n".to_owned() + BEGIN + &answering("ok");
    let mut scene = Scene::with("inherit_environment = true", &script);
    scene.feed().unwrap();
    let env = fs::read_to_string(scene.dir.path().join("env")).unwrap();
    for (name, _) in std::env::vars() {
        assert!(
            env.lines()
                .any(|line| line.starts_with(&format!("{name}="))),
            "{name}"
        );
    }
}

#[test]
fn it_stands_what_every_consumer_has_to_stand() {
    let script = format!("{BEGIN}\nwhile read -r line; do answer \"$line\" ok; done");
    let dir = tempfile::tempdir().unwrap();
    conformance(|| build(dir.path(), "batch_max = 3", &script, Publisher::nowhere()));
}

#[test]
fn a_batch_may_be_answered_in_any_order() {
    let script = r#"
        read -r one; read -r two; read -r three
        answer "$three" ok; answer "$one" ok; answer "$two" ok
        read -r end"#;
    let mut scene = Scene::with("batch_max = 3", &format!("{BEGIN}{script}"));
    let batch = scene.messages(3);
    scene.consumer.consume_batch(&batch).unwrap();
}

#[test]
fn a_child_may_want_fewer_at_a_time() {
    // It would be silent if it got one more before it has answered.
    let script = r#"
        read -r hello; echo '{"weir":1,"batch_max":2}'
        id=0
        while read -r one; do
            read -r two
            for line in 1 2; do id=$((id + 1)); echo "{\"id\":$id,\"result\":\"ok\"}"; done
        done"#;
    let mut scene = Scene::with("batch_max = 100", script);
    let batch = scene.messages(4);
    scene.consumer.consume_batch(&batch).unwrap();
}

#[test]
fn what_was_answered_of_a_failed_batch_is_not_sent_again() {
    let script = r#"
        while read -r line; do
            echo "$line" >> seen
            case $line in *'payload 2"'*) answer "$line" dead_letter;; *) answer "$line" ok;; esac
        done"#;
    let mut scene = Scene::with("batch_max = 10", &format!("{BEGIN}{script}"));
    let batch = scene.messages(3);
    let failure = scene.consumer.consume_batch(&batch).unwrap_err();
    assert_eq!(failure.verdict(), Verdict::Retry);
    let verdicts: Vec<Option<Verdict>> = (batch.iter())
        .map(|message| scene.consumer.consume(message).err().map(|f| f.verdict()))
        .collect();
    assert_eq!(verdicts, [None, Some(Verdict::DeadLetter), None]);
    assert_eq!(scene.seen(), ["payload 1", "payload 2", "payload 3"]);
    // An answer is good for one delivery: a replay of the same message is sent.
    scene.consumer.consume(&batch[0]).unwrap();
    assert_eq!(scene.seen().last().unwrap(), "payload 1");
}

#[test]
fn of_a_child_that_dies_within_a_batch_only_what_it_did_not_answer_is_sent_again() {
    let script = format!(
        r#"
        if [ ! -e died ]; then
            read -r one; read -r two; read -r three; : > died
            answer "$two" ok
            echo 'no more room' >&2
            exit 3
        fi
        {}"#,
        answering("ok")
    );
    let mut scene = Scene::with("batch_max = 10", &format!("{BEGIN}{script}"));
    let batch = scene.messages(3);
    let failure = scene.consumer.consume_batch(&batch).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the child ended, exit status: 3; the last line of its standard error: no more room"
    );
    assert_eq!(failure.verdict(), Verdict::Retry);
    for message in &batch {
        scene.consumer.consume(message).unwrap();
    }
    assert_eq!(scene.seen(), ["payload 1", "payload 3"]);
}

#[test]
fn a_message_that_children_die_over_is_set_aside() {
    let script = r#"
        while read -r line; do
            case $line in *'payload 2"'*) kill -9 $$;; esac
            answer "$line" ok
        done"#;
    let mut scene = Scene::with("crashes_max = 3", &format!("{BEGIN}{script}"));
    scene.feed().unwrap();
    let poison = scene.message();
    for _ in 0..2 {
        let failure = scene.consumer.consume(&poison).unwrap_err();
        assert_eq!(failure.to_string(), "the child ended, signal: 9 (SIGKILL)");
        assert_eq!(failure.verdict(), Verdict::Retry);
    }
    let failure = scene.consumer.consume(&poison).unwrap_err();
    assert_eq!(failure.verdict(), Verdict::DeadLetter);
    assert_eq!(
        failure.to_string(),
        "3 children were lost over this message (`crashes_max`); the last time the child ended, \
         signal: 9 (SIGKILL)"
    );
    scene.feed().unwrap();
}

#[test]
fn no_message_is_set_aside_for_a_child_that_can_not_be_started() {
    let mut scene = Scene::with("crashes_max = 1", "exit 1");
    let message = scene.message();
    for _ in 0..3 {
        let failure = scene.consumer.consume(&message).unwrap_err();
        assert_eq!(failure.verdict(), Verdict::Retry);
        assert_eq!(failure.to_string(), "the child ended, exit status: 1");
    }
}

#[test]
fn a_child_that_does_not_greet_is_told_from_others() {
    let cases = [
        (
            "read -r hello; echo '{\"weir\":2}'; read -r end",
            "the child was killed: it speaks version 2 of the protocol; this hub speaks 1",
        ),
        (
            "read -r hello; echo Hello; read -r end",
            "the child was killed: it wrote a line that is no JSON object (standard output belongs \
             to the protocol; print to standard error): \"Hello\"",
        ),
        (
            "read -r hello; echo '{\"id\":1,\"result\":\"ok\"}'; read -r end",
            "the child was killed: its first line was not {\"weir\":1}",
        ),
        (
            "read -r hello; echo '{\"weir\":1,\"batch_max\":0}'; read -r end",
            "the child was killed: it asked for a `batch_max` of 0",
        ),
        (
            "read -r hello; exec >&-; exec sleep 1000",
            "the child closed its standard output, and was killed",
        ),
        ("exit 7", "the child ended, exit status: 7"),
    ];
    for (script, told) in cases {
        let mut scene = Scene::with("", script);
        assert_eq!(scene.retried(), told, "{script}");
    }
    let mut silent = Scene::with("start_timeout = '50ms'", "exec sleep 1000");
    assert_eq!(
        silent.retried(),
        "the child was killed: it did not answer the first line within 50ms"
    );
}

#[test]
fn a_child_that_breaks_the_protocol_is_replaced() {
    let cases = [
        (
            "echo '{\"id\":2,\"result\":\"ok\"}'",
            "it answered 2, which is no message that waits for an answer",
        ),
        (
            "echo '{\"id\":0,\"result\":\"ok\"}'",
            "it answered 0, which is no message that waits for an answer",
        ),
        (
            "echo '{\"id\":1}'",
            "its answer has no `result`: \"{\\\"id\\\":1}\"",
        ),
        (
            "echo '{\"tick\":\"ok\"}'",
            "it answered a tick that was not asked",
        ),
        ("echo '{\"weir\":1}'", "it said its first line again"),
        ("echo '{}'", "it wrote an object of no known kind: \"{}\""),
        (
            "cat /dev/zero | tr '\\0' x",
            "it wrote a line of more than 2048 bytes (`line_max`)",
        ),
    ];
    for (says, told) in cases {
        let script = format!(
            "{BEGIN}\nif [ ! -e said ]; then : > said; read -r line; {says}; read -r end; exit; fi\n{}",
            answering("ok")
        );
        let mut scene = Scene::with("line_max = 2048", &script);
        assert_eq!(scene.retried(), format!("the child was killed: {told}"));
        scene.feed().unwrap();
    }
}

#[test]
fn an_answer_that_comes_twice_breaks_the_protocol() {
    let script = r#"
        read -r line; answer "$line" ok; answer "$line" ok; read -r end; read -r end"#;
    let mut scene = Scene::new(script);
    scene.feed().unwrap();
    let told = scene.retried();
    let expected = "it answered 1, which is no message that waits for an answer";
    assert_eq!(told, format!("the child was killed: {expected}"));
}

#[test]
fn a_child_that_never_answers_is_killed_with_all_of_its_group() {
    let begin = "echo $$ > child; sleep 1000 & echo $! > grandchild";
    let script = format!("{begin}\n{BEGIN}\nread -r line; wait");
    let mut scene = Scene::with("timeout = '50ms'", &script);
    assert_eq!(
        scene.retried(),
        "the child was killed: it gave no answer within 50ms"
    );
    assert!(!is_there(scene.pid("child")));
    let grandchild = scene.pid("grandchild");
    eventually("the grandchild has ended", || !runs(grandchild));
}

#[test]
fn a_child_that_does_not_read_is_killed() {
    // More than a pipe holds.
    let mut scene = Scene::with("timeout = '50ms'", &format!("{BEGIN}exec sleep 1000"));
    let payload = vec![b'x'; 4 << 20];
    let message = Message::new("a".into(), payload.into(), SystemTime::now(), 1);
    let failure = scene.consumer.consume(&message).unwrap_err();
    let told = "the child was killed: it gave no answer within 50ms";
    assert_eq!(failure.to_string(), told);
}

#[test]
fn large_messages_and_large_talk_go_past_each_other() {
    // The child writes far more than a pipe holds before it reads, on both of its outputs.
    let script = r#"
        big=$(head -c 3000000 /dev/zero | tr '\0' x)
        echo "$big" >&2
        echo "{\"publish\":{\"topic\":\"t\",\"payload\":\"$big\"}}"
        while read -r line; do answer "$line" ok; done"#;
    let mut scene = Scene::with("batch_max = 4", &format!("{BEGIN}{script}"));
    let batch: Vec<Message> = (1..=4)
        .map(|seq| {
            let payload = vec![b'x'; 1 << 20];
            Message::new("a".into(), payload.into(), SystemTime::now(), seq)
        })
        .collect();
    scene.consumer.consume_batch(&batch).unwrap();
    let published = scene.published.lock().unwrap().clone();
    assert_eq!(published[0].1.len(), 3_000_000);
}

#[test]
fn a_child_may_flood_its_standard_error() {
    let script = "yes noise | head -n 300000 >&2\n".to_owned() + &answering("ok");
    let mut scene = Scene::new(&script);
    scene.feed().unwrap();
}

#[test]
fn what_a_child_publishes_is_published_in_order_and_before_its_answer() {
    let script = r#"
        read -r line
        echo '{"publish":{"topic":"a","payload":"one"}}'
        echo '{"publish":{"topic":"b","payload_base64":"/wA="}}'
        answer "$line" ok
        while read -r line; do :; done
        echo '{"publish":{"topic":"c","payload":"the last"}}'"#;
    let mut scene = Scene::new(script);
    scene.feed().unwrap();
    let published = |scene: &Scene| scene.published.lock().unwrap().clone();
    let first = [
        ("a".to_owned(), "one".into()),
        ("b".to_owned(), b"\xff\0"[..].to_vec().into()),
    ];
    assert_eq!(published(&scene), first);
    scene.consumer = Box::new(weir_consumer::from_fn(|_| Ok(())));
    assert_eq!(
        published(&scene)[2..],
        [("c".to_owned(), "the last".into())]
    );
}

#[test]
fn what_can_not_be_published_does_not_fail_the_message() {
    let script = "read -r line; echo '{\"publish\":{\"topic\":\"a\",\"payload\":\"\"}}'; answer \"$line\" ok; read -r end";
    let dir = tempfile::tempdir().unwrap();
    let publisher = Publisher::new(|_, _| Err(PublishError::Full));
    let mut consumer = build(dir.path(), "", &format!("{BEGIN}{script}"), publisher);
    let message = Message::new("a".into(), "".into(), SystemTime::now(), 1);
    consumer.consume(&message).unwrap();
}

#[test]
fn a_stop_lets_the_child_finish() {
    let script = answering("ok") + "\nsleep 0.1; echo finished > finished";
    let mut scene = Scene::new(&script);
    scene.feed().unwrap();
    let Scene { dir, consumer, .. } = scene;
    drop(consumer);
    assert!(dir.path().join("finished").exists());
}

#[test]
fn a_child_that_ignores_the_end_of_its_input_gets_sigterm() {
    let script = "trap 'echo told > told; exit' TERM\nread -r line; answer \"$line\" ok\n\
                  while :; do sleep 0.01; done";
    let mut scene = Scene::with("stop_timeout = '10ms'", &format!("{BEGIN}{script}"));
    scene.feed().unwrap();
    let Scene { dir, consumer, .. } = scene;
    drop(consumer);
    assert!(dir.path().join("told").exists());
}

#[test]
fn a_child_that_ignores_everything_is_killed() {
    let script = "trap '' TERM\necho $$ > child; sleep 1000 & echo $! > grandchild\n\
                  read -r line; answer \"$line\" ok\nwhile :; do sleep 1000; done";
    let mut scene = Scene::with("stop_timeout = '10ms'", &format!("{BEGIN}{script}"));
    scene.feed().unwrap();
    let pids = (scene.pid("child"), scene.pid("grandchild"));
    scene.consumer = Box::new(weir_consumer::from_fn(|_| Ok(())));
    assert!(!is_there(pids.0));
    eventually("the grandchild has ended", || !runs(pids.1));
}

#[test]
fn a_child_that_talks_nonsense_at_its_end_is_killed() {
    let script = "read -r line; answer \"$line\" ok; read -r end\ncat /dev/zero";
    let mut scene = Scene::with("stop_timeout = '1h'", &format!("{BEGIN}{script}"));
    scene.feed().unwrap();
    drop(scene);
}

#[test]
#[ignore = "needs peers: make test"]
fn a_child_that_leaves_its_group_is_killed() {
    let script = "import os, sys, time\nsys.stdin.readline()\nprint('{\"weir\":1}', flush=True)\n\
                  os.setpgid(0, os.getpgid(os.getppid()))\n\
                  open('child', 'w').write(f'{os.getpid()}\\n')\ntime.sleep(1000)";
    let start = format!("exec python3 -c '{}'", script.replace('\'', "'\\''"));
    let mut scene = Scene::with("timeout = '1s'", &start);
    assert!(scene.retried().contains("gave no answer"));
    assert!(!is_there(scene.pid("child")));
}

#[test]
fn what_a_child_leaves_behind_ends_with_it() {
    // It holds the child's standard output, whose end therefore never comes.
    let script = "sleep 1000 & echo $! > grandchild\nread -r line; exit 1";
    let mut scene = Scene::new(script);
    assert_eq!(scene.retried(), "the child ended, exit status: 1");
    let grandchild = scene.pid("grandchild");
    eventually("the grandchild has ended", || !runs(grandchild));
}

#[test]
fn a_child_that_dies_idle_is_replaced_by_a_tick() {
    let script = answering("ok") + "\n";
    let mut scene = Scene::new(&format!("echo $$ > child\n{script}"));
    scene.consumer.tick().unwrap();
    let first = scene.pid("child");
    kill(first);
    let mut told = None;
    eventually("the tick notices it", || {
        told = scene.consumer.tick().err();
        told.is_some()
    });
    assert_eq!(
        told.unwrap().to_string(),
        "the child ended, signal: 9 (SIGKILL)"
    );
    eventually("a tick starts another", || {
        scene.consumer.tick().unwrap();
        scene.pid("child") != first
    });
    scene.feed().unwrap();
}

#[test]
fn a_child_that_wants_ticks_gets_them_between_messages() {
    let script = r#"
        read -r hello; echo '{"weir":1,"tick":true}'
        read -r line; echo "$line" >> ticks; echo '{"publish":{"topic":"t","payload":"tick"}}'; echo '{"tick":"ok"}'
        read -r line; echo '{"id":1,"result":"ok"}'
        read -r line; echo "$line" >> ticks; echo '{"tick":"halt","reason":"enough"}'
        read -r end"#;
    let mut scene = Scene::with("", script);
    scene.consumer.tick().unwrap();
    scene.feed().unwrap();
    let failure = scene.consumer.tick().unwrap_err();
    assert_eq!(
        (failure.verdict(), failure.to_string()),
        (Verdict::Halt, "enough".to_owned())
    );
    let ticks = fs::read_to_string(scene.dir.path().join("ticks")).unwrap();
    assert_eq!(ticks, "{\"tick\":true}\n{\"tick\":true}\n");
    assert_eq!(scene.published.lock().unwrap().len(), 1);
}

#[test]
fn a_child_can_not_take_more_memory_than_it_is_allowed() {
    let script = "read -r line; big=$(head -c 300000000 /dev/zero | tr '\\0' x); answer \"$line\" ok; read -r end";
    let mut scene = Scene::with("limits = { memory = '64MiB' }", &format!("{BEGIN}{script}"));
    let told = scene.retried();
    assert!(told.starts_with("the child ended, "), "{told}");
    let mut scene = Scene::with("", &format!("{BEGIN}{script}"));
    scene.feed().unwrap();
}

#[test]
fn a_child_can_not_take_more_processor_time_than_it_is_allowed() {
    let script = "read -r line; while :; do :; done";
    let mut scene = Scene::with("limits = { cpu = '1s' }", &format!("{BEGIN}{script}"));
    let told = scene.retried();
    assert!(told.contains("(SIGXCPU)"), "{told}");
    assert!(
        told.ends_with("which is that `limits.cpu` is used up"),
        "{told}"
    );
}

#[test]
fn a_child_can_not_open_more_files_than_it_is_allowed() {
    let script = "ulimit -n > limit; ulimit -H -n >> limit\n".to_owned() + &answering("ok");
    let mut scene = Scene::with("limits = { files = 20 }", &format!("{BEGIN}{script}"));
    scene.feed().unwrap();
    let limit = fs::read_to_string(scene.dir.path().join("limit")).unwrap();
    assert_eq!(limit, "20\n20\n");
}

#[test]
fn what_can_not_be_started_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let told = |settings: &str| {
        let (publisher, _) = recorder();
        let settings = Settings::from_toml(settings, "test").unwrap();
        let context = Context::new("exec", dir.path(), publisher);
        let mut consumer = weir_exec::kind()
            .build_consumer(&settings, &context)
            .ok()
            .unwrap();
        let message = Message::new("a".into(), "".into(), SystemTime::now(), 1);
        let failure = consumer.consume(&message).unwrap_err();
        assert_eq!(failure.verdict(), Verdict::Retry);
        let shown = dir.path().display().to_string();
        failure.to_string().replace(&shown, "DIR")
    };
    assert_eq!(
        told("command = ['no-such-program']"),
        "can't start the child no-such-program in DIR: No such file or directory (os error 2); see \
         `command`"
    );
    assert_eq!(
        told("command = ['./worker']"),
        "can't start the child DIR/./worker in DIR: No such file or directory (os error 2); see \
         `command`"
    );
    assert_eq!(
        told("command = ['true']\ndirectory = 'gone'"),
        "the child can't run in DIR/gone: there is no such directory; make it, or change \
         `directory`"
    );
    assert_eq!(
        told("command = ['true']\nsecrets = { T = { file = 'none' } }"),
        "can't read the secret in DIR/none: No such file or directory (os error 2)"
    );
}

#[test]
fn no_child_is_started_before_the_pause_is_over() {
    let settings = "restart = { delay = '1h', delay_max = '1h' }";
    let mut scene = Scene::with(settings, "echo x >> starts; exit 1");
    assert_eq!(scene.retried(), "the child ended, exit status: 1");
    scene.consumer.tick().unwrap();
    let told = scene.retried();
    let expected = "the child ended, exit status: 1; no child is started for another 3";
    assert!(told.starts_with(expected), "{told}");
    assert_eq!(
        fs::read_to_string(scene.dir.path().join("starts")).unwrap(),
        "x\n"
    );
}
