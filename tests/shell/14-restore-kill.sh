#!/bin/sh
# kill -9 at random moments of a restore: the target's 0 is wholly old, wholly new, or was never there; the database that --replace
# keeps is never lost; the next restore succeeds and leaves nothing of the killed one; the backup is unchanged. KILLS is the number
# (12), SEED chooses the moments. In turn on the backup's own file system (SSTs are linked) and on tmpfs, on an empty target and on
# one with an old 0. Some kills wait until the new 0 is in place, because random moments do not hit the short steps after that.
# Then two restores into one target at once: if one of them ends with 0, the target is whole.
. "$(dirname -- "$0")/lib.sh"

KILLS=${KILLS:-12} SEED=${SEED:-$(date +%s)}
SHM=$(mktemp -d /dev/shm/chainweb-backup-test.XXXXXX 2>/dev/null) || SHM=''

problem() {
  problems="$problems; $*"
}

microseconds() {
  echo "$(($(date +%s%N) / 1000))"
}

# data DIRECTORY: the files that a restore brings.
data() {
  (cd "$1" && find . -type f ! -name BLAKE2SUMS -exec b2sum {} + | sort -k 2)
}

# everything DIRECTORY: contents, owners and modes of a backup, without the numbers of names and the times of access.
everything() {
  (cd "$1" && find . -printf '%p %y %s %m %U %G %T@\n' | sort && find . -type f -exec b2sum {} + | sort -k 2)
}

# which DIRECTORY: new, old, absent or mixed.
which() {
  [ -e "$1" ] || { echo absent && return; }
  data "$1" >which.list
  if cmp -s which.list new.list; then echo new; elif cmp -s which.list old.list; then echo old; else echo mixed; fi
}

# kept TARGET: the number of whole old databases in it, under any name.
kept() {
  for place in "$1"/0 "$1"/0.bak-* "$1"/.exchanging-*; do
    [ ! -d "$place" ] || which "$place"
  done | grep -c old
}

# beside TARGET: the names beside its 0.
beside() {
  find "$1" -mindepth 1 -maxdepth 1 ! -name 0 -printf '%f\n'
}

# prepare TARGET: makes it as it is before a restore.
prepare() {
  rm -rf "$1" && mkdir "$1"
  [ "$shape" = empty ] || cp -a old/0 "$1/0"
}

restore() {
  # shellcheck disable=SC2086 # no word or one
  chainweb-backup restore --backup-directory node/backups latest --to "$1" $replace
}

# two_at_once: the first restore is stopped when all its files are there, the second one when it removes them, if it does.
two_at_once() {
  problems='' target=$DIR/target shape=empty replace=''
  prepare "$target"
  chainweb-backup restore --backup-directory node/backups latest --to "$target" >first.out 2>first.err </dev/null &
  first=$! tries=0
  until set -- "$target"/.restoring-*/sqlite/pact-v1-chain-2.sqlite && [ -e "$1" ] || [ "$tries" -ge 100000 ]; do
    tries=$((tries + 1))
  done
  kill -STOP "$first"
  chainweb-backup restore --backup-directory node/backups latest --to "$target" >second.out 2>second.err </dev/null &
  second=$! pids="$first $second" first_is=0 second_is=0
  set -- "${1%/*/*}"/*/*
  files=$# tries=0
  until set -- "${1%/*/*}"/*/* && [ "$#" -lt "$files" ] || [ "$tries" -ge 20000 ]; do tries=$((tries + 1)); done
  kill -STOP "$second"
  kill -CONT "$first"
  wait "$first" || first_is=$?
  kill -CONT "$second"
  wait "$second" || second_is=$?
  pids=''
  [ "$first_is" -eq 0 ] || [ "$second_is" -eq 0 ] || problem 'both failed'
  word=$(which "$target/0")
  [ "$word" = new ] || problem "the target is $word"
  [ -z "$(beside "$target")" ] || problem "beside it is $(beside "$target")"
  check "two at once: the first is $first_is, the second $second_is, the target $word" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}; $(tail -n 1 first.err) $(tail -n 1 second.err)"
  rm -rf "$target"
}

one_kill() {
  problems='' shape=empty replace='' how="after $1 of the usual time"
  case $((round % 4)) in 1 | 3) shape=old replace=--replace ;; esac
  target=$DIR/target
  [ $((round % 4)) -lt 2 ] || [ -z "$SHM" ] || target=$SHM/target
  prepare "$target"
  if [ $((round % 40)) -lt 4 ]; then # how long it takes here, now
    for _ in 1 2; do
      began=$(microseconds)
      restore "$target" >out 2>err </dev/null || problem "undisturbed it is $?: $(cat err)"
      echo $(($(microseconds) - began)) >"usual.$((round % 4))"
      prepare "$target"
    done
  fi
  usual_us=$(cat "usual.$((round % 4))")

  # Not by the function: the signal would hit the shell of the function.
  # shellcheck disable=SC2086 # no word or one
  chainweb-backup restore --backup-directory node/backups latest --to "$target" $replace >killed.out 2>killed.err </dev/null &
  pid=$! pids=$!
  if [ "$shape" = old ] && [ $((round % 3)) -eq 0 ]; then
    how='as soon as the new one is in place'
    tries=0
    while [ -e "$target/0/sqlite/pact-v1-chain-3.sqlite" ] && [ "$tries" -lt 1000000 ]; do tries=$((tries + 1)); done
  else
    sleep "$(awk -v at="$1" -v us="$usual_us" 'BEGIN { printf "%.6f", at * us / 1000000 }')"
  fi
  stop KILL
  word=$(which "$target/0")
  garbage=$(beside "$target" | sed 's/-[0-9]*$//' | tr '\n' ' ')
  case $shape$word in emptyabsent | emptynew | oldold | oldnew) ;; *) problem "the target is $word" ;; esac
  [ "$word" = absent ] || demo-node verify "$target" >verified 2>&1 || problem "it does not verify: $(tail -n 1 verified)"
  [ "$shape" = empty ] || [ "$(kept "$target")" -eq 1 ] || problem 'the old one is lost'
  # A restore that had already ended does not count as a kill.
  [ "$got" -ne 0 ] || word="$word, not killed"

  # Restored again, as an operator would do.
  [ ! -e "$target/0" ] || replace=--replace
  restore "$target" >out 2>err </dev/null || problem "the next restore is $?: $(cat err)"
  is_now=$(which "$target/0")
  [ "$is_now" = new ] || problem "after the next restore it is $is_now"
  left=$(beside "$target" | grep -vx '0\.bak-[0-9]*')
  [ -z "$left" ] || problem "the next restore left $left"
  [ "$shape" = empty ] || [ "$(kept "$target")" -eq 1 ] || problem 'after the next restore the old one is lost'
  demo-node verify "$target" >verified 2>&1 || problem "in the end it does not verify: $(tail -n 1 verified)"
  everything "node/backups/$id" >backup.now
  cmp -s backup.list backup.now || problem 'the backup has changed'
  echo "$word, beside it: ${garbage:-nothing}" >>seen.$shape
  check "kill $round, $shape target in ${target%/*}, $how: $word; beside it ${garbage:-nothing}" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}"
  rm -rf "$target"
}

echo "# seed $SEED"
[ -n "$SHM" ] || skip 'kills on another file system' 'no /dev/shm'
node node --chains 3 --fill 60000000 --write-buffer-bytes 1000000
node old --chains 4 --fill 2000000 --write-buffer-bytes 300000
status 'a backup' 0 chainweb-backup make --backup-pact --database-directory node
id=$(cat out)
status 'with its checksums' 0 chainweb-backup sum --database-directory node latest
data old/0 >old.list
data "node/backups/$id/0" >new.list
everything "node/backups/$id" >backup.list
fractions "$KILLS" "$SEED" >moments
: >seen.empty
: >seen.old
round=0
exec 3<moments
while read -r moment <&3; do
  one_kill "$moment"
  round=$((round + 1))
done
exec 3<&-
two_at_once
for shape in empty old; do
  echo "# $shape target: $(sort seen.$shape | uniq -c | awk '{ $1 = $1 "x" } { printf "%s%s", (NR > 1 ? "; " : ""), $0 }')"
done
end
