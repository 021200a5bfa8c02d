//! Every name that this crate gives to a file or directory: what makes it, what removes it, and its state after a crash.
//!
//! ```text
//! BACKUPS/.lock  .service  .creating-<id>/  .deleting-<id>.<n>/  .drilling-<id>/
//! BACKUPS/<id>/status  backup.json  manifest.json  0.partial/ or 0/  .use  status.failed  verified.json  drill.json  starts.json
//! and hooks.json  pact-sums.json  .pinned  .cancel
//! BACKUPS/<id>/0/rocksDb/BLAKE2SUMS  0/sqlite/BLAKE2SUMS
//! BACKUPS/<id>/0/sqlite/ of a delta pair: X.sqlite, X.sqlite-wal, X.sqlite-shm/
//! TARGET/.restoring-<time>/  .restoring-<time>0/  .exchanging-<time>/  0.bak-<time>/
//! TARGET/0/rocksDb/.restore-journal.json  .restoring-<time>/  0.bak-<time>/  and the last two in TARGET/0/sqlite/
//! PLACE/.chainweb-backup-pin/.lock         PLACE is the database directory, its `0`, or what --pin-directory names
//! ```
//! A delta pair has the names that SQLite gives its own files (see `pair`). They are made while the backup is filled, in `0.partial`, the
//! guard before the link to the base and that before the WAL, and removed with the backup; after a crash `recover` moves all to the garbage.
//! Removing one of the names of a base leaves the others.
//!
//! A file that is replaced atomically is first written beside it as `.<name>.tmp`, see `disk::replace`; after a crash the next
//! writer of the file, or `recover`, removes that.
//!
//! Invariant: no other source file spells one of these names; `tidy` checks that. The names of the node's files are in `chainweb`, those
//! of RocksDB and SQLite in `database_files`.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::chainweb;
use crate::id::BackupId;

/// `BACKUPS/.lock`: flock while a job is created and runs; its content is the last identifier that was given out. Made by the
/// first job, never removed. A crash releases the lock and keeps the content.
pub(crate) const JOB_LOCK: &str = ".lock";

/// `BACKUPS/.service`: flock of the one service of the directory. Made by the first service, never removed.
pub(crate) const SERVICE_LOCK: &str = ".service";

/// `BACKUPS/.creating-<id>/`: a backup whose identifier has not been given out. Made and renamed to `<id>` by the job; after a
/// crash `recover` moves it to the garbage.
pub(crate) fn creating(id: &BackupId) -> String {
    format!("{CREATING}{id}")
}

/// The identifier in such a name; `None` for any other.
pub(crate) fn id_in_creating(name: &str) -> Option<BackupId> {
    BackupId::parse(name.strip_prefix(CREATING)?).filter(|id| id.millis().is_some())
}

const CREATING: &str = ".creating-";

/// `BACKUPS/.deleting-<id>.<n>/`: data to be removed. Made by a failure, a delete or `recover`, by a rename; removed by the sweep,
/// which continues after a crash.
pub(crate) fn garbage(id: &BackupId, n: u32) -> String {
    format!("{DELETING}{id}.{n}")
}

/// Whether this is such a name.
pub(crate) fn is_garbage(name: &str) -> bool {
    let parts = name.strip_prefix(DELETING).and_then(|rest| rest.rsplit_once('.'));
    parts.is_some_and(|(id, n)| {
        BackupId::parse(id).is_some_and(|id| id.millis().is_some())
            && n.parse::<u32>().is_ok_and(|of| of.to_string() == n)
    })
}

const DELETING: &str = ".deleting-";

/// `BACKUPS/.drilling-<id>/`: the scratch directory of a drill, which holds its flock. Made and removed by the drill; after a crash
/// the sweep, or the next drill of the backup, removes it, as soon as no process of the drill lives.
pub(crate) fn drilling(id: &BackupId) -> String {
    format!("{DRILLING}{id}")
}

/// Whether this is such a name.
pub(crate) fn is_drilling(name: &str) -> bool {
    name.strip_prefix(DRILLING).and_then(BackupId::parse).is_some_and(|id| id.millis().is_some())
}

const DRILLING: &str = ".drilling-";

/// `BACKUPS/.drilling-<id>/restored/`: the database directory that a drill restores.
pub(crate) const DRILL_NODE: &str = "restored";

/// `BACKUPS/<id>/status`: `backup-in-progress`, `backup-done` or `backup-failed`; decides. Made with the backup, replaced
/// atomically; after a crash `recover` turns "in progress" into "failed".
pub(crate) const STATUS_FILE: &str = "status";

/// `BACKUPS/<id>/status.failed`: a ready-made status that needs only a rename, so that failing works on a full disk. Made with the
/// backup; renamed by a failure, removed by the commit or by `recover`.
pub(crate) const STATUS_FAILED_FILE: &str = "status.failed";

/// `BACKUPS/<id>/backup.json`: the record, which explains. Made with the backup, replaced atomically at its end.
pub(crate) const RECORD_FILE: &str = "backup.json";

/// `BACKUPS/<id>/manifest.json`: every file of the backup. Made by the commit; after a crash before the commit it is removed with
/// the data.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// `BACKUPS/<id>/verified.json`: the last verification. Made and replaced by `verify` and by the end of a job;
/// removed with the data of a failed backup.
pub(crate) const VERIFIED_FILE: &str = "verified.json";

/// `BACKUPS/<id>/drill.json`: the last drill. Made and replaced by `drill`.
pub(crate) const DRILL_FILE: &str = "drill.json";

/// `BACKUPS/<id>/starts.json`: the last start-up proof. Made by the end of a job, or later by the idle service; replaced
/// by `verify`; removed with the data of a failed backup.
pub(crate) const STARTS_FILE: &str = "starts.json";

/// `BACKUPS/<id>/hooks.json`: the outcomes of the hooks. Made when the first hook of the backup begins, replaced when one begins or ends;
/// kept with the record of a failed backup. After a crash it says of the hook that ran that it has not ended; the next
/// recovery says that it was interrupted.
pub(crate) const HOOKS_FILE: &str = "hooks.json";

/// `BACKUPS/<id>/pact-sums.json`: the sums of the pieces of the Pact databases, see `pact_sums`. Made while the backup is filled, if the
/// next backup can make increments, or if there are delta pairs, which cannot be verified without it; removed with the data of a failed backup.
pub(crate) const PACT_SUMS_FILE: &str = "pact-sums.json";

/// `BACKUPS/<id>/.use`: the lock of one backup, see `in_use`. Made with the backup.
pub(crate) const USE_FILE: &str = ".use";

/// `BACKUPS/<id>/.pinned`: the operator keeps this backup. Made by `pin`, removed by `unpin`.
pub(crate) const PIN_FILE: &str = ".pinned";

/// `BACKUPS/<id>/.cancel`: the operator has cancelled the job. Made by `cancel`, removed by it or by the end of the job.
pub(crate) const CANCEL_FILE: &str = ".cancel";

/// `BACKUPS/<id>/0.partial/`: the data while the backup is being made. Renamed to [`WHOLE`] by the commit; after a crash `recover`
/// moves it to the garbage.
pub(crate) const PARTIAL: &str = "0.partial";

/// `BACKUPS/<id>/0/`: the data of a finished backup; it has the name of the node's own directory.
pub(crate) const WHOLE: &str = chainweb::PLACE;

/// `BACKUPS/<id>/0/<directory>/`: RocksDB, or the Pact databases, of the finished backup in `backup`.
pub(crate) fn directory_in(backup: &Path, directory: &str) -> PathBuf {
    backup.join(WHOLE).join(directory)
}

/// `BACKUPS/<id>/0.partial/.discarded/`: a capture of RocksDB that was made too early, until the next capture has taken its files.
pub(crate) const DISCARDED: &str = ".discarded";

/// `BLAKE2SUMS` in `0/rocksDb` and `0/sqlite`: checksums for `b2sum -c`, under the community's name. Made after the commit.
pub(crate) const SUMS_FILE: &str = "BLAKE2SUMS";

/// A link that is made to find out whether hard links work; removed at once, and also before the next attempt.
pub(crate) const PROBE: &str = ".probe";

/// `pin.<name>`: a link to a WAL, in a directory that gets a copy of the WAL under its own name. Removed after the copy.
pub(crate) fn wal_pin(name: &str) -> String {
    format!("pin.{name}")
}

/// `PLACE/.chainweb-backup-pin/`: links to files that are copied to another file system, see `pins`. Made by the first such
/// backup, emptied by each such backup and, in every place, at each start.
pub(crate) const PIN_DIRECTORY: &str = ".chainweb-backup-pin";

/// `PLACE/.chainweb-backup-pin/.lock`: flock of the one backup that uses the directory. Made by the first, never removed.
pub(crate) const PINS_LOCK: &str = ".lock";

/// `TARGET/.restoring-<time>/`: a restore that is not finished. After a crash the next restore removes it.
pub(crate) fn restoring(time: impl Display) -> String {
    format!("{RESTORING}{time}")
}

/// Whether this is such a name.
pub(crate) fn is_restoring(name: &str) -> bool {
    name.strip_prefix(RESTORING).is_some_and(is_time)
}

const RESTORING: &str = ".restoring-";

/// `TARGET/.restoring-<time>0/`: a second directory, empty, that shows whether directories can be exchanged there. Removed at once;
/// after a crash as any `.restoring-<time>`.
pub(crate) fn restoring_probe(time: impl Display) -> String {
    format!("{RESTORING}{time}0")
}

/// `TARGET/.exchanging-<time>/`: a restored database that is about to be exchanged with the old one, or the old one. Never
/// removed; the next restore calls it `0.bak-<time>`.
pub(crate) fn exchanging(time: impl Display) -> String {
    format!("{EXCHANGING}{time}")
}

/// The time in such a name; `None` for any other.
pub(crate) fn time_in_exchanging(name: &str) -> Option<&str> {
    name.strip_prefix(EXCHANGING).filter(|time| is_time(time))
}

const EXCHANGING: &str = ".exchanging-";

/// `TARGET/0.bak-<time>/`: the database that a restore replaced. Only the operator removes it.
pub(crate) fn replaced(time: impl Display) -> String {
    format!("{REPLACED}{time}")
}

const REPLACED: &str = "0.bak-";

/// `TARGET/0/rocksDb/.restore-journal.json`: the files that a restore one level below exchanges. Made before the first file is moved,
/// removed after the last; after a crash the next restore finishes or undoes the exchange.
pub(crate) const RESTORE_JOURNAL: &str = ".restore-journal.json";

/// What RocksDB's `CURRENT` says in the place of a restore one level below that is half done. RocksDB refuses such a file, because it
/// does not end with a newline.
pub(crate) const RESTORE_MARK: &str =
    "a restore into this database is half done: run chainweb-backup restore with --resume or --undo";

/// Whether this is a time in milliseconds, with which the names of a restore end.
fn is_time(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}
