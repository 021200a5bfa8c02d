#!/bin/sh
# The disk or an NFS server fails while one of our records is read: {EIO, ESTALE} x {status, backup.json, manifest.json, verified.json,
# starts.json, drill.json, the journal of a restore} x every command. A command that needs the file fails and names it, and never says
# that there is no such backup. No command loses a backup, and when the disk works again, everything is as before.
. "$(dirname -- "$0")/lib.sh"

if ! cc -shared -fPIC -O1 -Wall -Wextra -o shim.so "$ROOT/tests/shell/errno-shim.c" 2>cc.log; then
  echo "1..0 # SKIP cc cannot compile errno-shim.c: $(tail -n 1 cc.log)" && exit 0
fi
EIO=5 ESTALE=116

node db --chains 2
for _ in 1 2 3; do status 'a backup' 0 chainweb-backup make --backup-pact --database-directory db --backup-directory whole --log-level error; done
for id in $(ls whole); do
  status 'its verification' 0 chainweb-backup verify --backup-directory whole "$id" --deep
  status 'its drill' 0 chainweb-backup drill --backup-directory whole "$id" --exec sh -c ': {directory}'
done
first=$(ls whole | head -n 1) last=$(ls whole | tail -n 1)
mkdir target && cp -a db/0 target/0 && rm -f target/0/rocksDb/LOCK && mkdir target/0/other

# fresh: the backups as they were.
fresh() {
  rm -rf b out.d
  cp -a whole b
}

# failing FILE ERRNO COMMAND...: every reading of the file fails; leaves $got and $fired.
failing() {
  unread=$DIR/$1 number=$2 got=0
  shift 2
  rm -f shim.log shim.log.count
  env LD_PRELOAD="$DIR/shim.so" SHIM_DIR="$unread" SHIM_GROUP=read SHIM_N=1 SHIM_FOR=1000000 SHIM_ERRNO="$number" \
    SHIM_LOG="$DIR/shim.log" "$@" >out 2>err </dev/null || got=$?
  fired=$(grep -c '^fired' shim.log)
}

problem() {
  problems="$problems; $*"
}

# told: what was printed names the error.
told() {
  cat out err >both
  grep -qE 'Input/output error|Stale file handle' both
}

# kept ID: the backup is as it was, but for notes.
notes='verified.json drill.json starts.json .pinned BLAKE2SUMS'
kept() {
  for note in $notes; do set -- "$@" ! -name "$note"; done
  id=$1
  shift
  (cd whole && find "$id" -type f "$@" ! -name .use -exec b2sum {} + | sort -k 2) >kept.whole
  (cd b && find "$id" -type f "$@" ! -name .use -exec b2sum {} + | sort -k 2) >kept.now
  cmp -s kept.whole kept.now
}

cat >commands <<'END'
list list
check check LAST
verify verify LAST
verify-deep verify LAST --deep
restore restore LAST --to out.d
restore-latest restore latest --to out.d
dry-run restore LAST --to out.d --dry-run
prune prune --keep-last 1
delete delete LAST
drill drill LAST --exec test -d {directory}
sum sum LAST
pin pin LAST
END
while read -r name words; do
  problems='' reached=''
  words=$(echo "$words" | sed "s/LAST/$last/")
  for file in status backup.json manifest.json verified.json starts.json drill.json; do
    for errno in $EIO $ESTALE; do
      fresh
      # shellcheck disable=SC2086 # several words
      failing "b/$last/$file" "$errno" chainweb-backup --backup-directory b $words
      what="$file, errno $errno: $got, $(tail -n 1 err)"
      if [ "$fired" -eq 0 ]; then
        [ "$got" -eq 0 ] || problem "$what, though it was not read"
        continue
      fi
      case "$reached " in *" $file "*) ;; *) reached="$reached $file" ;; esac
      [ "$got" -ne 10 ] || problem "$what: it counts as absent"
      [ "$got" -ne 2 ] || problem "$what: it counts as wrong usage"
      [ "$got" -eq 0 ] || told || problem "$what: the error is not named"
      case $name in
        # These do their work without a note, and say so; `latest` is an older one then.
        list | restore-latest | prune) told || problem "$what: nothing is said of the error" ;;
        delete) [ "$got" -eq 0 ] || kept "$last" || problem "$what: it is not deleted, and not there" ;;
      esac
      case $name in delete) ;; *) kept "$last" || problem "$what: the backup has changed" ;; esac
      case $name in prune | delete) ;; *) kept "$first" || problem "$what: the oldest has changed" ;; esac
      case $name in
        prune | delete) ;;
        *) chainweb-backup check --backup-directory b "$last" >again 2>&1 || problem "$what: afterwards: $(cat again)" ;;
      esac
    done
  done
  check "$name:${reached:- nothing} cannot be read" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}" | tr ';' '\n' | sed 's/^ */# /'
done <commands

# What prune cannot read, it keeps, and it prunes the others.
middle=$(ls whole | sed -n 2p)
for file in verified.json starts.json status backup.json; do
  fresh
  failing "b/$middle/$file" $EIO chainweb-backup prune --backup-directory b --keep-last 1 --dry-run
  is "$file of one cannot be read: prune --dry-run tells by its exit code" "$got" 1
  has 'it names it' out "$middle: kept (it cannot be read)"
  has 'and would delete the other' out "$first: would be deleted"
  failing "b/$middle/$file" $EIO chainweb-backup prune --backup-directory b --keep-last 1
  is "$file of one cannot be read: prune tells by its exit code" "$got" 1
  has 'it says why' err 'Input/output error'
  is 'the other one is deleted' "$(ls b | tr '\n' ' ')" "$middle $last "
  check 'it is as it was' kept "$middle"
  failing "b/$last/$file" $EIO chainweb-backup prune --backup-directory b --keep-last 1
  is "$file of the newest cannot be read: it is no reason to delete the other" "$got $(ls b | tr '\n' ' ')" "1 $middle $last "
done

# The journal of a restore, and the mark in CURRENT.
problems=''
for file in .restore-journal.json CURRENT; do
  for errno in $EIO $ESTALE; do
    for words in "restore --backup-directory b $last --to half --replace" 'restore --resume --to half' 'restore --undo --to half' \
      "restore --backup-directory b $last --to half --replace --dry-run" 'make --backup-directory c --database-directory half'; do
      fresh
      rm -rf half c && cp -a target half
      [ "$file" = CURRENT ] || echo '{}' >half/0/rocksDb/.restore-journal.json
      (cd half && find . -type f -exec b2sum {} + | sort -k 2) >before
      # shellcheck disable=SC2086 # several words
      failing "half/0/rocksDb/$file" "$errno" chainweb-backup $words
      (cd half && find . -type f ! -name LOCK -exec b2sum {} + | sort -k 2) >after
      [ "$fired" -eq 0 ] && continue
      what="$file, errno $errno, $words: $got, $(tail -n 1 err)"
      [ "$got" -eq 1 ] || problem "$what"
      told || problem "$what: the error is not named"
      cmp -s before after || problem "$what: the database has changed"
    done
  done
done
check 'the journal of a restore and the mark in CURRENT cannot be read' [ -z "$problems" ]
[ -z "$problems" ] || echo "#${problems#;}" | tr ';' '\n' | sed 's/^ */# /'

# Over HTTP it is 500 with the reason, never 404, and the service lives.
for file in status backup.json; do
  fresh
  rm -f shim.log shim.log.count
  start serve.log env LD_PRELOAD="$DIR/shim.so" SHIM_DIR="$DIR/b/$last/$file" SHIM_GROUP=read SHIM_N=1 SHIM_FOR=1000000 SHIM_ERRNO=$EIO \
    SHIM_LOG="$DIR/shim.log" chainweb-backup serve --database-directory db --backup-directory b --enable-backup-api
  http GET "/check-backup/$last"
  is "$file over HTTP" "$code" 500
  has 'it says why' body 'Input/output error'
  http GET "/check-backup/$first"
  is 'another one is done' "$code $(cat body)" '200 backup-done'
  http GET /list-backups
  is 'the list is given' "$code" 200
  has 'with one that cannot be read' body unreadable
  stop TERM
  check 'nothing is lost' kept "$last"
done
end
