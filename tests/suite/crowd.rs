//! The real program against crowds of clients: how much memory they can make it use, and whether a backup still gets its threads if
//! there are few.

use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use chainweb_backup::BackupId;
use rustix::net::sockopt::set_socket_recv_buffer_size;

use crate::client::{Client, get, request};
use crate::fixture::{Node, PACT, make_done, paths, plant_backups, wait_until};
use crate::listener::healthy;

/// The most memory that clients may make the service use.
const MEMORY_BYTES: u64 = 32 * 1024 * 1024;
/// As many connections as it serves at a time.
const CLIENTS: usize = 64;
/// All threads that the service has at its start.
const THREADS: u64 = 7;

/// The program as a service of a stopped node.
struct Serving {
    process: Child,
    address: SocketAddr,
}

impl Serving {
    /// `command` runs the program, perhaps under limits.
    fn start(mut command: Command, node: &Node, flags: &[&str]) -> Serving {
        let address_file = node.root().join("address");
        let places = [("--database-directory", node.directory()), ("--backup-directory", node.backups())];
        command.arg("serve").args(["--enable-backup-api", "--service-port", "0", "--log-level", "warn"]).args(flags);
        command.args(places.iter().flat_map(|(flag, path)| [OsStr::new(flag), path.as_os_str()]));
        let mut process = command.arg("--address-file").arg(&address_file).stdin(Stdio::null()).spawn().unwrap();
        let mut address = None;
        wait_until("the service", || {
            address = fs::read_to_string(&address_file).ok();
            address.is_some() || process.try_wait().unwrap().is_some()
        });
        Serving { process, address: address.expect("it serves").parse().unwrap() }
    }

    fn status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The most memory that it has used so far.
    fn peak_bytes(&self) -> u64 {
        self.status("VmHWM") * 1024
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_chainweb-backup"))
}

/// A client that asks and never reads.
fn deaf(address: SocketAddr, path: &str) -> TcpStream {
    let mut client = Client::connect(address).unwrap();
    set_socket_recv_buffer_size(&client.stream, 4096).unwrap();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).unwrap();
    client.stream
}

#[test]
fn a_crowd_that_does_not_read_long_answers_costs_little_memory() {
    let mut node = Node::with_chains(20);
    let service = node.start();
    let id = make_done(&service, PACT);
    service.finish();
    drop(service);
    node.close();
    plant_backups(&node.backups(), &id, (0..1999).map(|n| 1_600_000_000_000 + n), &"r".repeat(5000));
    let serving = Serving::start(Command::new(program()), &node, &[]);
    let address = serving.address;
    eprintln!("2000 backups: {} KiB at the start", serving.peak_bytes() / 1024);

    let page = get(address, "/list-backups");
    let list: Vec<serde_json::Value> = serde_json::from_slice(&page.body).unwrap();
    assert_eq!((page.status, list.len(), page.header("Link").is_some()), (200, 100, true));
    assert!(page.body.len() > 500_000, "{} bytes would not be many", page.body.len());
    assert!(get(address, "/metrics").text().contains("chainweb_backup_backups{status=\"backup-done\"} 2000\n"));
    // The same page, different pages, and answers for which every backup is read.
    for path in ["/list-backups", "/list-backups?limit=", "/metrics"] {
        let url = |n: usize| if path.ends_with('=') { format!("{path}{}", 400 + n) } else { path.to_owned() };
        let crowd: Vec<TcpStream> = (0..CLIENTS).map(|n| deaf(address, &url(n))).collect();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(700) {
            // The limit of the service may be reached by one more client.
            let _ = request(address, "GET", "/health-check", &[], b"");
            sleep(Duration::from_millis(50));
        }
        drop(crowd);
        eprintln!("{CLIENTS} clients of {path}: {} KiB at most", serving.peak_bytes() / 1024);
        assert!(serving.peak_bytes() <= MEMORY_BYTES, "{path}: {} bytes", serving.peak_bytes());
        wait_until("health", || healthy(address));
    }
    let idle: Vec<TcpStream> = (0..CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
    wait_until("their threads", || serving.status("Threads") >= CLIENTS as u64);
    eprintln!("{CLIENTS} idle clients: {} KiB now", serving.status("VmRSS"));
    drop(idle);
}

/// The program as a user without other processes, who may have this many threads and processes. `None` if that is not possible
/// here.
fn limited(uid: u32, tasks_count: u64) -> Option<Command> {
    let can = Command::new("setpriv").arg(format!("--reuid={uid}")).arg("true").status().is_ok_and(|s| s.success());
    let mut command = Command::new("sh");
    // By a descriptor: that user may not have access to the directories above the program.
    let script = "exec 3<\"$0\"; exec prlimit --nproc=\"$1\" setpriv --reuid=\"$2\" --regid=\"$2\" --clear-groups \
                  sh -c 'shift 2; exec /proc/self/fd/3 \"$@\"' sh \"$@\"";
    command.args(["-c", script]).arg(program()).args([tasks_count.to_string(), uid.to_string()]);
    (can && rustix::process::getuid().is_root()).then_some(command)
}

fn give(tree: &Path, uid: u32) {
    paths(tree).iter().for_each(|path| lchown(path, Some(uid), Some(uid)).unwrap());
}

#[test]
fn where_threads_are_scarce_clients_are_answered_and_the_running_backup_is_done() {
    // Enough for a backup and a few clients.
    let uid = 2_000_000_000 + std::process::id();
    let Some(command) = limited(uid, THREADS + 8) else {
        return crate::fixture::skip("not root, or cannot be another user by setpriv");
    };
    let mut node = Node::with_chains(4);
    node.close();
    give(node.root(), uid);
    fs::set_permissions(node.root(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let serving = Serving::start(command, &node, &["--limit-bytes-per-second", "150kB", "--reserve-bytes", "0"]);
    let address = serving.address;
    wait_until("as many threads as the manual says", || serving.status("Threads") == THREADS);

    let id = request(address, "POST", "/make-backup?backupPact", &[], b"").unwrap().text();
    let id = BackupId::parse(&id).expect("a backup");
    let mut crowd: Vec<TcpStream> = Vec::new();
    let (mut answered, mut asked) = (0, 0);
    let is_running = || get(address, &format!("/check-backup/{id}")).text() == "backup-in-progress";
    assert!(is_running());
    let begin = Instant::now();
    let mut most_threads = 0;
    while asked < 200 || is_running() {
        crowd.extend((0..5).map_while(|_| TcpStream::connect(address).ok()));
        crowd.drain(..crowd.len().saturating_sub(100));
        answered += usize::from(healthy(address));
        asked += 1;
        most_threads = most_threads.max(serving.status("Threads"));
        assert!(begin.elapsed() < Duration::from_secs(60), "the backup does not end");
    }
    eprintln!("{answered} of {asked} health checks answered, {most_threads} threads at most");
    assert!(answered * 100 >= asked * 99, "{answered} of {asked}");
    let json = [("Accept", "application/json")];
    let details = request(address, "GET", &format!("/check-backup/{id}"), &json, b"").unwrap().text();
    assert!(details.contains("\"status\":\"backup-done\""), "{details}");
}
