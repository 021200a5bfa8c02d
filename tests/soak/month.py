#!/usr/bin/env python3
"""A month of `chainweb-backup serve` in minutes: schedules, retention, hooks, proofs and drills, while the service is killed, its disk is
full, its node unreadable, and its clock is set.

    month.py BIN [DAYS] [SEED]     BIN is the directory of chainweb-backup and demo-node

The program is the one that is released; clock.c gives it another wall clock. While the service works it goes on
as ours; as soon as the service is idle it jumps to the next moment: that for which the service has set its timer, or the next event of the
plan, which the seed decides. So the month does not depend on the speed of the machine. month_world.py has the service and what is around it, month_check.py judges what was made and when.
Prints TAP, and the figures; needs cc, and root for a disk that can be full (otherwise it never is).
"""

import sys

sys.dont_write_bytecode = True

import heapq, os, random, shutil, signal, tempfile, time

import month_sabotage
from month_check import DAY, EVENTS, HOUR, KEEP, SCHEDULES, Judge
from month_world import Fault, World, run

# What happens in 30 days: the action, how often (in fewer days less often, but once at least), and its arguments, of which some are
# chosen. Times are hours.
PLAN = [
    ("kill", 70, [(0,), (0,), (0,), (0.5,), (3,)]),
    ("term", 10, [(0,), (0,), (2,)]),
    ("off", 2, [(40,), (80,)]),
    ("fill", 9, [(1, 0), (3, 0), (9, 0), (2, 65536), (5, 4 << 20), (12, 12 << 20)]),
    ("hide", 4, [("rocks", 1), ("rocks", 3), ("rocks", 6), ("rocks", 14)]),
    ("hide", 3, [("pact", 5), ("pact", 20)]),
    ("hide", 3, [("refuted", 6), ("refuted", 20)]),
    ("step", 10, [(1,), (-1,), (0.05,), (-0.05,), (5,), (-5,), (11,), (-11,), (2,), (-2,)]),
    ("year", 1, [(1,), (-1,)]),
    ("sleep", 4, [(0.7,), (4,), (13,)]),
    *[("hook", 4, [(event, "fail", 2), (event, "fail", 5), (event, "hang", 0.4)]) for event in EVENTS],
    ("post", 8, [("",), ("?backupPact",)]),
    ("make", 6, [((),), (("--backup-pact",),), (("--if-older-than", "20h"),)]),
    ("drill", 15, [()]),
    ("verify", 4, [()]),
    ("prune", 4, [()]),
    ("restore", 15, [()]),
    ("node", 14, [()]),
]
# These also happen at a random moment of the next backup.
ANY_MOMENT = {"kill": 0.8, "term": 0.5, "off": 0.5, "fill": 0.4, "step": 0.3, "sleep": 0.4, "hide": 0.3, "year": 0.3}


class Month:
    def __init__(self, world, judge, rng, days):
        self.world, self.judge, self.rng = world, judge, rng
        self.clock, self.service = world.clock, world.service
        self.end_ms, self.queue, self.pending, self.number = days * DAY, [], [], 0
        self.by_hand, self.made, self.counts, self.interrupted, self.reports = set(), set(), {}, {}, 0
        self.runs_before, self.earlier, self.by_make, self.usual_seconds = set(), set(), set(), 0.3
        for action, often, choices in PLAN:
            count = max(1, round(often * days / 30))
            chosen = rng.sample(choices, min(count, len(choices))) + rng.choices(choices, k=max(0, count - len(choices)))
            for words in chosen:
                self.at(rng.uniform(0.02, 0.95) * self.end_ms, "plan", action, words)
        if SABOTAGE:
            self.at(0.55 * self.end_ms, "sabotage")

    def at(self, when, *what):
        self.number += 1
        heapq.heappush(self.queue, (when, self.number, what))

    def after(self, hours, *what):
        self.at(self.clock.true() + hours * HOUR, *what)

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    def run(self):
        self.judge.begin("down")
        self.up()
        while self.clock.true() < self.end_ms:
            timer = None
            if self.service.process:
                self.look()
                timer = self.clock.timer()
                if timer is None:  # its time came while we looked
                    continue
                timer -= self.clock.segments[-1][1]
            target = min([self.end_ms, self.queue[0][0] if self.queue else self.end_ms] + ([timer] if timer is not None else []))
            self.clock.jump(max(0, target - self.clock.true()))
            self.report()
            if target == timer:
                began = time.monotonic()
                if self.pending:
                    # At any moment of the backup and what follows it, or soon after it has begun.
                    moment = self.rng.uniform(0, 1.2 * self.usual_seconds)
                    if self.rng.random() < 0.6:
                        self.service.await_backup()
                        moment /= 8
                    time.sleep(moment)
                    self.act(*self.pending.pop(0))
                else:
                    self.service.settle()
                    self.usual_seconds += (time.monotonic() - began - self.usual_seconds) / 5
            while self.queue and self.queue[0][0] <= self.clock.true():
                _, _, (name, *words) = heapq.heappop(self.queue)
                getattr(self, name)(*words)

    def report(self):
        days = int(self.clock.true() / DAY)
        if days > self.reports:
            self.reports = days
            print("# day %d: %d good and %d failed backups, %d are there; %s" % (
                days, len(self.judge.good), len(self.judge.failed), len(self.judge.present), self.words()), flush=True)

    def words(self):
        return ", ".join("%s %d" % pair for pair in sorted(self.counts.items()))

    # The events of the plan.

    def plan(self, action, words):
        if self.service.process and self.rng.random() < ANY_MOMENT.get(action, 0):
            self.pending.append((action, words))
        else:
            self.act(action, words)

    def act(self, action, words, tries=12):
        if getattr(self, action)(*words) is not False:
            self.count(action)
        elif tries:
            # Not possible now.
            self.after(1, "act", action, words, tries - 1)

    def up(self):
        self.runs_before, self.earlier = set(self.world.runs()), set(self.world.ids())
        if not self.service.start():
            with open(self.service.log) as log:
                why = log.read().strip()
            if not self.world.node.hidden and not self.judge.is_open("full"):
                raise Fault("the service does not start: " + why)
            self.count("start refused")
            return self.after(0.5, "up")
        for what in ("down", "killed", "killed with Pact"):
            if self.judge.is_open(what):
                self.judge.end(what)
        self.judge.leftover.clear()

    def stop_by(self, number, hours):
        if not self.service.process:
            return False
        failed = self.world.with_status("backup-failed")
        self.service.stop(number)
        with_pact = self.world.with_status("backup-failed", "backup-in-progress")
        with_pact = {id: pact for id, pact in with_pact.items() if id not in failed}
        # Their hooks may have been stopped, too.
        self.judge.unsure |= set(sorted(self.world.ids(), key=int)[-2:])
        if with_pact:
            self.count("stopped in a backup")
        # What SIGTERM ends has its reason, and an operator who wants it.
        self.interrupted.update(with_pact if number == signal.SIGKILL else {})
        self.world.end_hooks()
        self.judge.begin("down")
        for pact in set(with_pact.values()):
            self.judge.begin("killed with Pact" if pact else "killed")
        if hours == 0:
            self.up()
        else:
            self.after(hours, "up")

    def kill(self, hours):
        return self.stop_by(signal.SIGKILL, hours)

    def term(self, hours):
        return self.stop_by(signal.SIGTERM, hours)

    def off(self, hours):
        return self.stop_by(signal.SIGTERM, min(hours, self.end_ms / 5 / HOUR))

    def fill(self, hours, leave_bytes):
        if not self.world.disk.mounted or self.judge.is_open("full"):
            return False
        if self.world.beside:
            self.world.node.stop()
        self.judge.begin("full")
        self.world.disk.fill(leave_bytes)
        self.after(hours, "free")

    def free(self):
        self.world.disk.free()
        self.judge.end("full")

    def hide(self, what, hours):
        if self.world.node.hidden or self.judge.is_open("full"):
            return False
        self.judge.begin(what)
        self.world.node.hide(what)
        self.after(hours, "show", what)

    def show(self, what):
        self.world.node.show(what)
        self.judge.end(what)

    def step(self, hours):
        self.clock.step(hours * HOUR)

    def year(self, sign):
        self.step(sign * 366 * 24)
        self.after(self.rng.uniform(0.3, min(30, self.end_ms / 5 / HOUR)), "year_back", sign)

    def year_back(self, sign):
        self.step(-sign * 366 * 24)

    def sleep(self, hours):
        """The host is suspended: time passes for nobody."""
        if not self.service.process:
            return False
        self.judge.begin("asleep")
        self.service.process.send_signal(signal.SIGSTOP)
        self.clock.jump(hours * HOUR)
        self.service.process.send_signal(signal.SIGCONT)
        self.judge.end("asleep")

    def hook(self, event, way, hours):
        path = "%s/%s-%s" % (self.world.hooks, way, event)
        if os.path.exists(path):
            return False
        open(path, "w").close()
        if event == "before":
            self.judge.begin("before")
        self.after(hours, "mend_hook", event, path)

    def mend_hook(self, event, path):
        os.unlink(path)
        if event == "before":
            self.judge.end("before")

    def post(self, query):
        if not self.service.process:
            return False
        status, body = self.service.ask("POST", "/make-backup" + query)
        if status == 200:
            self.by_hand.add(body)
        elif not (self.judge.is_open("full") or self.world.node.hidden):
            self.judge.fault("visible", "make-backup is answered %d %s" % (status, body))

    def make(self, flags):
        before = set(self.world.runs())
        ran = self.world.tool("make", "--config-file", self.world.config, "--log-level", "warn", *flags)
        # It settles what was interrupted if the service is not up yet, and tells the operator and the hooks.
        self.by_make |= {run for run in self.world.runs() if run[0] == "after-failure" and run[1] in self.interrupted} - before
        self.interrupted.clear()
        # 11: the service makes one, and that is its identifier.
        if ran.returncode != 11 and ran.stdout.strip().isdigit():
            self.by_hand.add(ran.stdout.strip())
            self.made.add(ran.stdout.strip())

    def is_calm(self):
        return not self.judge.is_open("full")

    def drill(self):
        if not self.is_calm() or not self.judge.present:
            return False
        at = self.clock.wall()
        ran = self.world.tool("drill", "--backup-directory", self.world.backups, "latest")
        if ran.returncode:
            self.judge.fault("restorable", "drill ends with %d: %s" % (ran.returncode, ran.stderr.strip()))
        if self.service.process:
            metrics = self.service.metrics()
            said = (metrics.get("last_drill_passed"), metrics["last_drill_timestamp_seconds"] * 1000 >= at - 1)
            if said != (1, True):
                self.judge.fault("visible", "the metrics do not have the drill: %s" % (said,))

    def verify(self):
        if not self.usable():
            return False
        id = self.rng.choice(self.usable()).id
        ran = self.world.tool("verify", "--backup-directory", self.world.backups, id, "--deep")
        if ran.returncode:
            self.judge.fault("restorable", "verify --deep %s ends with %d: %s" % (id, ran.returncode, ran.stderr.strip() or ran.stdout.strip()))

    def prune(self):
        flags = [word for rule, count in KEEP.items() for word in ("--keep-" + rule, str(count))]
        # It deletes what was interrupted, too; the operator sees that.
        self.interrupted.clear()
        ran = self.world.tool("prune", "--backup-directory", self.world.backups, *flags)
        if ran.returncode:
            self.judge.fault("lost", "prune ends with %d: %s" % (ran.returncode, ran.stderr.strip()))

    def usable(self):
        """The good backups of a good node that are there; one may have been deleted since the last look."""
        there = {id for id in self.judge.present if self.world.status(id) == "backup-done"}
        return [good for good in self.judge.good if good.id in there and good.usable]

    def restore(self, good=None):
        """Restores a backup, and lets the demo node verify what it finds."""
        if good is None and not self.usable():
            return False
        good, target = good or self.rng.choice(self.usable()), os.path.join(self.world.work, "restored")
        ran = self.world.tool("restore", "--backup-directory", self.world.backups, good.id, "--to", target)
        if ran.returncode == 0:
            ran = run(self.world.demo, "verify", target, *([] if good.pact else ["--no-pact"]))
        if ran.returncode:
            self.judge.fault("restorable", "%s: %s" % (good.id, (ran.stderr or ran.stdout).strip()))
        shutil.rmtree(target, ignore_errors=True)

    def node(self):
        if self.world.node.process:
            self.world.node.stop()
        elif self.world.node.hidden or (self.world.beside and self.judge.is_open("full")):
            return False
        else:
            self.world.node.start()

    def sabotage(self):
        if month_sabotage.act(self, SABOTAGE) is False:
            self.after(0.5, "sabotage")

    # What the service says.

    def look(self):
        while True:
            self.service.settle()
            timer = self.clock.timer()
            listed, metrics, runs = self.world.list(), self.service.metrics(), self.world.runs()
            # Otherwise something began in the mean time.
            if timer is not None and timer == self.clock.timer() > self.clock.wall():
                break
        self.judge.attempts += [(self.clock.true(), None)] * self.service.refusals()
        new = self.judge.look(listed, self.by_hand)
        self.judge.compare(listed, metrics)
        self.judge.overdue(metrics)
        life = [run for run in runs if run not in self.runs_before | self.by_make and run[1] not in self.made]
        self.judge.compare_hooks(listed, metrics, runs, life, self.earlier)
        self.judge.complete(new, runs)
        for id, with_pact in self.interrupted.items():
            self.judge.shows_interrupted(id, with_pact, metrics)
        self.interrupted = {}

    def end(self):
        """Everything is put right again, and every backup that is there is restored."""
        if self.service.process:
            self.look()
            self.service.stop(signal.SIGTERM)
        if self.judge.is_open("full"):
            self.free()
        for what in list(self.world.node.hidden):
            self.show(what)
        self.judge.missed()
        self.judge.doubled()
        for good in self.usable():
            self.restore(good)
            self.count("restored at the end")
        self.world.node.stop()
        ran = run(self.world.demo, "verify", self.world.node.directory)
        if ran.returncode:
            self.judge.fault("restorable", "the node itself: " + (ran.stderr or ran.stdout).strip())
        for name in os.listdir(self.world.work):
            if name.startswith("serve."):
                with open(os.path.join(self.world.work, name)) as log:
                    if "panicked" in log.read():
                        self.judge.fault("service", "it panicked, see " + name)


CHECKS = [("missed", "no schedule misses a backup"), ("doubled", "none is made twice"), ("lost", "no good backup is lost, and none is left over"),
          ("times", "identifiers rise, and times are those of the clock"), ("proof", "proofs tell the node that does not start"),
          ("hooks", "the hooks of each good backup run"), ("visible", "every failure is in the metrics"),
          ("restorable", "every good backup can be restored"),
          ("service", "the service never ends or hangs by itself")]


def main():
    work = tempfile.mkdtemp(prefix="chainweb-backup-month.")
    shim = os.path.join(work, "clock.so")
    built = run("cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o", shim,
                os.path.join(os.path.dirname(os.path.abspath(__file__)), "clock.c"), "-ldl", "-lpthread") if shutil.which("cc") else None
    if not built or built.returncode:
        shutil.rmtree(work)
        print("1..0 # SKIP cc cannot compile clock.c: %s" % (built.stderr.strip() if built else "there is no cc"))
        return 0
    # The disk is unmounted, and nothing left running, also then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rng, began = random.Random(SEED), time.monotonic()
    print("# %g days, seed %d" % (DAYS, SEED), flush=True)
    world = World(work, BIN, shim, rng)
    judge = Judge(world.clock)
    try:
        print("# " + world.words(), flush=True)
        month = Month(world, judge, rng, DAYS)
        try:
            month.run()
            month.end()
        except Fault as fault:
            judge.fault("service", str(fault))
    finally:
        world.remove()
    for number, (kind, name) in enumerate(CHECKS, 1):
        print("%sok %d - %s" % ("not " if judge.faults[kind] else "", number, name))
    print("1..%d" % len(CHECKS))
    good, days = judge.good, world.clock.true() / DAY
    print("# %.1f days in %d s: %d good backups, %d of them with Pact, %d by hand, %d refuted; %d failed; %d starts of the service" % (
        days, time.monotonic() - began, len(good), sum(g.pact for g in good), sum(g.by_hand for g in good),
        sum(not g.counts for g in good), len(judge.failed), world.service.lives))
    print("# %s; %d attempts refused" % (month.words(), sum(pact is None for _, pact in judge.attempts)))
    print("# backups could be made for %s" % ", ".join("%d h (%s)" % (judge.able_hours(s), s.label) for s in SCHEDULES))
    print("# the clock was set %d times, which made %d backups too many; the longest time between two: %s" % (
        len(world.clock.steps), judge.excused, ", ".join("%.1f h (%s)" % (judge.latest[s] / HOUR, s.label) for s in SCHEDULES)))
    print("# the hooks of %d good backups ran again after a stop; %d lack a hook, because the disk was full" % (len(judge.repeated), len(judge.hookless)))
    print("# missed %d, doubled %d, lost %d" % tuple(len(judge.faults[kind]) for kind in ("missed", "doubled", "lost")))
    if any(judge.faults.values()):
        print("# logs and hooks are kept in %s" % work)
        return 1
    shutil.rmtree(work)
    return 0


if len(sys.argv) < 2:
    sys.exit(__doc__)
SABOTAGE = os.environ.get("SABOTAGE")
BIN, DAYS = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 30
SEED = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 30)
sys.exit(main())
