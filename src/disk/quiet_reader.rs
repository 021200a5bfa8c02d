//! Reads files without changing what the page cache holds for the node: we read a file once, so it needs no place in the cache.
//!
//! A file without a writer (SSTs, backups, the databases of a node that is down) is read past the page cache, directly from the
//! disk, except for the parts that are cached. That takes a third of the processor time and leaves the cache to the node.
//! A file that the node may write to is never read in this way: a direct read makes every writer of the file wait until the
//! disk has answered, and with our idle I/O class that may take long (a WAL checkpoint of SQLite took 550 ms instead of 5 ms
//! with a busy mq-deadline, and 1,070 ms with bfq).
//!
//! Invariants
//! - The page cache has the same parts of the file before and after: other parts are read past it, or dropped from it as soon
//!   as they are read. Exceptions: pages within [`GRAIN_BYTES`] of one that was cached, a few megabytes if reading ends before
//!   the end of the file, and kernels that do not report what is cached.
//! - Nothing here makes the kernel write: the data that the node has written waits for the node's own fsync.
//! - The flags of a descriptor that is also used elsewhere are not changed.
//! - A thread of its own reads a large file, at most [`WINDOWS`] ahead, so that one disk reads while another writes, and two files that
//!   are compared are read at the same time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, Scope};

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;

use crate::disk::nofollow;
use crate::disk::sys;
use crate::error::{IoContext, Result};

/// How much of a file is read and taken at once. The node's own reads and writes may wait for as much I/O of ours. Measured on
/// an NVMe disk, with the node's median commit at 0.41 ms without us and 0.50 ms with this size: 1 MiB is no faster and makes
/// it 0.59 ms; 256 KiB makes it 0.44 ms but takes 1.2 times as long.
pub(crate) const WINDOW_BYTES: usize = 512 * 1024;

/// The alignment of offsets and lengths with which every usual disk can be read and written past the page cache.
pub(crate) const ALIGNMENT: usize = 4096;

/// The number of windows: one is read, one is taken, one waits between.
const WINDOWS: usize = 3;

/// The smallest read for which a thread of its own is worth its cost.
const THREAD_FROM_BYTES: u64 = 4 * 1024 * 1024;

/// How far ahead we ask the kernel to read through the page cache: much further than it does by itself, which halves the
/// processor time.
const AHEAD_BYTES: u64 = 2 * 1024 * 1024;

/// The smallest part of a file that is dropped from the page cache because none of it was cached before. If small parts of
/// the file are cached, each part costs one call.
const GRAIN_BYTES: u64 = 64 * 1024;

/// What the page cache has of a file after it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageCache {
    /// What it had before.
    Unchanged,
    /// The file, as far as it fits, for the next reader.
    Filled,
}

/// Reads a file by position.
pub(crate) struct QuietReader<'a> {
    fd: BorrowedFd<'a>,
    at: u64,
    /// Whether the file may and can be read past the page cache.
    direct: bool,
    /// Whether the page cache keeps the parts that are read.
    keeps: bool,
    /// The offset up to which the kernel was asked to read ahead.
    ahead: u64,
    /// Parts that were not cached before and are dropped from the page cache once they are read; in the order of the file.
    passing: VecDeque<Range<u64>>,
}

impl<'a> QuietReader<'a> {
    /// Reads a file without a writer, from the beginning, and leaves the page cache so.
    pub(crate) fn leaving(cache: PageCache, file: &'a File) -> QuietReader<'a> {
        match cache {
            PageCache::Unchanged => QuietReader::past_cache(file),
            PageCache::Filled => QuietReader::into_cache(file),
        }
    }

    /// Reads a file without a writer, from the beginning. Its descriptor must not be used elsewhere meanwhile.
    pub(crate) fn past_cache(file: &'a File) -> QuietReader<'a> {
        QuietReader { direct: true, ..QuietReader::through_cache(file.as_fd()) }
    }

    /// Reads a file that the node may write to, from the beginning.
    pub(crate) fn through_cache(fd: BorrowedFd<'a>) -> QuietReader<'a> {
        QuietReader { fd, at: 0, direct: false, keeps: false, ahead: 0, passing: VecDeque::new() }
    }

    /// Reads a file that will soon be read again, from the beginning: the page cache keeps it.
    pub(crate) fn into_cache(file: &'a File) -> QuietReader<'a> {
        QuietReader { keeps: true, ..QuietReader::through_cache(file.as_fd()) }
    }

    /// The same reader, from another offset on.
    pub(crate) fn starting_at(self, at: u64) -> QuietReader<'a> {
        QuietReader { at, ahead: at, ..self }
    }

    /// Whether to read past the page cache: it may be done, the alignment fits, and part of the range is not cached.
    fn goes_direct(&self, buffer: &[u8]) -> bool {
        let is_aligned = |number: usize| number.is_multiple_of(ALIGNMENT);
        let fits = is_aligned(buffer.as_ptr().addr()) && is_aligned(buffer.len());
        if !self.direct || !fits || !self.at.is_multiple_of(ALIGNMENT as u64) {
            return false;
        }
        let cached = sys::cached(self.fd, self.at, buffer.len() as u64);
        // Unwritten pages, which we have just written, are read from the cache. An older kernel does not report what is cached.
        cached.is_none_or(|cached| cached.unwritten_pages == 0 && cached.bytes() < buffer.len() as u64)
    }

    /// Reads past the page cache; `Ok(None)` if that is not possible.
    fn read_direct(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let flags = rustix::fs::fcntl_getfl(self.fd)?;
        let set = rustix::fs::fcntl_setfl(self.fd, flags | OFlags::DIRECT);
        let result = set.and_then(|()| rustix::io::pread(self.fd, buffer, self.at));
        rustix::fs::fcntl_setfl(self.fd, flags)?;
        match result {
            Ok(count) => Ok(Some(count)),
            Err(Errno::INTR) => Err(Errno::INTR.into()),
            // Larger blocks, a file system without direct reads, or a failing disk: reading through the cache shows which.
            Err(_) => {
                self.direct = false;
                Ok(None)
            }
        }
    }

    fn read_cached(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // No read-ahead for direct reads: the next windows must not be cached when they are read directly.
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

    /// Notes the parts of a range that are not cached at all.
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

    /// Drops from the page cache what was read up to `end`, if it was not cached before. If the node has written to a part
    /// meanwhile, that part is kept: the kernel would first write it to the disk, with our I/O class, and the node's fsync
    /// would wait for that. If we cannot see the page cache of the file (overlayfs), everything is kept.
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

/// Takes the windows of a file.
pub(crate) trait Sink {
    /// Asked before each window; an error ends the reading.
    fn proceed(&mut self) -> Result<()>;

    /// Takes a window, which is aligned in memory, and full unless it is the last.
    fn take(&mut self, window: &[u8]) -> Result<()>;
}

/// Takes the windows of two files that are compared.
pub(crate) trait PairSink {
    /// Asked before each window; an error ends the reading.
    fn proceed(&mut self) -> Result<()>;

    /// Takes a window as [`Sink::take`], and the same range of the second file, as far as that has it, or why it cannot be read.
    fn take(&mut self, window: &[u8], second: io::Result<&[u8]>) -> Result<()>;
}

/// A file to read, and how much of it at most.
pub(crate) type Limited<'a> = (&'a mut (dyn Read + Send), u64);

/// Gives the first `limit_bytes` of a file (the whole file, if it is shorter) to `sink`, window by window. `failed` is the
/// context of a read error.
pub(crate) fn each_window(
    from: &mut (dyn Read + Send),
    limit_bytes: u64,
    failed: &dyn Fn() -> String,
    sink: &mut dyn Sink,
) -> Result<()> {
    thread::scope(|scope| {
        let mut windows = Windows::begin(scope, (from, limit_bytes));
        loop {
            sink.proceed()?;
            match windows.next().context(failed)? {
                [] => return Ok(()),
                window => sink.take(window)?,
            }
        }
    })
}

/// As [`each_window`] for the file `first`, beside a second one, whose windows have the same offsets. Each has a thread of its own that
/// reads.
pub(crate) fn each_window_of_two(
    first: Limited<'_>,
    second: Limited<'_>,
    failed: &dyn Fn() -> String,
    sink: &mut dyn PairSink,
) -> Result<()> {
    thread::scope(|scope| {
        let (mut windows, mut beside) = (Windows::begin(scope, first), Windows::begin(scope, second));
        loop {
            sink.proceed()?;
            match windows.next().context(failed)? {
                [] => return Ok(()),
                window => sink.take(window, beside.next())?,
            }
        }
    })
}

/// The windows of a file, in order.
enum Windows<'a> {
    /// Each is read when it is asked for.
    Here { from: &'a mut (dyn Read + Send), left_bytes: u64, window: Window },
    /// A thread reads them ahead.
    Ahead {
        give_back: mpsc::Sender<Window>,
        filled: mpsc::Receiver<io::Result<(Window, usize)>>,
        current: Option<Window>,
    },
}

impl<'a> Windows<'a> {
    /// Begins to read, with a thread of its own if the file is large, and a thread can be started.
    fn begin<'scope>(scope: &'scope Scope<'scope, '_>, (from, limit_bytes): Limited<'a>) -> Windows<'a>
    where
        'a: 'scope,
    {
        let here = |from| Windows::Here { from, left_bytes: limit_bytes, window: Window::new(limit_bytes) };
        if limit_bytes < THREAD_FROM_BYTES {
            return here(from);
        }
        let (hand_over, handed_over) = mpsc::channel::<&mut (dyn Read + Send)>();
        let (give_back, empty) = mpsc::channel::<Window>();
        let (give, filled) = mpsc::channel();
        let read = move || {
            let Ok(from) = handed_over.recv() else { return };
            let mut left_bytes = limit_bytes;
            for mut window in empty {
                let result = window.fill_next(from, &mut left_bytes).map(|count| (window, count));
                let is_last = result.as_ref().map_or(true, |(_, count)| *count == 0);
                // The receiver has stopped: an error, or the job was cancelled.
                if give.send(result).is_err() || is_last {
                    break;
                }
            }
        };
        if thread::Builder::new().name("read".to_owned()).spawn_scoped(scope, read).is_err() {
            return here(from);
        }
        for _ in 0..WINDOWS {
            let _ = give_back.send(Window::new(limit_bytes));
        }
        let _ = hand_over.send(from);
        Windows::Ahead { give_back, filled, current: None }
    }

    /// The next window; it is empty at the end. Not asked again after an error.
    fn next(&mut self) -> io::Result<&[u8]> {
        match self {
            Windows::Here { from, left_bytes, window } => {
                let count = window.fill_next(*from, left_bytes)?;
                Ok(window.filled(count))
            }
            Windows::Ahead { give_back, filled, current } => {
                if let Some(window) = current.take() {
                    let _ = give_back.send(window);
                }
                // The thread has ended after the last window.
                let Ok(next) = filled.recv() else { return Ok(&[]) };
                let (window, count) = next?;
                Ok(current.insert(window).filled(count))
            }
        }
    }
}

/// Memory for [`WINDOW_BYTES`], or for less if the file is shorter. Nothing else lies in its pages: while the disk writes to
/// them, a fork must not copy them (open(2), O_DIRECT).
pub(crate) struct Window {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Window {
    pub(crate) fn new(limit_bytes: u64) -> Window {
        let page = rustix::param::page_size().max(ALIGNMENT);
        let bytes = usize::try_from(limit_bytes).unwrap_or(usize::MAX).min(WINDOW_BYTES).next_multiple_of(ALIGNMENT);
        let memory = vec![0; bytes.next_multiple_of(page) + page];
        let start = memory.as_ptr().addr().next_multiple_of(page) - memory.as_ptr().addr();
        Window { memory, start, bytes }
    }

    pub(crate) fn filled(&self, count: usize) -> &[u8] {
        &self.memory[self.start..self.start + count]
    }

    /// Reads the next window of a file of which `left_bytes` are left to read; returns the number of bytes.
    fn fill_next(&mut self, from: &mut dyn Read, left_bytes: &mut u64) -> io::Result<usize> {
        let count = if *left_bytes == 0 { 0 } else { self.fill(from, *left_bytes)? };
        *left_bytes -= count as u64;
        Ok(count)
    }

    /// Reads until the window is full or has `limit_bytes`, or the file ends; returns the number of bytes.
    pub(crate) fn fill(&mut self, from: &mut dyn Read, limit_bytes: u64) -> io::Result<usize> {
        let window = &mut self.memory[self.start..self.start + self.bytes];
        let limit = usize::try_from(limit_bytes).unwrap_or(usize::MAX).min(window.len());
        let mut count = 0;
        while count < limit {
            // Whole blocks can be read past the page cache.
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

/// Drops one of our files from the page cache.
pub(crate) fn forget_cached(path: &Path) {
    if let Ok(file) = nofollow::open_regular(path) {
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    }
}
