#!/bin/sh
# Brings a backup back that rclone.sh has stored, and compares every checksum; run it by hand.
#
#   rclone-restore.sh REMOTE:PATH ID|latest BACKUP-DIRECTORY [OPTION OF RCLONE...]
#
# The backup becomes BACKUP-DIRECTORY/<ID>, which must not exist; `chainweb-backup verify` and `restore` work on it then. It needs its size
# once, and the disk of BACKUP-DIRECTORY must permit renames, as all do.
set -eu

fail() {
  printf 'rclone-restore.sh: %s\n' "$*" >&2
  exit 1
}

[ $# -ge 3 ] || { echo 'usage: rclone-restore.sh REMOTE:PATH ID|latest BACKUP-DIRECTORY [OPTION OF RCLONE...]' >&2 && exit 2; }
remote=${1%/} id=$2 to=$3
shift 3
for program in rclone b2sum; do
  command -v "$program" >/dev/null || fail "$program is not installed"
done
call() {
  command_=$1
  shift
  rclone "$command_" --contimeout 30s --timeout 5m --retries 3 --low-level-retries 5 --stats 0 "$@"
}
[ -d "$to" ] || fail "there is no directory $to"
to=$(cd "$to" && pwd)
if [ "$id" = latest ]; then
  listed=$(call lsf "$@" --files-only --include '/*.b2sums' "$remote") || fail "cannot list $remote"
  id=$(printf '%s\n' "$listed" | sed -n 's/^\([0-9]*\)\.b2sums$/\1/p' | sort -n | tail -n 1)
  [ -n "$id" ] || fail "there is no complete backup in $remote"
fi
case $id in *[!0-9]* | '') fail "'$id' is no identifier" ;; esac
[ ! -e "$to/$id" ] || fail "$to/$id exists already"

tab=$(printf '\t')
work=$to/.fetching-$id
rm -rf "$work"
mkdir "$work" "$work/$id" || fail "cannot write to $to"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
for list in tree b2sums; do
  call copyto "$@" "$remote/$id.$list" "$work/$list" || fail "there is no complete backup $id in $remote"
done
# The lists come from another place: no name in them leads out of the backup, no sum out of the objects.
! awk -F "$tab" '{ print $5 }' "$work/tree" | grep -qvE '^\./[^/]' || fail "the list of $id has a wrong name"
! awk -F "$tab" '{ print $5 }' "$work/tree" | grep -qE '(^|/)\.\.(/|$)' || fail "the list of $id has a wrong name"
! cut -c 67- "$work/b2sums" | grep -qE '(^|/)\.\.(/|$)' || fail "the list of the checksums of $id has a wrong name"
! grep -qvE '^[0-9a-f]{64}  \./' "$work/b2sums" || fail "the list of the checksums of $id is damaged"
awk -F "$tab" '$2 == "f" { print $5 }' "$work/tree" | sort >"$work/names.tree"
cut -c 67- "$work/b2sums" | sort >"$work/names.b2sums"
cmp -s "$work/names.tree" "$work/names.b2sums" || fail "the lists of $id do not name the same files: run rclone.sh for this backup again"
cut -c 1-64 "$work/b2sums" | sort -u >"$work/wanted"
call copy "$@" --files-from "$work/wanted" "$remote/objects" "$work/objects" || fail "cannot fetch the files of backup $id"

cd "$work/$id"
awk -F "$tab" '$2 == "d" { print $5 }' "$work/tree" >"$work/directories"
while IFS= read -r directory; do mkdir -p "$directory"; done <"$work/directories"
# Each file but the last of the same content is a copy.
awk '{ count[substr($0, 1, 64)]++; line[NR] = $0 }
  END { for (n = 1; n <= NR; n++) print --count[substr(line[n], 1, 64)] "\t" substr(line[n], 1, 64) "\t" substr(line[n], 67) }' \
  "$work/b2sums" >"$work/moves"
while IFS=$tab read -r left sum name; do
  [ -e "$work/objects/$sum" ] || fail "$remote/objects lacks $sum, the content of $name"
  if [ "$left" -eq 0 ]; then mv "$work/objects/$sum" "$name"; else cp "$work/objects/$sum" "$name"; fi
done <"$work/moves"
b2sum --quiet -c "$work/b2sums" >&2 || fail "files of backup $id are damaged in $remote"
while IFS=$tab read -r mode _ _ time name; do
  touch -c -d "@$time" "$name"
  chmod "$mode" "$name"
done <"$work/tree"
sync
mv "$work/$id" "$to/$id"
echo "fetched $id to $to/$id"
