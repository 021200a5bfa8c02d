//! An increment: a file that is a clone of an earlier one, with the blocks that differ from a source written over it.
//!
//! ```text
//! 1  a new file; on xfs it copies shared blocks one by one (FS_XFLAG_COWEXTSIZE)
//! 2  clone the earlier file into it: both share all blocks
//! 3  window by window: read the source, read the clone, write the blocks that differ
//! 4  the size of the source: truncate, or extend
//! ```
//! Why the result is the source, whatever is in the earlier file: what is compared is the new file itself. It is read past the page
//! cache, so from the disk, after it was cloned, and no process but this one writes to it: only to blocks that were read before. Each of
//! its blocks was read and is equal to the source's, or was written, or lies behind its former end and was written or is a hole, which
//! reads as zeroes as the source's does there. A block of the earlier file that has rotted differs from the source, and is written like
//! one that has changed. A block that rots after it was compared is lost, as it would be in a copy.
//!
//! A change is told from damage by the sums of the earlier file, which were computed when it was made (`piece_sums`): a piece that
//! differs from the source and from its own sum is damaged. Then, and after an error of reading, there is no increment: the caller
//! makes a copy, which shares no block with a file on bad ground. If the source has the very bytes of the damaged piece, it probably shares
//! them, as after a restore that cloned: then the source is damaged too.
//!
//! Invariants: the earlier file is only read. If there is no increment, the new file is removed; after an error the caller removes it.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, Mode, OFlags};

use crate::control::Control;
use crate::disk::copy::{self, Copier, clone_into};
use crate::disk::fault_gate::pass;
use crate::disk::file_id::FileId;
use crate::disk::nofollow;
use crate::disk::piece_sums::{PIECE_BYTES, PieceSum, PieceSums};
use crate::disk::quiet_reader::{Limited, PairSink, QuietReader, each_window_of_two};
use crate::disk::sys::{self, Flush};
use crate::disk::unsynced::{PACE_BYTES, Unsynced, is_on_ext4_or_xfs, is_on_xfs_or_btrfs};
use crate::disk::{create_new, remove_file, require_room};
use crate::error::{Error, IoContext, Kind, Result, failed};

/// The unit that is compared and written: that of xfs, btrfs and the page cache. If only a part of it were written, the file system
/// would first have to read the rest.
const BLOCK_BYTES: usize = 4096;

/// How much is written, and the longest time, between two checks of the free space: by so much the reserve is missed at most.
const LOOK_BYTES: u64 = 1024 * 1024;
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The earlier file.
pub(crate) struct Earlier<'a> {
    pub(crate) file: &'a File,
    pub(crate) bytes: u64,
    /// Its sums, if they are known.
    pub(crate) sums: Option<&'a PieceSums>,
}

/// The source: `bytes` bytes, each in its final state.
pub(crate) struct Source<'a> {
    pub(crate) from: &'a mut (dyn io::Read + Send),
    pub(crate) bytes: u64,
}

/// The result of [`make`].
#[derive(Debug)]
pub(crate) enum Incremented {
    /// The new file has the content of the source.
    Done(Increment),
    /// The file system cannot clone.
    CannotClone,
    /// There is no increment.
    Refused(Refusal),
}

/// A new file that is an increment.
#[derive(Debug)]
pub(crate) struct Increment {
    pub(crate) unsynced: Unsynced,
    /// The bytes that were written.
    pub(crate) written_bytes: u64,
    /// The sums of the new file.
    pub(crate) sums: PieceSums,
}

/// Why there is no increment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) why: String,
    /// Whether the earlier file is damaged.
    pub(crate) is_damaged: bool,
    /// Whether the source has the same bytes as the damaged piece.
    pub(crate) is_in_source: bool,
}

impl Refusal {
    /// For a reason other than damage.
    pub(crate) fn new(why: impl Into<String>) -> Refusal {
        Refusal { why: why.into(), is_damaged: false, is_in_source: false }
    }

    /// Because the earlier file is damaged.
    pub(crate) fn damaged(why: impl Into<String>, is_in_source: bool) -> Refusal {
        Refusal { why: why.into(), is_damaged: true, is_in_source }
    }
}

/// Makes the new file `to` with the content of the source, not yet synced, as a clone of the earlier file. Counts the bytes of the
/// source on the control, and stops as a copy does. An error of the source, of the control, of `watch`, or of writing, is an error.
pub(crate) fn make(
    copier: Copier<'_>,
    earlier: &Earlier<'_>,
    source: Source<'_>,
    to: &Path,
    watch: &dyn Fn() -> Result<()>,
) -> Result<Incremented> {
    let out = create_new("clone", to, copier.owner)?;
    if is_on_ext4_or_xfs(&out) {
        // Without it xfs copies more than is written. It is no error if that cannot be set.
        let _ = sys::set_cow_extent_bytes(&out, BLOCK_BYTES as u32);
    }
    let reading = match clone_earlier(copier.control, earlier, (&out, to), watch)? {
        Ok(reading) => reading,
        Err(none) => return none.without(to),
    };
    pass("patch", to).context(|| failed("write", to))?;
    let mut patching = Patching {
        out: &out,
        to,
        control: copier.control,
        watch,
        cloned_bytes: earlier.bytes,
        earlier: earlier.sums,
        done: 0,
        pieces: ComparedPieces::default(),
        writing: Writing::default(),
        refusal: None,
        room: RoomCheck::new(),
    };
    let unreadable = || format!("cannot read the source of {}", to.display());
    let mut ours = QuietReader::past_cache(&reading);
    let second: Limited<'_> = (&mut ours, earlier.bytes);
    let result = each_window_of_two((source.from, source.bytes), second, &unreadable, &mut patching);
    if let Some(refusal) = patching.refusal.take() {
        return Incremented::Refused(refusal).without(to);
    }
    result?;
    if patching.done != source.bytes {
        return refused(format!("the source ended after {} of {} bytes", patching.done, source.bytes)).without(to);
    }
    let (written_bytes, sums) = patching.finish()?;
    Ok(Incremented::Done(Increment { unsynced: Unsynced::of(out, to, written_bytes), written_bytes, sums }))
}

/// Clones the earlier file into the new one, which is empty; returns a second descriptor of the new file, to read it, or why there is
/// no increment.
fn clone_earlier(
    control: &Control,
    earlier: &Earlier<'_>,
    (out, to): (&File, &Path),
    watch: &dyn Fn() -> Result<()>,
) -> Result<std::result::Result<File, Incremented>> {
    // Counts nothing: the bytes are counted when they are compared.
    let uncounted = control.another();
    uncounted.set_reserve(control.reserve_bytes());
    let proceed = || {
        control.check()?;
        control.step();
        watch()
    };
    match clone_into(&uncounted, earlier.file.as_fd(), (out, to), &proceed) {
        Ok(true) => {}
        Ok(false) => return Ok(Err(Incremented::CannotClone)),
        Err(e) if e.kind() == Kind::Io => return Ok(Err(refused(format!("it cannot be cloned: {}", e.chain())))),
        Err(e) => return Err(e),
    }
    let cloned_bytes = out.metadata().context(|| failed("look at", to))?.len();
    if cloned_bytes != earlier.bytes {
        return Ok(Err(refused(format!("its clone has {cloned_bytes} bytes instead of {}", earlier.bytes))));
    }
    let reading = nofollow::open_regular(to).context(|| failed("open", to))?;
    let identity = |file: &File| file.metadata().map(|meta| FileId::from(&meta)).context(|| failed("look at", to));
    if identity(&reading)? != identity(out)? {
        return Err(Error::new(Kind::Io, format!("another file has replaced {}", to.display())));
    }
    Ok(Ok(reading))
}

/// There is no increment, for a reason other than damage.
fn refused(why: String) -> Incremented {
    Incremented::Refused(Refusal::new(why))
}

impl Incremented {
    /// Removes the new file.
    fn without(self, to: &Path) -> Result<Incremented> {
        remove_file(to)?;
        Ok(self)
    }
}

/// Whether files in a directory can share blocks, on xfs or btrfs: that is tried with files without names.
pub(crate) fn can_clone(directory: &Path) -> Result<bool> {
    if !is_on_xfs_or_btrfs(directory).context(|| failed("look at", directory))? {
        return Ok(false);
    }
    let unnamed = || -> io::Result<File> {
        let parent = nofollow::open_directory(directory)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&parent, ".", flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all_at(&[1; BLOCK_BYTES], 0)?;
        Ok(file)
    };
    Ok(unnamed().is_ok_and(|file| copy::can_clone(file.as_fd(), directory)))
}

/// The bytes of a file of ours in blocks that it shares with other files; `None` if that is not known.
pub(crate) fn shared_bytes(path: &Path) -> Option<u64> {
    let file = nofollow::open_regular(path).ok()?;
    match sys::shared_bytes(&file) {
        Ok(bytes) => Some(bytes),
        // Only on these file systems do we make files that share blocks.
        Err(_) => (!is_on_xfs_or_btrfs(path.parent()?).ok()?).then_some(0),
    }
}

/// Step 3 and 4.
struct Patching<'a> {
    out: &'a File,
    to: &'a Path,
    control: &'a Control,
    watch: &'a dyn Fn() -> Result<()>,
    /// The size of the clone before anything was written to it.
    cloned_bytes: u64,
    earlier: Option<&'a PieceSums>,
    /// The offset up to which the new file has the content of the source.
    done: u64,
    pieces: ComparedPieces,
    writing: Writing,
    refusal: Option<Refusal>,
    room: RoomCheck,
}

/// The sums of the current piece: of the source, and of the earlier file, if that differs so far.
#[derive(Default)]
pub(crate) struct ComparedPieces {
    new: PieceSum,
    old: Option<PieceSum>,
    sums: PieceSums,
}

impl PairSink for Patching<'_> {
    fn proceed(&mut self) -> Result<()> {
        self.control.check()?;
        (self.watch)()?;
        self.room.check(self.to, self.writing.bytes, self.control)
    }

    fn take(&mut self, new: &[u8], ours: io::Result<&[u8]>) -> Result<()> {
        let old = self.before(new.len(), ours)?;
        for run in differing(old, new) {
            let at = self.done + run.start as u64;
            self.writing.write(self.out, &new[run], at).context(|| failed("write", self.to))?;
        }
        self.done += new.len() as u64;
        let fault = self.pieces.take(old, new, self.earlier);
        if let Some(refusal) = fault {
            return Err(self.refuse(refusal));
        }
        self.control.add_done(new.len() as u64);
        self.control.throttle(new.len() as u64)
    }
}

impl Patching<'_> {
    /// What the new file had in a window of `window_bytes` bytes before anything was written there.
    fn before<'w>(&mut self, window_bytes: usize, ours: io::Result<&'w [u8]>) -> Result<&'w [u8]> {
        let expected = self.cloned_bytes.saturating_sub(self.done).min(window_bytes as u64);
        match ours {
            Ok(ours) if ours.len() as u64 >= expected => Ok(&ours[..expected as usize]),
            Ok(ours) => Err(self.refuse(Refusal::new(format!("its clone ends at {}", self.done + ours.len() as u64)))),
            // A verification finds out whether the disk has lost it.
            Err(e) => Err(self.refuse(Refusal::new(format!("it cannot be read: {e}")))),
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> Error {
        let error = Error::new(Kind::Changed, refusal.why.clone());
        self.refusal = Some(refusal);
        error
    }

    fn finish(self) -> Result<(u64, PieceSums)> {
        let now_bytes = self.out.metadata().context(|| failed("look at", self.to))?.len();
        if now_bytes != self.done {
            let set = pass("truncate", self.to).and_then(|()| self.out.set_len(self.done));
            set.context(|| failed("set the size of", self.to))?;
        }
        Ok((self.writing.bytes, self.pieces.finish()))
    }
}

impl ComparedPieces {
    /// The sums of the source.
    pub(crate) fn finish(self) -> PieceSums {
        let ComparedPieces { new, mut sums, .. } = self;
        sums.push_last(new);
        sums
    }

    /// Takes a window of the earlier file and of the source; returns why there is no increment if the piece that ends here is damaged in
    /// the earlier file.
    pub(crate) fn take(&mut self, old: &[u8], new: &[u8], earlier: Option<&PieceSums>) -> Option<Refusal> {
        if let Some(sum) = &mut self.old {
            sum.take(old);
        } else if old != new {
            let mut sum = self.new.clone();
            sum.take(old);
            self.old = Some(sum);
        }
        self.new.take(new);
        let index = self.sums.sums.len() as u64;
        let start = index * PIECE_BYTES;
        let old = self.old.as_ref().unwrap_or(&self.new);
        let recorded = earlier.and_then(|sums| sums.find(index, start + old.bytes));
        let is_damaged = recorded.is_some_and(|recorded| old.finish() != recorded);
        let is_in_source = self.old.is_none();
        if self.new.bytes == PIECE_BYTES {
            self.sums.push(&std::mem::take(&mut self.new));
            self.old = None;
        }
        is_damaged.then(|| {
            let why = format!("the {PIECE_BYTES} bytes from byte {start} on differ from their recorded sum");
            Refusal::damaged(why, is_in_source)
        })
    }
}

/// The runs of blocks of `new` that differ from those of `old`, which may be shorter. A run of zeroes behind the end of `old` is left out:
/// it becomes a hole.
fn differing(old: &[u8], new: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    if old == new {
        return runs;
    }
    for (n, block) in new.chunks(BLOCK_BYTES).enumerate() {
        let start = n * BLOCK_BYTES;
        let before = &old[start.min(old.len())..(start + block.len()).min(old.len())];
        let is_hole = before.is_empty() && block.iter().all(|byte| *byte == 0);
        if before == block || is_hole {
            continue;
        }
        match runs.last_mut().filter(|run| run.end == start) {
            Some(run) => run.end += block.len(),
            None => runs.push(start..start + block.len()),
        }
    }
    runs
}

/// Checks the free space from time to time while a file is written.
pub(crate) struct RoomCheck {
    next_bytes: u64,
    looked: Instant,
}

impl RoomCheck {
    pub(crate) fn new() -> RoomCheck {
        RoomCheck { next_bytes: 0, looked: Instant::now() }
    }

    /// Fails if the reserve of the job is reached; looks only after [`LOOK_BYTES`] or [`LOOK_INTERVAL`].
    pub(crate) fn check(&mut self, to: &Path, written_bytes: u64, control: &Control) -> Result<()> {
        if written_bytes >= self.next_bytes || self.looked.elapsed() >= LOOK_INTERVAL {
            require_room(to, control.reserve_bytes())?;
            *self = RoomCheck { next_bytes: written_bytes + LOOK_BYTES, looked: Instant::now() };
        }
        Ok(())
    }
}

/// Writes through the page cache, at the pace of the disk: the kernel puts blocks that lie together into one request, and little of it
/// waits in front of the node's own fsync.
#[derive(Default)]
pub(crate) struct Writing {
    /// The bytes that were written.
    bytes: u64,
    /// The range that was written since the last flush, and how many bytes in it.
    range: std::ops::Range<u64>,
    waiting_bytes: u64,
    /// The range of the flush before.
    flushing: std::ops::Range<u64>,
}

impl Writing {
    pub(crate) fn write(&mut self, out: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        for (n, chunk) in bytes.chunks(PACE_BYTES as usize).enumerate() {
            let at = at + n as u64 * PACE_BYTES;
            out.write_all_at(chunk, at)?;
            let start = if self.waiting_bytes == 0 { at } else { self.range.start };
            self.range = start..at + chunk.len() as u64;
            self.bytes += chunk.len() as u64;
            self.waiting_bytes += chunk.len() as u64;
            if self.waiting_bytes >= PACE_BYTES {
                self.flush(out)?;
            }
        }
        Ok(())
    }

    /// Sends what was written to the disk, and waits for what was sent before it.
    fn flush(&mut self, out: &File) -> io::Result<()> {
        let bytes = |range: &std::ops::Range<u64>| NonZeroU64::new(range.end - range.start);
        if let Some(length) = bytes(&self.range) {
            sys::flush_range(out, self.range.start, length.get(), Flush::Start)?;
        }
        if let Some(length) = bytes(&self.flushing) {
            sys::flush_range(out, self.flushing.start, length.get(), Flush::Wait)?;
            let _ = rustix::fs::fadvise(out, self.flushing.start, Some(length), Advice::DontNeed);
        }
        self.flushing = std::mem::take(&mut self.range);
        self.waiting_bytes = 0;
        Ok(())
    }
}
