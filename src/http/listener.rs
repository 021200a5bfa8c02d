//! The daemon's own blocking HTTP/1.1 listener: sockets whose connections are served by `connections`.
//!
//! A single client can kill or hang rouille's own server; its `Request` and `Response` are fine. This file has no routes and
//! knows nothing about backups.
//!
//! **Invariants.** No client can end the accept loop. One thread accepts at all sockets, so the limits hold for all clients together;
//! while nobody connects it sleeps.
//!
//! **The end.** After a stop the files of our own sockets are removed, and connections that have arrived are still accepted: closing a socket
//! would reset them. Connections that wait at an inherited socket are for the next process.
//!
//! **Limitations.** A connection of TCP that the kernel makes between our last accept and the close is reset; nothing of it was read.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use crate::config::SocketAccess;
use crate::error::{Error, Kind, Result};
use crate::http::connections::{Connections, Decorate, Duty, Handler, How, Limits, RESERVE_COUNT};
use crate::http::inherited;
use crate::http::sockets::{self, Socket, Waker};

const LAST_ACCEPTS: Duration = Duration::from_millis(250); // how long connections that have arrived are still accepted after a stop
const LAST_WORDS: Duration = Duration::from_millis(50); // for clients that have connected and are about to send
const LOG_EVERY: Duration = Duration::from_secs(1); // failures to accept connections are logged once in this time

/// Bound sockets. Clients can connect from here on; they are answered once [`Listener::run`] runs.
pub struct Listener {
    sockets: Vec<Socket>,
    limits: Limits,
    connections: Arc<Connections>,
    waker: Arc<Waker>,
}

/// Ends [`Listener::run`], from any thread and any number of times.
#[derive(Clone)]
pub struct Stopper(Arc<Waker>, Arc<Connections>);

impl Stopper {
    /// Ends accepting at once and does not wait. Harmless before and after the run, too.
    pub fn stop(&self) {
        self.1.stopping.store(true, Ordering::SeqCst);
        self.0.wake();
    }
}

/// Asks whether the thread of [`Listener::run`] is alive.
#[derive(Clone)]
pub struct Pulse(Arc<Waker>);

impl Pulse {
    /// Whether the thread that accepts connections answers within this time; false if it does not run.
    pub fn beats(&self, limit: Duration) -> bool {
        self.0.beats(limit)
    }
}

impl Listener {
    fn of(sockets: Vec<Socket>) -> Result<Listener> {
        let waker = Arc::new(Waker::new()?);
        Ok(Listener { sockets, limits: Limits::default(), connections: Arc::default(), waker })
    }

    /// Binds `host:port`: an IPv4 address, an IPv6 address in brackets, or a name; port 0 takes a free one.
    ///
    /// # Errors
    /// [`Kind::Usage`]: the address is in use, or none of ours.
    pub fn bind(address: &str) -> Result<Listener> {
        Listener::of(vec![Socket::tcp(address)?])
    }

    /// Creates a Unix socket at `path`, in the place of one to which no program listens. Its file is removed with the listener.
    ///
    /// # Errors
    /// [`Kind::Usage`]: a program listens there, there is something else than a socket, or there can be none.
    pub fn bind_unix(path: &Path, access: SocketAccess) -> Result<Listener> {
        Listener::of(vec![Socket::unix(path, access)?])
    }

    /// Takes the sockets that [`inherited_sockets`](crate::inherited_sockets) has returned.
    ///
    /// # Errors
    /// [`Kind::Usage`]: one of them is no socket that accepts connections.
    pub fn adopt(inherited: Vec<OwnedFd>) -> Result<Listener> {
        let sockets = inherited.into_iter().enumerate();
        let sockets: Result<Vec<Socket>> = sockets.map(|(n, fd)| Socket::inherited(fd, inherited::FIRST + n)).collect();
        Listener::of(sockets?)
    }

    /// This listener with the sockets of another one.
    pub fn and(mut self, other: Listener) -> Listener {
        self.sockets.extend(other.sockets);
        self
    }

    /// The same listener with other limits.
    pub fn with_limits(self, limits: Limits) -> Listener {
        Listener { limits, ..self }
    }

    /// The address and port of the first TCP socket.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: there is none.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        let first = self.sockets.iter().find_map(Socket::tcp_address);
        first.ok_or_else(|| Error::new(Kind::NotFound, "no TCP socket is bound"))
    }

    /// The IP addresses of its TCP sockets.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.sockets.iter().filter_map(Socket::tcp_address).map(|address| address.ip())
    }

    /// Where it listens: `127.0.0.1:1849`, `[::1]:1849`, `unix:/run/chainweb-backup.sock`.
    pub fn names(&self) -> Vec<String> {
        self.sockets.iter().map(Socket::name).collect()
    }

    /// The handle that ends [`Listener::run`]. It does not keep the sockets.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.waker), Arc::clone(&self.connections))
    }

    /// The handle that asks whether connections are accepted.
    pub fn pulse(&self) -> Pulse {
        Pulse(Arc::clone(&self.waker))
    }

    /// Answers requests until [`Stopper::stop`], then returns when the running requests are finished, after one deadline at
    /// most. The ports are free again on return, and the files of Unix sockets are gone. `decorate` gets every response that the handler
    /// has not made.
    pub fn run(self, handler: Handler, decorate: Decorate) {
        let Listener { mut sockets, limits, connections, waker } = self;
        // A backup needs descriptors too: a crowd of clients must not take the last one.
        let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |count| count as usize);
        let cap = limits.connections.min(descriptors / 2).max(1);
        let mut log = Log { last: None };
        for _ in 0..RESERVE_COUNT {
            if let Err(e) = connections.start_thread(Duty::Reserve) {
                log.warn("no thread for connections", &e);
            }
        }
        let how = How { limits, handler, decorate };
        while !connections.stopping.load(Ordering::SeqCst) {
            let ready = sockets::wait(&sockets, &waker).unwrap_or_else(|e| {
                log.warn("connections not awaited", &e);
                connections.release();
                Vec::new()
            });
            for socket in ready {
                accept(socket, &connections, &how, cap, &mut log);
            }
        }
        let give_up = Instant::now() + LAST_ACCEPTS;
        for socket in &mut sockets {
            let loses_connections = socket.retire();
            while loses_connections && Instant::now() < give_up && accept(socket, &connections, &how, cap, &mut log) {}
        }
        // Nobody can connect any more while the last requests are finished.
        drop(sockets);
        connections.wait_for_end(LAST_WORDS);
        connections.finish(limits.deadline);
    }
}

/// Takes one connection; the next look finds further ones. Returns whether there may be one.
fn accept(socket: &Socket, connections: &Arc<Connections>, how: &How, cap: usize, log: &mut Log) -> bool {
    let accepted = socket.accept();
    let may_have_more = accepted.is_ok();
    match accepted {
        Ok((stream, peer)) => {
            if let Err(cause) = connections.take(stream, peer, how, cap) {
                log.warn("no thread for a connection", &cause);
            }
        }
        // The client closed it before we accepted, or another process that has this socket took it.
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::WouldBlock) => {}
        Err(_) if connections.stopping.load(Ordering::SeqCst) => {}
        Err(e) => {
            log.warn("connection not accepted", &e);
            connections.release();
        }
    }
    may_have_more
}

/// Logs failures of which a client can cause many.
struct Log {
    last: Option<Instant>,
}

impl Log {
    fn warn(&mut self, what: &str, cause: &io::Error) {
        if self.last.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            log::warn!("{what} reason={:?}", cause.to_string());
            self.last = Some(Instant::now());
        }
    }
}
