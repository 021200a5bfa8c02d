//! What the listener accepts on: TCP and Unix sockets, made here or inherited, and the connections and peers that come from them.
//!
//! Invariants
//! - A socket accepts without waiting; a connection is read and written with the time limits of `connections`.
//! - The file of a Unix socket that we have made is removed with the socket; one that we have inherited is not ours.
//! - Stopping leaves an inherited socket as it is: the process that opened it goes on to use it.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType, sockopt};

use crate::config::SocketAccess;
use crate::disk::unix_socket::{self, SocketFile};
use crate::error::{Error, Kind, Result};

const SEND_BUFFER_BYTES: usize = 128 * 1024; // the kernel's buffer for a client that does not read
const BACKLOG_COUNT: i32 = 1024; // connected and not yet accepted; beyond it, clients try again after a second

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Its address.
    Tcp(SocketAddr),
    /// The user that its process had when it connected (SO_PEERCRED, unix(7)).
    Unix {
        /// Its user id.
        uid: u32,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => write!(f, "{address}"),
            Peer::Unix { uid } => write!(f, "unix:{uid}"),
        }
    }
}

impl Peer {
    /// The address that a request of rouille has; for a Unix socket one that no peer has.
    pub(crate) fn address(self) -> SocketAddr {
        match self {
            Peer::Tcp(address) => address,
            Peer::Unix { .. } => SocketAddr::from(([0, 0, 0, 0], 0)),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        }
    }

    /// The next answer must not wait for an acknowledgement.
    pub(crate) fn send_at_once(&self) {
        if let Stream::Tcp(stream) = self {
            stream.set_nodelay(true).ok();
        }
    }

    /// Reads what has arrived, within this time.
    pub(crate) fn read_within(&self, chunk: &mut [u8], left: Duration) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(left)).and_then(|()| (&mut &*stream).read(chunk)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(left)).and_then(|()| (&mut &*stream).read(chunk)),
        }
    }

    /// Writes a part, within this time.
    pub(crate) fn write_within(&self, bytes: &[u8], left: Duration) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.set_write_timeout(Some(left)).and_then(|()| (&mut &*stream).write(bytes)),
            Stream::Unix(stream) => stream.set_write_timeout(Some(left)).and_then(|()| (&mut &*stream).write(bytes)),
        }
    }
}

/// A socket that accepts connections.
#[derive(Debug)]
pub(crate) struct Socket {
    accepting: Accepting,
    /// That of a Unix socket that we have made.
    file: Option<SocketFile>,
    /// Whether the process that opened it goes on to use it.
    is_inherited: bool,
}

#[derive(Debug)]
enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// Binds `host:port`.
    pub(crate) fn tcp(address: &str) -> Result<Socket> {
        let listener = TcpListener::bind(address).map_err(|e| {
            let problem = match e.kind() {
                ErrorKind::AddrInUse => "in use: stop the program that uses it or choose another --service-port",
                ErrorKind::PermissionDenied => "not allowed for this user: choose a --service-port above 1023",
                _ => "no address to listen on: choose another --service-interface",
            };
            Error::new(Kind::Usage, format!("{address} is {problem}")).because(e)
        })?;
        // A kernel that refuses this keeps its default.
        rustix::net::listen(&listener, BACKLOG_COUNT).ok();
        Socket { accepting: Accepting::Tcp(listener), file: None, is_inherited: false }.ready(address)
    }

    /// Creates a Unix socket.
    pub(crate) fn unix(path: &Path, access: SocketAccess) -> Result<Socket> {
        let (listener, file) = unix_socket::listen(path, access, BACKLOG_COUNT)?;
        Socket { accepting: Accepting::Unix(listener), file: Some(file), is_inherited: false }
            .ready(&path.display().to_string())
    }

    /// Takes a socket that another process has opened; `number` is that of its descriptor.
    pub(crate) fn inherited(opened: OwnedFd, number: usize) -> Result<Socket> {
        let wrong = |problem: &str| {
            let remedy = "configure a stream socket that accepts connections (ListenStream=, Accept=no)";
            Error::new(Kind::Usage, format!("the inherited descriptor {number} {problem}: {remedy}"))
        };
        let is_stream = sockopt::socket_type(&opened).map_err(|_| wrong("is no socket"))? == SocketType::STREAM;
        if !is_stream || !sockopt::socket_acceptconn(&opened).unwrap_or(false) {
            return Err(wrong("accepts no connections"));
        }
        let accepting = match sockopt::socket_domain(&opened) {
            Ok(AddressFamily::INET | AddressFamily::INET6) => Accepting::Tcp(TcpListener::from(opened)),
            Ok(AddressFamily::UNIX) => Accepting::Unix(UnixListener::from(opened)),
            _ => return Err(wrong("is neither a TCP socket nor a Unix socket")),
        };
        Socket { accepting, file: None, is_inherited: true }.ready(&format!("descriptor {number}"))
    }

    fn ready(self, name: &str) -> Result<Socket> {
        // Accepted connections inherit the size. A kernel that refuses it keeps its default.
        sockopt::set_socket_send_buffer_size(&self, SEND_BUFFER_BYTES).ok();
        rustix::io::ioctl_fionbio(&self, true)
            .map_err(|errno| Error::io(format!("cannot listen at {name}"), io::Error::from(errno)))?;
        Ok(self)
    }

    /// Accepts a connection that has arrived; `WouldBlock` if there is none any more.
    pub(crate) fn accept(&self) -> io::Result<(Stream, Peer)> {
        match &self.accepting {
            Accepting::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((Stream::Tcp(stream), Peer::Tcp(SocketAddr::new(peer.ip().to_canonical(), peer.port()))))
            }
            Accepting::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                let uid = sockopt::socket_peercred(&stream)?.uid.as_raw();
                Ok((Stream::Unix(stream), Peer::Unix { uid }))
            }
        }
    }

    /// Prepares its end: new clients find no file any more. Returns whether the connections that wait here are lost when it is closed.
    pub(crate) fn retire(&mut self) -> bool {
        self.file = None;
        !self.is_inherited
    }

    /// The address of a TCP socket.
    pub(crate) fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.accepting {
            Accepting::Tcp(listener) => Some(listener.local_addr().expect("a bound socket has an address")),
            Accepting::Unix(_) => None,
        }
    }

    /// Its address and port, or `unix:` and its path; `unix:@` and its name if it has no file.
    pub(crate) fn name(&self) -> String {
        if let Some(address) = self.tcp_address() {
            return address.to_string();
        }
        if let Some(file) = &self.file {
            return format!("unix:{}", file.configured().display());
        }
        let address =
            rustix::net::getsockname(self).ok().and_then(|any: SocketAddrAny| SocketAddrUnix::try_from(any).ok());
        let path = address.as_ref().and_then(|unix| unix.path().map(|path| path.to_string_lossy().into_owned()));
        let abstract_name = || Some(format!("@{}", String::from_utf8_lossy(address.as_ref()?.abstract_name()?)));
        format!("unix:{}", path.or_else(abstract_name).unwrap_or_default())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.accepting {
            Accepting::Tcp(listener) => listener.as_fd(),
            Accepting::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Ends a wait for connections, from any thread.
#[derive(Debug)]
pub(crate) struct Waker {
    event: OwnedFd,
    beats: Mutex<Beats>,
    answered: Condvar,
}

/// How often the thread that waits was asked for a sign of life, and the question that it answered last.
#[derive(Debug, Default)]
struct Beats {
    asked_count: u64,
    answered_count: u64,
}

impl Waker {
    pub(crate) fn new() -> Result<Waker> {
        let opened = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event = opened.map_err(|errno| Error::io("cannot wait for connections", io::Error::from(errno)))?;
        Ok(Waker { event, beats: Mutex::default(), answered: Condvar::new() })
    }

    /// Wakes the wait that runs, or else the next one.
    pub(crate) fn wake(&self) {
        // Fails only if it is full: then the wait ends, too.
        rustix::io::write(&self.event, &1u64.to_ne_bytes()).ok();
    }

    /// Wakes the wait, and waits in turn for its thread to answer: whether it does within this time.
    pub(crate) fn beats(&self, limit: Duration) -> bool {
        let mut beats = self.beats.lock();
        beats.asked_count += 1;
        let wanted = beats.asked_count;
        self.wake();
        !self.answered.wait_while_for(&mut beats, |beats| beats.answered_count < wanted, limit).timed_out()
    }

    fn hear(&self) {
        // Nothing to read: another wait has heard it.
        rustix::io::read(&self.event, &mut [0; 8]).ok();
        let mut beats = self.beats.lock();
        beats.answered_count = beats.asked_count;
        self.answered.notify_all();
    }
}

/// Waits until a connection has arrived at a socket, or the waker was told; returns the sockets to ask.
pub(crate) fn wait<'a>(sockets: &'a [Socket], waker: &Waker) -> io::Result<Vec<&'a Socket>> {
    let mut polled: Vec<PollFd<'_>> = sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    polled.push(PollFd::new(&waker.event, PollFlags::IN));
    match poll(&mut polled, None) {
        Err(Errno::INTR) => Ok(Vec::new()),
        Err(errno) => Err(errno.into()),
        Ok(_) => {
            if polled.last().is_some_and(|at| !at.revents().is_empty()) {
                waker.hear();
            }
            Ok(sockets.iter().zip(&polled).filter(|(_, at)| !at.revents().is_empty()).map(|(s, _)| s).collect())
        }
    }
}
