//! What a look can find: what it is called, what it means, and what to do about it.

use super::{FINDINGS_PER_FILE_MAX, NOTES_PER_FILE_MAX};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    TornTail,
    MissingNewline,
    ZeroBytes,
    InvalidUtf8,
    InvalidJson,
    NotAnObject,
    DomainMissing,
    OtherDomain,
    NotADomain,
    Symlink,
    NotRegular,
    SideDirectory,
    Poisoned,
    OrphanMarker,
    BlankLine,
    LenientJson,
    ForeignForm,
    LongNumber,
    LongLine,
    LockNotEmpty,
    StrayName,
    StaleMarker,
    UnfinishedRewrite,
    MissingPart,
    WrongSize,
    WrongHash,
    NotInManifest,
    WrongMark,
    MissingFile,
    Shorter,
    NotContinued,
}

impl Kind {
    /// A stable word for scripts.
    pub fn word(self) -> &'static str {
        self.texts().0
    }

    /// What it is.
    pub fn what(self) -> &'static str {
        self.texts().1
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        self.texts().2
    }

    /// The service would not write it, but a reader can live with it.
    pub fn is_note(self) -> bool {
        match self {
            Kind::BlankLine
            | Kind::LenientJson
            | Kind::ForeignForm
            | Kind::LongNumber
            | Kind::LongLine
            | Kind::LockNotEmpty
            | Kind::StrayName
            | Kind::StaleMarker
            | Kind::UnfinishedRewrite => true,
            Kind::TornTail
            | Kind::MissingNewline
            | Kind::ZeroBytes
            | Kind::InvalidUtf8
            | Kind::InvalidJson
            | Kind::NotAnObject
            | Kind::DomainMissing
            | Kind::OtherDomain
            | Kind::NotADomain
            | Kind::Symlink
            | Kind::NotRegular
            | Kind::SideDirectory
            | Kind::Poisoned
            | Kind::OrphanMarker
            | Kind::MissingPart
            | Kind::WrongSize
            | Kind::WrongHash
            | Kind::NotInManifest
            | Kind::WrongMark
            | Kind::MissingFile
            | Kind::Shorter
            | Kind::NotContinued => false,
        }
    }

    fn texts(self) -> (&'static str, &'static str, &'static str) {
        const BACKUP: &str = "compare with a backup, see RUNBOOK, \"Damaged lines\"";
        const OTHER_COPY: &str = "take another copy of the snapshot, or another snapshot";
        const COMPARE: &str = "compare both before anything is overwritten, see RUNBOOK, \"Back up and restore\"";
        match self {
            Kind::TornTail => (
                "torn_tail",
                "half a line at the end",
                "`leitstand repair --apply` moves it to .torn/, and so does the next append",
            ),
            Kind::MissingNewline => (
                "missing_newline",
                "the last line is whole but for its newline",
                "`leitstand repair --apply` ends it, and so does the next append",
            ),
            Kind::ZeroBytes => ("zero_bytes", "zero bytes, as a file system leaves them after a power cut", BACKUP),
            Kind::InvalidUtf8 => ("invalid_utf8", "not UTF-8", BACKUP),
            Kind::InvalidJson => ("invalid_json", "not JSON", BACKUP),
            Kind::NotAnObject => ("not_an_object", "JSON, but not an object", BACKUP),
            Kind::DomainMissing => ("domain_missing", "an event without a domain", BACKUP),
            Kind::OtherDomain => ("other_domain", "an event of another domain", BACKUP),
            Kind::NotADomain => (
                "not_a_domain",
                "ends in .jsonl, but no domain has a file of that name",
                "move it out of the data directory; readers of *.jsonl take it for data",
            ),
            Kind::Symlink => (
                "symlink",
                "a symbolic link, which the service never follows",
                "put the file itself there, or remove the link",
            ),
            Kind::NotRegular => (
                "not_regular",
                "not a regular file, so that the service refuses the domain",
                "move it out of the data directory",
            ),
            Kind::SideDirectory => (
                "side_directory",
                "not a directory, so that no torn tail can be kept",
                "move it away; the service makes the directory when it needs it",
            ),
            Kind::Poisoned => (
                "poisoned",
                "a sync of this file failed, and it was not written anew since",
                "`leitstand repair --apply` writes it anew, see RUNBOOK, \"Poisoned domain\"",
            ),
            Kind::OrphanMarker => (
                "orphan_marker",
                "a sync of a file failed that is gone now",
                "take the file from a backup, or remove the mark",
            ),
            Kind::BlankLine => ("blank_line", "a blank line", "nothing; most readers skip it"),
            Kind::LenientJson => (
                "lenient_json",
                "NaN, Infinity, a number beyond a double, or a lone surrogate",
                "nothing; Python reads it, strict readers do not",
            ),
            Kind::ForeignForm => {
                ("foreign_form", "spelled as this service never writes it", "nothing; every JSON reader takes it")
            }
            Kind::LongNumber => (
                "long_number",
                "an integer of more than 4,300 digits, as it was sent",
                "Python's json refuses the line unless sys.set_int_max_str_digits(0) was called, jq rounds the number",
            ),
            Kind::LongLine => ("long_line", "too long to be looked at as JSON", "look at it with a tool of your own"),
            Kind::LockNotEmpty => ("lock_not_empty", "a lock file with content", "nothing; nobody reads it"),
            Kind::StrayName => {
                ("stray_name", "does not belong to the service", "move it out of the data directory if nobody needs it")
            }
            Kind::StaleMarker => {
                ("stale_marker", "a mark of a poison that is over", "`leitstand repair --apply` removes it")
            }
            Kind::UnfinishedRewrite => (
                "unfinished_rewrite",
                "the copy of a repair that runs or was interrupted",
                "if no repair runs, remove it",
            ),
            Kind::MissingPart => ("missing_part", "named by the manifest and not there", OTHER_COPY),
            Kind::WrongSize => ("wrong_size", "not as long as the manifest says", OTHER_COPY),
            Kind::WrongHash => ("wrong_hash", "not the bytes that the manifest says", OTHER_COPY),
            Kind::NotInManifest => ("not_in_manifest", "no part of the snapshot", "move it away; nothing restores it"),
            Kind::WrongMark => ("wrong_mark", "not the mark of a poison that the manifest says", OTHER_COPY),
            Kind::MissingFile => ("missing_file", "held by the snapshot and not there", COMPARE),
            Kind::Shorter => ("shorter", "shorter than what the snapshot holds of it", COMPARE),
            Kind::NotContinued => ("not_continued", "does not begin with what the snapshot holds of it", COMPARE),
        }
    }
}

/// One thing that was found. Never holds a byte of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: Kind,
    /// The name in the data directory.
    pub file: String,
    /// From 1.
    pub line: Option<u64>,
    /// From 0, of the first bad byte or of the line.
    pub offset: Option<u64>,
    /// How many bytes are concerned.
    pub bytes: Option<u64>,
}

/// A file that could not be looked at, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotChecked {
    pub file: String,
    pub reason: String,
}

/// What was found in one file: some of it, and how much in all.
#[derive(Default)]
pub(in crate::storage) struct Found {
    pub(in crate::storage) findings: Vec<Finding>,
    pub(in crate::storage) findings_total: u64,
    pub(in crate::storage) notes: Vec<Finding>,
    pub(in crate::storage) notes_total: u64,
}

impl Found {
    pub(in crate::storage) fn push(&mut self, finding: Finding) {
        let (list, total, max) = if finding.kind.is_note() {
            (&mut self.notes, &mut self.notes_total, NOTES_PER_FILE_MAX)
        } else {
            (&mut self.findings, &mut self.findings_total, FINDINGS_PER_FILE_MAX)
        };
        *total += 1;
        if list.len() < max {
            list.push(finding);
        }
    }

    /// Lines that no append and no repair can mend.
    pub(in crate::storage) fn damaged_lines(&self) -> u64 {
        let tail = |finding: &&Finding| matches!(finding.kind, Kind::TornTail | Kind::MissingNewline);
        self.findings_total - self.findings.iter().filter(tail).count() as u64
    }
}
