#!/usr/bin/env python3
"""Attacks on the listener, one after the other, each on a service just started: what it answers, and what it costs.

    attacks.py BIN [FUZZED]       BIN is the directory of chainweb-backup; FUZZED heads and identifiers at the end (1000000)

Prints a table in Markdown. `health` is the share of GET /health-check that other clients get answered within five seconds meanwhile, one
every 100 ms; memory is RssAnon at most, in MiB. Ends with 1 if an attack did what it must not: an answer outside its set, a 5xx that is
not meant, health below 99 % where that is promised, memory above 32 MiB, a service that ended, threads or descriptors that are left.
"""

import http.client, os, random, re, resource, shutil, signal, socket, statistics, struct, subprocess, sys, tempfile, threading, time

TOKEN = "attack-token-0123456789abcdef"
FOUND = []


class Service:
    """A service with an empty backup directory, a token, and a socket of each kind."""

    def __init__(self, flags=(), descriptors=None, processes=None, environment=None):
        self.work = tempfile.mkdtemp(prefix="chainweb-backup-attacks.")
        os.makedirs(self.work + "/node/0/rocksDb")
        with open(self.work + "/node/0/rocksDb/CURRENT", "w") as file:
            file.write("MANIFEST-000001\n")
        with open(self.work + "/token", "w", opener=lambda path, how: os.open(path, how, 0o600)) as file:
            file.write(TOKEN + "\n")
        self.unix = self.work + "/api.sock"
        address = self.work + "/address"

        def limit():
            if descriptors:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
            if processes:
                resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))

        self.log = self.work + "/log"
        self.process = subprocess.Popen(
            [BIN + "/chainweb-backup", "serve", "--database-directory", self.work + "/node", "--enable-backup-api", "--service-port",
             "0", "--service-interface", "127.0.0.1", "--service-interface", "unix:" + self.unix, "--address-file", address,
             "--auth-token-file", self.work + "/token", "--open-endpoint", "health-check", "--open-endpoint", "check-backup", *flags],
            stderr=open(self.log, "w"), preexec_fn=limit, env={**os.environ, **(environment or {})})
        end = time.monotonic() + 20
        while not os.path.exists(address):
            time.sleep(0.02)
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the service did not start: " + open(self.log).read())
        with open(address) as file:
            host, port = file.read().split()[0].rsplit(":", 1)
        self.address = (host, int(port))

    def cost(self):
        with open("/proc/%d/status" % self.process.pid) as file:
            fields = dict(line.split(":", 1) for line in file)
        return (int(fields["RssAnon"].split()[0]) / 1024, int(fields["Threads"]), len(os.listdir("/proc/%d/fd" % self.process.pid)))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=12)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "killed"


def connect(service, unix=False, timeout=8):
    if unix:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(timeout)
        stream.connect(service.unix)
        return stream
    return socket.create_connection(service.address, timeout=timeout)


def answers(stream, most=1 << 20):
    """The statuses of all answers until the end of the connection."""
    got = b""
    try:
        while len(got) < most:
            piece = stream.recv(65536)
            if not piece:
                break
            got += piece
    except OSError:
        pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n", got)]


def send(service, text, unix=False):
    with connect(service, unix) as stream:
        try:
            stream.sendall(text)
            stream.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return answers(stream)


def ask(service, path="/health-check", headers=(), method="GET", unix=False, body=None):
    head = "%s %s HTTP/1.1\r\n" % (method, path) + "".join("%s: %s\r\n" % pair for pair in headers)
    if not any(name.lower() == "host" for name, _ in headers):
        head += "Host: localhost\r\n"
    if body is not None:
        head += "Content-Length: %d\r\n" % len(body)
    return send(service, (head + "Connection: close\r\n\r\n").encode() + (body or b""), unix)


class Watch:
    """Asks for health each 100 ms, and notes memory, threads and descriptors at most."""

    def __init__(self, service):
        self.service, self.good, self.all, self.most, self.stopping = service, 0, 0, (0, 0, 0), False
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self):
        while not self.stopping:
            began = time.monotonic()
            self.all += 1
            try:
                connection = http.client.HTTPConnection(*self.service.address, timeout=5)
                connection.request("GET", "/health-check")
                self.good += connection.getresponse().status == 200
                connection.close()
            except (OSError, http.client.HTTPException):
                pass
            try:
                self.most = tuple(max(pair) for pair in zip(self.most, self.service.cost()))
            except OSError:
                return
            time.sleep(max(0, began + 0.1 - time.monotonic()))

    def end(self):
        self.stopping = True
        self.thread.join()
        return self.good / max(1, self.all)


def attack(name, what, health=None, least_seconds=1.0, **limits):
    """Runs `what(service)`, which returns a text and a list of what is wrong."""
    service = Service(**limits)
    try:
        before = service.cost()
        watch = Watch(service)
        began = time.monotonic()
        text, wrong = what(service)
        time.sleep(max(0, began + least_seconds - time.monotonic()))
        share = watch.end()
        end = time.monotonic() + 15
        while time.monotonic() < end and service.process.poll() is None and any(now > then + 1 for now, then in zip(service.cost()[1:], before[1:])):
            time.sleep(0.1)
        if service.process.poll() is not None:
            wrong.append("the service ended with %s" % service.process.returncode)
        else:
            left = service.cost()
            wrong += ["%d threads are left of %d" % (left[1], before[1])] if left[1] > before[1] + 1 else []
            wrong += ["%d descriptors are left of %d" % (left[2], before[2])] if left[2] > before[2] + 1 else []
            if ask(service) != [200]:
                wrong.append("no health afterwards")
            ended = service.stop()
            wrong += ["SIGTERM ended it with %s" % ended] if ended != 0 else []
        if watch.most[0] > 32:
            wrong.append("it took %.0f MiB" % watch.most[0])
        if health and share < health:
            wrong.append("health was %.1f %%" % (100 * share))
        if "panicked" in open(service.log).read():
            wrong.append("a panic is in the log")
        print("| %s | %s | %.1f %% | %.1f | %d | %d | %s |" % (
            name, text, 100 * share, watch.most[0], watch.most[1], watch.most[2], "; ".join(wrong) or "ok"), flush=True)
        FOUND.extend("%s: %s" % (name, each) for each in wrong)
    finally:
        if service.process.poll() is None:
            service.process.kill()
        shutil.rmtree(service.work, ignore_errors=True)


def set_of(statuses):
    return ", ".join("%d× %s" % (statuses.count(each), each) for each in sorted(set(statuses), key=str)) or "no answer"


def outside(statuses, allowed):
    return ["an answer %s" % status for status in sorted(set(statuses) - set(allowed))]


# The attacks of the design, then those of who may come in.


def many(count, seconds):
    def run(service):
        streams = []
        for _ in range(count):
            try:
                streams.append(connect(service, timeout=2))
            except OSError:
                pass
        time.sleep(seconds)
        [stream.close() for stream in streams]
        return "%d of %d connected" % (len(streams), count), []
    return run


def lengths(service):
    got = []
    for value in ("30000000000", "100000000000000", str(2 ** 63), str(2 ** 64), "-1", "abc", "5\r\nContent-Length: 6"):
        got += send(service, ("POST /make-backup HTTP/1.1\r\nHost: localhost\r\nContent-Length: %s\r\n\r\nx" % value).encode())
    return set_of(got), outside(got, {400, 413}) + ([] if len(got) == 7 else ["%d answers of 7" % len(got)])


def version_two(service):
    got = []
    for _ in range(200):
        got += send(service, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    return set_of(got), outside(got, {505})


def slow(body):
    def run(service):
        streams = [connect(service) for _ in range(60)]
        first = b"POST /make-backup HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60\r\n\r\n" if body else b"GET / HTTP/1.1\r\nHost: "
        end, got = time.monotonic() + 12, []
        [stream.sendall(first) for stream in streams]
        while time.monotonic() < end:
            for stream in streams:
                try:
                    stream.sendall(b"x")
                except OSError:
                    pass
            time.sleep(0.5)
        for stream in streams:
            stream.settimeout(1)
            got += answers(stream)
            stream.close()
        return set_of(got), outside(got, {408, 503})
    return run


def flood(service):
    stream = connect(service, timeout=3)
    sent, piece = 0, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    try:
        while sent < 64 << 20:
            sent += stream.send(piece)
    except OSError:
        pass
    stream.close()
    return "%.1f MiB taken" % (sent / (1 << 20)), []


def large(service):
    got = []
    for text in (b"GET /" + b"a" * (50 << 20) + b" HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (50 << 20),
                 b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 5000000):
        got += send(service, text)
    return set_of(got), outside(got, {431, 400})


def resets(service):
    for _ in range(500):
        stream = socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.connect(service.address)
        stream.close()
    return "500 resets", []


def burst(service):
    got, lock = [], threading.Lock()

    def one():
        mine = ask(service)
        with lock:
            got.extend(mine)

    threads = [threading.Thread(target=one) for _ in range(60)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return set_of(got), outside(got, {200}) + ([] if len(got) == 60 else ["%d answers of 60" % len(got)])


def smuggled(service):
    inner = b"POST /make-backup HTTP/1.1\r\nHost: localhost\r\n\r\n"
    got = send(service, b"GET /health-check HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + inner)
    got += send(service, b"GET /health-check HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner)
    return set_of(got), outside(got, {411, 400}) + ([] if len(got) == 2 else ["%d answers of 2" % len(got)])


def forms(service):
    got = send(service, b"GET /health-check HTTP/1.0\r\n\r\n") + send(
        service, b"GET /health-check HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3) + send(
        service, b"GET http://localhost/health-check HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return set_of(got), [] if got == [200] * 5 else ["not all were answered"]


def rebinding(service):
    """A page of evil.example, whose name leads to 127.0.0.1 now: Host and Origin match each other."""
    got = []
    for host in ("evil.example", "evil.example:%d" % service.address[1], "127.0.0.1.evil.example", "localhost.evil.example", "", "a b"):
        for method, path in (("POST", "/make-backup"), ("GET", "/list-backups"), ("GET", "/health-check"), ("GET", "/")):
            got += ask(service, path, [("Host", host), ("Origin", "http://" + host), ("Authorization", "Bearer " + TOKEN)], method)
        got += send(service, ("GET http://%s/list-backups HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n"
                              % (host, TOKEN)).encode())
    return set_of(got), outside(got, {421, 400})


def forged_form(service):
    got = []
    for extra in ([("Origin", "http://evil.example")], [("Sec-Fetch-Site", "cross-site")], [("Origin", "null")]):
        got += ask(service, "/make-backup", [("Authorization", "Bearer " + TOKEN), ("Content-Type", "application/x-www-form-urlencoded"),
                                             *extra], "POST", body=b"")
        got += ask(service, "/list-backups", [("Authorization", "Bearer " + TOKEN), *extra])
    return set_of(got), outside(got, {403})


def guessing(service):
    """Wrong tokens are refused, and it takes no longer to refuse one that begins rightly."""
    near, far, got = TOKEN[:-1] + "X", "X" + TOKEN[1:], []
    times = {near: [], far: []}
    connection = http.client.HTTPConnection(*service.address, timeout=5)
    for n in range(6000):
        guess = (near, far)[n % 2]
        began = time.perf_counter_ns()
        connection.request("GET", "/list-backups", headers={"Authorization": "Bearer " + guess})
        answer = connection.getresponse()
        answer.read()
        times[guess].append(time.perf_counter_ns() - began)
        got.append(answer.status)
    for guess in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), TOKEN + "," + TOKEN, "\x00" + TOKEN):
        got += ask(service, "/list-backups", [("Authorization", "Bearer " + guess)])
    got += ask(service, "/list-backups") + ask(service, "/list-backups?token=" + TOKEN)
    medians = [statistics.median(each) / 1000 for each in times.values()]
    return "%s; median %.1f and %.1f µs" % (set_of(got), *medians), outside(got, {401, 400})


def squatting(service):
    """A second service cannot take the socket of one that lives; of one that was killed it can."""
    command = [BIN + "/chainweb-backup", "serve", "--database-directory", service.work + "/node", "--backup-directory", service.work + "/other",
               "--service-port", "0", "--service-interface", "unix:" + service.unix]
    second = subprocess.run(command, capture_output=True, text=True, timeout=20)
    wrong = [] if second.returncode not in (0, None) and "in use" in second.stderr else ["the second said: " + second.stderr[-200:]]
    got = ask(service, unix=True)
    with open(service.work + "/file", "w") as file:
        file.write("precious")
    third = subprocess.run(command[:-1] + ["unix:" + service.work + "/file"], capture_output=True, text=True, timeout=20)
    wrong += [] if third.returncode and open(service.work + "/file").read() == "precious" else ["a file was replaced by a socket"]
    return "%s; second ends with %d, on a file with %d" % (set_of(got), second.returncode, third.returncode), wrong + outside(got, {200})


def stale(service):
    """Killed services leave sockets; of twenty that start at once on such a socket exactly one serves on it."""
    dead = service.work + "/stale.sock"
    stream = socket.socket(socket.AF_UNIX)
    stream.bind(dead)
    stream.close()
    os.makedirs(service.work + "/many")
    racers = [subprocess.Popen([BIN + "/chainweb-backup", "serve", "--database-directory", service.work + "/node", "--backup-directory",
                                "%s/many/%d" % (service.work, n), "--service-interface", "unix:" + dead], stderr=subprocess.DEVNULL)
              for n in range(20)]
    time.sleep(4)
    alive = [racer for racer in racers if racer.poll() is None]
    service.unix, kept = dead, service.unix
    got = ask(service, unix=True)
    service.unix = kept
    [racer.terminate() for racer in alive]
    [racer.wait(timeout=15) for racer in alive]
    wrong = [] if len(alive) == 1 else ["%d of 20 serve" % len(alive)]
    return "%d of 20 serves; %s" % (len(alive), set_of(got)), wrong + outside(got, {200})


def inherited(service):
    """Rubbish in the variables of socket activation ends the program with a sentence, or is ignored; it never hangs or serves nothing."""
    words = []
    for fds, pid in (("x", "self"), ("-1", "self"), ("99999", "self"), ("1", "1"), ("1", "x"), ("1", "self"), ("0", "self")):
        script = 'export LISTEN_FDS="%s" LISTEN_PID=%s; exec "$@"' % (fds, "$$" if pid == "self" else pid)
        with open(os.devnull) as null:
            ran = subprocess.run(["timeout", "3", "sh", "-c", 'exec 3</dev/null; ' + script, "sh", BIN + "/chainweb-backup", "serve",
                                  "--database-directory", service.work + "/node", "--backup-directory", service.work + "/inherited",
                                  "--service-port", "0"], capture_output=True, text=True, stdin=null)
        words.append("%s of %s: %s" % (fds, pid, "served" if ran.returncode == 124 else "exit %d" % ran.returncode))
    return "; ".join(words), [word for word in words if "exit" in word and not word.endswith("exit 2")]


def fuzz(count):
    alphabet = [b"GET", b"POST", b"HEAD", b"PUT", b" ", b"/", b"/check-backup/", b"/make-backup", b"?backupPact", b"/list-backups", b"%2f", b"..",
                b"%00", b"1", b"99999999999999999999", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/9.9", b"\r\n", b"\n", b"\r", b"Host: localhost", b"Host:",
                b"Content-Length: ", b"-1", b"0", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Authorization: Bearer ", b"Basic ",
                TOKEN.encode(), b"Origin: ", b"x" * 300, b"\x00", b"\xff\xfe", b":", b"\t", b"Connection: keep-alive", b"Accept: application/json;q=",
                b"http://", b"[::1]", b"@"]

    def one(random, unix):
        kind = random.randrange(3)
        if kind == 0:
            path = b"".join(random.choice(alphabet) for _ in range(random.randrange(1, 6))).replace(b"\r", b"").replace(b"\n", b"").replace(b" ", b"")
            return b"GET /check-backup/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
        text = bytearray(b"GET /check-backup/1 HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n") if kind == 1 else bytearray(
            b"".join(random.choice(alphabet) for _ in range(random.randrange(1, 12))) + b"\r\n\r\n")
        for _ in range(random.randrange(4)):
            if text:
                text[random.randrange(len(text))] = random.randrange(256)
        return bytes(text)

    def client(service, seed, share, unix, statuses):
        chance, mine = random.Random(seed), {}
        left = share
        while left > 0:
            # Many over one connection: what comes behind one that ends it is lost, so only those that were answered count.
            batch = [one(chance, unix) for _ in range(min(left, 64))]
            try:
                got = send(service, b"".join(batch), unix)
            except OSError:
                got = []
            for status in got:
                mine[status] = mine.get(status, 0) + 1
            left -= max(1, len(got))
        statuses.append(mine)

    def run(service):
        before = sorted(os.listdir(service.work + "/node")), sorted(os.listdir(service.work))
        statuses = []
        threads = [threading.Thread(target=client, args=(service, SEED * 100 + n, count // 4, n % 2 == 1, statuses)) for n in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        total = {}
        for mine in statuses:
            for status, n in mine.items():
                total[status] = total.get(status, 0) + n
        wrong = ["%d answers %d" % (n, status) for status, n in total.items() if status >= 500 and status != 505]
        after = sorted(name for name in os.listdir(service.work + "/node") if name != "backups"), sorted(os.listdir(service.work))
        wrong += [] if after == (sorted(name for name in before[0] if name != "backups"), before[1]) else ["files appeared: %s" % (after,)]
        return ", ".join("%d× %d" % (n, status) for status, n in sorted(total.items())), wrong
    return run


def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    print("| attack | outcome | health | MiB | threads | descriptors | verdict |\n|---|---|--:|--:|--:|--:|---|")
    attack("200 connections, 64 descriptors", many(200, 8), descriptors=64, health=0.9)
    attack("200 connections, 65 descriptors", many(200, 8), descriptors=65, health=0.9)
    attack("Content-Length of seven kinds", lengths, health=0.99)
    attack("200 × HTTP/2.0", version_two, health=0.99)
    attack("2,000 idle connections", many(2000, 8), health=0.9)
    attack("10,000 idle connections", many(min(10000, most - 200), 8), health=0.9)
    attack("slow heads", slow(False), health=0.99)
    attack("slow bodies", slow(True), health=0.99)
    attack("flood that does not read", flood, health=0.99)
    attack("lines and heads of 50 MB", large, health=0.99)
    attack("500 resets before accept", resets, health=0.99)
    attack("burst of 60", burst, health=0.99)
    attack("smuggled requests", smuggled, health=0.99)
    attack("HTTP/1.0, ×3 pipelined, absolute form", forms, health=0.99)
    attack("DNS rebinding", rebinding, health=0.99)
    attack("forms of other sites", forged_form, health=0.99)
    attack("tokens guessed", guessing, health=0.99)
    attack("socket of another", squatting, health=0.99)
    attack("stale socket, 20 at once", stale, health=0.9)
    attack("LISTEN_FDS with rubbish", inherited, health=0.9)
    attack("%d fuzzed heads and identifiers" % FUZZED, fuzz(FUZZED), health=0.9)
    for each in FOUND:
        print("PROBLEM: " + each)
    sys.exit(1 if FOUND else 0)


if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
BIN, FUZZED, SEED = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000000, int(time.time())
main()
