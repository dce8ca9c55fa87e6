//! The directory where a hub keeps what outlives it; one hub at a time.
//!
//! | name              | what it is                                                   |
//! |-------------------|--------------------------------------------------------------|
//! | `LOCK`            | locked as long as a hub or a command works on the directory  |
//! | `journal/`        | the log, the consumers' cursors ([`crate::journal`])         |
//! | `dead-letters.db` | what was set aside ([`crate::dead_letters`])                 |
//! | `audit.log`       | what operators did ([`crate::steering`])                     |
//! | `control.sock`    | where the running hub listens to commands ([`crate::control`]) |
//! | `token`           | what allows to act over TCP ([`crate::token`])               |

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A directory that this process has to itself.
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Why a directory can't be had.
#[derive(Debug)]
pub enum Refused {
    /// Another process works on it: its number, if it can be told.
    Taken(Option<u32>),
    /// Something else.
    Unusable(String),
}

impl DataDir {
    /// Makes the directory if it is missing, and locks it.
    ///
    /// # Errors
    /// When another process has it, or the disk says no.
    pub fn open(path: &Path) -> Result<Self, Refused> {
        let unusable = |what: &str, error: std::io::Error| {
            Refused::Unusable(format!("can't {what} {}: {error}", path.display()))
        };
        // Others are not to read what passes over the bus; one that is there stays as it is.
        let mut builder = fs::DirBuilder::new();
        (builder.recursive(true).mode(0o750).create(path))
            .map_err(|error| unusable("make the directory", error))?;
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("LOCK"))
            .map_err(|error| unusable("open LOCK in", error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid);
                return Err(Refused::Taken(pid.trim().parse().ok()));
            }
            Err(TryLockError::Error(error)) => return Err(unusable("lock", error)),
        }
        // For people who wonder who has it; a disk that is full is no reason to refuse.
        let _ = lock.set_len(0).and_then(|()| lock.rewind());
        let _ = writeln!(lock, "{}", std::process::id());
        Ok(DataDir {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Refused {
    /// The same for whoever starts a hub, with what to do about it.
    pub fn explain(self, path: &Path) -> String {
        match self {
            Refused::Unusable(text) => format!(
                "{text}; give hub.data_dir a directory that this user may write, or keep everything \
                 in memory with journal.enabled = false"
            ),
            Refused::Taken(pid) => format!(
                "{} is in use by another hub{}; stop that one, or give this one a hub.data_dir of \
                 its own",
                path.display(),
                pid.map(|pid| format!(" (process {pid})"))
                    .unwrap_or_default()
            ),
        }
    }
}

/// Where the journal of a data directory is.
pub fn journal(data_dir: &Path) -> PathBuf {
    data_dir.join("journal")
}

/// Where the hub that has a data directory listens to commands.
pub fn control(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// Where the token of a data directory is.
pub fn token(data_dir: &Path) -> PathBuf {
    data_dir.join("token")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_hub_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let Err(refused @ Refused::Taken(pid)) = DataDir::open(&path) else {
            panic!("two hubs at once");
        };
        assert_eq!(pid, Some(std::process::id()));
        assert!(refused.explain(&path).contains("in use by another hub"));
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_can_not_be_made_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let path = dir.path().join("file/data");
        let Err(refused) = DataDir::open(&path) else {
            panic!("below a file");
        };
        let text = refused.explain(&path);
        assert!(text.contains("hub.data_dir"), "{text}");
    }
}
