#!/bin/sh
# The stories of the manual, as one pastes them into one terminal, block after block: beside a node on one disk; beside a node in a
# container, with a disk for backups; from `cargo new` to a node that embeds the library. Each ends with a restore from which a node
# starts. A line that a page shows as output must be in the output, except for numbers.
# Each story has a host of its own below the directory of this test: /var, /etc, /usr/local, /srv, /mnt, /data and /backup of the page
# are there. The node is demo-node. sudo, systemctl, docker, ssh and sendmail are the short programs below, which do what the story
# needs of them: units and containers are real processes, a container has mounts and a PID namespace of its own. No image is fetched
# and no daemon is needed; what counts is the layout.
. "$(dirname -- "$0")/lib.sh"
manual=$ROOT/src/manual

# shown FILE N: the output that the page shows for the N-th block that is to be run: the block of text that follows it.
shown() {
  awk -v wanted="$2" '
    /^```/ && inside { inside = 0; next }
    /^```sh$/ { n += marked; inside = 1; shown = 0; next }
    /^```text$/ { inside = 1; shown = n == wanted; next }
    /^```/ { inside = 1; shown = 0; next }
    { marked = $0 == "<!-- test -->" }
    inside && shown { print }' "$1"
}

# here: commands from the standard input, with the directories of this host, and the ports of this test.
here() {
  sed -E -e "s#(^|[] =:@'\"[])/(var|etc|usr/local|srv|mnt|data|backup)([/: '\"]|\$)#\1$DIR/\2\3#g" \
    -e "s#127\.0\.0\.1:1849#\$(cat '$DIR/units/chainweb-backup.address')#g; s#127\.0\.0\.1:1848#127.0.0.1:$port#g" \
    -e "s#~/\.cache/chainweb-backup#${BIN%/release}#; s#\.\./chainweb-backup#$ROOT#"
}

# plain: a line without its numbers, and without the directories of this host.
plain() {
  sed -E -e "s#$DIR##g; s/[0-9]+(\.[0-9]+)?/0/g; s/0 [KMGT]iB/0 MiB/g; s/0 (min|h) ago/0 s ago/; s/at blocks? 0(-0)?/at block 0/; s/ +/ /g"
}

# program NAME: a program of the host, from the standard input; $H in it is this directory.
program() {
  { printf '#!/bin/sh\nset -eu\nH=%s\n' "$DIR" && cat; } >"bin/$1" && chmod 755 "bin/$1"
}

for tool in python3 rsync unshare; do
  command -v "$tool" >/dev/null || { echo "1..0 # SKIP there is no $tool" && exit 0; }
done
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free_port)
mkdir bin units
ln -s "$ROOT/scripts" scripts
PATH=$DIR/bin:$DIR/usr/local/bin:$PATH
export PATH
trap 'ended=$?; for at in units/*.pid; do [ ! -e "$at" ] || unit stop "$(basename "$at" .pid)"; done; (exit "$ended"); leave' EXIT

program sudo <<'END'
[ "$1" != -u ] || shift 2
exec "$@"
END
program ssh <<'END'
for word in "$@"; do
  shift
  case $word in *other-host) exec sh -c "$*" ;; esac
done
exit 255
END
program sendmail <<'END'
cat >"$H/mail"
END
# unit start|stop NAME: a process for the command in units/NAME. It has started when its address is written, and ended when it is gone.
program unit <<'END'
lives() { case $(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) in '' | Z) return 1 ;; esac; }
at=$H/units/$2
cd "$H"
case $1 in
  start)
    rm -f "$at.address"
    setsid sh "$at" --service-port 0 --address-file "$at.address" >"$at.log" 2>&1 </dev/null &
    echo $! >"$at.pid"
    until [ -s "$at.address" ]; do
      lives $! || { cat "$at.log" && exit 1; }
      sleep 0.05
    done
    ;;
  stop)
    [ -e "$at.pid" ] || exit 0
    read -r pid <"$at.pid"
    # Of a container its first process, which unshare has started.
    for child in $(cat "/proc/$pid/task/$pid/children" 2>/dev/null); do pid=$child; done
    kill -TERM "$pid" 2>/dev/null || :
    while lives "$pid"; do sleep 0.05; done
    rm -f "$at.pid"
    ;;
esac
END
# systemctl [OPTION...] WORD [OPTION...] UNIT.service
program systemctl <<'END'
word=$1
for name in "$@"; do :; done
name=${name%.service}
case $word in
  stop) exec unit stop "$name" ;;
  restart) unit stop "$name" ;;
esac
file=$H/etc/systemd/system/$name.service
[ ! -e "$file" ] || sed -n "s#^ExecStart=\(.*\)#exec $H\1 \"\$@\"#p" "$file" | sed "s# /etc/# $H/etc/#" >"$H/units/$name"
unit start "$name"
END
# docker run [-d --name NAME] [--rm] [-v FROM:TO[:ro]]... IMAGE COMMAND..., docker start NAME, docker stop NAME: processes with mounts and
# a PID namespace of their own. Of the image nothing is used.
program docker <<'END'
word=$1
shift
case $word in start | stop) exec unit "$word" "$1" ;; esac
name='' binds='set -e;'
while :; do
  case $1 in
    -d | --rm) shift ;;
    --name) name=$2 && shift 2 ;;
    -v)
      from=${2%%:*} to=${2#*:} to=${to%%:*}
      [ ! -d "$from" ] || mkdir -p "$to"
      binds="$binds mount --bind $from $to;"
      shift 2
      ;;
    *) break ;;
  esac
done
shift
in="unshare --mount --pid --fork --mount-proc --kill-child sh -c"
[ -n "$name" ] || exec $in "$binds exec \"\$@\"" container "$@"
printf "exec %s '%s exec \"\$@\"' container %s \"\$@\"\n" "$in" "$binds" "$*" >"$H/units/$name"
unit start "$name"
END

# story PAGE: runs its blocks in one shell, and compares what it shows. Before the N-th block the test's own file before.N is run.
story() {
  page=$manual/$1.md n=1
  printf 'set -eu\ncd "%s"\ntrap "kill \${!:-} 2>/dev/null || :" EXIT\n' "$DIR" >session
  while block "$page" sh "$n" | here >commands && [ -s commands ]; do
    { printf 'exec >"%s/said.%d" 2>&1\n' "$DIR" "$n" ; cat "before.$n" 2>/dev/null; cat commands; printf 'echo %d >"%s/reached"\n' "$n" "$DIR"; } >>session
    n=$((n + 1))
  done
  : >reached
  got=0
  timeout --foreground 800 sh session </dev/null || got=$?
  is "$1: its commands" "$got" 0
  is "$1: all $((n - 1)) blocks" "$(cat reached)" "$((n - 1))"
  [ "$got" -eq 0 ] || sed 's/^/# /' "said.$(($(cat reached) + 1))"
  is "$1: its blocks are those with the mark" "$(grep -c '^<!-- test -->$' "$page")" "$((n - 1))"
  while [ "$n" -gt 1 ]; do
    n=$((n - 1))
    plain <"said.$n" >plainly
    shown "$page" "$n" | plain >lines
    while read -r line; do
      has "$1, block $n: $line" plainly "$line"
    done <lines
  done
  rm -f before.*
}

# A node on one disk.
database=$DIR/var/lib/chainweb-node/mainnet01
sh scripts/install.sh --root "$DIR" --database-directory "$database" --backup-directory "$database/backups" >install.log
mkdir -p "$DIR/srv/chainweb"
the_node() {
  echo "exec demo-node --database-directory '$database' --fill 20000000 --write-buffer-bytes 1000000 --rate 5 --disable-backup-api \"\$@\"" >units/chainweb-node
  unit start chainweb-node
}
the_node
cat >before.7 <<END
unit stop chainweb-node
unit stop chainweb-backup
demo-node verify '$database' >verified
ls '$database' >names
rm -rf '$database'
END
story one-disk
has 'the alarm was sent' mail 'FAILED'
has 'the node on the restored database has a whole history' verified 'ok'
check 'the old database was kept' grep -q '^0.bak-' names
unit stop chainweb-node
status 'so has that from the other host' 0 demo-node verify "$database"
clear() { rm -rf var etc usr srv mnt data backup units/*; }
clear

# A node in a container: a volume at `0`, and a disk for backups. The repository of restic is a directory.
in_container() {
  [ "$(id -u)" -eq 0 ] || { skip container 'only root can mount' && return; }
  command -v restic >/dev/null || { skip container 'there is no restic' && return; }
  mkdir -p srv/chainweb/0 backup mnt/nas
  { truncate -s 400M volume.img && mkfs.ext4 -q volume.img && mount -o loop volume.img srv/chainweb/0 && mount -t tmpfs tmpfs backup; } >mount.log 2>&1 ||
    { skip container "nothing can be mounted: $(tail -n 1 mount.log)" && return; }
  mounts="$DIR/backup $DIR/srv/chainweb/0"
  unshare --mount --pid --fork true 2>mount.log || { skip container "there are no namespaces: $(tail -n 1 mount.log)" && return; }
  sh scripts/install.sh --root "$DIR" --user root --database-directory "$DIR/srv/chainweb" --backup-directory "$DIR/backup" >install.log
  docker run -d --name chainweb-node -v "$DIR/srv/chainweb/0:$DIR/data/chainweb-db/0" chainweb-node \
    demo-node --database-directory "$DIR/data/chainweb-db" --fill 20000000 --write-buffer-bytes 1000000 --rate 5 --disable-backup-api
  python3 - "$port" >receiver.log 2>&1 <<'END' &
import http.server, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        open("received", "ab").write(self.path.encode() + b" " + self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
END
  pids="$pids $!"
  printf "sed -i 's#https://hooks.example.org#http://127.0.0.1:%s#' '%s/etc/chainweb-backup/webhook'\n" "$port" "$DIR" >before.2
  # Both disks are lost, and the new ones are empty.
  cat >before.7 <<END
unit stop chainweb-node
demo-node verify srv/chainweb >verified
ls srv/chainweb/0/rocksDb/0.bak-*/CURRENT srv/chainweb/0/sqlite/0.bak-*/pact-v1-chain-0.sqlite >kept
rm -rf srv/chainweb/0/* backup/chainweb
END
  story container
  has 'the webhook got the message' received '/secret'
  has 'the node on the database that was exchanged has a whole history' verified ok
  is 'the old database was kept' "$(wc -l <kept)" 2
  unit stop chainweb-node
  unit stop chainweb-backup
  status 'so has the one from restic' 0 demo-node verify srv/chainweb
  status 'the backup by the container is whole' 0 demo-node verify "backup/chainweb/$(ls backup/chainweb | tail -n 1)"
}
in_container
unmount_all
clear

# Those who used the node's own API, and those who copied a stopped node. Of the old backups, the first has Pact from a later moment than
# RocksDB, as the node makes them; the second lacks RocksDB's WAL, as publishers make them.
sh scripts/install.sh --root "$DIR" --database-directory "$database" --backup-directory "$database/backups" >install.log
the_node
unit stop chainweb-node
theirs=$database/backups/1648665437000 old=$DIR/mnt/old/2026-11-01
mkdir -p "$theirs/0" "$old" backup srv
cp -a "$database/0/rocksDb" "$theirs/0/" && printf backup-done >"$theirs/status"
unit start chainweb-node
sleep 2
unit stop chainweb-node
cp -a "$database/0/sqlite" "$theirs/0/"
cp -a "$database/0" "$old/" && rm "$old"/0/rocksDb/*.log
unit start chainweb-node
systemctl start chainweb-backup.service
story from-api
status 'the backup that the script made is whole' 0 demo-node verify "$database/backups/$(ls "$database/backups" | tail -n 1)"
rm -rf srv/restored
story from-copying
unit stop chainweb-node
unit stop chainweb-backup
status 'so is the one that was made beside the old copies' 0 demo-node verify "$(ls -d backup/chainweb/*)"
clear

# A node that embeds the library. What the crate's own build has compiled is used, but for the library itself, the first time: less than a minute on two cores.
embedded() {
  command -v cargo >/dev/null || { skip embedding 'there is no cargo' && return; }
  ls "$BIN"/build/librocksdb-sys-*/output >/dev/null 2>&1 || { skip embedding "RocksDB would be compiled, there is none in $BIN" && return; }
  mkdir -p srv/chainweb usr/local/lib/chainweb-backup && cp scripts/hooks/rsync.sh usr/local/lib/chainweb-backup/
  port=$(free_port)
  block "$manual/embedding.md" rust,no_run 1 | here >main.rs
  echo 'cp ../main.rs src/' >before.2
  echo 'until [ -e "../srv/chainweb/$id/status" ]; do sleep 0.1; done' >before.3
  story embedding
  (cd small-node && CARGO_TARGET_DIR=${BIN%/release} cargo clean --quiet --release -p small-node)
  is 'its newest backup was copied' "$(ls srv/chainweb | tail -n 1)" "$(ls small-node/node/backups | tail -n 1)"
}
embedded
end
