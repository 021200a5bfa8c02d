//! The daemon's own blocking HTTP/1.1 listener: a socket whose connections are served by `connections`.
//!
//! A single client can kill or hang rouille's own server; its `Request` and `Response` are fine. This file has no routes and
//! knows nothing about backups.
//!
//! **Invariant.** No client can end the accept loop.
//!
//! **Limitations.** Linux: `shutdown` of a listening socket wakes its `accept`. TCP only: a Unix socket needs an enum
//! instead of `TcpStream`, an inherited socket a second constructor; the handler would check a token.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Kind, Result};
use crate::http::connections::{Connections, Decorate, Duty, Handler, How, Limits, RESERVE_COUNT};

const SEND_BUFFER_BYTES: usize = 128 * 1024; // the kernel's buffer for a client that does not read
const BACKLOG_COUNT: i32 = 1024; // connected and not yet accepted; beyond it, clients try again after a second
const LOG_EVERY: Duration = Duration::from_secs(1); // failures to accept connections are logged once in this time

/// A bound socket. Clients can connect from here on; they are answered once [`Listener::run`] runs.
pub struct Listener {
    socket: Arc<TcpListener>,
    limits: Limits,
    connections: Arc<Connections>,
}

/// Ends [`Listener::run`], from any thread and any number of times.
#[derive(Clone)]
pub struct Stopper(Weak<TcpListener>, Arc<Connections>);

impl Stopper {
    /// Ends accepting at once and does not wait. Harmless before and after the run, too.
    pub fn stop(&self) {
        self.1.stopping.store(true, Ordering::SeqCst);
        if let Some(socket) = self.0.upgrade() {
            // Wakes the blocked accept; fails only if the socket is already shut down.
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).ok();
        }
    }
}

impl Listener {
    /// Binds `host:port`: an IPv4 address, an IPv6 address in brackets, or a name; port 0 takes a free one.
    pub fn bind(address: &str) -> Result<Listener> {
        let socket = TcpListener::bind(address).map_err(|e| {
            let problem = match e.kind() {
                ErrorKind::AddrInUse => "in use: stop the program that uses it or choose another --service-port",
                ErrorKind::PermissionDenied => "not allowed for this user: choose a --service-port above 1023",
                _ => "no address to listen on: choose another --service-interface",
            };
            Error::new(Kind::Usage, format!("{address} is {problem}")).because(e)
        })?;
        // Accepted connections inherit the size. A kernel that refuses either of these keeps its default.
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES).ok();
        rustix::net::listen(&socket, BACKLOG_COUNT).ok();
        Ok(Listener { socket: Arc::new(socket), limits: Limits::default(), connections: Arc::default() })
    }

    /// The same listener with other limits.
    pub fn with_limits(self, limits: Limits) -> Listener {
        Listener { limits, ..self }
    }

    /// The address and port on which it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr().expect("a bound socket has an address")
    }

    /// The handle that ends [`Listener::run`]. It does not keep the port.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::downgrade(&self.socket), Arc::clone(&self.connections))
    }

    /// Answers requests until [`Stopper::stop`], then returns when the running requests are finished, after one deadline at
    /// most. The port is free again on return. `decorate` gets every response that the handler has not made.
    pub fn run(self, handler: Handler, decorate: Decorate) {
        let Listener { socket, limits, connections } = self;
        // A backup needs descriptors too: a crowd of clients must not take the last one.
        let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |count| count as usize);
        let cap = limits.connections.min(descriptors / 2).max(1);
        let mut logged: Option<Instant> = None;
        let mut log = |what: &str, cause: io::Error| {
            if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
                log::warn!("{what} reason={:?}", cause.to_string());
                logged = Some(Instant::now());
            }
        };
        for _ in 0..RESERVE_COUNT {
            if let Err(e) = connections.start_thread(Duty::Reserve) {
                log("no thread for connections", e);
            }
        }
        let how = How { limits, handler, decorate };
        while !connections.stopping.load(Ordering::SeqCst) {
            match socket.accept() {
                Ok((stream, peer)) => {
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    if let Err(cause) = connections.take(stream, peer, &how, cap) {
                        log("no thread for a connection", cause);
                    }
                }
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {} // the client closed it before we accepted
                Err(_) if connections.stopping.load(Ordering::SeqCst) => break,
                Err(e) => {
                    log("connection not accepted", e);
                    connections.release();
                }
            }
        }
        connections.finish(limits.deadline);
    }
}
