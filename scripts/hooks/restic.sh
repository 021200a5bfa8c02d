#!/bin/sh
# Stores a backup in a restic repository; for `afterSuccess` of chainweb-backup.
#
#   restic.sh REPOSITORY PASSWORD-FILE [OPTION OF restic backup...]
#
# REPOSITORY is as for `restic -r`: a directory, sftp:USER@HOST:/DIRECTORY, s3:…, rest:…. It must exist (restic init). Credentials
# that restic takes from the environment come by env: [/usr/bin/env, AWS_ACCESS_KEY_ID=…, /path/restic.sh, …], or from a file that a
# script of yours reads.
#
# - The snapshot has the tags chainweb-backup and id=<ID>, and holds the content of the backup. To restore it, its directory must have
#   the identifier as its name:
#     restic -r REPOSITORY restore --tag id=ID --target DIRECTORY/ID latest && chainweb-backup verify --backup-directory DIRECTORY ID
# - A backup is stored once: a later run for it changes nothing, so damage of the backup here takes no place of the good snapshot.
# - A file that is in the snapshot before is not read again: the same inode, size and time of change of its content. A hard link changes
#   only the time of change of its inode, which is ignored.
# - Nothing is forgotten, except a snapshot that lacks a file because it could not be read. `restic forget --tag chainweb-backup
#   --group-by host --keep-daily 7 --prune` forgets old ones; without --group-by each backup, which has a path of its own, is kept.
set -eu

fail() {
  printf 'restic.sh: %s\n' "$*" >&2
  exit 1
}

[ $# -ge 2 ] || { echo 'usage: restic.sh REPOSITORY PASSWORD-FILE [OPTION OF restic backup...]' >&2 && exit 2; }
repository=$1 password=$2
shift 2
id=${CHAINWEB_BACKUP_ID:-} from=${CHAINWEB_BACKUP_PATH:-}
[ -n "${id:+$from}" ] || fail 'CHAINWEB_BACKUP_ID is missing: this is a hook of chainweb-backup'
[ "${CHAINWEB_BACKUP_STATUS:-}" = backup-done ] || fail "backup $id is not done: use this for afterSuccess"
[ "${CHAINWEB_BACKUP_FAULTS:-0}" -eq 0 ] || fail "backup $id is damaged: it is not copied"
command -v restic >/dev/null || fail 'restic is not installed'
[ -r "$password" ] || fail "cannot read the password file $password"

cache=''
[ -n "${HOME:-}${XDG_CACHE_HOME:-}" ] || cache=--no-cache
# restic COMMAND [ARGUMENT...] in this repository
call() {
  # shellcheck disable=SC2086 # an option or nothing
  restic --repo "$repository" --password-file "$password" $cache "$@" </dev/null
}

snapshots=$(call snapshots --json --tag chainweb-backup) ||
  fail "cannot list the snapshots of $repository: make it with restic init, and see the message above"
if printf '%s' "$snapshots" | grep -q "\"id=$id\""; then
  echo "$id is in $repository already"
  exit 0
fi
before=$(printf '%s' "$snapshots" | grep -o '"id":"[0-9a-f]\{64\}"' | tail -n 1 | cut -d '"' -f 4)
[ -z "$before" ] || set -- --parent "$before" "$@"
cd "$from"
ended=0
call backup --quiet --tag chainweb-backup --tag "id=$id" --ignore-ctime --exclude .use --exclude '.*.tmp' --exclude .pinned "$@" . || ended=$?
# 3: a file could not be read, and the snapshot lacks it.
if [ "$ended" -eq 3 ]; then
  part=$(call snapshots --json --tag "id=$id" | grep -o '"id":"[0-9a-f]\{64\}"' | tail -n 1 | cut -d '"' -f 4)
  [ -z "$part" ] || call forget "$part" >&2 || fail "a file of backup $id cannot be read: snapshot $part lacks it; forget it by hand"
fi
[ "$ended" -eq 0 ] || fail "cannot store backup $id in $repository"
echo "stored $id in $repository"
