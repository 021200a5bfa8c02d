//! The connections of the listener, each on a thread: admission, reading, handling, writing, end.
//!
//! `decorate` adds the headers of the service to the responses that we make ourselves.
//!
//! **Invariants.** No client can make us hold more than [`Limits`] permits, or extend a deadline by sending or receiving single
//! bytes. A request reaches the handler whole and once, or not at all; bytes of one request are never treated as another request.
//! While no client is connected, no thread wakes up.
//!
//! **Threads.** Two are started at the beginning and kept in reserve, so that clients are answered even if no further thread can
//! be started. If both are busy, a connection gets a new thread. If none can be started (`ulimit -u`), the connection that
//! has waited longest is closed, and its thread serves the new one. From then on, until all connections have ended, we accept
//! fewer connections than there could be threads: a running backup needs some, too.
//!
//! **Protocol of a connection**, on one small thread with one descriptor:
//! 1. *Admission*, on the accept thread. At the cap, the connection that has waited longest for its client (to send or
//!    to receive) is closed, but never one inside the handler. If there is no such connection, the new one gets a 503.
//! 2. *Reading* head, then body, each within the deadline. A request that breaks a rule is answered (4xx, 505), and the
//!    connection ends; if no byte arrives, it ends without an answer. Bytes after the request are kept in the buffer.
//! 3. *Handling*. A panic becomes a 500, and the connection ends. 4. *Writing* head and body, a long one piece by piece,
//!    within the deadline. Then 2.
//! 5. *End* after an answer: close our side, read on for a moment, close. (A close with unread bytes causes a reset, and the
//!    client would lose the answer.) A stop closes all reading sides: requests that have arrived are still answered.
//!
//! **Limitations.** Responses have a body (not 1xx, 204, 304), of a known length or one that fits into memory. No Transfer-Encoding,
//! upgrades or trailers.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{mem, thread};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rouille::{Request, Response, ResponseBody};

use crate::http::head::{Framing, Head, Outgoing, Refusal, TOO_LARGE, parse, render};
use crate::http::sockets::{Peer, Stream};

/// Answers a request, always, on a thread with a stack of 256 KiB. A panic becomes a 500.
pub type Handler = Arc<dyn Fn(&Request, Peer) -> Response + Send + Sync>;
/// Adds the headers of the service to a response that the listener made itself for that client.
pub type Decorate = Arc<dyn Fn(Response, Peer) -> Response + Send + Sync>;

pub(crate) const RESERVE_COUNT: usize = 2; // threads in reserve, started at the beginning
const LEFT_COUNT: usize = 4; // threads and processes left to a backup if they are scarce: its child process has three
const STACK_BYTES: usize = 256 * 1024; // stack of a connection's thread; only the pages that are used take memory
const CHUNK_BYTES: usize = 4096; // read from a socket at once, on the stack
const RIPE: Duration = Duration::from_millis(10); // a connection that has waited less is not closed for another one
const ROOM_WAIT: Duration = Duration::from_millis(500); // how long a connection over the cap waits for room
const REFUSAL_COUNT: usize = 8; // connections over the cap that get a 503; further ones are closed without an answer
const LINGER: Duration = Duration::from_millis(500); // reading on after our last answer: no longer than this,
const LINGER_READS: usize = 32; // and no more often than this, one chunk each
const ACCEPT_PAUSE: Duration = Duration::from_millis(50); // after a failure, unless a descriptor becomes free

/// The resources that all clients together, and each of them, can make the listener use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; half of the process's descriptors (`RLIMIT_NOFILE`) if that is less.
    pub connections: usize,
    /// Bytes of the request line and headers of one request, and of data read ahead.
    pub head_bytes: usize,
    /// Body of one request in bytes.
    pub body_bytes: usize,
    /// For each of: idling, receiving a head, receiving a body, writing a response, finishing after a stop.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 64, head_bytes: 16 * 1024, body_bytes: 64 * 1024, deadline: Duration::from_secs(5) }
    }
}

/// How connections are served.
pub(crate) struct How {
    pub(crate) limits: Limits,
    pub(crate) handler: Handler,
    pub(crate) decorate: Decorate,
}

/// All connections, and whether the listener is stopping.
#[derive(Default)]
pub(crate) struct Connections {
    state: Mutex<State>,
    handed: Condvar,   // notified when a connection waits for a thread in reserve, and at the end
    released: Condvar, // notified when a slot is removed, a connection gets its thread, or waits for its client again
    pub(crate) stopping: AtomicBool,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    threadless: VecDeque<(Connection, Entry)>, // their slots exist already
    idle_count: usize,                         // threads in reserve without a connection
    thread_cap: Option<usize>,                 // connections for which there were threads, if threads are scarce
    ended: bool,
}

/// What a new connection gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Served,
    Refused,
}

/// What a thread is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// The connections that wait for one now.
    Waiting,
    /// These, and all later ones.
    Reserve,
}

/// Which connections may be waited for to make room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Those that wait for their client, and are closed.
    Idle,
    /// Those inside the handler, too.
    Working,
}

/// The state of a connection for the accept thread.
struct Slot {
    stream: Arc<Stream>,
    /// Since when it waits for its client; single bytes of the client do not change this. `None` while the client waits for us.
    waits_since: Option<Instant>,
    closed: bool, // shut down; its thread will notice
}

impl Slot {
    /// Wakes the thread of the connection, whatever it waits for.
    fn close(&mut self) {
        self.closed = true;
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

/// The connection that has waited longest. One that is closed already counts until it has ended, so that no other is closed for
/// the same reason.
fn longest_waiting(slots: &mut [Slot]) -> Option<(Instant, &mut Slot)> {
    slots.iter_mut().filter_map(|s| Some((s.waits_since?, s))).min_by_key(|(since, _)| *since)
}

impl Connections {
    /// Makes room for one more connection, or refuses it with a 503; `None` to close it at once.
    fn admit(&self, cap: usize) -> Option<Entry> {
        let mut state = self.state.lock();
        let has_room = |state: &State| state.slots.len() < state.thread_cap.unwrap_or(cap).min(cap);
        // A handler may take long, but below the cap a thread will soon be free.
        let patience = if state.slots.len() < cap { Patience::Working } else { Patience::Idle };
        if self.make_room(&mut state, patience, has_room) {
            return Some(Entry::Served);
        }
        (state.slots.len() < cap + REFUSAL_COUNT).then_some(Entry::Refused)
    }

    /// Closes the connections that have waited longest until there is room; false if there is none within [`ROOM_WAIT`].
    fn make_room(&self, state: &mut MutexGuard<State>, patience: Patience, has_room: impl Fn(&State) -> bool) -> bool {
        let give_up = Instant::now() + ROOM_WAIT;
        while !has_room(state) {
            let now = Instant::now();
            let wake = match longest_waiting(&mut state.slots) {
                _ if now >= give_up => return false,
                Some((since, _)) if now < since + RIPE => give_up.min(since + RIPE),
                Some((_, slot)) => {
                    slot.close();
                    give_up
                }
                None if patience == Patience::Working => give_up,
                None => return false,
            };
            self.released.wait_until(state, wake);
        }
        true
    }

    /// Takes a connection that was accepted. Returns the reason if there is no thread for it; the client was told then.
    pub(crate) fn take(self: &Arc<Self>, stream: Stream, peer: Peer, how: &How, cap: usize) -> io::Result<()> {
        let Some(entry) = self.admit(cap) else { return Ok(()) };
        let How { limits, handler, decorate } = how;
        let connection = Connection {
            peer,
            buffer: Vec::new(),
            limits: *limits,
            handler: Arc::clone(handler),
            decorate: Arc::clone(decorate),
            slot: self.register(&Arc::new(stream)),
        };
        let Some((connection, cause)) = self.serve(connection, entry) else { return Ok(()) };
        // A new socket accepts this many bytes without blocking. No lingering: the accept thread must continue.
        connection.send(connection.own(OVERLOADED, Framing::LAST)).ok();
        Err(cause)
    }

    /// After an accept that failed: closes the connection that has waited longest, and waits for a moment.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock();
        if let Some((_, slot)) = longest_waiting(&mut state.slots) {
            slot.close();
        }
        self.released.wait_for(&mut state, ACCEPT_PAUSE);
    }

    fn register(self: &Arc<Self>, stream: &Arc<Stream>) -> SlotGuard {
        let mut state = self.state.lock();
        if state.slots.is_empty() {
            state.thread_cap = None;
        }
        // Its thread may not start at once: until then the connection can be closed to make room, like any other.
        let waits_since = Some(Instant::now());
        state.slots.push(Slot { stream: Arc::clone(stream), waits_since, closed: false });
        SlotGuard { stream: Arc::clone(stream), connections: Arc::clone(self) }
    }

    /// Finds a thread for a connection, or returns the connection and the reason.
    fn serve(self: &Arc<Self>, connection: Connection, entry: Entry) -> Option<(Connection, io::Error)> {
        let mut state = self.state.lock();
        state.threadless.push_back((connection, entry));
        if state.idle_count >= state.threadless.len() {
            self.handed.notify_one();
            return None;
        }
        let started = MutexGuard::unlocked(&mut state, || self.start_thread(Duty::Waiting));
        let cause = started.err()?;
        // Even if this connection gets a thread now, this number is too large beside the threads that a backup needs.
        let served_count = state.slots.len() - state.threadless.len();
        state.thread_cap = Some(served_count.saturating_sub(LEFT_COUNT).max(RESERVE_COUNT));
        // If it was taken meanwhile, it has a thread. Otherwise its slot is the last: only the accept thread adds slots.
        let (false, Some(slot)) = (state.threadless.is_empty(), state.slots.last_mut()) else { return None };
        slot.waits_since = None; // it waits for us
        if entry == Entry::Served && self.make_room(&mut state, Patience::Working, |state| state.threadless.is_empty())
        {
            return None;
        }
        state.threadless.pop_back().map(|(connection, _)| (connection, cause))
    }

    pub(crate) fn start_thread(self: &Arc<Self>, duty: Duty) -> io::Result<()> {
        let connections = Arc::clone(self);
        let thread = thread::Builder::new().name("http".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || connections.work(duty)).map(|_| ())
    }

    /// The loop of a thread: serves the connections that wait for one; ends if there is none, unless it is in reserve.
    fn work(&self, duty: Duty) {
        let mut state = self.state.lock();
        loop {
            if let Some((connection, entry)) = state.threadless.pop_front() {
                self.released.notify_all();
                MutexGuard::unlocked(&mut state, || {
                    // A panic that has not become a 500 ends the connection, not the thread.
                    let _ = catch_unwind(AssertUnwindSafe(|| connection.serve(entry)));
                });
            } else if duty == Duty::Reserve && !state.ended {
                state.idle_count += 1;
                self.handed.wait(&mut state);
                state.idle_count -= 1;
            } else {
                return;
            }
        }
    }

    /// Waits until all connections have ended, no longer than this.
    pub(crate) fn wait_for_end(&self, limit: Duration) {
        let give_up = Instant::now() + limit;
        let mut state = self.state.lock();
        while !state.slots.is_empty() && !self.released.wait_until(&mut state, give_up).timed_out() {}
    }

    /// After the last accept: waits for the running requests, then closes all connections.
    pub(crate) fn finish(&self, deadline: Duration) {
        let give_up = Instant::now() + deadline;
        let mut state = self.state.lock();
        state.ended = true;
        self.handed.notify_all();
        state.slots.iter().for_each(|s| drop(s.stream.shutdown(Shutdown::Read)));
        while !state.slots.is_empty() && !self.released.wait_until(&mut state, give_up).timed_out() {}
        state.slots.iter_mut().for_each(Slot::close);
    }
}

/// Removes the connection's slot when it is dropped.
struct SlotGuard {
    stream: Arc<Stream>,
    connections: Arc<Connections>,
}

impl SlotGuard {
    /// Notes that the connection waits for its client, or no longer does. An error if it was closed meanwhile: then it ends.
    fn turn(&self, waits_since: Option<Instant>) -> Outcome<()> {
        let mut state = self.connections.state.lock();
        let slot = state.slots.iter_mut().find(|s| Arc::ptr_eq(&s.stream, &self.stream) && !s.closed).ok_or(None)?;
        slot.waits_since = waits_since;
        if waits_since.is_some() {
            self.connections.released.notify_all();
        }
        Ok(())
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.connections.state.lock().slots.retain(|s| !Arc::ptr_eq(&s.stream, &self.stream));
        self.connections.released.notify_all();
    }
}

/// An error ends the connection: with a last answer, or without one if the client has gone or has sent no request.
type Outcome<T> = std::result::Result<T, Option<Refusal>>;

const TOO_SLOW: Refusal = (408, "the request did not arrive in time");
const OVERLOADED: Refusal = (503, "too many connections: try again later");

/// One client, on its own thread.
struct Connection {
    peer: Peer,
    /// Bytes that were received and not used yet: part of a request, or the beginning of the next one.
    buffer: Vec<u8>,
    limits: Limits,
    handler: Handler,
    decorate: Decorate,
    /// Dropped last: when the slot is removed, the handler is already released.
    slot: SlotGuard,
}

impl Connection {
    fn serve(mut self, entry: Entry) {
        self.slot.stream.send_at_once();
        let mut outcome = if entry == Entry::Served { Ok(true) } else { Err(Some(OVERLOADED)) };
        while let Ok(true) = outcome {
            outcome = self.exchange();
        }
        if let Err(Some(refusal)) = outcome {
            // The head is still there, unless it was answered already.
            let framing = Framing { with_body: !self.buffer.starts_with(b"HEAD "), ..Framing::LAST };
            outcome = self.send(self.own(refusal, framing)).map(|()| false);
        }
        if outcome.is_ok() {
            self.slot.stream.shutdown(Shutdown::Write).ok();
            let (deadline, mut chunk) = (Instant::now() + LINGER, [0; CHUNK_BYTES]);
            (0..LINGER_READS).take_while(|_| matches!(self.read(&mut chunk, deadline), Ok(1..))).count();
        }
    }

    /// Receives one request and answers it; returns whether the connection is kept.
    fn exchange(&mut self) -> Outcome<bool> {
        self.slot.turn(Some(Instant::now()))?;
        let (head, body) = self.receive()?;
        self.slot.turn(None)?;
        let mut framing = Framing { with_body: head.method != "HEAD", keep_alive: false };
        let request = Request::fake_http_from(self.peer.address(), head.method, head.url, head.headers, body);
        // After a panic we use nothing again that it may have left inconsistent; the handler is responsible for its own state.
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let response = (self.handler)(&request, self.peer);
            framing.keep_alive = head.keep_alive && !self.slot.connections.stopping.load(Ordering::SeqCst);
            render(response, framing)
        }));
        let answer = answer.ok().or_else(|| {
            log::error!("handler panicked method={} url={:?}", request.method(), request.raw_url());
            framing.keep_alive = false;
            self.own((500, "internal error: see the log of the service"), framing)
        });
        self.send(answer).map(|()| framing.keep_alive)
    }

    /// Reads one request; bytes after it are kept in the buffer.
    fn receive(&mut self) -> Outcome<(Head, Vec<u8>)> {
        let Limits { head_bytes, body_bytes, deadline, .. } = self.limits;
        if self.buffer.is_empty() {
            self.fill(head_bytes, Instant::now() + deadline)?;
        }
        let until = Instant::now() + deadline;
        let (head, used) = loop {
            if let Some(parsed) = parse(&self.buffer, body_bytes)? {
                break parsed;
            }
            self.fill(head_bytes, until)?;
        };
        let whole = used + head.length;
        if head.expects && self.buffer.len() < whole {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n", Instant::now() + deadline)?;
        }
        let until = Instant::now() + deadline;
        while self.buffer.len() < whole {
            self.fill(whole, until)?;
        }
        let rest = self.buffer.split_off(whole);
        Ok((head, mem::replace(&mut self.buffer, rest).split_off(used)))
    }

    /// Reads bytes that have arrived into the buffer, up to `limit`.
    fn fill(&mut self, limit: usize, deadline: Instant) -> Outcome<()> {
        let mut chunk = [0; CHUNK_BYTES];
        let room = limit.saturating_sub(self.buffer.len()).min(CHUNK_BYTES);
        if room == 0 {
            return Err(Some(TOO_LARGE));
        }
        let count = match self.read(&mut chunk[..room], deadline) {
            Ok(count @ 1..) => count,
            Err(e) if e.kind() == ErrorKind::TimedOut && !self.buffer.is_empty() => return Err(Some(TOO_SLOW)),
            _ => return Err(None),
        };
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(())
    }

    fn read(&self, chunk: &mut [u8], deadline: Instant) -> io::Result<usize> {
        by(deadline, |left| self.slot.stream.read_within(chunk, left))
    }

    fn write(&self, bytes: &[u8], deadline: Instant) -> Outcome<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = by(deadline, |left| self.slot.stream.write_within(rest, left));
            rest = &rest[written.or(Err(None))?..];
        }
        Ok(())
    }

    fn send(&self, answer: Option<Outgoing>) -> Outcome<()> {
        self.slot.turn(Some(Instant::now()))?;
        let deadline = Instant::now() + self.limits.deadline;
        answer.and_then(|answer| answer.send(|bytes| self.write(bytes, deadline).ok())).ok_or(None)
    }

    /// A response that the listener makes itself.
    fn own(&self, (status_code, sentence): Refusal, framing: Framing) -> Option<Outgoing> {
        let headers = vec![("Content-Type".into(), "text/plain;charset=utf-8".into())];
        let response = Response { status_code, headers, data: ResponseBody::from_string(sentence), upgrade: None };
        catch_unwind(AssertUnwindSafe(|| render((self.decorate)(response, self.peer), framing))).ok()
    }
}

/// Repeats a call on a socket, each time with the time left, until it succeeds, fails or the deadline has passed.
fn by<T>(deadline: Instant, mut call: impl FnMut(Duration) -> io::Result<T>) -> io::Result<T> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match call(left) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            outcome => return outcome,
        }
    }
}
