//! Where each consumer stands, in the file `cursors`.
//!
//! Promises that a power failure at any moment leaves one whole file to read: this one, or the one
//! before it (`cursors.bak`), from which a consumer gets some messages a second time. When to write
//! it, and what the positions mean, is the hub's business.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

const FILE: &str = "cursors";
const BACKUP: &str = "cursors.bak";
const NEW: &str = "cursors.new";
const TITLE: &str = "weir-cursors";
const VERSION: u32 = 1;
/// No file of cursors is larger; it would be some other file.
const SIZE_MAX: u64 = 64 << 20;

/// Where all consumers stand.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default)]
pub struct Cursors {
    /// The hub stopped in order, so nothing was in flight.
    pub clean: bool,
    /// The next sequence number.
    pub next: u64,
    /// By the consumer's name.
    pub consumers: BTreeMap<String, Cursor>,
}

/// Where one consumer stands.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default)]
pub struct Cursor {
    /// Everything before it is settled.
    pub position: u64,
    /// Everything before it was settled once already and is read again; 0 when nothing is.
    pub replayed_below: u64,
    /// Somebody has told it to pause.
    pub paused: bool,
    /// When it was last configured, in nanoseconds since 1970.
    pub seen_ns: u64,
}

/// What [`Cursors::load`] found.
#[derive(Debug)]
pub struct Loaded {
    /// None when there never was a file.
    pub cursors: Option<Cursors>,
    /// What a person should know about it.
    pub note: Option<String>,
}

impl Cursors {
    /// The least number that may be given to a message: no cursor is beyond it.
    pub fn next_number(&self) -> u64 {
        let positions = self.consumers.values().map(|cursor| cursor.position);
        positions.fold(self.next, u64::max)
    }

    /// Reads the cursors of a journal's directory.
    ///
    /// # Errors
    /// When there are files and none can be read: why, and what to do.
    pub fn load(dir: &Path) -> Result<Loaded, String> {
        let (file, backup) = (dir.join(FILE), dir.join(BACKUP));
        let why = match read(&file)? {
            Content::Cursors(cursors) => {
                return Ok(Loaded {
                    cursors: Some(cursors),
                    note: None,
                });
            }
            Content::Missing => "is missing".to_owned(),
            Content::Damaged(why) => why,
        };
        let because = format!("{} {why}", file.display());
        match read(&backup)? {
            Content::Cursors(cursors) => Ok(Loaded {
                cursors: Some(cursors),
                note: Some(format!(
                    "{because}: the positions are those of {}, so some messages may come again",
                    backup.display()
                )),
            }),
            Content::Missing if why == "is missing" => Ok(Loaded {
                cursors: None,
                note: None,
            }),
            other => Err(format!(
                "{because}, and {} {}; restore one of them, or delete both to start every consumer \
                 at its `start`",
                backup.display(),
                match other {
                    Content::Damaged(why) => why,
                    _ => "is missing".into(),
                }
            )),
        }
    }

    /// Writes them; the file before becomes the backup.
    ///
    /// # Errors
    /// The disk's reason; what was written before is still there.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let json = serde_json::to_string(self)?;
        let crc = checksum(VERSION, &json);
        let (file, new) = (dir.join(FILE), dir.join(NEW));
        let named = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("can't write {}: {error}", file.display()),
            )
        };
        let write = || {
            let mut written = File::create(&new)?;
            written.write_all(format!("{TITLE} {VERSION} {crc:08x}\n{json}").as_bytes())?;
            written.sync_all()?;
            match fs::rename(&file, dir.join(BACKUP)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::rename(&new, &file)?,
            }
            File::open(dir)?.sync_all()
        };
        write().map_err(named)
    }
}

/// The version is part of it, so that a damaged one is not taken for another hub's.
fn checksum(version: u32, json: &str) -> u32 {
    crc32c::crc32c_append(version, json.as_bytes())
}

enum Content {
    Cursors(Cursors),
    Missing,
    Damaged(String),
}

/// What one file says.
///
/// # Errors
/// When it is another version's.
fn read(path: &Path) -> Result<Content, String> {
    let mut text = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(SIZE_MAX).read_to_end(&mut text));
    match opened {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Missing),
        Err(error) => return Ok(Content::Damaged(format!("can't be read ({error})"))),
    }
    let text = String::from_utf8_lossy(&text);
    let damaged = Content::Damaged("is damaged".into());
    let Some((title, json)) = text.split_once('\n') else {
        return Ok(damaged);
    };
    let mut words = title.split(' ');
    let (name, version, crc) = (words.next(), words.next(), words.next());
    let crc = crc.and_then(|crc| u32::from_str_radix(crc, 16).ok());
    let version = version.and_then(|version| version.parse::<u32>().ok());
    let whole = version.is_some_and(|version| crc == Some(checksum(version, json)));
    match version.filter(|_| whole && name == Some(TITLE)) {
        Some(VERSION) => Ok(match serde_json::from_str(json) {
            Ok(cursors) => Content::Cursors(cursors),
            Err(error) => Content::Damaged(format!("can't be understood ({error})")),
        }),
        Some(version) => Err(format!(
            "{} is of version {version}, and this hub knows version {VERSION}; start the hub that \
             wrote it, or delete it and {BACKUP} to start every consumer at its `start`",
            path.display()
        )),
        None => Ok(damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> Cursors {
        let cursor = Cursor {
            position,
            replayed_below: 4,
            paused: true,
            seen_ns: 5,
        };
        Cursors {
            clean: true,
            next: 10,
            consumers: [("a \"b\"\n".to_owned(), cursor)].into(),
        }
    }

    fn loaded(dir: &Path) -> (Option<Cursors>, bool) {
        let loaded = Cursors::load(dir).unwrap();
        (loaded.cursors, loaded.note.is_some())
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(loaded(dir.path()), (None, false));
        for position in 1..4 {
            at(position).save(dir.path()).unwrap();
            assert_eq!(loaded(dir.path()), (Some(at(position)), false));
        }
    }

    #[test]
    fn a_damaged_or_missing_file_is_stood_in_for_by_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        at(1).save(dir.path()).unwrap();
        at(2).save(dir.path()).unwrap();
        let whole = fs::read(dir.path().join(FILE)).unwrap();
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 1;
            fs::write(dir.path().join(FILE), &bytes).unwrap();
            assert_eq!(loaded(dir.path()), (Some(at(1)), true), "{place}");
            fs::write(dir.path().join(FILE), &whole[..place]).unwrap();
            assert_eq!(loaded(dir.path()), (Some(at(1)), true), "{place}");
        }
        // As after a power failure between the two renames.
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_eq!(loaded(dir.path()), (Some(at(1)), true));
    }

    #[test]
    fn when_none_can_be_read_the_text_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "x").unwrap();
        let missing = Cursors::load(dir.path()).unwrap_err();
        fs::write(dir.path().join(BACKUP), "x").unwrap();
        let damaged = Cursors::load(dir.path()).unwrap_err();
        fs::remove_file(dir.path().join(FILE)).unwrap();
        let backup = Cursors::load(dir.path()).unwrap_err();
        for error in [missing, damaged, backup] {
            assert!(
                error.contains("delete both to start every consumer"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_unknown_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let crc = checksum(2, "{}");
        fs::write(dir.path().join(FILE), format!("{TITLE} 2 {crc:08x}\n{{}}")).unwrap();
        let error = Cursors::load(dir.path()).unwrap_err();
        assert!(error.contains("is of version 2"), "{error}");
    }
}
