//! The listener and its clients: correct, wrong, slow and hostile ones, on 127.0.0.1, limited in number and time.
//!
//! Most tests run the listener in this process. A test that needs the memory, the threads, the descriptors or the resource limits of a
//! process of its own runs it in a *child*: this test binary again, as [`child`], which gets its limits by an environment variable
//! and ends when its standard input does.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use chainweb_backup::{Decorate, Handler, Kind, Limits, Listener, SocketAccess, Stopper};
use rouille::{Request, Response};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client::{Client, get, request};
use crate::fixture::{scratch, skip};

/// Set for the child: its limits, see [`child`].
const CHILD: &str = "CHAINWEB_BACKUP_LISTENER_CHILD";
/// A deadline: short enough for a test to wait for it, long enough for quick work on a busy machine.
const SHORT: Duration = Duration::from_secs(1);
/// Clearly less than a connection waits for room (500 ms).
const BRIEF: Duration = Duration::from_millis(150);
/// By how much an attack may increase the memory of the server.
const GROWTH_BYTES: u64 = 20 * 1024 * 1024;
const HEALTH: &str = "GET /health-check HTTP/1.1\r\nHost: h\r\n\r\n";

fn handler() -> Handler {
    let count = AtomicUsize::new(0);
    Arc::new(move |request, _| {
        let count = count.fetch_add(1, Ordering::SeqCst) + 1;
        match request.url().as_str() {
            "/health-check" => Response::text("Health check OK."),
            "/count" => Response::text(count.to_string()),
            "/url" => Response::text(request.raw_url()),
            "/host" => Response::text(values(request, "Host").join(", ")),
            "/big" => Response::text("x".repeat(1024 * 1024)),
            "/panic" => panic!("on purpose, by a test of the listener"),
            "/empty" => Response::empty_204(),
            "/slow" => {
                thread::sleep(SHORT);
                Response::text("slow")
            }
            "/brief" => {
                thread::sleep(BRIEF);
                Response::text("brief")
            }
            "/echo" => {
                let mut body = Vec::new();
                request.data().expect("the body is read once").read_to_end(&mut body).expect("it is in memory");
                Response::from_data("application/octet-stream", body)
            }
            "/split" => Response::text("split")
                .with_additional_header("x-bad", "1\r\nx-forged: 1")
                .with_additional_header("x-worse\r\nx-forged", "1")
                .with_additional_header("Connection", "upgrade")
                .with_additional_header("Content-Length", "1")
                .with_additional_header("Transfer-Encoding", "chunked")
                .with_additional_header("x-good", "1"),
            _ => Response::empty_404(),
        }
    })
}

fn values(request: &Request, name: &str) -> Vec<String> {
    request.headers().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
}

fn decorate() -> Decorate {
    Arc::new(|response, peer| response.with_additional_header("x-peer-addr", peer.to_string()))
}

/// A listener in this process, stopped on drop.
pub struct Server {
    pub address: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

pub fn server(limits: Limits) -> Server {
    let listener = Listener::bind("127.0.0.1:0").expect("a free port").with_limits(limits);
    let (address, stopper) = (listener.local_addr().expect("a TCP socket"), listener.stopper());
    let thread = Some(thread::spawn(move || listener.run(handler(), decorate())));
    Server { address, stopper, thread }
}

impl Server {
    /// Stops it and returns how long that took.
    pub fn stop(&mut self) -> Duration {
        let begin = Instant::now();
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the listener does not panic");
        }
        begin.elapsed()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The server process. Words such as `deadline_ms=300 nofile=64` are its limits; lines on its standard input change the limits of the
/// process while it runs.
#[test]
#[ignore = "no test: another one runs it as a process of its own"]
fn child() {
    let words = std::env::var(CHILD).expect("its limits");
    let mut limits = Limits::default();
    for word in words.split_whitespace() {
        match word.strip_prefix("deadline_ms=") {
            Some(value) => limits.deadline = Duration::from_millis(value.parse().expect("a number")),
            None => limit_process(word),
        }
    }
    let mut server = server(limits);
    println!("listening on {}", server.address);
    for word in std::io::stdin().lines().map_while(Result::ok) {
        limit_process(&word);
        println!("told {word}");
    }
    server.stop();
}

/// `nofile=64`, `nproc=1`; `all` is the largest value that is permitted.
fn limit_process(word: &str) {
    let (resource, value) = match word.split_once('=').expect("a word with a value") {
        ("nofile", value) => (Resource::Nofile, value),
        ("nproc", value) => (Resource::Nproc, value),
        _ => panic!("unknown word {word}"),
    };
    let maximum = getrlimit(resource).maximum;
    let current = if value == "all" { maximum } else { value.parse().ok() };
    setrlimit(resource, Rlimit { current, maximum }).expect("within what is allowed");
}

/// A server process.
struct Child {
    process: std::process::Child,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

/// Starts one; with `nobody`, as that user if we are root. `None` if that is not possible.
fn start(words: &str, nobody: bool) -> Option<Child> {
    let exe = std::env::current_exe().expect("the test binary has a path");
    let name = concat!(module_path!(), "::child").split_once("::").expect("a crate and a path").1;
    let mut command = match nobody && rustix::process::getuid().is_root() {
        // By a descriptor: the user nobody may not have access to the directories above the binary.
        true => {
            let mut command = Command::new("sh");
            let script =
                "exec 3<\"$0\"; exec setpriv --reuid=65534 --regid=65534 --clear-groups /proc/self/fd/3 \"$@\"";
            command.args(["-c", script]).arg(exe);
            command
        }
        false => Command::new(exe),
    };
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]).env(CHILD, words);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start the child");
    let mut output = BufReader::new(process.stdout.take().expect("it is piped"));
    let address = output.by_ref().lines().map_while(Result::ok).find_map(|line| {
        let (_, address) = line.split_once("listening on ")?;
        address.parse().ok()
    });
    match address {
        Some(address) => Some(Child { process, output, address }),
        None => {
            process.wait().expect("it is our child");
            None
        }
    }
}

impl Child {
    /// A figure of `/proc/<pid>/status`, such as `VmRSS` (in KiB) or `Threads`.
    fn status(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(path).expect("the child lives");
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).expect("a known name");
        line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a figure")
    }

    fn rss_bytes(&self) -> u64 {
        self.status("VmRSS") * 1024
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("the child lives").count()
    }

    /// The context switches of all its threads: how often one woke up.
    fn switches(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("the child lives");
        let texts = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
        texts
            .filter_map(|t| {
                t.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
            })
            .sum()
    }

    /// Changes a limit of the process.
    fn tell(&mut self, word: &str) {
        let input = self.process.stdin.as_mut().expect("it is piped");
        writeln!(input, "{word}").expect("the child lives");
        let mut lines = self.output.by_ref().lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("told")), "the child lives");
    }

    /// Prints what an attack costs, and fails if that is too much.
    fn within_bounds(&self, what: &str, rss_before: u64) {
        let (rss, threads) = (self.rss_bytes(), self.status("Threads"));
        let growth = rss.saturating_sub(rss_before);
        eprintln!("{what}: threads={threads} rss_growth_kib={} descriptors={}", growth / 1024, self.descriptors());
        assert!(growth < GROWTH_BYTES, "{what}: memory grew by {growth} bytes");
        // The cap, the refused ones, two in reserve that may be idle beside them, and those of the test itself. On a busy machine some
        // threads that have served their last connection still exist for a moment.
        eventually(what, || self.status("Threads") <= 64 + 8 + 2 + 4);
    }

    /// Fails unless it is alive and then ends by itself.
    fn finish(mut self) {
        assert_eq!(get(self.address, "/health-check").status, 200);
        drop(self.process.stdin.take());
        assert!(self.process.wait().expect("it is our child").success(), "the child ended well");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // This is for a failed assertion; otherwise it has ended already, and both calls fail.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

pub fn healthy(address: SocketAddr) -> bool {
    request(address, "GET", "/health-check", &[], b"").is_ok_and(|reply| reply.status == 200)
}

/// Waits until something holds, long enough for a busy machine.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < give_up, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The status of the answer to raw bytes, after which the server must close.
fn last_word(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Option<u16> {
    let mut client = Client::connect(address).expect("connect");
    // The server may have closed while we still send: the answer counts.
    client.send(bytes).ok();
    let reply = client.reply().expect("an answer or an end")?;
    assert_eq!(reply.header("Connection"), Some("close"), "{reply:?}");
    assert!(reply.header("x-peer-addr").is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{reply:?}");
    assert_eq!(reply.header("Content-Type"), Some("text/plain;charset=utf-8"));
    assert!(!reply.body.is_empty() && !reply.body.ends_with(b"\n"));
    assert!(client.closed(), "open after {}", reply.status);
    Some(reply.status)
}

#[test]
fn speaks_http() {
    let server = server(Limits::default());
    let mut client = Client::connect(server.address).expect("connect");

    // Keep-alive, by version and by header; each answer has its length and the name of the server.
    client.send(HEALTH).expect("send");
    let reply = client.reply().expect("read").expect("an answer");
    assert_eq!((reply.status, reply.text().as_str()), (200, "Health check OK."));
    assert_eq!(reply.header("Server"), Some(concat!("chainweb-backup/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(reply.header("Connection"), Some("keep-alive"));
    assert_eq!(reply.header("x-peer-addr"), None, "the handler's answers are its own");
    client.send("HEAD /health-check HTTP/1.1\r\nHost: h\r\n\r\n").expect("send");
    let reply = client.reply_to("HEAD").expect("read").expect("an answer");
    assert_eq!((reply.status, reply.header("Content-Length")), (200, Some("16")));

    // Three at once, answered in order; the last says close.
    let one = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost:h\r\n{more}\r\n");
    client
        .send([one("/url?1", ""), one("/url?2", ""), one("/url?3", "Connection: x, Close\r\n")].concat())
        .expect("send");
    for n in 1..=3 {
        assert_eq!(client.reply().expect("read").expect("an answer").text(), format!("/url?{n}"));
    }
    assert!(client.closed());

    // HTTP/1.0 with and without keep-alive, without a Host.
    let mut client = Client::connect(server.address).expect("connect");
    client.send("GET /url HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").expect("send");
    assert_eq!(client.reply().expect("read").expect("an answer").header("Connection"), Some("keep-alive"));
    client.send("GET /url HTTP/1.0\r\n\r\n").expect("send");
    assert_eq!(client.reply().expect("read").expect("an answer").header("Connection"), Some("close"));
    assert!(client.closed());

    // Targets: as they were sent, or the part after the authority.
    for (target, path) in [
        ("/url?a=%2f&b", "/url?a=%2f&b"),
        ("http://127.0.0.1:1/url?x", "/url?x"),
        ("https://[::1]/url", "/url"),
        ("/url?http://h/y", "/url?http://h/y"),
    ] {
        assert_eq!(get(server.address, target).text(), path, "{target}");
    }
    assert_eq!(get(server.address, "http://h").status, 404);
    // The authority of a URL takes the place of Host (RFC 9112, 3.2.2).
    for (target, host) in [
        ("/host", "localhost"),
        ("http://evil.example/host", "evil.example"),
        ("https://evil.example:1849/host?x", "evil.example:1849"),
        ("http://user@[::1]/host", "user@[::1]"),
        ("http:///host", ""),
    ] {
        assert_eq!(get(server.address, target).text(), host, "{target}");
    }
    let mut client = Client::connect(server.address).expect("connect");
    client.send("GET http://a.example/host HTTP/1.0\r\n\r\n").expect("send");
    assert_eq!(client.reply().expect("read").expect("an answer").text(), "a.example");

    // Bodies: none, in one go, after a pause, at the limit, after a 100 that is asked for and needed.
    assert_eq!(request(server.address, "GET", "/echo", &[], b"{}").expect("an answer").text(), "{}");
    let large = vec![b'x'; 64 * 1024];
    assert_eq!(request(server.address, "POST", "/echo", &[], &large).expect("an answer").body, large);
    let mut client = Client::connect(server.address).expect("connect");
    client.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-Continue\r\n\r\n").expect("send");
    assert_eq!(client.reply().expect("read").expect("an interim answer").status, 100);
    client.send("ab").expect("send");
    thread::sleep(Duration::from_millis(20));
    client.send(format!("cd{HEALTH}")).expect("send");
    assert_eq!(client.reply().expect("read").expect("an answer").text(), "abcd");
    assert_eq!(client.reply().expect("read").expect("an answer").text(), "Health check OK.");
    let all = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nab";
    client.send(all).expect("send");
    assert_eq!(client.reply().expect("read").expect("no 100: the body is here").text(), "ab");
}

#[test]
fn refuses_what_is_wrong() {
    let server = server(Limits { deadline: SHORT, ..Limits::default() });
    let with = |header: &str| format!("POST /count HTTP/1.1\r\nHost: h\r\n{header}\r\n\r\n");
    let cases = [
        ("\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03".to_owned(), 400),
        ("GET\r\n\r\n".to_owned(), 400),
        ("GET /\r\n\r\n".to_owned(), 400),
        ("GET / HTTX/1.1\r\nHost: h\r\n\r\n".to_owned(), 400),
        ("GET / x HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost : h\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nx: a\r\n folded\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nx: a\0b\r\n\r\n".to_owned(), 400),
        ("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), 400),
        ("CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), 400),
        ("GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), 400),
        (with("Content-Length: -1"), 400),
        (with("Content-Length: +1"), 400),
        (with("Content-Length: abc"), 400),
        (with("Content-Length: 0x10"), 400),
        (with("Content-Length: 1, 1"), 400),
        (with("Content-Length:"), 400),
        (with("Content-Length: 1\r\nContent-Length: 2"), 400),
        (with("Content-Length: 65537"), 413),
        (with("Content-Length: 30000000000"), 413),
        (with("Content-Length: 100000000000000"), 413),
        (with("Content-Length: 9223372036854775808"), 413),
        (with("Content-Length: 18446744073709551616"), 413),
        (with("Content-Length: 30000000000\r\nExpect: 100-continue"), 413),
        (with(&format!("Content-Length: {}", "9".repeat(9000))), 413),
        (with("Content-Length: 2\r\nExpect: 200-ok"), 417),
        (with("Transfer-Encoding: gzip"), 411),
        (with("Transfer-Encoding: chunked\r\nContent-Length: 2"), 411),
        (with(&"x: y\r\n".repeat(100)), 431),
        (with(&format!("x: {}", "y".repeat(17_000))), 431),
        (format!("GET /{} HTTP/1.1\r\n", "y".repeat(17_000)), 431),
        ("\r\n".repeat(9000), 431),
        ("GET / HTTP/1.2\r\nHost: h\r\n\r\n".to_owned(), 505),
        ("GET / HTTP/3\r\nHost: h\r\n\r\n".to_owned(), 505),
        // Incomplete when the deadline comes.
        ("GET / HTTP/1.1\r\nHost".to_owned(), 408),
        (with("Content-Length: 2"), 408),
    ];
    for (bytes, status) in &cases {
        assert_eq!(last_word(server.address, bytes), Some(*status), "{:.80?}", bytes);
    }
    assert_eq!(get(server.address, "/count").text(), "1", "none of them reached the handler");

    // A client that is still sending when it is refused can read the reason: there is no reset for a while.
    let mut client = Client::connect(server.address).expect("connect");
    client.send(with("Content-Length: 100000")).expect("send");
    for _ in 0..5 {
        client.send([0; 1000]).expect("the server reads on");
        thread::sleep(SHORT / 15);
    }
    assert_eq!(client.reply().expect("read").expect("an answer").status, 413);
}

#[test]
fn runs_no_body_as_a_request() {
    let server = server(Limits::default());
    let smuggled = format!("0\r\n\r\n{HEALTH}");
    for header in
        ["Transfer-Encoding: chunked", "transfer-encoding:x", "Content-Length: 5\r\nTransfer-Encoding: chunked"]
    {
        let bytes = format!("POST /count HTTP/1.1\r\nHost: h\r\n{header}\r\n\r\n{smuggled}");
        assert_eq!(last_word(server.address, bytes), Some(411));
    }
    assert_eq!(last_word(server.address, format!("GET / HTTP/1.1\r\n\r\n{HEALTH}")), Some(400));
    assert_eq!(get(server.address, "/count").text(), "1");
}

#[test]
fn answers_for_a_handler_that_fails() {
    let server = server(Limits::default());
    for path in ["/panic", "/empty"] {
        assert_eq!(last_word(server.address, format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n{HEALTH}")), Some(500));
    }
    let reply = request(server.address, "HEAD", "/panic", &[], b"").expect("an answer");
    assert_eq!((reply.status, reply.body.len()), (500, 0));
    let reply = get(server.address, "/split");
    assert_eq!((reply.text().as_str(), reply.header("x-good"), reply.header("x-bad")), ("split", Some("1"), None));
    assert!(reply.header("x-forged").is_none() && reply.header("Transfer-Encoding").is_none());
    assert_eq!(get(server.address, "/big").body.len(), 1024 * 1024);
}

#[test]
fn keeps_its_deadlines() {
    let server = server(Limits { deadline: SHORT, ..Limits::default() });
    let bounded = |begin: Instant| assert!((SHORT..SHORT * 8).contains(&begin.elapsed()), "{:?}", begin.elapsed());

    // No byte, at first and after an answer: closed without an answer.
    let begin = Instant::now();
    assert_eq!(last_word(server.address, ""), None);
    bounded(begin);
    let mut client = Client::connect(server.address).expect("connect");
    client.send(HEALTH).expect("send");
    client.reply().expect("read").expect("an answer");
    let begin = Instant::now();
    assert!(client.closed());
    bounded(begin);

    // A byte now and then does not extend the deadline.
    for start in ["G", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n"] {
        let begin = Instant::now();
        let mut client = Client::connect(server.address).expect("connect");
        client.send(start).expect("send");
        while begin.elapsed() < SHORT * 4 && client.send("x").is_ok() {
            thread::sleep(SHORT / 20);
        }
        assert!(begin.elapsed() < SHORT * 4, "the server cut it off");
    }

    // Nor does reading a little now and then: 20 answers of 1 MiB are more than all buffers take.
    let mut client = Client::connect(server.address).expect("connect");
    client.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n".repeat(20)).expect("send");
    let begin = Instant::now();
    let mut received = 0;
    while begin.elapsed() < SHORT * 10 {
        match client.stream.read(&mut [0; 1000]) {
            Ok(count) if count > 0 => received += count,
            _ => break,
        }
        thread::sleep(if begin.elapsed() < SHORT * 3 { SHORT / 20 } else { Duration::ZERO });
    }
    assert!(received < 20 * 1024 * 1024, "all was received");
}

#[test]
fn makes_room() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let server = server(limits);
    let mut clients: Vec<Client> = (0..2).map(|_| Client::connect(server.address).expect("connect")).collect();
    for client in &mut clients {
        client.send(HEALTH).expect("send");
        client.reply().expect("read").expect("an answer");
        // For the server, too, one of them has then waited longer.
        thread::sleep(SHORT / 3);
    }
    assert!(healthy(server.address), "the longest idle one made room");
    assert!(clients[0].closed());
    clients[1].send(HEALTH).expect("send");
    assert!(clients[1].reply().expect("read").is_some(), "the other one is left alone");
    drop(clients);

    // Handlers have both places: they are never cut off, and the third client is refused.
    let busy: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = Client::connect(server.address).expect("connect");
            client.send("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").expect("send");
            client
        })
        .collect();
    thread::sleep(SHORT / 3);
    assert_eq!(last_word(server.address, HEALTH), Some(503));
    for mut client in busy {
        assert_eq!(client.reply().expect("read").expect("an answer").text(), "slow");
    }
    eventually("answers again", || healthy(server.address));
}

#[test]
fn answers_a_burst() {
    let server = server(Limits::default());
    let address = server.address;
    let clients: Vec<_> = (0..60).map(|_| thread::spawn(move || healthy(address))).collect();
    assert!(clients.into_iter().all(|client| client.join().expect("it does not panic")));
}

#[test]
fn stops() {
    let limits = Limits::default();
    let mut server = server(limits);
    let mut idle = Client::connect(server.address).expect("connect");
    idle.send(HEALTH).expect("send");
    idle.reply().expect("read").expect("an answer");
    let mut partial = Client::connect(server.address).expect("connect");
    partial.send("GET / HT").expect("send");
    let mut busy = Client::connect(server.address).expect("connect");
    busy.send("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").expect("send");
    thread::sleep(SHORT / 3);
    let took = server.stop();
    assert!(took < Duration::from_secs(2), "{took:?}");
    let reply = busy.reply().expect("read").expect("a request in flight is answered");
    assert_eq!((reply.text().as_str(), reply.header("Connection")), ("slow", Some("close")));
    assert!(idle.closed() && partial.closed());
    assert!(TcpStream::connect(server.address).is_err());
    let again = Listener::bind(&server.address.to_string()).expect("the port is free again");

    // It is stopped before it runs, and twice; a handler that does not return delays the end by the deadline only.
    again.stopper().stop();
    again.stopper().stop();
    again.run(handler(), decorate());
    let mut server = self::server(Limits { deadline: SHORT / 6, ..limits });
    let mut busy = Client::connect(server.address).expect("connect");
    busy.send("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").expect("send");
    thread::sleep(SHORT / 6);
    assert!(server.stop() < SHORT * 2 / 3);
}

#[test]
fn says_why_it_cannot_bind() {
    let first = Listener::bind("127.0.0.1:0").expect("a free port");
    for address in
        [first.local_addr().unwrap().to_string(), "192.0.2.1:0".to_owned(), "nowhere".to_owned(), String::new()]
    {
        assert_eq!(Listener::bind(&address).err().map(|e| e.kind()), Some(Kind::Usage), "{address}");
    }
    assert!(Listener::bind("localhost:0").is_ok());
}

#[test]
fn lives_with_few_descriptors() {
    for (count, words) in [(64, "nofile=64"), (65, "nofile=65")] {
        let child = start(words, false).expect("start the child");
        let crowd: Vec<_> = (0..200).map(|_| TcpStream::connect(child.address)).collect();
        assert!((0..20).all(|_| healthy(child.address)), "answers beside a crowd");
        child.within_bounds(&format!("200 connections at {count} descriptors"), child.rss_bytes());
        assert!(child.descriptors() <= count * 3 / 4, "leaves some for the backup");
        drop(crowd);
        child.finish();
    }

    // Other code in the process may use the descriptors: here, the limit falls below the number that the listener expected.
    let mut child = start("", false).expect("start the child");
    assert!(healthy(child.address), "it runs, and has read its limit");
    child.tell(&format!("nofile={}", child.descriptors() + 8));
    let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(child.address)).collect();
    assert!((0..20).all(|_| healthy(child.address)), "answers where accept fails");
    drop(crowd);
    child.tell("nofile=all");
    child.finish();
}

#[test]
fn lives_without_threads() {
    let Some(mut child) = start("", true) else {
        return skip("root, and cannot be another user by setpriv");
    };
    assert!(healthy(child.address), "its threads in reserve are there");
    child.tell("nproc=1");
    // Beside clients that send nothing, clients that keep their connections, and clients that never read.
    for say in ["", HEALTH, "GET /big HTTP/1.1\r\nHost: h\r\n\r\n"] {
        let mut crowd: VecDeque<TcpStream> = VecDeque::new();
        let answered = (0..100)
            .filter(|_| {
                for _ in 0..3 {
                    let mut client = TcpStream::connect(child.address).expect("connect");
                    client.write_all(say.as_bytes()).ok();
                    crowd.push_back(client);
                }
                crowd.drain(..crowd.len().saturating_sub(50));
                healthy(child.address)
            })
            .count();
        assert!(answered >= 99, "{answered} of 100 answered beside {say:?}");
    }
    // If all threads are in the handler, a client waits for one of them. On a busy machine the handlers may take longer than that.
    let waits_for_them = || {
        let busy: Vec<_> = (0..2)
            .map(|_| {
                let mut client = Client::connect(child.address).expect("connect");
                client.send("GET /brief HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").expect("send");
                client
            })
            .collect();
        thread::sleep(BRIEF / 3);
        let answered = healthy(child.address);
        for mut client in busy {
            assert_eq!(client.reply().expect("read").expect("an answer").text(), "brief");
        }
        answered
    };
    assert!((0..10).any(|_| waits_for_them()), "a request waits for a thread");
    child.tell("nproc=all");
    let more: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(child.address).expect("connect")).collect();
    drop(more);
    eventually("all are gone, and threads can be had again", || {
        let crowd: Vec<_> = (0..10).map(|_| TcpStream::connect(child.address)).collect();
        thread::sleep(SHORT / 3);
        let enough = child.status("Threads") > 10;
        drop(crowd);
        thread::sleep(SHORT / 3);
        enough
    });
    child.finish();
}

#[test]
fn survives_crowds() {
    let child = start("", false).expect("start the child");
    assert!(healthy(child.address), "it runs, with its threads in reserve");
    let before = child.rss_bytes();
    let (threads, descriptors) = (child.status("Threads"), child.descriptors());

    // 2,000 clients that send nothing, 500 at a time.
    let mut idle = VecDeque::new();
    for n in 0..2000 {
        idle.push_back(TcpStream::connect(child.address).expect("connect"));
        if idle.len() > 500 {
            idle.pop_front();
        }
        assert!(n % 100 != 0 || healthy(child.address), "answers beside {n} idle clients");
    }
    child.within_bounds("2000 idle connections", before);
    drop(idle);

    // 500 clients that reset the connection at once, most of them before it is accepted.
    for _ in 0..500 {
        let stream = TcpStream::connect(child.address).expect("connect");
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("set linger");
    }
    assert!(healthy(child.address));

    // 200 clients with HTTP/2: refused, and nothing of them is left.
    for _ in 0..200 {
        assert_eq!(last_word(child.address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some(505));
    }
    child.within_bounds("2000 idle, 500 resets, 200 HTTP/2", before);
    let given_back = || child.status("Threads") <= threads && child.descriptors() <= descriptors;
    eventually("all threads and descriptors are given back", given_back);

    // Without clients nothing runs. By now the threads in reserve have finished their last connections.
    thread::sleep(SHORT);
    let switches = child.switches();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(child.switches(), switches, "no wake-ups");
    child.finish();
}

#[test]
fn survives_slow_clients() {
    let child = start("", false).expect("start the child");
    let (before, address) = (child.rss_bytes(), child.address);
    let over = Arc::new(AtomicBool::new(false));
    // Twice the cap, half of them slow with the head and half with the body; each connects again after it was cut off.
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let over = Arc::clone(&over);
            let start = ["GET /", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n"][n % 2];
            thread::spawn(move || {
                let mut streams: Vec<Option<TcpStream>> = (0..16).map(|_| None).collect();
                while !over.load(Ordering::SeqCst) {
                    for slot in &mut streams {
                        let alive = slot.as_mut().is_some_and(|stream| stream.write_all(b"x").is_ok());
                        if !alive && let Ok(mut stream) = TcpStream::connect(address) {
                            stream.write_all(start.as_bytes()).ok();
                            *slot = Some(stream);
                        }
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            })
        })
        .collect();
    let answered = (0..200)
        .filter(|_| {
            thread::sleep(Duration::from_millis(10));
            healthy(address)
        })
        .count();
    child.within_bounds("128 slow clients", before);
    over.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().expect("it does not panic"));
    assert!(answered >= 198, "{answered} of 200 answered");
    child.finish();
}

#[test]
fn survives_floods() {
    let child = start("deadline_ms=1000", false).expect("start the child");
    let (before, address) = (child.rss_bytes(), child.address);

    // Requests without end, of small and of large answers, none of which is read.
    let floods: Vec<_> = (0..16)
        .map(|n| {
            thread::spawn(move || {
                let path = ["/health-check", "/big"][n % 2];
                let requests = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").repeat(1000);
                let mut client = Client::connect(address).expect("connect");
                let sent = (0..1000).take_while(|_| client.send(&requests).is_ok()).count();
                assert!(sent < 1000, "the server cut it off");
            })
        })
        .collect();
    let mut peak = 0;
    while floods.iter().any(|flood| !flood.is_finished()) {
        assert!(healthy(address), "answers beside the floods");
        peak = peak.max(child.rss_bytes());
        thread::sleep(Duration::from_millis(20));
    }
    eprintln!("16 floods: peak_growth_kib={}", peak.saturating_sub(before) / 1024);
    assert!(peak < before + GROWTH_BYTES);
    floods.into_iter().for_each(|flood| flood.join().expect("it does not panic"));
    child.within_bounds("16 floods", before);

    // 50 MB of request line, of one header, of headers.
    let before = child.rss_bytes();
    for (start, more) in [("GET /", "x"), ("GET / HTTP/1.1\r\nx: ", "x"), ("GET / HTTP/1.1\r\n", "x: y\r\n")] {
        let mut client = Client::connect(address).expect("connect");
        client.send(start).expect("send");
        let part = more.repeat(1024 * 1024 / more.len());
        let sent = (0..50).take_while(|_| client.send(&part).is_ok()).count();
        // A client that does not stop sending may lose the answer to a reset.
        assert!(sent < 50 && client.reply().map_or(true, |reply| reply.is_none_or(|reply| reply.status == 431)));
    }
    child.within_bounds("50 MB heads", before);
    child.finish();
}

/// What a client gets from a Unix socket.
fn ask_unix(path: &Path, text: &str) -> String {
    let mut stream = UnixStream::connect(path).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
    stream.write_all(text.as_bytes()).expect("it takes the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    answer
}

const LAST: &str = "GET /health-check HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

#[test]
fn sockets_of_each_kind_are_one_listener_with_one_set_of_limits() {
    let scratch = scratch();
    let path = scratch.path().join("api.sock");
    let access = SocketAccess { mode: 0o660, gid: None };
    let limits = Limits { connections: 4, ..Limits::default() };
    let listener = Listener::bind("127.0.0.1:0").unwrap().and(Listener::bind_unix(&path, access).unwrap());
    let listener = listener.and(Listener::bind("[::1]:0").unwrap()).with_limits(limits);
    let (first, names, stopper) = (listener.local_addr().unwrap(), listener.names(), listener.stopper());
    assert_eq!((names.len(), &names[0], &names[1]), (3, &first.to_string(), &format!("unix:{}", path.display())));
    let thread = thread::spawn(move || listener.run(handler(), decorate()));
    for name in &names {
        let answer = match name.strip_prefix("unix:") {
            Some(path) => ask_unix(Path::new(path), LAST),
            None => {
                let mut stream = TcpStream::connect(name).unwrap();
                stream.write_all(LAST.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            }
        };
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("Health check OK."), "{name}: {answer}");
    }
    let uid = rustix::process::geteuid().as_raw();
    assert!(ask_unix(&path, "GET / HTTP/9.9\r\n\r\n").contains(&format!("x-peer-addr: unix:{uid}\r\n")));
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o660);
    // The connection that waits longest makes room, whatever its socket is.
    let mut idle = [UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap()];
    thread::sleep(BRIEF);
    let more: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(first).unwrap()).collect();
    for stream in &mut idle {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it was closed to make room");
    }
    drop(more);
    stopper.stop();
    thread.join().unwrap();
    assert!(!path.exists(), "the socket is gone");
    assert!(TcpStream::connect(first).is_err());
}

#[test]
fn what_is_refused_to_head_has_no_body() {
    let server = server(Limits::default());
    for header in ["Transfer-Encoding: chunked", "Content-Length: 65537", "Expect: x", "Host: again"] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(format!("HEAD /health-check HTTP/1.1\r\nHost: h\r\n{header}\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 4") && answer.ends_with("\r\n\r\n"), "{header}: {answer}");
    }
}

#[test]
fn an_inherited_socket_is_used_and_left_as_it_was() {
    let scratch = scratch();
    let path = scratch.path().join("api.sock");
    let (tcp, unix) = (TcpListener::bind("127.0.0.1:0").unwrap(), UnixListener::bind(&path).unwrap());
    for _ in 0..2 {
        let inherited = vec![tcp.try_clone().unwrap().into(), unix.try_clone().unwrap().into()];
        let listener = Listener::adopt(inherited).unwrap();
        let stopper = listener.stopper();
        let thread = thread::spawn(move || listener.run(handler(), decorate()));
        assert!(ask_unix(&path, LAST).starts_with("HTTP/1.1 200"));
        assert_eq!(get(tcp.local_addr().unwrap(), "/health-check").status, 200);
        stopper.stop();
        thread.join().unwrap();
    }
    // A client that comes while no service runs waits for the next one.
    let mut early = UnixStream::connect(&path).unwrap();
    early.write_all(LAST.as_bytes()).unwrap();
    let listener = Listener::adopt(vec![unix.try_clone().unwrap().into()]).unwrap();
    let stopper = listener.stopper();
    let thread = thread::spawn(move || listener.run(handler(), decorate()));
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stopper.stop();
    thread.join().unwrap();
    assert!(path.exists(), "it is not ours");

    let file = std::fs::File::open("/dev/null").unwrap();
    let (datagrams, peer) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), TcpStream::connect(tcp.local_addr().unwrap()).unwrap());
    for (wrong, problem) in [
        (OwnedFd::from(file), "is no socket"),
        (datagrams.into(), "accepts no connections"),
        (peer.into(), "accepts no connections"),
    ] {
        let refused = Listener::adopt(vec![wrong]).err().unwrap();
        assert_eq!(refused.kind(), Kind::Usage);
        assert!(refused.chain().contains(&format!("descriptor 3 {problem}")), "{}", refused.chain());
    }
}

#[test]
fn the_pulse_beats_while_connections_are_accepted() {
    let listener = Listener::bind("127.0.0.1:0").expect("a free port");
    let (pulse, stopper) = (listener.pulse(), listener.stopper());
    assert!(!pulse.beats(BRIEF), "it does not run yet");
    let running = thread::spawn(move || listener.run(handler(), decorate()));
    assert!((0..20).all(|_| pulse.beats(Duration::from_secs(10))), "it runs");
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let pulse = pulse.clone();
            thread::spawn(move || (0..50).all(|_| pulse.beats(Duration::from_secs(10))))
        })
        .collect();
    assert!(askers.into_iter().all(|asker| asker.join().expect("it does not panic")), "several ask at once");
    stopper.stop();
    running.join().expect("it does not panic");
    assert!(!pulse.beats(BRIEF), "it runs no more");
}

#[test]
fn what_has_arrived_is_answered_at_the_end() {
    let scratch = scratch();
    let path = scratch.path().join("api.sock");
    let access = SocketAccess { mode: 0o600, gid: None };
    let listener = Listener::bind("127.0.0.1:0").unwrap().and(Listener::bind_unix(&path, access).unwrap());
    let address = listener.local_addr().unwrap();
    let mut by_tcp: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut by_unix: Vec<_> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    by_tcp.iter_mut().for_each(|stream| stream.write_all(LAST.as_bytes()).unwrap());
    by_unix.iter_mut().for_each(|stream| stream.write_all(LAST.as_bytes()).unwrap());
    // They wait, not accepted yet, when the stop comes.
    listener.stopper().stop();
    listener.run(handler(), decorate());
    let is_answered = |stream: &mut dyn Read| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).is_ok_and(|_| answer.starts_with("HTTP/1.1 200"))
    };
    let count = by_tcp.iter_mut().map(|stream| is_answered(stream)).filter(|answered| *answered).count();
    assert_eq!(count, 20, "requests by TCP were answered");
    let count = by_unix.iter_mut().map(|stream| is_answered(stream)).filter(|answered| *answered).count();
    assert_eq!(count, 20, "requests by the Unix socket were answered");
    assert!(!path.exists(), "its file is gone");
}
