#!/usr/bin/env python3
"""Delta pairs read by other versions of SQLite, from 3.13 to 3.45: from 3.22 on they read the day of the backup, an older one refuses; none reads
the base alone, and none changes a file, root included.

    sqlite_versions.py BIN     BIN is the directory of chainweb-backup and demo-node

The versions are those that the crate libsqlite3-sys has bundled; cargo fetches them and cc compiles them. Prints TAP.
"""

import ctypes, glob, hashlib, os, shutil, subprocess, sys, tempfile

CRATES = ["0.6.2", "0.9.0", "0.9.4", "0.12.0", "0.18.0", "0.22.2", "0.23.1", "0.23.2", "0.24.2", "0.25.2", "0.26.0", "0.28.0"]
FIRST_READER = (3, 22, 0)  # the first one that reads a WAL without a -shm that it may write
QUESTION = b"SELECT count(*), max(blockheight), group_concat(hex(hash)) FROM BlockHistory; PRAGMA integrity_check;"
CHANGES = [b"DELETE FROM BlockHistory", b"VACUUM", b"CREATE TABLE x (y)", b"PRAGMA journal_mode=DELETE; CREATE TABLE x (y)"]
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_char_p), ctypes.c_void_p)


def must(*command, **more):
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)
    if ran.returncode:
        sys.exit("Bail out! %s: %s" % (" ".join(command), ran.stderr))
    return ran.stdout.strip()


def library(crate, work):
    """SQLite as this release of the crate bundles it."""
    project = "%s/%s" % (work, crate)
    os.makedirs(project + "/src")
    open(project + "/src/lib.rs", "w").close()
    with open(project + "/Cargo.toml", "w") as file:
        file.write('[package]\nname = "p"\nversion = "0.1.0"\n[dependencies]\nlibsqlite3-sys = "=%s"\n' % crate)
    must("cargo", "vendor", "-q", cwd=project)
    (source,) = glob.glob(project + "/vendor/libsqlite3-sys/sqlite3/sqlite3.c")
    must("cc", "-O0", "-w", "-shared", "-fPIC", "-DSQLITE_THREADSAFE=1", "-o", project + "/sqlite3.so", source, "-lpthread", "-ldl", "-lm")
    loaded = ctypes.CDLL(project + "/sqlite3.so", mode=os.RTLD_LOCAL | os.RTLD_DEEPBIND)
    loaded.sqlite3_libversion.restype = loaded.sqlite3_errmsg.restype = ctypes.c_char_p
    return loaded


def ask(sqlite, path, sql):
    """The rows, or the message."""
    database, rows, message = ctypes.c_void_p(), [], ctypes.c_char_p()
    call = CALLBACK(lambda _, count, words, __: rows.append([words[n] for n in range(count)]) or 0)
    code = sqlite.sqlite3_open(path.encode(), ctypes.byref(database))
    if code == 0:
        code = sqlite.sqlite3_exec(database, sql, call, None, ctypes.byref(message))
    error = "%d %s" % (code, (message.value or sqlite.sqlite3_errmsg(database)).decode())
    sqlite.sqlite3_close(database)
    return error if code else rows


def state(directory):
    found = []
    for path in sorted(glob.glob(directory + "/*")):
        meta = os.stat(path)
        content = ""
        if os.path.isfile(path):
            with open(path, "rb") as file:
                content = hashlib.blake2b(file.read()).hexdigest()
        else:
            content = os.listdir(path)
        found.append((path, meta.st_ino, meta.st_mode, meta.st_size, meta.st_mtime_ns, content))
    return found


def main(binaries):
    program, demo = (os.path.join(binaries, name) for name in ("chainweb-backup", "demo-node"))
    work, failed, number = tempfile.mkdtemp(prefix="chainweb-backup-sqlite."), 0, 0
    node, backups = work + "/node", work + "/backups"
    for blocks in (20, 3):
        must(demo, "--database-directory", node, "--chains", "1", "--fill", "8000000", "--blocks", str(blocks), "--rate", "0", "--delay-ms", "0",
             "--exit-when-done", "--disable-backup-api", "--service-port", "0")
        id = must(program, "make", "--database-directory", node, "--backup-directory", backups, "--backup-pact", "--pact-method", "delta",
                  "--reserve-bytes", "0", "--log-level", "warn")
    must(program, "restore", "--backup-directory", backups, id, "--to", work + "/restored")
    (restored,) = glob.glob(work + "/restored/0/sqlite/*.sqlite")
    (pair,) = glob.glob("%s/%s/0/sqlite/*.sqlite" % (backups, id))
    base_alone = work + "/base.sqlite"
    shutil.copyfile(pair, base_alone)
    before = state(os.path.dirname(pair))
    for crate in CRATES:
        sqlite = library(crate, work)
        version = sqlite.sqlite3_libversion().decode()
        wanted = ask(sqlite, restored, QUESTION)
        stale = ask(sqlite, base_alone, QUESTION)
        found = ask(sqlite, pair, QUESTION)
        changes = [ask(sqlite, pair, change) for change in CHANGES]
        ask(sqlite, pair, b"PRAGMA wal_checkpoint(TRUNCATE)")
        reads = tuple(map(int, version.split("."))) >= FIRST_READER
        wrong = []
        if not isinstance(wanted, list) or wanted == stale or wanted[1] != [b"ok"]:
            wrong.append("the measure is wrong: %s" % (wanted,))
        if (found != wanted) if reads else not isinstance(found, str):
            wrong.append("it reads %.200s" % (found,))
        wrong += ["it could: %s" % change.decode() for change, did in zip(CHANGES, changes) if isinstance(did, list)]
        if state(os.path.dirname(pair)) != before:
            wrong.append("a file has changed")
        number, failed = number + 1, failed + bool(wrong)
        what = "reads the day" if reads else "refuses: %.80s" % found
        print("%s %d - SQLite %s %s; it cannot write: %s" % ("not ok" if wrong else "ok", number, version, what, changes[0]), flush=True)
        for line in wrong:
            print("# " + line)
    print("1..%d" % number)
    shutil.rmtree(work)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("sqlite_versions.py BIN")
    main(sys.argv[1])
