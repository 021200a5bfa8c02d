//! The live copy: copies a RocksDB directory while another process writes to it.
//!
//! Guarantee: *the copied directory is what `kill -9` of the node at one instant would have left on disk.* RocksDB offers
//! nothing for this: opening the database needs its LOCK, and a checkpoint over a read-only or a secondary instance
//! returned OK with a wrong copy in a third of all tries.
//!
//! Why it works (RocksDB, `VersionSet::ProcessManifestWrites`): an edit is written and synced to the MANIFEST, and
//! CURRENT renamed, before the version is installed, and files are deleted only after that. The sizes of MANIFEST and WAL
//! are exact (reserved space lies beyond them, nothing is mapped). SSTs never change once the MANIFEST names them. A WAL
//! gets its first byte only when the one before it is complete. Recovery does not notice a missing WAL, so the copy must
//! have them all.
//!
//! One round
//! 1. Read CURRENT, open its MANIFEST, note inode and size S.
//! 2. The window opens. List the WALs twice; W = the WALs of the second list with a number up to the largest of the first,
//!    because one read of a directory may miss a file that is created meanwhile.
//! 3. Open and link each WAL of W. The link matters: RocksDB's trash truncates files that have only one name.
//! 4. Take the sizes of the WALs from the descriptors, newest first. These sizes are the cut: every record of a newer WAL was
//!    written after all records of the older ones.
//! 5. CURRENT and the MANIFEST (by name: inode, size) must be as in step 1; the window closes. Taking the sizes after
//!    this check silently breaks the copy if files are ingested, or column families are created or dropped, meanwhile.
//! 6. If the MANIFEST is another file than in the round before, drop the pins whose source no longer exists or is another
//!    inode: after a crash RocksDB reuses the numbers of files that were not committed. (A MANIFEST that has only grown is the
//!    same file; otherwise step 8 would never come to an end.)
//! 7. Parse the first S bytes of the MANIFEST: the live files. If it is the same file as in the round before, parse only the
//!    new part: a MANIFEST only ever grows.
//! 8. Link each live file, level 0 first. If the size differs from the MANIFEST's, or the file no longer exists, a new round is
//!    needed. It keeps the pins, so it only races for the difference. A pin of a round with the same MANIFEST is good: a number
//!    that a MANIFEST has named is never given to another file. An older pin is good if it is the same inode as its source, or
//!    if its source no longer exists. If a file does not exist although CURRENT and the MANIFEST are unchanged, the database is
//!    damaged: edits are written before files are deleted. A file that an earlier backup on another file system has, by
//!    RocksDB's own unique id, needs no link: it is taken from there.
//!
//! Then copy what belongs to the instant of the cut: each WAL up to its cut (`live_wals`), S bytes of the MANIFEST, OPTIONS
//! and IDENTITY. Only then, if files cannot be linked, copy the live files, which may take hours. CURRENT comes last. Links
//! that are not live in the end are removed.
//!
//! Refused, because the guarantee would not hold: WAL files that are reused or that are elsewhere, data in other directories
//! or of other engines, symbolic links, and file systems that cache attributes or show those of another file system.
//!
//! Invariants: no file of the source is opened for writing, LOCK is not taken, no link is followed. The rounds are limited in
//! number, and in time from the end of the first pass through all live files, whose time depends on the disk. If the limit is
//! reached, the error names the reason of the last failure.

use std::cmp::Reverse;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::Stat;

use crate::capture::rocksdb::earlier_backup::{Bringing, Brought, Earlier};
use crate::capture::rocksdb::live_directories::{Pin, Source, Staging, WalPlace, fstat};
use crate::capture::rocksdb::live_files::manifest_in;
use crate::capture::rocksdb::live_wals::{self, Target, Wal};
use crate::capture::rocksdb::log_format;
use crate::capture::rocksdb::version_edit::{LiveFile, Versions};
use crate::control::Control;
use crate::database_files::{self, CURRENT, IDENTITY, options_number};
use crate::disk;
use crate::disk::copy::{self, Copier};
use crate::disk::fault_gate;
use crate::disk::file_id::FileId;
use crate::disk::quiet_reader::QuietReader;
use crate::disk::unsynced::Batch;
use crate::error::{Error, Failure, IoContext, Kind, Result};

/// The most rounds. Measured: one or two are typical, 15 were seen at 300 edits a second.
const MAX_ROUNDS: u32 = 200;

/// The longest time from the end of the first pass through all live files.
const MAX_TIME: Duration = Duration::from_secs(120);

/// How long an open database may have no WAL: it has none while it is being opened.
const MAX_TIME_WITHOUT_WAL: Duration = Duration::from_secs(20);

/// The pause between two checks for a WAL.
const WAL_POLL: Duration = Duration::from_millis(100);

/// Both limits in a test that needs short ones.
const SHORT_TIME: Duration = Duration::from_millis(300);

/// The pause between a failed round and the next one.
const ROUND_PAUSE: Duration = Duration::from_millis(5);

/// The result of a live copy.
#[derive(Debug)]
pub(crate) struct Copied {
    pub(crate) run: Run,
    /// The origin of the live files that are not links to the node's files.
    pub(crate) brought: Brought,
    /// The files that are not links and must be synced.
    pub(crate) unsynced: Batch,
    /// Warnings for the operator.
    pub(crate) warnings: Vec<String>,
}

/// The rounds of a live copy.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The number of rounds; the last one succeeded.
    pub(crate) rounds_count: u32,
    /// How long the window of the last round was open.
    pub(crate) window: Duration,
}

/// The result of steps 1 to 5, the state at one instant.
struct Instantaneous {
    current: String,
    manifest: File,
    name: String,
    manifest_identity: FileId,
    manifest_bytes: u64,
    wals: Vec<Wal>,
    window: Duration,
}

/// A MANIFEST, and the part of it that was parsed in the rounds so far.
struct Reading {
    /// The content of CURRENT, and the device and inode of the MANIFEST.
    of: (String, FileId),
    /// While it is open, no other file gets its inode.
    _manifest: File,
    versions: Versions,
}

fn again(why: impl Into<String>) -> Failure {
    Failure::Again(why.into())
}

/// Copies the database in `source` to the new directory `to`. The links are made in `pins`: `to` itself if it is on the
/// source's mount, otherwise an existing directory, from which the files are then copied.
///
/// Fails with [`Kind::Refused`] if the guarantee cannot be given, and with [`Kind::Changed`] if a limit is reached.
///
/// Files that `earlier`, a backup on the file system of `to`, already has are linked from there instead of copied.
pub(crate) fn copy(
    source: &Path,
    to: &Path,
    pins: &Path,
    earlier: Option<&Earlier>,
    copier: Copier<'_>,
) -> Result<Copied> {
    let source = Source::at(source)?;
    let wal_place = source.refuse_what_cannot_be_copied()?;
    require_wal(&source, copier.control)?;
    disk::create_dir(to, copier.owner)?;
    let staging = Staging::open(pins)?;
    let (instant, versions, rounds_count) =
        Loop { source: &source, staging: &staging, earlier, control: copier.control }.run()?;
    let newest = instant.wals.first().map_or(0, |wal| wal.number);
    if wal_place == WalPlace::Presumed && newest < versions.newest_settled_wal() {
        let why = "the WALs in its directory are older than its tables: its OPTIONS name another directory for them (wal_dir)";
        return Err(source.refused(why));
    }
    let target = Target { directory: to, copier };
    let mut wals = Vec::new();
    for wal in instant.wals.iter().rev() {
        wals.push(wal.copy(&source, &target)?);
        staging.drop_wal(&wal.name)?;
    }
    let mut warnings = live_wals::settle(&wals, &versions, &source)?;
    if wals.is_empty() {
        warnings.push(no_wal(&source, versions.oldest_wal()));
    }
    let mut unsynced = Batch::default();
    wals.into_iter().try_for_each(|wal| unsynced.add(wal.unsynced))?;
    copy_metadata(&source, &instant, &target, &mut unsynced)?;
    let live = versions.into_live_files();
    if rounds_count > 1 {
        staging.keep_only(&live)?;
    }
    let mut brought = Brought::default();
    if pins != to {
        brought = Bringing { pins, to, earlier, copier }.all(&live, &mut unsynced)?;
    }
    // CURRENT comes last: a directory without it is not a database.
    unsynced.add(disk::write_new(&to.join(CURRENT), instant.current.as_bytes(), copier.owner)?)?;
    Ok(Copied { run: Run { rounds_count, window: instant.window }, brought, unsynced, warnings })
}

/// A warning for a database that no process has open and that has no WAL. One that was opened ever has one, except a checkpoint.
fn no_wal(source: &Source, oldest: u64) -> String {
    let warning = format!(
        "RocksDB has no WAL, and needs those from number {oldest} on: if they were removed, as some scripts remove *.log, what the \
         node wrote last is missing (a checkpoint that no node has opened has none)"
    );
    log::warn!("wal is missing source={} warning={warning:?}", source.path.display());
    warning
}

/// Refuses a database that another process has open and that has no WAL in its directory: an open database always has a WAL, so
/// it is elsewhere. Waits first, because a new database has no WAL while it is being opened.
fn require_wal(source: &Source, control: &Control) -> Result<()> {
    let short = fault_gate::simpler("short-limits", &source.path);
    let deadline = Instant::now() + if short { SHORT_TIME } else { MAX_TIME_WITHOUT_WAL };
    while source.wal_numbers()?.is_empty() && source.holder()?.is_some() {
        control.check()?;
        if Instant::now() > deadline {
            let why =
                "another process has it open, and there is no WAL in its directory: its WAL is elsewhere (wal_dir)";
            return Err(source.refused(&format!("{why}, or it is still being opened: then try again")));
        }
        std::thread::sleep(WAL_POLL);
    }
    Ok(())
}

/// Repeats rounds until one succeeds.
struct Loop<'a> {
    source: &'a Source,
    staging: &'a Staging,
    earlier: Option<&'a Earlier>,
    control: &'a Control,
}

type Attempt<T> = std::result::Result<T, Failure>;

impl Loop<'_> {
    /// Returns the cut, the state of the database in it, and the number of rounds.
    fn run(&self) -> Result<(Instantaneous, Versions, u32)> {
        let limit = if fault_gate::simpler("short-limits", &self.source.path) { SHORT_TIME } else { MAX_TIME };
        let (mut rounds_count, mut reading, mut deadline) = (0, None, None);
        loop {
            self.control.check()?;
            rounds_count += 1;
            self.staging.drop_wals()?;
            let why = match self.round(&mut reading) {
                Ok((instant, versions)) => return Ok((instant, versions, rounds_count)),
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Again(why)) => why,
            };
            log::debug!("live copy round={rounds_count} again={why:?}");
            if reading.is_some() && deadline.is_none() {
                deadline = Some(Instant::now() + limit);
            }
            if rounds_count == MAX_ROUNDS || deadline.is_some_and(|deadline| Instant::now() > deadline) {
                let context = format!(
                    "the database in {} changed faster than it could be copied, in all of {rounds_count} rounds; the last one \
                     failed because {why}",
                    self.source.path.display()
                );
                return Err(Error::new(Kind::Changed, context));
            }
            std::thread::sleep(ROUND_PAUSE);
        }
    }

    /// Steps 1 to 8. A round that went through all live files, and could not link one of them, leaves `reading` for the next.
    fn round(&self, reading: &mut Option<Reading>) -> Attempt<(Instantaneous, Versions)> {
        let instant = window(self.source, self.staging)?;
        let of = (instant.current.clone(), instant.manifest_identity);
        let mut versions = match reading.take() {
            Some(last) if last.of == of && last.versions.complete_bytes() <= instant.manifest_bytes => last.versions,
            Some(_) => {
                self.staging.drop_stale(self.source)?;
                Versions::new()
            }
            None => Versions::new(),
        };
        parse_manifest(self.source, &instant, &mut versions)?;
        fault_gate::point("live-parsed", &self.source.path);
        match self.pin_all(&instant, &mut versions) {
            Ok(()) => {
                fault_gate::point("live-pinned", &self.source.path);
                Ok((instant, versions))
            }
            Err(why) => {
                *reading = Some(Reading { of, _manifest: instant.manifest, versions });
                Err(why)
            }
        }
    }

    /// Step 8. Continues after a file that cannot be linked: the files that are linked now need no second round.
    fn pin_all(&self, instant: &Instantaneous, versions: &mut Versions) -> Attempt<()> {
        let mut lost = None;
        for of_level_0 in [true, false] {
            for table in versions.tables().iter_mut().filter(|table| table.is_level_0() == of_level_0 && !table.seen) {
                self.control.check()?;
                match self.pin(instant, table) {
                    Err(Failure::Again(why)) => lost = lost.or(Some(why)),
                    done => done.map(|()| table.seen = true)?,
                }
            }
        }
        for blob in versions.blobs() {
            self.control.check()?;
            match self.pin(instant, &blob) {
                Err(Failure::Again(why)) => lost = lost.or(Some(why)),
                done => done?,
            }
        }
        lost.map_or(Ok(()), |why| Err(again(why)))
    }

    fn pin(&self, instant: &Instantaneous, file: &LiveFile) -> Attempt<()> {
        let source = self.source;
        let pin = match self.earlier.filter(|earlier| earlier.knows(file)) {
            // We do not need the node's file, but if the node has lost it, the operator must learn that.
            Some(_) => match Pin::of(source.stat(&file.name())?, file) {
                Pin::Good => Pin::Good,
                lost if instant.still_holds(source)? => lost,
                _ => Pin::Good,
            },
            None => self.staging.pin(source, file)?,
        };
        match pin {
            Pin::Good => Ok(()),
            // RocksDB deletes a file only after it has written the edit that removes it.
            Pin::Gone if instant.still_holds(source)? => Err(missing(source, file)?.into()),
            Pin::Gone => Err(again(format!("{} was deleted", file.name()))),
            Pin::Unfit(why) if instant.still_holds(source)? => {
                Err(source.refused(&format!("{why}: the database is damaged")).into())
            }
            Pin::Unfit(why) | Pin::Again(why) => Err(again(why)),
        }
    }
}

/// The error for a live file that does not exist.
fn missing(source: &Source, file: &LiveFile) -> Result<Error> {
    let level_db = database_files::level_db_table(file.number);
    let why = if source.stat(&level_db)?.is_some() {
        format!("its tables are those of a LevelDB ({level_db}), which this program does not copy")
    } else {
        format!("{} is missing although its MANIFEST names it: the database is damaged or has db_paths", file.name())
    };
    Ok(source.refused(&why))
}

/// Steps 1 to 5.
fn window(source: &Source, staging: &Staging) -> Attempt<Instantaneous> {
    let current = source.read_current()?.ok_or_else(|| again("CURRENT was being replaced"))?;
    let name = manifest_in(&current)
        .ok_or_else(|| source.refused("its CURRENT does not name a MANIFEST: the database is damaged"))?;
    let Some(manifest) = source.open(&name)? else {
        // RocksDB deletes a MANIFEST only after CURRENT names the next one.
        if source.read_current()?.as_ref() != Some(&current) {
            return Err(again("the MANIFEST was being replaced"));
        }
        let why = format!("its CURRENT names {name}, which is missing: the database is damaged");
        return Err(source.refused(&why).into());
    };
    let stat = fstat(&manifest, &name)?;
    fault_gate::point("live-manifest-noted", &source.path);

    let opened = Instant::now();
    let first = source.wal_numbers()?;
    fault_gate::point("live-listed-once", &source.path);
    let second = if fault_gate::simpler("one-listing", &source.path) { first.clone() } else { source.wal_numbers()? };
    fault_gate::point("live-listed-twice", &source.path);
    if first.is_empty() && !second.is_empty() {
        return Err(again("the first WAL was just created"));
    }
    let newest = first.iter().map(|(number, _)| *number).max().unwrap_or(0);
    let mut wals = Vec::new();
    for (number, name) in second.into_iter().filter(|(number, _)| *number <= newest) {
        let gone = || again(format!("{name} was deleted"));
        let file = source.open(&name)?.ok_or_else(gone)?;
        if !staging.link_wal(source, &name)? {
            return Err(gone());
        }
        wals.push(Wal { name, number, file, bytes: 0 });
    }
    if wals.is_empty() && source.holder()?.is_some() {
        return Err(again("another process has the database open, and there is no WAL in its directory"));
    }
    wals.sort_by_key(|wal| Reverse(wal.number));
    take_sizes(&mut wals)?;
    fault_gate::point("live-sized", &source.path);
    let manifest_bytes = stat.st_size.cast_unsigned();
    let mut instant = Instantaneous {
        current,
        manifest,
        name,
        manifest_identity: FileId::from(&stat),
        manifest_bytes,
        wals,
        window: Duration::ZERO,
    };
    if !instant.still_holds(source)? {
        return Err(again("the MANIFEST changed"));
    }
    instant.window = opened.elapsed();
    fault_gate::point("live-held", &source.path);
    if fault_gate::simpler("late-sizes", &source.path) {
        take_sizes(&mut instant.wals)?;
    }
    Ok(instant)
}

/// Step 4; the newest WAL comes first.
fn take_sizes(wals: &mut [Wal]) -> Result<()> {
    for wal in wals {
        wal.bytes = fstat(&wal.file, &wal.name)?.st_size.cast_unsigned();
    }
    Ok(())
}

impl Instantaneous {
    /// Whether CURRENT and the MANIFEST are unchanged: then no edit has been written since.
    fn still_holds(&self, source: &Source) -> Result<bool> {
        let same = |now: Stat| {
            FileId::from(&now) == self.manifest_identity && now.st_size.cast_unsigned() == self.manifest_bytes
        };
        Ok(source.read_current()?.as_ref() == Some(&self.current) && source.stat(&self.name)?.is_some_and(same))
    }
}

/// Step 7.
fn parse_manifest(source: &Source, instant: &Instantaneous, versions: &mut Versions) -> Result<()> {
    let start = log_format::block_of(versions.complete_bytes());
    let manifest = QuietReader::through_cache(instant.manifest.as_fd()).starting_at(start);
    let read = versions.read(manifest.take(instant.manifest_bytes - start));
    read.context(|| format!("cannot read the MANIFEST of {}", source.path.display()))?
        .map_err(|why| source.refused(&why))
}

/// Copies the MANIFEST up to its cut, the newest OPTIONS and IDENTITY.
fn copy_metadata(source: &Source, instant: &Instantaneous, target: &Target<'_>, unsynced: &mut Batch) -> Result<()> {
    let copy = |from: &File, bytes: u64, name: &str| {
        let mut reader = QuietReader::through_cache(from.as_fd());
        copy::copy(target.copier, &mut reader, bytes, &target.directory.join(name), &|| Ok(()))
    };
    let manifest = copy(&instant.manifest, instant.manifest_bytes, &instant.name)?;
    if manifest.bytes != instant.manifest_bytes {
        return Err(source.refused("its MANIFEST became shorter while it was read"));
    }
    unsynced.add(manifest)?;
    let mut options = source.names(&|name| options_number(name).is_some())?;
    options.sort_by_key(|name| Reverse(options_number(name)));
    let mut copy_named = |name: &str| -> Result<bool> {
        let Some(file) = source.open(name)? else { return Ok(false) };
        let bytes = file.metadata().context(|| format!("cannot look at {name}"))?.len();
        unsynced.add(copy(&file, bytes, name)?)?;
        Ok(true)
    };
    // The newest OPTIONS may be replaced meanwhile, so the second newest is tried too; the database also opens without one.
    for name in options.iter().take(2) {
        if copy_named(name)? {
            break;
        }
    }
    copy_named(IDENTITY)?;
    Ok(())
}
