#!/bin/sh
# The ready hooks, each run for real: rsync to a directory and to an rsync server, restic and its local repository, rclone and its backends for
# directories and for WebDAV, a webhook to an HTTP server, a mail to a sendmail that keeps it. From each copy a backup comes back, is
# verified deeply, and is whole for the node. At last the program runs all of them after one backup.
. "$(dirname -- "$0")/lib.sh"
hooks=$ROOT/scripts/hooks

# hook EVENT ID COMMAND [ARGUMENT...]: runs it as the program does, with its environment alone; leaves its output in said.
hook() {
  event=$1 of=$2
  shift 2
  env -i PATH="$PATH" CHAINWEB_BACKUP_EVENT="$event" CHAINWEB_BACKUP_ID="$of" CHAINWEB_BACKUP_DIRECTORY="$DIR/b" \
    CHAINWEB_BACKUP_PATH="$DIR/b/$of" CHAINWEB_BACKUP_STATUS="$(cat "b/$of/status")" CHAINWEB_BACKUP_SCOPE=rocksdb,pact \
    CHAINWEB_BACKUP_REASON="${reason:-}" CHAINWEB_BACKUP_FAULTS="${faults:-0}" sh -c 'cd / && exec "$@"' hook "$@" <record >said 2>&1
}
# whole BACKUPS ID: whether the backup is good, and whole for the node.
whole() {
  chainweb-backup verify --backup-directory "$1" "$2" --deep >verified 2>&1 && demo-node verify --expect-chains 3 "$1/$2" >verified 2>&1 && return
  sed 's/^/# /' verified
  return 1
}
# starts BACKUPS: whether the newest backup there is restored, and the restored database is whole.
starts() {
  rm -rf restored
  chainweb-backup restore --backup-directory "$1" latest --to restored >verified 2>&1 && demo-node verify --expect-chains 3 restored >verified 2>&1 &&
    return
  sed 's/^/# /' verified
  return 1
}
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# listens PORT: waits until a server accepts connections.
listens() {
  tries=0
  until curl -s --max-time 1 -o /dev/null "http://127.0.0.1:$1/" || [ $? -ne 7 ] || [ "$tries" -ge 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
  done
}
# bytes DIRECTORY...: of its files, each counted once.
bytes() { find "$@" -type f -printf '%D:%i %s\n' | sort -u | awk '{ sum += $2 } END { printf "%d", sum }'; }
make() {
  chainweb-backup make --database-directory db --backup-directory b --backup-pact --log-level error "$@" >out 2>err
  id=$(cat out)
}

# inodes ID: of its SSTs.
inodes() { find "b/$1/0/rocksDb" -name '*.sst' -printf '%i\n' | sort; }

node db --chains 3 --fill 6000000 --write-buffer-bytes 500000
make
first=$id shared=0
# RocksDB may have compacted all SSTs meanwhile: then there are others, which the next backup shares.
for _ in 1 2 3 4 5; do
  node db --write-buffer-bytes 500000
  make
  second=$id
  inodes "$first" >inodes
  shared=$(inodes "$second" | comm -12 - inodes | wc -l)
  [ "$shared" -eq 0 ] || break
  chainweb-backup delete --backup-directory b "$first"
  first=$second
done
make --reserve-bytes 900TB
failed=$id
is 'there are two backups, and one that failed' "$(cat "b/$first/status" "b/$second/status" "b/$failed/status")" \
  backup-donebackup-donebackup-failed
chainweb-backup list --backup-directory b --json >record
check 'they share SSTs' [ "$shared" -gt 0 ]
new_bytes=$(($(bytes "b/$first" "b/$second") - $(bytes "b/$first")))
echo "# the second backup has $(bytes "b/$second") bytes, $new_bytes of them new"

# rsync.
# copies_by_rsync NAME DIRECTORY DESTINATION
copies_by_rsync() {
  status "rsync to $1" 0 hook after-success "$first" "$hooks/rsync.sh" "$3"
  has 'it says so' said "copied $first to"
  check 'the first copy is whole' whole "$2" "$first"
  chainweb-backup sum --backup-directory b "$first" >sums 2>&1
  status 'the second backup' 0 hook after-success "$second" "$hooks/rsync.sh" "$3"
  has 'it is linked with the first' said "with links to $first"
  stored=$(($(bytes "$2") - $(bytes "$2/$first")))
  echo "# by rsync to $1: $stored bytes for $new_bytes new ones"
  check 'no more is stored than what is new' [ "$stored" -le "$new_bytes" ]
  check 'it is whole' whole "$2" "$second"
  is 'the copies share the SSTs that the backups share' "$(find "$2/$second/0/rocksDb" -name '*.sst' -links +1 | wc -l)" "$shared"
  check 'the first copy has got the checksums that were written later' cmp "b/$first/0/rocksDb/BLAKE2SUMS" "$2/$first/0/rocksDb/BLAKE2SUMS"
  check 'a node starts from the copy' starts "$2"
  is 'no file of use here only is copied' "$(find "$2" -name '.*' | grep -vx "$2")" ''
  status 'once more is no error' 0 hook after-success "$second" "$hooks/rsync.sh" "$3"
}
if command -v rsync >/dev/null; then
  mkdir disk
  copies_by_rsync 'a directory' disk "$DIR/disk"
  # Two files of one size and of the same second, as of two backups that are made at once.
  mkdir second twins && cp -rp "b/$first" "b/$second" second
  touch -d @1700000000.5 "second/$second/0/rocksDb/CURRENT"
  printf 'MANIFEST-000001\n' >"second/$first/0/rocksDb/CURRENT" && touch -d @1700000000.25 "second/$first/0/rocksDb/CURRENT"
  for of in "$first" "$second"; do
    CHAINWEB_BACKUP_ID=$of CHAINWEB_BACKUP_DIRECTORY=$DIR/second CHAINWEB_BACKUP_STATUS=backup-done "$hooks/rsync.sh" "$DIR/twins" >said 2>&1
  done
  check 'a file of the same size and second is not taken for another one' cmp "b/$second/0/rocksDb/CURRENT" "twins/$second/0/rocksDb/CURRENT"
  # Damage of a backup here does not reach its copy there, whichever backup is copied next: a file is cut off, one has other bytes, and
  # at first nothing here has noticed it.
  mkdir hurt copies && cp -rp "b/$first" "b/$second" hurt
  of_hurt() {
    status "$1" 0 env CHAINWEB_BACKUP_ID="$2" CHAINWEB_BACKUP_DIRECTORY="$DIR/hurt" CHAINWEB_BACKUP_STATUS=backup-done "$hooks/rsync.sh" "$DIR/copies"
  }
  of_hurt 'the first backup' "$first"
  of_hurt 'the second backup' "$second"
  for of in "$first" "$second"; do
    truncate -s 100 "$(find "hurt/$of/0/rocksDb" -name '*.sst' | sort | head -n 1)"
    printf rotten | dd of="$(find "hurt/$of/0/sqlite" -name '*.sqlite' | sort | head -n 1)" bs=1 seek=5000 conv=notrunc 2>/dev/null
    printf 'MANIFEST-999999\n' >"hurt/$of/0/rocksDb/CURRENT"
  done
  cp -rp copies before
  of_hurt 'the older one once more' "$first"
  of_hurt 'the newer one once more' "$second"
  has 'it says that there is nothing to do' out "$second is in $DIR/copies already"
  for of in "$first" "$second"; do
    status 'the damage here is found' 13 chainweb-backup verify --backup-directory hurt "$of" --deep
    rm "hurt/$of/manifest.json"
  done
  of_hurt 'the older one again' "$first"
  of_hurt 'the newer one again' "$second"
  cp -rp "hurt/$second" hurt/9999999999999
  status 'a damaged backup that was not copied yet' 1 env CHAINWEB_BACKUP_ID=9999999999999 CHAINWEB_BACKUP_DIRECTORY="$DIR/hurt" \
    CHAINWEB_BACKUP_STATUS=backup-done "$hooks/rsync.sh" "$DIR/copies"
  has 'is refused' err 'is damaged: it is not copied'
  rm "hurt/9999999999999/verified.json"
  of_hurt 'a newer one' 9999999999999
  rm -r copies/9999999999999
  is 'the copies are as they were' "$(diff -r before copies)" ''
  for of in "$first" "$second"; do check 'the copy is whole' whole copies "$of"; done
  status 'prune works on the copies' 0 chainweb-backup prune --backup-directory disk --keep-last 1
  check 'the other one is whole then' whole disk "$second"
  mkdir slow
  status 'a copy that is interrupted' 124 hook after-success "$first" timeout 2 "$hooks/rsync.sh" "$DIR/slow" --bwlimit=100
  is 'is no backup' "$(chainweb-backup list --backup-directory slow | awk 'NR > 1')" ''
  status 'the run for the next backup' 0 hook after-success "$second" "$hooks/rsync.sh" "$DIR/slow"
  check 'completes it' whole slow "$first"
  check 'and copies the next one' whole slow "$second"
  status 'a destination that is missing' 1 hook after-success "$first" "$hooks/rsync.sh" "$DIR/none"
  has 'the message names it' said "cannot list $DIR/none"
  status 'a destination that is relative' 2 hook after-success "$first" "$hooks/rsync.sh" none
  status 'an option that would change other copies' 2 hook after-success "$first" "$hooks/rsync.sh" "$DIR/disk" --inplace
  status 'a backup that failed' 1 hook after-failure "$failed" "$hooks/rsync.sh" "$DIR/disk"
  has 'the message names the event' said 'use this for afterSuccess'
  faults=2
  status 'a backup that is damaged' 1 hook on-verified "$first" "$hooks/rsync.sh" "$DIR/disk"
  faults=0
  if port=$(free_port); then
    mkdir served
    {
      echo 'use chroot = no'
      [ "$(id -u)" -ne 0 ] || printf 'uid = 0\ngid = 0\n'
      printf '[backups]\npath = %s\nread only = no\n' "$DIR/served"
    } >rsyncd.conf
    rsync --daemon --no-detach --config=rsyncd.conf --address=127.0.0.1 --port="$port" >rsyncd.log 2>&1 </dev/null &
    pids="$pids $!" server=$!
    listens "$port"
    copies_by_rsync 'an rsync server' served "rsync://127.0.0.1:$port/backups"
    kill "$server" && wait "$server" 2>/dev/null
    status 'a server that is down' 1 hook after-success "$second" "$hooks/rsync.sh" "rsync://127.0.0.1:$port/backups"
  else
    skip 'rsync to an rsync server' 'there is no python3'
  fi
else
  skip 'the hook rsync.sh' 'there is no rsync'
fi

# restic.
if command -v restic >/dev/null; then
  echo secret >password
  status 'a repository that is missing' 1 hook after-success "$first" "$hooks/restic.sh" "$DIR/repository" "$DIR/password"
  has 'the message names the remedy' said 'make it with restic init'
  restic --repo repository --password-file password --no-cache init >restic.log 2>&1
  status 'restic' 0 hook after-success "$first" "$hooks/restic.sh" "$DIR/repository" "$DIR/password"
  before=$(bytes repository)
  status 'the second backup' 0 hook after-success "$second" "$hooks/restic.sh" "$DIR/repository" "$DIR/password"
  stored=$(($(bytes repository) - before))
  echo "# by restic: $stored bytes for $new_bytes new ones"
  check 'no more is stored than what is new, and lists' [ "$stored" -le "$((new_bytes + 200000))" ]
  mkdir unpacked
  for of in "$first" "$second"; do
    status "restic restores $of" 0 restic --repo repository --password-file password --no-cache --quiet restore --tag "id=$of" --target "unpacked/$of" latest
    check 'it is whole' whole unpacked "$of"
  done
  check 'a node starts from it' starts unpacked
  echo wrong >other
  status 'a wrong password' 1 hook after-success "$first" "$hooks/restic.sh" "$DIR/repository" "$DIR/other"
  # A backup that is damaged after it was stored takes no place of the good snapshot.
  rm -rf hurt "unpacked/$second" && mkdir hurt && cp -rp "b/$second" hurt
  truncate -s 100 "$(find "hurt/$second/0/rocksDb" -name '*.sst' | sort | head -n 1)"
  status 'a backup that is damaged here, once more' 0 env CHAINWEB_BACKUP_ID="$second" CHAINWEB_BACKUP_PATH="$DIR/hurt/$second" \
    CHAINWEB_BACKUP_STATUS=backup-done "$hooks/restic.sh" "$DIR/repository" "$DIR/password"
  has 'it says that there is nothing to do' out "$second is in $DIR/repository already"
  status 'restic restores it' 0 restic --repo repository --password-file password --no-cache --quiet restore --tag "id=$second" --target "unpacked/$second" latest
  check 'it is whole' whole unpacked "$second"
  restic --repo repository --password-file password --no-cache forget --tag chainweb-backup --group-by host --keep-last 1 --dry-run >forgotten 2>&1
  has 'forget counts all backups of a host together' forgotten 'remove 1 snapshots'
  # A snapshot that lacks a file is none: the next run stores the backup.
  if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
    mkdir other.home && cp -rp "b/$first" other.home && cp "$hooks/restic.sh" password other.home && chown -R 65534:65534 other.home && chmod 711 .
    as_other() {
      setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$DIR/other.home" CHAINWEB_BACKUP_ID="$first" \
        CHAINWEB_BACKUP_PATH="$DIR/other.home/$first" CHAINWEB_BACKUP_STATUS=backup-done "$@"
    }
    status 'a repository of another user' 0 as_other restic --quiet --repo "$DIR/other.home/r" --password-file "$DIR/other.home/password" init
    chown root "other.home/$first/0/rocksDb/CURRENT" && chmod 600 "other.home/$first/0/rocksDb/CURRENT"
    status 'a file that cannot be read' 1 as_other sh "$DIR/other.home/restic.sh" "$DIR/other.home/r" "$DIR/other.home/password"
    chmod 644 "other.home/$first/0/rocksDb/CURRENT"
    status 'the next run, in which it can be read' 0 as_other sh "$DIR/other.home/restic.sh" "$DIR/other.home/r" "$DIR/other.home/password"
    has 'stores the backup' out "stored $first in"
  else
    skip 'a file that this user cannot read' 'setpriv is missing, or this user is not root'
  fi
  status 'a backup that failed' 1 hook after-failure "$failed" "$hooks/restic.sh" "$DIR/repository" "$DIR/password"
else
  skip 'the hook restic.sh' 'there is no restic'
fi

# rclone.
# copies_by_rclone NAME DIRECTORY REMOTE
copies_by_rclone() {
  mkdir -p "$2" "$2.state" "$2.back"
  remote=$3
  status "rclone to $1" 0 hook after-success "$first" "$hooks/rclone.sh" "$remote" "$DIR/$2.state" --config="$DIR/rclone.conf"
  find "$2" -type f -printf '%i %s %p\n' | sort >once
  status 'the second backup' 0 hook after-success "$second" "$hooks/rclone.sh" "$remote" "$DIR/$2.state" --config="$DIR/rclone.conf"
  find "$2" -type f -printf '%i %s %p\n' | sort | comm -13 - once >changed
  is 'nothing that was stored is written again' "$(cat changed)" ''
  find "b/$first" "b/$second" -type f ! -name '.*' -exec b2sum {} + | cut -d ' ' -f 1 | sort -u >contents
  is 'each content is stored once' "$(find "$2/objects" -type f | wc -l)" "$(wc -l <contents)"
  for of in "$first" "$second"; do
    status "it brings $of back" 0 "$hooks/rclone-restore.sh" "$remote" "$of" "$2.back" --config="$DIR/rclone.conf"
    is 'modes and times are those of the backup' "$(cd "$2.back/$of" && find . -mindepth 1 -printf '%m %T@ %p\n' | sort)" \
      "$(cd "b/$of" && find . -mindepth 1 ! -name '.*' -printf '%m %T@ %p\n' | sort)"
    check 'it is whole' whole "$2.back" "$of"
  done
  check 'a node starts from it' starts "$2.back"
}
if command -v rclone >/dev/null; then
  printf '[disk]\ntype = local\n' >rclone.conf
  copies_by_rclone 'a directory' plain "disk:$DIR/plain"
  # Damage of a backup here does not reach what is stored: bytes that are lost, and bytes that have rotted without a trace.
  rm -rf hurt before && mkdir hurt && cp -rp "b/$second" hurt && cp -rp plain before
  hurt=$(find "hurt/$second/0/rocksDb" -name '*.sst' | sort | head -n 1)
  cp -p "$hurt" hurt.time
  for damage in lost rotten; do
    if [ "$damage" = lost ]; then
      truncate -s 100 "$hurt"
    else
      cp -p hurt.time "$hurt" && printf rotten | dd of="$hurt" bs=1 seek=50 conv=notrunc 2>/dev/null && touch -r hurt.time "$hurt"
    fi
    status "a backup with bytes that are $damage here, once more" 0 env CHAINWEB_BACKUP_ID="$second" CHAINWEB_BACKUP_PATH="$DIR/hurt/$second" \
      CHAINWEB_BACKUP_STATUS=backup-done "$hooks/rclone.sh" "disk:$DIR/plain" "$DIR/plain.state" --config="$DIR/rclone.conf"
    is 'what is stored is as it was' "$(diff -r before plain | grep -v '^Only in plain/objects: ')" ''
  done
  rm -rf plain && mv before plain
  # A broken upload, and rot, on a storage that permits them.
  object=$(grep '\.sst$' "plain/$second.b2sums" | head -n 1 | cut -c 1-64)
  cp "plain/objects/$object" kept
  truncate -s 100 "plain/objects/$object"
  status 'after a broken upload' 0 hook after-success "$second" "$hooks/rclone.sh" "disk:$DIR/plain" "$DIR/plain.state" --config="$DIR/rclone.conf"
  check 'the object is written again' cmp kept "plain/objects/$object"
  printf rotten | dd of="plain/objects/$object" bs=1 seek=100 conv=notrunc 2>/dev/null
  rm -rf plain.back/*
  status 'a rotten object' 1 "$hooks/rclone-restore.sh" "disk:$DIR/plain" latest plain.back --config=rclone.conf
  has 'is found' err 'are damaged in'
  is 'and nothing is left' "$(ls -A plain.back)" ''
  cat kept >"plain/objects/$object"
  rm "plain/$second.b2sums"
  status 'of two copies the complete one' 1 "$hooks/rclone-restore.sh" "disk:$DIR/plain" "$second" plain.back --config=rclone.conf
  has 'is the only one' err "there is no complete backup $second"
  # Lists that are cut, or missing.
  rclone_hook() { hook after-success "$second" "$hooks/rclone.sh" "disk:$DIR/plain" "$DIR/plain.state" --config="$DIR/rclone.conf"; }
  status 'the copy is completed' 0 rclone_hook
  cp "plain/$second.tree" kept.tree
  cp "plain/$second.b2sums" kept.b2sums
  for damage in ": >plain/$second.b2sums" "rm plain/$second.tree" "head -n 6 kept.b2sums >plain/$second.b2sums" \
    "sed '\$d' kept.tree >plain/$second.tree"; do
    eval "$damage"
    status "after $damage" 1 "$hooks/rclone-restore.sh" "disk:$DIR/plain" "$second" plain.back --config=rclone.conf
    is 'nothing is brought back' "$(ls -A plain.back)" ''
    status 'the hook stores the lists again' 0 rclone_hook
    check 'both' cmp kept.tree "plain/$second.tree"
    check 'are whole' cmp kept.b2sums "plain/$second.b2sums"
  done
  status 'a state directory that is missing' 1 hook after-success "$first" "$hooks/rclone.sh" "disk:$DIR/plain" "$DIR/none" --config="$DIR/rclone.conf"
  status 'a remote that is unknown' 1 hook after-success "$first" "$hooks/rclone.sh" nowhere:x "$DIR/plain.state" --config="$DIR/rclone.conf"
  if port=$(free_port); then
    mkdir dav
    rclone --config rclone.conf serve webdav dav --addr "127.0.0.1:$port" >dav.log 2>&1 </dev/null &
    pids="$pids $!" server=$!
    listens "$port"
    printf '[dav]\ntype = webdav\nurl = http://127.0.0.1:%s\nvendor = other\n' "$port" >>rclone.conf
    copies_by_rclone 'WebDAV' dav dav:
    kill "$server" && wait "$server" 2>/dev/null
  else
    skip 'rclone to WebDAV' 'there is no python3'
  fi
else
  skip 'the hook rclone.sh' 'there is no rclone'
fi

# A webhook.
cat >receiver.py <<'END'
import http.server, sys

class Receiver(http.server.BaseHTTPRequestHandler):
    count = 0

    def do_POST(self):
        Receiver.count += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open("received", "ab") as file:
            file.write(f"{self.path} {self.headers['X-Chainweb-Backup-Event']} {self.headers['X-Chainweb-Backup-Id']} ".encode() + body + b"\n")
        self.send_response(503 if Receiver.count == 1 else 404 if self.path == "/none" else 200)
        self.end_headers()

    def log_message(self, *args):
        pass

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
END
if port=$(free_port); then
  python3 receiver.py "$port" >receiver.log 2>&1 </dev/null &
  pids="$pids $!" server=$!
  listens "$port"
  status 'a webhook to a busy server' 0 hook after-success "$first" "$hooks/webhook.sh" "http://127.0.0.1:$port/hook"
  is 'is sent once more' "$(grep -c "^/hook after-success $first \[" received)" 2
  has 'with the record' received "\"id\": \"$first\""
  echo "http://127.0.0.1:$port/secret" >url
  status 'an address in a file' 0 hook after-failure "$failed" "$hooks/webhook.sh" "@$DIR/url"
  check 'is used' grep -q "^/secret after-failure $failed " received
  check 'and not printed' [ "$(grep -c secret said)" -eq 0 ]
  status 'an address that is wrong' 1 hook after-success "$first" "$hooks/webhook.sh" "http://127.0.0.1:$port/none"
  status 'an address that is none' 1 hook after-success "$first" "$hooks/webhook.sh" 'file:///etc/passwd'
else
  skip 'the hook webhook.sh' 'there is no python3'
fi

# A mail.
mkdir bin
printf '#!/bin/sh\nprintf "%%s\\n" "$@" >%s/arguments && cat >%s/mail\n' "$DIR" "$DIR" >bin/sendmail
chmod +x bin/sendmail
PATH=$DIR/bin:$PATH
reason=$(printf 'the disk says\nBcc: other@example.org')
status 'a mail' 0 hook after-failure "$failed" "$hooks/mail.sh" ops@example.org second@example.org
reason=''
is 'goes to both' "$(tail -n 2 arguments | tr '\n' ' ')" 'ops@example.org second@example.org '
has 'says what happened' mail "backup $failed FAILED"
has 'and why' mail 'Reason: the disk says'
is 'the reason is no header' "$(sed '/^$/,$d' mail | grep -c Bcc)" 0
has 'the record is in it' mail "\"$failed\""
check 'no line is too long for a mail' [ "$(awk 'length > 998' mail | wc -l)" -eq 0 ]
status 'an option in place of an address' 2 hook after-failure "$failed" "$hooks/mail.sh" -bs
printf '#!/bin/sh\ncat >/dev/null\nexit 75\n' >bin/sendmail
status 'a sendmail that fails' 1 hook after-failure "$failed" "$hooks/mail.sh" ops@example.org

# The program runs them: after a backup all that copy it, after one that failed the mail.
printf '#!/bin/sh\ncat >%s/mail\n' "$DIR" >bin/sendmail
set -- "[/usr/bin/env, 'PATH=$PATH', $hooks/mail.sh, ops@example.org]"
if command -v rsync >/dev/null && command -v restic >/dev/null && command -v rclone >/dev/null; then
  set -- "$@" "[$hooks/rsync.sh, $DIR/disk]" "[$hooks/restic.sh, $DIR/repository, $DIR/password]" \
    "[$hooks/rclone.sh, 'disk:$DIR/plain', $DIR/plain.state, --config=$DIR/rclone.conf]"
fi
{
  printf 'databaseDirectory: %s\nbackup:\n  directory: %s\n  hooks:\n    limitSeconds: 120\n' "$DIR/db" "$DIR/b"
  printf "    afterFailure: [/usr/bin/env, 'PATH=%s', %s, ops@example.org]\n    afterSuccess:\n" "$PATH" "$hooks/mail.sh"
  printf '      - %s\n' "$@"
} >hooks.yaml
# The second one has delta pairs: an old file, a WAL, and an empty directory that guards them.
for round in copy pair; do
  node db
  rm -f mail
  status "the program makes a backup with these hooks, $round" 0 chainweb-backup make --config-file hooks.yaml --backup-pact --pact-method delta --log-level error
  made=$(cat out)
  sed 's/^/# /' err
  has 'the mail was sent' mail "backup $made done"
  if [ "$#" -eq 1 ]; then
    skip 'the copies that the program has made' 'rsync, restic or rclone is missing'
    continue
  fi
  check 'rsync has the copy' whole disk "$made"
  status 'restic has it' 0 restic --repo repository --password-file password --no-cache --quiet restore --tag "id=$made" --target "unpacked/$made" latest
  check 'it is whole' whole unpacked "$made"
  status 'rclone has it' 0 "$hooks/rclone-restore.sh" "disk:$DIR/plain" "$made" plain.back --config=rclone.conf
  check 'it is whole' whole plain.back "$made"
done
check 'it has the directory that guards a pair' [ -d "b/$made/0/sqlite/pact-v1-chain-0.sqlite-shm" ]
if [ "$#" -gt 1 ]; then
  for copies in disk unpacked plain.back; do
    check "so has the copy in $copies" [ -d "$copies/$made/0/sqlite/pact-v1-chain-0.sqlite-shm" ]
    check 'a node starts from it' starts "$copies"
  done
  is 'the copies by rsync share the old file' "$(stat -c %h "disk/$made/0/sqlite/pact-v1-chain-0.sqlite")" 2
fi
rm -f mail
status 'and one that fails' 12 chainweb-backup make --config-file hooks.yaml --backup-pact --log-level error --reserve-bytes 900TB
has 'the mail says it' mail "backup $(cat out) FAILED"
has 'and why' mail 'Reason: not enough space'
[ ! -d disk ] || mv disk gone
status 'the backup is good and a copy fails' "$([ "$#" -gt 1 ] && echo 16 || echo 0)" \
  chainweb-backup make --config-file hooks.yaml --backup-pact --log-level error
chainweb-backup list --backup-directory b --json >record
[ "$#" -eq 1 ] || has 'the record says where' record "cannot list $DIR/disk"
end
