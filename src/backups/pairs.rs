//! Checks the delta pairs of a finished backup (see `pair`), and restores each as an ordinary file.
//!
//! What tells that a pair is whole is in two sealed files of the backup: the record has sizes, the time at which the base was written,
//! and the last frame of the WAL; `pact-sums.json` has the sums of the base and of the database that both are together. A backup with
//! pairs and without these sums is damaged: nothing else would notice a WAL that is missing a part.
//!
//! - **Quick**: the guard is there and empty; the WAL has its size, and its header, first and last frame are those of the record. If the
//!   base has another time than in the record, it is read and compared with its sums: a copy without times is no damage.
//! - **Deep**: also every frame, and the sums of what both are together. (Those of the base are compared as those of all databases.)
//! - **Restore**: the same as deep while the target is written, in one reading.
//!
//! Invariants: nothing in a backup is changed. What a restore writes has the sums that were computed from the node's database.

use std::collections::BTreeMap;
use std::path::Path;

use crate::backups::verification::Verification;
use crate::capture::sqlite::delta::has_time_of;
use crate::capture::sqlite::pair::{self, Files, Fold};
use crate::chainweb::{self, SQLITE};
use crate::config::Depth;
use crate::control::Control;
use crate::database_files::{shm_of, wal_of};
use crate::disk::copy::{self, Copier};
use crate::disk::nofollow;
use crate::disk::piece_sums::{PieceSums, SummedReader};
use crate::disk::unsynced::Unsynced;
use crate::error::{Error, IoContext, Kind, Result};
use crate::fault::Fault;
use crate::format::layout::PACT_SUMS_FILE;
use crate::format::pact_sums::PactSums;
use crate::format::record::{PactPart, Pair, Record};

/// The files of a database in a backup and their sizes: one, or the two of a pair.
pub(crate) fn files_of(part: &PactPart) -> Vec<(String, u64)> {
    let name = chainweb::path_in(SQLITE, &part.file);
    let wal = part.pair.as_ref().map(|pair| (path_of_wal(&name), pair.wal_bytes));
    [(name, part.file_bytes())].into_iter().chain(wal).collect()
}

/// The path of the WAL of a database, both in the form of a list of files.
fn path_of_wal(database: &str) -> String {
    wal_of(Path::new(database)).display().to_string()
}

fn pairs_of(record: &Record) -> impl Iterator<Item = (&PactPart, &Pair)> {
    record.pact.iter().filter_map(|part| Some((part, part.pair.as_ref()?)))
}

/// The quick check of all pairs of the backup in `path`. The caller has compared names and sizes with the manifest.
pub(crate) fn check(
    path: &Path,
    record: &Record,
    depth: Depth,
    result: &mut Verification,
    control: &Control,
) -> Result<()> {
    let mut sums = None;
    for (part, pair) in pairs_of(record) {
        let name = chainweb::path_in(SQLITE, &part.file);
        let (database, wal) = (path.join(&name), path_of_wal(&name));
        if let Some(why) = guard_fault(&database)? {
            result.fault(shm_of(Path::new(&name)).display().to_string(), why);
        }
        let sums = match &mut sums {
            Some(sums) => sums,
            none => none.insert(PactSums::require(path, &record.id)?),
        };
        let (Some(base), Some(_)) = (sums.files.get(&part.file), sums.folds.get(&part.file)) else {
            if !result.names(PACT_SUMS_FILE) {
                let why =
                    format!("it is missing or damaged, or lacks {}, a pair, which nothing else proves", part.file);
                result.fault(PACT_SUMS_FILE, why);
            }
            continue;
        };
        if !result.names(&wal)
            && let Some(why) = result.read(&wal, pair::glance(&database, part, pair, base))?.flatten()
        {
            result.fault(wal, why);
        }
        if depth == Depth::Quick && !result.names(&name) && !has_its_time(&database, pair)? {
            let found = result.read(&name, PieceSums::of_file(&database, control))?;
            let difference = found.and_then(|found| base.difference(&found));
            difference.into_iter().for_each(|why| result.fault_of_content(Fault { file: name.clone(), why }));
        }
    }
    Ok(())
}

/// The deep part of the check: compares what each pair is together with its sums.
pub(crate) fn check_folds(
    (record, sums, path): (&Record, &PactSums, &Path),
    result: &mut Verification,
    control: &Control,
) -> Result<()> {
    for (part, pair) in pairs_of(record) {
        let name = chainweb::path_in(SQLITE, &part.file);
        let (database, wal) = (path.join(&name), path_of_wal(&name));
        if result.names(&name) || result.names(&wal) {
            continue;
        }
        let Some(expected) = sums.folds.get(&part.file) else { continue };
        let failed = || format!("cannot read {}", database.display());
        let files = Files::open(&database)?;
        let why = match Fold::begin(&files, part, pair) {
            Err(unread) => result.read(&wal, unread.fault(&failed))?,
            Ok(mut fold) => {
                let found = PieceSums::of_reader(&mut fold, part.bytes, &failed, control);
                match fold.fault() {
                    Some(why) => Some(why),
                    None => {
                        let found = result.read(&wal, found)?;
                        let difference = found.and_then(|found| expected.difference(&found));
                        difference.map(|why| format!("with it over the base, {why}"))
                    }
                }
            }
        };
        why.into_iter().for_each(|why| result.fault(wal.clone(), why));
    }
    Ok(())
}

/// The fault of the guard of a database, in words.
fn guard_fault(database: &Path) -> Result<Option<String>> {
    let guard = shm_of(database);
    let failed = || format!("cannot look at {}", guard.display());
    let why = match nofollow::look(&guard).context(failed)? {
        None => "it is missing: make this directory again, it keeps SQLite from writing to the base",
        Some(meta) if !meta.is_dir() => {
            "it is no directory: a program has opened the database here; remove it, and make an empty directory"
        }
        Some(_) if nofollow::entries(&guard).context(failed)?.next().is_some() => "it is not empty",
        Some(_) => return Ok(None),
    };
    Ok(Some(why.to_owned()))
}

/// Whether the base has the time of the record; one that is missing is reported elsewhere.
fn has_its_time(database: &Path, pair: &Pair) -> Result<bool> {
    let meta = nofollow::look(database).context(|| format!("cannot look at {}", database.display()))?;
    Ok(meta.is_none_or(|meta| has_time_of(&meta, pair)))
}

/// What a restore must know of the Pact databases of a backup.
#[derive(Debug, Default)]
pub(crate) struct Databases(BTreeMap<String, Database>);

/// One of them.
#[derive(Debug)]
struct Database {
    part: PactPart,
    /// The sums of the fold, if it is a pair.
    sums: Option<PieceSums>,
}

/// A pair that a restore makes one file of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ToFold<'a> {
    pub(crate) part: &'a PactPart,
    pub(crate) pair: &'a Pair,
    /// The sums of the file, if they are known.
    pub(crate) sums: Option<&'a PieceSums>,
}

impl ToFold<'_> {
    /// The size of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.part.bytes
    }
}

impl Databases {
    /// Those of the backup in `path`; none is known of a foreign one, which is restored file by file.
    pub(crate) fn of(path: &Path, record: Option<&Record>) -> Databases {
        let Some(record) = record else { return Databases::default() };
        let has_pairs = pairs_of(record).next().is_some();
        let mut sums = if has_pairs { PactSums::read(path, &record.id) } else { PactSums::default() };
        let mut one = |part: &PactPart| Database { part: part.clone(), sums: sums.folds.remove(&part.file) };
        Databases(record.pact.iter().map(|part| (part.file.clone(), one(part))).collect())
    }

    /// The permissions that the file of this name had at the node, if it has others in the backup.
    pub(crate) fn mode_of(&self, name: &str) -> Option<u32> {
        self.0.get(name)?.part.mode
    }

    /// The pair whose base has this name.
    pub(crate) fn pair_of(&self, name: &str) -> Option<ToFold<'_>> {
        let Database { part, sums } = self.0.get(name)?;
        Some(ToFold { part, pair: part.pair.as_ref()?, sums: sums.as_ref() })
    }
}

/// Makes the new file `to`, not yet synced, of the pair whose base is `from`.
///
/// # Errors
/// [`Kind::Damaged`] if it does not become the database that was backed up.
pub(crate) fn fold(copier: Copier<'_>, from: &Path, to: &Path, wanted: ToFold<'_>) -> Result<Unsynced> {
    let ToFold { part, pair, sums } = wanted;
    let damaged = |why: &str| {
        let context =
            format!("{} with {} over it is not what was backed up: {why}", from.display(), wal_of(from).display());
        Error::new(Kind::Damaged, context)
    };
    let failed = || format!("cannot read {}", wal_of(from).display());
    let expected = sums.ok_or_else(|| damaged("its sums are missing or damaged"))?;
    let files = Files::open(from)?;
    let mut fold = match Fold::begin(&files, part, pair) {
        Ok(fold) => fold,
        Err(unread) => return Err(damaged(&unread.fault(&failed)?)),
    };
    let mut reader = SummedReader::new(&mut fold);
    let copied = copy::copy(copier, &mut reader, part.bytes, to, &|| Ok(()));
    let found = reader.finish();
    if let Some(why) = fold.fault() {
        return Err(damaged(&why));
    }
    let copied = copied?;
    match expected.difference(&found) {
        None => Ok(copied),
        Some(why) => Err(damaged(&why)),
    }
}
