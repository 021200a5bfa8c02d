//! The file of a Unix socket: created with its final mode, in the place of one that is dead, and removed at the end.
//!
//! # Protocol
//! 1. Take the lock of the name, `.NAME.guard`, which only its owner and root can open: of several programs that start at once only one
//!    goes on.
//! 2. Look at the name. A socket to which a program listens is in use. One that refuses connections is stale: its program was killed.
//!    Anything but a socket is refused, and never removed.
//! 3. Bind a socket to a temporary name, for its owner alone; set group and mode; listen.
//! 4. Give it its name: by an exchange with the stale socket, which is removed then, or only if there is still nothing.
//!
//! The end takes the lock, too: from the moment at which a program accepts no more, its successor may take the name.
//!
//! A crash leaves the temporary name, which the next start removes, or the socket itself, which is stale then. The lock file stays.
//!
//! Invariants
//! - At no moment more users can connect than at the end.
//! - The system's calls get short paths by `/proc/self/fd`, however deep the directory is.
//!
//! # Limitations
//! A program that does not take the lock, such as another kind of server, and takes the same name within these microseconds loses it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::config::SocketAccess;
use crate::disk::fault_gate::pass;
use crate::disk::file_id::FileId;
use crate::disk::lock::Lock;
use crate::disk::nofollow::Place;
use crate::error::{Error, IoContext, Kind, Result, failed};

/// The longest path that fits into an address, unix(7), so that clients can name it.
const PATH_BYTES_MAX: usize = 107;
/// The longest name of the file: with it and a descriptor of its directory an address is complete.
const NAME_BYTES_MAX: usize = 80;
/// How long another program may have the lock: it creates or removes the socket.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long the end waits for it.
const END_WAIT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How often the name may change between a look and the next step.
const TRIES: u32 = 8;

/// The file of a socket of ours. Removed when it is dropped, if it is still that file.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// As it was configured, with the links on the way that clients may need: the path without them may be too long.
    configured: PathBuf,
    id: FileId,
}

impl SocketFile {
    pub(crate) fn configured(&self) -> &Path {
        &self.configured
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let remove = || -> io::Result<()> {
            let Ok(Some(_lock)) = lock(&self.path, END_WAIT) else { return Ok(()) };
            let place = Place::of(&self.path)?;
            match place.look()? {
                Some(stat) if FileId::from(&stat) == self.id => {
                    Ok(rustix::fs::unlinkat(&place.directory, place.name, AtFlags::empty())?)
                }
                _ => Ok(()),
            }
        };
        // A socket that is left is stale, and the next start replaces it.
        let _ = remove();
    }
}

/// Creates the socket, and listens. `backlog` connections may wait to be accepted.
///
/// # Errors
/// [`Kind::Usage`]: a program listens there already, there is something else than a socket, the path is too long, or its directory does
/// not exist. [`Kind::Io`].
pub(crate) fn listen(path: &Path, access: SocketAccess, backlog: i32) -> Result<(UnixListener, SocketFile)> {
    let shown = path.display();
    let name_bytes = path.file_name().map_or(0, |name| name.len());
    if path.as_os_str().len() > PATH_BYTES_MAX || name_bytes > NAME_BYTES_MAX {
        let most = format!("its path may have {PATH_BYTES_MAX} bytes, and its name {NAME_BYTES_MAX}");
        return Err(Error::new(Kind::Usage, format!("{shown} is too long for a socket: {most}")));
    }
    let configured = path;
    let path = resolved(path)?;
    let Some(_lock) = lock(&path, LOCK_WAIT)? else {
        let context =
            format!("{shown} is in use: another service takes it at this moment; stop one, or choose another name");
        return Err(Error::new(Kind::Usage, context));
    };
    let place = Place::of(&path).context(|| failed("open the directory of", &path))?;
    for _ in 0..TRIES {
        let stale = stale_socket(&place, &path)?;
        if let Some((listener, id)) = create(&place, &path, stale, access, backlog)? {
            let configured = configured.to_owned();
            return Ok((listener, SocketFile { path, configured, id }));
        }
    }
    Err(Error::new(Kind::Usage, format!("{shown} is in use: other programs create files there again and again")))
}

/// The path without links on the way: the operator may have put some there, such as `/var/run`.
fn resolved(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        Error::new(
            Kind::Usage,
            format!("{} names no socket: write a path like /run/chainweb-backup.sock", path.display()),
        )
    })?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = parent.canonicalize().map_err(|e| {
        let context = format!("the directory of the socket, {}, cannot be found: create it", parent.display());
        Error::new(Kind::Usage, context).because(e)
    })?;
    Ok(directory.join(name))
}

/// The lock of the name; `None` if another program has it for longer than `wait`.
fn lock(path: &Path, wait: Duration) -> Result<Option<Lock>> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".guard");
    let (path, give_up) = (path.with_file_name(name), Instant::now() + wait);
    loop {
        let taken = Lock::try_take_private(&path)?;
        if taken.is_some() || Instant::now() > give_up {
            return Ok(taken);
        }
        thread::sleep(LOCK_PAUSE);
    }
}

/// The socket of this name to which no program listens; `None` if there is nothing.
fn stale_socket(place: &Place<'_>, path: &Path) -> Result<Option<Stat>> {
    let Some(stat) = place.look().context(|| failed("look at", path))? else { return Ok(None) };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        let context = format!("{} is not a socket: remove it, or choose another name", path.display());
        return Err(Error::new(Kind::Usage, context));
    }
    match connect(place) {
        Err(Errno::CONNREFUSED) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        // A program that listens and is busy.
        Ok(()) | Err(Errno::AGAIN) => {
            let context =
                format!("{} is in use: stop the program that listens there, or choose another name", path.display());
            Err(Error::new(Kind::Usage, context))
        }
        Err(errno) => {
            let context =
                format!("whether a program listens at {} cannot be told: remove it if none does", path.display());
            Err(Error::new(Kind::Usage, context).because(io::Error::from(errno)))
        }
    }
}

/// Connects without waiting.
fn connect(place: &Place<'_>) -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&client, &SocketAddrUnix::new(by_descriptor(&place.directory).join(place.name))?)
}

/// Steps 3 and 4; `None` if the name has changed meanwhile.
fn create(
    place: &Place<'_>,
    path: &Path,
    stale: Option<Stat>,
    access: SocketAccess,
    backlog: i32,
) -> Result<Option<(UnixListener, FileId)>> {
    let temporary = Temporary::of(place);
    let name = Path::new(&temporary.name);
    pass("bind", path).and_then(|()| temporary.remove()).context(|| failed("remove", name))?;
    let socket = temporary.bind().context(|| failed("create the socket", path))?;
    give(place, name, access).context(|| failed("set the group and the mode of", path))?;
    rustix::net::listen(&socket, backlog).map_err(io::Error::from).context(|| failed("listen at", path))?;
    let stat = rustix::fs::statat(&place.directory, name, AtFlags::SYMLINK_NOFOLLOW);
    let id = FileId::from(&stat.map_err(io::Error::from).context(|| failed("look at", path))?);
    let named = temporary.give_name(stale.as_ref()).context(|| failed("create", path))?;
    Ok(named.then(|| (UnixListener::from(socket), id)))
}

/// Sets group and mode of a socket that only its owner can reach until then. The directory may have given it another group.
fn give(place: &Place<'_>, name: &Path, access: SocketAccess) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(&place.directory, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&opened)?;
    let is_ours = stat.st_nlink == 1 && stat.st_uid == rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || !is_ours {
        return Err(io::Error::other("another file has replaced the socket that we created"));
    }
    let gid = access.gid.map_or_else(rustix::process::getegid, Gid::from_raw);
    if stat.st_gid != gid.as_raw() {
        rustix::fs::chownat(&opened, "", None, Some(gid), AtFlags::EMPTY_PATH)?;
    }
    // By a descriptor of the file itself, not by its name; fchmod(2) does not take one of this kind.
    Ok(rustix::fs::chmod(by_descriptor(&opened), Mode::from_raw_mode(access.mode))?)
}

fn by_descriptor(opened: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", opened.as_fd().as_raw_fd()))
}

/// The name of a socket that is not finished. It is removed when this is dropped.
struct Temporary<'a> {
    place: &'a Place<'a>,
    name: OsString,
}

impl<'a> Temporary<'a> {
    fn of(place: &'a Place<'a>) -> Temporary<'a> {
        let mut name = OsString::from(".");
        name.push(place.name);
        name.push(".new");
        Temporary { place, name }
    }

    /// Removes what a crash left: a socket of this name.
    fn remove(&self) -> io::Result<()> {
        match rustix::fs::statat(&self.place.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {
                Ok(rustix::fs::unlinkat(&self.place.directory, &self.name, AtFlags::empty())?)
            }
            Ok(_) => Err(io::Error::other("it is not a socket")),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A socket of this name that only its owner can reach: the kernel takes the mode from the socket, and the umask can only narrow it.
    fn bind(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        let address = SocketAddrUnix::new(by_descriptor(&self.place.directory).join(&self.name))?;
        rustix::net::bind(&socket, &address)?;
        Ok(socket)
    }

    /// False if the name has changed since it was looked at.
    fn give_name(&self, stale: Option<&Stat>) -> io::Result<bool> {
        let (directory, name) = (&self.place.directory, self.place.name);
        let rename = |flags| rustix::fs::renameat_with(directory, &self.name, directory, name, flags);
        let flags = if stale.is_some() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        match rename(flags) {
            Err(Errno::EXIST | Errno::NOENT) => return Ok(false),
            // Some file systems have no such flags. The lock of the directory keeps other services out.
            Err(Errno::INVAL | Errno::NOSYS) => return Ok(rename(RenameFlags::empty()).map(|()| true)?),
            other => other?,
        }
        let Some(stale) = stale else { return Ok(true) };
        let old = rustix::fs::statat(directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileId::from(&old) == FileId::from(stale) {
            return Ok(true);
        }
        rename(RenameFlags::EXCHANGE)?;
        Ok(false)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // It has its final name, or is a socket of ours or a stale one. What is left the next start removes.
        let _ = self.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::UnixStream;

    use super::*;

    const OWNER: SocketAccess = SocketAccess { mode: 0o600, gid: None };

    fn listen_at(path: &Path) -> Result<(UnixListener, SocketFile)> {
        listen(path, OWNER, 16)
    }

    #[test]
    fn a_socket_has_its_mode_takes_a_stale_name_and_goes() {
        let scratch = tempfile::tempdir().expect("it works");
        let path = scratch.path().join("api.sock");
        let (listener, file) = listen(&path, SocketAccess { mode: 0o660, gid: Some(0) }, 16).expect("it works");
        assert_eq!(path.metadata().expect("it works").permissions().mode() & 0o7777, 0o660);
        UnixStream::connect(&path).expect("it works");
        let said = listen_at(&path).expect_err("it is refused");
        assert!(said.chain().contains("in use"), "{}", said.chain());
        std::mem::forget(file); // as if it was killed
        drop(listener);
        let before = path.metadata().expect("it works").ino();
        let (_listener, file) = listen_at(&path).expect("it works");
        assert_ne!(path.metadata().expect("it works").ino(), before);
        assert_eq!(path.metadata().expect("it works").permissions().mode() & 0o7777, 0o600);
        UnixStream::connect(&path).expect("it works");
        drop(file);
        let left: Vec<_> =
            std::fs::read_dir(scratch.path()).expect("a directory").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, [".api.sock.guard"]);
        let lock = scratch.path().join(".api.sock.guard").metadata().expect("the lock file");
        assert_eq!(lock.permissions().mode() & 0o777, 0o600, "other users cannot lock it");
    }

    #[test]
    fn what_is_no_stale_socket_is_refused_and_kept() {
        let scratch = tempfile::tempdir().expect("it works");
        let (file, link, directory) = (scratch.path().join("f"), scratch.path().join("l"), scratch.path().join("d"));
        std::fs::write(&file, "precious").expect("it works");
        std::os::unix::fs::symlink("/nowhere", &link).expect("it works");
        std::fs::create_dir(&directory).expect("it works");
        for path in [&file, &link, &directory] {
            assert!(listen_at(path).expect_err("it is refused").chain().contains("not a socket"));
        }
        assert_eq!(std::fs::read_to_string(&file).expect("it works"), "precious");
        assert!(listen_at(&scratch.path().join("no/s")).expect_err("it is refused").chain().contains("create it"));
        assert!(
            listen_at(&scratch.path().join("x".repeat(200))).expect_err("it is refused").chain().contains("too long")
        );
        let is_visible = |entry: &std::fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
        assert_eq!(std::fs::read_dir(scratch.path()).expect("it works").flatten().filter(is_visible).count(), 3);
    }

    #[test]
    fn the_end_leaves_the_name_to_a_successor_that_has_the_lock() {
        let scratch = tempfile::tempdir().expect("it works");
        let path = scratch.path().join("api.sock");
        let (listener, file) = listen_at(&path).expect("it works");
        let successor = lock(&path, END_WAIT).expect("it works").expect("it is free");
        drop(listener);
        drop(file);
        assert!(path.exists(), "the successor may have replaced it since the last look");
        drop(successor);
        let (_listener, file) = listen_at(&path).expect("it was stale");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_replaced_ours_is_not_removed() {
        let scratch = tempfile::tempdir().expect("it works");
        let path = scratch.path().join("api.sock");
        let (_listener, file) = listen_at(&path).expect("it works");
        std::fs::remove_file(&path).expect("it works");
        let (_other, kept) = listen_at(&path).expect("it works");
        drop(file);
        UnixStream::connect(&path).expect("it works");
        drop(kept);
    }

    #[test]
    fn names_and_directories_may_be_long_and_a_directory_may_give_its_group() {
        let scratch = tempfile::tempdir().expect("it works");
        let (deep, short) = (scratch.path().join("d".repeat(90)), scratch.path().join("s"));
        std::fs::create_dir(&deep).expect("it works");
        std::os::unix::fs::symlink(&deep, &short).expect("it works");
        let path = short.join("n".repeat(60));
        for _ in 0..2 {
            let (listener, file) = listen_at(&path).expect("also in the place of a stale one");
            UnixStream::connect(&path).expect("by the path that was configured");
            assert_eq!(file.configured(), path);
            std::mem::forget(file);
            drop(listener);
        }
        if rustix::process::geteuid().is_root() {
            let setgid = scratch.path().join("setgid");
            std::fs::create_dir(&setgid).expect("it works");
            std::os::unix::fs::chown(&setgid, None, Some(1234)).expect("it works");
            std::fs::set_permissions(&setgid, std::fs::Permissions::from_mode(0o2755)).expect("it works");
            let (_listener, file) = listen_at(&setgid.join("s")).expect("it works");
            assert_eq!(file.configured().metadata().expect("it works").gid(), rustix::process::getegid().as_raw());
        }
    }

    #[test]
    fn of_many_at_once_exactly_one_gets_a_stale_socket() {
        let scratch = tempfile::tempdir().expect("it works");
        let path = scratch.path().join("api.sock");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).expect("it works"));
            let got: Vec<_> = thread::scope(|scope| {
                let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| listen_at(&path).ok())).collect();
                starts.into_iter().filter_map(|start| start.join().expect("it works")).collect()
            });
            assert_eq!(got.len(), 1);
            UnixStream::connect(&path).expect("it works");
        }
    }
}
