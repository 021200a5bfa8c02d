#!/bin/sh
# Long tests, with their counts as parameters. TAP; the short forms are among the shell tests.
#
#   scripts/soak.sh backups [N] [embedded|beside]   N full backups of a node that keeps writing, each verified (200)
#   scripts/soak.sh kills [N] [SEED]                N times kill -9 at a random moment of a backup (300)
#   scripts/soak.sh cuts [N] [SEED]                 N power cuts during backup, restore, delete, prune: xfs, ext4, btrfs (300)
#   scripts/soak.sh errors [N] [SEED]               N errors of the disk below RocksDB and SQLite, and full disks (720)
#   scripts/soak.sh damages [N] [SEED]              N damages for each cell of the matrix (40)
#   scripts/soak.sh restores [N] [SEED]             N times kill -9 at a random moment of a restore (240)
#   scripts/soak.sh restarts [N]                    N restores while the target's node starts again and again (60)
#   scripts/soak.sh mutations [SECONDS] [SEED]      mutations of everything that is parsed, for each parser so long (60)
#   scripts/soak.sh hostile [N] [SEED]              N random trees of links, FIFOs, devices, huge files; run as root (10000)
#   scripts/soak.sh clone-life [MINUTES]            what a clone costs Pact's writer while it lives, xfs and btrfs (60)
#   scripts/soak.sh increments [N]                  N increments of Pact, for each scenario, on xfs and btrfs, and N pairs; as root (130)
#   scripts/soak.sh chains [DAYS] [KILLS] [CUTS] [SEED]  days of Pact: each backup restores to its own, whatever is killed; as root (60 300 100)
#   scripts/soak.sh sqlite-versions                 delta pairs read by SQLite 3.13 to 3.45; needs cargo and cc
#   scripts/soak.sh off-host [DAYS]                 a week of backups by each ready hook, and starts from the copies; as root (7)
#   scripts/soak.sh raw [N]                         N raw copies of SQLite under load, for each scenario (130)
#   scripts/soak.sh live [N] [SCENARIO [WAY]]       N live copies under load, for each scenario, twice (100)
#   scripts/soak.sh other-disk [N] [SEED]           N backups on another disk: node restores, blobs, ingestions, rot (500)
#   scripts/soak.sh foreign [N] [SCENARIO...]       N live copies of writers of other RocksDB versions, for each (40)
#   scripts/soak.sh places [N] [SEED]               N live copies of each layout: volumes, bind mount, links; kills; as root (200)
#   scripts/soak.sh mounts [N] [SEED]               N times kill -9 in a restore onto volumes, bind mounts and links; as root (400)
#   scripts/soak.sh starts [N] [SEED]               N start-up proofs, half of them of planted faults, beside the start itself (300)
#   scripts/soak.sh hour [MINUTES]                  a backup a minute, with proof and drill: what the node's heights take (60)
#   scripts/soak.sh month [DAYS] [SEED]             simulated days of schedules, hooks, drills: kills, full disks, clocks; as root (30)
#   scripts/soak.sh month-sabotage [DAYS] [SEED]    that the month's checks can fail: one month for each of nine acts; as root (2)
#   scripts/soak.sh door [MINUTES] [FILE]           50 requests a second beside backups: memory, threads; graphs in FILE, SVG (60)
#   scripts/soak.sh attacks [N]                     attacks on the listener, the last one with N fuzzed heads, as a table (1000000)
#   scripts/soak.sh container [FEATURES]            the image of scripts/container, built and run beside a node; as root
#   scripts/soak.sh timing [SSTS]                   the live copy beside RocksDB's checkpoint and cp -al (8000)
#   scripts/soak.sh untouched                       strace: what `make` does to the files of a node
#
# `backups`: by the node itself, or by `serve` beside it. `demo-node verify` also rejects a Pact that is ahead.
# `kills`: by turns a node that embeds the service, while it writes, and `serve` beside the stopped node; backups go to another
# file system by turns. After each restart: the port answers within a second; an identifier that was handed out is known
# and its job terminal at the first answer; what is called done verifies; what failed has only its record soon after; a
# directory with backups of the node's own API, one of them in progress, is as it was.

[ -n "${BIN:-}" ] || BIN=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/chainweb-backup}/release
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
case ${1:-} in
  cuts) CUTS=${2:-300} SEED=${3:-$(date +%s)} exec sh "$ROOT/tests/shell/11-power-cut.sh" ;;
  errors) CASES=${2:-720} LEVELS=48 THIN=64 SEED=${3:-$(date +%s)} exec sh "$ROOT/tests/shell/12-disk-errors.sh" ;;
  damages) CASES=${2:-40} SEED=${3:-$(date +%s)} exec sh "$ROOT/tests/shell/13-damage.sh" ;;
  restores) KILLS=${2:-240} SEED=${3:-$(date +%s)} exec sh "$ROOT/tests/shell/14-restore-kill.sh" ;;
  restarts) RESTORES=${2:-60} exec sh "$ROOT/tests/shell/19-restart.sh" ;;
  increments) exec sh "$ROOT/tests/soak/run.sh" increments "${2:-130}" ;;
  chains) exec python3 "$ROOT/tests/soak/chains.py" "$BIN" "${2:-60}" "${3:-300}" "${4:-100}" ${5:+"$5"} ;;
  sqlite-versions) exec python3 "$ROOT/tests/soak/sqlite_versions.py" "$BIN" ;;
  off-host) exec python3 "$ROOT/tests/soak/off_host.py" "$BIN" "${2:-7}" ;;
  raw) exec sh "$ROOT/tests/soak/run.sh" raw "${2:-130}" ;;
  mutations) exec sh "$ROOT/tests/soak/run.sh" mutations "${2:-60}" "${3:-$(date +%s)}" ;;
  hostile) exec sh "$ROOT/tests/soak/run.sh" hostile "${2:-10000}" "${3:-$(date +%s)}" ;;
  clone-life) exec sh "$ROOT/tests/soak/run.sh" clone-life "${2:-60}" ;;
  other-disk) exec sh "$ROOT/tests/soak/run.sh" other-disk "${2:-500}" "${3:-$(date +%s)}" ;;
  places) exec sh "$ROOT/tests/soak/places.sh" "${2:-200}" "${3:-$(date +%s)}" ;;
  mounts) KILLS=${2:-400} CUTS=60 SEED=${3:-$(date +%s)} exec sh "$ROOT/tests/shell/21-mounts.sh" ;;
  starts) exec python3 "$ROOT/tests/soak/starts.py" "$BIN" "${2:-300}" "${3:-$(date +%s)}" ;;
  hour) exec python3 "$ROOT/tests/soak/hour.py" "$BIN" "${2:-60}" ;;
  door) exec python3 "$ROOT/tests/soak/door.py" "$BIN" "${2:-60}" "${3:-door.svg}" ;;
  attacks) exec python3 "$ROOT/tests/soak/attacks.py" "$BIN" "${2:-1000000}" ;;
  container) exec sh "$ROOT/tests/soak/container.sh" "${2:-}" ;;
  month) exec python3 "$ROOT/tests/soak/month.py" "$BIN" "${2:-30}" ${3:+"$3"} ;;
  month-sabotage) exec python3 "$ROOT/tests/soak/month_sabotage.py" "$BIN" "${2:-2}" "${3:-7}" ;;
  live) shift && exec sh "$ROOT/tests/soak/run.sh" own "$@" ;;
  foreign | timing | untouched) exec sh "$ROOT/tests/soak/run.sh" "$@" ;;
esac
. "$ROOT/tests/shell/lib.sh"

usage() {
  sed -n 's/^#   //p' "$ROOT/scripts/soak.sh" >&2
  exit 2
}

milliseconds() {
  echo "$(($(date +%s%N) / 1000000))"
}

# launch LOG COMMAND...: start, and leaves in $took_ms how long it took until the port answered.
launch() {
  began=$(milliseconds)
  start "$@"
  took_ms=$(($(milliseconds) - began))
}

backups() {
  wanted=${1:-200} way=${2:-embedded} good=0
  case $way in
    embedded) start node.log demo-node --database-directory node --fill 20000000 --rate 5 --fork-percent 20 ;;
    beside)
      start node.log demo-node --database-directory node --fill 20000000 --rate 5 --fork-percent 20 --disable-backup-api
      start serve.log chainweb-backup serve --database-directory node --enable-backup-api
      ;;
    *) usage ;;
  esac
  while [ "$count" -lt "$wanted" ]; do
    backup '?backupPact'
    verdict=$(demo-node verify --expect-chains 20 "node/backups/$id" 2>&1) || word="$word, but $verdict"
    check "backup $((count + 1)): ${verdict#ok: }" [ "$word" = backup-done ]
    if [ "$word" = backup-done ]; then
      good=$((good + 1))
      rm -rf "node/backups/${id:?}"
    else
      echo "# $id: $word"
    fi
  done
  echo "# $good of $wanted backups are good"
}

# snapshot DIRECTORY: everything there is to know about the backups that are not ours.
snapshot() {
  (cd "$1" && find 1648665437 1648665437000 -printf '%p %y %s %m %U %G %n %T@ %C@\n' | sort &&
    find 1648665437 1648665437000 -type f -exec sha256sum {} + | sort)
}

make_foreign_backups() {
  for foreign in 1648665437 1648665437000; do
    mkdir -p "$1/$foreign/0/rocksDb" "$1/$foreign/0/sqlite"
    echo data >"$1/$foreign/0/rocksDb/000001.sst"
    echo data >"$1/$foreign/0/sqlite/pact-v1-chain-0.sqlite"
  done
  printf backup-done >"$1/1648665437/status"
  printf backup-in-progress >"$1/1648665437000/status"
}

random_ms() {
  awk -v seed="$1" -v max="$2" 'BEGIN { srand(seed); rand(); printf "%d", rand() * max }'
}

# problem TEXT: what is wrong with this round.
problem() {
  problems="$problems; $*"
}

# garbage DIRECTORY: what must be gone soon after a start.
garbage() {
  find "$1" -maxdepth 2 \( -name '.deleting-*' -o -name '.creating-*' -o -name 0.partial \)
  find node/.chainweb-backup-pin -mindepth 1 ! -name .lock 2>/dev/null
}

serve_here() {
  case $way in
    embedded) launch "$way.log" demo-node --database-directory node --rate 20 --backup-directory "$place" ;;
    daemon) launch "$way.log" chainweb-backup serve --database-directory node --enable-backup-api --backup-directory "$place" ;;
  esac
}

kills() {
  wanted=${1:-300} seed=${2:-$(date +%s)} kill_failed=0 kill_done=0 unborn=0 slowest_ms=0 slowest_clean_ms=0
  echo "# seed $seed"
  SHM=$(mktemp -d /dev/shm/chainweb-backup-test.XXXXXX 2>/dev/null) || SHM=''
  node node --fill 120000000
  for place in here $SHM/there; do
    mkdir -p "$place"
    make_foreign_backups "$place"
    snapshot "$place" >"foreign.$(basename "$place")"
    : >"ids.$(basename "$place")"
  done
  while [ "$count" -lt "$wanted" ]; do
    round=$count problems='' id=''
    case $((round % 4)) in 0 | 2) way=embedded ;; *) way=daemon ;; esac
    place=here
    [ -z "$SHM" ] || [ $((round % 4)) -lt 2 ] || place=$SHM/there
    where=$(basename "$place")

    serve_here
    if [ $((round % 40)) -lt 4 ]; then # how long it takes now, for each way and place
      began=$(milliseconds)
      backup '?backupPact'
      [ "$word" = backup-done ] || problem "undisturbed backup $id is $word"
      eval "usual_ms_$((round % 4))=$(($(milliseconds) - began))"
      rm -rf "${place:?}/${id:?}"
    fi
    eval "usual_ms=\$usual_ms_$((round % 4))"
    : >answer
    curl -sS -X POST -o answer "http://$address/make-backup?backupPact" 2>curl.err &
    asking=$!
    moment_ms=$(random_ms "$((seed + round))" "$((usual_ms * 5 / 4))")
    sleep "$(awk -v ms="$moment_ms" 'BEGIN { print ms / 1000 }')"
    stop KILL
    wait "$asking"
    id=$(cat answer)

    serve_here
    [ "$way" = embedded ] || [ "$took_ms" -le "$slowest_ms" ] || slowest_ms=$took_ms
    [ "$way" = embedded ] || [ "$took_ms" -le 1000 ] || problem "the port answered after $took_ms ms"
    # Killed before the answer: nobody knows of it, but it may have its name already.
    [ -n "$id" ] || id=$(ls "$place" | grep -vxF -e 1648665437 -e 1648665437000 -f "ids.$where")
    if [ -n "$id" ]; then
      http GET "/check-backup/$id"
      word=$(cat body)
      [ "$code" = 200 ] || problem "the status of $id is $code"
    else
      word=unborn unborn=$((unborn + 1))
    fi
    began=$(milliseconds)
    while [ -n "$(garbage "$place")" ] && [ $(($(milliseconds) - began)) -lt 10000 ]; do sleep 0.02; done
    clean_ms=$(($(milliseconds) - began))
    [ "$clean_ms" -le "$slowest_clean_ms" ] || slowest_clean_ms=$clean_ms
    [ -z "$(garbage "$place")" ] || problem "still there: $(garbage "$place")"
    case $word in
      backup-done)
        kill_done=$((kill_done + 1))
        verdict=$(demo-node verify "$place/$id" 2>&1) || problem "$id is called done, but $verdict"
        rm -rf "${place:?}/$id"
        http GET "/check-backup/$id"
        [ "$code" = 404 ] || problem "$id was deleted, its status is $code"
        ;;
      backup-failed)
        kill_failed=$((kill_failed + 1))
        echo "$id" >>"ids.$where"
        held=$(ls -A "$place/$id" | tr '\n' ' ')
        [ "$held" = '.use backup.json status ' ] || problem "$id failed and has $held"
        ;;
      unborn) ;;
      *) problem "at the first answer $id is $word" ;;
    esac
    snapshot "$place" >foreign.now
    cmp -s "foreign.$where" foreign.now || problem 'a backup of the node itself was touched'
    [ "$(ls "$place" | wc -l)" -eq $(($(wc -l <"ids.$where") + 2)) ] || problem "$place holds more than it should"
    if [ $((round % 50)) -ge 46 ] || [ "$round" -ge $((wanted - 4)) ]; then # all that ever failed in this place
      while read -r old; do
        http GET "/check-backup/$old"
        [ "$code $(cat body)" = '200 backup-failed' ] || problem "$old was failed, its status is $code $(cat body)"
      done <"ids.$where"
    fi
    check "kill $((round + 1)): $way, $where, after $moment_ms of $usual_ms ms, ${word:-no answer}, up in $took_ms ms" \
      [ -z "$problems" ]
    [ -z "$problems" ] || echo "#${problems#;}"
    stop TERM
  done
  demo-node verify node >verified 2>&1
  has 'the node itself survived it all' verified ok:
  echo "# $kill_failed failed, $kill_done done, $unborn killed before they had a name;" \
    "the port of serve answered after $slowest_ms ms at most, garbage was gone after $slowest_clean_ms ms at most"
}

case ${1:-} in
  backups | kills) "$@" ;;
  *) usage ;;
esac
end
