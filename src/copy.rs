//! The copy engine: the bytes of one file into a new one, for RocksDB, SQLite and restore alike.
//!
//! A file comes into a backup by the cheapest way that is sound: a hard link where nobody ever writes to it (`disk::link`), a
//! clone where blocks can be shared, otherwise read and write. `copy_file_range` is not used: between files of one file
//! system it may clone silently, and it takes the pace out of our hands.
//!
//! Invariants
//! - Only a new file is written to. Its descriptor stays open until its fsync: the error of a write-back is told once, to
//!   whoever waits for it first, so the errors of pacing count as much as those of the fsync.
//! - Cancel and limit are looked at every window; free space and `watch` every [`LOOK_BYTES`], and every [`LOOK_INTERVAL`] of
//!   a copy that a limit makes slow.
//! - At most two windows of ours stand in front of the node's own fsync, and little of the copy stays in the page cache.
//! - A chunk of zeroes is not written: a hole stays one, but for less than a chunk at its ends.
#![allow(clippy::disallowed_methods)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags};
use rustix::io::Errno;

use crate::control::Control;
use crate::disk::{Owner, failed, give, remove_file, require_room};
use crate::error::{Error, IoContext, Result};
use crate::gate::pass;
use crate::sys::{self, Flush};

/// One read and write of a copy. Larger chunks were slower where the page cache is small (1 MiB: 3.4 times).
const COPY_CHUNK_BYTES: usize = 256 * 1024;

/// How much is copied between two looks at the free space.
const LOOK_BYTES: u64 = 8 * 1024 * 1024;

/// The longest time between two such looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The fewest zeroes that are worth a hole.
const HOLE_BYTES: usize = 4096;

/// How much is given to the disk at once. Two such windows of ours at most stand in front of the node's own fsync.
/// Measured beside a node with 60 commits a second: its p99 stays what it is without us, and the copy takes 1.2 times as
/// long as with windows of 8 MiB, where the p99 was ten times as long.
const WINDOW_BYTES: u64 = 256 * 1024;

/// How much space is reserved at once for a copy on ext4.
const RESERVED_BYTES: u64 = 64 * 1024 * 1024;

/// `EXT4_SUPER_MAGIC` of linux/magic.h.
const EXT4_MAGIC: i64 = 0xef53;

/// The smallest and the largest range of a clone; both are multiples of every block size.
const MIN_CLONE_BYTES: u64 = 4 * 1024 * 1024;
const MAX_CLONE_BYTES: u64 = 1024 * 1024 * 1024;

/// How long cloning one range may keep a writer of the source waiting.
const MAX_STALL: Duration = Duration::from_millis(100);

/// A file that was written and not yet synced. It keeps the descriptor that wrote: an error of writing to the disk is told
/// to it for certain, but perhaps not to one that is opened later.
#[derive(Debug)]
#[must_use = "what is not synced is not there after a power cut"]
pub(crate) struct Unsynced {
    file: File,
    path: PathBuf,
    /// How many bytes were copied to it.
    pub(crate) bytes: u64,
}

impl Unsynced {
    /// Creates an empty file that must not exist, for a library to write to.
    pub(crate) fn create(path: &Path, owner: Option<Owner>) -> Result<Unsynced> {
        pass("create", path).context(|| failed("create", path))?;
        let file = OpenOptions::new().write(true).create_new(true).open(path).context(|| failed("create", path))?;
        give(path, owner)?;
        Ok(Unsynced { file, path: path.to_owned(), bytes: 0 })
    }

    /// Makes the content durable, whoever wrote it, at the pace of a copy; returns the bytes that were copied.
    pub(crate) fn sync(self) -> Result<u64> {
        let sync = || {
            let bytes = self.file.metadata()?.len();
            let mut at = 0;
            while at < bytes && bytes > WINDOW_BYTES {
                sys::flush_range(&self.file, at, WINDOW_BYTES, Flush::Wait)?;
                at += WINDOW_BYTES;
            }
            self.file.sync_all()?;
            if bytes > WINDOW_BYTES {
                let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
            }
            Ok(())
        };
        pass("fsync", &self.path).and_then(|()| sync()).context(|| failed("sync", &self.path))?;
        Ok(self.bytes)
    }
}

/// Copies the first `limit_bytes` of a file (all of it, where there are fewer) to a new file, synced; returns the number
/// of bytes. Counts them on `control`, stops within one window when the job is cancelled, and stops with [`Kind::NoSpace`]
/// before the file system of the copy falls below the reserve. Writes at the disk's pace, and leaves little of the copy
/// in the page cache: the node needs it more.
pub(crate) fn copy(
    from: &mut dyn Read,
    limit_bytes: u64,
    to: &Path,
    owner: Option<Owner>,
    control: &Control,
) -> Result<u64> {
    copy_unsynced(from, limit_bytes, to, owner, control, &|| Ok(()))?.sync()
}

/// As [`copy`], but leaves the fsync to the caller; asks `watch` again and again whether to go on.
pub(crate) fn copy_unsynced(
    from: &mut dyn Read,
    limit_bytes: u64,
    to: &Path,
    owner: Option<Owner>,
    control: &Control,
    watch: &dyn Fn() -> Result<()>,
) -> Result<Unsynced> {
    pass("copy", to).context(|| failed("copy to", to))?;
    let out = OpenOptions::new().write(true).create_new(true).open(to).context(|| failed("create", to))?;
    give(to, owner)?;
    let mut reserves = limit_bytes > WINDOW_BYTES && wants_reservation(&out);
    let mut buffer = vec![0; COPY_CHUNK_BYTES];
    // How far: it was copied, written to, reserved, paced; and when `watch` is asked next.
    let (mut done, mut end, mut reserved, mut window_start, mut next_look) = (0, 0, 0, 0, 0);
    let mut looked = Instant::now();
    while done < limit_bytes {
        control.check()?;
        if done >= next_look || looked.elapsed() >= LOOK_INTERVAL {
            watch()?;
            require_room(to, control.reserve_bytes())?;
            (next_look, looked) = (done + LOOK_BYTES, Instant::now());
        }
        if reserves && done == reserved {
            let next = limit_bytes.min(done + RESERVED_BYTES);
            // Near the reserve of the file system every chunk counts.
            let has_room = require_room(to, control.reserve_bytes().saturating_add(next - done)).is_ok();
            reserves = has_room && reserve(&out, done, next).context(|| failed("reserve space for", to))?;
            if reserves {
                reserved = next;
            }
        }
        // Never across the end of what is reserved.
        let ahead = if reserves { reserved } else { limit_bytes } - done;
        let wanted = usize::try_from(ahead).unwrap_or(usize::MAX).min(buffer.len());
        let count = match from.read(&mut buffer[..wanted]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(format!("cannot read the source of {}", to.display()), e)),
        };
        if is_hole(&buffer[..count]) {
            if reserves {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&out, punch, done, count as u64).context(|| failed("write", to))?;
            }
            done += count as u64;
        } else {
            out.write_all_at(&buffer[..count], done).context(|| failed("write", to))?;
            done += count as u64;
            end = done;
        }
        control.add_done(count as u64);
        if done - window_start >= WINDOW_BYTES {
            pace(&out, window_start, done).context(|| failed("write", to))?;
            wait(if end > window_start { done - window_start } else { 0 }, control, watch)?;
            window_start = done;
        }
    }
    wait(if end > window_start { done - window_start } else { 0 }, control, watch)?;
    if reserved.max(end) != done {
        out.set_len(done).context(|| failed("set the size of", to))?;
    }
    Ok(Unsynced { file: out, path: to.to_owned(), bytes: done })
}

/// Whether all of it is zero, and enough to leave out.
fn is_hole(bytes: &[u8]) -> bool {
    // Equal to itself one byte further, which the compiler compares many at a time.
    bytes.len() >= HOLE_BYTES && bytes[0] == 0 && bytes[1..] == bytes[..bytes.len() - 1]
}

/// Waits as the limit wants it for `bytes`. Where it is so low that this takes long, `watch` is asked meanwhile.
fn wait(mut bytes: u64, control: &Control, watch: &dyn Fn() -> Result<()>) -> Result<()> {
    while bytes > 0 {
        let second = control.limit_bytes().map_or(bytes, |limit| bytes.min(limit));
        control.throttle(second)?;
        bytes -= second;
        if bytes > 0 {
            watch()?;
        }
    }
    Ok(())
}

/// Whether space should be reserved before it is written. On ext4, blocks that are allocated as they are written out must
/// reach the disk before the journal's next commit (`data=ordered`), and so before the fsync of everybody else; blocks that
/// are reserved need not. On others it would gain nothing, or cost (btrfs does not compress what is reserved).
fn wants_reservation(file: &File) -> bool {
    #[allow(clippy::unnecessary_cast)] // its type differs between architectures
    let magic = rustix::fs::fstatfs(file).map(|s| s.f_type as i64);
    magic == Ok(EXT4_MAGIC)
}

/// Reserves the bytes from `start` to `end`; `Ok(false)` where the file cannot: that of an ext4 that was an ext3 once.
fn reserve(file: &File, start: u64, end: u64) -> io::Result<bool> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), start, end - start) {
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
    pass("clone", to).context(|| failed("clone to", to))?;
    let out = OpenOptions::new().write(true).create_new(true).open(to).context(|| failed("create", to))?;
    give(to, owner)?;
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
    Ok(Some(Unsynced { file: out, path: to.to_owned(), bytes }))
}

fn cannot_clone(e: &io::Error) -> bool {
    let errno = e.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS))
}

/// Starts to write the window that ends at `end`, and waits for the one before it. What is on the disk need not stay in the
/// cache.
fn pace(out: &File, start: u64, end: u64) -> io::Result<()> {
    sys::flush_range(out, start, end - start, Flush::Start)?;
    // After short reads the one before may be almost twice as long.
    let before = start.saturating_sub(2 * WINDOW_BYTES);
    if let Some(length) = NonZeroU64::new(start - before) {
        sys::flush_range(out, before, length.get(), Flush::Wait)?;
        let _ = rustix::fs::fadvise(out, before, Some(length), Advice::DontNeed);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
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
            let unsynced = copy_unsynced(&mut file, length, &to, None, &Control::default(), &|| Ok(())).unwrap();
            assert_eq!(unsynced.sync().unwrap(), length);
            assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "{length} bytes");
            let [before, after] = [&from, &to].map(|path| path.metadata().unwrap().blocks() * 512);
            assert!(after <= before + 4 * WINDOW_BYTES * 6, "{length} bytes: {before} on the disk became {after}");
            fs::remove_file(&to).unwrap();
        }
    }
}
