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
use std::net::Ipv6Addr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lettre::Address;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::Value;
use ureq::http::Uri;
use ureq::http::uri::Authority;
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
        let Some(authority) = uri.authority() else {
            return Err(problem("the address names no host"));
        };
        if let Some(what) = misleading(authority) {
            return Err(problem(what));
        }
        let origin = format!("{scheme}://{}", authority.as_str().to_ascii_lowercase());
        Ok(Url { uri, origin })
    }
}

/// What is wrong with a host and its port, of which `Uri` takes more than there is: one that it
/// can't read as a port is none to it, and the request would go to the scheme's own.
fn misleading(authority: &Authority) -> Option<&'static str> {
    if authority.as_str().contains('@') {
        return Some(
            "a user or a password before the host would be shown wherever the host is; write a \
             token into the path, which is not shown, or have the receiver check the signature \
             that `secret` makes",
        );
    }
    let host = authority.host();
    if host.is_empty() {
        return Some("the address names no host");
    }
    let in_brackets = (host.strip_prefix('[')).and_then(|host| host.strip_suffix(']'));
    let sound = match in_brackets {
        Some(host) => host.parse::<Ipv6Addr>().is_ok(),
        None => ServerName::try_from(host).is_ok(),
    };
    if !sound {
        return Some("the host is neither a name nor an address of IP (IPv6 in brackets)");
    }
    let port = (authority.as_str().strip_prefix(host)).unwrap_or_default();
    let digits = port.strip_prefix(':').unwrap_or("none");
    let sound = digits.bytes().all(|c| c.is_ascii_digit())
        && digits.parse::<u16>().is_ok_and(|port| port > 0);
    (!port.is_empty() && !sound).then_some("a port is a number from 1 to 65535")
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
            "DIR/users.toml:10:11: user.1.webhook: a user or a password before the host would be \
             shown wherever the host is; write a token into the path, which is not shown, or have \
             the receiver check the signature that `secret` makes; expected an address such as \
             \"https://example.org/hook\"",
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

    /// The origin of an address, or why it is refused.
    fn origin(address: &str) -> Result<String, String> {
        let json = Value::from(address);
        let url: Result<Url, _> = serde_json::from_value(json);
        url.map(|url| url.origin).map_err(|why| why.to_string())
    }

    #[test]
    fn an_address_is_read_as_it_is_asked_or_refused() {
        for sound in [
            "https://example.org",
            "http://example.org:1",
            "http://a_b.example.org.:65535",
            "http://localhost:08080",
            "http://127.0.0.1:80",
            "http://[::1]",
            "http://[2001:db8::1]:8080",
        ] {
            assert_eq!(origin(sound).as_deref(), Ok(sound));
            assert_eq!(
                origin(&format!("{sound}/hook?a=b:c@d")).as_deref(),
                Ok(sound)
            );
        }
        assert_eq!(
            origin("HTTPS://Example.ORG/A").as_deref(),
            Ok("https://example.org")
        );
        let port = [
            "65536",
            "88106",
            "0",
            "",
            "+80",
            "-1",
            "80x",
            "99999999999999999999",
        ];
        for port in port {
            for host in ["example.org", "127.0.0.1", "[::1]"] {
                let told = origin(&format!("http://{host}:{port}/s3cret")).unwrap_err();
                assert!(!told.contains("s3cret"), "{told}");
                assert!(
                    told.contains("a number from 1 to 65535"),
                    "{host}:{port}: {told}"
                );
            }
        }
        for (wrong, why) in [
            ("https://ann@example.org/", "a user or a password"),
            (
                "https://ann:w0rd@example.org:99999/",
                "a user or a password",
            ),
            ("https://:w0rd@example.org/", "a user or a password"),
            ("https://ann:w0rd@/", "no address of the web"),
            ("http://:8080/", "names no host"),
            ("http:///hook", "no address of the web"),
            ("http://", "no address of the web"),
            ("/hook", "begins neither"),
            ("example.org:80", "begins neither"),
            ("http://a..b/", "neither a name nor an address"),
            ("http://-a.example.org/", "neither a name nor an address"),
            ("http://a*b/", "neither a name nor an address"),
            ("http://127.1/", "neither a name nor an address"),
            ("http://2130706433/", "neither a name nor an address"),
            ("http://[v1.x]/", "neither a name nor an address"),
            ("http://[1.2.3.4]/", "neither a name nor an address"),
            ("http://[::1]x:80/", "a number from 1 to 65535"),
            ("http://::1/", "no address of the web"),
            ("http://a:1:2/", "no address of the web"),
            ("http://a b/", "no address of the web"),
            ("http://exämple.org/", "no address of the web"),
            ("http://a%2eb/", "no address of the web"),
        ] {
            let told = origin(wrong).unwrap_err();
            assert!(told.contains(why), "{wrong}: {told}");
            assert!(!told.contains("w0rd"), "{told}");
        }
    }

    proptest::proptest! {
        #[test]
        fn an_address_goes_where_its_origin_says(
            authority in r"[a-z0-9.:\[\]@+%-]{0,20}",
            port in proptest::option::of(0_u32..100_000),
        ) {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            let address = format!("http://{authority}{port}/");
            let json = Value::from(address);
            if let Ok(url) = serde_json::from_value::<Url>(json) {
                let asked = url.uri.port_u16().map(|port| format!(":{port}"));
                let asked = format!("http://{}{}", url.uri.host().unwrap(), asked.unwrap_or_default());
                proptest::prop_assert_eq!(url.origin, asked);
            }
        }
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
