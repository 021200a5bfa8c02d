//! Reads a database as a read transaction sees it: the file, with the newest frame of each page in its WAL up to a commit.
//!
//! That is what the fold of a raw copy gives: SQLite's WAL checkpoint writes the newest frame of each page up to the last commit to the
//! file, and sets the size of the file to the number of pages in that commit. Pages that a WAL checkpoint of the node writes to the file
//! meanwhile come from these frames, and are replaced here as well.
//!
//! Invariants
//! - The caller holds the read transaction, and checks afterwards that the WAL was not restarted.
//! - A frame is used only if it is the one that was scanned: its page number, its salts and its checksum in the chain are compared
//!   again when it is read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::capture::sqlite::wal::{Header, Place};
use crate::disk::quiet_reader::QuietReader;

/// The frames that are read instead of pages of the file.
pub(crate) struct Frames<'a> {
    pub(crate) wal: &'a File,
    pub(crate) header: &'a Header,
    /// By page.
    pub(crate) places: &'a [Place],
}

/// A database, read from its beginning.
pub(crate) struct Snapshot<'a> {
    file: QuietReader<'a>,
    /// Whether the file has ended: pages behind its end are in the WAL, or are zero.
    has_ended: bool,
    frames: Option<Frames<'a>>,
    frame: Vec<u8>,
    at: u64,
    bytes: u64,
    /// Whether a frame was another one than at the scan.
    pub(crate) is_broken: bool,
}

impl<'a> Snapshot<'a> {
    /// The first `bytes` bytes of the database in `file`.
    pub(crate) fn new(file: QuietReader<'a>, frames: Option<Frames<'a>>, bytes: u64) -> Snapshot<'a> {
        let frame = vec![0; frames.as_ref().map_or(0, |frames| frames.header.frame_bytes())];
        Snapshot { file, has_ended: false, frames, frame, at: 0, bytes, is_broken: false }
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts the pages of the frames into `buffer`, which begins at `self.at`.
    fn overlay(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(Frames { wal, header, places }) = &self.frames else { return Ok(()) };
        let page_bytes = header.page_bytes() as u64;
        let end = self.at + buffer.len() as u64;
        let start_of = |place: &Place| u64::from(place.page.saturating_sub(1)) * page_bytes;
        let first = places.partition_point(|place| start_of(place) + page_bytes <= self.at);
        for place in places[first..].iter().take_while(|place| start_of(place) < end) {
            wal.read_exact_at(&mut self.frame, header.extent_bytes(u64::from(place.frame) - 1))?;
            let Some(page) = header.page_in(place, &self.frame) else {
                self.is_broken = true;
                return Err(io::Error::other(format!("frame {} of the WAL has changed", place.frame)));
            };
            // A page may begin before the buffer, and end behind it.
            let start = start_of(place);
            let (from, to) = (start.max(self.at), (start + page_bytes).min(end));
            let of_page = &page[(from - start) as usize..(to - start) as usize];
            buffer[(from - self.at) as usize..(to - self.at) as usize].copy_from_slice(of_page);
        }
        Ok(())
    }
}

impl Read for Snapshot<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.bytes - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        let mut count = if self.has_ended || wanted == 0 { 0 } else { self.file.read(buffer)? };
        if count == 0 {
            self.has_ended = true;
            buffer.fill(0);
            count = wanted;
        }
        self.overlay(&mut buffer[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}
