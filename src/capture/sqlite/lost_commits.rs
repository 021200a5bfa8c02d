//! Finds commits in the WAL of a stopped node's database that SQLite does not apply any more, because a frame before them is damaged.
//!
//! SQLite ends its recovery at the first frame whose checksum is wrong, and reports nothing. A frame behind it belongs to the same WAL
//! if it has its salts; that it is whole shows in its checksum, which continues that of the frame before it. Frames without a commit
//! behind them are the end of a transaction that was never committed, and are no loss.
//!
//! Invariants: only the `-wal` is read, and only if no process has the database open; a copy does not depend on the result.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::capture::source::SqliteSource;
use crate::capture::sqlite::locks::has_other_user;
use crate::capture::sqlite::wal::{HEADER_BYTES, Header};
use crate::control::Control;
use crate::database_files::wal_of;
use crate::disk::nofollow;
use crate::error::{IoContext, Result};

/// How much is read at once while the frames are followed.
const READ_BYTES: usize = 256 * 1024;

/// A warning for the commits that SQLite loses of a database that no process has open; `None` if it loses none.
pub(crate) fn warning(source: &SqliteSource, database: &Path, control: &Control) -> Result<Option<String>> {
    if matches!(source, SqliteSource::Embedded(_)) || has_other_user(database)? {
        return Ok(None);
    }
    let path = wal_of(database);
    let failed = || format!("cannot read {}", path.display());
    let file = match nofollow::open_of_node(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.context(failed)?,
    };
    let mut wal = Wal { file, control };
    let Some((header, frames)) = wal.valid_frames().context(failed)? else { return Ok(None) };
    let lost_count = wal.commits_after(&header, frames).context(failed)?;
    control.check()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let at = header.extent_bytes(frames);
    Ok((lost_count > 0).then(|| {
        format!(
            "{name} is damaged at byte {at}: SQLite does not apply the {lost_count} commits behind it, and the backup does not have \
             them either"
        )
    }))
}

struct Wal<'a> {
    file: File,
    control: &'a Control,
}

impl Wal<'_> {
    /// The header, and the number of frames up to the first damaged one; `None` if there is no header.
    fn valid_frames(&mut self) -> io::Result<Option<(Header, u64)>> {
        let mut bytes = vec![0; HEADER_BYTES];
        if !self.read(&mut bytes, 0)? {
            return Ok(None);
        }
        let Some(header) = Header::parse(&bytes) else { return Ok(None) };
        let mut scan = header.scan(u64::MAX);
        let (mut piece, mut at) = (vec![0; READ_BYTES], HEADER_BYTES as u64);
        while !scan.has_ended() {
            self.control.check().map_err(io::Error::other)?;
            match self.file.read_at(&mut piece, at)? {
                0 => break,
                count => {
                    scan.take(&piece[..count]);
                    at += count as u64;
                }
            }
        }
        let frames = scan.whole();
        Ok(Some((header, frames)))
    }

    /// How many whole frames with a commit are behind frame `frames`, of the same WAL.
    fn commits_after(&mut self, header: &Header, frames: u64) -> io::Result<u64> {
        let mut frame = vec![0; header.frame_bytes()];
        let (mut before, mut lost_count) = (None, 0);
        for at in frames.. {
            self.control.check().map_err(io::Error::other)?;
            if !self.read(&mut frame, header.extent_bytes(at))? {
                break;
            }
            let is_own = header.is_salted(&frame);
            if let Some(chain) = before
                && is_own
                && header.continues(chain, &frame)
                && Header::commits(&frame)
            {
                lost_count += 1;
            }
            before = is_own.then(|| Header::chain_in(&frame));
        }
        Ok(lost_count)
    }

    /// Fills the buffer; false if the file ends before.
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<bool> {
        match self.file.read_exact_at(buffer, at) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| true),
        }
    }
}
