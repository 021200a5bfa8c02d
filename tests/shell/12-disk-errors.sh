#!/bin/sh
# Disks that fail: a call of libc returns an error, the disk is full, or it loses data. No backup is falsely called done, no good
# backup is lost, and the next backup settles everything.
#
# The faults:
#   shim    errno-shim.c, by LD_PRELOAD, makes the N-th call of a group fail (`EIO`), or process half of its bytes (`half`), or
#           makes that call and all later ones fail (`EIO+`). It sees the calls of SQLite, RocksDB and Rust's std, not those of
#           rustix, which makes raw system calls (renameat2, the linkat of the live copy, fallocate, statfs): the crate's fault
#           gate tests these, and the order of our own operations. The child that reads the heights inherits the shim.
#   full    the backup directory is on a small ext4 or xfs, which a ballast file fills to each of LEVELS levels, before the
#           backup begins and while it copies.
#   thin    ext4 on a sparse image whose own file system is full, for a moment or from then on: only fsync reports that, and only
#           once. The file system is mounted again before it is checked, so that nothing comes from the page cache.
#
# Invariants, after each fault of a `make --backup-pact`:
#   - exit 0 if and only if the status is backup-done, and then `verify --deep` and `demo-node verify` find it good; an error
#     of sync or pace (sync_file_range takes the error of a write away from fsync) is never followed by a 0, unless only the note of
#     the start-up proof was synced
#   - else the status is backup-failed, with a reason, or there is no new backup; the standard error names the fault. If *all*
#     later calls fail too, or the file system is gone, the status may be in progress; the next start settles it
#   - a failed backup has only its record; `list` changes nothing; the older good backup still passes `verify --deep`
#   - the next `make`, with a sound disk, succeeds, and of the failed backup only the record is left
#   - the node's files are unchanged (a running node changes them; its database is verified at the end)
# and of a `restore`: exit 0 and a good database, or an error and no database; the next restore succeeds.
#
# CASES    errors by the shim, spread over all calls (60; `all` for each call with each error)
# LEVELS   fill levels (8)      THIN   sizes of the thin disk (4)      SEED   which calls and levels
# KINDS    some of: shim restore full thin
. "$(dirname -- "$0")/lib.sh"

CASES=${CASES:-60} LEVELS=${LEVELS:-8} THIN=${THIN:-4} SEED=${SEED:-$(date +%s)}
KINDS=${KINDS:-shim restore full thin}
DIR=$(pwd -P)
mount_point=$DIR/mnt pool=$DIR/pool
mkdir "$mount_point" "$pool"
mounts="$mount_point $pool"
: >tally

problem() {
  problems="$problems; $*"
}

# wants KIND
wants() {
  case " $KINDS " in *" $1 "*) ;; *) return 1 ;; esac
}

# sums: the checksums of the node's files, except SQLite's -shm.
sums() {
  find "$source/0" -type f ! -name '*-shm' -exec sha256sum {} + | sort
}

# snapshot: a running node removes its names of linked files, which changes their number of names and %C.
snapshot() {
  changing=''
  case $source in */running) changing='*.sst' ;; esac
  find "$place" -printf '%p %y %s %m %i %T@' \( -name "$changing" -printf '\n' -o -printf ' %n %C@\n' \) | sort
}

# run [VARIABLE=VALUE...] COMMAND...: leaves $got and the files out and err. 124 is the time limit, more is a signal.
run() {
  got=0
  timeout 60 env "$@" >out 2>err </dev/null || got=$?
  [ "$got" -lt 124 ] || problem "it ended with $got: $(tail -n 1 err)"
}

make_backup() {
  # Checksums are written after the commit, if files must be read: after an error there they are missing, and the backup is good.
  sums=copied
  case ${group:-} in sync | pace) sums=none ;; esac
  run "$@" chainweb-backup make --backup-pact --reserve-bytes 0 --sums "$sums" \
    --database-directory "$source" --backup-directory "$place"
}

# others: the new backups, with the records of failed ones.
others() {
  find "$place" -mindepth 1 -maxdepth 1 ! -name '.*' ! -name "$keeper" -printf '%f\n'
}

# held ID: leaves the names in a failed backup in $held.
only_record='.use backup.json status '
held() {
  held=$(find "$place/$1" -mindepth 1 -maxdepth 1 -printf '%f\n' | sort | tr '\n' ' ')
}

garbage() {
  find "$place" "$source/.chainweb-backup-pin" -mindepth 1 -maxdepth 2 \( -name '.deleting-*' -o -name '.creating-*' \
    -o -name 0.partial -o -name '.*.tmp' -o -name status.failed -o -path '*-pin/*' ! -name .lock \) 2>/dev/null | tr '\n' ' '
}

# good ID: prints what is wrong with a backup; nothing if it is good.
good() {
  chainweb-backup verify --backup-directory "$place" "$1" --deep >verified 2>&1 &&
    demo-node verify --expect-chains 3 "$place/$1" >verified 2>&1 && return
  tr '\n' ' ' <verified
}

# names ERROR: words that every message of such an error has, or those of a library that does not pass on the error of the system.
# (SQLite treats a -wal that it cannot read as damaged, and ignores that it cannot remove it.)
names() {
  case $1 in
    EIO*) echo 'Input/output error|IO error' ;;
    ENOSPC* | full) echo 'No space left|not enough space|disk is full|must stay free' ;;
    EACCES*) echo 'Permission denied' ;;
    EMFILE*) echo 'Too many open files' ;;
    *) echo . ;;
  esac
  echo 'disk I/O error|unable to open database file|attempt to write a readonly database|disk image is malformed'
  echo '-wal is left beside the copy|wal_dir not found'
}

# judge ERROR: checks the make that has just ended. Leaves $word.
judge() {
  errno=$1 result=$got
  said=$(cat err)
  new=$(others)
  word='no backup' reason=''
  case $new in
    '') [ "$result" -ne 0 ] || problem 'exit 0 without a backup' ;;
    *' '* | *"
"*) problem "more than one new backup: $new" ;;
    *)
      word=$(cat "$place/$new/status" 2>&1)
      reason=$(sed -n 's/^ *"reason": "\(.*\)",*$/\1/p' "$place/$new/backup.json")
      [ "$result" -ne 0 ] || [ "$(cat out)" = "$new" ] || problem "it printed '$(cat out)' for $new"
      ;;
  esac
  case $result,$word in
    0,backup-done)
      fault=$(good "$new")
      [ -z "$fault" ] || problem "FALSE DONE: $new: $fault"
      case $group,$errno in
        sync,* | pace,*)
          # Without the note of its start-up proof a backup is good, and the proof is made again later. Only one call failed, and
          # the message says that it was one of the note: of its file, or of the directory in which the file got its name.
          { [ "$fired" -eq 1 ] && echo "$said" | grep 'start not proved' | grep -qE -e "$(names "$errno")"; } ||
            problem 'an error of a sync was ignored'
          ;;
      esac
      ;;
    0,*) problem "exit 0, but $word" ;;
    *,backup-failed)
      held "$new"
      case $errno,$held in
        *,"$only_record") ;;
        *+,* | thin,*) ;;
        *) problem "$new failed and holds $held" ;;
      esac
      [ -n "$reason" ] || case $errno in *+ | thin | full) ;; *) problem "$new has no reason" ;; esac
      ;;
    *,backup-in-progress) case $errno in *+ | thin) ;; *) problem "exit $result, but $new is in progress" ;; esac ;;
    *,backup-done)
      case $errno in *+ | thin) ;; *) problem "exit $result, but $new is done" ;; esac
      fault=$(good "$new")
      [ -z "$fault" ] || problem "FALSE DONE: $new: $fault"
      ;;
    *) ;;
  esac
  if [ "$result" -ne 0 ]; then
    echo "$said" | grep -qE '^error|\[ERROR\]' || problem "exit $result without a message"
    echo "$said $reason" | grep -qE -e "$(names "$errno")" || echo "$group $errno: $(echo "$said" | tail -n 1)" >>unclear
  fi
  chainweb-backup list --backup-directory "$place" >/dev/null 2>&1 || problem 'list fails'
}

# settle: makes a backup on a sound disk and checks it.
settle() {
  fault=$(good "$keeper")
  [ -z "$fault" ] || problem "a good backup was lost: $fault"
  snapshot >before
  chainweb-backup list --backup-directory "$place" >list.log 2>&1 || problem "list: $(cat list.log)"
  snapshot | cmp -s before - || problem 'list changed something'
  failed=$(others)
  make_backup LC_ALL=C
  [ "$got" -eq 0 ] || problem "the next backup: $(tail -n 1 err)"
  next=$(cat out)
  [ -z "$(garbage)" ] || problem "garbage after the next backup: $(garbage)"
  for old in $failed; do
    [ -d "$place/$old" ] || { problem "$old is unknown now" && continue; }
    case $(cat "$place/$old/status") in
      backup-done) [ "$word" = backup-done ] || problem "$old was $word and is done now" ;;
      backup-failed)
        [ "$word" != backup-done ] || problem "$old was done and is failed now"
        held "$old"
        [ "$held" = "$only_record" ] || problem "after the next start $old failed and holds $held"
        ;;
      *) problem "after the next start $old is $(cat "$place/$old/status")" ;;
    esac
  done
  [ -z "$next" ] || fault=$(good "$next")
  [ -z "$fault" ] || problem "the next backup: $fault"
  [ "$source" = "$home/running" ] || sums | cmp -s "$source.sums" - || problem 'THE NODE WAS CHANGED'
  for old in $(others); do rm -rf "${place:?}/$old"; done
}

# verdict NAME KIND FIRED
verdict() {
  check "$1" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}"
  echo "$2 $3 $(echo "$word" | tr ' ' -) $([ -z "$problems" ] && echo held || echo broken)" >>tally
}

# use SOURCE PLACE: makes the good backup that must not be lost in the cases that follow.
use() {
  source=$1 place=$2
  [ "$source" = "$home/running" ] || sums >"$source.sums"
  problems='' keeper=none
  make_backup LC_ALL=C
  keeper=$(cat out)
  [ "$got" -eq 0 ] && [ -z "$(good "$keeper")" ] && return
  echo "Bail out! no backup before the first fault: $(cat err)"
  exit 1
}

# errors GROUP: the errors of its calls.
errors() {
  case $1 in
    open) echo EMFILE ENOSPC EIO EACCES ENOSPC+ ;;
    read-open) echo EMFILE EIO EACCES EMFILE+ ;;
    list) echo EIO ;;
    read) echo EIO half ;;
    write) echo ENOSPC EIO half ENOSPC+ ;;
    allocate) echo ENOSPC EIO EOPNOTSUPP ;;
    truncate) echo EIO ENOSPC ;;
    sync) echo EIO ENOSPC EIO+ ;;
    pace) echo EIO ;;
    rename) echo EIO ENOSPC EIO+ ;;
    link) echo EIO ENOSPC EMLINK ;;
    mkdir) echo ENOSPC EACCES ;;
    unlink) echo EIO EACCES EIO+ ;;
    all) echo EIO EIO+ ;;
  esac
}

# there NAME: leaves the backup directory of a node in $place (`here` is on the node's file system), and the target of a restore,
# which is on the node's file system, in $target.
there() {
  place=$home/$1/backups target=$home/target
  [ "$where" = here ] || place=$DIR/backups.$1
}

code_of() {
  case ${1%+} in
    EIO) echo 5 ;;
    EACCES) echo 13 ;;
    EMFILE) echo 24 ;;
    ENOSPC) echo 28 ;;
    EMLINK) echo 31 ;;
    EOPNOTSUPP) echo 95 ;;
    half) echo 0 ;;
  esac
}

# shimmed GROUP N ERROR: the variables for env.
shimmed() {
  rm -f shim.log shim.log.count
  case $3 in *+) howmany=1000000 ;; *) howmany=1 ;; esac
  set -- "SHIM_GROUP=$1" "SHIM_N=$2" "SHIM_FOR=$howmany" "SHIM_ERRNO=$(code_of "$3")" \
    "SHIM_DIR=$watched" "SHIM_LOG=$DIR/shim.log" "LD_PRELOAD=$DIR/shim.so"
  echo "$@"
}

fired() {
  grep -c ^fired shim.log 2>/dev/null
}

# plan TITLE: after a run without errors, a line for each call and each error of it: TITLE GROUP ERROR N.
plan() {
  awk '{ n[$2]++; n["all"]++ } END { for (g in n) print g, n[g] }' shim.log | sort | while read -r group calls; do
    for errno in $(errors "$group"); do echo "$1 $group $errno $calls"; done
  done
}

# choose COUNT: an even share of the calls of each line of the plan, from a random one on.
choose() {
  awk -v wanted="$1" -v seed="$SEED" '
    { line[NR] = $0; calls[NR] = $NF }
    END {
      srand(seed)
      rand()
      credit = rand()
      low = 0
      high = 100000
      while (high - low > 0.01) { # the number of calls that each line may have so that there are `wanted` in all
        middle = (low + high) / 2
        sum = 0
        for (i = 1; i <= NR; i++) sum += calls[i] < middle ? calls[i] : middle
        if (wanted != "all" && sum > wanted) high = middle; else low = middle
      }
      for (i = 1; i <= NR; i++) {
        share = calls[i] < low ? calls[i] : low
        credit += share
        turn = int(credit)
        credit -= turn
        from = rand() * calls[i]
        for (k = 0; k < turn; k++) {
          $0 = line[i]
          print $1, $2, $3, $4, int(from + k * calls[i] / turn) % calls[i] + 1
        }
      }
    }'
}

shim_case() {
  problems='' group=$3
  # shellcheck disable=SC2046 # several words
  make_backup $(shimmed "$3" "$5" "$4")
  hit=$got fired=$(fired)
  what=$(sed -n '1s,^fired [^ ]* \([^ ]*\) .*/,\1 ,p' shim.log 2>/dev/null)
  if [ "${fired:-0}" -eq 0 ]; then
    word='not fired'
    [ "$got" -eq 0 ] || problem "nothing fired, and it failed: $(cat err)"
    for old in $(others); do rm -rf "${place:?}/$old"; done
  else
    judge "$4"
    settle
  fi
  verdict "$1 $2: $4 at call $5 of $3 (${what:-not reached}): exit $hit, $word" "shim-$3" "${fired:-0}"
}

# restore_case: `restore latest` into an empty place.
restore_case() {
  problems='' group=$3
  rm -rf "$target"
  # shellcheck disable=SC2046 # several words
  run $(shimmed "$3" "$5" "$4") chainweb-backup restore --backup-directory "$place" latest --to "$target"
  hit=$got fired=$(fired)
  what=$(sed -n '1s,^fired [^ ]* \([^ ]*\) .*/,\1 ,p' shim.log 2>/dev/null)
  word='not restored'
  [ ! -e "$target/0" ] || word=restored
  case $got,$word,${fired:-0} in
    *,*,0) [ "$got" -eq 0 ] || problem "nothing fired, and it failed: $(cat err)" ;;
    0,restored,*) case $group in sync | pace) problem 'an error of a sync was ignored' ;; esac ;;
    0,*) problem 'exit 0, but there is no database' ;;
    *)
      [ "$word" != restored ] || case $4,$what in
        *+,* | *,fsync\ target | *,open64\ target) ;; # it is in its place, but may not be durable: the message says so
        *) problem "exit $got, but there is a database" ;;
      esac
      grep -q '^error' err || problem "exit $got without a message"
      grep -qE -e "$(names "$4")" err || echo "restore $group $4: $(cat err)" >>unclear
      ;;
  esac
  if [ "$word" = restored ]; then
    demo-node verify --expect-chains 3 "$target" >verified 2>&1 || problem "HALF A RESTORE: $(tail -n 1 verified)"
    mv "$target/0" "$target/first"
  fi
  fault=$(good "$keeper")
  [ -z "$fault" ] || problem "a good backup was lost: $fault"
  run chainweb-backup restore --backup-directory "$place" latest --to "$target"
  demo-node verify --expect-chains 3 "$target" >verified 2>&1 || problem "the next restore: $(cat err verified)"
  [ -z "$(find "$target" -name '.restoring-*')" ] || problem 'the next restore left a .restoring-'
  verdict "$1 $2: $4 at call $5 of $3 (${what:-not reached}): exit $hit, $word" "restore-$3" "${fired:-0}"
}

# free_bytes: on the file system of the backups.
free_bytes() {
  # shellcheck disable=SC2046 # two numbers
  set -- $(stat -f -c '%a %S' "$mount_point")
  echo "$(($1 * $2))"
}

# leave_free BYTES: fills the file system until about that much is free.
leave_free() {
  step=0
  while more=$(($(free_bytes) - $1)) && [ "$more" -ge 4096 ] && [ "$step" -lt 12 ]; do
    step=$((step + 1))
    fallocate -l "$more" "$mount_point/ballast.$step" 2>/dev/null ||
      fallocate -l "$((more * 3 / 4))" "$mount_point/ballast.$step" 2>/dev/null
  done
}

# random MAX
random() {
  awk -v seed="$((SEED + round))" -v max="$1" 'BEGIN { srand(seed); rand(); printf "%d", rand() * max }'
}

# needs: leaves the bytes that the next backup needs, by its own message, in $needed.
needs() {
  run chainweb-backup make --backup-pact --reserve-bytes 1000TiB --database-directory "$source" --backup-directory "$place"
  needed=$(sed -n 's/.*the backup needs \([0-9]*\) bytes.*/\1/p' err | head -n 1)
  for old in $(others); do rm -rf "${place:?}/$old"; done
}

full_case() {
  problems='' group=full
  case $((round % 6)) in
    0) when=before wanted=$(random 65536) ;; # not even a record, or only half of one
    1) when=before wanted=$((needed + $(random 400000) - 100000)) ;; # enough, or nearly
    2) when=before wanted=$(random "$needed") ;;
    *) when=while wanted=$(random "$((needed / 4))") ;; # taken by somebody else after pre-flight
  esac
  if [ "$when" = before ]; then
    leave_free "$wanted"
    at=$(free_bytes)
    make_backup LC_ALL=C
  else
    at=$wanted
    (
      tries=0
      set -- "$place"/*/0.partial
      until [ -e "$1" ] || [ "$tries" -ge 20000 ]; do
        tries=$((tries + 1))
        set -- "$place"/*/0.partial
      done
      leave_free "$wanted"
    ) &
    filler=$!
    make_backup LC_ALL=C
    wait "$filler"
  fi
  cp err full.err
  judge full
  short=$(grep -E '^error|ERROR' full.err | grep -oE 'No space left|not enough space|disk is full' | head -n 1)
  rm -f "$mount_point"/ballast.*
  hit=$result
  settle
  verdict "full $kind, $(basename "$source"), $at bytes free $when: exit $hit, $word${short:+ ($short)}" "full-$kind-$when" \
    "$((hit != 0))"
}

# requests KIB: sets the size of the largest write that the loop device of the mount makes; leaves the old one in $largest. If a file takes
# only a part of a write, because its disk is full now, Linux 6.18 says that all of it was written (lo_complete_rq): a page is
# written as a whole or not at all.
requests() {
  device=$(awk -v at="$mount_point" '$2 == at { sub(".*/", "", $1); print $1 }' /proc/self/mounts)
  largest=$(cat "/sys/block/$device/queue/max_sectors_kb") && echo "$1" >"/sys/block/$device/queue/max_sectors_kb"
}

thin_case() {
  problems='' group=thin
  mount -t tmpfs -o size=300m pool "$pool" 2>mount.log || return 1
  truncate -s 128M "$pool/image"
  # All of ext4's own blocks are at the beginning and have their memory, so only data is lost; by turns not even these.
  mkfs.ext4 -q -m 0 -N 1024 -J size=4 -E packed_meta_blocks=1,nodiscard,lazy_itable_init=0 "$pool/image" >mkfs.log 2>&1
  [ $((round % 4)) -eq 3 ] || dd if="$pool/image" of="$pool/image" bs=1M count=5 conv=notrunc 2>/dev/null
  mount -o loop "$pool/image" "$mount_point" 2>mount.log && requests 4 2>mount.log || return 1
  mkdir "$mount_point/backups"
  use "$home/stopped" "$mount_point/backups"
  source=$home/full # so that no file of the good backup can be used again
  sums >"$source.sums"
  needs
  sync -f "$mount_point"
  kept=$(du -B1 "$pool/image" | cut -f1)
  level=$((needed * (round * 16 + $(random 16)) / (16 * THIN)))
  mount -o "remount,size=$(((kept + level) / 4096 * 4096))" "$pool"
  lasts='to the end' healer=''
  if [ $((round % 4)) -lt 2 ]; then
    lasts='for a moment' # as of a bad block, or until somebody enlarges the pool
    (
      tries=0
      until [ "$(stat -f -c %a "$pool")" -eq 0 ] || [ "$tries" -ge 1000 ]; do tries=$((tries + 1)); done
      sleep 0.01
      mount -o remount,size=300m "$pool"
    ) &
    healer=$!
  fi
  make_backup LC_ALL=C
  cp err thin.err
  [ -z "$healer" ] || wait "$healer"
  hit=$got
  requests "$largest"
  umount "$mount_point"
  mount -o remount,size=300m "$pool"
  e2fsck -fy "$pool/image" >fsck.log 2>&1
  mount -o loop "$pool/image" "$mount_point"
  judge thin
  settle
  short=$(sed -n 's/.*reason="\(.*\)"$/\1/p' thin.err | sed "s,$place/,,g" | cut -c 1-160)
  verdict "thin, $level of $needed bytes, full $lasts: exit $hit, $word${short:+ ($short)}" thin "$((hit != 0))"
  umount "$mount_point" && umount "$pool"
}

echo "# seed $SEED"
: >unclear
: >planned
SHM=$(mktemp -d /dev/shm/chainweb-backup-test.XXXXXX 2>/dev/null) || SHM=''
home=${SHM:-$DIR} # a sync costs nothing there
node "$home/stopped" --chains 3 --fill 1000000 --write-buffer-bytes 100000
node "$home/full" --chains 3 --fill 12000000 --write-buffer-bytes 1000000
# The node is killed between two blocks: otherwise its Pact may be ahead, which is no fault of a backup.
until demo-node verify "$home/crashed" >crashed.log 2>&1; do
  start crashed.log demo-node --database-directory "$home/crashed" --chains 3 --fill 600000 --write-buffer-bytes 100000 \
    --rate 4 --delay-ms 0 --disable-backup-api
  sleep 0.6
  stop KILL
done
check 'the crashed node left a -wal' [ -s "$home/crashed/0/sqlite/pact-v1-chain-0.sqlite-wal" ]
start running.log demo-node --database-directory "$home/running" --chains 3 --fill 600000 --write-buffer-bytes 100000 --rate 5 \
  --disable-backup-api
sources='stopped crashed running'
if command -v sqlite3 >/dev/null; then
  cp -a "$home/stopped" "$home/journal"
  for database in "$home"/journal/0/sqlite/*.sqlite; do sqlite3 "$database" 'PRAGMA journal_mode = delete' >journal.log; done
  sources="$sources journal"
fi

shim=yes
if ! command -v cc >/dev/null; then
  skip 'errors of single calls' 'there is no cc'
  shim=''
else
  cc -shared -fPIC -O1 -Wall -Wextra -o shim.so "$ROOT/tests/shell/errno-shim.c" 2>cc.log
  is 'the shim is built without a warning' "$(cat cc.log)" ''
fi
if [ -n "$shim" ] && wants shim; then
  for name in $sources; do
    for where in here ${SHM:+there}; do
      there "$name"
      use "$home/$name" "$place"
      echo "$keeper" >"keeper.$name.$where"
      watched=$source:$place:/proc
      # shellcheck disable=SC2046 # several words
      make_backup $(shimmed all 0 EIO)
      plan "$name $where" >>planned
      for old in $(others); do rm -rf "${place:?}/$old"; done
    done
  done
  # A rare case: SQLite, if it is used in our place, would leave a -wal and a -shm beside the database of a stopped node.
  where=here
  for name in $sources; do
    there "$name"
    source=$home/$name
    keeper=$(cat "keeper.$name.$where") watched=$source/0/sqlite/pact-v1-chain-0.sqlite
    shim_case "$name" "$where" read EIO 1
  done
  choose "$CASES" <planned >chosen
  while read -r name where group errno n; do
    there "$name"
    source=$home/$name
    keeper=$(cat "keeper.$name.$where") watched=$source:$place:/proc
    shim_case "$name" "$where" "$group" "$errno" "$n"
  done <chosen
fi
if [ -n "$shim" ] && wants restore; then
  : >planned
  for where in here ${SHM:+there}; do
    there restore
    use "$home/stopped" "$place"
    echo "$keeper" >"keeper.restore.$where"
    watched=$place:$target
    # shellcheck disable=SC2046 # several words
    run $(shimmed all 0 EIO) chainweb-backup restore --backup-directory "$place" latest --to "$target"
    rm -rf "$target"
    plan "restore $where" >>planned
  done
  choose "$([ "$CASES" = all ] && echo all || echo "$(((CASES + 7) / 8))")" <planned >chosen
  while read -r name where group errno n; do
    there restore
    keeper=$(cat "keeper.restore.$where") watched=$place:$target
    restore_case "$name" "$where" "$group" "$errno" "$n"
  done <chosen
fi

if wants full; then
  for kind in ext4 xfs; do
    case $kind in ext4) options='-m 0' megabytes=96 ;; xfs) options='' megabytes=320 ;; esac
    truncate -s "${megabytes}M" "$kind.img"
    # shellcheck disable=SC2086 # none or two words
    if ! "mkfs.$kind" -q $options "$kind.img" >mkfs.log 2>&1 || ! mount -o loop "$kind.img" "$mount_point" 2>mount.log; then
      skip "full disks on $kind" "it cannot be made and mounted here: $(tail -n 1 mkfs.log mount.log 2>/dev/null | tail -n 1)"
      continue
    fi
    round=0 last=''
    while [ "$round" -lt $((LEVELS / 2)) ]; do
      name=full
      [ $((round % 4)) -ne 2 ] || name=running
      if [ "$name" != "$last" ]; then
        mkdir -p "$mount_point/$name"
        use "$home/$name" "$mount_point/$name"
        needs
        last=$name
      fi
      full_case
      round=$((round + 1))
    done
    umount "$mount_point"
  done
fi
if wants thin; then
  round=0
  while [ "$round" -lt "$THIN" ]; do
    thin_case || { skip 'thin disks' "they cannot be mounted here: $(tail -n 1 mount.log)" && break; }
    round=$((round + 1))
  done
fi

stop TERM
is 'the running node survived it all' "$(demo-node verify "$home/running" 2>&1 | grep -c '^ok:')" 1
is 'each message names the fault' "$(sort unclear | uniq -c)" ''
awk '{ n[$1]++; f[$1] += $2 > 0; r[$1, $3]++; broken[$1] += $4 == "broken"; words[$3] }
  END { for (k in n) {
    printf "# %s: %d cases, %d fired", k, n[k], f[k]
    for (w in words) if ((k, w) in r) printf ", %d %s", r[k, w], w
    printf ", %d broken\n", broken[k]
  } }' tally | sort
if [ -n "$shim" ] && wants shim; then
  # shellcheck disable=SC2016 # the variables of awk
  check 'nine of ten planned errors happened' \
    awk '/^shim/ { n++; f += $2 > 0 } END { exit !(n > 0 && f >= 0.9 * n) }' tally
fi
end
