//! The only file that calls the `rocksdb` crate.
//!
//! Makes a checkpoint through the node's own open handle, reads a finished copy, and opens the copy of a drill. A finished copy is
//! opened read-only and without a LOG, so that no file appears in the backup. If possible it is opened as the node opens it, with all
//! column families and without two-phase commit: otherwise RocksDB recovers and refuses other things.
//!
//! Invariants
//! - A backup is never opened read-write.
//! - Damage is what RocksDB finds in the content, or a missing file. A file that the disk may have lost is told apart from it: one error
//!   may pass. Another error of the operating system, such as too many open files, says nothing about the copy.
//!
//! A build without the feature `engine` uses `no_engine` instead.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{DB, DEFAULT_COLUMN_FAMILY_NAME, Direction, ErrorKind, IteratorMode, Options, ReadOptions};

use crate::capture::rocksdb::chain_cut::{Cut, Heights, Tip};
use crate::capture::rocksdb::options_file;
use crate::chainweb::stored::Entry;
use crate::chainweb::tables::{CUTS, CUTS_END, OPENED, Table};
use crate::control::Control;
use crate::database_files::CURRENT;
use crate::disk;
use crate::disk::medium;
use crate::disk::nofollow;
use crate::error::{Error, IoContext, Kind, Result};
use crate::fault::{Fault, Inspected, table_in};

/// An open database.
pub(crate) type Db = DB;

/// The read-ahead of a full read.
const READAHEAD_BYTES: usize = 2 * 1024 * 1024;

/// How much is read between two waits for the limit of bytes per second. Keys and values are counted, which are larger than the
/// compressed data on the disk.
const PACED_BYTES: u64 = 256 * 1024;

/// How many files of a finished copy RocksDB may have open, so that a terabyte does not need thousands of descriptors.
const MAX_OPEN_FILES: i32 = 64;

/// RocksDB's property for the size of all SSTs, of every version.
const TOTAL_SST_BYTES: &str = "rocksdb.total-sst-files-size";

/// Fails with [`Kind::Usage`] if this program was built without RocksDB, which `what` needs. This build has it.
pub(crate) fn require(_what: &str) -> Result<()> {
    Ok(())
}

/// The directory of an open database.
pub(crate) fn path(db: &Db) -> &Path {
    db.path()
}

/// The size of all its SSTs.
pub(crate) fn sst_bytes(db: &Db) -> Result<u64> {
    let failed = |e| Error::new(Kind::Database, "cannot read the size of the SSTs from RocksDB").because(e);
    Ok(db.property_int_value(TOTAL_SST_BYTES).map_err(failed)?.unwrap_or(0))
}

/// Makes a checkpoint of an open database in the new directory `to`: flushes, links every SST and copies the rest.
pub(crate) fn checkpoint(db: &Db, to: &Path) -> Result<()> {
    disk::written_by_library(to)?;
    let failed = |e| Error::new(Kind::Database, format!("cannot make a checkpoint in {}", to.display())).because(e);
    let (parent, name) = (to.parent().unwrap_or(to), to.file_name().unwrap_or_default());
    let parent = Held::open(parent)?;
    Checkpoint::new(db).and_then(|c| c.create_checkpoint(parent.path.join(name))).map_err(failed)
}

/// A directory with a name that RocksDB's bindings accept (UTF-8) and that means this directory as long as it is open. By its own
/// name another one could be opened: an attacker may put a link in the place of each directory above, and RocksDB creates what
/// is missing, even if it only reads.
struct Held {
    path: PathBuf,
    _directory: File,
}

/// How the name of a [`Held`] directory begins.
const DESCRIPTORS: &str = "/proc/self/fd/";

impl Held {
    fn open(path: &Path) -> Result<Held> {
        let directory = nofollow::open_directory(path).context(|| format!("cannot open {}", path.display()))?;
        let path = PathBuf::from(format!("{DESCRIPTORS}{}", directory.as_raw_fd()));
        Ok(Held { path, _directory: directory })
    }
}

/// What RocksDB does with a damaged WAL, in the words of OPTIONS; its default is the first. The node's own choice decides whether
/// the node starts.
const RECOVERY_MODES: [&str; 4] =
    ["kPointInTimeRecovery", "kAbsoluteConsistency", "kTolerateCorruptedTailRecords", "kSkipAnyCorruptedRecords"];

/// Which column families of a finished copy are opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Families {
    All,
    /// The other ones may need comparators that this program does not have.
    Default,
}

/// A finished copy, open read-only.
struct Copy {
    db: DB,
    families: Vec<String>,
    _directory: Held,
}

impl Copy {
    /// Opens it in the first of these ways that RocksDB permits: as the node does, or with prepared transactions, or only the
    /// default column family. The inner error is RocksDB's.
    fn open(copy: &Path, ways: &[(Families, TwoPhase)]) -> Result<std::result::Result<Copy, rocksdb::Error>> {
        let failed = || format!("cannot look at {}", copy.display());
        let none = || Error::new(Kind::Damaged, format!("there is no RocksDB in {} (no file CURRENT)", copy.display()));
        if !nofollow::is_directory(copy).context(failed)? {
            return Err(none());
        }
        let directory = Held::open(copy)?;
        match directory.path.join(CURRENT).metadata() {
            Ok(meta) if meta.is_file() => {}
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(failed(), e)),
            _ => return Err(none()),
        }
        let named = options_file::option_in(copy, "wal_recovery_mode");
        let recovery =
            RECOVERY_MODES.into_iter().find(|mode| named.as_deref() == Some(mode)).unwrap_or(RECOVERY_MODES[0]);
        Ok(Copy::open_in(directory, ways, recovery))
    }

    fn open_in(
        directory: Held,
        ways: &[(Families, TwoPhase)],
        recovery: &str,
    ) -> std::result::Result<Copy, rocksdb::Error> {
        let all = DB::list_cf(&Options::default(), &directory.path)?;
        let mut ways = ways.iter().peekable();
        loop {
            let (families, two_phase) = ways.next().expect("the last way returns");
            let names = match families {
                Families::All => all.clone(),
                Families::Default => vec![DEFAULT_COLUMN_FAMILY_NAME.to_owned()],
            };
            match DB::open_cf_for_read_only(&read_only_options(*two_phase, recovery), &directory.path, &names, false) {
                Ok(db) => return Ok(Copy { db, families: names, _directory: directory }),
                // The copy cannot be opened in this way: try the next one.
                Err(e)
                    if matches!(e.kind(), ErrorKind::NotSupported | ErrorKind::InvalidArgument)
                        && ways.peek().is_some() => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Reads the newest cut in a finished copy, and whether the copy has the headers of the blocks `tips`; or returns why RocksDB cannot
/// read it.
///
/// # Errors
/// [`Kind::Io`] if the operating system does not let RocksDB read. So the others.
pub(crate) fn read_cut(copy: &Path, tips: &[Tip]) -> Result<Heights> {
    use {Families::*, TwoPhase::*};
    let cut = Copy::open(copy, &[(All, Off), (All, On), (Default, Off), (Default, On)])?.and_then(|copy| {
        let mut cut = newest_cut(&copy.db)?;
        if let Some(cut) = &mut cut {
            for tip in tips {
                cut.has_header.extend(has_header(&copy.db, tip)?.map(|has| (tip.chain, has)));
            }
        }
        Ok(cut)
    });
    heights(cut)
}

fn heights(cut: std::result::Result<Option<Cut>, rocksdb::Error>) -> Result<Heights> {
    match cut {
        Ok(cut) => Ok(Heights::Cut(cut)),
        Err(e) => match cause(&e) {
            Cause::Content => Ok(Heights::Damaged(reported(&e))),
            Cause::Disk => Ok(Heights::Unread(reported(&e))),
            Cause::System => Err(unread(&e)),
        },
    }
}

/// Opens the copy of a database in a drill as a node does, read-write, and closes it: RocksDB replays the WALs into new SSTs and
/// accepts a write. Returns its newest cut, or the damage. Never for a backup: RocksDB writes into the directory.
pub(crate) fn open_as_node(scratch: &Path) -> Result<Heights> {
    let directory = Held::open(scratch)?;
    let open = |two_phase| -> std::result::Result<DB, rocksdb::Error> {
        let text =
            format!("allow_2pc={};create_if_missing=false;disable_auto_compactions=true", two_phase == TwoPhase::On);
        let mut options = Options::default().get_options_from_string(text).expect("RocksDB knows these options");
        options.set_max_open_files(MAX_OPEN_FILES);
        options.set_max_file_opening_threads(1);
        let families = DB::list_cf(&options, &directory.path)?;
        DB::open_cf(&options, &directory.path, families)
    };
    let cut = open(TwoPhase::Off).or_else(|_| open(TwoPhase::On)).and_then(|db| {
        db.put(OPENED, b"")?;
        newest_cut(&db)
    });
    // Whatever the reason is, the drill has not passed.
    Ok(match cut {
        Ok(cut) => Heights::Cut(cut),
        Err(e) => Heights::Damaged(reported(&e)),
    })
}

fn newest_cut(db: &DB) -> std::result::Result<Option<Cut>, rocksdb::Error> {
    Ok(newest_in(db, CUTS, CUTS_END)?.and_then(|(key, value)| Cut::parse(&key, &value)))
}

/// The entry with the greatest key that begins with `prefix` and is less than `end`.
fn newest_in(db: &DB, prefix: &[u8], end: &[u8]) -> std::result::Result<Option<Entry>, rocksdb::Error> {
    let mut range = ReadOptions::default();
    range.set_iterate_upper_bound(end);
    let newest = db.iterator_opt(IteratorMode::End, range).next().transpose()?;
    let newest = newest.filter(|(key, _)| key.starts_with(prefix));
    Ok(newest.map(|(key, value)| (key.into_vec(), value.into_vec())))
}

/// Whether the database has the header of a block; `None` if it has no header of that chain at all.
fn has_header(db: &DB, tip: &Tip) -> std::result::Result<Option<bool>, rocksdb::Error> {
    let table = Table::Headers(tip.chain);
    let Some(key) = tip.hash.and_then(|hash| table.key(tip.height, &hash)) else { return Ok(None) };
    let prefix = table.prefix();
    let first = db.iterator(IteratorMode::From(&prefix, Direction::Forward)).next().transpose()?;
    if !first.is_some_and(|(first, _)| first.starts_with(&prefix)) {
        return Ok(None);
    }
    Ok(Some(db.get(key)?.is_some()))
}

/// A finished copy that is open to be read key by key.
pub(crate) struct Entries {
    copy: Copy,
}

impl Entries {
    /// Opens a finished copy.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if there is no RocksDB, or RocksDB reports damage; [`Kind::Io`] if the operating system does not let it read. So
    /// the others.
    pub(crate) fn open(copy: &Path) -> Result<Entries> {
        use {Families::*, TwoPhase::*};
        let opened = Copy::open(copy, &[(All, Off), (All, On), (Default, Off), (Default, On)])?;
        opened.map(|copy| Entries { copy }).map_err(|e| unread(&e))
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.copy.db.get(key).map_err(|e| unread(&e))
    }

    /// The entry with the greatest key that begins with `prefix` and is less than `end`.
    pub(crate) fn newest_in(&self, prefix: &[u8], end: &[u8]) -> Result<Option<Entry>> {
        newest_in(&self.copy.db, prefix, end).map_err(|e| unread(&e))
    }
}

/// Reads every block of every column family of a finished copy and checks its checksum. Reading of a column family ends at its
/// first damage.
pub(crate) fn inspect(copy: &Path, control: &Control) -> Result<Inspected> {
    use {Families::*, TwoPhase::*};
    let mut inspected = Inspected::default();
    let copy = match Copy::open(copy, &[(All, Off), (All, On)])? {
        Ok(copy) => copy,
        Err(e) => {
            inspected.take(&e);
            return Ok(inspected);
        }
    };
    let mut unpaced_bytes = 0;
    for family in &copy.families {
        let handle = copy.db.cf_handle(family);
        let handle = handle.ok_or_else(|| Error::new(Kind::Damaged, format!("column family {family} is missing")))?;
        let mut read = ReadOptions::default();
        read.set_verify_checksums(true);
        read.fill_cache(false);
        read.set_readahead_size(READAHEAD_BYTES);
        for entry in copy.db.iterator_cf_opt(handle, read, IteratorMode::Start) {
            match entry {
                Ok((key, value)) => {
                    inspected.keys_count += 1;
                    unpaced_bytes += (key.len() + value.len()) as u64;
                    if unpaced_bytes >= PACED_BYTES {
                        control.step();
                        control.check()?;
                        control.throttle(std::mem::take(&mut unpaced_bytes))?;
                    }
                }
                Err(e) => {
                    inspected.take(&e);
                    break;
                }
            }
        }
    }
    Ok(inspected)
}

impl Inspected {
    fn take(&mut self, e: &rocksdb::Error) {
        let list = if cause(e) == Cause::Content { &mut self.faults } else { &mut self.unread };
        list.push(reported(e));
    }
}

/// Why RocksDB cannot read a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The content is wrong, or a file is missing.
    Content,
    /// The disk has lost a part of a file.
    Disk,
    /// Another error of the operating system.
    System,
}

/// The cause of an error. RocksDB does not pass on the number of the operating system's error, only its words (`IOError` in its
/// `env/io_posix.cc`).
fn cause(e: &rocksdb::Error) -> Cause {
    let words: &str = e.as_ref();
    match e.kind() {
        ErrorKind::IOError if medium::is_lost_in_words(words) => Cause::Disk,
        ErrorKind::IOError if !words.contains("No such file or directory") => Cause::System,
        _ => Cause::Content,
    }
}

/// What RocksDB reports of a copy that it cannot read: the file, as far as it says, and the sentence.
fn reported(e: &rocksdb::Error) -> Fault {
    let what = if cause(e) == Cause::Content { "RocksDB reports damage" } else { "RocksDB cannot read it" };
    let why = without_descriptors(&format!("{what}: {e}"));
    Fault { file: table_in(&why).unwrap_or_default(), why }
}

/// The reason why RocksDB cannot read a finished copy.
fn unread(e: &rocksdb::Error) -> Error {
    let sentence = reported(e).to_string();
    match cause(e) {
        Cause::Content => Error::new(Kind::Damaged, sentence),
        Cause::Disk => medium::lost(sentence),
        Cause::System => Error::new(Kind::Io, sentence),
    }
}

/// A message of RocksDB with the plain names of its files, instead of those in a [`Held`] directory.
fn without_descriptors(message: &str) -> String {
    let mut parts = message.split(DESCRIPTORS);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches('/'));
    }
    plain
}

/// Whether transactions may be prepared and not yet committed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TwoPhase {
    Off,
    On,
}

/// Options that open a finished copy without creating a file in it.
fn read_only_options(two_phase: TwoPhase, recovery: &str) -> Options {
    let text = format!("allow_2pc={};wal_recovery_mode={recovery}", two_phase == TwoPhase::On);
    let mut options = Options::default().get_options_from_string(text).expect("RocksDB knows this option");
    options.set_max_open_files(MAX_OPEN_FILES);
    // By default RocksDB starts fifteen threads for a moment, and aborts the process if it cannot start them.
    options.set_max_file_opening_threads(1);
    // If the MANIFEST lists the WALs, RocksDB compares them with it. (Without this option, RocksDB 11.8 crashes with a null
    // pointer: a read-only database cannot clear the list.)
    options.set_track_and_verify_wals_in_manifest(true);
    // Our own logger drops all messages: the default one would create a LOG in the backup.
    options.set_info_logger(rocksdb::InfoLogger::new_callback_logger(rocksdb::LogLevel::Fatal, |_, _| {}));
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_plain_names() {
        let message = "IO error: No such file: /proc/self/fd/12/000005.sst: see /proc/self/fd/12/MANIFEST-000004";
        assert_eq!(without_descriptors(message), "IO error: No such file: 000005.sst: see MANIFEST-000004");
        assert_eq!(without_descriptors("Corruption"), "Corruption");
    }
}
