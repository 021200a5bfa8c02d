# Sourced by each shell test. A test prints TAP, and runs in a directory of its own, which is kept and named if a check fails. Programs
# get port 0 and an address file, and are never part of a pipe. Needs a POSIX sh and curl.

set -u
export LC_ALL=C
: "${ROOT:=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)}"
: "${BIN:=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/chainweb-backup}/release}"
PATH=$BIN:$PATH
DIR=$(mktemp -d "${TMPDIR:-/tmp}/chainweb-backup-test.XXXXXX")
cd "$DIR" || exit 1
SHM=''    # a second directory, where a test needs one on another file system
mounts='' # the directories on which something is, or may be, mounted, the newest first
unset BACKUP_DIR ENABLE_BACKUP_API
count=0 bad=0 pids=''

leave() {
  leave_status=$?
  for pid in $pids; do kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
  unmount_all
  [ "$leave_status" -ne 0 ] || { cd / && rm -rf "$DIR" "$SHM"; }
  [ "$leave_status" -eq 0 ] || echo "# failed; everything is kept in $DIR $SHM"
}
trap leave EXIT
trap 'exit 130' INT TERM

# unmount_all: unmounts the directories in $mounts. It does not ask mountpoint first: for an xfs that was shut down that is EIO.
unmount_all() {
  for mounted_at in $mounts; do umount "$mounted_at" 2>/dev/null || umount -l "$mounted_at" 2>/dev/null; done
  mounts=''
}

# end: prints the plan of TAP, at the end of a test.
end() {
  echo "1..$count"
  exit "$((bad > 0))"
}

# check NAME COMMAND...: passes if the command succeeds.
check() {
  name=$1 count=$((count + 1))
  shift
  if "$@"; then echo "ok $count - $name"; else bad=$((bad + 1)) && echo "not ok $count - $name"; fi
}

# is NAME GOT WANTED
is() {
  check "$1" [ "$2" = "$3" ]
  [ "$2" = "$3" ] || printf '#  got: %s\n# want: %s\n' "$2" "$3"
}

# has NAME FILE TEXT: passes if a line of the file has the text.
has() {
  check "$1" grep -qF -- "$3" "$2"
  grep -qF -- "$3" "$2" || { echo "# no '$3' in $2:" && head -n 5 "$2" | sed 's/^/#   /'; }
}

skip() {
  count=$((count + 1))
  echo "ok $count - $1 # SKIP $2"
}

# status NAME WANTED COMMAND...: passes if that is its exit code; its output is in the files out and err. A program that hangs is ended,
# with 124.
status() {
  name=$1 wanted=$2 got=0
  shift 2
  # In the foreground, so that it stays in the process group of this test, which the runner ends.
  case $(command -v "$1") in /*) set -- timeout --foreground 300 "$@" ;; esac
  "$@" >out 2>err </dev/null || got=$?
  is "$name" "$got" "$wanted"
}

# start LOG COMMAND...: starts it in the background, and waits for the file `address`; leaves $pid and $address.
start() {
  log=$1
  shift
  rm -f address
  "$@" --service-port 0 --address-file address >"$log" 2>&1 </dev/null &
  pid=$! pids="$pids $!"
  tries=0
  until [ -s address ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 6000 ] || ! kill -0 "$pid" 2>/dev/null; then
      echo "Bail out! $1 did not start: $(tail -n 1 "$log")"
      exit 1
    fi
    sleep 0.01
  done
  address=$(cat address)
}

# stop SIGNAL: ends the program that was started last; leaves $got.
stop() {
  kill "-$1" "$pid" 2>/dev/null
  got=0
  wait "$pid" 2>/dev/null || got=$?
  pids=${pids% "$pid"}
}

# http METHOD PATH [CURL ARGUMENT...]: leaves $code and the files head and body.
http() {
  method=$1 path=$2
  shift 2
  case $method in HEAD) set -- "$@" -I -o /dev/null ;; *) set -- "$@" -X "$method" -o body ;; esac
  : >head
  : >body
  code=$(curl -sS --path-as-is --max-time 20 -D head -w '%{http_code}' "$@" "http://$address$path" 2>curl.err) ||
    code="curl failed: $(cat curl.err)"
}

# await ID: waits until its job has ended; leaves $word.
await() {
  tries=0
  while http GET "/check-backup/$1" && word=$(cat body) && [ "$code $word" = '200 backup-in-progress' ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 3000 ] || break
    sleep 0.02
  done
}

# backup [QUERY]: makes a backup by curl and waits for it; leaves $id and $word.
backup() {
  http POST "/make-backup${1:-}"
  id=$(cat body)
  await "$id"
}

# fractions N SEED: N random numbers from 0 to 1, one a line.
fractions() {
  awk -v n="$1" -v seed="$2" 'BEGIN { srand(seed); rand(); while (n--) printf "%.6f\n", rand() }'
}

# node DIRECTORY [FLAG...]: makes the database of a stopped node with a history.
node() {
  directory=$1
  shift
  demo-node --database-directory "$directory" --blocks 20 --rate 0 --delay-ms 0 --exit-when-done --disable-backup-api \
    --service-port 0 "$@" >"$directory.log" 2>&1 </dev/null && return
  echo "Bail out! demo-node failed, see $DIR/$directory.log"
  exit 1
}

# block FILE LANGUAGE N: the N-th block of that language; of sh, only those to be run.
block() {
  awk -v language="$2" -v wanted="$3" '
    /^```/ && inside { inside = 0; next }
    $0 == "```" language { n += language != "sh" || marked; inside = 1; shown = (language != "sh" || marked) && n == wanted; next }
    /^```/ { inside = 1; shown = 0; next }
    { marked = $0 == "<!-- test -->" }
    inside && shown { print }' "$1"
}
