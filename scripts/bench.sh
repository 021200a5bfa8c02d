#!/bin/sh
# Benchmarks: ours beside its peers, by turns in one run. Prints a report in Markdown.
#
#   scripts/bench.sh [--short] [PART...]
#
# Parts: same, other (RocksDB on its own and on another file system), pact, pact-file-systems (ext4, xfs and btrfs in
# images; needs root), pact-second (the backups after the first, also in images), verify, pact-latency, rocksdb-latency,
# growth (time and memory as SSTs and Pact grow), http (beside a bare rouille); all of them without a word. --short only
# proves that they run. The environment can set PACT_MB (1000), PACT_DATABASES (20), SSTS ("1000 8000"), SST_KB (4),
# GROWTH_SSTS ("1000 4000 16000 32000"), GROWTH_PACT_MB ("250 500 1000 2000"), ROUNDS (3), DAYS (6: backups after the
# first), PHASE_SECONDS (6), LIMIT_SECONDS (120: what a peer may take beside a writer; some never end), BENCH_DIR (a
# directory for the databases, kept; otherwise below TMPDIR) and BENCH_OTHER (a directory on another file system;
# otherwise /dev/shm). `pact` and `pact-second` also run sqlite3_rsync, `pact` litestream, where they are in PATH.

. "$(dirname -- "$0")/lib.sh"

short=''
for word in "$@"; do
  case $word in
    --short) short=yes ;;
    --help | -h) sed -n 's/^#   //p' "$0" && exit 0 ;;
    -*) refuse "no option $word: $(sed -n 's/^#   //p' "$0")" ;;
  esac
done
require_build >&2
missing=''
has time || [ -x /usr/bin/time ] || missing="$missing time"
has rsync || missing="$missing rsync"
has sqlite3 || missing="$missing sqlite3"
# shellcheck disable=SC2086 # one word per package
[ -z "$missing" ] || install_packages $missing >&2
build >&2
cargo build --release --locked --bench peers >&2
# Cargo may build anew while this runs.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bench=$(cargo build --release --locked --bench peers --message-format=json 2>/dev/null |
  sed -n 's/.*"name":"peers".*"executable":"\([^"]*\)".*/\1/p')
cp "$bench" "$work/peers"
cp "$BIN/chainweb-backup" "$work/chainweb-backup"
export PROGRAM="$work/chainweb-backup"
if [ -n "$short" ]; then
  export PACT_MB="${PACT_MB:-20}" PACT_DATABASES="${PACT_DATABASES:-4}" SSTS="${SSTS:-200}" ROUNDS="${ROUNDS:-1}" PHASE_SECONDS="${PHASE_SECONDS:-1}" DAYS="${DAYS:-2}"
  export GROWTH_SSTS="${GROWTH_SSTS:-50 200}" GROWTH_PACT_MB="${GROWTH_PACT_MB:-5 20}"
fi

echo '## Benchmarks of chainweb-backup'
echo
echo "- $(date -u +%Y-%m-%d), $(nproc) processors ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)), $(
  awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo), Linux $(uname -r)"
echo "- databases on $(stat -f -c %T "${BENCH_DIR:-${TMPDIR:-/tmp}}" 2>/dev/null || echo 'a new directory'), other file system: $(stat -f -c %T "${BENCH_OTHER:-/dev/shm}")"
echo "- $("$PROGRAM" --version), sqlite3 $(sqlite3 --version | cut -d ' ' -f 1), $(rsync --version | head -n 1 | cut -d ' ' -f 1-4)"
"$work/peers" "$@"
