#!/usr/bin/env python3
"""Chains of days of Pact: each day the node works, a backup is made of it as an increment or a delta pair, and others are deleted. The program
is killed, or the power is cut, at random moments of backups, deletes, prunes and restores. Every backup that is there restores to its own day.

    chains.py BIN [DAYS] [KILLS] [CUTS] [SEED]     BIN is the directory of chainweb-backup and demo-node; needs root and xfs_io

Five chains, at the same time as many as there are processors: increments on xfs and btrfs, with the node on another disk; delta pairs on
xfs, btrfs and ext4, beside the node. KILLS are those of all chains together, CUTS those of each file system. The power is cut as in
11-power-cut.sh: the image's own file system is shut down. Prints TAP and the figures; exit 1 if a day was wrong.

What a day is: the sums of the Pact files of the stopped node, and what the node's own check says of the directory. A backup of a running node
is its own measure: it is restored at once, and its history must be whole.
"""

import concurrent.futures, glob, hashlib, json, os, random, re, shutil, sqlite3, subprocess, sys, tempfile, threading, time

CHAINS = [("xfs", "auto"), ("btrfs", "auto"), ("xfs", "delta"), ("btrfs", "delta"), ("ext4", "delta")]
METHODS = {"auto": "increment", "delta": "delta"}
BIG_FEW = 14  # so many backups stay; a delete takes the others
printing = threading.Lock()


def say(*words):
    with printing:
        print(*words, flush=True)


def run(*command, limit=120):
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=limit)


def must(*command):
    ran = run(*command)
    if ran.returncode:
        raise RuntimeError("%s: %s" % (" ".join(command), (ran.stderr or ran.stdout).strip()))
    return ran.stdout


def sums(directory):
    """Of the Pact files of a database directory."""
    found = {}
    for path in sorted(glob.glob(directory + "/0/sqlite/*")):
        with open(path, "rb") as file:
            found[os.path.basename(path)] = hashlib.blake2b(file.read()).hexdigest()
    return found


class Disk:
    """A file system that loses its power: an image on an xfs, which is shut down."""

    def __init__(self, kind, work):
        self.kind, self.pool, self.at = kind, work + "/pool", work + "/mnt"
        self.pool_image, self.image = work + "/pool.img", self.pool + "/disk.img"
        for path in (self.pool, self.at):
            os.mkdir(path)
        must("truncate", "-s", "3G", self.pool_image)
        must("mkfs.xfs", "-q", self.pool_image)
        must("mount", "-o", "loop", self.pool_image, self.pool)
        must("truncate", "-s", "2G", self.image)
        must("mkfs." + kind, "-q", self.image)
        must("mount", "-o", "loop", self.image, self.at)

    def lose(self):
        must("xfs_io", "-x", "-c", "shutdown", self.pool)

    def down(self):
        for place in (self.at, self.pool):
            for _ in range(200):
                if run("umount", place).returncode == 0 or not os.path.ismount(place):
                    break
                time.sleep(0.05)
            else:
                raise RuntimeError("%s stays mounted" % place)

    def up(self):
        must("mount", "-o", "loop", self.pool_image, self.pool)
        must("mount", "-o", "loop", self.image, self.at)


class Chain:
    def __init__(self, kind, method, work, seed):
        self.name, self.method = "%s, %s" % (kind, method), method
        self.rng, self.work = random.Random("%s %s" % (seed, self.name)), work
        self.disk = Disk(kind, work)
        self.node = (self.disk.at if method == "delta" else work) + "/node"
        self.backups = self.disk.at + "/backups"
        # The days of the backups that must be there, and of those that a delete or a prune may have taken.
        # Those that are gone: a power cut may bring back what a program deleted, whole.
        self.days, self.doomed, self.gone, self.faults = {}, {}, {}, []
        self.counts, self.usual = {}, {"make": 0.6, "delete": 0.05, "prune": 0.05, "restore": 0.3}
        self.written = {"base": 0, "written": 0}
        must(DEMO, "--database-directory", self.node, "--chains", "3", "--fill", "12000000", "--blocks", "6", *self.still())

    def still(self):
        return ["--rate", "0", "--delay-ms", "0", "--exit-when-done", "--disable-backup-api", "--service-port", "0"]

    def count(self, what, by=1):
        self.counts[what] = self.counts.get(what, 0) + by

    def fault(self, *words):
        self.faults.append(" ".join(map(str, words)))

    def program(self, command, *words):
        return [PROGRAM, command, "--backup-directory", self.backups, *words]

    def make_command(self):
        return self.program("make", "--database-directory", self.node, "--backup-pact", "--reserve-bytes", "0",
                            "--pact-method", self.method, "--log-level", "warn")

    # The node's day.

    def work_a_day(self):
        must(DEMO, "--database-directory", self.node, "--blocks", str(self.rng.randrange(1, 7)), *self.still())
        kind = self.rng.random()
        for path in glob.glob(self.node + "/0/sqlite/*.sqlite"):
            connection = sqlite3.connect(path, isolation_level=None)
            # At least one page of each kind of day: few, some, more than a delta may have; all of them moved; fewer than before.
            connection.execute("CREATE TABLE IF NOT EXISTS filler (n INTEGER PRIMARY KEY, pad BLOB)")
            if kind < 0.1:
                connection.execute("DELETE FROM filler WHERE n % 2")
                connection.execute("VACUUM")
            elif kind < 0.2:
                connection.executemany("INSERT INTO filler (pad) VALUES (?)", [(os.urandom(900),) for _ in range(2000)])
            elif kind < 0.5:
                connection.execute("UPDATE filler SET pad = randomblob(900) WHERE n % 20 = ?", (self.rng.randrange(20),))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        must("sync", "-f", self.node)
        self.today = (sums(self.node), self.told(self.node))

    def told(self, directory):
        """What the node's own check says, without the directory."""
        ran = run(DEMO, "verify", directory)
        return "%d %s" % (ran.returncode, (ran.stdout + ran.stderr).replace(directory, "").strip())

    def start_node(self):
        self.live = subprocess.Popen([DEMO, "--database-directory", self.node, "--rate", "3", "--disable-backup-api",
                                      "--service-port", "0"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL)
        for _ in range(200):
            if glob.glob(self.node + "/0/sqlite/*-shm"):
                break
            time.sleep(0.02)
        time.sleep(0.2)

    def stop_node(self):
        if self.live:
            self.live.terminate()
            self.live.wait(30)
            self.live = None

    # Backups.

    def status(self, id):
        try:
            with open("%s/%s/status" % (self.backups, id)) as file:
                return file.read()
        except OSError:
            return "absent"

    def restored(self, id):
        """The day to which a backup restores."""
        to = self.work + "/restored"
        shutil.rmtree(to, ignore_errors=True)
        ran = run(*self.program("restore", id, "--to", to, "--log-level", "error"))
        if ran.returncode:
            return ran.stderr.strip()
        self.count("restores compared")
        return (sums(to), self.told(to))

    def learn(self):
        """Registers backups that are done and not known yet; of a running node, with the day to which they restore now."""
        for id in sorted(os.listdir(self.backups)) if os.path.isdir(self.backups) else []:
            if id.startswith(".") or id in self.days or id in self.doomed or self.status(id) != "backup-done":
                continue
            if id in self.gone:
                self.count("came back after a cut")
                self.days[id] = self.gone.pop(id)
                continue
            day = self.today
            if self.live or self.was_live:
                day = self.restored(id)
                if isinstance(day, str) or not day[1].startswith("0 "):
                    self.fault(id, "of a running node:", day)
                    continue
            self.days[id] = day
            with open("%s/%s/backup.json" % (self.backups, id)) as file:
                parts = json.load(file)["pact"]
            for part in parts:
                self.count(part["method"])
                if part["method"] == "raw-copy" and part.get("copied_because"):
                    self.count("copied: " + re.sub(r"[0-9][0-9, ]*", "N ", part["copied_because"])[:60])
                if part["method"] == METHODS[self.method]:
                    self.written["base"] += part["bytes"]
                    self.written["written"] += part["written_bytes"]

    def present(self):
        return [id for id in sorted(self.days) if self.status(id) == "backup-done"]

    def look(self, few):
        """Every backup that must be there is done; those of `few`, or all of them, restore to their own day."""
        for id in list(self.doomed):
            if self.status(id) == "backup-done":
                self.days[id] = self.doomed.pop(id)
            elif not os.path.exists("%s/%s" % (self.backups, id)):
                self.gone[id] = self.doomed.pop(id)
        for id in sorted(self.days):
            if self.status(id) != "backup-done":
                self.fault(id, "is lost:", self.status(id))
                del self.days[id]
        ids = sorted(self.days)
        chosen = ids if few is None else set(ids[-1:]) | set(self.rng.sample(ids, min(few, len(ids))))
        for id in sorted(chosen):
            day = self.restored(id)
            if day != self.days[id]:
                self.fault(id, "restores to another day:", day if isinstance(day, str) else "other sums or heights")

    def must_make(self):
        ran = run(*self.make_command())
        if ran.returncode:
            self.fault("make:", ran.stderr.strip())
        self.learn()

    def act(self):
        """An act that may be interrupted: its name and command. Backups that it may take are doomed."""
        ids, what = sorted(self.days), self.rng.random()
        if what < 0.12 and len(ids) > 4:
            victim = self.rng.choice(ids[:-1])
            self.doomed[victim] = self.days.pop(victim)
            return "delete", self.program("delete", victim)
        if what < 0.24 and len(ids) > 4:
            keep = self.rng.randrange(3, len(ids))
            for id in ids[:-keep]:
                self.doomed[id] = self.days.pop(id)
            return "prune", self.program("prune", "--keep-last", str(keep))
        if what < 0.34 and ids:
            to = self.disk.at + "/target"
            shutil.rmtree(to, ignore_errors=True)
            return "restore", self.program("restore", self.rng.choice(ids), "--to", to)
        return "make", self.make_command()

    def interrupt(self, cut):
        name, command = self.act()
        self.count("%s of a %s" % ("cut" if cut else "kill", name))
        began = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(self.rng.uniform(0, 1.1 * self.usual[name]))
            self.usual[name] += (time.monotonic() - began - self.usual[name]) / 5
            self.count("over before it")
        except subprocess.TimeoutExpired:
            self.usual[name] = max(self.usual[name], time.monotonic() - began)
        if cut:
            self.disk.lose()
        process.kill()
        process.wait()
        if cut:
            if self.live:
                # Its database is on the disk, or goes on elsewhere: it ends with the host.
                self.live.kill()
                self.live.wait()
                self.was_live, self.live = True, None
            self.disk.down()
            self.disk.up()
        self.learn()
        if name == "restore":
            self.half_done()
        self.look(2 if cut else 0)

    def half_done(self):
        """A target has the whole database or none."""
        to = self.disk.at + "/target"
        if os.path.isdir(to + "/0") and not self.told(to).startswith("0 "):
            self.fault("half a restore:", self.told(to))
        shutil.rmtree(to, ignore_errors=True)

    def day(self, number, kills, cuts):
        self.was_live, self.live = False, None
        self.work_a_day()
        if self.rng.random() < 0.35:
            self.start_node()
        acts = [False] * kills + [True] * cuts
        self.rng.shuffle(acts)
        for cut in acts:
            self.interrupt(cut)
        if self.was_live and not self.live:
            # A cut has ended the node; it starts anew, and what it lost is lost for it, too.
            must(DEMO, "--database-directory", self.node, "--blocks", "1", *self.still())
            must("sync", "-f", self.node)
        self.must_make()
        self.stop_node()
        while len(self.days) > BIG_FEW or (len(self.days) > 4 and self.rng.random() < 0.35):
            victim = self.rng.choice(sorted(self.days)[:-1])
            day = self.days.pop(victim)
            if self.rng.random() < 0.5:
                must(*self.program("delete", victim))
                self.gone[victim] = day
                self.count("deleted")
            else:
                # Half of it may come back otherwise.
                shutil.rmtree("%s/%s" % (self.backups, victim))
                must("sync", "-f", self.backups)
                self.count("removed by hand")
        self.look(None if number % 6 == 5 else 1)

    def run(self, days, kills, cuts):
        share = lambda all, number: all * (number + 1) // days - all * number // days
        try:
            for number in range(days):
                before = len(self.faults)
                self.day(number, share(kills, number), share(cuts, number))
                if len(self.faults) > before:
                    say("not ok - %s: day %d" % (self.name, number), *["\n# " + fault for fault in self.faults[before:]])
            self.look(None)
            for id in sorted(self.days):
                ran = run(*self.program("verify", id, "--deep", "--log-level", "error"))
                if ran.returncode:
                    self.fault(id, "verify --deep:", ran.stdout.strip()[-300:], ran.stderr.strip()[-300:])
        except Exception as error:  # noqa: the other chains go on
            self.fault("the chain ended:", repr(error))
        finally:
            self.stop_node()
            self.disk.down()
        say("%s - %s: %d days, every backup restored to its own" % ("not ok" if self.faults else "ok", self.name, days))
        for fault in self.faults:
            say("# " + fault)
        say("#   " + ", ".join("%s %d" % pair for pair in sorted(self.counts.items())))
        if self.written["base"]:
            say("#   written by increments and pairs: %.3f of the size of the databases" % (self.written["written"] / self.written["base"]))
        return not self.faults


def main(days, kills, cuts, seed):
    say("# seed %d" % seed)
    work = tempfile.mkdtemp(prefix="chainweb-backup-chains.")
    only = os.environ.get("CHAINS")
    chosen = [chain for chain in CHAINS if not only or "%s-%s" % chain in only.split()]

    def one(chain):
        place = "%s/%s-%s" % (work, *chain)
        os.mkdir(place)
        beside = [kind for kind, _ in chosen].count(chain[0])
        return Chain(*chain, place, seed).run(days, kills // len(chosen), cuts // beside)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        good = list(pool.map(one, chosen))
    shutil.rmtree(work, ignore_errors=True)
    print("1..%d" % len(good))
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    if len(sys.argv) < 2 or os.geteuid() != 0:
        sys.exit("chains.py BIN [DAYS] [KILLS] [CUTS] [SEED], as root")
    PROGRAM, DEMO = (os.path.join(sys.argv[1], name) for name in ("chainweb-backup", "demo-node"))
    words = [int(word) for word in sys.argv[2:]]
    main(*(words + [60, 300, 100, int(time.time())][len(words):]))
