#!/bin/sh
# Long forms of the live copy's tests. Usage:
#   tests/soak/run.sh own [COPIES [SCENARIO [WAY]]]   our RocksDB as the writer (default 100 copies of each scenario, twice)
#   tests/soak/run.sh foreign [COPIES [SCENARIO...]]  writers of other RocksDB versions (see foreign.py; default 40 of each)
#   tests/soak/run.sh raw [COPIES]                    raw copies of SQLite under load (default 130 of each scenario)
#   tests/soak/run.sh increments [COPIES]             increments of Pact under load, xfs and btrfs, and pairs (default 130 of each scenario)
#   tests/soak/run.sh timing [SSTS]                   time and window beside RocksDB's checkpoint and cp -al (default 8000)
#   tests/soak/run.sh untouched                       strace: what `make` does to the files of a node
#   tests/soak/run.sh mutations [SECONDS] [SEED]      mutations of everything that is parsed (default 60 for each parser)
#   tests/soak/run.sh other-disk [BACKUPS] [SEED]     backups on another file system, one after the other (default 500), by the
#                                                     program and, if SLIM names it, by the one without RocksDB by turns
#   tests/soak/run.sh hostile [TREES] [SEED]          see tests/suite/hostile.rs (default 10000)
#   tests/soak/run.sh clone-life [MINUTES]            see clone-life.sh (default 60)
# Needs a build: cargo test --release --features gate --no-run, and cargo build --release --bins --benches.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$HOME/.cache/chainweb-backup}
program=${PROGRAM:-$target/release/chainweb-backup}
# The program and the tests may be built anew while this runs.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
suite() {
  newest=$(ls -t "$target"/release/deps/suite-* | grep -v '\.d$' | head -n 1)
  cp "${SUITE:-$newest}" "$work/suite"
  "$work/suite" --nocapture "$@"
}
case ${1:-} in
own)
  export CHAINWEB_BACKUP_SOAK="${2:-100}${3:+;$3}${4:+;$4}"
  suite --ignored --exact live::stress::soak
  ;;
raw)
  export CHAINWEB_BACKUP_SQLITE_COPIES="${2:-130}"
  suite sqlite_stress:: --test-threads 1
  ;;
increments)
  export CHAINWEB_BACKUP_INCREMENTS="${2:-130}"
  suite increments:: pairs:: --test-threads 1
  ;;
mutations)
  export CHAINWEB_BACKUP_MUTATION_SECONDS="${2:-60}" CHAINWEB_BACKUP_SEED="${3:-7}"
  echo "seed $CHAINWEB_BACKUP_SEED"
  suite mutat --test-threads 1
  ;;
other-disk)
  cp "$program" "$work/chainweb-backup"
  programs=$work/chainweb-backup
  slim=${SLIM:-$(dirname "$program")/slim/chainweb-backup}
  if [ -x "$slim" ]; then
    cp "$slim" "$work/slim" && programs=$programs:$work/slim
  else
    echo "SKIPPED the program without RocksDB: SLIM does not name it"
  fi
  export CHAINWEB_BACKUP_OTHER_DISK="${2:-500};${3:-7}" CHAINWEB_BACKUP_PROGRAMS="$programs"
  suite --exact reuse_soak::soak --ignored
  ;;
hostile)
  export CHAINWEB_BACKUP_TREES="${2:-10000}" CHAINWEB_BACKUP_SEED="${3:-11}"
  echo "seed $CHAINWEB_BACKUP_SEED"
  suite random_trees
  ;;
clone-life)
  newest=$(ls -t "$target"/release/deps/peers-* | grep -v '\.d$' | head -n 1)
  PEERS=$newest PROGRAM=$program sh "$here/clone-life.sh" "${2:-60}"
  ;;
foreign)
  cp "$program" "$work/chainweb-backup"
  count=${2:-40}
  shift; [ $# -eq 0 ] || shift
  "${PYTHON:-python3}" "$here/foreign.py" "$work/chainweb-backup" "$count" "$@"
  ;;
timing)
  cp "$program" "$work/chainweb-backup"
  export CHAINWEB_BACKUP_TIMING="${2:-8000}" CHAINWEB_BACKUP_PROGRAM="$work/chainweb-backup"
  suite --ignored --exact live::timing::timing
  ;;
untouched)
  cp "$program" "$work/chainweb-backup"
  mkdir -p "$work/node/0/rocksDb"
  db_bench --benchmarks=overwrite --db="$work/node/0/rocksDb" --duration=60 --num=20000 --value_size=200 \
    --write_buffer_size=65536 --target_file_size_base=65536 >/dev/null 2>&1 &
  writer=$!
  sleep 2
  strace -f -e trace=file,ftruncate,fchmod,fchown,fsetxattr,fallocate -o "$work/trace" \
    "$work/chainweb-backup" make --database-directory "$work/node" --backup-directory "$work/node/backups" --reserve-bytes 0
  kill "$writer"
  # Everything that names the node's files, or is relative to an open directory, but for reading, looking and linking.
  touched=$(grep -E 'node/0|at2?\([0-9]' "$work/trace" | grep -v "node/backups" |
    grep -E "O_WRONLY|O_RDWR|O_CREAT|unlink|rename|truncate|chmod|chown|utime|setxattr|mkdir|symlink" || true)
  wait "$writer" 2>/dev/null || true
  if [ -n "$touched" ]; then
    echo "$touched"
    echo "0 passed, 1 failed"
    exit 1
  fi
  # The same filter sees what was done to our own directory, so it does see.
  seen=$(grep -c -E 'node/backups.*(O_WRONLY|O_RDWR|O_CREAT|unlink|rename)' "$work/trace")
  links=$(grep -c -E 'linkat\([0-9]' "$work/trace")
  [ "$seen" -gt 5 ] && [ "$links" -gt 5 ]
  echo "$links links made, $seen changes of our own seen, no change of the node's files"
  echo "1 passed, 0 failed"
  ;;
*)
  sed -n '2,13s/^# //p' "$0"
  exit 2
  ;;
esac
