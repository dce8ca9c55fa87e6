//! The real disk with faults on demand, and a note of what would survive a power failure.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, ThreadId};

use parking_lot::Mutex;

use super::super::segment::{Disk, DiskFile, Filesystem};

/// What the disk does not do when it is asked next, or until it is told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Faults {
    /// Writes fail for want of space after so many bytes more.
    pub(super) room: Option<u64>,
    /// Writes are done, and called a failure.
    pub(super) late: bool,
    pub(super) create: bool,
    pub(super) set_len: bool,
    pub(super) sync: bool,
    pub(super) sync_dir: bool,
    pub(super) remove: bool,
}

/// What was asked of the disk, by whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Call {
    Create,
    Write,
    SetLen,
    Sync,
    SyncDir,
    Remove,
}

#[derive(Default)]
pub(super) struct TestDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    faults: Faults,
    calls: Vec<(Call, ThreadId)>,
    /// How much of each file has been synced.
    synced: HashMap<PathBuf, u64>,
    /// Names that the directory has kept.
    named: HashSet<PathBuf>,
}

impl State {
    fn called(&mut self, call: Call) {
        self.calls.push((call, thread::current().id()));
    }
}

impl TestDisk {
    pub(super) fn set(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// What was asked since this was asked last.
    pub(super) fn calls(&self) -> Vec<(Call, ThreadId)> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// How much of a file survives a power failure; none when not even its name does.
    pub(super) fn survives(&self, path: &Path) -> Option<u64> {
        let state = self.state.lock();
        (state.named.contains(path)).then(|| state.synced.get(path).copied().unwrap_or(0))
    }

    fn file(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(TestFile {
            path: path.to_owned(),
            file,
            state: self.state.clone(),
        })
    }
}

fn failure(fails: bool) -> Result<()> {
    match fails {
        true => Err(Error::from_raw_os_error(5)), // EIO
        false => Ok(()),
    }
}

impl Disk for TestDisk {
    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.called(Call::Create);
        failure(state.faults.create)?;
        state.synced.remove(path);
        state.named.remove(path);
        drop(state);
        Ok(self.file(path, Filesystem.create(path)?))
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn DiskFile>> {
        // It has lain there before: a restart is no power failure.
        self.state.lock().named.insert(path.to_owned());
        Ok(self.file(path, Filesystem.open(path)?))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.state.lock();
        state.called(Call::Remove);
        failure(state.faults.remove)?;
        Filesystem.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let mut state = self.state.lock();
        state.called(Call::SyncDir);
        failure(state.faults.sync_dir)?;
        for entry in std::fs::read_dir(dir)? {
            state.named.insert(entry?.path());
        }
        Ok(())
    }
}

struct TestFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    state: Arc<Mutex<State>>,
}

impl DiskFile for TestFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut state = self.state.lock();
        state.called(Call::Write);
        if let Some(room) = &mut state.faults.room {
            let fits = (bytes.len() as u64).min(*room);
            *room -= fits;
            if fits < bytes.len() as u64 {
                // What there is room for is written all the same.
                (self.file).write_all_at(&bytes[..fits as usize], offset)?;
                return Err(ErrorKind::StorageFull.into());
            }
        }
        self.file.write_all_at(bytes, offset)?;
        failure(state.faults.late)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut state = self.state.lock();
        state.called(Call::SetLen);
        failure(state.faults.set_len)?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.called(Call::Sync);
        failure(state.faults.sync)?;
        // Not really: the test takes what was not synced away itself.
        let len = File::open(&self.path)?.metadata()?.len();
        state.synced.insert(self.path.clone(), len);
        Ok(())
    }
}
