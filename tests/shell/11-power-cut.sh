#!/bin/sh
# Simulated power cuts on a loop-mounted file system, during a backup, a restore (also over an old database), a delete, a prune.
# After each one: an identifier that was handed out is known and has ended, a backup that is done is whole, no good backup is lost, a
# target has the whole database or none. CUTS is their number (30), SEED chooses the moments.
#
# Some sources are not synced: a database, or a backup, that cp, tar or rsync brought there a moment ago. Half of these cuts are made
# just after the program has ended with success. WITHOUT_CACHESTAT=1: on a kernel that cannot be asked
# which pages are written.
#
# The disk of the file system is an image on an xfs, the pool, which is shut down without writing its log. So the disk also loses data
# that was sent to it without a flush, as a real disk with a cache does. Data that the pool has written back by itself survives, in
# any order. After the cut the file system gets EIO for each write and flush.
. "$(dirname -- "$0")/lib.sh"

CUTS=${CUTS:-30} SEED=${SEED:-$(date +%s)}
mount_point=$DIR/mnt
mkdir "$mount_point" pool
mounts="$mount_point $DIR/pool"

random_ms() {
  awk -v seed="$1" -v max="$2" 'BEGIN { srand(seed); rand(); printf "%.3f", rand() * max / 1000 }'
}

problem() {
  problems="$problems; $*"
}

serve() {
  start serve.log chainweb-backup serve --database-directory "$mount_point/node" --enable-backup-api --reserve-bytes 1MiB
}

# program COMMAND...: the program under test, with or without cachestat(2).
program() {
  if [ -n "${WITHOUT_CACHESTAT:-}" ]; then LD_PRELOAD=$DIR/no-cachestat.so chainweb-backup "$@"; else chainweb-backup "$@"; fi
}

if [ -n "${WITHOUT_CACHESTAT:-}" ]; then
  cc -shared -fPIC -O2 -o no-cachestat.so "$ROOT/tests/shell/no-cachestat.c" -ldl || { echo 'Bail out! no compiler' && exit 1; }
fi

# bring FROM TO: copies the content of a directory, and syncs nothing.
bring() {
  mkdir -p "$2"
  case $((round / 3 % 3)) in
    0) cp -r --reflink=never "$1/." "$2" ;;
    1) tar -C "$1" -cf - . | tar -C "$2" -xf - ;;
    2) rsync -a "$1/" "$2" ;;
  esac
}

# prepare: an empty file system of this kind, mounted.
prepare() {
  disk=pool/$kind.img
  truncate -s 2G pool.img && mkfs.xfs -q -f pool.img && mount -o loop pool.img pool &&
    truncate -s 1G "$disk" && "mkfs.$kind" -q "$disk" && mount -o loop "$disk" "$mount_point"
}

# cut: takes the power away, and gives it back.
cut() {
  xfs_io -x -c shutdown pool >cut.log 2>&1 || problem "no shutdown: $(cat cut.log)"
  for pid in $pids; do kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
  pids=''
  wait "$asking" 2>/dev/null
  # A child that reads the heights may take a moment to notice.
  tries=0
  for place in "$mount_point" pool; do
    until umount "$place" 2>umount.log || [ "$tries" -ge 100 ]; do
      tries=$((tries + 1))
      sleep 0.05
    done
  done
  { mount -o loop pool.img pool && mount -o loop "$disk" "$mount_point"; } 2>>umount.log ||
    problem "the file system did not come back: $(cat umount.log)"
}

# good ID [DIRECTORY]: prints what is wrong with a backup whose status is done; nothing if it is good.
good() {
  chainweb-backup verify --backup-directory "${2:-$mount_point/node/backups}" "$1" --deep >verified 2>&1 &&
    demo-node verify "${2:-$mount_point/node/backups}/$1" >verified 2>&1 && return
  tail -n 1 verified
}

# judge_backup DIRECTORY: checks the backup whose identifier is in the file answer, if there is one; leaves $id and $word.
judge_backup() {
  id=$(head -n 1 answer)
  [ -n "$id" ] || return
  http GET "/check-backup/$id"
  word=$(cat body)
  case $word in
    backup-done) fault=$(good "$id" "$1") && [ -z "$fault" ] || problem "$id is called done, but $fault" ;;
    backup-failed)
      await_garbage "$1"
      [ "$(ls -A "$1/$id" | tr '\n' ' ')" = '.use backup.json status ' ] || problem "$id failed and has more"
      ;;
    *) problem "the status of $id is $code $word" ;;
  esac
}

# make_of_fresh: makes a backup of a database that was brought here a moment ago. No process has it open, or a node in or beside the
# program has. Ends when the backup is done, or earlier.
make_of_fresh() {
  bring "$mount_point/node/0" "$fresh/0"
  case $(((round / 10 + round) % 3)) in
    0) start fresh.log demo-node --database-directory "$fresh" --rate 0 --backup-directory "$fresh_backups" ;;
    1) start fresh.log demo-node --database-directory "$fresh" --rate 0 --disable-backup-api ;;
  esac
  case $(((round / 10 + round) % 3)) in
    0) curl -fsS -X POST -o answer "http://$address/make-backup?backupPact" 2>curl.err ;;
    *)
      program make --database-directory "$fresh" --backup-directory "$fresh_backups" --backup-pact --sums none \
        --reserve-bytes 1MiB >answer 2>make.log &
      ;;
  esac
  asking=$!
  moment=$(random_ms "$((SEED + round))" 600)
  [ $((round / 5 % 2)) -eq 1 ] && moment=end || { sleep "$moment" && return; }
  case $(((round / 10 + round) % 3)) in
    0) await "$(cat answer)" ;;
    *) wait "$asking" || problem "make failed: $(tail -n 1 make.log)" ;;
  esac
}

# restore_of_fresh: restores a backup that was brought here a moment ago.
restore_of_fresh() {
  bring "$backups/$keeper" "$fresh_backups/$keeper"
  program restore --backup-directory "$fresh_backups" "$keeper" --to "$mount_point/restored" >restore.log 2>&1 &
  asking=$!
  moment=$(random_ms "$((SEED + round))" 300)
  [ $((round / 5 % 2)) -eq 1 ] && moment=end || { sleep "$moment" && return; }
  wait "$asking" || problem "restore failed: $(tail -n 1 restore.log)"
}

one_cut() {
  problems='' id='' word='' round=$1 backups=$mount_point/node/backups replace=''
  fresh=$mount_point/fresh fresh_backups=$mount_point/fresh-backups
  case $((round % 10)) in
    9) what=prune ;;
    3 | 8) what='restore of a fresh copy' ;;
    1 | 4 | 6) what='backup of a fresh copy' ;;
    7) what=restore replace=--replace ;;
    5) what=delete ;;
    2) what=restore ;;
    0) what=backup ;;
  esac
  serve
  moment=$(random_ms "$((SEED + round))" 400)
  : >answer
  case $what in
    'backup of a fresh copy') make_of_fresh ;;
    'restore of a fresh copy') restore_of_fresh ;;
    backup) curl -fsS -X POST -o answer "http://$address/make-backup?backupPact" 2>curl.err & ;;
    restore)
      moment=$(random_ms "$((SEED + round))" 120)
      [ -z "$replace" ] ||
        chainweb-backup restore --backup-directory "$backups" latest --to "$mount_point/restored" >restore.log 2>&1 ||
        problem "the first restore: $(cat restore.log)"
      # shellcheck disable=SC2086 # no word or one
      chainweb-backup restore --backup-directory "$backups" latest --to "$mount_point/restored" $replace >restore.log 2>&1 &
      ;;
    prune)
      backup '?backupPact'
      victim=$id
      backup '?backupPact'
      survivor=$id
      # The pinned keeper does not count.
      chainweb-backup prune --backup-directory "$backups" --keep-last 1 >prune.log 2>&1 &
      moment=$(random_ms "$((SEED + round))" 25)
      ;;
    delete)
      backup '?backupPact'
      victim=$id
      chainweb-backup delete --backup-directory "$backups" "$victim" >delete.log 2>&1 &
      moment=$(random_ms "$((SEED + round))" 25)
      ;;
  esac
  case $what in
    *fresh*) ;;
    *) asking=$! && sleep "$moment" ;;
  esac
  cut
  if [ "$what" = 'backup of a fresh copy' ]; then
    start fresh.log chainweb-backup serve --database-directory "$mount_point/node" --backup-directory "$fresh_backups" \
      --enable-backup-api --reserve-bytes 1MiB
    judge_backup "$fresh_backups"
    [ "$moment$word" != endbackup-failed ] || problem "$id was done"
    stop TERM
  fi
  serve
  case $what in
    backup) judge_backup "$backups" ;;
    restore*)
      word=absent
      if [ -d "$mount_point/restored/0" ]; then
        word=restored
        demo-node verify "$mount_point/restored" >verified 2>&1 || problem "half a restore: $(tail -n 1 verified)"
      fi
      [ -z "$replace" ] || [ "$word" = restored ] || problem 'the old database is gone'
      [ "$moment$word" != endabsent ] || problem 'it was restored'
      rm -rf "$mount_point/restored"
      ;;
    delete | prune)
      if [ "$what" = prune ]; then
        fault=$(good "$survivor")
        [ -z "$fault" ] || problem "what prune keeps is damaged: $fault"
      fi
      http GET "/check-backup/$victim"
      word="$code $(cat body)"
      case $word in
        '200 backup-done') fault=$(good "$victim") && [ -z "$fault" ] || problem "$victim is half deleted: $fault" ;;
        404*) await_garbage "$backups" ;;
        *) problem "after a delete it is $word" ;;
      esac
      ;;
  esac
  http GET "/check-backup/$keeper"
  fault=$(good "$keeper")
  [ "$code $(cat body)$fault" = '200 backup-done' ] || problem "a good backup was lost: $code $(cat body) $fault"
  # All but the keeper are deleted, so that the file system does not fill up. The next cut must not bring them back.
  for old in $(ls "$backups"); do
    [ "$old" = "$keeper" ] || rm -rf "${backups:?}/$old"
  done
  rm -rf "$fresh" "$fresh_backups"
  sync -f "$mount_point"
  check "$kind, cut $round: $what after $moment s, then ${word:-no answer}" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}"
  stop TERM
}

# await_garbage DIRECTORY
await_garbage() {
  tries=0
  while find "$1" -maxdepth 1 -name '.deleting-*' | grep -q . && [ "$tries" -lt 200 ]; do
    tries=$((tries + 1))
    sleep 0.02
  done
}

echo "# seed $SEED"
round=0
for kind in xfs ext4 btrfs; do
  if ! prepare >prepare.log 2>&1; then
    skip "power cuts on $kind" "it cannot be made and mounted here: $(tail -n 1 prepare.log)"
    umount pool 2>/dev/null
    continue
  fi
  demo-node --database-directory "$mount_point/node" --chains 3 --fill 40000000 --write-buffer-bytes 1000000 --blocks 20 \
    --rate 0 --delay-ms 0 --exit-when-done --disable-backup-api --service-port 0 >node.log 2>&1 </dev/null
  serve
  backup '?backupPact'
  is "$kind: a backup before the first cut" "$word" backup-done
  keeper=$id
  status "$kind: it is pinned" 0 chainweb-backup pin --backup-directory "$mount_point/node/backups" "$keeper"
  stop TERM
  sync
  end_of_kind=$((round + CUTS / 3))
  while [ "$round" -lt "$end_of_kind" ]; do
    one_cut "$round"
    round=$((round + 1))
  done
  umount "$mount_point"
  umount pool
done
end
