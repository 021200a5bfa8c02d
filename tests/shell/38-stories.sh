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

# block FILE LANGUAGE N: the N-th block of that language; of sh, only those to be run.
block() {
  awk -v language="$2" -v wanted="$3" '
    /^```/ && inside { inside = 0; next }
    $0 == "```" language { n += language != "sh" || marked; inside = 1; shown = (language != "sh" || marked) && n == wanted; next }
    /^```/ { inside = 1; shown = 0; next }
    { marked = $0 == "<!-- test -->" }
    inside && shown { print }' "$1"
}

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
    -e "s#~/\.cache/chainweb-backup#${BIN%/release}#"
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
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir bin units
ln -s "$ROOT/scripts" scripts
ln -s "$ROOT" chainweb-backup
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
  printf 'set -eu\ncd "%s"\n' "$DIR" >session
  while block "$page" sh "$n" | here >commands && [ -s commands ]; do
    { printf 'exec >"%s/said.%d" 2>&1\n' "$DIR" "$n" ; cat "before.$n" 2>/dev/null; cat commands; printf 'echo %d >"%s/reached"\n' "$n" "$DIR"; } >>session
    n=$((n + 1))
  done
  : >reached
  status "$1: its commands" 0 sh session
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
echo "exec demo-node --database-directory '$database' --fill 20000000 --write-buffer-bytes 1000000 --rate 5 --disable-backup-api \"\$@\"" >units/chainweb-node
unit start chainweb-node
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
rm -rf var etc usr srv units/*
end
