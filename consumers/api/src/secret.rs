//! A secret in the settings: where it is to be found, never what it is.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// No larger file is a secret.
const BYTES_MAX: u64 = 64 << 10;

/// Where a password, a token or a key is to be found: in a file or in the environment.
///
/// In a configuration it is `{ file = "/run/secrets/irc" }` or `{ env = "IRC_PASSWORD" }`; the
/// secret itself is refused there, because configurations are shown, copied and checked in.
///
/// It is read when it is needed, so that one that was changed is taken up with the next connection.
///
/// ```
/// use std::path::Path;
/// use weir_consumer::Secret;
/// use weir_consumer::settings::Settings;
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Mail { password: Secret }
///
/// let read = |toml| Settings::from_toml(toml, "weir.toml").unwrap().parse::<Mail>();
/// let mail = read("password = { env = 'PATH' }").unwrap();
/// let password = mail.password.read(Path::new("/var/lib/weir")).unwrap();
/// assert_eq!(format!("{password:?}"), "(secret)");
/// assert_eq!(
///     read("password = 'hunter2'").err().unwrap()[0].to_string(),
///     "weir.toml:1:12: password: expected { file = \"PATH\" } or { env = \"NAME\" }, one of them: a \
///      secret does not stand in the configuration itself"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Secret(Place);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Place {
    File(PathBuf),
    Env(String),
}

/// The text of a secret; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl Secret {
    /// The secret, without the line break at its end; a relative path starts at `data_dir`.
    ///
    /// # Errors
    /// Where it was looked for, and why it was not found. The text never has a part of the secret.
    pub fn read(&self, data_dir: &Path) -> Result<SecretText, String> {
        let mut text = match &self.0 {
            Place::File(path) => read_file(&data_dir.join(path))?,
            Place::Env(name) => std::env::var(name).map_err(|error| match error {
                std::env::VarError::NotPresent => {
                    format!("the environment variable {name}, which holds a secret, is not set")
                }
                std::env::VarError::NotUnicode(_) => {
                    format!("the environment variable {name}, which holds a secret, is not UTF-8")
                }
            })?,
        };
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        match text.is_empty() {
            true => Err(format!("the secret in {self} is empty")),
            false => Ok(SecretText(text)),
        }
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let failed = |error| format!("can't read the secret in {shown}: {error}");
    if std::fs::metadata(path).map_err(failed)?.len() > BYTES_MAX {
        return Err(format!(
            "{shown} is too large for a secret: more than {} KiB",
            BYTES_MAX >> 10
        ));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Shows where it is.
impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::File(path) => write!(f, "the file {}", path.display()),
            Place::Env(name) => write!(f, "the environment variable {name}"),
        }
    }
}

impl SecretText {
    /// The secret itself: for whoever it is meant for, not for a log or an error.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Tagged {
            File(PathBuf),
            Env(String),
        }
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected { file = \"PATH\" } or { env = \"NAME\" }, one of them: a secret \
                         does not stand in the configuration itself"
        )]
        enum Written {
            Tagged(Tagged),
        }
        Ok(Secret(match Written::deserialize(from)? {
            Written::Tagged(Tagged::File(path)) => Place::File(path),
            Written::Tagged(Tagged::Env(name)) => Place::Env(name),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path) -> Secret {
        Secret(Place::File(path.to_owned()))
    }

    #[test]
    fn it_has_one_place() {
        let read = |toml: &str| {
            let secret = crate::settings::Settings::from_toml(toml, "t").unwrap();
            let read = secret.get("a").unwrap().parse::<Secret>();
            read.map_err(|mistakes| mistakes[0].to_string())
        };
        assert_eq!(read("a = { file = 'b' }"), Ok(file(Path::new("b"))));
        for wrong in ["{ file = 'b', env = 'B' }", "{}", "'hunter2'", "7"] {
            let told = read(&format!("a = {wrong}")).unwrap_err();
            assert!(told.contains("{ env = \"NAME\" }, one of them"), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn a_line_break_at_its_end_is_no_part_of_it() {
        let dir = tempfile::tempdir().unwrap();
        for (written, read) in [
            ("a b", "a b"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
        ] {
            std::fs::write(dir.path().join("s"), written).unwrap();
            let text = file(Path::new("s")).read(dir.path()).unwrap();
            assert_eq!(text.expose(), read);
        }
    }

    #[test]
    fn what_can_not_be_read_is_told_by_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let told = |secret: &Secret| secret.read(Path::new("")).unwrap_err();
        assert!(told(&file(&path)).contains("No such file"));
        std::fs::write(&path, "\n").unwrap();
        assert!(told(&file(&path)).ends_with("/s is empty"));
        std::fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert!(told(&file(&path)).contains("too large for a secret"));
        std::fs::write(&path, b"\xff").unwrap();
        let not_text = told(&file(&path));
        assert!(not_text.contains("UTF-8"), "{not_text}");
        let unset = Secret(Place::Env("WEIR_NOT_SET_ANYWHERE".into()));
        assert!(told(&unset).contains("WEIR_NOT_SET_ANYWHERE"));
    }
}
