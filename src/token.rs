//! The token of a hub: what allows to act on it over TCP.
//!
//! It is made at a hub's first start, kept in its data directory with mode 0600, and stays the same
//! over restarts. Whoever may read that file is the operator; what the token allows is up to
//! [`control`](crate::control). To change it, remove the file and start the hub again.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use subtle::ConstantTimeEq;
use tracing::warn;

use crate::data_dir;
use crate::dead_letters::hex;

const BYTES: usize = 32;

/// The token of one hub.
pub struct Token(String);

impl Token {
    /// Reads the token in a data directory, and makes it if there is none.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub fn open(data_dir: &Path) -> Result<Self, String> {
        match Token::read(data_dir) {
            Ok(Some(token)) => Ok(token),
            Ok(None) => Token::make(data_dir),
            Err(why) => Err(why),
        }
    }

    /// Reads the token in a data directory, if there is one.
    ///
    /// # Errors
    /// Why it can't be read, or what it is instead.
    pub fn read(data_dir: &Path) -> Result<Option<Self>, String> {
        let path = data_dir::token(data_dir);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(format!(
                    "can't read {}: {error}; only the hub's user may",
                    path.display()
                ));
            }
        };
        let token = text.trim_end();
        if token.len() != 2 * BYTES || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!(
                "{} is no token, which is {} hexadecimal digits: remove it, and the hub makes a \
                 new one when it is started",
                path.display(),
                2 * BYTES
            ));
        }
        if std::fs::metadata(&path).is_ok_and(|file| file.permissions().mode() & 0o007 != 0) {
            warn!(path = %path.display(), "every user of this machine may read the token");
        }
        Ok(Some(Token(token.to_owned())))
    }

    fn make(data_dir: &Path) -> Result<Self, String> {
        let path = data_dir::token(data_dir);
        let failed = |error: &dyn std::fmt::Display| {
            format!("can't write the token {}: {error}", path.display())
        };
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes).map_err(|error| failed(&error))?;
        let token = hex(&bytes);
        // With mode 0600 from its beginning, and under its name only when it is whole.
        let mut file = tempfile::NamedTempFile::new_in(data_dir).map_err(|error| failed(&error))?;
        writeln!(file, "{token}").map_err(|error| failed(&error))?;
        file.as_file().sync_all().map_err(|error| failed(&error))?;
        file.persist(&path).map_err(|error| failed(&error))?;
        Ok(Token(token))
    }

    /// Its 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is it; how long that takes does not tell how much of it is right.
    pub fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_is_the_owners() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Token::read(dir.path()).unwrap().is_none());
        let token = Token::open(dir.path()).unwrap();
        assert_eq!(token.as_str().len(), 64);
        let mode = std::fs::metadata(dir.path().join("token")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        let again = Token::open(dir.path()).unwrap();
        assert!(again.is(token.as_str().as_bytes()));
        let other = tempfile::tempdir().unwrap();
        let other = Token::open(other.path()).unwrap();
        for wrong in ["", "0", other.as_str(), &token.as_str()[..63]] {
            assert!(!token.is(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_token_is_not_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        for wrong in ["", "\n", "abc", &"x".repeat(64), &"0".repeat(65)] {
            std::fs::write(dir.path().join("token"), wrong).unwrap();
            let why = Token::open(dir.path()).err().unwrap();
            assert!(why.contains("remove it"), "{why}");
        }
    }
}
