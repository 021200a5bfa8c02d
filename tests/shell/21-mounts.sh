#!/bin/sh
# restore onto mounts and links: a backup is restored into each layout on each file system, first into an empty place and then over an
# old database; files that are not part of the database are kept; the demo node starts on the result. Then kill -9 at random moments:
# no node opens a half-done exchange, `make` and `list` report it, and resume, undo or the next restore makes it wholly new or wholly
# old. Power cuts: the file system below the volumes is shut down without writing its log. KILLS (24) and CUTS (12) are the numbers,
# SEED chooses the moments.
. "$(dirname -- "$0")/lib.sh"

KILLS=${KILLS:-24} CUTS=${CUTS:-12} SEED=${SEED:-$(date +%s)}
[ "$(id -u)" -eq 0 ] || { echo '1..0 # SKIP only root can mount' && exit 0; }
target=$DIR/target

problem() {
  problems="$problems; $*"
}

# volume KIND NAME DIRECTORY: a new file system, mounted there.
volume() {
  mkdir -p "$3"
  case $1 in
    tmpfs) mount -t tmpfs -o size=200m tmpfs "$3" ;;
    bind) mkdir -p "bound/$2" && mount --bind "bound/$2" "$3" ;;
    *) truncate -s 400M "$2.img" && "mkfs.$1" -q "$2.img" && mount -o loop "$2.img" "$3" ;;
  esac >volume.log 2>&1 || return 1
  mounts="$3 $mounts"
}

# lay KIND LAYOUT: an empty target of this layout.
lay() {
  unmount_all
  rm -rf "$target" bound linked ./*.img
  mkdir -p "$target"
  case $2 in
    at) volume "$1" whole "$target/0" ;;
    two) volume "$1" rocks "$target/0/rocksDb" && volume "$1" pact "$target/0/sqlite" ;;
    rocksDb) mkdir -p "$target/0/sqlite" && volume "$1" rocks "$target/0/rocksDb" ;;
    linked) mkdir -p linked/rocksDb linked/sqlite "$target/0" && ln -s "$DIR/linked/rocksDb" "$DIR/linked/sqlite" "$target/0" ;;
    linked0) mkdir -p linked && ln -s "$DIR/linked" "$target/0" ;;
    pins) mkdir -p "$target/0/.chainweb-backup-pin" "$target/0/backups/x" ;;
  esac
}

# old_in: an old database, without its LOCK: each of its files has its time.
old_in() {
  mkdir -p "$target/0/rocksDb" "$target/0/sqlite"
  cp -p old/0/rocksDb/* "$target/0/rocksDb/" && cp -p old/0/sqlite/* "$target/0/sqlite/"
}

# data DIRECTORY: the files of a database, without those that a refused node writes.
data() {
  (cd "$1" && for part in rocksDb sqlite; do
    find -L "$part" -maxdepth 1 -type f ! -name BLAKE2SUMS ! -name LOCK ! -name 'LOG*' ! -name '.restore-journal.json*' \
      ! -name '.CURRENT.tmp' -exec b2sum {} + 2>/dev/null
  done | sort -k 2)
}

# which DIRECTORY: new, old or mixed.
which() {
  data "$1" >which.list
  if cmp -s which.list new.list; then echo new; elif cmp -s which.list old.list; then echo old; else echo mixed; fi
}

# kept: old, if that database is beside the new one.
kept() {
  find -L "$target/0/rocksDb" -maxdepth 1 -name '0.bak-*' -exec basename {} \; >kept.names
  while read -r name; do
    rm -rf kept && mkdir -p kept/rocksDb kept/sqlite
    for part in rocksDb sqlite; do cp -p "$target/0/$part/$name"/* "kept/$part/"; done
    which kept
  done <kept.names | grep -x old
}

# left: the names of ours that are there, except old databases.
left() {
  find -L "$target" \( -name '.restor*' -o -name '.exchanging-*' -o -name '.*.tmp' -o -name '*.later-*' \) | tr '\n' ' '
}

restore() {
  # shellcheck disable=SC2086 # no word or one
  chainweb-backup restore --backup-directory node/backups latest --to "$target" $replace
}

# refused: no node opens a half-done exchange, and the attempt changes nothing.
refused() {
  find -L "$target/0" -type f ! -name 'LOG*' ! -name LOCK -exec b2sum {} + | sort -k 2 >before.list
  starts=$((starts + 1))
  demo-node --database-directory "$target" --blocks 1 --rate 0 --exit-when-done --disable-backup-api --service-port 0 \
    >refused.log 2>&1 </dev/null && problem 'a node started on what is half done'
  grep -q 'CURRENT' refused.log || problem "the node says: $(tail -n 1 refused.log)"
  find -L "$target/0" -type f ! -name 'LOG*' ! -name LOCK -exec b2sum {} + | sort -k 2 >after.list
  cmp -s before.list after.list || problem 'the refused node changed something'
  chainweb-backup make --database-directory "$target" --backup-directory "$DIR/none" >make.out 2>make.err </dev/null &&
    problem 'make made a backup of it'
  grep -q 'restore --undo --to' make.err || problem "make says: $(tail -n 1 make.err)"
}

is_half() {
  grep -qs 'half done' "$target/0/rocksDb/CURRENT"
}

# layout KIND LAYOUT
layout() {
  what="$2 on $1" replace='' problems=''
  if ! lay "$1" "$2"; then
    skip "$what" "it cannot be made and mounted here: $(tail -n 1 volume.log)"
    return
  fi
  echo foreign >"$target/0/foreign"
  foreign=$(find -L "$target" -mindepth 1 \( -type d -name 'lost+found' -o -name '.chainweb-backup-pin' -o -name x -o -name foreign \) | sort)
  find -L "$target" -printf '%p %i %s %m %T@ %C@\n' | sort >before.list
  chainweb-backup restore --backup-directory node/backups latest --to "$target" --dry-run >dry 2>err </dev/null || problem "dry-run: $(cat err)"
  chainweb-backup restore --backup-directory node/backups latest --to "$target" --dry-run --json >dry.json 2>err </dev/null || problem "dry-run: $(cat err)"
  find -L "$target" -printf '%p %i %s %m %T@ %C@\n' | sort >after.list
  cmp -s before.list after.list || problem 'dry-run wrote'
  grep -q '"way": "below"' dry.json || problem "the way is $(grep way dry.json)"
  restore >out 2>err </dev/null || problem "restore: $(cat err)"
  set -- "$(sed -n 's/^restored.*(\([0-9]*\) files linked, \([0-9]*\) cloned, \([0-9]*\) copied)$/\1 \2 \3/p' out)"
  [ "$1" = "$(sed -n 's/^.*: \([0-9]*\) files linked ([^)]*), \([0-9]*\) files cloned ([^)]*), \([0-9]*\) files copied.*$/\1 \2 \3/p' dry |
    awk '{ l += $1; n += $2; c += $3 } END { print l, n, c }')" ] || problem "dry-run foretold $(grep linked dry | tr '\n' ' '), it was $1"
  [ "$(which "$target/0")" = new ] || problem 'it is not the backup'
  demo-node verify "$target" >verified 2>&1 || problem "$(tail -n 1 verified)"
  check "$what: empty, restored" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}"

  problems=''
  for part in rocksDb sqlite; do find -L "$target/0/$part" -maxdepth 1 -type f -delete; done
  old_in
  restore >out 2>err </dev/null && problem 'restored without --replace'
  replace=--replace
  restore >out 2>err </dev/null || problem "restore --replace: $(cat err)"
  [ "$(which "$target/0") $(kept) $(left)" = 'new old ' ] || problem "it is $(which "$target/0"), kept $(kept), left $(left)"
  [ "$foreign" = "$(find -L "$target" -mindepth 1 \( -type d -name 'lost+found' -o -name '.chainweb-backup-pin' -o -name x -o -name foreign \) | sort)" ] ||
    problem 'what is not part of the database did not stay'
  demo-node --database-directory "$target" --blocks 20 --rate 0 --delay-ms 0 --exit-when-done --disable-backup-api \
    --service-port 0 >started.log 2>&1 </dev/null || problem "the node: $(tail -n 1 started.log)"
  demo-node verify "$target" >verified 2>&1 || problem "after the node: $(tail -n 1 verified)"
  check "$what: the old one is kept, the node starts" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}"
}

# settle HOW: after a kill or a cut; leaves $word. Only if the wanted database is in place because of it, it succeeds.
settle() {
  was_half='' code=0
  is_half && half=$((half + 1)) was_half=yes && refused
  case $1 in
    next) chainweb-backup restore --backup-directory node/backups latest --to "$target" --replace ;;
    *) chainweb-backup restore "--$1" --to "$target" ;;
  esac >settled 2>err || code=$?
  word=$(which "$target/0")
  case $1$word in
    nextnew | resumenew | undoold) ;;
    resumeold | undonew) [ "$code" -ne 0 ] || problem "$1 succeeds" ;;
    *) problem "it is $word" ;;
  esac
  [ "$code" -eq 0 ] || { [ "$1" != next ] && [ -z "$was_half" ] && grep -qE 'is half done|before it exchanged|was finished' err; } ||
    problem "$1: $code, $(cat err)"
  [ "$word" = old ] || [ "$(kept)" = old ] || problem 'the old one is lost'
  [ -z "$(left | sed 's/[^ ]*\.later-[^ ]*//g' | tr -d ' ')" ] || [ "$word$1" = oldresume ] || problem "left $(left)"
  demo-node verify "$target" >verified 2>&1 || problem "$(tail -n 1 verified)"
}

one_kill() {
  problems='' replace=--replace
  case $((round % 8)) in
    0) kind=ext4 shape=at ;;
    1) kind=ext4 shape=two ;;
    2) kind=tmpfs shape=at ;;
    3) kind=tmpfs shape=two ;;
    4) kind=bind shape=at ;;
    5) kind=ext4 shape=rocksDb ;;
    6) kind=none shape=linked ;;
    7) kind=none shape=linked0 ;;
  esac
  case $((round / 8 % 3)) in 0) how=resume ;; 1) how=undo ;; 2) how=next ;; esac
  lay "$kind" "$shape" && old_in
  chainweb-backup restore --backup-directory node/backups latest --to "$target" --replace >killed.out 2>killed.err </dev/null &
  pid=$! pids=$! tries=0
  # Most of the time goes into copies: wait for the exchange, then for less than it takes.
  until [ -e "$target/0/rocksDb/.restore-journal.json" ] || [ "$tries" -ge 200000 ]; do tries=$((tries + 1)); done
  tries=$(awk -v at="$1" 'BEGIN { printf "%d", at * 400 }')
  while [ "$tries" -gt 0 ]; do tries=$((tries - 1)); done
  stop KILL
  was=''
  is_half && was='half done, '
  settle "$how"
  check "kill $round, $shape on $kind: ${was}$how: $word" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}"
}

prepare_pool() {
  truncate -s 2500M pool.img && mkfs.xfs -q -f pool.img && mkdir -p pool && mount -o loop pool.img pool && mounts=$DIR/pool
}

# mount_disks: the volumes of the target, from images in the pool.
mount_disks() {
  for part in rocksDb sqlite; do
    mkdir -p "$target/0/$part"
    mount -o loop "pool/$part.img" "$target/0/$part" || return 1
    mounts="$target/0/$part $mounts"
  done
}

one_cut() {
  problems='' how=resume
  [ $((round % 2)) -eq 0 ] || how=undo
  unmount_all
  rm -rf "$target" && mkdir -p "$target"
  prepare_pool && for part in rocksDb sqlite; do truncate -s 500M "pool/$part.img" && "mkfs.$kind" -q "pool/$part.img" >volume.log 2>&1; done &&
    mount_disks || { skip "cut $round" 'no pool' && return; }
  old_in && sync
  chainweb-backup restore --backup-directory node/backups latest --to "$target" --replace >killed.out 2>killed.err </dev/null &
  pid=$! pids=$! tries=0
  until [ -e "$target/0/rocksDb/.restore-journal.json" ] || [ "$tries" -ge 200000 ]; do tries=$((tries + 1)); done
  sleep "$(awk -v at="$1" 'BEGIN { printf "%.4f", at * 0.06 }')"
  xfs_io -x -c shutdown pool >cut.log 2>&1 || problem "no shutdown: $(cat cut.log)"
  stop KILL
  for at in $mounts; do
    tries=0
    until umount "$at" 2>umount.log || [ "$tries" -ge 100 ]; do tries=$((tries + 1)) && sleep 0.05; done
  done
  { mount -o loop pool.img pool && mounts=$DIR/pool && mount_disks; } 2>umount.log || problem "not mounted again: $(cat umount.log)"
  was=''
  is_half && was='half done, '
  settle "$how"
  check "cut $round, two on $kind: ${was}$how: $word" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}"
}

echo "# seed $SEED"
node node --chains 3 --fill 3000000 --write-buffer-bytes 300000
node old --chains 4 --fill 2000000 --write-buffer-bytes 100000
status 'a backup' 0 chainweb-backup make --backup-pact --database-directory node
data old/0 >old.list
data "node/backups/$(cat out)/0" >new.list
half=0 starts=0
for kind in ext4 xfs btrfs tmpfs bind; do
  for shape in at two; do layout "$kind" "$shape"; done
done
layout ext4 rocksDb
for shape in linked linked0 pins; do layout none "$shape"; done
unmount_all

fractions "$KILLS" "$SEED" >moments
round=0
exec 3<moments
while read -r moment <&3; do
  one_kill "$moment"
  round=$((round + 1))
done
exec 3<&-
echo "# $half of $KILLS kills left it half done"
half=0
fractions "$CUTS" "$((SEED + 1))" >moments
round=0
exec 3<moments
while read -r moment <&3; do
  case $((round / 2 % 3)) in 0) kind=ext4 ;; 1) kind=xfs ;; 2) kind=btrfs ;; esac
  one_cut "$moment"
  round=$((round + 1))
done
exec 3<&-
echo "# $half of $CUTS cuts left it half done; $starts starts of a node were refused"
end
