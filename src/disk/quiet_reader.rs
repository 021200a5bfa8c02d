//! Reading that keeps out of the node's way: the page cache is the node's, and what we read once is not worth a place in it.
//!
//! A file without a writer (SSTs, backups, the databases of a node that is down) is read past the page cache: straight
//! from the disk, but for what the cache has. That takes a third of the processor time, and leaves the cache to the node.
//! A file that the node may write to is never read so: a direct read keeps every writer of the file waiting until the disk has
//! answered, and with our idle I/O class that may be long (a checkpoint of SQLite: 5 ms became 550 ms beside a busy
//! mq-deadline, 1,070 ms beside bfq).
//!
//! Invariants
//! - What was in the page cache is there afterwards, and nothing else of the file: that is read past it, or leaves it again as
//!   soon as it was read. Exceptions: what shares [`GRAIN_BYTES`] with something that was there, a few megabytes where
//!   reading ends before the end of the file, and kernels that do not tell us what the page cache has.
//! - Nothing here makes the kernel write: what the node has written waits for the node's own fsync.
//! - The flags of a descriptor that is used elsewhere too are not touched.
//! - A large file is read by a thread of its own, [`WINDOWS`] ahead at most, so that one disk reads while another writes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;

use crate::disk::nofollow;
use crate::disk::sys;
use crate::error::{IoContext, Result};

/// How much of a file is read and taken at once. It is also how much of ours may stand in front of the node's own reads and
/// writes. Measured on an NVMe disk: 1 MiB is no faster, and the node's median commit takes 0.59 ms beside it instead of
/// 0.50 (0.41 alone); 256 KiB leaves it at 0.44, but takes 1.2 times as long.
pub(crate) const WINDOW_BYTES: usize = 512 * 1024;

/// What reading and writing past the page cache wants of offsets and lengths, on every usual disk.
pub(crate) const ALIGNMENT: usize = 4096;

/// How many windows there are: one that is read, one that is taken, one between.
const WINDOWS: usize = 3;

/// From which size on a thread of its own is worth it.
const THREAD_FROM_BYTES: u64 = 4 * 1024 * 1024;

/// How far the kernel is asked to read ahead through the page cache: much further than by itself, which costs half the
/// processor time.
const AHEAD_BYTES: u64 = 2 * 1024 * 1024;

/// The smallest part of a file that leaves the page cache again because nothing of it was there before. A call asks for each
/// part, where the cache has a little here and there.
const GRAIN_BYTES: u64 = 64 * 1024;

/// Reads a file by position.
pub(crate) struct QuietReader<'a> {
    fd: BorrowedFd<'a>,
    at: u64,
    /// Whether it may and can be read past the page cache.
    direct: bool,
    /// Whether the page cache keeps what is read.
    keeps: bool,
    /// Up to where the kernel was asked to read ahead.
    ahead: u64,
    /// What the page cache did not have before that, and will not have when it was read; in the order of the file.
    passing: VecDeque<Range<u64>>,
}

impl<'a> QuietReader<'a> {
    /// Reads a file without a writer, from the beginning. Its descriptor is not used elsewhere meanwhile.
    pub(crate) fn past_cache(file: &'a File) -> QuietReader<'a> {
        QuietReader { direct: true, ..QuietReader::through_cache(file.as_fd()) }
    }

    /// Reads a file that the node may write to, from the beginning.
    pub(crate) fn through_cache(fd: BorrowedFd<'a>) -> QuietReader<'a> {
        QuietReader { fd, at: 0, direct: false, keeps: false, ahead: 0, passing: VecDeque::new() }
    }

    /// Reads a file that is soon read again, from the beginning: the page cache keeps it.
    pub(crate) fn into_cache(file: &'a File) -> QuietReader<'a> {
        QuietReader { keeps: true, ..QuietReader::through_cache(file.as_fd()) }
    }

    /// The same from another place on.
    pub(crate) fn starting_at(self, at: u64) -> QuietReader<'a> {
        QuietReader { at, ahead: at, ..self }
    }

    /// Whether the disk shall be asked, rather than the page cache, which does not have it all.
    fn goes_direct(&self, buffer: &[u8]) -> bool {
        let is_aligned = |number: usize| number.is_multiple_of(ALIGNMENT);
        let fits = is_aligned(buffer.as_ptr().addr()) && is_aligned(buffer.len());
        if !self.direct || !fits || !self.at.is_multiple_of(ALIGNMENT as u64) {
            return false;
        }
        let cached = sys::cached(self.fd, self.at, buffer.len() as u64);
        // What was just written, by us, comes from the cache; and an older kernel does not say what it has.
        cached.is_none_or(|cached| cached.unwritten_pages == 0 && cached.bytes() < buffer.len() as u64)
    }

    /// `Ok(None)` where that cannot be done.
    fn read_direct(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let flags = rustix::fs::fcntl_getfl(self.fd)?;
        let set = rustix::fs::fcntl_setfl(self.fd, flags | OFlags::DIRECT);
        let result = set.and_then(|()| rustix::io::pread(self.fd, buffer, self.at));
        rustix::fs::fcntl_setfl(self.fd, flags)?;
        match result {
            Ok(count) => Ok(Some(count)),
            Err(Errno::INTR) => Err(Errno::INTR.into()),
            // Other blocks, a file system that cannot, or a disk that fails: reading through the cache will tell.
            Err(_) => {
                self.direct = false;
                Ok(None)
            }
        }
    }

    fn read_cached(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // What is read past the cache shall find nothing of the next windows there.
        if !self.direct && self.at + AHEAD_BYTES > self.ahead {
            let from = self.ahead.max(self.at) / GRAIN_BYTES * GRAIN_BYTES;
            if !self.keeps {
                self.note_passing(from, AHEAD_BYTES);
            }
            let _ = rustix::fs::fadvise(self.fd, from, NonZeroU64::new(AHEAD_BYTES), Advice::WillNeed);
            self.ahead = from + AHEAD_BYTES;
        }
        let count = rustix::io::pread(self.fd, buffer, self.at)?;
        self.let_pass(self.at + count as u64);
        Ok(count)
    }

    /// Remembers which parts of a range the page cache has nothing of.
    fn note_passing(&mut self, from: u64, bytes: u64) {
        match sys::cached(self.fd, from, bytes) {
            Some(cached) if cached.bytes() == 0 => self.passing.push_back(from..from + bytes),
            Some(cached) if cached.bytes() < bytes && bytes > GRAIN_BYTES => {
                self.note_passing(from, bytes / 2);
                self.note_passing(from + bytes / 2, bytes / 2);
            }
            _ => {}
        }
    }

    /// Lets what was read up to `end` leave the page cache, if it was not there before. Where the node has written there in the
    /// moment between, the cache keeps it: the kernel would write it to the disk first, with our I/O class, and the node's
    /// fsync would wait for that. And where the page cache is another one than that which we can see (overlayfs), it keeps all.
    fn let_pass(&mut self, end: u64) {
        while let Some(range) = self.passing.front_mut().filter(|range| range.start < end) {
            let (start, bytes) = (range.start, range.end.min(end) - range.start);
            range.start += bytes;
            if range.is_empty() {
                self.passing.pop_front();
            }
            let cached = sys::cached(self.fd, start, bytes);
            if cached.is_some_and(|cached| cached.bytes() > 0 && cached.unwritten_pages == 0)
                && let Some(length) = NonZeroU64::new(bytes)
            {
                let _ = rustix::fs::fadvise(self.fd, start, Some(length), Advice::DontNeed);
            }
        }
    }
}

impl Read for QuietReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let direct = if self.goes_direct(buffer) { self.read_direct(buffer)? } else { None };
        let count = match direct {
            Some(count) => count,
            None => self.read_cached(buffer)?,
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// What the windows of a file are for.
pub(crate) trait Sink {
    /// Asked before each window; an error ends the reading.
    fn proceed(&mut self) -> Result<()>;

    /// Takes a window: full, and aligned in memory, but for the last.
    fn take(&mut self, window: &[u8]) -> Result<()>;
}

/// Gives the first `limit_bytes` of a file (all of it, where there are fewer) to `sink`, window by window. `failed` names
/// what cannot be read.
pub(crate) fn each_window(
    from: &mut (dyn Read + Send),
    limit_bytes: u64,
    failed: &dyn Fn() -> String,
    sink: &mut dyn Sink,
) -> Result<()> {
    if limit_bytes >= THREAD_FROM_BYTES
        && let Some(result) = each_window_ahead(&mut *from, limit_bytes, failed, sink)
    {
        return result;
    }
    let mut window = Window::new(limit_bytes);
    let mut left = limit_bytes;
    while left > 0 {
        sink.proceed()?;
        let count = window.fill(from, left).context(failed)?;
        if count == 0 {
            break;
        }
        sink.take(window.filled(count))?;
        left -= count as u64;
    }
    Ok(())
}

/// As [`each_window`], read by a thread of its own; `None`, with nothing read, where no thread can be had.
fn each_window_ahead(
    from: &mut (dyn Read + Send),
    limit_bytes: u64,
    failed: &dyn Fn() -> String,
    sink: &mut dyn Sink,
) -> Option<Result<()>> {
    thread::scope(|scope| {
        let (give_back, empty) = mpsc::channel::<Window>();
        let (give, filled) = mpsc::channel::<io::Result<(Window, usize)>>();
        let read = move || {
            let mut left = limit_bytes;
            for mut window in empty {
                let result = match window.fill(from, left) {
                    Ok(0) => break,
                    Ok(count) => {
                        left -= count as u64;
                        Ok((window, count))
                    }
                    Err(e) => Err(e),
                };
                // It is not taken any more: an error, or cancelled.
                if give.send(result).is_err() || left == 0 {
                    break;
                }
            }
        };
        thread::Builder::new().name("read".to_owned()).spawn_scoped(scope, read).ok()?;
        for _ in 0..WINDOWS {
            let _ = give_back.send(Window::new(limit_bytes));
        }
        let mut take = || -> Result<()> {
            loop {
                sink.proceed()?;
                let Ok(next) = filled.recv() else { return Ok(()) };
                let (window, count) = next.context(failed)?;
                sink.take(window.filled(count))?;
                let _ = give_back.send(window);
            }
        };
        Some(take())
    })
}

/// Memory for [`WINDOW_BYTES`], or for less where a file has less. It has its pages for itself: while the disk writes to
/// them, a process that forks must not copy them with something else on them (open(2), O_DIRECT).
struct Window {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Window {
    fn new(limit_bytes: u64) -> Window {
        let page = rustix::param::page_size().max(ALIGNMENT);
        let bytes = usize::try_from(limit_bytes).unwrap_or(usize::MAX).min(WINDOW_BYTES).next_multiple_of(ALIGNMENT);
        let memory = vec![0; bytes.next_multiple_of(page) + page];
        let start = memory.as_ptr().addr().next_multiple_of(page) - memory.as_ptr().addr();
        Window { memory, start, bytes }
    }

    fn filled(&self, count: usize) -> &[u8] {
        &self.memory[self.start..self.start + count]
    }

    /// Reads until it is full, has `limit_bytes`, or the file ends; returns how much that is.
    fn fill(&mut self, from: &mut dyn Read, limit_bytes: u64) -> io::Result<usize> {
        let window = &mut self.memory[self.start..self.start + self.bytes];
        let limit = usize::try_from(limit_bytes).unwrap_or(usize::MAX).min(window.len());
        let mut count = 0;
        while count < limit {
            // Up to a whole block, which can be read past the page cache.
            match from.read(&mut window[count..limit.next_multiple_of(ALIGNMENT)]) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(count.min(limit))
    }
}

/// Lets what was read of a file of ours leave the page cache.
pub(crate) fn forget_cached(path: &Path) {
    if let Ok(file) = nofollow::open_regular(path) {
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    }
}
