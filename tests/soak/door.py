#!/usr/bin/env python3
"""Clients at the service for a long time: 50 requests a second, while one backup follows the other.

    door.py BIN MINUTES FILE      BIN is the directory of chainweb-backup and demo-node; FILE gets the graphs, as SVG

A node grows by two heights a second; the service backs it up, and deletes all but the last five backups. The requests are of all kinds, by
turns: over kept connections, over new ones, over the Unix socket; a few are wrong. Each answer is compared with what it must be. Each
second memory, threads and descriptors of the service are noted. The first tenth of the time is left out: then pools and caches fill.

Ends with 1 if an answer was lost or wrong, a backup failed, or memory, threads or descriptors grew.
"""

import http.client, json, os, shutil, socket, statistics, subprocess, sys, tempfile, threading, time

RATE, WORKERS = 50, 5
LINES_MAX = 300 # more lines are a grey area
GROWTH = {"RssAnon KiB": 4096, "threads": 8, "descriptors": 8}  # between the medians of the first and the last tenth that count


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(self.path)


class Clients:
    def __init__(self, address, unix):
        self.address, self.unix = address, unix
        self.lock, self.took, self.wrong, self.sent = threading.Lock(), [], [], 0
        self.newest, self.stopping = "1", False

    def connection(self, kind):
        if kind == "unix":
            return Unix(self.unix)
        host, port = self.address.rsplit(":", 1)
        return http.client.HTTPConnection(host, int(port), timeout=20)

    def kinds(self, n):
        """The n-th request: method, path, the answers that are right, a test of the body."""
        word = lambda body: body in (b"backup-done", b"backup-in-progress", b"backup-failed")
        return [
            ("GET", "/health-check", {200}, lambda body: body == b"Health check OK."),
            ("GET", "/check-backup/" + self.newest, {200, 404}, lambda body: word(body) or body == b"no such backup"),
            ("GET", "/list-backups", {200}, lambda body: isinstance(json.loads(body), list)),
            ("GET", "/metrics", {200}, lambda body: b"chainweb_backup_jobs_total" in body),
            ("GET", "/", {200}, lambda body: b"</html>" in body),
            ("HEAD", "/health-check", {200}, lambda body: body == b""),
            ("GET", "/check-backup/..%2f..%2fetc%2fpasswd", {404}, lambda body: body == b"no such backup"),
            ("POST", "/make-backup?pact", {400}, lambda body: b"backupPact" in body),
        ][n % 8]

    def work(self, worker):
        """Each worker sends its share at fixed times, so that a slow answer delays no other worker."""
        kept = {"tcp": self.connection("tcp"), "unix": self.connection("unix")}
        begin, n = time.monotonic() + worker / RATE, 0
        while not self.stopping:
            time.sleep(max(0, begin + n * WORKERS / RATE - time.monotonic()))
            which = "unix" if self.unix and n % 4 == 3 else "tcp"
            fresh = n % 3 == 0
            method, path, codes, right = self.kinds(n + worker)
            at = time.monotonic()
            for again in (False, True):
                connection = self.connection(which) if fresh or again else kept[which]
                try:
                    connection.request(method, path)
                    answer = connection.getresponse()
                    body = answer.read()
                    problem = None if answer.status in codes and right(body) else "%s %s: %d %r" % (method, path, answer.status, body[:80])
                except (OSError, http.client.HTTPException, ValueError) as e:
                    problem = "%s %s: %r" % (method, path, e)
                    # A kept connection may be closed while it idles; a client then asks once more.
                    if not fresh and not again:
                        kept[which] = self.connection(which)
                        continue
                if fresh or again:
                    connection.close()
                break
            with self.lock:
                self.sent += 1
                self.took.append(time.monotonic() - at)
                if problem:
                    self.wrong.append(problem)
            n += 1


def status(pid):
    with open("/proc/%d/status" % pid) as file:
        fields = dict(line.split(":", 1) for line in file)
    number = lambda name: int(fields[name].split()[0])
    return {"VmRSS KiB": number("VmRSS"), "RssAnon KiB": number("RssAnon"), "threads": number("Threads"),
            "descriptors": len(os.listdir("/proc/%d/fd" % pid))}


def graphs(samples, backups, path):
    """A graph below the other, each with its own scale from 0."""
    wide, high, left, gap = 900, 120, 90, 40
    end = samples[-1][0] or 1
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">' % (
        wide + left + 20, (high + gap) * len(samples[0][1]) + 40), '<rect width="100%" height="100%" fill="white"/>']
    for row, name in enumerate(samples[0][1]):
        top = 20 + row * (high + gap)
        most = max(values[name] for _, values in samples) or 1
        x = lambda at: left + wide * at / end
        y = lambda value: top + high - high * value / most
        parts.append('<rect x="%d" y="%d" width="%d" height="%d" fill="#f4f4f4"/>' % (left, top, wide, high))
        for at in backups if row == 0 and len(backups) <= LINES_MAX else []:
            parts.append('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>' % (x(at), top, x(at), top + high))
        points = " ".join("%.1f,%.1f" % (x(at), y(values[name])) for at, values in samples)
        parts.append('<polyline points="%s" fill="none" stroke="#1f6feb"/>' % points)
        parts.append('<text x="%d" y="%d" text-anchor="end">%d</text><text x="%d" y="%d" text-anchor="end">0</text>' % (
            left - 6, top + 10, most, left - 6, top + high))
        parts.append('<text x="%d" y="%d" font-weight="bold">%s</text>' % (left, top - 5, name))
    parts.append('<text x="%d" y="%d">%.0f minutes; %d backups%s</text></svg>' % (
        left, 20 + len(samples[0][1]) * (high + gap), end / 60, len(backups), ", the lines in the first graph" * (len(backups) <= LINES_MAX)))
    with open(path, "w") as file:
        file.write("\n".join(parts))


def start(work):
    node = subprocess.Popen([BIN + "/demo-node", "--database-directory", work + "/node", "--fill", "20000000", "--rate", "2",
                             "--disable-backup-api", "--service-port", "0", "--address-file", work + "/node.address"],
                            stdout=subprocess.DEVNULL, stderr=open(work + "/node.log", "w"))
    wait_for(work + "/node.address", node)
    unix = work + "/api.sock"
    service = subprocess.Popen([BIN + "/chainweb-backup", "serve", "--database-directory", work + "/node", "--enable-backup-api",
                                "--service-port", "0", "--service-interface", "127.0.0.1", "--service-interface", "unix:" + unix,
                                "--address-file", work + "/address", "--keep-last", "5"],
                               stdout=subprocess.DEVNULL, stderr=open(work + "/service.log", "w"))
    wait_for(work + "/address", service)
    with open(work + "/address") as file:
        return node, service, file.read().split()[0], unix


def wait_for(path, process):
    while not os.path.exists(path):
        time.sleep(0.05)
        assert process.poll() is None, "it did not start: see the log beside " + path


def main():
    work = tempfile.mkdtemp(prefix="chainweb-backup-door.")
    node, service, address, unix = start(work)
    clients = Clients(address, unix)
    threads = [threading.Thread(target=clients.work, args=(n,)) for n in range(WORKERS)]
    began = time.monotonic()
    [thread.start() for thread in threads]
    samples, backups, failed, asked = [], [], [], clients.connection("tcp")
    ask = lambda method, path: (asked.request(method, path), asked.getresponse().read().decode())[1]
    running = None
    while time.monotonic() - began < MINUTES * 60:
        at = time.monotonic() - began
        if running:
            word = ask("GET", "/check-backup/" + running)
            if word == "backup-failed":
                failed.append(running)
            if word != "backup-in-progress":
                running = None
        if not running:
            running = clients.newest = ask("POST", "/make-backup?backupPact")
            assert running.isdigit(), running
            backups.append(at)
        samples.append((at, status(service.pid)))
        time.sleep(max(0, began + len(samples) - time.monotonic()))
    clients.stopping = True
    [thread.join() for thread in threads]
    service.terminate()
    ended = service.wait(timeout=15)
    node.terminate()
    node.wait()
    graphs(samples, backups, FILE)
    counted = samples[len(samples) // 10:]
    tenth = max(1, len(counted) // 10)
    problems = ["%d answers were lost or wrong, such as %s" % (len(clients.wrong), clients.wrong[0])] if clients.wrong else []
    problems += ["backup %s failed" % id for id in failed]
    problems += ["the service ended with %d" % ended] if ended else []
    problems += ["the socket was left"] if os.path.exists(unix) else []
    for name in samples[0][1]:
        first, last = (statistics.median(values[name] for _, values in part) for part in (counted[:tenth], counted[-tenth:]))
        print("%-12s %9d at first, %9d at last, %9d at most" % (name, first, last, max(values[name] for _, values in samples)))
        if last - first > GROWTH.get(name, 1 << 40):
            problems.append("%s grew from %d to %d" % (name, first, last))
    took = sorted(clients.took)
    print("%d requests in %.0f s (%.1f a second), %d backups; p50 %.1f ms, p99 %.1f ms, longest %.1f ms; graphs in %s" % (
        clients.sent, samples[-1][0], clients.sent / samples[-1][0], len(backups), took[len(took) // 2] * 1e3,
        took[int(len(took) * 0.99)] * 1e3, took[-1] * 1e3, FILE))
    for problem in problems:
        print("PROBLEM: " + problem)
    if not problems:
        shutil.rmtree(work)
    sys.exit(1 if problems else 0)


if len(sys.argv) != 4:
    sys.exit(__doc__)
BIN, MINUTES, FILE = sys.argv[1], float(sys.argv[2]), sys.argv[3]
main()
