"""The world of the simulated month (see month.py): its clock, its disk, its node, and the real service in it."""

import ctypes, http.client, json, mmap, os, re, shutil, signal, subprocess, tempfile, time

HOUR = 3_600_000
DISK_BYTES = 320 << 20
# Waiting threads of the service pause for 10 ms at least; a quiet service is the same in so many looks.
LOOK_SECONDS, QUIET_LOOKS = 0.006, 4


class Fault(Exception):
    """The month cannot go on: the service ended by itself, or hangs."""


def run(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, **more)


def must(*command):
    ran = run(*command)
    if ran.returncode:
        raise Fault("%s: %s" % (" ".join(command), (ran.stderr or ran.stdout).strip()))
    return ran.stdout


class Clock:
    """True time has passed since the begin of the month; the wall clock is ahead of it by what was set. Both go on as ours, and jump.
    Milliseconds."""

    def __init__(self, path, start_ms):
        with open(path, "wb") as file:
            file.truncate(mmap.PAGESIZE)
        with open(path, "r+b") as file:
            self.page = (ctypes.c_int64 * 3).from_buffer(mmap.mmap(file.fileno(), mmap.PAGESIZE))
        self.begun_ns = time.monotonic_ns()
        # When the clock was set, and how far it is ahead of true time since.
        self.segments, self.steps = [(0, start_ms)], []
        self._write()

    def _write(self):
        # Of the monotonic clock; in this order.
        self.page[0] = int(self.segments[-1][1] * 1_000_000) - self.begun_ns
        self.page[1] = len(self.steps)

    def true(self):
        return (time.monotonic_ns() - self.begun_ns) / 1e6

    def wall(self):
        return self.true() + self.segments[-1][1]

    def jump(self, ms):
        """This much time passes at once."""
        self.begun_ns -= int(ms * 1e6)
        self._write()

    def step(self, ms):
        """Somebody sets the clock."""
        self.steps.append((self.true(), ms))
        self.segments.append((self.steps[-1][0], self.segments[-1][1] + ms))
        self._write()

    def timer(self):
        """The wall time for which the service has set its timer, or None."""
        return self.page[2] / 1e6 or None

    def forget_timer(self):
        self.page[2] = 0


class Disk:
    """The small file system of the backups: ext4, xfs or tmpfs; a plain directory, which is never full, if it cannot be mounted."""

    def __init__(self, work, memory, kind):
        self.path, self.kind, self.image = os.path.join(work, "disk"), kind, None
        os.mkdir(self.path)
        try:
            if kind == "tmpfs":
                must("mount", "-t", "tmpfs", "-o", "size=%d" % DISK_BYTES, "none", self.path)
            else:
                self.image = os.path.join(memory, "disk.img")
                with open(self.image, "wb") as file:
                    file.truncate(DISK_BYTES)
                must("mkfs." + kind, "-q", *(["-m", "0"] if kind == "ext4" else []), self.image)
                must("mount", "-o", "loop", self.image, self.path)
            self.mounted = True
        except (Fault, OSError) as e:
            print("# no file system can be mounted here, so none is full: %s" % str(e).splitlines()[0])
            self.kind, self.mounted = "plain directory", False

    def fill(self, leave_bytes):
        """Takes all space but this much."""
        with open(os.path.join(self.path, "filler"), "ab") as file:
            piece = 64 << 20
            while piece >= 4096:
                space = os.statvfs(self.path)
                free = space.f_bavail * space.f_frsize - leave_bytes
                if free < 4096:
                    return
                try:
                    size = file.seek(0, os.SEEK_END)
                    os.posix_fallocate(file.fileno(), size, min(piece, free))
                except OSError:
                    piece //= 2

    def free(self):
        os.unlink(os.path.join(self.path, "filler"))

    def remove(self):
        if self.mounted and run("umount", self.path).returncode:
            run("umount", "-l", self.path)


class Node:
    """A node of three chains, stopped or writing; its databases can be made unreadable, or such that no node starts from them."""

    def __init__(self, world, directory):
        self.world, self.directory, self.process = world, directory, None
        self.hidden = {}
        self._demo("--blocks", "20", "--rate", "0", "--delay-ms", "0", "--exit-when-done", "--chains", "3")

    def _demo(self, *flags):
        must(self.world.demo, "--database-directory", self.directory, "--disable-backup-api", "--service-port", "0",
             "--write-buffer-bytes", "65536", *flags)

    def start(self):
        address = os.path.join(self.world.work, "node.address")
        if os.path.exists(address):
            os.unlink(address)
        with open(os.path.join(self.world.work, "node.log"), "a") as log:
            self.process = subprocess.Popen(
                [self.world.demo, "--database-directory", self.directory, "--disable-backup-api", "--service-port", "0",
                 "--write-buffer-bytes", "65536", "--rate", "4", "--address-file", address], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL)
        while not os.path.exists(address):
            if self.process.poll() is not None:
                raise Fault("the node did not start, see node.log")
            time.sleep(0.01)

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def hide(self, what):
        """Makes a part of the databases unreadable: for `rocks`, `pact` and `refuted`, one of several ways."""
        self.stop()
        name = {"rocks": self.world.rng.choice(["0", "0/rocksDb", "0/rocksDb/CURRENT"]), "pact": "0/sqlite", "refuted": "0"}[what]
        path = os.path.join(self.directory, name)
        if what == "refuted":
            planted = os.path.join(self.directory, "planted")
            os.mkdir(planted)
            must("cp", "-a", path, planted + "/0")
            # A block that must be replayed, and cannot: one of the newest on a chain without Pact's state.
            must(self.world.demo, "plant", "--fault", "missing-outputs", "--height", "20", "--chain", "1", planted)
            os.unlink(os.path.join(planted, "0/sqlite/pact-v1-chain-1.sqlite"))
        os.rename(path, path + ".away")
        if what == "refuted":
            os.rename(planted + "/0", path)
            os.rmdir(planted)
        self.hidden[what] = path

    def show(self, what):
        path = self.hidden.pop(what)
        if what == "refuted":
            shutil.rmtree(path)
        os.rename(path + ".away", path)


class Service:
    """`chainweb-backup serve`, as it is released, with the clock of the month."""

    def __init__(self, world):
        self.world, self.process, self.lives, self.log = world, None, 0, None
        self.usual_seconds = 0.2

    def start(self):
        """Whether it has started."""
        world = self.world
        self.lives += 1
        world.clock.forget_timer()
        address = os.path.join(world.work, "address")
        if os.path.exists(address):
            os.unlink(address)
        self.log, self.read = os.path.join(world.work, "serve.%d.log" % self.lives), 0
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [world.program, "serve", "--config-file", world.config, "--service-port", "0", "--address-file", address],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=world.env)
        give_up = time.monotonic() + 60
        while not os.path.exists(address):
            if self.process.poll() is not None:
                self.process = None
                return False
            if time.monotonic() > give_up:
                raise Fault("the service does not answer after its start, see %s" % self.log)
            time.sleep(0.002)
        with open(address) as file:
            self.address = file.read().strip()
        return True

    def stop(self, number):
        self.process.send_signal(number)
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            raise Fault("the service does not end within 30 s after signal %d" % number)
        self.process = None
        if number == signal.SIGTERM and code != 0:
            raise Fault("SIGTERM ended the service with %d" % code)

    def refusals(self):
        """The attempts since the last call of which there is no backup: they are in the log only."""
        with open(self.log) as log:
            log.seek(self.read)
            text = log.read()
        self.read += len(text)
        return text.count("] backup refused ")

    def ask(self, method, path, **headers):
        connection = http.client.HTTPConnection(self.address, timeout=30)
        connection.request(method, path, headers={"Connection": "close", **headers})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body

    def await_backup(self):
        """Waits until a backup is being made, a second at most."""
        give_up = time.monotonic() + 1
        while not self.world.with_status("backup-in-progress") and time.monotonic() < give_up:
            time.sleep(0.001)

    def metrics(self):
        status, body = self.ask("GET", "/metrics")
        assert status == 200, body
        found = re.findall(r"^chainweb_backup_(\S+?(?:\{.*?\})?) (\S+)$", body, re.M)
        return {name: float(value) for name, value in found}

    def _look(self):
        """The context switches of all threads; None if one runs or waits for a disk, or if there is a child process."""
        switches, place = 0, "/proc/%d/task" % self.process.pid
        for task in os.listdir(place):
            try:
                with open("%s/%s/status" % (place, task)) as file:
                    status = dict(line.split(":\t", 1) for line in file.read().splitlines())
                with open("%s/%s/children" % (place, task)) as file:
                    children = file.read()
            except OSError:
                return None
            if status["Name"] == "clock":
                continue
            if children or status["State"][0] != "S":
                return None
            switches += int(status["voluntary_ctxt_switches"]) + int(status["nonvoluntary_ctxt_switches"])
        return switches

    def settle(self):
        """Waits until the service is idle: its timer is set to a time to come, and none of its threads has anything to do."""
        give_up, before, looks = time.monotonic() + 300, None, 0
        while looks < QUIET_LOOKS:
            if self.process.poll() is not None:
                raise Fault("the service ended by itself with %d, see %s" % (self.process.returncode, self.log))
            timer = self.world.clock.timer()
            now = self._look() if timer and timer > self.world.clock.wall() else None
            looks = looks + 1 if now is not None and now == before else 0
            before = now
            if looks == QUIET_LOOKS and self.world.with_status("backup-in-progress"):
                looks = 0
            if time.monotonic() > give_up:
                raise Fault("the service is not idle after 300 s, see %s" % self.log)
            time.sleep(LOOK_SECONDS)


HOOK = """#!/bin/sh
# Keeps what it gets. The driver says whether it fails, or hangs.
place=$(dirname "$0")
event=$CHAINWEB_BACKUP_EVENT run=$CHAINWEB_BACKUP_EVENT.$CHAINWEB_BACKUP_ID.$$
cat >"$place/runs/.$run"
[ ! -e "$place/hang-$event" ] || exec sleep 600
end=passed
[ ! -e "$place/fail-$event" ] || end=failed
mv "$place/runs/.$run" "$place/runs/$run.$end"
echo "the hook $event says: $end"
[ "$end" = passed ]
"""

CONFIG = """databaseDirectory: {node}
backup:
  api: {{enabled: true}}
  directory: {backups}
  pactMethod: {method}
  schedule:
  - {{every: 1h}}
  - {{every: 24h, at: "03:00", pact: true, jitter: 10m}}
  keep: {{last: 24, daily: 7, weekly: 4, monthly: 6}}
  hooks:
    before: [{hook}]
    onVerified: [{hook}]
    afterSuccess: [{hook}]
    afterFailure: [{hook}]
    limitSeconds: 5
"""


class World:
    """Everything that there is in the month."""

    def __init__(self, work, binaries, shim, rng):
        self.work, self.rng = work, rng
        self.program, self.demo = (os.path.join(binaries, name) for name in ("chainweb-backup", "demo-node"))
        # 2026-01-01, and up to a week later, at any hour.
        self.clock = Clock(os.path.join(work, "clock"), 1_767_225_600_000 + rng.randrange(7 * 24 * HOUR))
        self.env = {**os.environ, "LD_PRELOAD": shim, "CLOCK_PAGE": os.path.join(work, "clock")}
        # Other programs that write to a disk must not delay the month.
        self.memory = tempfile.mkdtemp(prefix="chainweb-backup-month.", dir="/dev/shm") if os.access("/dev/shm", os.W_OK) else work
        self.disk = Disk(work, self.memory, rng.choice(["ext4", "xfs", "tmpfs"]))
        self.beside = rng.random() < 0.5
        self.node = Node(self, os.path.join(self.disk.path if self.beside else self.memory, "node"))
        self.backups = os.path.join(self.disk.path, "backups")
        self.method = rng.choice(["auto", "copy", "delta"])
        self.hooks = os.path.join(work, "hooks")
        os.makedirs(self.hooks + "/runs")
        hook, self.config = self.hooks + "/hook.sh", os.path.join(work, "config.yaml")
        with open(hook, "w") as file:
            file.write(HOOK)
        os.chmod(hook, 0o755)
        with open(self.config, "w") as file:
            file.write(CONFIG.format(node=self.node.directory, backups=self.backups, method=self.method, hook=hook))
        self.service = Service(self)

    def words(self):
        return "backups on %s, %s node's databases, Pact method %s" % (
            self.disk.kind, "beside the" if self.beside else "apart from the", self.method)

    def tool(self, *words):
        return run(self.program, *words, env=self.env)

    def list(self):
        listed = self.tool("list", "--json", "--backup-directory", self.backups)
        if listed.returncode:
            raise Fault("list: " + listed.stderr.strip())
        return json.loads(listed.stdout)

    def ids(self):
        return [name for name in os.listdir(self.backups) if name.isdigit()] if os.path.isdir(self.backups) else []

    def status(self, id):
        try:
            with open("%s/%s/status" % (self.backups, id)) as file:
                return file.read().strip()
        except OSError:
            return None

    def with_status(self, *words):
        """The backups with such a status, by their own files: identifier, and whether it has Pact."""
        found = {}
        for id in self.ids():
            if self.status(id) in words:
                try:
                    with open("%s/%s/backup.json" % (self.backups, id)) as record:
                        found[id] = json.load(record)["scope"] == "rocksdb,pact"
                except FileNotFoundError:
                    pass
        return found

    def runs(self):
        """All hooks that have run: event, backup, the process, and how it ended."""
        found = []
        for name in sorted(os.listdir(self.hooks + "/runs")):
            event, id, process, *end = name.lstrip(".").split(".")
            found.append((event, id, int(process), end[0] if end else "hung"))
        return found

    def end_hooks(self):
        """Waits for the hooks that the service left when it was killed, and ends those that hang."""
        quiet_looks = 0
        while quiet_looks < 3:  # while a process becomes another program, it has no words
            quiet_looks += 1
            for process in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open("/proc/%s/cmdline" % process, "rb") as file:
                        words = file.read().decode(errors="replace").split("\0")
                except OSError:
                    continue
                # A hook, or what becomes one.
                if self.hooks + "/hook.sh" in words or self.config in words:
                    quiet_looks = 0
                elif words[:2] == ["sleep", "600"] and int(process) in [hook for _, _, hook, end in self.runs() if end == "hung"]:
                    os.kill(int(process), signal.SIGKILL)
            time.sleep(0.004)

    def remove(self):
        for process in (self.service.process, self.node.process):
            if process:
                process.kill()
                process.wait()
        self.disk.remove()
        if self.memory != self.work:
            shutil.rmtree(self.memory)
