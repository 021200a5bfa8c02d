//! Reading that keeps out of the node's way: the page cache is the node's, and what we read once is not worth a place in it.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

/// `RWF_DONTCACHE` of linux/fs.h: what is read leaves the page cache again, unless it was there already.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// How far the kernel is asked to read ahead, so that the disk reads while a copy waits for its writes.
const AHEAD_BYTES: u64 = 2 * 1024 * 1024;

/// Reads through a descriptor that belongs to somebody else, by position.
pub(crate) struct QuietReader<'a> {
    fd: BorrowedFd<'a>,
    at: u64,
    flags: ReadWriteFlags,
    /// Up to where the kernel was asked to read ahead.
    ahead: u64,
}

impl QuietReader<'_> {
    /// From the beginning; `quiet` is to leave no trace in the page cache, where kernel and file system can do that.
    pub(crate) fn new(fd: BorrowedFd<'_>, quiet: bool) -> QuietReader<'_> {
        QuietReader { fd, at: 0, flags: if quiet { DONTCACHE } else { ReadWriteFlags::empty() }, ahead: 0 }
    }
}

impl Read for QuietReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // What was asked for so stays in the cache, so only where that may be.
        if self.flags.is_empty()
            && self.at + AHEAD_BYTES > self.ahead
            && let Some(length) = NonZeroU64::new(AHEAD_BYTES)
        {
            let _ = rustix::fs::fadvise(self.fd, self.ahead, Some(length), Advice::WillNeed);
            self.ahead += AHEAD_BYTES;
        }
        let count = match rustix::io::preadv2(self.fd, &mut [IoSliceMut::new(buffer)], self.at, self.flags) {
            // Neither every kernel nor every file system has the flag.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if !self.flags.is_empty() => {
                self.flags = ReadWriteFlags::empty();
                rustix::io::pread(self.fd, buffer, self.at)?
            }
            other => other?,
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// Lets what was read of a file of ours leave the page cache.
pub(crate) fn forget_cached(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    }
}
