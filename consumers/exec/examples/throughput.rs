//! How many messages a second go to a Python child and back: `cargo run --release --example throughput`.

use std::time::{Instant, SystemTime};

use weir_consumer::settings::Settings;
use weir_consumer::{Consumer, Context, Message, Publisher, Result};

const MESSAGES: u64 = 100_000;
const CHILD: &str = r#"
import json, sys
sys.stdin.buffer.readline()
print('{"weir":1}', flush=True)
for line in sys.stdin.buffer:
    message = json.loads(line)
    print(json.dumps({"id": message["id"], "result": "ok"}), flush=True)
"#;

fn main() -> Result {
    let payload = format!(r#"{{"msg": {{"id": 7, "text": "{}"}}}}"#, "x".repeat(400));
    for batch in [1, 10, 100] {
        let toml = format!("command = ['python3', '-c', '''{CHILD}''']\nbatch_max = {batch}");
        let settings = Settings::from_toml(&toml, "throughput").map_err(|m| m.to_string());
        let directory = std::env::temp_dir();
        let context = Context::new("exec", &directory, Publisher::nowhere());
        let settings = settings.map_err(weir_consumer::Failure::halt)?;
        let built = weir_exec::kind().build_consumer(&settings, &context);
        let mut consumer = built.map_err(|m| weir_consumer::Failure::halt(m[0].to_string()))?;
        consumer.tick()?; // starts the child
        let messages: Vec<Message> = (0..MESSAGES)
            .map(|seq| {
                let payload = payload.clone().into();
                Message::new("org.example.a".into(), payload, SystemTime::now(), seq)
            })
            .collect();
        let begin = Instant::now();
        for batch in messages.chunks(batch) {
            match batch {
                [message] => consumer.consume(message)?,
                batch => consumer.consume_batch(batch)?,
            }
        }
        let rate = MESSAGES as f64 / begin.elapsed().as_secs_f64();
        println!("batch_max = {batch}: {rate:.0} messages/s");
    }
    Ok(())
}
