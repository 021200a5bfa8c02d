#!/usr/bin/env python3
"""The checks of the simulated month can fail: something is done in it without a word to the judge, and the check that it names must find it.

    month_sabotage.py BIN [DAYS] [SEED]     a month of so many days (2) for each of these acts; prints TAP

month.py does the act that the environment names as SABOTAGE, as soon as it is possible after more than half of its time.
"""

import os, shutil, signal, subprocess, sys


def newest(month):
    usable = sorted(month.usable(), key=lambda good: int(good.id))
    return usable[-1].id if usable else None


def missed(month):
    """The service is suspended, as by a scheduler that hangs."""
    month.service.process.send_signal(signal.SIGSTOP)
    month.clock.jump(40 * 3_600_000)
    month.service.process.send_signal(signal.SIGCONT)


def doubled(month):
    """A backup that nobody asked for."""
    month.made.add(month.world.tool("make", "--config-file", month.world.config, "--log-level", "warn").stdout.strip())


def lost(month):
    """The newest good backup is gone."""
    shutil.rmtree("%s/%s" % (month.world.backups, newest(month)))


def times(month):
    """A backup is made while the clock is wrong, and nobody has set it."""
    month.clock.page[0] += 3 * 3_600_000 * 1_000_000
    month.by_hand.add(month.service.ask("POST", "/make-backup")[1])
    month.service.settle()
    month.clock._write()


def proof(month):
    """A backup of a node that does not start."""
    month.world.node.hide("refuted")
    month.by_hand.add(month.service.ask("POST", "/make-backup?backupPact")[1])
    month.service.settle()
    month.world.node.show("refuted")


def hooks(month):
    """Hooks that are not run."""
    with open(month.world.hooks + "/hook.sh", "w") as file:
        file.write("#!/bin/sh\nexit 0\n")


def visible(month):
    """Metrics that stay as they are."""
    metrics = month.service.metrics()
    month.service.metrics = lambda: metrics


def restorable(month):
    """A file of the newest good backup rots."""
    place = "%s/%s/0/rocksDb" % (month.world.backups, newest(month))
    path = max((os.path.join(place, name) for name in os.listdir(place) if name.endswith(".sst")), key=os.path.getsize)
    kept = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(kept.st_size // 2)
        file.write(b"rotten rotten rotten rotten")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def service(month):
    """The service dies."""
    month.service.process.kill()


ACTS = [missed, doubled, lost, times, proof, hooks, visible, restorable, service]


def act(month, name):
    """Does it if all is calm; otherwise returns False."""
    if not month.service.process or not month.is_calm() or month.world.node.hidden or newest(month) is None:
        return False
    globals()[name](month)


def main(binaries, days="2", seed="7"):
    failed = 0
    month = os.path.join(os.path.dirname(os.path.abspath(__file__)), "month.py")
    for number, name in enumerate([one.__name__ for one in ACTS], 1):
        ran = subprocess.run([sys.executable, month, binaries, days, seed], env={**os.environ, "SABOTAGE": name}, capture_output=True, text=True)
        found = [line for line in ran.stdout.splitlines() if line.startswith("# %s: " % name)]
        failed += not found
        print("%sok %d - %s: %s" % ("" if found else "not ", number, globals()[name].__doc__, found[0][2:] if found else ran.stdout[-600:] + ran.stderr[-600:]), flush=True)
    print("1..%d" % len(ACTS))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
