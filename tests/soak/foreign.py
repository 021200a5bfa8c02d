#!/usr/bin/env python3
"""Live copies of databases that foreign programs write, each judged by the foreign library.

    foreign.py PROGRAM COUNT [SCENARIO...]     PROGRAM is chainweb-backup

Scenarios (all by default; one whose program is not installed is skipped, visibly):
    fillrandom overwrite deleterandom blobs families   db_bench of Debian's rocksdb-tools; each copy through
                                                       `ldb checkconsistency` and a full `ldb scan`
    system[:MODE]     history.cc with the system's librocksdb: sst-file-manager, pipelined, two-write-queues,
                      manual-wal-flush, wal-in-manifest; each copy judged key by key
    rocksdict         Python's rocksdict (RocksDB 9.8): threads with a checkable history, judged key by key
    naive             `cp -r` of system:sst-file-manager instead of our program: must be seen to fail

Each copy is a backup made by `PROGRAM make`, copied with `cp -a` (a backup is never opened read-write), then judged. Ends
with `N passed, N failed`; exit 1 if a copy was wrong.
"""

import collections, glob, json, os, random, shutil, signal, struct, subprocess, sys, tempfile, threading, time, zlib

HERE = os.path.dirname(os.path.abspath(__file__))
KEPT, HOT, ALIVE, THREADS = 400, 40, 20, 2
SCENARIOS = ["fillrandom", "overwrite", "deleterandom", "blobs", "families", "system", "system:sst-file-manager",
             "system:pipelined", "system:two-write-queues", "system:manual-wal-flush", "system:wal-in-manifest",
             "rocksdict", "naive"]

# ---- Python's writer and judge -------------------------------------------------------------------------------------


def sealed(key, step, seen):
    padding = 40000 if step % 97 == 96 and key[:1] == b"w" else step * 7 % 300
    body = struct.pack("<Q%dQ" % THREADS, step, *seen) + random.Random(step).randbytes(padding)
    return body + struct.pack("<I", zlib.crc32(body, zlib.crc32(key)))


def raw_options():
    import rocksdict

    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(64 * 1024)
    options.set_level_zero_file_num_compaction_trigger(3)
    options.set_target_file_size_base(32 * 1024)
    return options


def write(directory):
    import rocksdict

    db = rocksdict.Rdict(directory + "/0/rocksDb", raw_options())
    progress = os.open(directory + "/progress", os.O_RDWR | os.O_CREAT)
    committed = [0] * THREADS

    def steps(t):
        step = 0
        while True:
            step += 1
            batch = rocksdict.WriteBatch(raw_mode=True)
            seen = list(committed)
            for key in (b"w:%d:%010d" % (t, step), b"h:%d:%010d" % (t, step % HOT), b"d:%d:%010d" % (t, step)):
                batch[key] = sealed(key, step, seen)
            if step > KEPT:
                batch.delete(b"w:%d:%010d" % (t, step - KEPT))
            if step > ALIVE:
                batch.delete(b"d:%d:%010d" % (t, step - ALIVE))
            db.write(batch)
            committed[t] = step
            os.pwrite(progress, struct.pack("<Q", step), t * 8)
            time.sleep(0.0001)

    for t in range(THREADS):
        threading.Thread(target=steps, args=(t,)).start()


def judge(copy):
    import rocksdict

    options = raw_options()
    options.create_if_missing(False)
    options.set_disable_auto_compactions(True)
    db = rocksdict.Rdict(copy, options)
    found, last, saw = collections.defaultdict(dict), [], [0] * THREADS
    for key, value in db.items():
        numbers = struct.unpack_from("<Q%dQ" % THREADS, value)
        if sealed(key, numbers[0], numbers[1:]) != value:
            return "wrong value of %r" % key
        kind, t, number = key.split(b":")
        found[kind, int(t)][int(number)] = numbers[0]
        for other in range(THREADS):
            if other != int(t):
                saw[other] = max(saw[other], numbers[1 + other])
    db.close()
    for t in range(THREADS):
        n = max(found[b"w", t], default=0)
        last.append(n)
        rows = lambda kept: range(max(1, n - kept + 1), n + 1)
        if found[b"w", t] != {s: s for s in rows(KEPT)}:
            return "thread %d has a hole up to %d" % (t, n)
        if found[b"d", t] != {s: s for s in rows(ALIVE)}:
            return "thread %d: the dead are back" % t
        if found[b"h", t] != {s % HOT: s for s in rows(HOT)}:
            return "thread %d: overwritten keys are old" % t
    if any(saw[t] > last[t] for t in range(THREADS)):
        return "effect before cause: saw %s of %s" % (saw, last)
    print(*last)
    return None


# ---- The driver ----------------------------------------------------------------------------------------------------


def db_bench(name, directory):
    kinds = {"blobs": "overwrite", "families": "overwrite"}
    more = {
        "blobs": ["--enable_blob_files=1", "--min_blob_size=100", "--blob_file_size=65536",
                  "--enable_blob_garbage_collection=1", "--blob_garbage_collection_force_threshold=0.3"],
        "families": ["--num_column_families=4"],
    }
    if name == "deleterandom":  # There must be something to delete, again and again; fillrandom would make a new database.
        work, length = "fillrandom" + ",deleterandom,overwrite" * 1000, ["--writes=30000", "--deletes=30000"]
    else:
        work, length = kinds.get(name, name), ["--duration=100000"]
    return ["db_bench", "--benchmarks=" + work, "--db=%s/0/rocksDb" % directory, *length, "--num=40000", "--threads=2", "--value_size=200", "--write_buffer_size=65536", "--compression_type=none",
            "--target_file_size_base=65536", "--max_bytes_for_level_base=262144", "--level0_file_num_compaction_trigger=3",
            "--benchmark_write_rate_limit=4000000", "--stats_interval_seconds=1000"] + more.get(name, [])


def run(command, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def ldb_judge(copy):
    said = run(["ldb", "--db=" + copy, "checkconsistency"])
    if said.returncode != 0 or "OK" not in said.stdout:
        return "checkconsistency: " + said.stdout
    families = run(["ldb", "--db=" + copy, "list_column_families"]).stdout
    rows = 0
    for family in ["default"] + [n for n in ("column_family_name_%06d" % i for i in range(1, 4)) if n in families]:
        said = run(["ldb", "--db=" + copy, "--column_family=" + family, "scan", "--hex", "--no_value"])
        if said.returncode != 0 or "Failed" in said.stdout or "orruption" in said.stdout:
            return "scan: " + said.stdout[-300:]
        rows += said.stdout.count("\n")
    return None if rows > 0 else "no rows"


def program_judge(command, copy, before):
    said = run(command + [copy])
    words = said.stdout.split()
    if said.returncode != 0:
        return said.stdout.strip() or "died with %d" % said.returncode
    if any(int(word) < old for word, old in zip(words, before)):
        return "too old: %s, and %s was committed before" % (words, before)
    return None


def committed(directory):
    try:
        data = open(directory + "/progress", "rb").read()
        return struct.unpack("<%dQ" % (len(data) // 8), data[: len(data) // 8 * 8])
    except FileNotFoundError:
        return ()


def percentile(values, percent):
    return sorted(values)[(len(values) - 1) * percent // 100] if values else 0


def soak(program, count, name, scratch):
    directory = tempfile.mkdtemp(prefix="chainweb-backup-soak-", dir=scratch)
    os.makedirs(directory + "/0/rocksDb")
    history = os.environ.get("HISTORY") or os.path.join(directory, "history")
    if (name.startswith("system") or name == "naive") and not os.path.exists(history):
        built = run(["g++", "-O1", "-std=c++17", HERE + "/history.cc", "-o", history, "-lrocksdb", "-lpthread", "-lz"])
        if built.returncode != 0:
            return print("ok # SKIP %s: no librocksdb-dev" % name) or (0, 0)
    if name.startswith("system") or name == "naive":
        mode = "sst-file-manager" if name == "naive" else name.partition(":")[2]
        command, judges = [history, "write", directory, mode], [history, "judge"]
    elif name == "rocksdict":
        if run([sys.executable, "-c", "import rocksdict"]).returncode != 0:
            return print("ok # SKIP rocksdict: pip install rocksdict") or (0, 0)
        command, judges = [sys.executable, __file__, "--write", directory], [sys.executable, __file__, "--judge"]
    else:
        if not shutil.which("db_bench") or not shutil.which("ldb"):
            return print("ok # SKIP %s: apt-get install rocksdb-tools" % name) or (0, 0)
        command, judges = db_bench(name, directory), None
    log = open(directory + "/writer.log", "w")
    writer = subprocess.Popen(command, stdout=log, stderr=log)
    good, wrong, rounds, windows, times, expected = 0, [], collections.Counter(), [], [], name == "naive"
    try:
        deadline = time.time() + 30
        ready = lambda: min(committed(directory) or (0,)) > 500 if judges else bool(
            glob.glob(directory + "/0/rocksDb/*.sst"))
        while not ready():
            if writer.poll() is not None or time.time() > deadline:
                raise RuntimeError("the writer does not write: " + open(directory + "/writer.log").read()[-500:])
            time.sleep(0.05)
        for _ in range(count):
            before, copy, began = committed(directory), directory + "/copy", time.time()
            if expected:
                subprocess.run(["cp", "-r", directory + "/0/rocksDb", copy], stderr=subprocess.DEVNULL)
            else:
                made = subprocess.run(
                    [program, "make", "--database-directory", directory, "--backup-directory", directory + "/backups",
                     "--reserve-bytes", "0", "--log-level", "warn"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                if made.returncode != 0:
                    wrong.append("cannot be made: " + made.stderr.strip())
                    continue
                backup = directory + "/backups/" + made.stdout.split()[0]
                part = json.load(open(backup + "/backup.json"))["rocksdb"]
                rounds[part["rounds_count"]] += 1
                windows.append(part["window_us"] / 1000)
                times.append((time.time() - began) * 1000)
                subprocess.run(["cp", "-a", backup + "/0/rocksDb", copy], check=True)
            why = program_judge(judges, copy, before) if judges else ldb_judge(copy)
            if why:
                wrong.append(why)
            else:
                good += 1
            shutil.rmtree(copy)
            shutil.rmtree(directory + "/backups", ignore_errors=True)
            if writer.poll() is not None:
                raise RuntimeError("the writer died: " + open(directory + "/writer.log").read()[-500:])
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    print("scenario=%s good=%d wrong=%d rounds=%s window_ms p50=%.2f p99=%.2f max=%.2f make_ms p50=%.0f max=%.0f committed=%s" % (
        name, good, len(wrong), dict(sorted(rounds.items())), percentile(windows, 50), percentile(windows, 99),
        max(windows, default=0), percentile(times, 50), max(times, default=0), committed(directory)), flush=True)
    for why in wrong[:5]:
        print("  " + why[:300])
    shutil.rmtree(directory)
    if expected:
        return (1, 0) if wrong else (0, 1)
    return good, len(wrong)


def main():
    if sys.argv[1:2] == ["--write"]:
        return write(sys.argv[2])
    if sys.argv[1:2] == ["--judge"]:
        why = judge(sys.argv[2])
        return sys.exit(print(why) or 1 if why else 0)
    if len(sys.argv) < 3:
        return sys.exit(__doc__)
    program, count, names = os.path.abspath(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or SCENARIOS
    results = [soak(program, count, name, os.environ.get("SCRATCH")) for name in names]
    passed, failed = (sum(r[i] for r in results) for i in (0, 1))
    print("%d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
