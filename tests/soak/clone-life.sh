#!/bin/sh
# What a clone costs the node while it lives: Pact's writer on xfs and on btrfs, each beside a twin of it on a file system
# of its own without a backup, all at once, so that every noise meets both. Called by `scripts/soak.sh clone-life MINUTES`.
# One backup with pact.method clone is taken at the start and kept; a second one at the end. Prints Markdown.
# PEERS is the program of tests/benches. Needs root (loop mounts). MB is the size of the 20 databases of each node.
set -eu
minutes=${1:-60} MB=${MB:-1000} pause_us=${PAUSE_US:-50000}
work=$(mktemp -d "${TMPDIR:-/tmp}/chainweb-backup-clone.XXXXXX")
cp "$PEERS" "$work/peers"
cp "$PROGRAM" "$work/chainweb-backup"
cd "$work"
pids=''
leave() {
  for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
  wait
  for mounted in "$work"/*.mnt; do umount "$mounted" 2>/dev/null || true; done
  cd / && rm -rf "$work"
}
trap leave EXIT
trap 'exit 130' INT TERM

for twin in xfs-alone xfs-clone btrfs-alone btrfs-clone; do
  truncate -s $((MB * 5 + 2000))M "$twin.img"
  "mkfs.${twin%-*}" -q "$twin.img" >/dev/null
  mkdir "$twin.mnt"
  mount -o loop "$twin.img" "$twin.mnt"
  ./peers fill "$twin.mnt/node" 20 "$MB"
done
sync
for twin in xfs-alone xfs-clone btrfs-alone btrfs-clone; do
  ./peers writer pact "$twin.mnt/node/0/sqlite" "$twin.log" "$pause_us" &
  pids="$pids $!"
done
sleep 20 # SQLite's WALs are as long as they get

make_clones() {
  for twin in xfs btrfs; do
    began=$(date +%s%N)
    ./chainweb-backup make --backup-pact --pact-method clone --reserve-bytes 0 \
      --database-directory "$twin-clone.mnt/node" >"$twin.id" 2>"$twin.err" || { cat "$twin.err" && exit 1; }
    echo "- $twin: a backup of 20 databases, $MB MB, by clones, $1: $((($(date +%s%N) - began) / 1000000)) ms as a process"
  done
}

# row TWIN FROM TO: the commits of one twin between two instants (s).
row() {
  awk -v from="$2" -v to="$3" '$1 >= from * 1e6 && $1 < to * 1e6 { print $2 }' "$1.log" | sort -n >latencies
  awk -v n="$(wc -l <latencies)" -v s="$(($3 - $2))" '{ at[NR] = $1 / 1000 }
    END { printf "%.1f | %.2f | %.2f | %.0f", n / s, at[int(n / 2) + 1], at[int(n * 0.99) + 1], at[n] }' latencies
}

extents() {
  find "$1.mnt/node/0/sqlite" -name '*.sqlite' -exec filefrag {} + | awk '{ n += $(NF - 2) } END { print n }'
}

sleep 60
before=$(date +%s)
make_clones 'the first'
for twin in xfs btrfs; do echo "- $twin: $(extents $twin-alone) extents alone, $(extents $twin-clone) with the clone"; done
echo
echo '| minutes | file system | alone: commits/s | p50 ms | p99 ms | max ms | with a clone: commits/s | p50 ms | p99 ms | max ms | extents alone | with a clone |'
echo '|---|---|---|---|---|---|---|---|---|---|---|---|'
from=$before
step=$(((minutes * 60 + 5) / 6))
for part in 0 1 2 3 4 5 6; do
  if [ "$part" -eq 0 ]; then from=$((before - 60)) to=$before; else from=$(date +%s) && sleep "$step" && to=$(date +%s); fi
  for twin in xfs btrfs; do
    echo "| $(((from - before) / 60)) to $(((to - before) / 60)) | $twin | $(row $twin-alone "$from" "$to") | $(row $twin-clone "$from" "$to") | $(extents $twin-alone) | $(extents $twin-clone) |"
  done
done
echo
make_clones "after $minutes minutes"
