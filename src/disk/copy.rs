//! The copy engine: copies the bytes of one file to a new one, for RocksDB, SQLite and restore.
//!
//! A file is put into a backup in the cheapest sound way: as a hard link if no process ever writes to it (`disk::link`), as a
//! clone if the file system can share blocks, otherwise by read and write. `copy_file_range` is not used: between files of one
//! file system it may clone silently, and it cannot be paced.
//!
//! Invariants
//! - Only a new file is written to. Its descriptor is open until its fsync. The kernel reports the error of a write-back once,
//!   to the first call that waits for it, so an error of pacing is as serious as one of the fsync.
//! - Cancel, limit and `watch` are checked for every window, and `watch` every second while a limit slows a window down; the
//!   free space every [`LOOK_BYTES`] and every [`LOOK_INTERVAL`].
//! - On file systems that are good at it, data is written directly to the disk, one window at a time; on others through the page
//!   cache at the disk's pace. So the node's own fsync waits for little data of ours, and little of the copy is left in the
//!   page cache.
//! - A window of zeroes is not written: a hole of the source is one in the copy, except for less than a window at its ends.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::control::Control;
use crate::disk::nofollow;
use crate::disk::quiet_reader::{ALIGNMENT, QuietReader, Sink, each_window};
use crate::disk::sys::{self, Flush};
use crate::disk::unsynced::{PACE_BYTES, Unsynced, is_on_ext4_or_xfs};
use crate::disk::{Owner, create_new, remove_file, require_room};
use crate::error::failed;
use crate::error::{Error, IoContext, Kind, Result};

/// How much is copied between two checks of the free space.
const LOOK_BYTES: u64 = 8 * 1024 * 1024;

/// The longest time between two such checks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The smallest number of zeroes that becomes a hole.
const HOLE_BYTES: usize = 4096;

/// How much space is reserved at once; a multiple of a window.
const RESERVED_BYTES: u64 = 64 * 1024 * 1024;

/// The smallest and the largest range of a clone; both are multiples of every block size.
const MIN_CLONE_BYTES: u64 = 4 * 1024 * 1024;
const MAX_CLONE_BYTES: u64 = 1024 * 1024 * 1024;

/// How much is cloned to find out whether that is possible; a multiple of every block size.
const CLONE_TRIED_BYTES: u64 = 64 * 1024;

/// How long a writer of the source may wait for the clone of one range.
const MAX_STALL: Duration = Duration::from_millis(100);

/// What every copy of a job has in common.
#[derive(Clone, Copy)]
pub(crate) struct Copier<'a> {
    /// The owner of each new file; `None` keeps the owner that the kernel gives it.
    pub(crate) owner: Option<Owner>,
    /// Counts the bytes, limits the rate, and stops the copy.
    pub(crate) control: &'a Control,
}

/// Copies the first `limit_bytes` of a file (the whole file, if it is shorter) to a new file. Counts the bytes on `control`,
/// stops within one window if the job is cancelled or `watch` fails, and stops with [`Kind::NoSpace`] before the file system of
/// the copy falls below the reserve. Writes at the disk's pace, and leaves little of the copy in the page cache, which the node
/// needs.
pub(crate) fn copy(
    copier: Copier<'_>,
    from: &mut (dyn Read + Send),
    limit_bytes: u64,
    to: &Path,
    watch: &dyn Fn() -> Result<()>,
) -> Result<Unsynced> {
    let out = create_new("copy", to, copier.owner)?;
    let direct = limit_bytes > PACE_BYTES && goes_direct(&out);
    let mut copying = Copying {
        out: &out,
        to,
        control: copier.control,
        watch,
        limit_bytes,
        direct: direct && write_directly(&out).is_ok(),
        reserves: direct,
        done: 0,
        end: 0,
        reserved: 0,
        next_look: 0,
        looked: Instant::now(),
    };
    let unreadable = || format!("cannot read the source of {}", to.display());
    each_window(from, limit_bytes, &unreadable, &mut copying)?;
    let done = copying.finish()?;
    Ok(Unsynced::of(out, to, done))
}

/// Copies a file of `bytes` bytes that no process writes to. Fails with [`Kind::Damaged`] if the file is shorter.
pub(crate) fn copy_still(copier: Copier<'_>, from: &File, bytes: u64, to: &Path) -> Result<Unsynced> {
    let copied = copy(copier, &mut QuietReader::past_cache(from), bytes, to, &|| Ok(()))?;
    if copied.bytes == bytes {
        return Ok(copied);
    }
    let context = format!("the source of {} ends after {} of {bytes} bytes", to.display(), copied.bytes);
    Err(Error::new(Kind::Damaged, context))
}

/// A copy in progress.
struct Copying<'a> {
    out: &'a File,
    to: &'a Path,
    control: &'a Control,
    watch: &'a dyn Fn() -> Result<()>,
    limit_bytes: u64,
    /// Whether the copy is written past the page cache.
    direct: bool,
    /// Whether space is reserved before it is written to.
    reserves: bool,
    /// The offsets up to which the file was copied, written to, and reserved.
    done: u64,
    end: u64,
    reserved: u64,
    /// The offset of the next check of the free space, and the time of the last one.
    next_look: u64,
    looked: Instant,
}

impl Sink for Copying<'_> {
    fn proceed(&mut self) -> Result<()> {
        self.control.check()?;
        (self.watch)()?;
        if self.done >= self.next_look || self.looked.elapsed() >= LOOK_INTERVAL {
            require_room(self.to, self.control.reserve_bytes())?;
            (self.next_look, self.looked) = (self.done + LOOK_BYTES, Instant::now());
        }
        Ok(())
    }

    fn take(&mut self, window: &[u8]) -> Result<()> {
        if self.reserves && self.done >= self.reserved {
            self.reserve_next()?;
        }
        let bytes = window.len() as u64;
        if is_hole(window) {
            if self.done < self.reserved {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(self.out, punch, self.done, self.done + bytes).context(|| failed("write", self.to))?;
            }
        } else {
            self.write(window).context(|| failed("write", self.to))?;
            self.end = self.done + bytes;
        }
        self.control.add_done(bytes);
        // The limit applies to zeroes too: they were read.
        self.wait(bytes)?;
        self.done += bytes;
        Ok(())
    }
}

impl Copying<'_> {
    fn reserve_next(&mut self) -> Result<()> {
        let next = self.limit_bytes.min(self.done + RESERVED_BYTES);
        // Close to the file system's reserve, do not reserve ahead.
        let reserve_bytes = self.control.reserve_bytes().saturating_add(next - self.done);
        let has_room = require_room(self.to, reserve_bytes).is_ok();
        self.reserves = has_room
            && fallocate(self.out, FallocateFlags::empty(), self.done, next)
                .context(|| failed("reserve space for", self.to))?;
        if self.reserves {
            self.reserved = next;
        }
        Ok(())
    }

    /// Writes directly to the disk as far as possible, and the rest through the page cache at the disk's pace.
    fn write(&mut self, window: &[u8]) -> io::Result<()> {
        let mut at = self.done;
        let mut rest = window;
        if self.direct {
            let (whole, tail) = window.split_at(window.len() - window.len() % ALIGNMENT);
            match self.out.write_all_at(whole, at) {
                Ok(()) => {
                    let is_first = self.end == 0;
                    self.direct = !is_first || is_on_disk(self.out, at, whole.len() as u64);
                    at += whole.len() as u64;
                    rest = tail;
                }
                // A disk with larger blocks.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                Err(e) => return Err(e),
            }
            if !self.direct || !rest.is_empty() {
                write_through_cache(self.out)?;
                self.direct = false;
            }
        }
        for chunk in rest.chunks(PACE_BYTES as usize) {
            self.out.write_all_at(chunk, at)?;
            at += chunk.len() as u64;
            if chunk.len() as u64 == PACE_BYTES {
                pace(self.out, at - PACE_BYTES)?;
            }
        }
        Ok(())
    }

    /// Waits as long as the limit demands for `bytes`. If that takes longer than a second, calls `watch` every second.
    fn wait(&self, mut bytes: u64) -> Result<()> {
        while bytes > 0 {
            let second = self.control.limit_bytes().map_or(bytes, |limit| bytes.min(limit));
            self.control.throttle(second)?;
            bytes -= second;
            if bytes > 0 {
                (self.watch)()?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<u64> {
        if self.reserved.max(self.end) != self.done {
            self.out.set_len(self.done).context(|| failed("set the size of", self.to))?;
        }
        Ok(self.done)
    }
}

/// Whether all bytes are zero, and there are enough of them for a hole.
fn is_hole(bytes: &[u8]) -> bool {
    // Compared with itself, shifted by one byte: the compiler turns this into a comparison of many bytes at a time.
    bytes.len() >= HOLE_BYTES && bytes[0] == 0 && bytes[1..] == bytes[..bytes.len() - 1]
}

/// Whether a file is written past the page cache, into space that was reserved for it: on ext4 and xfs. Such a write uses no
/// memory and a fifth of the CPU time, and ext4's journal need not write its data before the next commit (`data=ordered`), for
/// which the fsync of every other program waits. btrfs would not compress the data.
fn goes_direct(file: &File) -> bool {
    is_on_ext4_or_xfs(file)
}

/// Whether a direct write has really gone past the page cache: with `data=journal` or encryption the kernel accepts it, but
/// puts the data into the cache.
fn is_on_disk(file: &File, start: u64, bytes: u64) -> bool {
    sys::cached(file.as_fd(), start, bytes).is_none_or(|cached| cached.unwritten_pages == 0)
}

/// Lets writes go past the page cache from now on.
fn write_directly(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(file, rustix::fs::fcntl_getfl(file)? | OFlags::DIRECT)?)
}

/// Lets writes go through the page cache from now on.
fn write_through_cache(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(file, rustix::fs::fcntl_getfl(file)? & !OFlags::DIRECT)?)
}

/// Changes the allocation of the file from `start` to `end`; `Ok(false)` if the file cannot: a file of an ext4 that was once an
/// ext3 cannot reserve space.
fn fallocate(file: &File, how: FallocateFlags, start: u64, end: u64) -> io::Result<bool> {
    match retry_on_intr(|| rustix::fs::fallocate(file, how, start, end - start)) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Clones a file to a new file, not yet synced: both share their blocks until either is written to. `Ok(None)`, and no file is
/// left, if the file systems cannot do that. The file is cloned in ranges, sized so that each makes a writer of the source wait
/// for about [`MAX_STALL`] at most: a single call for a file of many extents made it wait for seconds.
pub(crate) fn clone(
    copier: Copier<'_>,
    from: BorrowedFd<'_>,
    to: &Path,
    watch: &dyn Fn() -> Result<()>,
) -> Result<Option<Unsynced>> {
    let out = create_new("clone", to, copier.owner)?;
    if !clone_into(copier.control, from, (&out, to), watch)? {
        remove_file(to)?;
        return Ok(None);
    }
    let bytes = out.metadata().context(|| failed("look at", to))?.len();
    Ok(Some(Unsynced::of(out, to, bytes)))
}

/// The same into an empty file, of the path `to`; `Ok(false)` if the file systems cannot do that.
pub(crate) fn clone_into(
    control: &Control,
    from: BorrowedFd<'_>,
    (out, to): (&File, &Path),
    watch: &dyn Fn() -> Result<()>,
) -> Result<bool> {
    let size = || rustix::fs::fstat(from).map(|s| s.st_size.cast_unsigned()).context(|| failed("clone to", to));
    let (mut at, mut range) = (0, MIN_CLONE_BYTES);
    loop {
        control.check()?;
        watch()?;
        require_room(to, control.reserve_bytes())?;
        let rest = size()?.saturating_sub(at);
        let started = Instant::now();
        // The last range goes up to the end of the file, which may have moved.
        match sys::clone_range(from, out, at, if rest > range { range } else { 0 }) {
            Ok(()) => {}
            Err(e) if at == 0 && cannot_clone(&e) => return Ok(false),
            // A WAL checkpoint has truncated the source to before this range: nothing is left to clone.
            Err(_) if at > 0 && size()? <= at => return Ok(true),
            // The size of the source has changed: this range is sized anew.
            Err(_) if at > 0 && size()? != at + rest => continue,
            Err(e) => return Err(Error::io(failed("clone to", to), e)),
        }
        // No bytes are copied, so the limit does not apply.
        control.add_done(rest.min(range));
        if rest <= range {
            return Ok(true);
        }
        at += range;
        range = if started.elapsed() > MAX_STALL / 2 { range / 2 } else { range * 2 };
        range = range.clamp(MIN_CLONE_BYTES, MAX_CLONE_BYTES);
    }
}

/// Whether a clone of `from` can be made in `directory`. That is tried with a file without a name, so nothing is left there, and not
/// even the times of the directory change.
pub(crate) fn can_clone(from: BorrowedFd<'_>, directory: &Path) -> bool {
    let unnamed = || -> io::Result<File> {
        let directory = nofollow::open_directory(directory)?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&directory, ".", flags, Mode::RUSR | Mode::WUSR)?.into())
    };
    // A short file has less than this; it is cloned up to its end.
    let bytes = rustix::fs::fstat(from).map_or(0, |stat| stat.st_size.cast_unsigned().min(CLONE_TRIED_BYTES));
    let bytes = if bytes < CLONE_TRIED_BYTES { 0 } else { bytes };
    unnamed().and_then(|to| sys::clone_range(from, &to, 0, bytes)).is_ok()
}

fn cannot_clone(e: &io::Error) -> bool {
    let errno = e.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS))
}

/// Starts to write the piece at `start` to the disk, waits for the piece before it, and drops that one from the page cache.
fn pace(out: &File, start: u64) -> io::Result<()> {
    sys::flush_range(out, start, PACE_BYTES, Flush::Start)?;
    let before = start.saturating_sub(PACE_BYTES);
    if let Some(length) = NonZeroU64::new(start - before) {
        sys::flush_range(out, before, length.get(), Flush::Wait)?;
        let _ = rustix::fs::fadvise(out, before, Some(length), Advice::DontNeed);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A copy of data and holes at odd offsets, also at the end, has the same content and uses no more of the disk.
    #[test]
    fn holes_stay_holes() {
        let control = Control::default();
        let unowned = Copier { owner: None, control: &control };
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let mut random = fastrand::Rng::with_seed(3);
        for length in [0, 1, 5000, 300_000, 70 << 20, (130 << 20) + 77] {
            let file = File::create(&from).unwrap();
            file.set_len(length).unwrap();
            for _ in 0..6 {
                let mut data = vec![0; random.usize(..length.min(400_000) as usize + 1)];
                random.fill(&mut data);
                file.write_all_at(&data, random.u64(..=length - data.len() as u64)).unwrap();
            }
            file.sync_all().unwrap();
            let mut file = File::open(&from).unwrap();
            let copied = copy(unowned, &mut file, length, &to, &|| Ok(())).unwrap();
            assert_eq!(copied.sync().unwrap(), length);
            assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "{length} bytes");
            let [before, after] = [&from, &to].map(|path| path.metadata().unwrap().blocks() * 512);
            assert!(after <= before + (6 << 20), "{length} bytes: {before} on the disk became {after}");
            fs::remove_file(&to).unwrap();
        }
    }

    /// Whichever parts of a file are cached, and whichever of them wait to be written: the copy is the same. Afterwards the
    /// page cache has the same parts of the file and little more (or all of it, with `into_cache`), and almost nothing of the
    /// copy.
    #[test]
    fn the_page_cache_stays_as_it_was() {
        let control = Control::default();
        let unowned = Copier { owner: None, control: &control };
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let mut random = fastrand::Rng::with_seed(4);
        let pages = |file: &File| -> Option<Vec<bool>> {
            let length = file.metadata().unwrap().len();
            (0..length.div_ceil(4096)).map(|n| Some(sys::cached(file.as_fd(), n * 4096, 1)?.bytes() > 0)).collect()
        };
        let count = |pages: &[bool]| pages.iter().filter(|cached| **cached).count();
        for (length, way) in [400_000, (3 << 20) + 1, (20 << 20) + 4097]
            .into_iter()
            .flat_map(|n| ["past", "through", "into"].map(|way| (n, way)))
        {
            let mut data = vec![0; length];
            random.fill(&mut data);
            fs::write(&from, &data).unwrap();
            let file = OpenOptions::new().read(true).write(true).open(&from).unwrap();
            file.sync_all().unwrap();
            // No read-ahead: only the parts that are read here are cached.
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
            for _ in 0..4 {
                file.read_at(&mut vec![0; 70_000], random.u64(..length as u64)).unwrap();
            }
            let before = pages(&file);
            for turn in ["clean", "partly to be written"] {
                if turn != "clean" {
                    let at = random.usize(..length - 100);
                    data[at..at + 100].fill(7);
                    file.write_all_at(&data[at..at + 100], at as u64).unwrap();
                }
                let mut reader = match way {
                    "past" => QuietReader::past_cache(&file),
                    "through" => QuietReader::through_cache(file.as_fd()),
                    _ => QuietReader::into_cache(&file),
                };
                let copied = copy(unowned, &mut reader, length as u64, &to, &|| Ok(())).unwrap();
                assert_eq!(copied.sync().unwrap(), length as u64);
                let after = pages(&file);
                let of_copy = pages(&File::open(&to).unwrap());
                assert!(fs::read(&to).unwrap() == data, "{length} bytes, {turn}");
                fs::remove_file(&to).unwrap();
                // On a file system in memory every file is in the cache. An older kernel has no cachestat(2).
                if goes_direct(&file)
                    && turn == "clean"
                    && let (Some(before), Some(after), Some(of_copy)) = (&before, &after, of_copy)
                {
                    assert!(
                        before.iter().zip(after).all(|(before, after)| after >= before),
                        "{length}: pages are lost"
                    );
                    let (had, has) = (count(before), count(after));
                    match way {
                        "past" => assert_eq!(has, had, "{length}"),
                        // The parts cached before lie in 12 grains, whose other pages may be left, as may the last page.
                        "through" => assert!(has <= had + 12 * 16 + 1, "{length}: {had} became {has}"),
                        _ => assert_eq!(has, after.len(), "{length}"),
                    }
                    assert!(count(&of_copy) < 75, "{length}: {} pages of the copy stay", count(&of_copy));
                }
                let flags = rustix::fs::fcntl_getfl(&file).unwrap();
                assert!(!flags.contains(OFlags::DIRECT), "the descriptor is as it was");
            }
        }
    }
}
