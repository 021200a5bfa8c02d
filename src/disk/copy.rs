//! The copy engine: the bytes of one file into a new one, for RocksDB, SQLite and restore alike.
//!
//! A file comes into a backup by the cheapest way that is sound: a hard link where nobody ever writes to it (`disk::link`), a
//! clone where blocks can be shared, otherwise read and write. `copy_file_range` is not used: between files of one file
//! system it may clone silently, and it takes the pace out of our hands.
//!
//! Invariants
//! - Only a new file is written to. Its descriptor stays open until its fsync: the error of a write-back is told once, to
//!   whoever waits for it first, so the errors of pacing count as much as those of the fsync.
//! - Cancel, limit and `watch` are looked at every window, and `watch` every second of one that a limit makes slow; free
//!   space every [`LOOK_BYTES`] and every [`LOOK_INTERVAL`].
//! - What is written goes straight to the disk, one window at a time, where the file system does that well; elsewhere through
//!   the page cache at the disk's pace. So little of ours stands in front of the node's own fsync, and little of the copy
//!   stays in the page cache.
//! - A window of zeroes is not written: a hole stays one, but for less than a window at its ends.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::control::Control;
use crate::disk::quiet_reader::{ALIGNMENT, QuietReader, Sink, each_window};
use crate::disk::sys::{self, Flush};
use crate::disk::unsynced::{PACE_BYTES, Unsynced, is_on_ext4_or_xfs};
use crate::disk::{Owner, create_new, remove_file, require_room};
use crate::error::failed;
use crate::error::{Error, IoContext, Kind, Result};

/// How much is copied between two looks at the free space.
const LOOK_BYTES: u64 = 8 * 1024 * 1024;

/// The longest time between two such looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The fewest zeroes that are worth a hole.
const HOLE_BYTES: usize = 4096;

/// How much space is reserved at once; a multiple of a window.
const RESERVED_BYTES: u64 = 64 * 1024 * 1024;

/// The smallest and the largest range of a clone; both are multiples of every block size.
const MIN_CLONE_BYTES: u64 = 4 * 1024 * 1024;
const MAX_CLONE_BYTES: u64 = 1024 * 1024 * 1024;

/// How long cloning one range may keep a writer of the source waiting.
const MAX_STALL: Duration = Duration::from_millis(100);

/// Copies the first `limit_bytes` of a file (all of it, where there are fewer) to a new file. Counts them on `control`, stops
/// within one window when the job is cancelled, asks `watch` again and again whether to go on, and stops with
/// [`Kind::NoSpace`] before the file system of the copy falls below the reserve. Writes at the disk's pace, and leaves little
/// of the copy in the page cache: the node needs it more.
pub(crate) fn copy(
    from: &mut (dyn Read + Send),
    limit_bytes: u64,
    to: &Path,
    owner: Option<Owner>,
    control: &Control,
    watch: &dyn Fn() -> Result<()>,
) -> Result<Unsynced> {
    let out = create_new("copy", to, owner)?;
    let direct = limit_bytes > PACE_BYTES && goes_direct(&out);
    let mut copying = Copying {
        out: &out,
        to,
        control,
        watch,
        limit_bytes,
        direct: direct && set_direct(&out, true).is_ok(),
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

/// Copies a file of `bytes` bytes that nobody writes to. Fails with [`Kind::Damaged`] where it ends before.
pub(crate) fn copy_still(
    from: &File,
    bytes: u64,
    to: &Path,
    owner: Option<Owner>,
    control: &Control,
) -> Result<Unsynced> {
    let copied = copy(&mut QuietReader::past_cache(from), bytes, to, owner, control, &|| Ok(()))?;
    if copied.bytes == bytes {
        return Ok(copied);
    }
    let context = format!("the source of {} ends after {} of {bytes} bytes", to.display(), copied.bytes);
    Err(Error::new(Kind::Damaged, context))
}

/// A copy that is made.
struct Copying<'a> {
    out: &'a File,
    to: &'a Path,
    control: &'a Control,
    watch: &'a dyn Fn() -> Result<()>,
    limit_bytes: u64,
    /// Whether it is written past the page cache.
    direct: bool,
    /// Whether space is reserved before it is written.
    reserves: bool,
    /// How far it was copied, written to, and reserved.
    done: u64,
    end: u64,
    reserved: u64,
    /// When, in bytes and in time, the free space is looked at next.
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
        // Zeroes were read, too.
        self.wait(bytes)?;
        self.done += bytes;
        Ok(())
    }
}

impl Copying<'_> {
    fn reserve_next(&mut self) -> Result<()> {
        let next = self.limit_bytes.min(self.done + RESERVED_BYTES);
        // Near the reserve of the file system every window counts.
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

    /// Straight to the disk as far as that can be done, the rest at its pace.
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
                set_direct(self.out, false)?;
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

    /// Waits as the limit wants it for `bytes`. Where it is so low that this takes long, `watch` is asked meanwhile.
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

/// Whether all of it is zero, and enough to leave out.
fn is_hole(bytes: &[u8]) -> bool {
    // Equal to itself one byte further, which the compiler compares many at a time.
    bytes.len() >= HOLE_BYTES && bytes[0] == 0 && bytes[1..] == bytes[..bytes.len() - 1]
}

/// Whether a file is written past the page cache, into space that was reserved for it: on ext4 and xfs. What is written so
/// costs no memory, a fifth of the CPU, and is not part of what ext4's journal must write before its next commit
/// (`data=ordered`), and so before the fsync of everybody else. btrfs would not compress it.
fn goes_direct(file: &File) -> bool {
    is_on_ext4_or_xfs(file)
}

/// Whether what was just written past the page cache is not there: with `data=journal` or encryption the kernel takes it, and
/// puts it into the cache after all.
fn is_on_disk(file: &File, start: u64, bytes: u64) -> bool {
    sys::cached(file.as_fd(), start, bytes).is_none_or(|cached| cached.unwritten_pages == 0)
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)? & !OFlags::DIRECT;
    Ok(rustix::fs::fcntl_setfl(file, if direct { flags | OFlags::DIRECT } else { flags })?)
}

/// Changes what the file has of the disk from `start` to `end`; `Ok(false)` where it cannot: that of an ext4 that was an ext3
/// once cannot reserve.
fn fallocate(file: &File, how: FallocateFlags, start: u64, end: u64) -> io::Result<bool> {
    match retry_on_intr(|| rustix::fs::fallocate(file, how, start, end - start)) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Clones a file to a new file, not yet synced: both share their blocks until either is written to. `Ok(None)`, with
/// nothing left behind, where the file systems cannot do that. Cloned in ranges that are sized so that each stalls a writer
/// of the source for about [`MAX_STALL`] at most: one call for a file of many extents was seen to stall it for seconds.
pub(crate) fn clone(
    from: BorrowedFd<'_>,
    to: &Path,
    owner: Option<Owner>,
    control: &Control,
    watch: &dyn Fn() -> Result<()>,
) -> Result<Option<Unsynced>> {
    let out = create_new("clone", to, owner)?;
    let size = || rustix::fs::fstat(from).map(|s| s.st_size.cast_unsigned()).context(|| failed("clone to", to));
    let (mut at, mut range) = (0, MIN_CLONE_BYTES);
    loop {
        control.check()?;
        watch()?;
        require_room(to, control.reserve_bytes())?;
        let rest = size()?.saturating_sub(at);
        let started = Instant::now();
        // The last range goes to the end, wherever that is by now.
        match sys::clone_range(from, &out, at, if rest > range { range } else { 0 }) {
            Ok(()) => {}
            Err(e) if at == 0 && cannot_clone(&e) => {
                remove_file(to)?;
                return Ok(None);
            }
            // Cut off at the end meanwhile, by a checkpoint: the rest is gone from the source too.
            Err(_) if at > 0 && size()? <= at => break,
            // Or cut off within this range: it is sized anew.
            Err(_) if at > 0 && size()? != at + rest => continue,
            Err(e) => return Err(Error::io(failed("clone to", to), e)),
        }
        // Nothing moves: a limit of bytes does not apply.
        control.add_done(rest.min(range));
        if rest <= range {
            break;
        }
        at += range;
        range = if started.elapsed() > MAX_STALL / 2 { range / 2 } else { range * 2 };
        range = range.clamp(MIN_CLONE_BYTES, MAX_CLONE_BYTES);
    }
    let bytes = out.metadata().context(|| failed("look at", to))?.len();
    Ok(Some(Unsynced::of(out, to, bytes)))
}

fn cannot_clone(e: &io::Error) -> bool {
    let errno = e.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS))
}

/// Starts to write what was written from `start` on, and waits for what came before it. What is on the disk need not stay
/// in the cache.
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

    /// Of data and holes at odd places, also at the end: the copy is the same, and takes no more of the disk.
    #[test]
    fn holes_stay_holes() {
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
            let copied = copy(&mut file, length, &to, None, &Control::default(), &|| Ok(())).unwrap();
            assert_eq!(copied.sync().unwrap(), length);
            assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "{length} bytes");
            let [before, after] = [&from, &to].map(|path| path.metadata().unwrap().blocks() * 512);
            assert!(after <= before + (6 << 20), "{length} bytes: {before} on the disk became {after}");
            fs::remove_file(&to).unwrap();
        }
    }

    /// Whatever part of a file the page cache has, and whatever waits to be written: its copy is the same, and afterwards the
    /// cache has what it had of it and little more, or all where that is wanted, and next to nothing of the copy.
    #[test]
    fn the_page_cache_stays_as_it_was() {
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
            // No readahead: what is cached is what is read here.
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
                let copied = copy(&mut reader, length as u64, &to, None, &Control::default(), &|| Ok(())).unwrap();
                assert_eq!(copied.sync().unwrap(), length as u64);
                let after = pages(&file);
                let of_copy = pages(&File::open(&to).unwrap());
                assert!(fs::read(&to).unwrap() == data, "{length} bytes, {turn}");
                fs::remove_file(&to).unwrap();
                // What a file system in memory has is in the cache. An older kernel cannot be asked.
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
                        // What it had lies in 12 grains, whose other pages may stay; and so may an unfinished last page.
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
