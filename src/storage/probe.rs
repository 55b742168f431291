//! Is the file system still one that brings something to the disk?

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use rustix::io::{Errno, retry_on_intr};

use super::disk::{Disk, RealDisk};
use super::layout::{PROBE_NAME, TORN_DIR};
use super::sync_doubt::{Probe, SyncDoubt};
use super::{Shared, allocated};

/// More than one block of any usual file system, so that blocks must be found for it.
const PROBE_BYTES: usize = 16 << 10;
/// An attribute that no file has.
const NO_ATTRIBUTE: &str = "user.leitstand.none";

/// Writes a small file, syncs it and its directory, and removes it.
pub(super) fn probe(disk: &RealDisk) -> io::Result<()> {
    match disk.remove_side(TORN_DIR, PROBE_NAME) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = disk.create_side(TORN_DIR, PROBE_NAME)?;
    let tried = write_and_sync(disk, &file);
    let removed = disk.remove_side(TORN_DIR, PROBE_NAME);
    tried?;
    removed?;
    disk.sync_side(TORN_DIR)?;
    disk.check_alive(&file)
}

fn write_and_sync(disk: &RealDisk, file: &File) -> io::Result<()> {
    if disk.append(file, &[IoSlice::new(&[b'\n'; PROBE_BYTES])])? != PROBE_BYTES {
        return Err(io::ErrorKind::WriteZero.into());
    }
    disk.sync_data(file)?;
    allocated::check_whole(file, PROBE_BYTES as u64)?;
    disk.sync_side(TORN_DIR)
}

/// Has ext4 given up its journal? A sync that waits for a commit may return 0 although that commit was the one that
/// failed; and a file system that has become read-only inside does not look so from outside (`statfs` of Linux 6.18).
/// But no change can begin any more. The removal of an attribute that is not there begins one, and changes
/// nothing.
pub(super) fn journal_is_alive(file: &File) -> io::Result<()> {
    match retry_on_intr(|| rustix::fs::fremovexattr(file, NO_ATTRIBUTE)) {
        Err(e @ (Errno::IO | Errno::ROFS | Errno::SHUTDOWN | Errno::UCLEAN)) => Err(e.into()),
        // It is not there, as expected; or the mount has no such attributes, or they are forbidden for this file.
        _ => Ok(()),
    }
}

/// A probe that panics has failed.
struct UnderWay<'a> {
    doubt: &'a SyncDoubt,
    probe: Option<Probe>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(probe) = self.probe.take() {
            let _ = self.doubt.end_probe(probe, false);
        }
    }
}

impl<D: Disk> Shared<D> {
    /// A sync has failed: nothing that is under way on this file system counts as stored any more, and nothing new
    /// is written before the file system was probed.
    pub(super) fn sync_failed(self: &Arc<Self>) {
        self.doubt.failed();
        self.probe_if_due();
    }

    /// Probes the file system if a sync has failed since the last successful probe, on a thread that may block.
    pub(super) fn probe_if_due(self: &Arc<Self>) {
        let Some(probe) = self.doubt.begin_probe() else { return };
        let shared = self.clone();
        self.runtime().spawn_blocking(move || shared.probe(probe));
    }

    fn probe(self: &Arc<Self>, probe: Probe) {
        let known_dead = self.doubt.is_dead();
        let mut under_way = UnderWay { doubt: &self.doubt, probe: Some(probe) };
        let result = self.disk.probe();
        let Some(probe) = under_way.probe.take() else { return };
        let again = self.doubt.end_probe(probe, result.is_ok());
        match result {
            Ok(()) => {
                tracing::warn!("after a failed sync the file system has brought a probe to the disk; appends go on")
            }
            Err(error) if !known_dead => {
                tracing::error!(%error, "after a failed sync the file system does not bring a probe to the disk; all appends are refused until it does, see RUNBOOK");
            }
            Err(_) => {}
        }
        if again {
            self.probe_if_due();
        }
    }
}
