#!/usr/bin/env python3
"""A week of backups that leave the host, by each ready hook: what was sent, against what had changed; a node starts from each day's copy.

    off_host.py BIN [DAYS]     BIN is the directory of chainweb-backup and demo-node; needs root (network namespaces), rsync, restic, rclone

Each day a node of three chains works, a backup is made of it on an xfs, with increments or delta pairs of Pact, and `make` runs the hook
from its configuration. Each server has a network namespace of its own, so its loopback counts what was sent. The
servers: rsync's daemon; restic's REST protocol and WebDAV by `rclone serve`; S3 with object lock by moto_server (pip install
'moto[s3,server]'), in which every object is locked for 30 days and none can be deleted. Prints TAP and a table.
"""

import glob, json, os, re, shutil, signal, subprocess, sys, tempfile, time, urllib.request

HOOKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts/hooks")
failed = number = 0


def ok(good, what, *why):
    global failed, number
    number, failed = number + 1, failed + (not good)
    print("%s %d - %s" % ("ok" if good else "not ok", number, what), flush=True)
    if not good:
        print("# " + " ".join(map(str, why)).strip().replace("\n", "\n# "))
    return good


def run(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, **more)


def must(*command, **more):
    ran = run(*command, **more)
    if ran.returncode:
        raise RuntimeError("%s: %s" % (" ".join(command), (ran.stderr or ran.stdout).strip()))
    return ran.stdout.strip()


class Network:
    """A network of its own, with a loopback that counts."""

    def __init__(self, name):
        self.name = "chainweb-backup-" + name
        run("ip", "netns", "delete", self.name)
        must("ip", "netns", "add", self.name)
        self.prefix = ["ip", "netns", "exec", self.name]
        must(*self.prefix, "ip", "link", "set", "lo", "up")
        self.servers = []

    def serve(self, port, *command):
        log = tempfile.TemporaryFile()
        self.servers.append(subprocess.Popen([*self.prefix, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True))
        for _ in range(200):
            if run(*self.prefix, "sh", "-c", "ss -Hltn 'sport = :%d' | grep -q ." % port).returncode == 0:
                return
            time.sleep(0.1)
        log.seek(0)
        raise RuntimeError("%s does not listen: %s" % (command[0], log.read().decode()))

    def sent_bytes(self):
        told = must(*self.prefix, "cat", "/proc/net/dev")
        return int(re.search(r"lo:\s*(\d+)", told).group(1))

    def end(self):
        for server in self.servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)
        must("ip", "netns", "delete", self.name)


def size(directory):
    seen = {}
    for path, _, names in os.walk(directory):
        for name in names:
            meta = os.lstat(os.path.join(path, name))
            seen[meta.st_dev, meta.st_ino] = meta.st_size
    return sum(seen.values())


# The ways off the host: each prepares its server and says how the hook is called, how a backup comes back, and what the storage has.


class Rsync:
    def __init__(self, work, network):
        self.stored = work + "/stored"
        os.mkdir(self.stored)
        with open(work + "/rsyncd.conf", "w") as file:
            file.write("use chroot = no\nuid = 0\ngid = 0\n[backups]\npath = %s\nread only = no\n" % self.stored)
        network.serve(8730, "rsync", "--daemon", "--no-detach", "--config=" + work + "/rsyncd.conf", "--address=127.0.0.1", "--port=8730")
        self.hook = [HOOKS + "/rsync.sh", "rsync://127.0.0.1:8730/backups"]

    def bring_back(self, id, to):
        must("cp", "-a", "%s/%s" % (self.stored, id), to)

    def bytes(self):
        return size(self.stored)


class Restic:
    def __init__(self, work, network):
        self.stored, self.network, self.password = work + "/stored", network, work + "/password"
        os.mkdir(self.stored)
        with open(self.password, "w") as file:
            file.write("secret\n")
        network.serve(8731, "rclone", "--config", "/dev/null", "serve", "restic", "--addr", "127.0.0.1:8731", self.stored)
        self.restic("init")
        self.hook = [HOOKS + "/restic.sh", "rest:http://127.0.0.1:8731/", self.password]

    def restic(self, *words):
        return must(*self.network.prefix, "restic", "--quiet", "--no-cache", "-r", "rest:http://127.0.0.1:8731/", "-p", self.password, *words)

    def bring_back(self, id, to):
        self.restic("restore", "--tag", "id=" + id, "--target", "%s/%s" % (to, id), "latest")

    def bytes(self):
        return size(self.stored)


class Rclone:
    def __init__(self, work, network):
        self.stored, self.network, self.config, state = work + "/stored", network, work + "/rclone.conf", work + "/state"
        os.mkdir(self.stored)
        os.mkdir(state)
        self.serve(network)
        with open(self.config, "w") as file:
            file.write(self.remote)
        self.hook = [HOOKS + "/rclone.sh", self.at, state, "--config=" + self.config]

    def serve(self, network):
        network.serve(8732, "rclone", "--config", "/dev/null", "serve", "webdav", self.stored, "--addr", "127.0.0.1:8732")
        self.remote, self.at = "[dav]\ntype = webdav\nurl = http://127.0.0.1:8732\nvendor = other\n", "dav:"

    def bring_back(self, id, to):
        must(*self.network.prefix, HOOKS + "/rclone-restore.sh", self.at, id, to, "--config=" + self.config)

    def bytes(self):
        told = must(*self.network.prefix, "rclone", "--config", self.config, "size", "--json", self.at)
        return json.loads(told)["bytes"]


class ObjectLock(Rclone):
    """S3, every object locked for 30 days."""

    def serve(self, network):
        network.serve(8733, "moto_server", "-H", "127.0.0.1", "-p", "8733")
        self.remote = ("[s3]\ntype = s3\nprovider = Other\nendpoint = http://127.0.0.1:8733\naccess_key_id = a\nsecret_access_key = b\n"
                       "region = us-east-1\nforce_path_style = true\nno_check_bucket = true\n")
        self.at = "s3:copies"
        self.s3("""
c.create_bucket(Bucket="copies", ObjectLockEnabledForBucket=True)
c.put_object_lock_configuration(Bucket="copies", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled",
    "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}}})""")

    def s3(self, code):
        return must(*self.network.prefix, sys.executable, "-c", 'import boto3; c = boto3.client("s3", endpoint_url="http://127.0.0.1:8733", '
                    'aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")\n' + code)

    def check(self):
        """Each object has one version, and the storage refuses to delete it."""
        told = self.s3("""
from botocore.exceptions import ClientError
versions, refused = [], 0
for page in c.get_paginator("list_object_versions").paginate(Bucket="copies"):
    versions += page.get("Versions", [])
for version in versions:
    try:
        c.delete_object(Bucket="copies", Key=version["Key"], VersionId=version["VersionId"])
    except ClientError as error:
        refused += "AccessDenied" in str(error)
print(len(versions), len({version["Key"] for version in versions}), refused)""")
        count, keys, refused = map(int, told.split())
        ok(count == keys == refused and count > 20, "S3: each of %d objects was written once, and cannot be deleted" % count, told)


WAYS = [("rsync", Rsync), ("restic", Restic), ("rclone to WebDAV", Rclone), ("rclone to S3 with object lock", ObjectLock)]


def new_bytes(backup, known):
    """Of the files that no earlier backup has; of an increment, what was written."""
    changed = 0
    with open(backup + "/backup.json") as file:
        written = {part["file"]: part for part in json.load(file)["pact"] if part["method"] == "increment"}
    for path, _, names in os.walk(backup):
        for name in names:
            meta = os.lstat(os.path.join(path, name))
            if meta.st_ino not in known:
                known.add(meta.st_ino)
                part = written.get(name)
                changed += part["written_bytes"] if part else meta.st_size
    return changed


def week(way, build, method, days, top):
    work = tempfile.mkdtemp(dir=top)
    network, node, backups = Network("off-host"), work + "/node", work + "/backups"
    os.mkdir(backups)
    try:
        storage = build(work, network)
        with open(work + "/config.yaml", "w") as file:
            json.dump({"backup": {"hooks": {"afterSuccess": storage.hook}}}, file)
        known, rows, made, heights = set(), [], [], {}
        for day in range(days):
            must(DEMO, "--database-directory", node, "--chains", "3", "--fill", "30000000", "--write-buffer-bytes", "1000000", "--blocks",
                 "60" if day == 0 else "24", "--rate", "0", "--delay-ms", "0", "--exit-when-done", "--disable-backup-api", "--service-port", "0")
            before_sent, before_stored = network.sent_bytes(), storage.bytes()
            before_sent = network.sent_bytes()
            ran = run(*network.prefix, PROGRAM, "make", "--config-file", work + "/config.yaml", "--database-directory", node, "--backup-directory", backups,
                      "--backup-pact", "--pact-method", method, "--reserve-bytes", "0", "--log-level", "warn")
            sent = network.sent_bytes() - before_sent
            id = ran.stdout.strip()
            ok(ran.returncode == 0, "%s, %s, day %d" % (way, method, day), ran.stderr)
            made.append(id)
            told = run(DEMO, "verify", node)
            heights[id] = told.stdout.replace(node, "")
            rows.append((new_bytes("%s/%s" % (backups, id), known), sent, storage.bytes() - before_stored))
        back = work + "/back"
        os.mkdir(back)
        for id in made:
            storage.bring_back(id, back)
            to = "%s/restored-%s" % (work, id)
            ran = run(PROGRAM, "restore", "--backup-directory", back, id, "--to", to, "--log-level", "error")
            told = run(DEMO, "verify", to)
            ok(ran.returncode == told.returncode == 0 and told.stdout.replace(to, "") == heights[id],
               "%s, %s: %s comes back as its own day" % (way, method, id), ran.stderr, told.stdout, told.stderr)
        started = run(DEMO, "--database-directory", to, "--blocks", "3", "--rate", "0", "--exit-when-done", "--disable-backup-api", "--service-port", "0")
        ok(started.returncode == 0 and run(DEMO, "verify", to).returncode == 0, "%s, %s: a node starts from the last one" % (way, method), started.stderr)
        if hasattr(storage, "check"):
            storage.check()
        whole = size("%s/%s" % (backups, made[-1]))
        later = [sum(row[n] for row in rows[1:]) / max(1, days - 1) for n in range(3)]
        return "%-30s %-6s %8.1f %10.1f %10.1f %10.1f" % (way, method, whole / 1e6, *(bytes / 1e6 for bytes in later))
    finally:
        network.end()


def main(days):
    top = tempfile.mkdtemp(prefix="chainweb-backup-off-host.")
    image, table = top + ".img", []
    must("truncate", "-s", "8G", image)
    must("mkfs.xfs", "-q", image)
    must("mount", "-o", "loop", image, top)
    try:
        weeks(days, top, table)
    finally:
        run("umount", top)
        os.rmdir(top)
        os.unlink(image)
    print("# MB, means of the days after the first\n# %-30s %-6s %8s %10s %10s %10s" % ("way", "method", "backup", "changed", "sent", "stored"))
    for line in table:
        print("# " + line)
    print("1..%d" % number)
    sys.exit(1 if failed else 0)


def weeks(days, top, table):
    for way, build in WAYS:
        if way not in os.environ.get("WAYS", way):
            continue
        if build is ObjectLock and not shutil.which("moto_server"):
            print("ok - # SKIP %s: there is no moto_server" % way)
            continue
        for method in ("auto", "delta"):
            table.append(week(way, build, method, days, top))


if __name__ == "__main__":
    if len(sys.argv) < 2 or os.geteuid() != 0:
        sys.exit("off_host.py BIN [DAYS], as root")
    # What this host says of other storages is none of ours.
    for name in [name for name in os.environ if name.startswith(("AWS_", "RCLONE_", "RESTIC_"))]:
        del os.environ[name]
    PROGRAM, DEMO = (os.path.join(sys.argv[1], name) for name in ("chainweb-backup", "demo-node"))
    main(int(sys.argv[2]) if len(sys.argv) > 2 else 7)
