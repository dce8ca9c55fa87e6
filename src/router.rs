//! Which consumers a topic goes to.

use std::collections::HashMap;
use std::sync::Arc;

use crate::stats::TOPIC_MAX;

/// Topics remembered; when more come, the memory starts anew. A bus has some hundred; a publisher
/// that puts an id into its topics must not be able to fill memory with them.
const TOPICS_MAX: usize = 16_384;

/// Takes a topic pattern of the configuration to the prefix that it means: a `*` is deleted.
///
/// ```
/// assert_eq!(weir::router::prefix("org.example.*"), "org.example.");
/// ```
pub fn prefix(pattern: &str) -> String {
    pattern.replace('*', "")
}

/// The shortest list of prefixes that covers the same topics.
///
/// ```
/// let all = ["a.b".into(), "a.".into(), "c".into(), "c".into()];
/// assert_eq!(weir::router::narrowest(all), ["a.", "c"]);
/// ```
pub fn narrowest(prefixes: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut sorted: Vec<String> = prefixes.into_iter().collect();
    sorted.sort();
    // Sorted, whatever begins with a prefix follows it.
    sorted.dedup_by(|later, earlier| later.starts_with(earlier.as_str()));
    sorted
}

/// Where one topic goes.
pub struct Route {
    /// The topic, interned for the batch at hand.
    pub topic: Arc<str>,
    /// The batch for which it was interned.
    pub batch: u64,
    /// Messages that have the topic's present copy.
    pub uses: u32,
    /// The consumers' places, each once, however many of its patterns match.
    pub targets: Box<[u32]>,
}

/// Finds routes, and remembers them by topic. Every enqueuer has its own: no lock.
pub struct Router {
    /// Per consumer, its prefixes.
    wanted: Vec<Vec<String>>,
    /// Each topic's place in `routes`.
    places: HashMap<Box<[u8]>, u32, rapidhash::fast::RandomState>,
    routes: Vec<Route>,
}

impl Router {
    /// A router for consumers with these prefixes.
    pub fn new(wanted: Vec<Vec<String>>) -> Self {
        Router {
            wanted,
            places: HashMap::default(),
            routes: Vec::new(),
        }
    }

    /// How many consumers there are.
    pub fn consumers(&self) -> usize {
        self.wanted.len()
    }

    /// Whether any consumer wants a topic.
    pub fn wants(&mut self, topic: &str) -> bool {
        self.route(topic.as_bytes())
            .is_some_and(|route| !route.targets.is_empty())
    }

    /// The route of a topic; none when it is not UTF-8 or too long.
    pub fn route(&mut self, topic: &[u8]) -> Option<&mut Route> {
        if let Some(place) = self.places.get(topic) {
            return self.routes.get_mut(*place as usize);
        }
        let text = std::str::from_utf8(topic)
            .ok()
            .filter(|text| text.len() <= TOPIC_MAX)?;
        if self.routes.len() >= TOPICS_MAX {
            self.places.clear();
            self.routes.clear();
        }
        let targets = (self.wanted.iter().zip(0..))
            .filter(|(prefixes, _)| prefixes.iter().any(|p| text.starts_with(p.as_str())))
            .map(|(_, index)| index)
            .collect();
        self.places.insert(topic.into(), self.routes.len() as u32);
        self.routes.push(Route {
            topic: text.into(),
            batch: 0,
            uses: 0,
            targets,
        });
        self.routes.last_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> Router {
        let wanted = [
            &["org.example."][..],
            &[""],
            &["org.example.a", "org."],
            &["com."],
        ];
        Router::new(
            wanted
                .map(|prefixes| prefixes.iter().map(|p| prefix(p)).collect())
                .to_vec(),
        )
    }

    #[test]
    fn a_consumer_gets_a_message_once_however_many_of_its_topics_match() {
        let mut router = router();
        for _ in 0..2 {
            assert_eq!(*router.route(b"org.example.a").unwrap().targets, [0, 1, 2]);
            assert_eq!(*router.route(b"net").unwrap().targets, [1]);
        }
    }

    #[test]
    fn topics_that_are_not_utf8_have_no_route() {
        assert!(router().route(b"org.\xff").is_none());
    }

    #[test]
    fn the_memory_of_topics_is_bounded() {
        let mut router = router();
        for n in 0..3 * TOPICS_MAX {
            router.route(format!("org.example.{n}").as_bytes());
            assert!(router.routes.len() <= TOPICS_MAX);
        }
    }
}
