//! What `serve` answers to clients and what it costs, idle and while it backs up, beside a bare rouille that says the same.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::Scale;
use crate::measure::{Table, median, quantile, settle, spread};

/// What is asked for.
const DONE: &str = "backup-done";
/// Numbers of clients, each on a thread and a connection of its own.
const CLIENTS: [usize; 2] = [1, 8];
/// Connections that do nothing, while memory is looked at.
const IDLE: usize = 64;
/// What `/proc` counts processor time in: so many to a second, on every Linux that we run on.
const USER_HZ: f64 = 100.0;
/// Who has not answered by then never will.
const PATIENCE: Duration = Duration::from_secs(10);
const PACT_MB_MAX: u64 = 200;

/// A server that says what `serve` says of a finished backup, made with rouille alone; for a process of its own.
pub fn serve_bare_rouille(address_file: &Path) -> ! {
    let server = rouille::Server::new("127.0.0.1:0", |request| {
        let seconds = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        rouille::Response::text(DONE)
            .with_unique_header("x-peer-addr", request.remote_addr().to_string())
            .with_unique_header("x-server-timestamp", seconds.to_string())
            .with_unique_header("x-chainweb-node-version", "unknown")
            .with_unique_header("x-backup-scope", "rocksdb-and-pact")
            .with_unique_header("X-Frame-Options", "DENY")
            .with_unique_header("Cross-Origin-Resource-Policy", "same-origin")
            .with_unique_header("X-Content-Type-Options", "nosniff")
            .with_unique_header("Referrer-Policy", "no-referrer")
            .with_unique_header("Cache-Control", "no-store")
    })
    .unwrap();
    fs::write(address_file, server.server_addr().to_string()).unwrap();
    server.run();
    unreachable!("its socket is never closed")
}

/// A server in a process of its own, killed when it goes out of scope.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(command: &mut Command, address_file: &Path) -> Server {
        let _ = fs::remove_file(address_file);
        let child = command.spawn().unwrap();
        let begun = Instant::now();
        loop {
            match fs::read_to_string(address_file) {
                // The port is the last thing written.
                Ok(text) if text.trim().contains(':') => return Server { child, address: text.trim().to_owned() },
                _ => assert!(begun.elapsed() < Duration::from_secs(10), "{command:?} does not serve"),
            }
            sleep(Duration::from_millis(20));
        }
    }

    fn ours(scale: &Scale, node: &Path, backups: &Path) -> Server {
        let file = scale.dir.join("serve.address");
        let mut command = Command::new(&scale.program);
        command.args(["serve", "--enable-backup-api", "--service-port", "0", "--reserve-bytes", "0"]);
        command.args(["--log-level", "error", "--sums", "none", "--address-file"]).arg(&file);
        command.arg("--database-directory").arg(node).arg("--backup-directory").arg(backups);
        Server::start(&mut command, &file)
    }

    fn bare(scale: &Scale) -> Server {
        let file = scale.dir.join("bare.address");
        Server::start(Command::new(std::env::current_exe().unwrap()).arg("bare-rouille").arg(&file), &file)
    }

    /// The sum of the figures that `/proc` tells of the process, or of each of its threads.
    fn figure(&self, name: &str, of_threads: bool) -> u64 {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let threads = || fs::read_dir(process.join("task")).unwrap().map(|thread| thread.unwrap().path());
        let places: Vec<PathBuf> = if of_threads { threads().collect() } else { vec![process.clone()] };
        // A thread may have ended meanwhile.
        let statuses = places.iter().filter_map(|place| fs::read_to_string(place.join("status")).ok());
        let told = |status: String| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        statuses.map(told).sum()
    }

    /// What the process and its threads, those that have ended too, have had of the processors.
    fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        let ticks = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<f64>().unwrap());
        ticks.sum::<f64>() / USER_HZ
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection, kept alive.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: usize,
    body: String,
}

impl Client {
    fn connect(server: &Server) -> Client {
        let stream = TcpStream::connect(&server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, buffer: Vec::new() }
    }

    fn ask(&mut self, method: &str, path: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        self.stream.write_all(request.as_bytes()).unwrap();
        self.buffer.clear();
        loop {
            if let Some(answer) = parse(&self.buffer) {
                return answer;
            }
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk).unwrap();
            assert!(count > 0, "the server hung up");
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }

    fn check(&mut self, id: &str) -> Answer {
        self.ask("GET", &format!("/check-backup/{id}"))
    }
}

/// `None` for a part of an answer.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let (head, body) = std::str::from_utf8(bytes).unwrap().split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
    let (mut headers, mut length) = (0, 0);
    for (name, value) in lines.map(|line| line.split_once(':').unwrap()) {
        headers += 1;
        if name.eq_ignore_ascii_case("Content-Length") {
            length = value.trim().parse().unwrap();
        }
    }
    (body.len() == length).then(|| Answer { status, headers, body: body.to_owned() })
}

/// Requests per second, and what each took in microseconds: of time, and of the server's processors.
struct Load {
    rate: f64,
    latencies: Vec<f64>,
    cpu_us: f64,
}

/// Asks for `id` again and again. It may change meanwhile.
fn load(server: &Server, clients: usize, phase: Duration, id: &Mutex<String>) -> Load {
    let ask = |client: &mut Client| {
        let path = id.lock().clone();
        let asked = Instant::now();
        assert_eq!(client.check(&path).status, 200);
        asked.elapsed().as_secs_f64() * 1e6
    };
    // One after the other: rouille finds no thread for connections that come at once.
    let mut connected: Vec<Client> = Vec::new();
    for _ in 0..clients {
        let mut client = Client::connect(server);
        ask(&mut client);
        connected.push(client);
    }
    let one = |mut client: Client| {
        let (begun, mut latencies) = (Instant::now(), Vec::new());
        while begun.elapsed() < phase {
            latencies.push(ask(&mut client));
        }
        latencies
    };
    let cpu_before = server.cpu_seconds();
    let latencies: Vec<f64> = scope(|s| {
        let threads: Vec<_> = connected.into_iter().map(|client| s.spawn(|| one(client))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let (count, cpu_seconds) = (latencies.len() as f64, server.cpu_seconds() - cpu_before);
    Load { rate: count / phase.as_secs_f64(), latencies, cpu_us: cpu_seconds * 1e6 / count }
}

/// Makes backups until told to stop; `current` is the one that is being made. The number of those that were made.
fn back_up(server: &Server, backups: &Path, current: &Mutex<String>, stop: &AtomicBool) -> u32 {
    let mut client = Client::connect(server);
    // Who asks for the one before may not have noticed that it is over.
    let (mut made, mut before): (u32, [Option<String>; 2]) = (0, [None, None]);
    while !stop.load(Relaxed) {
        let id = client.ask("POST", "/make-backup?backupPact=true").body;
        current.lock().clone_from(&id);
        loop {
            let status = client.check(&id).body;
            if status != "backup-in-progress" {
                assert_eq!(status, DONE);
                break;
            }
            sleep(Duration::from_millis(20));
        }
        made += 1;
        let [oldest, newer] = before;
        oldest.iter().for_each(|id| fs::remove_dir_all(backups.join(id)).unwrap());
        before = [newer, Some(id)];
    }
    before.iter().flatten().for_each(|id| fs::remove_dir_all(backups.join(id)).unwrap());
    made
}

#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu_us: Vec<f64>,
    max: f64,
    backups: u32,
}

const BARE: &str = "bare rouille";
const OURS_IDLE: &str = "ours, idle";
const OURS_RUNNING: &str = "ours, while it backs up";
const OURS_CURRENT: &str = "ours, while it backs up, asked for the running one";

/// Rates and latencies, then memory.
pub fn http(scale: &Scale) {
    let (node, backups) = (scale.dir.join("node-http"), scale.dir.join("backups-http"));
    crate::fill_node(&node, scale.pact_databases, scale.pact_bytes.min(PACT_MB_MAX * 1_000_000));
    let database = crate::speed::many_files(scale, &node, scale.ssts.first().copied().unwrap_or(1000));
    rates(scale, &node, &backups);
    memory(scale, &node, &backups);
    drop(database);
    fs::remove_dir_all(&node).unwrap();
    fs::remove_dir_all(&backups).unwrap();
}

fn rates(scale: &Scale, node: &Path, backups: &Path) {
    let (ours, bare) = (Server::ours(scale, node, backups), Server::bare(scale));
    let done = Mutex::new(String::new());
    assert_eq!(back_up_once(&ours, &done), DONE);
    let id = done.lock().clone();
    let [mine, theirs] = [&ours, &bare].map(|server| Client::connect(server).check(&id));
    assert_eq!((&mine.body, mine.headers), (&theirs.body, theirs.headers), "both send the same");

    let phase = scale.phase / 2;
    let mut all: BTreeMap<(usize, &str), Figures> = BTreeMap::new();
    for _ in 0..scale.rounds {
        for clients in CLIENTS {
            for name in [BARE, OURS_IDLE, OURS_RUNNING, OURS_CURRENT] {
                settle();
                let figures = all.entry((clients, name)).or_default();
                let server = if name == BARE { &bare } else { &ours };
                let mut load = if matches!(name, OURS_RUNNING | OURS_CURRENT) {
                    let (current, stop) = (Mutex::new(String::new()), AtomicBool::new(false));
                    scope(|s| {
                        let made = s.spawn(|| back_up(server, backups, &current, &stop));
                        while current.lock().is_empty() {
                            sleep(Duration::from_millis(1));
                        }
                        let asked = if name == OURS_CURRENT { &current } else { &done };
                        let load = load(server, clients, phase, asked);
                        stop.store(true, Relaxed);
                        figures.backups += made.join().unwrap();
                        load
                    })
                } else {
                    load(server, clients, phase, &done)
                };
                figures.rates.push(load.rate);
                figures.cpu_us.push(load.cpu_us);
                let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| quantile(&mut load.latencies, part));
                figures.p50.push(p50);
                figures.p99.push(p99);
                figures.max = figures.max.max(max);
            }
        }
    }

    let title = format!("`GET /check-backup/{{id}}`, connections kept alive, {phase:?} each time");
    let columns = [
        "server",
        "clients",
        "requests/s (min / median / max)",
        "ratio to bare",
        "p50 µs",
        "p99 µs",
        "max ms",
        "p99 to idle",
        "CPU µs",
        "backups",
    ];
    let mut table = Table::new(title, &columns);
    for clients in CLIENTS {
        let of = |name: &str, get: &dyn Fn(&Figures) -> &Vec<f64>| median(get(&all[&(clients, name)]).iter().copied());
        for name in [BARE, OURS_IDLE, OURS_RUNNING, OURS_CURRENT] {
            let figures = &all[&(clients, name)];
            table.row(&[
                name.to_owned(),
                clients.to_string(),
                spread(&figures.rates, 0),
                format!("{:.2}", of(name, &|f| &f.rates) / of(BARE, &|f| &f.rates)),
                format!("{:.0}", of(name, &|f| &f.p50)),
                format!("{:.0}", of(name, &|f| &f.p99)),
                format!("{:.1}", figures.max / 1000.0),
                format!("{:.2}", of(name, &|f| &f.p99) / of(OURS_IDLE, &|f| &f.p99)),
                format!("{:.0}", of(name, &|f| &f.cpu_us)),
                figures.backups.to_string(),
            ]);
        }
    }
    table.print();
}

/// Makes a backup that stays; what became of it.
fn back_up_once(server: &Server, id: &Mutex<String>) -> String {
    let mut client = Client::connect(server);
    *id.lock() = client.ask("POST", "/make-backup?backupPact=true").body;
    loop {
        let status = client.check(&id.lock()).body;
        if status != "backup-in-progress" {
            return status;
        }
        sleep(Duration::from_millis(20));
    }
}

/// Memory, threads and wake-ups of servers that nobody has asked for much.
fn memory(scale: &Scale, node: &Path, backups: &Path) {
    let newest = fs::read_dir(backups).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let id = newest.filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric())).max().unwrap();
    let columns = ["server", "idle connections", "VmRSS MiB", "RssAnon MiB", "threads", "voluntary context switches"];
    let mut table = Table::new("Memory and wake-ups of servers just started", &columns);
    for (name, server) in [(BARE, Server::bare(scale)), ("ours", Server::ours(scale, node, backups))] {
        // An idle connection is closed after 5 s.
        for (connections, window) in [(0, 5), (IDLE, 3)] {
            let window = Duration::from_secs(window).min(scale.phase);
            let mut clients = Vec::new();
            for _ in 0..connections {
                let mut client = Client::connect(&server);
                assert_eq!(client.check(&id).body, DONE);
                clients.push(client);
            }
            sleep(Duration::from_millis(500));
            let before = server.figure("voluntary_ctxt_switches", true);
            sleep(window);
            let switches = server.figure("voluntary_ctxt_switches", true) - before;
            let mib = |name: &str| format!("{:.1}", server.figure(name, false) as f64 / 1024.0);
            table.row(&[
                name.to_owned(),
                connections.to_string(),
                mib("VmRSS"),
                mib("RssAnon"),
                server.figure("Threads", false).to_string(),
                format!("{switches} in {window:?}"),
            ]);
        }
    }
    table.print();
}
