//! A drill: restores a backup into a scratch directory beside it, uses the databases there as a node does, and removes them.
//!
//! ```text
//! step                                                             a crash after it leaves
//! 1  hold the backup, verify it quickly                            nothing
//! 2  make BACKUPS/.drilling-<id>/, lock it                         the directory, for the sweep
//! 3  fill .drilling-<id>/restored/0/: SSTs are links to those of   the same
//!    the backup, all that is written to is a copy
//! 4  open RocksDB and every Pact database, read-write, and compare  the same; a command of the operator may still run, and holds
//!    their newest blocks with the record; or run the operator's    the lock until it ends
//!    command, most often the node itself
//! 5  compare size, times, inode, mode and owner of every file of   the same
//!    the backup with those before step 4
//! 6  remove the directory, write drill.json                        a directory or nothing; drill.json of the last drill
//! ```
//! Invariants: only the copy is opened read-write, never the backup, and by our newer RocksDB only if no command is given: it
//! may write files that the node's own RocksDB cannot read. A drill that fails never changes the status of the backup: the cause
//! may be the operator's command. The backup directory belongs to the node's user, who can put a link in place of the scratch
//! directory at any moment, so filling it follows no link. A restore does: its target is the operator's.
//!
//! A command that writes to a file that it shares with the backup can set the time of the modification back, but not that of the change
//! (ctime). That time is also another one if the file got a name more or less: RocksDB deletes an SST after a compaction, and backups
//! that are made or deleted meanwhile link the same files. So a file with another time of the change but as many names as before is
//! compared with its checksum; if it has none, or if that is too much to read, and no backup came or went, the drill has not passed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::backups::catalog::{is_there, look, remove_drill};
use crate::backups::command::Ended;
use crate::backups::drill_command;
use crate::backups::filling::{Filling, RESERVE_BYTES};
use crate::backups::operations::{Held, hold_sound};
use crate::backups::pairs::Databases;
use crate::backups::restore;
use crate::backups::sums;
use crate::backups::sums_list;
use crate::backups::verification::require_good;
use crate::backups::verify::VerifyOptions;
use crate::capture::rocksdb::chain_cut::Heights;
use crate::capture::rocksdb::{self, Opened, engine};
use crate::chainweb::{self, DIRECTORIES};
use crate::clock::now_ms;
use crate::config::Depth;
use crate::control::Control;
use crate::disk::copy::Copier;
use crate::disk::fault_gate;
use crate::disk::holders;
use crate::disk::lock::Lock;
use crate::disk::quiet_reader::PageCache;
use crate::disk::sum::{self, Sum};
use crate::disk::{self, Owner, nofollow};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::drill::Drill;
use crate::format::layout::{self, DRILL_FILE, DRILL_NODE, MANIFEST_FILE, WHOLE};
use crate::format::manifest::{self, Entry};
use crate::format::record::Record;
use crate::id::BackupId;

/// How many bytes are read at most, after a drill, to compare files with their checksums.
const MAX_COMPARED_BYTES: u64 = 4 << 30;

/// How often we try to make the scratch directory while the sweep removes one of an earlier drill.
const MAX_TRIES: u32 = 10;

/// How a drill is done.
#[derive(Debug, Clone, Copy)]
pub struct DrillOptions<'a> {
    /// The program and its arguments, with `{directory}` for the restored database directory. If empty, this program opens the
    /// databases itself.
    pub command: &'a [OsString],
    /// How long the command may run.
    pub time_limit: Duration,
    /// Whether the scratch directory shares no file with the backup.
    pub copy: bool,
    /// The program in whose child process the databases are opened, as the user to whom they belong; if absent, they are opened in
    /// this process: only if no other user can write to the backup directory.
    pub program: Option<&'a Path>,
}

/// Restores the backup `word` into a scratch directory beside it, uses the databases as `options` say, and removes them. The result is
/// noted in the backup, if it can be written to.
///
/// # Errors
/// As for a restore; [`Kind::Usage`] for a command without `{directory}` or one that cannot be started, or if this program has no
/// RocksDB to open the databases; [`Kind::Busy`] if another drill of the backup runs. A database that cannot be used, or a command that
/// fails, is not an error but a drill that has not passed.
pub fn drill_backup(
    directory: &Path,
    word: &str,
    options: DrillOptions<'_>,
    control: &Control,
) -> Result<(BackupId, Drill)> {
    match options.command {
        [] => engine::require("a drill without --exec")?,
        command => drill_command::require_directory(command)?,
    }
    let (at_ms, began) = (now_ms(), Instant::now());
    let held = hold_sound(directory, word)?;
    let verification = VerifyOptions { depth: Depth::Quick, program: options.program };
    require_good(&held.verify(verification, control)?)?;
    let whole = held.path.join(WHOLE);
    let scratch = Scratch::make(&held, &whole)?;
    fault_gate::point("drill-made", held.catalog.directory());
    let databases = Databases::of(&held.path, held.found.record.as_ref());
    let used = scratch.fill((&whole, &databases), &options, control).and_then(|node| {
        fault_gate::point("drill-filled", held.catalog.directory());
        let before = Before { states: states(&whole)?, others: others(&held)? };
        control.begin("using the databases");
        let (use_began, used) = (Instant::now(), use_databases(&held, &scratch, &node, options, control)?);
        control.begin("comparing");
        Ok((used, use_began.elapsed(), before.changed(&held, &whole, control)?))
    });
    let removed = scratch.remove();
    let (Ended { reason, output }, use_time, changed) = used?;
    removed?;
    if let Some(why) = &changed {
        log::error!("backup changed by a drill id={} reason={why:?}", held.found.id);
    }
    let reason = changed.map(|why| format!("{why}: verify --deep the backup")).or(reason);
    let drill = Drill {
        id: Some(held.found.id.clone()),
        passed: reason.is_none(),
        at_ms,
        used_ms: millis(use_time),
        duration_ms: millis(began.elapsed()),
        command: options.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        reason,
        output,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    note(&held, &drill);
    Ok((held.found.id, drill))
}

/// Notes the drill in the backup.
fn note(held: &Held, drill: &Drill) {
    if held.found.record.is_none() {
        return;
    }
    let bytes = serde_json::to_vec(drill).expect("a drill has only string keys");
    // A user may be permitted to read a backup but not to write to it.
    let noted = Owner::following(held.catalog.directory())
        .and_then(|owner| disk::replace(&held.path, DRILL_FILE, &bytes, owner));
    if let Err(e) = noted {
        log::warn!("drill not noted id={} reason={:?}", held.found.id, e.chain());
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Step 4.
fn use_databases(
    held: &Held,
    scratch: &Scratch,
    node: &Path,
    options: DrillOptions<'_>,
    control: &Control,
) -> Result<Ended> {
    if !options.command.is_empty() {
        return drill_command::run(options.command, node, options.time_limit, &scratch.lock, control);
    }
    let opened = rocksdb::open_as_node(&chainweb::rocksdb_in(node), options.program, scratch.owner, control)
        .and_then(|opened| compare(&opened, held.found.record.as_ref()));
    match opened {
        Ok(()) => Ok(Ended { reason: None, output: String::new() }),
        Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Database) => {
            Ok(Ended { reason: Some(e.chain()), output: String::new() })
        }
        Err(e) => Err(e),
    }
}

/// Fails unless the databases have the blocks that the record names.
fn compare(opened: &Opened, record: Option<&Record>) -> Result<()> {
    let cut = match &opened.rocksdb {
        Some(Heights::Damaged(fault) | Heights::Unread(fault)) => {
            return Err(Error::new(Kind::Damaged, fault.why.clone()));
        }
        Some(Heights::Cut(cut)) => cut.as_ref().map(|cut| cut.height),
        None => None,
    };
    let Some(record) = record else { return Ok(()) };
    if let Some(recorded) = record.rocksdb.as_ref().and_then(|rocksdb| rocksdb.cut_height)
        && cut != Some(recorded)
    {
        let found = cut.map_or_else(|| "no cut".to_owned(), |height| format!("the cut {height}"));
        let context =
            format!("RocksDB has {found} after it was opened, and the backup was made with the cut {recorded}");
        return Err(Error::new(Kind::Damaged, context));
    }
    for part in &record.pact {
        let recorded = part.block_height.map(|height| (height, part.block_hash.clone()));
        if opened.pact.get(&part.file) != Some(&recorded) {
            let context = format!("{} has another newest block after it was opened than in the backup", part.file);
            return Err(Error::new(Kind::Damaged, context));
        }
    }
    Ok(())
}

/// The scratch directory, locked.
struct Scratch {
    path: PathBuf,
    /// That of the files in it.
    owner: Option<Owner>,
    lock: Lock,
}

impl Scratch {
    /// Step 2.
    fn make(held: &Held, whole: &Path) -> Result<Scratch> {
        let path = held.catalog.directory().join(layout::drilling(&held.found.id));
        // The node of the drill runs as the operator decides; links need the owner of the files.
        let owner = Owner::following(whole)?;
        for _ in 0..MAX_TRIES {
            if remove_drill(&path, &|| true)?.is_none() {
                let who = holders::of(&path).unwrap_or_else(|| "its process is not known".to_owned());
                let context = format!(
                    "another drill of the backup, or the command of one that was killed, uses {}: {who}; wait for its end, or end it",
                    path.display()
                );
                return Err(Error::new(Kind::Busy, context));
            }
            disk::create_private_dir(&path, owner)?;
            let lock = match Lock::try_take_directory(&path) {
                // The sweep has removed it, before it was locked.
                Err(_) if !is_there(&path)? => continue,
                taken => taken?,
            };
            if let Some(lock) = lock.filter(|_| matches!(is_there(&path), Ok(true))) {
                return Ok(Scratch { path, owner, lock });
            }
        }
        Err(Error::new(Kind::Busy, format!("another process uses {}", path.display())))
    }

    /// Step 3; returns the database directory.
    fn fill(
        &self,
        (whole, databases): (&Path, &Databases),
        options: &DrillOptions<'_>,
        control: &Control,
    ) -> Result<PathBuf> {
        let node = self.path.join(DRILL_NODE);
        disk::create_dir(&node, self.owner)?;
        control.set_reserve(RESERVE_BYTES);
        let filling = Filling { copier: Copier { owner: self.owner, control }, copy: options.copy, databases };
        restore::fill(whole, &chainweb::place_in(&node), filling).map(|_| node)
    }

    fn remove(self) -> Result<()> {
        disk::remove_tree(&self.path, &|| true).map(|_| ())
    }
}

/// What would show that a file was changed.
#[derive(PartialEq, Eq)]
struct State {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    mode: u32,
    owner: (u32, u32),
}

/// The state of a file, and what also changes when a link to it is made or removed.
struct Found {
    state: State,
    changed: (i64, i64),
    links: u64,
}

/// The files of a backup by their path, `0/rocksDb/000012.sst`.
type Files = BTreeMap<String, Found>;

/// What was there before the databases were used.
struct Before {
    states: Files,
    others: Vec<BackupId>,
}

/// The states of all files of a backup.
fn states(whole: &Path) -> Result<Files> {
    let mut states = BTreeMap::new();
    for directory in DIRECTORIES {
        let path = whole.join(directory);
        if look(&path)?.is_none() {
            continue;
        }
        let failed = || format!("cannot list {}", path.display());
        for entry in nofollow::entries(&path).context(failed)? {
            let name = entry.context(failed)?.0;
            let Some(meta) = look(&path.join(&name))? else { continue };
            let state = State {
                inode: meta.ino(),
                bytes: meta.len(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
            };
            let found = Found { state, changed: (meta.ctime(), meta.ctime_nsec()), links: meta.nlink() };
            states.insert(chainweb::path_in(directory, &name.to_string_lossy()), found);
        }
    }
    Ok(states)
}

/// The other backups, sorted: a backup that comes or goes gives its files names, or takes them.
fn others(held: &Held) -> Result<Vec<BackupId>> {
    let mut ids = held.catalog.ids()?;
    ids.sort_unstable();
    Ok(ids)
}

impl Before {
    /// What shows that a file is not as before; `None` if nothing does. A new file is no change: the service may write checksums
    /// meanwhile.
    fn changed(&self, held: &Held, whole: &Path, control: &Control) -> Result<Option<String>> {
        let after = states(whole)?;
        let is_ours = |path: &str| path.rsplit('/').next().is_some_and(sums::is_ours);
        let mut doubtful = Vec::new();
        for (path, before) in self.states.iter().filter(|(path, _)| !is_ours(path)) {
            match after.get(path) {
                Some(now) if now.state == before.state => {
                    if now.changed != before.changed && now.links == before.links {
                        doubtful.push((path.as_str(), now.state.bytes));
                    }
                }
                _ => return Ok(Some(format!("{path} of the backup was changed"))),
            }
        }
        if doubtful.is_empty() {
            return Ok(None);
        }
        let (mut known, mut left_bytes) = (known_sums(held, whole, &doubtful)?, MAX_COMPARED_BYTES);
        let mut open = None;
        for (path, bytes) in doubtful {
            match known.remove(path) {
                Some(expected) if bytes <= left_bytes => {
                    left_bytes -= bytes;
                    if sum::of(&held.path.join(path), PageCache::Unchanged, control)? != expected {
                        return Ok(Some(format!("{path} of the backup was changed")));
                    }
                }
                _ => open = open.or(Some(path)),
            }
        }
        let came_or_went = others(held)? != self.others || held.catalog.running()?.is_some();
        Ok(open
            .filter(|_| !came_or_went)
            .map(|path| format!("{path} of the backup may have been changed: it was written to, or linked")))
    }
}

/// The checksums of these files, as far as they are known.
fn known_sums<'a>(held: &Held, whole: &Path, wanted: &[(&'a str, u64)]) -> Result<BTreeMap<&'a str, Sum>> {
    let mut known = BTreeMap::new();
    let find = |path: &str| wanted.iter().map(|(wanted, _)| *wanted).find(|wanted| *wanted == path);
    for directory in DIRECTORIES {
        let listed = sums_list::each(&whole.join(directory), &mut |_, line| {
            let (name, sum) = line.unzip();
            let path = name.and_then(|name| find(&chainweb::path_in(directory, name)));
            known.extend(path.zip(sum));
            Ok(true)
        });
        match listed {
            // A list that is none names no file.
            Err(e) if e.kind() == Kind::Damaged => {}
            listed => drop(listed?),
        }
    }
    let path = held.path.join(MANIFEST_FILE);
    if held.found.record.is_some() && is_there(&path)? {
        let failed = || format!("cannot read {}", path.display());
        let manifest = nofollow::open_regular(&path).context(failed)?;
        let mut take = |entry: Entry<String>| known.extend(find(&entry.path).zip(entry.blake2b));
        manifest::read_each(manifest, &mut take).context(failed)?;
    }
    Ok(known)
}
