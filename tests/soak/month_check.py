"""The judge of the simulated month (see month.py). It knows what was done to the service and when, the rules as the manual tells them,
and what the service says afterwards; not how the service decides. Times are true times in milliseconds, but those named `wall`.
"""

import collections, datetime

MINUTE, HOUR, DAY = 60_000, 3_600_000, 24 * 3_600_000
# What one backup may delay another, in the time of the month.
SLACK = 15 * MINUTE
JITTER = 10 * MINUTE
EVENTS = ["before", "on-verified", "after-success", "after-failure"]
KEEP = {"last": 24, "daily": 7, "weekly": 4, "monthly": 6}

Schedule = collections.namedtuple("Schedule", "label every_ms at_ms jitter_ms pact")
HOURLY = Schedule('schedule="every 1h",scope="rocksdb"', HOUR, None, 0, False)
NIGHTLY = Schedule('schedule="every 24h at 03:00",scope="rocksdb,pact"', DAY, 3 * HOUR, JITTER, True)
SCHEDULES = [HOURLY, NIGHTLY]

# `begin` is true, `wall` is what the record says; `usable`: whether the node was a good one all the time.
Good = collections.namedtuple("Good", "id begin wall pact by_hand counts usable")


def kept(backups):
    """The backups that the rules keep. `backups` are good ones: identifier, wall time, and whether it has Pact."""
    newest_first = sorted(backups, key=lambda backup: -int(backup[0]))
    with_pact = [backup for backup in newest_first if backup[2]]
    keep = newest_first[: max(1, KEEP["last"])] + with_pact[:1]
    utc = lambda backup: datetime.datetime.fromtimestamp(backup[1] / 1000, datetime.timezone.utc)
    periods = {"daily": lambda b: utc(b).date(), "weekly": lambda b: tuple(utc(b).isocalendar())[:2],
               "monthly": lambda b: (utc(b).year, utc(b).month)}
    for rule, period in periods.items():
        # The newest of each period, and the newest with Pact, for the first so many periods that have a backup.
        for of in list(dict.fromkeys(map(period, newest_first)))[: KEEP[rule]]:
            for some in (newest_first, with_pact):
                keep += [backup for backup in some if period(backup) == of][:1]
    return {id for id, _, _ in keep}


class Judge:
    def __init__(self, clock):
        self.clock = clock
        self.spans = []             # [what, from, to]: the service is down or stopped, or backups fail
        self.good = []              # in the order of their identifiers
        self.failed = {}            # identifier -> when it was seen
        self.attempts = []          # those that made no backup that counts: when they were seen, and whether with Pact, if that is known
        self.present = {}           # the good backups of the last look: identifier -> (identifier, wall, pact)
        self.looked = 0
        self.faults = collections.defaultdict(list)
        self.leftover = collections.Counter()
        self.unsure = set()         # backups whose hooks may have been killed with the service, and run again
        self.unnoted = set()        # backups of a full disk, on which it may not have been noted that their hooks are to run again
        self.endless = set()        # hooks that are said to be running
        self.hookless = set()       # good backups whose hooks have not run
        self.repeated = set()       # those whose hooks have run again
        self.excused = 0            # backups too many, after the clock was set
        self.latest = {schedule: 0 for schedule in SCHEDULES}

    def fault(self, kind, text):
        days, hours = divmod(int(self.clock.true() / HOUR), 24)
        self.faults[kind].append("day %d, %02d h: %s" % (days, hours, text))
        print("# %s: %s" % (kind, self.faults[kind][-1]), flush=True)

    # What was done.

    def begin(self, what):
        self.spans.append([what, self.clock.true(), float("inf")])

    def end(self, what):
        span = next(span for span in reversed(self.spans) if span[0] == what)
        assert span[2] == float("inf"), what
        span[2] = self.clock.true()

    def is_open(self, what):
        return any(span[0] == what and span[2] == float("inf") for span in self.spans)

    def failing(self, schedule):
        """In which spans an attempt of this schedule fails."""
        return {"full", "rocks", "before"} | ({"pact", "refuted"} if schedule.pact else set())

    # When a backup has to be there.

    def wall(self, at):
        return at + [offset for begin, offset in self.clock.segments if begin <= at][-1]

    def wall_due(self, schedule, good):
        """The time of the clock at which the next one is due after this good backup."""
        if schedule.at_ms is None:
            return good.wall + schedule.every_ms
        return good.wall + schedule.every_ms - (good.wall - schedule.at_ms) % schedule.every_ms + schedule.jitter_ms

    def is_due(self, schedule, good, at):
        """As the manual says: the clock has come to the time; or it was set back, so that the newest backup is ahead of it by more than a
        tenth of the interval, or of a backup that was made later."""
        believed = good.wall - schedule.every_ms / 10
        return self.wall(at) >= self.wall_due(schedule, good) or self.wall(at) < believed or at >= self.doubted(good, believed)

    def doubted(self, good, believed):
        """When a later backup was made before that time of the clock."""
        later = [other.begin for other in self.good if other.wall < believed and int(other.id) > int(good.id)]
        return min(later, default=float("inf"))

    def first_due(self, schedule, good, since):
        """The first true time from then on at which it is due."""
        # The clock comes to the time, or was set, or a later backup was made.
        moments = [self.wall_due(schedule, good) - offset + 1 for _, offset in self.clock.segments]
        moments += [begin for begin, _ in self.clock.segments] + [self.doubted(good, good.wall - schedule.every_ms / 10), since]
        moments = [at for at in sorted(moments) if since <= at < float("inf")]
        return next((at for at in moments if self.is_due(schedule, good, at)), float("inf"))

    def deadline(self, schedule, good):
        """The latest true time at which the next backup has to begin."""
        # What a begin lacks are fractions of a millisecond.
        begin = self.first_due(schedule, good, good.begin + 2) if good else 0
        at, first_failure, failures, used = begin, None, 0, []
        failing = self.failing(schedule) | {"killed with Pact" if schedule.pact else "killed"}
        while True:
            at = self.first_due(schedule, good, at) if good else at
            spans = [span for span in self.spans if span[0] in failing | {"down", "asleep"} and span not in used]
            spans = [span for span in spans if span[1] <= at + SLACK and span[2] > begin]
            if at == float("inf") or not spans:
                return at + SLACK
            used += spans
            at = max([at] + [span[2] for span in spans])
            failed = [span for span in spans if span[0] in failing]
            if failed and at < float("inf"):
                first_failure = first_failure or max(begin, min(span[1] for span in failed))
                failures += 1
                is_short = failures == 1 and all(span[0].startswith("killed") for span in failed)
                at += MINUTE if is_short else self.delay(schedule, first_failure, at)

    def delay(self, schedule, since, until):
        """The longest time until the next attempt, after attempts that failed for that time."""
        # They follow each other by an hour at most, of a clock that may have been set back on the way …
        back = sum(min(-by, HOUR) for when, by in self.clock.steps if by < 0 and since <= when <= until + HOUR)
        longest = min(HOUR, schedule.every_ms) + back
        # … and after 12 in a day, beside the regular one, there is none before the first of these is a day old.
        failed = sorted(when for when, pact in self.attempts if pact in (None, True) and since <= when <= until)
        if schedule.every_ms == DAY and len(failed) >= 12:
            longest = max(longest, failed[-12] + DAY + back - until)
        return longest

    # What the service says.

    def begun(self, wall, since):
        """The true time of a backup that was first seen now: one at which the clock said so, after the last look."""
        segments, now = self.clock.segments, self.clock.true()
        for (begin, offset), end in zip(segments, [segment[0] for segment in segments[1:]] + [now]):
            at = wall - offset
            if max(begin, since) - 2 <= at <= min(end, now) + 2:
                return at
        return None

    def look(self, listed, by_hand):
        """Compares the list of all backups with that of the last look. Returns the new good ones."""
        since, self.looked = self.looked, self.clock.true()
        known, before = {good.id for good in self.good}, {good.id for good in self.good} | set(self.failed)
        newest = max(map(int, before), default=0)
        done = {backup["id"]: backup for backup in listed if backup["status"] == "backup-done"}
        new = [self.seen(done[id], since, by_hand) for id in sorted(set(done) - known, key=int)]
        for backup in listed:
            if backup["status"] == "backup-failed" and backup["id"] not in self.failed:
                self.failed[backup["id"]] = self.looked
                self.attempts.append((self.looked, backup["scope"] == "rocksdb,pact"))
            if int(backup["id"]) <= newest and backup["id"] not in before:
                self.fault("times", "backup %s is new, and %d was there before" % (backup["id"], newest))
        self.good += new
        present = {good.id: (good.id, good.wall, good.pact) for good in self.good if good.id in done and good.counts}
        known = {**self.present, **{good.id: (good.id, good.wall, good.pact) for good in new if good.counts}}
        keep = kept(known.values())
        for id in sorted(set(known) - set(present)):
            if id in keep:
                self.fault("lost", "backup %s is gone, and a rule keeps it" % id)
        # What no rule keeps is gone soon after the next good backup.
        if new:
            self.leftover = collections.Counter({id: self.leftover[id] + 1 for id in set(present) - kept(present.values())})
            for id in [id for id, looks in self.leftover.items() if looks == 3]:
                self.fault("lost", "backup %s is kept by no rule, and still there after three more" % id)
        self.present = present
        return new

    def seen(self, backup, since, by_hand):
        id, wall, pact = backup["id"], backup["started_ms"], backup["scope"] == "rocksdb,pact"
        begin = self.begun(wall, since)
        if begin is None:
            self.fault("times", "backup %s says that it began at %d: the clock said otherwise since the last look" % (id, wall))
            begin = self.looked
        counts = (backup["starts"] or {}).get("verdict") != "no"
        refuted = [span for span in self.spans if span[0] == "refuted" and span[2] >= begin]
        is_whole = all(span[1] <= begin and span[2] >= self.looked for span in refuted)
        if pact and is_whole and counts == bool(refuted):
            node = "a node that does not start is not refuted" if counts else "a node that starts is refuted"
            self.fault("proof", "backup %s of %s: %s" % (id, node, backup["starts"]))
        if not counts:
            self.attempts.append((begin, pact))
        return Good(id, begin, wall, pact, id in by_hand, counts, not refuted)

    # What the metrics say.

    def expect(self, metrics, name, wanted):
        if metrics.get(name) != wanted:
            self.fault("visible", "%s is %s and not %s" % (name, metrics.get(name), wanted))

    def compare(self, listed, metrics):
        """What is said of the backups is what their own files say: so it is the same after each restart."""
        for status in ("backup-done", "backup-failed", "backup-in-progress"):
            self.expect(metrics, 'backups{status="%s"}' % status, sum(backup["status"] == status for backup in listed))
        self.expect(metrics, "directory_readable", 1)
        self.expect(metrics, "damaged_backups", 0)
        for scope in ("rocksdb", "rocksdb,pact"):
            of_scope = [backup for backup in listed if backup["scope"] == scope]
            for status, name in (("backup-failed", "failure"), ("backup-done", "success")):
                newest = max([int(backup["id"]) for backup in of_scope if backup["status"] == status], default=0)
                if of_scope:
                    self.expect(metrics, 'scope_last_%s_id{scope="%s"}' % (name, scope), newest)

    def overdue(self, metrics):
        """While backups fail, a schedule whose backup is overdue says so."""
        now = self.clock.true()
        for schedule in SCHEDULES:
            fails = any(span[0] in self.failing(schedule) and span[1] <= now - SLACK and span[2] == float("inf") for span in self.spans)
            good = (self.counting(schedule) or [None])[-1]
            said = metrics["schedule_failed_attempts{%s}" % schedule.label] or metrics.get("schedule_last_attempt_succeeded{%s}" % schedule.label) == 0
            is_overdue = good and all(self.is_due(schedule, good, at) for at in (max(0, now - SLACK), now))
            is_overdue = is_overdue and not any(when > now - SLACK for when, _ in self.clock.steps)
            if fails and is_overdue and not said:
                self.fault("visible", "%s is overdue, and the metrics know of no failure" % schedule.label)

    def compare_hooks(self, listed, metrics, runs, life, earlier):
        """No hook is said to be running; those of this life of the service are counted; the newest ones say how they ended, also after a
        restart. `earlier` backups had ended before this life."""
        for backup in listed:
            for hook in backup["hooks"]:
                if "duration_ms" not in hook and (backup["id"], hook["event"]) not in self.endless:
                    self.endless.add((backup["id"], hook["event"]))
                    if self.is_open("full"):  # its end could not be noted
                        continue
                    self.fault("visible", "the hook %s of %s is said to be running" % (hook["event"], backup["id"]))
        if self.is_open("full"):
            newest = set(sorted([backup["id"] for backup in listed], key=int)[-4:])
            self.unsure |= newest
            self.unnoted |= newest
        for event in EVENTS:
            ends = [end for of, _, _, end in life if of == event]
            for result, count in (("passed", ends.count("passed")), ("failed", len(ends) - ends.count("passed"))):
                self.expect(metrics, 'hooks_total{hook="%s",result="%s"}' % (event, result), count)
            there = {backup["id"] for backup in listed}
            ended = {id: end for of, id, _, end in runs if of == event and id in there}
            newest = max(ended, key=int, default=None)
            if newest and newest not in self.unsure:
                self.expect(metrics, 'last_hook_passed{hook="%s"}' % event, ended[newest] == "passed")
        self.expect(metrics, 'jobs_total{result="failed"}', sum(of == "after-failure" and id not in earlier for of, id, _, _ in life))

    def complete(self, new, runs):
        """The hooks of each good backup have run, once each; also if the service was stopped before, or meanwhile, and then twice."""
        for good in new:
            for event in EVENTS[:3]:
                count = sum((of, id) == (event, good.id) for of, id, _, _ in runs)
                if (count == 0 and good.id not in self.unnoted) or (count > 1 and good.id not in self.unsure):
                    self.fault("hooks", "the hook %s of %s ran %d times" % (event, good.id, count))
                elif count == 0:
                    self.hookless.add(good.id)
                elif count > 1:
                    self.repeated.add(good.id)

    def shows_interrupted(self, id, pact, metrics):
        """A backup that was being made when the service was killed is a failure, which must be seen after the restart."""
        if metrics.get("interruption_timestamp_seconds"):
            return
        if metrics.get('scope_last_failure_id{scope="%s"}' % ("rocksdb,pact" if pact else "rocksdb"), 0) < int(id):
            self.fault("visible", "backup %s was interrupted, and after the restart no metric has it" % id)

    # At the end.

    def counting(self, schedule):
        return [good for good in self.good if good.counts and (good.pact or not schedule.pact)]

    def able_hours(self, schedule):
        """How long the service lived, and a backup of this schedule could be made."""
        hampered = sorted(span[1:] for span in self.spans if span[0] in self.failing(schedule) | {"down", "asleep"})
        able, at = 0, 0
        for begin, end in hampered + [[self.clock.true(), None]]:
            able += max(0, begin - at)
            at = max(at, end or 0)
        return able / HOUR

    def missed(self):
        for schedule in SCHEDULES:
            before = None
            for good in self.counting(schedule) + [None]:
                begin = good.begin if good else self.clock.true()
                late = begin - self.deadline(schedule, before)
                if late > 0:
                    self.fault("missed", "%s: after %s the next one was due before %.2f h, and %s" % (
                        schedule.label, before.id if before else "the start", (begin - late) / HOUR,
                        "%s began at %.2f h" % (good.id, begin / HOUR) if good else "there is none"))
                if good and before:
                    self.latest[schedule] = max(self.latest[schedule], begin - before.begin)
                before = good

    def doubled(self):
        for schedule in SCHEDULES:
            before = None
            for good in self.counting(schedule):
                wanted = good.pact == schedule.pact and not good.by_hand
                if before and wanted and not self.needed(schedule, before, good):
                    if any(before.begin <= when <= good.begin for when, _ in self.clock.steps):
                        self.excused += 1
                    else:
                        self.fault("doubled", "%s: %s, and %s after %.2f h" % (schedule.label, before.id, good.id, (good.begin - before.begin) / HOUR))
                before = good

    def needed(self, schedule, before, good):
        if schedule.at_ms is None:
            return good.wall - before.wall >= schedule.every_ms
        slot = lambda of: (of.wall - schedule.at_ms) // schedule.every_ms
        return slot(good) > slot(before)
