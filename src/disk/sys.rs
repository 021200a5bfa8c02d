//! System calls that need `unsafe`, each with its proof. No other file of the crate contains `unsafe`.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::disk::file_id::FileId;

/// What a supervisor tells a process: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
const SUPERVISOR_VARIABLES: [&str; 6] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The nice value of a thread that yields to others.
const NICE: i32 = 10;

/// The time slice that such a thread asks for: longer than the kernel's default of 0.7 to 3 ms, but short enough for other
/// busy threads that wait for theirs.
const TURN: Duration = Duration::from_millis(5);

/// The descriptors of this process that are open on the file `(device, inode)`, borrowed as long as `keeper`.
///
/// They belong to SQLite and must not be closed: closing any descriptor of a file drops every POSIX lock that this process
/// has on it, and so SQLite's. The caller guarantees that `keeper` keeps them open: it is an SQLite connection in a read
/// transaction on that file.
#[expect(clippy::disallowed_methods, reason = "lists the descriptors of this process")]
pub(crate) fn descriptors_of<K>(file: FileId, _keeper: &K) -> io::Result<Vec<BorrowedFd<'_>>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|n| n.parse::<RawFd>().ok()) else { continue };
        // A descriptor that was closed meanwhile is not one of the keeper's.
        let Ok(meta) = fs::metadata(entry.path()) else { continue };
        if FileId::from(&meta) == file {
            // SAFETY: the descriptor was open on this file a moment ago. SQLite (os_unix.c, unixClose and setPendingFd)
            // closes no descriptor of a database while any connection of the process has a lock on it, and the
            // descriptor of a -shm while any connection uses it. The keeper is such a connection, in a read transaction,
            // and is borrowed for as long as the descriptor is. Other code of this process must not open these files:
            // `SqliteSource::Embedded` states that rule.
            found.push(unsafe { BorrowedFd::borrow_raw(number) });
        }
    }
    Ok(found)
}

/// Takes a POSIX read lock of this process on a range of a file, without waiting. The lock ends when the process closes any
/// descriptor of the file.
///
/// # Errors
/// `EACCES` or `EAGAIN` if another process has a write lock there.
pub(crate) fn read_lock(file: &File, first: i64, bytes: i64) -> io::Result<()> {
    set_lock(file, libc::F_SETLK, libc::F_RDLCK, first, bytes)
}

/// Makes `bytes` bytes of `to` share the blocks of `from`, at the same offset in both; 0 bytes mean up to the end.
///
/// # Errors
/// `EOPNOTSUPP`, `EXDEV` or `EINVAL` if the file systems cannot share blocks.
pub(crate) fn clone_range(from: BorrowedFd<'_>, to: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: offset,
        src_length: bytes,
        dest_offset: offset,
    };
    // SAFETY: both descriptors are open while they are borrowed; FICLONERANGE (ioctl_ficlonerange(2)) reads one
    // `file_clone_range`, which lives until the call returns, and writes to no memory of ours.
    let result = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What to do with a range of a file that was just written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Flush {
    /// Begin to write it to the disk.
    Start,
    /// Wait until it is on the disk.
    Wait,
}

/// Paces writing, so that a large copy never queues much in front of another program's fsync. It makes nothing durable: only
/// an fsync does.
///
/// # Errors
/// An error of writing the range to the disk. The kernel reports it once: a later fsync may succeed, so this error must not be
/// ignored. If the file system does not support the call, that is no error: only the pacing is missing.
pub(crate) fn flush_range(file: &File, offset: u64, bytes: u64, flush: Flush) -> io::Result<()> {
    let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else { return Ok(()) };
    let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let flags = match flush {
        Flush::Start => libc::SYNC_FILE_RANGE_WRITE,
        Flush::Wait => wait,
    };
    // SAFETY: the descriptor is open while `file` is borrowed; the call takes plain numbers and touches no memory.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, flags) };
    let error = io::Error::last_os_error();
    let cannot = [libc::EINVAL, libc::ENOSYS, libc::ESPIPE, libc::EOPNOTSUPP];
    if result == 0 || error.raw_os_error().is_some_and(|errno| cannot.contains(&errno)) { Ok(()) } else { Err(error) }
}

/// Gives other programs precedence from now on: this thread, and the threads and processes that it starts, run with a low CPU
/// weight and use the disk (if its scheduler supports I/O classes) only while it is otherwise idle. Changes nothing if that is
/// not permitted.
pub fn step_back() {
    // linux/ioprio.h: 1 stands for one process or thread, and the identifier 0 for the caller; class 3 is idle, and the class
    // stands above 13 bits of data.
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_IDLE: libc::c_int = 3 << 13;
    // SAFETY: ioprio_set(2) takes three numbers and touches no memory.
    let _ = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE) };
    // On Linux a nice value belongs to the thread. A higher one was set on purpose.
    let nice = rustix::process::getpriority_process(None).map_or(NICE, |nice| nice.max(NICE));
    let _ = rustix::process::setpriority_process(None, nice);
    yield_at_once(nice);
}

/// Takes over descriptors `first`, `first + 1`, … that this process has inherited; children do not inherit them again.
///
/// # Errors
/// The number of one that is not open.
///
/// The caller guarantees that this process has opened no file yet, and that nobody else takes these descriptors over.
pub(crate) fn take_over(first: RawFd, count: usize) -> Result<Vec<OwnedFd>, RawFd> {
    let numbers: Vec<RawFd> = (first..).take(count).collect();
    for number in &numbers {
        // SAFETY: fcntl(2) with F_SETFD takes numbers and touches no memory; it fails with EBADF for what is not open.
        if unsafe { libc::fcntl(*number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(*number);
        }
    }
    // SAFETY: each is open, see above. It has no other owner: this process has opened no file, so it was open when the program began, and
    // the caller takes them over once.
    Ok(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// Keeps from the process that the command starts what a supervisor has told this one: it must not speak for the service.
pub(crate) fn forget_supervisor(command: &mut Command) {
    for name in SUPERVISOR_VARIABLES {
        command.env_remove(name);
    }
}

/// Lets the process that the command starts inherit no descriptor but its standard input, output and error, whatever this process, or a
/// node in it, has opened without `O_CLOEXEC`. Changes nothing before Linux 5.11; our own descriptors are never inherited.
pub(crate) fn inherit_no_descriptor(command: &mut Command) {
    /// linux/close_range.h
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    let mark = || {
        // SAFETY: close_range(2) takes three numbers and touches no memory; with this flag it closes nothing before the exec.
        let _ =
            unsafe { libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call; it allocates nothing and takes no lock.
    let _ = unsafe { command.pre_exec(mark) };
}

/// Asks for long time slices, with the weight of `nice`. From Linux 6.12 on, a thread with shorter slices (the default)
/// preempts us as soon as it wakes up and has not had its share; otherwise it would wait until our slice ends. Measured on two
/// processors beside a node that syncs 180 batches a second: during a backup the node waits for more than a millisecond three
/// times a second instead of 14 times.
fn yield_at_once(nice: i32) {
    /// `struct sched_attr` of linux/sched/types.h, in its first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime_ns: u64,
        deadline_ns: u64,
        period_ns: u64,
    }
    // linux/sched.h: do not change the policy.
    const SCHED_FLAG_KEEP_POLICY: u64 = 0x08;
    let mut attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: 0,
        flags: SCHED_FLAG_KEEP_POLICY,
        nice,
        priority: 0,
        runtime_ns: TURN.as_nanos() as u64,
        deadline_ns: 0,
        period_ns: 0,
    };
    // SAFETY: sched_setattr(2) reads as many bytes of the structure as its first field says; the structure lives until the call
    // returns. The kernel would write to that field if it did not support this size, but it is the size of the first version.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0 as libc::c_uint) };
}

/// How much of a range of a file is in the page cache.
#[derive(Debug)]
pub(crate) struct Cached {
    pages: u64,
    /// Pages that wait to be written to the disk, or are being written.
    pub(crate) unwritten_pages: u64,
}

impl Cached {
    /// The cached bytes of the range, in whole pages.
    pub(crate) fn bytes(&self) -> u64 {
        self.pages * rustix::param::page_size() as u64
    }
}

/// How much of a range of a file is in the page cache, which this does not change: cachestat(2), from Linux 6.5 on. `None` if
/// the kernel does not support or permit the call.
pub(crate) fn cached(fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Option<Cached> {
    // The number is the same on every architecture that Rust supports except MIPS, which has no call of this number.
    const SYS_CACHESTAT: libc::c_long = 451;
    #[repr(C)]
    #[derive(Default)]
    struct Answer {
        cached: u64,
        dirty: u64,
        in_writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = [offset, bytes];
    let mut answer = Answer::default();
    // SAFETY: the descriptor is open while it is borrowed. The call reads two 64-bit numbers, `struct cachestat_range`, and
    // writes five, `struct cachestat`; both live until it returns. No flags are defined.
    let result =
        unsafe { libc::syscall(SYS_CACHESTAT, fd.as_raw_fd(), range.as_ptr(), &raw mut answer, 0 as libc::c_uint) };
    (result == 0).then_some(Cached { pages: answer.cached, unwritten_pages: answer.dirty + answer.in_writeback })
}

/// Takes a write lock on a range of a file, without waiting. It conflicts with the POSIX locks of other processes, but belongs
/// to the open file: it ends when `file` is closed, not when this process closes another descriptor of the same file.
///
/// # Errors
/// `EACCES` or `EAGAIN` if another process, or another open file, has a lock there.
pub(crate) fn write_lock(file: &File, first: i64, bytes: i64) -> io::Result<()> {
    lock_open_file(file, libc::F_WRLCK, first, bytes)
}

/// Ends the locks of [`write_lock`] and the lease of [`lease`]. Closing is not enough: a process that was just forked has a copy of the
/// descriptor, and with it both, until its exec.
pub(crate) fn release(file: &File) {
    // An error means that there is none.
    let _ = set_lease(file, libc::F_UNLCK);
    let _ = lock_open_file(file, libc::F_UNLCK, 0, 0);
}

fn lock_open_file(file: &File, kind: libc::c_int, first: i64, bytes: i64) -> io::Result<()> {
    set_lock(file, libc::F_OFD_SETLK, kind, first, bytes)
}

/// Sets a lock of the process (`F_SETLK`) or of the open file (`F_OFD_SETLK`), and does not wait.
fn set_lock(file: &File, command: libc::c_int, kind: libc::c_int, first: i64, bytes: i64) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: first,
        l_len: bytes,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open while `file` is borrowed; both commands (fcntl(2), fcntl_locking(2)) read one `flock`, which
    // lives until the call returns, and write to no memory of ours.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a write lease on a file that is open for writing: from now on, a process that opens the file waits until `file` is
/// closed, at most `/proc/sys/fs/lease-break-time` seconds, and [`is_leased`] returns false while a process waits.
///
/// # Errors
/// `EAGAIN` if the file is open elsewhere; other errors if this file, file system or user can have no leases.
pub(crate) fn lease(file: &File) -> io::Result<()> {
    /// linux/fcntl.h
    const F_SETSIG: libc::c_int = 10;
    let fd = file.as_raw_fd();
    // The kernel sends a signal when a process waits: by default SIGIO, which would end this process; SIGURG is ignored.
    // SAFETY: the descriptor is open while `file` is borrowed; F_SETSIG (fcntl(2)) takes a number and touches no memory.
    let asked = unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    set_lease(file, libc::F_WRLCK)
}

fn set_lease(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` is borrowed; F_SETLEASE (fcntl(2)) takes a number and touches no memory.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the lease of [`lease`] still exists and no process waits for its end.
pub(crate) fn is_leased(file: &File) -> bool {
    // SAFETY: the descriptor is open while `file` is borrowed; F_GETLEASE (fcntl(2)) takes nothing and touches no memory.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_WRLCK }
}

/// Makes btrfs commit all changes, and waits for that: one commit, such as it makes every half minute by itself. Afterwards an
/// fsync of a file that was written before has nothing to do.
///
/// # Errors
/// `ENOTTY` or similar on another file system.
pub(crate) fn commit_btrfs(fd: BorrowedFd<'_>) -> io::Result<()> {
    // linux/btrfs.h: _IOR(0x94, 24, __u64) and _IOW(0x94, 22, __u64), as most architectures encode them.
    const START_SYNC: u32 = 0x8008_9418;
    const WAIT_SYNC: u32 = 0x4008_9416;
    let mut transaction = 0_u64;
    for request in [START_SYNC, WAIT_SYNC] {
        // SAFETY: the descriptor is open while it is borrowed. The first call writes one 64-bit number, the second reads it;
        // it lives until they return. Another file system rejects these requests and touches nothing.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut transaction) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The bytes of a file that lie in blocks which it shares with other files: FIEMAP (Documentation/filesystems/fiemap.rst).
///
/// # Errors
/// `EOPNOTSUPP` if the file system does not report that; `E2BIG` if the file is in more than a million pieces.
pub(crate) fn shared_bytes(file: &File) -> io::Result<u64> {
    const EXTENTS: usize = 512;
    const MAX_CALLS: usize = 2048;
    // linux/fs.h: _IOWR('f', 11, struct fiemap), as most architectures encode it; linux/fiemap.h.
    const FIEMAP: u32 = 0xc020_660b;
    const LAST: u32 = 0x1;
    const SHARED: u32 = 0x2000;
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Extent {
        logical: u64,
        physical: u64,
        bytes: u64,
        reserved: [u64; 2],
        flags: u32,
        reserved_more: [u32; 3],
    }
    #[repr(C)]
    struct Map {
        start: u64,
        bytes: u64,
        flags: u32,
        mapped: u32,
        room: u32,
        reserved: u32,
        extents: [Extent; EXTENTS],
    }
    let (mut start, mut shared_bytes) = (0, 0);
    for _ in 0..MAX_CALLS {
        let mut map = Map {
            start,
            bytes: u64::MAX - start,
            flags: 0,
            mapped: 0,
            room: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: the descriptor is open while it is borrowed. The call reads the first 32 bytes and writes at most as many extents
        // behind them as `room` says; the structure has room for them and lives until the call returns.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP as _, &raw mut map) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut extents = map.extents.iter().take(map.mapped as usize);
        shared_bytes +=
            extents.clone().filter(|extent| extent.flags & SHARED != 0).map(|extent| extent.bytes).sum::<u64>();
        match extents.next_back() {
            Some(last) if last.flags & LAST == 0 => start = last.logical + last.bytes,
            _ => return Ok(shared_bytes),
        }
    }
    Err(io::Error::from_raw_os_error(libc::E2BIG))
}

/// Makes xfs copy blocks one by one when a shared block of this empty file is written to: by default it copies 128 KiB.
///
/// # Errors
/// Another file system has no such setting.
pub(crate) fn set_cow_extent_bytes(file: &File, bytes: u32) -> io::Result<()> {
    /// `struct fsxattr` of linux/fs.h.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        flags: u32,
        extent_bytes: u32,
        extents_count: u32,
        project: u32,
        cow_extent_bytes: u32,
        padding: [u8; 8],
    }
    // linux/fs.h: _IOR('X', 31, struct fsxattr), _IOW('X', 32, struct fsxattr), as most architectures encode them.
    const GET: u32 = 0x801c_581f;
    const SET: u32 = 0x401c_5820;
    const HAS_COW_EXTENT_BYTES: u32 = 0x0001_0000;
    let mut attributes = Attributes::default();
    for request in [GET, SET] {
        // SAFETY: the descriptor is open while it is borrowed. The first call writes one structure, the second reads it; it lives
        // until they return. Another file system rejects these requests, or the value.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw mut attributes) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        attributes.flags |= HAS_COW_EXTENT_BYTES;
        attributes.cow_extent_bytes = bytes;
    }
    Ok(())
}
