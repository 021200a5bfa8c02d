#!/bin/sh
# Stores a backup on one of the many storages that rclone knows; for `afterSuccess` of chainweb-backup.
#
#   rclone.sh REMOTE:PATH STATE-DIRECTORY [OPTION OF RCLONE...]
#
# REMOTE is one of `rclone config`; without a home directory name its file: --config=FILE. STATE-DIRECTORY is a directory of this host
# that is the hook's own: it keeps the checksums of the files that were read, so that no file is read twice for the same content.
#
#   PATH/objects/<checksum>   a file, named by its content (BLAKE2b, 256 bits), whichever backups have it: stored once
#   PATH/<id>.tree            mode, type, size, time and name of every file and directory of a backup
#   PATH/<id>.b2sums          checksum and name of every file, for `b2sum -c`; stored last: with it the copy is complete
#
# - Each name is written once, and nothing is ever changed or deleted, so the storage may forbid both (object lock, versions). An object
#   of another size than its content, which a broken upload may leave on a storage without such a lock, is written again.
# - A linked SST is sent once, as long as any copy has it. What no list names any more can be deleted by hand.
# - rclone-restore.sh brings a backup back, and compares every checksum.
set -eu

fail() {
  printf 'rclone.sh: %s\n' "$*" >&2
  exit 1
}

[ $# -ge 2 ] || { echo 'usage: rclone.sh REMOTE:PATH STATE-DIRECTORY [OPTION OF RCLONE...]' >&2 && exit 2; }
remote=${1%/} state=$2
shift 2
id=${CHAINWEB_BACKUP_ID:-} from=${CHAINWEB_BACKUP_PATH:-}
[ -n "${id:+$from}" ] || fail 'CHAINWEB_BACKUP_ID is missing: this is a hook of chainweb-backup'
[ "${CHAINWEB_BACKUP_STATUS:-}" = backup-done ] || fail "backup $id is not done: use this for afterSuccess"
[ "${CHAINWEB_BACKUP_FAULTS:-0}" -eq 0 ] || fail "backup $id is damaged: it is not copied"
for program in rclone b2sum; do
  command -v "$program" >/dev/null || fail "$program is not installed"
done
[ -d "$state" ] || fail "there is no state directory $state: make it for this user"
[ -w "$state" ] || fail "this user cannot write to the state directory $state"
# call COMMAND [ARGUMENT...] of rclone, with limits of time for a storage that does not answer
call() {
  command_=$1
  shift
  rclone "$command_" --contimeout 30s --timeout 5m --retries 3 --low-level-retries 5 --stats 0 "$@"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
tab=$(printf '\t')
cd "$from"

# Every file and directory, except what is of use here only; and of each file what stands for its content in the state.
what() { find . -mindepth 1 ! -name '.*' "$@"; }
[ -z "$(find . -name '*[[:cntrl:]\\]*' -print -quit)" ] || fail "a name in backup $id has a control character or a backslash"
[ -z "$(what ! -type f ! -type d -print -quit)" ] || fail "backup $id has something that is neither a file nor a directory"
what ! -name status.failed -printf '%m\t%y\t%s\t%T@\t%p\n' | sort -t "$tab" -k 5 >"$work/tree"
what -type f ! -name status.failed -printf '%D:%i:%s:%T@\t%p\n' >"$work/files"
[ -s "$work/files" ] || fail "there are no files in $from"
sums=$state/sums
[ -e "$sums" ] || : >"$sums"

# The checksums that are known, and of the other files those that are read now.
awk -F "$tab" -v OFS="$tab" '
  FILENAME == ARGV[1] { known[$1] = $2; next }
  { sum = "-"; if ($1 in known) sum = known[$1]; print sum, $1, $2 }' "$sums" "$work/files" >"$work/known"
awk -F "$tab" '$1 == "-" { print $3 }' "$work/known" >"$work/unread"
: >"$work/read"
[ ! -s "$work/unread" ] || xargs -d '\n' b2sum -l 256 -- <"$work/unread" >"$work/read" || fail "cannot read the files of backup $id"
awk -F "$tab" -v OFS="$tab" '
  FILENAME == ARGV[1] { now[substr($0, 67)] = substr($0, 1, 64); next }
  { if ($1 == "-") $1 = now[$3]; print }' "$work/read" "$work/known" >"$work/summed"
[ "$(grep -c "^[0-9a-f]\{64\}$tab" "$work/summed")" -eq "$(wc -l <"$work/files")" ] || fail 'a file has no checksum'
awk -F "$tab" -v OFS="$tab" '{ print $2, $1 }' "$work/summed" >"$sums.new"
mv "$sums.new" "$sums"

# The objects that the storage lacks, or has in another size.
listed=0
call lsf "$@" --files-only --format ps --separator ';' "$remote/objects" >"$work/there" 2>"$work/error" || listed=$?
# 3: there is no such directory yet.
[ "$listed" -eq 0 ] || [ "$listed" -eq 3 ] || { cat "$work/error" >&2 && fail "cannot list $remote/objects"; }
awk -F "$tab" '
  FILENAME == ARGV[1] { split($0, at, ";"); there[at[1]] = at[2]; next }
  FILENAME == ARGV[2] { bytes[$5] = $3; next }
  !($1 in seen) { seen[$1]; if (!($1 in there) || there[$1] != bytes[$3]) print $1 "\t" $3 }' "$work/there" "$work/tree" "$work/summed" >"$work/lacking"
mkdir "$work/objects"
while IFS=$tab read -r sum name; do
  ln -s "$from/$name" "$work/objects/$sum"
done <"$work/lacking"
if [ -s "$work/lacking" ]; then
  call copy "$@" --copy-links "$work/objects" "$remote/objects" || fail "cannot store the files of backup $id in $remote/objects"
fi
# Lists, the one that completes the copy last. They are written once: a copy that is complete stays as it is. It is complete if both lists
# are there and name the same files.
awk -F "$tab" '{ print $1 "  " $3 }' "$work/summed" | sort -k 2 >"$work/b2sums"
call lsf "$@" --files-only --include "/$id.tree" --include "/$id.b2sums" "$remote" >"$work/lists" || fail "cannot list $remote"
is_complete() {
  [ "$(wc -l <"$work/lists")" -eq 2 ] || return 1
  for list in tree b2sums; do
    call cat "$@" "$remote/$id.$list" >"$work/stored.$list" || fail "cannot read $remote/$id.$list"
  done
  awk -F "$tab" '$2 == "f" { print $5 }' "$work/stored.tree" | sort >"$work/names.tree"
  sed -n 's/^[0-9a-f]\{64\}  //p' "$work/stored.b2sums" | sort >"$work/names.b2sums"
  [ -s "$work/names.b2sums" ] && cmp -s "$work/names.tree" "$work/names.b2sums"
}
if ! is_complete "$@"; then
  call copyto "$@" --ignore-times "$work/tree" "$remote/$id.tree" || fail "cannot store $remote/$id.tree"
  call copyto "$@" --ignore-times "$work/b2sums" "$remote/$id.b2sums" || fail "cannot store $remote/$id.b2sums"
fi
echo "stored $id in $remote: $(wc -l <"$work/lacking") of $(wc -l <"$work/files") files were not there"
