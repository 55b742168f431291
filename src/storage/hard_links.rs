//! `HardLinks`: which of its names a file with several is written by.
//!
//! The lock of a file goes by its name, so two names of one file have two locks and two writers, and one that takes a
//! failed write back would cut off what the other has written meanwhile. So the first name that writes keeps the file.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, FileId};

/// The names that write files with several; an entry for each such file that was ever written.
#[derive(Debug, Clone, Default)]
pub(crate) struct HardLinks(Arc<Mutex<HashMap<FileId, String>>>);

impl HardLinks {
    /// The name that writes the file `id` already, if that is another one than `name`, which writes it from now on if not.
    ///
    /// # Errors
    /// The other name could not be looked up, so nobody knows whether it still stands for this file.
    pub(crate) fn other_writer<D: Disk>(&self, disk: &D, id: FileId, name: &str) -> io::Result<Option<String>> {
        loop {
            let other = match self.writers().entry(id) {
                Entry::Vacant(free) => {
                    free.insert(name.to_owned());
                    return Ok(None);
                }
                Entry::Occupied(writer) if writer.get() == name => return Ok(None),
                Entry::Occupied(writer) => writer.get().clone(),
            };
            // Without the lock: the disk may be slow.
            if disk.stat(&other)?.is_some_and(|stat| stat.id == id) {
                return Ok(Some(other));
            }
            if let Entry::Occupied(gone) = self.writers().entry(id)
                && *gone.get() == other
            {
                gone.remove();
            }
        }
    }

    fn writers(&self) -> MutexGuard<'_, HashMap<FileId, String>> {
        // One entry at a time is changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
