#!/usr/bin/env python3
"""Start-up proofs beside starts: what the proof of a database directory predicts, and what the demo node then does with it.

    starts.py BIN COUNT [SEED]     BIN is the directory of chainweb-backup and demo-node

Histories of 3, 10 (which grow to 20) and 20 chains with forks are recorded at two heights. A case takes RocksDB of one height and
each Pact database of one or the other, so that Pact is ahead, at or behind the cut, then plants up to one fault. The proof must
predict the start exactly: the cut, the cuts passed over, and for each chain the blocks undone and replayed; or the first fault: its
chain, its height and what is wrong. It may be unknown only if a lost WAL held every cut, and with
them the name of the network, or if there is no Pact. One line for each case; ends with the counts, and exit 1 if a prediction was wrong.
"""

import collections, json, os, random, re, shutil, sqlite3, subprocess, sys, tempfile, time

FAULTS = ["missing-block", "missing-header", "missing-rank", "missing-payload", "missing-transactions", "missing-outputs",
          "flipped-header", "missing-tip", "pact-ahead", "forked-tip", "missing-history", "exchanged-pact", "missing-chain",
          "dropped-wal"]
# What the proof says of a fault, and what the demo node says of the same.
SAME = [("the header of", "header"), ("the rank of", "rank"), ("the rank of", "is missing from RocksDB"), ("the payload of", "the hashes in the payload"),
        ("the transactions of", "transactions"), ("the outputs of", "outputs"), ("does not connect", "does not connect"),
        ("would have to be rewound", "BlockHeaderLookupFailure"), ("in common", "in common"), ("no cut can be used", "")]
FLAG = "--no-full-historic-pact-state"


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def grow(directory, chains, blocks, seed):
    ran = run(DEMO, "--database-directory", directory, "--chains", str(chains), "--blocks", str(blocks), "--rate", "0",
              "--delay-ms", "0", "--fork-percent", "25", "--seed", str(seed), "--exit-when-done", "--disable-backup-api",
              "--service-port", "0")
    assert ran.returncode == 0, ran.stderr


def histories(work, rng):
    made = []
    for chains in (3, 10, 20, 1):
        early, late = (os.path.join(work, "%s%d" % (name, chains)) for name in ("early", "late"))
        grow(early, chains, 50 if chains == 10 else 25, rng.randrange(1 << 30))
        shutil.copytree(early, late)
        grow(late, chains, rng.randrange(12, 25), rng.randrange(1 << 30))
        made.append((chains, early, late))
    return made


def mix(case, early, late, rng):
    """RocksDB of one height, Pact of both."""
    new = rng.random() < 0.7
    shutil.copytree((late if new else early) + "/0/rocksDb", case + "/0/rocksDb")
    os.mkdir(case + "/0/sqlite")
    share = rng.choice([0, 0.1, 0.5, 1])
    for name in os.listdir(late + "/0/sqlite"):
        other = rng.random() < share
        source = late if new != other else early
        shutil.copy2(os.path.join(source, "0/sqlite", name), case + "/0/sqlite/" + name)
    return "rocksdb %s, %d%% of pact %s" % ("late" if new else "early", share * 100, "early" if new else "late")


def plant(case, rng):
    """One fault, or none."""
    if rng.random() < 0.15:
        return "none"
    if rng.random() < 0.1:
        name = rng.choice(os.listdir(case + "/0/sqlite"))
        with sqlite3.connect(case + "/0/sqlite/" + name) as pact:
            top = pact.execute("SELECT max(blockheight) FROM BlockHistory").fetchone()[0]
            lowest = rng.randrange(max(1, top - 10), top + 1)
            pact.execute("DELETE FROM BlockHistory WHERE blockheight < ?", [lowest])
        pact.close()
        return "rows below %d of %s gone" % (lowest, name)
    fault = rng.choice(FAULTS)
    words = ["--fault", fault]
    chains = len(os.listdir(case + "/0/sqlite"))
    words += ["--chain", str(rng.randrange(chains))]
    if rng.random() < 0.8:
        words += ["--height", str(rng.randrange(1, 75))]
    planted = run(DEMO, "plant", *words, case)
    if planted.returncode != 0:
        return None
    return "%s (%s)" % (fault, planted.stdout.strip())


def proof(case):
    began = time.monotonic()
    ran = run(PROGRAM, "starts", case + "/0/rocksDb", "0", "usual")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout), time.monotonic() - began


def problem_of(verdict, case):
    """What is wrong with the prediction, after the demo node has started."""
    report = case + "/report"
    # A fault is one that the node meets with the flag, too.
    flags = [FLAG] if FLAG in verdict.get("flags", [FLAG]) else []
    started = run(DEMO, "--database-directory", case, "--blocks", "0", "--rate", "0", "--exit-when-done", "--disable-backup-api",
                  "--service-port", "0", "--start-report", report, *flags)
    does = started.returncode == 0
    if verdict["verdict"] == "yes":
        if not does:
            return "predicted to start, but: " + started.stderr.strip()
        with open(report) as file:
            did = json.load(file)
        said = {"cut": verdict["cut_height"], "skipped": verdict["skipped_cuts"],
                "chains": {n: (c["height"], c["rewind"], c["replay"]) for n, c in verdict["chains"].items()}}
        found = {"cut": did["cut"]["height"], "skipped": did["skipped_cuts"],
                 "chains": {n: (c["tip"]["height"], c["rewound"], c["replayed"]) for n, c in did["chains"].items()}}
        return None if said == found else "predicted %s, did %s" % (said, found)
    if verdict["verdict"] == "unknown" and ("no table of cuts" in verdict["reason"] or "no Pact databases" in verdict["reason"]):
        return None
    if verdict["verdict"] != "no":
        return "unknown: " + verdict["reason"]
    if does:
        return "predicted not to start (%s), but started" % verdict["reason"]
    said, found = verdict["reason"], started.stderr.strip().splitlines()[-1]
    chain, height = re.search(r"of chain (\d+)", said), re.search(r"block (\d+)", said)
    same = [theirs for ours, theirs in SAME if ours in said and theirs in found]
    if not same or (chain and "chain %s:" % chain[1] not in found) or (height and not re.search(r"block %s\b" % height[1], found)):
        return "predicted %r, but %r" % (said, found)
    return None


def main():
    rng = random.Random(SEED)
    print("# seed %d" % SEED)
    work = tempfile.mkdtemp(prefix="chainweb-backup-starts.")
    made, counts, wrong, times, number = histories(work, rng), collections.Counter(), 0, [], 0
    while number < COUNT:
        chains, early, late = made[number % 4]
        case = os.path.join(work, "case")
        shutil.rmtree(case, ignore_errors=True)
        os.makedirs(case + "/0")
        what = mix(case, early, late, rng)
        planted = plant(case, rng)
        if planted is None:
            continue
        number += 1
        verdict, seconds = proof(case)
        problem = problem_of(verdict, case)
        times.append(seconds)
        moves = verdict.get("chains", {}).values()
        counts[verdict["verdict"]] += 1
        counts["rewound"] += any(chain["rewind"] for chain in moves)
        counts["replayed"] += any(chain["replay"] for chain in moves)
        counts["cuts passed over"] += verdict.get("skipped_cuts", 0) > 0
        print("%s %d - %d chains, %s, fault %s: %s %s" % ("not ok" if problem else "ok", number, chains, what, planted,
                                                        verdict["verdict"], verdict.get("reason", "")))
        if problem:
            wrong += 1
            print("# %s" % problem)
            shutil.copytree(case, os.path.join(work, "wrong%d" % wrong))
    times.sort()
    print("1..%d" % COUNT)
    print("# %s; proof %.3f s at the median, %.3f s at most" % (
        ", ".join("%s %d" % pair for pair in sorted(counts.items())), times[len(times) // 2], times[-1]))
    if wrong:
        print("# %d wrong, kept in %s" % (wrong, work))
        sys.exit(1)
    shutil.rmtree(work)


if len(sys.argv) < 3:
    sys.exit(__doc__)
PROGRAM, DEMO = (os.path.join(sys.argv[1], name) for name in ("chainweb-backup", "demo-node"))
COUNT, SEED = int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 30)
main()
