//! Makes delta pairs (see `pair`): a second name for a database of an earlier backup, and a WAL with the pages that differ from it.
//!
//! ```text
//! 1  the guard, an empty directory that is read only: from now on no SQLite writes to the base under this name
//! 2  the name of the database: a hard link to the base
//! 3  window by window: read the snapshot, read the base, add each page that differs to the WAL
//! 4  the caller checks that the snapshot was held, syncs the WAL, and has it read again (`pair::read_again`)
//! ```
//! Why the pair is the snapshot: each of its pages was read and is equal to that of the base, or is in the WAL. A page of the base that
//! has rotted differs from the snapshot. It would be healed for this backup, but not for the others on the base: the sums of the base
//! tell it from a page that has changed, as for an increment (`disk::increment`). Then there is no pair, and the caller copies the whole
//! database, which becomes the next base.
//!
//! SQLite neither reads nor writes the page that has the byte at which it locks (1 GiB). The WAL never has it: the database that the pair
//! is has there what the base has.
//!
//! Invariants: the base is only read; nothing changes its owner, mode or times. Without a pair its three names are removed; after an
//! error the caller removes them.

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::capture::sqlite::attempt::{EarlierDatabase, Linkable};
use crate::capture::sqlite::pair::{chain_text, first_salt};
use crate::capture::sqlite::snapshot::Snapshot;
use crate::capture::sqlite::wal::{Composer, Header, Salts};
use crate::control::Control;
use crate::database_files::{shm_of, wal_of};
use crate::disk;
use crate::disk::copy::Copier;
use crate::disk::fault_gate::pass;
use crate::disk::file_id::FileId;
use crate::disk::increment::{ComparedPieces, Refusal, RoomCheck, Writing};
use crate::disk::nofollow;
use crate::disk::piece_sums::PieceSums;
use crate::disk::quiet_reader::{Limited, PairSink, QuietReader, each_window_of_two};
use crate::disk::unsynced::Unsynced;
use crate::error::{Error, IoContext, Kind, Result, failed};
use crate::format::record::Pair;

/// How many bytes are collected before they are written.
const BUFFER_BYTES: usize = 256 * 1024;

/// The byte at which SQLite locks a database (sqlite.org/fileformat2.html, section 1.5).
const LOCK_BYTE: u64 = 1 << 30;

/// A new pair.
#[derive(Debug)]
pub(crate) struct Delta {
    /// The WAL.
    pub(crate) unsynced: Unsynced,
    /// The sums of the database that the pair is.
    pub(crate) sums: PieceSums,
    pub(crate) pair: Pair,
}

/// Makes the pair with the name `to`, which has the content of `snapshot`. Counts the bytes of the snapshot on the control, and stops as a
/// copy does. An error of the snapshot, of the control, of `watch`, or of writing, is an error.
pub(crate) fn make(
    copier: Copier<'_>,
    (base, linkable): (&EarlierDatabase, &Linkable),
    snapshot: &mut Snapshot<'_>,
    to: &Path,
    watch: &dyn Fn() -> Result<()>,
) -> Result<std::result::Result<Delta, Refusal>> {
    let Some(shape) = Shape::of(base, snapshot.bytes()) else {
        let why = "the size of a database is no whole number of pages, or the sums of the earlier one are missing";
        return Ok(Err(Refusal::new(why)));
    };
    disk::create_read_only_dir(&shm_of(to), copier.owner)?;
    let made = match link(base, linkable, to)? {
        Some(refusal) => Err(refusal),
        None => write_wal(copier, (base, linkable, &shape), snapshot, &wal_of(to), watch)?,
    };
    let made = made.map(|Delta { unsynced, sums, pair }| {
        let (base_modified_seconds, base_modified_nanoseconds) = linkable.modified;
        let deltas_bytes = linkable.deltas_bytes.saturating_add(pair.wal_bytes);
        let deltas_count = linkable.deltas_count.saturating_add(1);
        let pair = Pair { base_modified_seconds, base_modified_nanoseconds, deltas_bytes, deltas_count, ..pair };
        Delta { unsynced, sums, pair }
    });
    if made.is_err() {
        remove(to)?;
    }
    Ok(made)
}

/// Step 3, into the new file `to`.
fn write_wal(
    copier: Copier<'_>,
    (base, linkable, shape): (&EarlierDatabase, &Linkable, &Shape<'_>),
    snapshot: &mut Snapshot<'_>,
    to: &Path,
    watch: &dyn Fn() -> Result<()>,
) -> Result<std::result::Result<Delta, Refusal>> {
    let out = disk::create_new("delta", to, copier.owner)?;
    pass("patch", to).context(|| failed("write", to))?;
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    let header = Header::new(shape.page_bytes, salts_on(shape.sums)).expect("the size of a page was checked");
    let comparing = Comparing {
        out: &out,
        to,
        control: copier.control,
        watch,
        base_bytes: base.bytes,
        max_wal_bytes: linkable.max_wal_bytes,
        shape,
        composer: Composer::begin(header, &mut buffer),
        buffer,
        written: 0,
        writing: Writing::default(),
        done: 0,
        pieces: ComparedPieces::default(),
        refusal: None,
        room: RoomCheck::new(),
    };
    let compared = comparing.run(snapshot, (&mut QuietReader::past_cache(&base.file), base.bytes))?;
    Ok(compared.map(|(pair, sums)| Delta { unsynced: Unsynced::of(out, to, pair.wal_bytes), sums, pair }))
}

/// Removes the three names of a pair.
pub(crate) fn remove(to: &Path) -> Result<()> {
    disk::remove_file(&wal_of(to))?;
    disk::remove_file(to)?;
    disk::remove_tree(&shm_of(to), &|| true).map(|_| ())
}

/// What is known before the comparison.
struct Shape<'a> {
    page_bytes: u32,
    pages_count: u32,
    sums: &'a PieceSums,
}

impl<'a> Shape<'a> {
    /// `None` if there can be no pair.
    fn of(base: &'a EarlierDatabase, bytes: u64) -> Option<Shape<'a>> {
        let page_bytes = match u16::from_be_bytes(base.page_size) {
            1 => 65536,
            bytes => u32::from(bytes),
        };
        let is_size = page_bytes.is_power_of_two() && (512..=65536).contains(&page_bytes);
        let is_whole = |bytes: u64| is_size && bytes > 0 && bytes.is_multiple_of(u64::from(page_bytes));
        if !is_whole(bytes) || !is_whole(base.bytes) {
            return None;
        }
        let pages_count = u32::try_from(bytes / u64::from(page_bytes)).ok().filter(|count| *count < u32::MAX)?;
        Some(Shape { page_bytes, pages_count, sums: base.sums.as_ref()? })
    }
}

/// The identity of the base, and a number that no other WAL on it has.
fn salts_on(base: &PieceSums) -> Salts {
    let mut salts = [0; 8];
    salts[..4].copy_from_slice(&first_salt(base));
    salts[4..].copy_from_slice(&fastrand::u32(..).to_be_bytes());
    salts
}

/// Gives the base its new name.
fn link(base: &EarlierDatabase, linkable: &Linkable, to: &Path) -> Result<Option<Refusal>> {
    let cannot = [libc::EXDEV, libc::EPERM, libc::EACCES, libc::EMLINK, libc::ENOENT];
    match disk::link(&linkable.path, to) {
        Ok(()) => {}
        Err(e) if e.raw_os_error().is_some_and(|errno| cannot.contains(&errno)) => {
            return Ok(Some(Refusal::new(format!("it cannot be linked: {e}"))));
        }
        Err(e) => return Err(Error::io(failed("link", to), e)),
    }
    let linked = nofollow::look(to).context(|| failed("look at", to))?;
    let opened = base.file.metadata().context(|| failed("look at", to))?;
    let is_same = linked.is_some_and(|linked| FileId::from(&linked) == FileId::from(&opened));
    Ok((!is_same).then(|| Refusal::new("another file has replaced it")))
}

/// When a file was last written to: seconds and nanoseconds.
pub(crate) fn modified(meta: &Metadata) -> (i64, i64) {
    (meta.mtime(), meta.mtime_nsec())
}

/// Whether the base of a pair has the time of the record. An archive may keep only the seconds.
pub(crate) fn has_time_of(meta: &Metadata, pair: &Pair) -> bool {
    let (seconds, nanoseconds) = modified(meta);
    seconds == pair.base_modified_seconds && [0, pair.base_modified_nanoseconds].contains(&nanoseconds)
}

/// Step 3.
struct Comparing<'a> {
    out: &'a File,
    /// The WAL.
    to: &'a Path,
    control: &'a Control,
    watch: &'a dyn Fn() -> Result<()>,
    base_bytes: u64,
    max_wal_bytes: u64,
    shape: &'a Shape<'a>,
    composer: Composer,
    /// What is not written yet.
    buffer: Vec<u8>,
    written: u64,
    writing: Writing,
    /// The offset up to which the snapshot was compared.
    done: u64,
    pieces: ComparedPieces,
    refusal: Option<Refusal>,
    room: RoomCheck,
}

impl PairSink for Comparing<'_> {
    fn proceed(&mut self) -> Result<()> {
        self.control.check()?;
        (self.watch)()?;
        self.room.check(self.to, self.written, self.control)
    }

    fn take(&mut self, window: &[u8], base: io::Result<&[u8]>) -> Result<()> {
        let old = self.old(window.len(), base)?;
        let page_bytes = self.shape.page_bytes as usize;
        let new = without_lock_page(window, old, self.done, page_bytes);
        let new = &*new;
        if self.done == 0 || old != new {
            let before_count = self.done / page_bytes as u64;
            for (n, page) in new.chunks(page_bytes).enumerate() {
                let number = before_count + n as u64 + 1;
                let is_equal = old.get(n * page_bytes..n * page_bytes + page.len()) == Some(page);
                if (is_equal && number > 1) || (number - 1) * page_bytes as u64 == LOCK_BYTE {
                    continue;
                }
                let number = u32::try_from(number).expect("the number of pages was checked");
                self.composer.add(number, page, &mut self.buffer);
            }
        }
        let fault = self.pieces.take(old, new, Some(self.shape.sums));
        self.done += window.len() as u64;
        if let Some(refusal) = fault {
            return Err(self.refuse(refusal));
        }
        if self.composer.bytes() > self.max_wal_bytes {
            let why = format!("more than {} bytes of it have changed", self.max_wal_bytes);
            return Err(self.refuse(Refusal::new(why)));
        }
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        self.control.add_done(window.len() as u64);
        self.control.throttle(window.len() as u64)
    }
}

impl Comparing<'_> {
    /// Compares all of it; returns what is known of the pair by then, and the sums of the snapshot.
    fn run(
        mut self,
        snapshot: &mut Snapshot<'_>,
        base: Limited<'_>,
    ) -> Result<std::result::Result<(Pair, PieceSums), Refusal>> {
        let (bytes, to) = (snapshot.bytes(), self.to);
        let unreadable = || format!("cannot read the source of {}", to.display());
        let result = each_window_of_two((snapshot, bytes), base, &unreadable, &mut self);
        if let Some(refusal) = self.refusal.take() {
            return Ok(Err(refusal));
        }
        result?;
        if self.done != bytes {
            return Ok(Err(Refusal::new(format!("the source ended after {} of {bytes} bytes", self.done))));
        }
        let Comparing { out, composer, mut buffer, written, mut writing, pieces, shape, base_bytes, .. } = self;
        let (frames_count, chain) = composer.end(shape.pages_count, &mut buffer);
        writing.write(out, &buffer, written).context(|| failed("write", to))?;
        let pair = Pair {
            base_bytes,
            wal_bytes: written + buffer.len() as u64,
            frames_count,
            pages_count: shape.pages_count,
            last_checksum: chain_text(chain),
            ..Pair::default()
        };
        Ok(Ok((pair, pieces.finish())))
    }

    fn flush(&mut self) -> Result<()> {
        self.writing.write(self.out, &self.buffer, self.written).context(|| failed("write", self.to))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// What the base has in a window of `window_bytes` bytes.
    fn old<'w>(&mut self, window_bytes: usize, base: io::Result<&'w [u8]>) -> Result<&'w [u8]> {
        let expected = self.base_bytes.saturating_sub(self.done).min(window_bytes as u64);
        match base {
            Ok(base) if base.len() as u64 >= expected => Ok(&base[..expected as usize]),
            Ok(base) => {
                let why = format!("it ends at {}", self.done + base.len() as u64);
                Err(self.refuse(Refusal::damaged(why, false)))
            }
            // A verification finds out whether the disk has lost it.
            Err(e) => Err(self.refuse(Refusal::new(format!("it cannot be read: {e}")))),
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> Error {
        let error = Error::new(Kind::Changed, refusal.why.clone());
        self.refusal = Some(refusal);
        error
    }
}

/// The window at `at`, with what the base has in place of the page with the byte at which SQLite locks.
fn without_lock_page<'a>(window: &'a [u8], old: &[u8], at: u64, page_bytes: usize) -> Cow<'a, [u8]> {
    let end = at + window.len() as u64;
    if !(at..end).contains(&LOCK_BYTE) {
        return Cow::Borrowed(window);
    }
    let start = (LOCK_BYTE - at) as usize;
    let page = start..(start + page_bytes).min(window.len());
    let mut window = window.to_owned();
    window[page.clone()].fill(0);
    if let Some(old) = old.get(page.clone()) {
        window[page].copy_from_slice(old);
    }
    Cow::Owned(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_with_the_lock_byte_is_that_of_the_base() {
        let window = vec![7; 8192];
        assert!(matches!(without_lock_page(&window, &[], 0, 1024), Cow::Borrowed(_)));
        assert!(matches!(without_lock_page(&window, &[], LOCK_BYTE - 8192, 1024), Cow::Borrowed(_)));
        let at = LOCK_BYTE - 4096;
        for (old_bytes, expected) in [(0, 0), (4096, 0), (5120, 9), (8192, 9)] {
            let replaced = without_lock_page(&window, &vec![9; old_bytes], at, 1024);
            assert_eq!((&replaced[..4096], &replaced[5120..]), (&window[..4096], &window[5120..]));
            assert_eq!(replaced[4096..5120], [expected; 1024]);
        }
    }
}
