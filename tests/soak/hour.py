#!/usr/bin/env python3
"""What a node feels of backups with start-up proof and drill: how long it takes to grow by a height, alone and beside them.

    hour.py BIN MINUTES     BIN is the directory of chainweb-backup and demo-node

A node of 20 chains with 1 GB grows by ten heights a second. Minute by minute by turns it is alone, or a backup with Pact is made,
which is proved to start and restored, opened and compared in a drill. Heights that end within a backup or a drill are compared with
all of the minutes alone. Ends with exit 1 if a backup was not proved, or a drill did not pass.
"""

import json, os, shutil, subprocess, sys, tempfile, time


def run(*command):
    began = time.time()
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return ran, (began, time.time())


def row(name, spans, heights):
    took = sorted(took for at, took in heights if any(begin <= at <= end for begin, end in spans))
    seconds = sum(end - begin for begin, end in spans)
    part = lambda q: took[min(len(took) - 1, int(q * len(took)))] / 1000 if took else 0
    print("%-18s %4d %8.1f %8d %8.2f %8.2f %8.2f %8.1f" % (name, len(spans), seconds, len(took), part(0.5), part(0.9), part(0.99),
                                                        part(1)))
    return part(0.99)


def main():
    work = tempfile.mkdtemp(prefix="chainweb-backup-hour.")
    database, backups, latencies = (os.path.join(work, name) for name in ("node", "backups", "latencies"))
    node = subprocess.Popen([DEMO, "--database-directory", database, "--fill", "1000000000", "--rate", "10", "--delay-ms", "0",
                             "--disable-backup-api", "--service-port", "0", "--latency-file", latencies, "--address-file",
                             work + "/address"], stdout=subprocess.DEVNULL, stderr=open(work + "/node.log", "w"))
    while not os.path.exists(work + "/address"):
        time.sleep(0.1)
        assert node.poll() is None, "the node did not start"
    time.sleep(10)
    alone, made, drilled, failed, proofs = [], [], [], 0, []
    for minute in range(MINUTES):
        end = time.time() + 60
        if minute % 2 == 0:
            alone.append((time.time(), end))
        else:
            ran, span = run(PROGRAM, "make", "--backup-pact", "--database-directory", database, "--backup-directory", backups,
                            "--log-level", "warn")
            made.append(span)
            identifier = ran.stdout.strip()
            with open(os.path.join(backups, identifier, "starts.json")) as file:
                proof = json.load(file)
            proofs.append(proof["duration_ms"])
            dried, span = run(PROGRAM, "drill", "--backup-directory", backups, "latest")
            drilled.append(span)
            if ran.returncode or dried.returncode or proof["verdict"] != "yes":
                failed += 1
                print("# %s: %s%s %s" % (identifier, ran.stderr, dried.stderr, proof))
            run(PROGRAM, "prune", "--backup-directory", backups, "--keep-last", "2")
        time.sleep(max(0, end - time.time()))
    node.terminate()
    node.wait()
    heights = []
    with open(latencies) as file:
        for line in file:
            at, took = line.split()
            heights.append((int(at) / 1e6, int(took)))
    print("%-18s %4s %8s %8s %8s %8s %8s %8s" % ("the node is", "runs", "s", "heights", "p50 ms", "p90 ms", "p99 ms", "max ms"))
    first = row("alone", alone, heights)
    for name, spans in (("backed up, proved", made), ("drilled", drilled)):
        print("# p99 ratio %.2f" % (row(name, spans, heights) / first))
    print("# proofs: %d ms at the median, %d ms at most; %d of %d failed" % (
        sorted(proofs)[len(proofs) // 2], max(proofs), failed, len(made)))
    verified, _ = run(DEMO, "verify", database)
    print("# the node: %s" % (verified.stdout + verified.stderr).strip())
    shutil.rmtree(work)
    sys.exit(1 if failed or verified.returncode else 0)


if len(sys.argv) != 3:
    sys.exit(__doc__)
PROGRAM, DEMO = (os.path.join(sys.argv[1], name) for name in ("chainweb-backup", "demo-node"))
MINUTES = int(sys.argv[2])
main()
