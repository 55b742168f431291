//! Where a drill works, and what it leaves there.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::storage::snapshot::{Marked, Purpose, clear_marked, clear_within};

/// How the names of directories begin that nobody chose.
const NAME: &str = "leitstand-drill-";
/// All that a drill makes but its report is below this name in its directory.
const WORK: &str = "work";
/// Names in there.
pub(super) const DATA: &str = "data";
pub(super) const SNAPSHOTS: &str = "snapshots";
/// Reports of one second in one directory.
const REPORTS_MAX: u32 = 100;

/// The directory of a drill. The process works in `work` below it from [`WorkDir::enter`] on: a socket
/// takes short names only, so paths there are relative.
pub(super) struct WorkDir {
    path: PathBuf,
    /// It was not there before.
    created: bool,
    /// Whoever is killed here leaves it, and the next drill removes what it made.
    mark: Marked,
}

impl WorkDir {
    /// Makes it, or takes it if it is empty.
    pub(super) fn enter(wanted: Option<&Path>, run: &str) -> Result<WorkDir, String> {
        let path = match wanted {
            Some(path) => path.to_owned(),
            None => {
                // What cannot be looked at is left to whoever clears the temporary directory.
                let _ = clear_marked(&std::env::temp_dir(), NAME, Purpose::Drill);
                std::env::temp_dir().join(format!("{NAME}{run}"))
            }
        };
        let refused = |e: io::Error| format!("cannot work in {path:?}: {e}");
        if wanted.is_some() && path.is_dir() {
            clear_within(&path, WORK, Purpose::Drill).map_err(refused)?;
        }
        let created = match fs::read_dir(&path) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(format!("cannot work in {path:?}: it is not empty; name an empty or a new directory"));
                }
                false
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(refused)?;
                true
            }
            Err(e) => return Err(refused(e)),
        };
        let path = path.canonicalize().map_err(refused)?;
        let mark = Marked::enter(&path, Purpose::Drill).map_err(refused)?;
        let work = path.join(WORK);
        DirBuilder::new().mode(0o700).create(&work).map_err(refused)?;
        std::env::set_current_dir(&work).and_then(|()| fs::create_dir(SNAPSHOTS)).map_err(refused)?;
        Ok(WorkDir { path, created, mark })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what the drill made there, and the directory itself if it is ours and nothing else is in it.
    pub(super) fn clear(&self) -> Result<(), String> {
        let clear = || {
            fs::remove_dir_all(self.path.join(WORK))?;
            self.mark.release();
            if self.created && fs::read_dir(&self.path)?.next().is_none() {
                fs::remove_dir(&self.path)?;
            }
            Ok(())
        };
        clear().map_err(|e: io::Error| format!("cannot clear {:?}: {e}", self.path))
    }
}

/// Writes both forms of a report as `drill-<when>.md` and `.json`; never over an older one.
pub(super) fn file_report(dir: &Path, when: &str, markdown: &str, json: &str) -> io::Result<PathBuf> {
    for number in 1..=REPORTS_MAX {
        let name = if number == 1 { format!("drill-{when}") } else { format!("drill-{when}-{number}") };
        let (for_people, for_programs) = (dir.join(format!("{name}.md")), dir.join(format!("{name}.json")));
        match write_new(&for_people, markdown) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        write_new(&for_programs, json)?;
        return Ok(for_people);
    }
    Err(ErrorKind::AlreadyExists.into())
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
