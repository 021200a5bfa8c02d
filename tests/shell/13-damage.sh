#!/bin/sh
# Damage is found: {one bit flipped, cut short, deleted, swapped with another file of its class} x {each class of file in a backup}.
# CASES is the number of each (2), SEED chooses them. In each case:
#   below 0/        --deep finds it (13). verify and restore find a missing file and another size; they promise no more
#   BLAKE2SUMS      --deep notes it or reports damage, except if the list was deleted: a backup need not have one. Without lists,
#                   --deep finds what RocksDB's own checksums show, in SSTs, WAL and MANIFEST
#   beside 0/       verify and restore are 0 only if the files are whole, and the restored database is the backup
# A restore that is not 0 leaves nothing. After damage was found, no restore is 0. Looking changes nothing. The names and the last line
# report the results.
. "$(dirname -- "$0")/lib.sh"

CASES=${CASES:-2} SEED=${SEED:-$(date +%s)}
kinds='flip cut delete swap'
classes='sst wal MANIFEST CURRENT OPTIONS IDENTITY sqlite sums manifest.json backup.json status'

problem() {
  problems="$problems; $*"
}

# files CLASS BACKUP: those that can be damaged, below the backup.
files() {
  (cd "$2" && case $1 in
    sst) ls 0/rocksDb/*.sst ;;
    wal) find 0/rocksDb -name '*.log' -size +0 | sort ;;
    MANIFEST | OPTIONS) ls 0/rocksDb/"$1"-* ;;
    CURRENT | IDENTITY) echo "0/rocksDb/$1" ;;
    sqlite) ls 0/sqlite/*.sqlite ;;
    sums) ls 0/*/BLAKE2SUMS ;;
    *) echo "$1" ;;
  esac)
}

# pick CLASS BACKUP FRACTION: one of them.
pick() {
  files "$1" "$2" >picked
  awk -v at="$3" '{ line[NR] = $0 } END { print line[int(at * NR) + 1] }' picked
}

# part FRACTION NUMBER: a whole number from 0 to below the given one.
part() {
  awk -v at="$1" -v of="$2" 'BEGIN { printf "%d", int(at * of) }'
}

flip() {
  at=$(part "$2" "$(stat -c %s "$1")")
  byte=$(od -An -tu1 -j "$at" -N 1 "$1")
  # shellcheck disable=SC2059 # the format is an octal escape
  printf "\\$(printf %03o $((byte ^ (1 << $(part "$3" 8)))))" | dd of="$1" bs=1 seek="$at" conv=notrunc 2>dd.err
}

# swap BACKUP CLASS FILE FRACTION: the other file is of the same backup, or, if it has none, of the backup of another node.
swap() {
  case $2 in
    sst | sqlite | sums)
      files "$2" "$1" | grep -vxF "$3" >others
      other=$1/$(awk -v at="$4" '{ line[NR] = $0 } END { print line[int(at * NR) + 1] }' others)
      mv "$1/$3" swapped && mv "$other" "$1/$3" && mv swapped "$other"
      ;;
    *) cp "strange/$(pick "$2" strange "$4")" "$1/$3" ;;
  esac
}

# listed BACKUP: its files with their sizes and contents, without the note about the last verification.
listed() {
  (cd "$1" && find . -type f ! -name verified.json -exec b2sum {} + | sort -k 2)
}

# sizes BACKUP: what a quick verification compares; BLAKE2SUMS is not in the manifest.
sizes() {
  (cd "$1" && find 0 -type f ! -name BLAKE2SUMS -printf '%p %s\n' | sort)
}

data() {
  (cd "$1" && find . -type f ! -name BLAKE2SUMS -exec b2sum {} + | sort -k 2)
}

# claims BACKUPS: the row of the only backup there in `list`.
claims() {
  chainweb-backup list --json --backup-directory "$1" >listed.all 2>err
  grep -vE '"(exclusive_bytes|verified)":' listed.all >listed.now
  [ -e listed.good ] || cp listed.now listed.good
  if cmp -s listed.now listed.good; then echo listed as it was
  elif grep -q '"foreign": true' listed.now; then echo listed as foreign
  elif grep -q '"status": "backup-done"' listed.now; then echo listed with something else
  elif grep -q '"status"' listed.now; then echo 'listed as no good backup'
  else echo not listed; fi
}

# run_restore [--deep]: leaves $got, and $restored: whole, damaged or nothing.
run_restore() {
  got=0 restored=nothing
  chainweb-backup restore --backup-directory copy "$id" --to target "$@" >out 2>err </dev/null || got=$?
  if [ -n "$(ls -A target 2>/dev/null)" ]; then
    data target/0 >restored.list
    restored=whole
    cmp -s restored.list data.list || restored=damaged
  fi
  case $got$restored in 0whole | 0damaged | [1-9]*nothing) ;; *) problem "restore $* is $got, and left $restored" ;; esac
  rm -rf target
}

# one_case KIND CLASS FRACTIONS...
one_case() {
  kind=$1 class=$2
  rm -rf copy && mkdir copy && cp -a --reflink=auto "backups/$id" copy/
  file=$(pick "$class" "copy/$id" "$3")
  at='' path=copy/$id/$file
  case $kind in
    flip) flip "$path" "$4" "$5" ;;
    # At least two bytes: a list without its last end of line is whole.
    cut) at=$(part "$4" "$(($(stat -c %s "$path") - 1))") && truncate -s "$at" "$path" ;;
    delete) rm "$path" ;;
    swap) swap "copy/$id" "$class" "$file" "$4" ;;
  esac
  listed "copy/$id" >before
  ! cmp -s before pristine || problem 'no damage was done'
  sizes "copy/$id" >sizes.now
  resized=no
  cmp -s sizes.now sizes.list || resized=yes

  claim=$(claims copy)
  quick=0 deep=0
  chainweb-backup verify --backup-directory copy "$id" >out 2>quick.err </dev/null || quick=$?
  run_restore
  plain=$got plain_restored=$restored
  chainweb-backup verify --backup-directory copy "$id" --deep >out 2>deep.err </dev/null || deep=$?
  run_restore
  [ "$deep$restored" = 0whole ] || [ ! -e "copy/$id/verified.json" ] || [ "$got" -ne 0 ] ||
    problem 'restore is 0 although damage was found'
  run_restore --deep
  listed "copy/$id" >after
  cmp -s before after || problem 'looking changed the backup'
  [ "$plain" -ne 0 ] || [ "$resized" = no ] || problem 'restore is 0 although a file is gone or has another size'
  [ "$resized" = no ] || [ "$quick" -eq 13 ] || problem "verify is $quick although a file is gone or has another size"
  [ "$plain" -eq "$quick" ] || problem "verify is $quick but restore is $plain"
  [ "$got" -eq "$deep" ] || problem "verify --deep is $deep but restore --deep is $got"
  case $class$kind in
    status* | backup.json* | manifest.json* | sumsdelete)
      case $quick in 0 | 1 | 10 | 13) ;; *) problem "verify is $quick" ;; esac
      # The heights of the record and the checksums of the manifest are compared only if the files are read.
      [ "$quick" -eq "$deep" ] || [ "${class#*.}$quick$deep" = json013 ] ||
        problem "verify is $quick, verify --deep is $deep"
      [ "$restored$plain_restored" = wholewhole ] || [ "$deep" -ne 0 ] || problem 'what was restored is not the backup'
      ;;
    # RocksDB does not read some parts of an SST: after damage there, the list is noted as wrong.
    sst* | sums*) [ "$deep" -eq 13 ] || grep -q 'note: 0/.*BLAKE2SUMS: ' deep.err || problem "verify --deep is $deep" ;;
    *) [ "$deep" -eq 13 ] || problem "verify --deep is $deep" ;;
  esac
  [ "$plain_restored" != damaged ] || unseen=$((unseen + 1))
  case $class in
    status | *.json) echo "$quick/$deep, $claim" ;;
    *) echo "$quick/$deep, restored $plain_restored" ;;
  esac >>seen
  [ -z "$problems" ] || echo "# $kind of $file (${at:-$4 $5}):${problems#;}"
  [ -z "$problems" ] || all_problems=$all_problems$problems
  problems=''
}

node node --chains 4 --fill 12000000 --write-buffer-bytes 100000 --seed "$SEED"
node node --write-buffer-bytes 100000 # its MANIFEST, OPTIONS and CURRENT get other numbers
# Another backup: all its files differ, and its status is one that no good backup has.
node other --chains 3 --fill 3000000 --write-buffer-bytes 300000 --seed "$((SEED + 1))"
for from in node other; do
  chainweb-backup make --backup-pact --database-directory "$from" --log-level warn >>ids 2>make.log
  chainweb-backup sum --database-directory "$from" latest >out 2>err
done
id=$(sed -n 1p ids)
mv node/backups backups && mv "other/backups/$(sed -n 2p ids)" strange && printf backup-failed >strange/status
listed "backups/$id" >pristine
sizes "backups/$id" >sizes.list
data "backups/$id/0" >data.list
echo "# seed $SEED, backup $id of $(du -sk "backups/$id" | cut -f 1) KiB: $(files sst "backups/$id" | wc -l) SSTs," \
  "a WAL of $(cd "backups/$id" && stat -c %s 0/rocksDb/*.log | sort -n | tail -n 1) bytes"

# The control: a copy without damage.
problems=''
claims backups >claim
mkdir copy && cp -a --reflink=auto "backups/$id" copy/
status 'undamaged: verify is 0' 0 chainweb-backup verify --backup-directory copy "$id"
status 'undamaged: verify --deep is 0' 0 chainweb-backup verify --backup-directory copy "$id" --deep
run_restore --deep
is 'undamaged: restore is 0 and whole' "$got $restored$problems" '0 whole'
listed "copy/$id" >after
check 'undamaged: looking changes nothing' cmp pristine after

awk -v seed="$SEED" -v n=$((44 * CASES)) \
  'BEGIN { srand(seed); rand(); while (n--) printf "%.6f %.6f %.6f\n", rand(), rand(), rand() }' >fractions
summary='' total=0 unseen=0
exec 3<fractions
for class in $classes; do
  for kind in $kinds; do
    all_problems='' case=0
    : >seen
    while [ "$case" -lt "$CASES" ] && read -r a b c <&3; do
      one_case "$kind" "$class" "$a" "$b" "$c"
      case=$((case + 1)) total=$((total + 1))
    done
    counts=$(sort seen | uniq -c | awk '{ n = $1; sub(/^ *[0-9]+ /, ""); printf "%s%dx %s", (NR > 1 ? ", " : ""), n, $0 }')
    found=$(awk -F '[/, ]+' '{ q += $1 != 0; d += $2 != 0 } END { print q + 0 "/" d + 0 "/" NR }' seen)
    check "$kind of $class: verify/--deep $counts" [ -z "$all_problems" ]
    summary="$summary, $class $kind $found"
  done
done
exec 3<&-

# A list that does not name every file proves nothing about the others: it is noted, and sum mends it.
for what in 'without its last line' 'empty' 'that names one file twice'; do
  rm -rf copy && mkdir copy && cp -a --reflink=auto "backups/$id" copy/
  sums=copy/$id/0/sqlite/BLAKE2SUMS
  case $what in
    without*) sed -i '$d' "$sums" ;;
    empty) : >"$sums" ;;
    # One bit turns chain-0 into chain-1, whose own line follows.
    that*) sed -i 's/chain-0/chain-1/' "$sums" ;;
  esac
  status "BLAKE2SUMS $what: verify --deep is 0" 0 chainweb-backup verify --backup-directory copy "$id" --deep
  check 'and notes it' grep -q 'note: 0/sqlite/BLAKE2SUMS: ' err
  status 'sum mends it' 0 chainweb-backup sum --backup-directory copy "$id"
  check 'and says so' grep -q 'mended: 0/sqlite/BLAKE2SUMS: ' err
  check 'and b2sum agrees' sh -c "cd 'copy/$id/0/sqlite' && b2sum --quiet --strict -c BLAKE2SUMS"
done
# Without lists there are still the checksums in RocksDB's own formats.
for class in sst wal MANIFEST; do
  rm -rf copy && mkdir copy && cp -a --reflink=auto "backups/$id" copy/ && rm "copy/$id"/0/*/BLAKE2SUMS
  flip "copy/$id/$(pick "$class" "copy/$id" 0)" 0.1 0.5
  status "no BLAKE2SUMS, flip of $class: verify --deep is 13" 13 chainweb-backup verify --backup-directory copy "$id" --deep
done
echo "# $total damages, found by verify/--deep/all: ${summary#, }; $unseen flips and swaps were restored without --deep"
end
