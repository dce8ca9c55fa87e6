//! Users and their rules: how they are read, and who is to be told of a message.
//!
//! 1. A rule is found by the message's topic; rules of other topics cost nothing.
//! 2. A user is told of a message at most once by each route, by the first of the user's rules that
//!    asks for it.
//!
//! All mistakes of all files are reported at once, each with its place. Files are read when the
//! consumer is built, so what is changed in them holds from the next start of the hub.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lettre::Address;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::Value;
use ureq::http::Uri;
use weir_consumer::conditions::{ByTopic, Conditions, Pointer};
use weir_consumer::settings::{self, Settings};
use weir_consumer::{Message, Template};

/// No larger file holds users.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// No more files are read.
const FILES_MAX: usize = 10_000;
/// Longer names and nicks are slips.
const NAME_BYTES_MAX: usize = 100;

/// A way on which people are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Route {
    Email,
    Irc,
    Webhook,
}

impl Route {
    pub(crate) const ALL: [Route; 3] = [Route::Email, Route::Irc, Route::Webhook];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Route::Email => "email",
            Route::Irc => "irc",
            Route::Webhook => "webhook",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Route::ALL.into_iter().find(|route| route.name() == name)
    }
}

/// Somebody who is told, as written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default, deserialize_with = "crate::email::address")]
    pub(crate) email: Option<Address>,
    pub(crate) irc: Option<Target>,
    pub(crate) webhook: Option<Url>,
    pub(crate) digest: Option<Digest>,
    #[serde(default)]
    rules: Vec<Rule>,
}

/// Which messages a user wants to be told of, and how.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    topics: Vec<String>,
    #[serde(default)]
    when: Conditions,
    about: Option<Pointer>,
    via: Option<Vec<Route>>,
    subject: Option<Template>,
    format: Option<Template>,
    #[serde(default)]
    urgent: bool,
}

/// When a user's mails are put together.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Digest {
    #[serde(deserialize_with = "settings::duration")]
    pub(crate) every: Duration,
    pub(crate) count: NonZeroUsize,
}

impl Default for Digest {
    fn default() -> Self {
        Digest {
            every: Duration::from_secs(3600),
            count: const { NonZeroUsize::new(50).expect("50 is not 0") },
        }
    }
}

/// A nick or a channel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target(pub(crate) String);

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        // What would end the target on the line that is sent, or name several.
        let bad = |c: char| c.is_control() || c.is_whitespace() || c == ',';
        let fits = !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.contains(bad);
        match fits && !text.starts_with(':') {
            true => Ok(Target(text)),
            false => Err(D::Error::custom(format!(
                "expected a nick or a channel, found {text:?}"
            ))),
        }
    }
}

/// Where a webhook is. Its path can be a secret, so that only its origin is ever shown.
#[derive(Clone, PartialEq)]
pub(crate) struct Url {
    pub(crate) uri: Uri,
    pub(crate) origin: String,
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/...", self.origin)
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let problem = |what: &str| {
            D::Error::custom(format!(
                "{what}; expected an address such as \"https://example.org/hook\""
            ))
        };
        let uri: Uri = (text.parse()).map_err(|_| problem("this is no address of the web"))?;
        let scheme = match uri.scheme_str() {
            Some(scheme @ ("http" | "https")) => scheme,
            _ => {
                return Err(problem(
                    "the address begins neither with https:// nor http://",
                ));
            }
        };
        let authority = match uri.authority() {
            Some(authority) if !authority.host().is_empty() => authority.as_str(),
            _ => return Err(problem("the address names no host")),
        };
        if authority.contains('@') {
            return Err(problem(
                "the address has a password in it, which would be shown",
            ));
        }
        let origin = format!("{scheme}://{}", authority.to_ascii_lowercase());
        Ok(Url { uri, origin })
    }
}

/// A rule, where it was found.
#[derive(Clone, Debug)]
struct Indexed {
    user: usize,
    /// Its place among the user's.
    number: usize,
    via: Vec<Route>,
}

/// Everybody who is told.
#[derive(Debug, Default)]
pub(crate) struct Users {
    all: Vec<User>,
    by_name: HashMap<String, usize>,
    rules: ByTopic<Indexed>,
}

/// That a user is to be told of a message by a route.
#[derive(Debug, PartialEq)]
pub(crate) struct Match<'u> {
    pub(crate) user: &'u User,
    pub(crate) route: Route,
    /// The rule's place among the user's, from 1.
    pub(crate) rule: usize,
    pub(crate) subject: Option<&'u Template>,
    pub(crate) format: Option<&'u Template>,
    pub(crate) digest: bool,
}

/// A file of users.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    user: Vec<User>,
}

impl Users {
    /// Those of the configuration and those of these files and directories.
    ///
    /// # Errors
    /// Every mistake in them.
    pub(crate) fn read(
        inline: Vec<User>,
        paths: &[PathBuf],
        data_dir: &Path,
        routes: &[Route],
    ) -> Result<Self, Vec<String>> {
        let mut users = Users::default();
        let mut mistakes = Vec::new();
        for (number, user) in inline.into_iter().enumerate() {
            users.add(user, &format!("user.{number}"), routes, &mut mistakes, true);
        }
        for file in files(paths, data_dir, &mut mistakes) {
            let shown = file.display().to_string();
            let settings = match text(&file).map(|text| Settings::from_toml(&text, &shown)) {
                Ok(Ok(settings)) => settings,
                Ok(Err(mistake)) => {
                    mistakes.push(mistake.to_string());
                    continue;
                }
                Err(problem) => {
                    mistakes.push(problem);
                    continue;
                }
            };
            let (read, wrong) = settings.parse_most::<File>();
            mistakes.extend(wrong.iter().map(ToString::to_string));
            let places = settings.get("user").into_iter().flat_map(Settings::items);
            let places: Vec<String> = places.map(|place| place.origin().to_string()).collect();
            for (number, user) in read.into_iter().flat_map(|file| file.user).enumerate() {
                let place = places.get(number).unwrap_or(&shown);
                let of_user = format!("user.{number}.");
                let sound = !wrong.iter().any(|wrong| wrong.path.starts_with(&of_user));
                users.add(user, place, routes, &mut mistakes, sound);
            }
        }
        if mistakes.is_empty() && users.all.is_empty() {
            mistakes.push(
                "nobody is to be told of anything; add [[consumers.NAME.user]] or `users = \
                 [\"FILE\"]`"
                    .into(),
            );
        }
        match mistakes.is_empty() {
            true => Ok(users),
            false => Err(mistakes),
        }
    }

    /// A user that is not `sound` lacks what was wrong with it, which is no mistake of its own.
    fn add(
        &mut self,
        user: User,
        place: &str,
        routes: &[Route],
        mistakes: &mut Vec<String>,
        sound: bool,
    ) {
        let name = &user.name;
        let mut wrong = |what: String| mistakes.push(format!("{place}: {what}"));
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
            wrong(format!(
                "{name:?} is no name; a name has 1 to {NAME_BYTES_MAX} bytes and no control \
                 characters"
            ));
        }
        if self.by_name.contains_key(name) {
            wrong(format!("there is a user {name:?} already"));
        }
        if user.rules.is_empty() && sound {
            wrong(format!("{name:?} has no rules, and would be told nothing"));
        }
        let reached = |route: Route| match route {
            Route::Email => user.email.is_some(),
            Route::Irc => user.irc.is_some(),
            Route::Webhook => user.webhook.is_some(),
        };
        let index = self.all.len();
        for (number, rule) in user.rules.iter().enumerate() {
            let place = format!("rules.{number} of {name:?}");
            if rule.topics.is_empty() {
                wrong(format!("{place}: `topics` is empty; [\"\"] is every topic"));
            }
            let via: Vec<Route> = match &rule.via {
                Some(via) => via.clone(),
                None => (routes.iter().copied())
                    .filter(|route| reached(*route))
                    .collect(),
            };
            if via.is_empty() && sound {
                wrong(format!(
                    "{place}: there is no way to tell; give the user `email`, `irc` or `webhook`, \
                     and configure that route"
                ));
            }
            for route in &via {
                let route_name = route.name();
                if !routes.contains(route) {
                    wrong(format!(
                        "{place}: `via` has {route_name}, which is not configured; add the section \
                         [consumers.NAME.{route_name}]"
                    ));
                }
                if !reached(*route) && sound {
                    wrong(format!(
                        "{place}: `via` has {route_name}, but the user has no `{route_name}`"
                    ));
                }
            }
            let rule_index = Indexed {
                user: index,
                number,
                via,
            };
            self.rules.add(&rule.topics, rule_index);
        }
        self.by_name.insert(user.name.clone(), index);
        self.all.push(user);
    }

    /// The user of this name.
    pub(crate) fn named(&self, name: &str) -> Option<&User> {
        self.by_name.get(name).map(|index| &self.all[*index])
    }

    /// Who is to be told of this message, and by which routes.
    pub(crate) fn told_of(&self, message: &Message) -> Vec<Match<'_>> {
        let mut found: Vec<&Indexed> = (self.rules.of(message.topic()))
            .filter(|indexed| self.holds(indexed, message))
            .collect();
        // The index answers shorter prefixes first; what counts is the user's own order.
        found.sort_by_key(|indexed| (indexed.user, indexed.number));
        let mut matches: Vec<Match<'_>> = Vec::new();
        for indexed in found {
            let user = &self.all[indexed.user];
            let rule = &user.rules[indexed.number];
            for route in indexed.via.iter().copied() {
                // A user's are next to one another, and few.
                let told = (matches.iter().rev())
                    .take_while(|known| known.user.name == user.name)
                    .any(|known| known.route == route);
                if !told {
                    matches.push(Match {
                        user,
                        route,
                        rule: indexed.number + 1,
                        subject: rule.subject.as_ref(),
                        format: rule.format.as_ref(),
                        digest: route == Route::Email && user.digest.is_some() && !rule.urgent,
                    });
                }
            }
        }
        matches
    }

    fn holds(&self, indexed: &Indexed, message: &Message) -> bool {
        let user = &self.all[indexed.user];
        let rule = &user.rules[indexed.number];
        if rule.when.is_empty() && rule.about.is_none() {
            return true; // also of what is not JSON
        }
        let Ok(json) = message.json() else {
            return false;
        };
        let names = |value: &Value| value.as_str() == Some(&user.name);
        let about = rule.about.as_ref().is_none_or(|at| match at.of(json) {
            Some(Value::Array(list)) => list.iter().any(names),
            Some(Value::Object(map)) => map.contains_key(&user.name),
            Some(value) => names(value),
            None => false,
        });
        about && rule.when.hold(json)
    }
}

/// The files behind these paths, those of a directory by name.
fn files(paths: &[PathBuf], data_dir: &Path, mistakes: &mut Vec<String>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in paths {
        let path = data_dir.join(path);
        if !path.is_dir() {
            files.push(path);
            continue;
        }
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => {
                mistakes.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        let mut inside: Vec<PathBuf> = (entries.flatten().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "toml"))
            .take(FILES_MAX + 1)
            .collect();
        inside.sort();
        files.append(&mut inside);
    }
    if files.len() > FILES_MAX {
        mistakes.push(format!("`users` has more than {FILES_MAX} files"));
        files.clear();
    }
    files
}

fn text(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let failed = |error: std::io::Error| format!("{shown}: {error}");
    let found = std::fs::metadata(path).map_err(failed)?;
    // Anything else could block: this runs in a check of the configuration, too.
    if !found.is_file() {
        return Err(format!("{shown} is neither a file nor a directory"));
    }
    if found.len() > FILE_BYTES_MAX {
        return Err(format!(
            "{shown} is larger than {} MiB; give each user a file",
            FILE_BYTES_MAX >> 20
        ));
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Route; 3] = Route::ALL;

    fn read(toml: &str, routes: &[Route]) -> Result<Users, Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("users.toml"), toml).unwrap();
        let path = dir.path().display().to_string();
        Users::read(Vec::new(), &["users.toml".into()], dir.path(), routes).map_err(|mistakes| {
            let short = |mistake: &String| mistake.replace(&path, "DIR");
            mistakes.iter().map(short).collect()
        })
    }

    fn told(users: &Users, topic: &str, payload: &str) -> Vec<String> {
        let message = Message::at_ns(topic.into(), payload.to_owned().into(), 1, 1);
        (users.told_of(&message).iter())
            .map(|told| format!("{} {} {}", told.user.name, told.route.name(), told.rule))
            .collect()
    }

    #[test]
    fn a_rule_asks_for_topics_conditions_and_oneself() {
        let users = read(
            "[[user]]\nname = 'ann'\nemail = 'ann@example.org'\nirc = 'ann'\n\
             [[user.rules]]\ntopics = ['org.a.', 'org.b']\nvia = ['email']\n\
             [[user.rules]]\ntopics = ['']\nabout = '/msg/agent'\nvia = ['irc']\n\
             [[user]]\nname = 'bob'\nemail = 'bob@example.org'\n\
             [[user.rules]]\ntopics = ['org.']\nwhen = [{ at = '/n', above = 1 }]\n",
            &ALL,
        )
        .unwrap();
        assert_eq!(told(&users, "org.a.x", "no JSON"), ["ann email 1"]);
        assert_eq!(
            told(&users, "org.a.x", r#"{"n": 2}"#),
            ["ann email 1", "bob email 1"]
        );
        assert_eq!(
            told(&users, "net", r#"{"msg": {"agent": "ann"}}"#),
            ["ann irc 2"]
        );
        assert_eq!(
            told(&users, "net", r#"{"msg": {"agent": ["bob", "ann"]}}"#),
            ["ann irc 2"]
        );
        assert_eq!(
            told(&users, "net", r#"{"msg": {"agent": {"ann": 1}}}"#),
            ["ann irc 2"]
        );
        for nobody in [
            r#"{"msg": {"agent": "annabel"}}"#,
            r#"{"msg": {}}"#,
            "[]",
            "{",
            "",
        ] {
            assert!(told(&users, "net", nobody).is_empty(), "{nobody}");
        }
    }

    #[test]
    fn a_user_is_told_once_by_each_route_by_the_first_rule_that_asks() {
        let users = read(
            "[[user]]\nname = 'ann'\nemail = 'ann@example.org'\nirc = '#ann'\ndigest = {}\n\
             [[user.rules]]\ntopics = ['org.a.b']\nvia = ['email']\nurgent = true\n\
             [[user.rules]]\ntopics = ['org.']\n",
            &[Route::Email, Route::Irc],
        )
        .unwrap();
        assert_eq!(told(&users, "org.a.b", ""), ["ann email 1", "ann irc 2"]);
        assert_eq!(told(&users, "org.x", ""), ["ann email 2", "ann irc 2"]);
        let message = |topic: &str| Message::at_ns(topic.into(), "".into(), 1, 1);
        let digest = |topic| users.told_of(&message(topic))[0].digest;
        assert_eq!((digest("org.a.b"), digest("org.x")), (false, true));
    }

    #[test]
    fn all_mistakes_of_a_file_are_told_at_once_with_their_places() {
        let mistakes = read(
            "[[user]]\nname = 'ann'\nemail = 'ann'\nmial = 1\n\
             webhook = 'ftp://example.org'\nirc = \"a\\r\\nQUIT\"\n\
             rules = [{ topics = [''], when = [{ at = 'x', is = 1 }] }]\n\
             [[user]]\nname = 'bob'\nwebhook = 'https://user:word@example.org/'\n\
             rules = [{ topics = [''], format = '{{ x', via = ['fax'] }]\n\
             [[user]]\nname = 'bob'\nemail = 'bob@example.org'\n\
             rules = [{ topics = [], via = ['irc', 'webhook'] }]\n\
             [[user]]\nname = ''\n",
            &[Route::Email, Route::Irc],
        )
        .unwrap_err();
        let expected = [
            "DIR/users.toml:3:9: user.0.email: expected an address such as \"ann@example.org\", \
             found \"ann\"",
            "DIR/users.toml:4:1: user.0.mial: unknown key; did you mean `email`?",
            "DIR/users.toml:5:11: user.0.webhook: the address begins neither with https:// nor \
             http://; expected an address such as \"https://example.org/hook\"",
            "DIR/users.toml:6:7: user.0.irc: expected a nick or a channel, found \"a\\r\\nQUIT\"",
            "DIR/users.toml:7:42: user.0.rules.0.when.0.at: expected a JSON pointer such as \
             \"/msg/user\", found \"x\"",
            "DIR/users.toml:10:11: user.1.webhook: the address has a password in it, which would \
             be shown; expected an address such as \"https://example.org/hook\"",
            "DIR/users.toml:11:36: user.1.rules.0.format: template, line 1: syntax error: \
             unexpected end of input, expected end of variable block",
            "DIR/users.toml:11:51: user.1.rules.0.via.0: unknown value `fax`; known here: email, \
             irc, webhook",
        ];
        assert_eq!(mistakes[..8], expected, "{mistakes:#?}");
        assert_eq!(mistakes.len(), 15, "{mistakes:#?}");
        let rest = mistakes[8..].join("\n");
        for part in [
            "there is a user \"bob\" already",
            "rules.0 of \"bob\": `topics` is empty",
            "via` has webhook, which is not configured; add the section \
             [consumers.NAME.webhook]",
            "`via` has irc, but the user has no `irc`",
            "\"\" is no name",
        ] {
            assert!(rest.contains(part), "{part} is not in {rest}");
        }
    }

    #[test]
    fn a_directory_is_read_file_by_file_and_nothing_else_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let user = |name: &str| {
            format!(
                "[[user]]\nname = '{name}'\nemail = 'x@example.org'\nrules = [{{ topics = [''] }}]"
            )
        };
        std::fs::write(dir.path().join("b.toml"), user("bob")).unwrap();
        std::fs::write(dir.path().join("a.toml"), user("ann")).unwrap();
        std::fs::write(dir.path().join("a.toml~"), "no TOML").unwrap();
        let read = |paths: &[PathBuf]| Users::read(Vec::new(), paths, dir.path(), &[Route::Email]);
        let users = read(&["".into()]).unwrap();
        assert_eq!(told(&users, "t", ""), ["ann email 1", "bob email 1"]);
        let missing = read(&["c.toml".into(), "d.toml".into()]).unwrap_err();
        assert_eq!(missing.len(), 2);
        assert!(missing[0].ends_with("c.toml: No such file or directory (os error 2)"));
        assert!(read(&["/dev/null".into()]).unwrap_err()[0].contains("neither a file"));
        let nobody = read(&[]).unwrap_err();
        assert!(nobody[0].starts_with("nobody is to be told"), "{nobody:?}");
    }

    #[test]
    fn an_address_with_a_secret_in_its_path_is_not_shown() {
        let users = read(
            "[[user]]\nname = 'ann'\nwebhook = 'https://hooks.example.org/T0/s3cret'\n\
             rules = [{ topics = [''] }]",
            &[Route::Webhook],
        );
        let shown = format!("{users:?}");
        assert!(shown.contains("https://hooks.example.org/..."), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
