#!/bin/sh
# Copies a backup to another host, to an rsync server or to another disk; for `afterSuccess` of chainweb-backup.
#
#   rsync.sh DESTINATION [OPTION OF RSYNC...]
#
# Both hosts need rsync 3.1.3 or newer. DESTINATION is HOST:DIRECTORY (by ssh, as the user of the service, with a key without a passphrase), rsync://HOST/MODULE/DIRECTORY or
# an absolute DIRECTORY; it must exist. Options are for example --bwlimit=20m, --password-file=FILE for an rsync server, and --fsync (from
# rsync 3.2.4 on), with which the other host has all files on its disk before the copy is called done.
#
# - The destination is a backup directory: `chainweb-backup list`, `verify`, `restore` and `prune` work there.
# - A file that is in the newest copy there becomes a hard link to it: only what has changed is sent and stored.
# - backup.json and status are sent last: until then the copy is no backup. A copy that was interrupted is completed by the next run
#   for the same backup, or by the run for the next one.
# - A copy that is complete stays as it is, whatever becomes of the backup here: it only gets the checksums (BLAKE2SUMS), which are
#   written after a backup is done. A backup in which a verification has found damage is not copied.
# - Nothing is deleted at the destination: prune there, so that whoever has this host cannot delete the copies.
set -eu

fail() {
  printf 'rsync.sh: %s\n' "$*" >&2
  exit 1
}

[ $# -ge 1 ] || { echo 'usage: rsync.sh DESTINATION [OPTION OF RSYNC...]' >&2 && exit 2; }
to=${1%/}
shift
case $to in
  /* | *:*) ;;
  *) echo "rsync.sh: the destination must be HOST:DIRECTORY, rsync://HOST/MODULE/DIRECTORY or an absolute path, not '$to'" >&2 && exit 2 ;;
esac
for option in "$@"; do
  case $option in
    --inplace | --append* | --del* | --remove-s* | --write-devices)
      echo "rsync.sh: $option would change or delete what another copy shares" >&2 && exit 2
      ;;
  esac
done
id=${CHAINWEB_BACKUP_ID:-} from=${CHAINWEB_BACKUP_DIRECTORY:-}
[ -n "${id:+$from}" ] || fail 'CHAINWEB_BACKUP_ID is missing: this is a hook of chainweb-backup'
[ "${CHAINWEB_BACKUP_STATUS:-}" = backup-done ] || fail "backup $id is not done: use this for afterSuccess"
[ "${CHAINWEB_BACKUP_FAULTS:-0}" -eq 0 ] || fail "backup $id is damaged: it is not copied"
command -v rsync >/dev/null || fail 'rsync is not installed'
: "${RSYNC_RSH:=ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=30}"
export RSYNC_RSH

# The identifiers at the destination.
listed=$(rsync --timeout=600 --list-only "$@" "$to/") ||
  fail "cannot list $to: does it exist there, and may this user write to it?"
ids=$(printf '%s\n' "$listed" | awk '$1 ~ /^d/ && $NF ~ /^[0-9]+$/ && length($NF) >= 13 { print $NF }' | sort -n)
newest=$(printf '%s\n' "$ids" | grep -vxF -e "$id" | tail -n 1)

# is_complete ID [OPTION...]: whether it is there, with the file that is sent last.
is_complete() {
  asked=$1
  shift
  printf '%s\n' "$ids" | grep -qxF -e "$asked" || return 1
  names=$(rsync --timeout=600 --list-only "$@" "$to/$asked/") || fail "cannot list $to/$asked"
  printf '%s\n' "$names" | grep -q ' status$'
}

# is_damaged ID: whether a verification has found damage in the backup here.
is_damaged() {
  grep -q '"faults_count": *[1-9]' "$from/$1/verified.json" 2>/dev/null
}

# copy ID [OPTION...]: its files, then the two that make them a backup. Files are equal if their sizes and times are, to the nanosecond:
# two backups of the same second have files of the same size and other content (RocksDB's CURRENT).
copy() {
  copied=$1
  shift
  rsync -rtp --modify-window=-1 --timeout=600 --exclude=/backup.json --exclude=/status --exclude=/status.failed --exclude=/.use --exclude=/.cancel \
    --exclude=/.pinned --exclude='.*.tmp' "$@" "$from/$copied/" "$to/$copied/" &&
    rsync -tp --modify-window=-1 --timeout=600 "$@" "$from/$copied/backup.json" "$from/$copied/status" "$to/$copied/"
}

# add_sums ID [OPTION...]: the checksums that a complete copy lacks.
add_sums() {
  added=$1
  shift
  has_list=''
  for list in 0/rocksDb/BLAKE2SUMS 0/sqlite/BLAKE2SUMS; do
    [ ! -e "$from/$added/$list" ] || { set -- "$@" "$from/$added/./$list" && has_list=yes; }
  done
  [ -z "$has_list" ] || rsync -tpR --no-implied-dirs --ignore-existing --timeout=600 "$@" "$to/$added/"
}

if [ -n "$newest" ] && [ "$(cat "$from/$newest/status" 2>/dev/null)" = backup-done ] && ! is_damaged "$newest"; then
  # It may be deleted here meanwhile.
  if is_complete "$newest" "$@"; then add_sums "$newest" "$@"; else copy "$newest" "$@"; fi || [ ! -e "$from/$newest/status" ] ||
    fail "cannot complete the copy of backup $newest in $to"
fi
if is_complete "$id" "$@"; then
  is_damaged "$id" || add_sums "$id" "$@" || fail "cannot add the checksums of backup $id in $to"
  echo "$id is in $to already"
  exit 0
fi
! is_damaged "$id" || fail "backup $id is damaged: it is not copied"
if [ -n "$newest" ]; then
  set -- "$@" "--link-dest=../$newest"
fi
copy "$id" "$@" || fail "cannot copy backup $id to $to; what was sent is kept for the next attempt"
echo "copied $id to $to${newest:+, with links to $newest}"
