//! Chooses whether a copy of a database is an increment of the same database in an earlier backup: a clone of it with other blocks
//! (`disk::increment`), or a delta pair on it (`delta`).
//!
//! The choice has no influence on the content: an increment has the content of the snapshot, whatever the earlier file is. If anything
//! is odd, there is none, and the database is copied as a whole, in the same read transaction: an earlier database of another page size,
//! one that cannot be cloned, linked or read, one that is damaged, a WAL with too many frames. The reason is in the log and in the record.

use std::path::Path;

use crate::capture::sqlite::attempt::{Attempt, Burden, EarlierDatabase, How, Lost, Made, Written};
use crate::capture::sqlite::delta::{self, Delta};
use crate::capture::sqlite::snapshot::Snapshot;
use crate::disk::increment::{self, Earlier, Incremented, Refusal, Source};
use crate::disk::unsynced::Unsynced;
use crate::error::Result;
use crate::format::record::Method;

/// The place of the page size in a database's header.
pub(crate) const PAGE_SIZE_AT: u64 = 16;

/// The earlier database, if an increment may still be made of it.
pub(crate) fn base_of<'a>(how: &How<'a>, burden: &Burden) -> Option<&'a EarlierDatabase> {
    how.base.filter(|_| burden.refusal.is_none())
}

/// Notes that no increment is made, and why.
pub(crate) fn refuse(database: &Path, burden: &mut Burden, refusal: Refusal) {
    log::warn!("no increment database={} reason={:?}", database.display(), refusal.why);
    burden.refusal = Some(refusal);
}

/// Makes the new file `to`, not yet synced, with the content of `snapshot`, whose header has this page size. `None`, and no file is
/// left, if it must be copied as a whole.
pub(crate) fn attempt(
    (database, page_size): (&Path, [u8; 2]),
    snapshot: &mut Snapshot<'_>,
    to: &Path,
    (how, burden): (&How<'_>, &mut Burden),
    watch: &dyn Fn() -> Result<()>,
) -> Attempt<Option<(Made, Unsynced)>> {
    let Some(base) = base_of(how, burden) else { return Ok(None) };
    if base.page_size != page_size {
        let why = format!("the database in backup {} has another page size", base.id);
        refuse(database, burden, Refusal::new(why));
        return Ok(None);
    }
    let made = match &base.linkable {
        None => clone(base, snapshot, to, how, watch),
        Some(linkable) => delta::make(how.copier, (base, linkable), snapshot, to, watch).map(|made| {
            made.map(|Delta { unsynced, sums, pair }| {
                let written = Written { bytes: pair.wal_bytes, sums, pair: Some(pair) };
                (Made { method: Method::Delta, increment: Some(written) }, unsynced)
            })
        }),
    };
    let refusal = match made {
        Ok(Ok(made)) => return Ok(Some(made)),
        Ok(Err(refusal)) => refusal,
        Err(e) if snapshot.is_broken => return Err(Lost::Raced(e.chain())),
        Err(e) => return Err(e.into()),
    };
    let why = format!("the database in backup {}: {}", base.id, refusal.why);
    refuse(database, burden, Refusal { why, ..refusal });
    Ok(None)
}

/// Makes an increment that is a clone of the earlier database.
fn clone(
    base: &EarlierDatabase,
    snapshot: &mut Snapshot<'_>,
    to: &Path,
    how: &How<'_>,
    watch: &dyn Fn() -> Result<()>,
) -> Result<std::result::Result<(Made, Unsynced), Refusal>> {
    let earlier = Earlier { file: &base.file, bytes: base.bytes, sums: base.sums.as_ref() };
    let bytes = snapshot.bytes();
    Ok(match increment::make(how.copier, &earlier, Source { from: snapshot, bytes }, to, watch)? {
        Incremented::Done(done) => {
            let written = Written { bytes: done.written_bytes, sums: done.sums, pair: None };
            Ok((Made { method: Method::Increment, increment: Some(written) }, done.unsynced))
        }
        Incremented::CannotClone => Err(Refusal::new("its blocks cannot be shared on this file system")),
        Incremented::Refused(refusal) => Err(refusal),
    })
}
