#!/bin/sh
# `make`, `list` and `check` without a server, and every exit code that this version has.
. "$(dirname -- "$0")/lib.sh"

node node --chains 2
status 'make is 0' 0 chainweb-backup make --database-directory node
id=$(cat out)
is 'it prints the id and a newline, nothing else' "$(tr 0-9 d <out)" ddddddddddddd
status 'the backup verifies' 0 demo-node verify --no-pact "node/backups/$id"
status 'make --backup-pact is 0' 0 chainweb-backup make --backup-pact --database-directory node --log-level off
is 'with the log off nothing is on the standard error' "$(cat err)" ''
full=$(cat out)
status 'the full backup verifies' 0 demo-node verify --expect-chains 2 "node/backups/$full"

status 'check of a good one is 0' 0 chainweb-backup check --backup-directory node/backups "$full"
is 'check prints the word' "$(cat out)" backup-done
status 'check of an unknown one is 10' 10 chainweb-backup check --backup-directory node/backups 1234567890123
status 'check of a path is 10' 10 chainweb-backup check --backup-directory node/backups ../backups
mkdir node/backups/1600000000
printf backup-in-progress >node/backups/1600000000/status
status 'check of one in progress is 11' 11 chainweb-backup check --backup-directory node/backups 1600000000
printf backup-failed >node/backups/1600000000/status
touch -d 2020-09-13 node/backups/1600000000
status 'check of a failed one is 1' 1 chainweb-backup check --backup-directory node/backups 1600000000
status 'list is 0' 0 chainweb-backup list --backup-directory node/backups
is 'list has a line for each' "$(wc -l <out)" 4
is 'list begins with the newest of ours' "$(sed -n 2,3p out | awk '{ print $1 }' | tr '\n' ' ')" "$full $id "
has 'list tells foreign ones' out foreign
status 'list with other columns is 0' 0 chainweb-backup list --backup-directory node/backups --columns id,height
is 'it has the height of the blocks, not their sum over the two chains' "$(sed -n 2p out)" "$full     20"
status 'list --json is 0' 0 chainweb-backup list --json --backup-directory node/backups
has 'it is JSON' out '"status": "backup-done"'

status 'check latest is 0' 0 chainweb-backup check --backup-directory node/backups latest
is 'it is the newest good one' "$(cat out)" backup-done
status 'pin latest is 0' 0 chainweb-backup pin --backup-directory node/backups latest
is 'which is named' "$(cat out)" "$full: pinned"
status 'unpin latest is 0' 0 chainweb-backup unpin --backup-directory node/backups latest
cp -a node/backups copies
status 'delete with a wrong name among the right ones is 10' 10 chainweb-backup delete --backup-directory copies "$id" nosuch "$full"
has 'it names the wrong one' err '"nosuch"'
is 'and deletes nothing' "$(ls copies | grep -c -e "$id" -e "$full")" 2
status 'delete latest is 0' 0 chainweb-backup delete --backup-directory copies latest "$full"
is 'once' "$(cat out)" "$full: deleted"
status 'then latest is another' 0 chainweb-backup delete --backup-directory copies latest
is 'the one before' "$(cat out)" "$id: deleted"
status 'then there is none' 10 chainweb-backup check --backup-directory copies latest
rm -rf copies

: >file
for place in file file/below; do
  for command in 'make --database-directory node' 'serve --service-port 0 --database-directory node' list 'prune --keep-last 1' 'delete latest'; do
    # shellcheck disable=SC2086 # a command of several words
    status "$command in $place is 2" 2 chainweb-backup $command --backup-directory "$place"
    has 'it says why' err "$place cannot be the backup directory: file is a file"
  done
  status "restore to $place is 2" 2 chainweb-backup restore --backup-directory node/backups "$full" --to "$place"
  has 'it says why' err "$place cannot be the target: file is a file"
done
is 'the file is as it was' "$(wc -c <file)" 0

# On a terminal, each line of the log stands above the progress line, which is drawn again below it.
if command -v script >/dev/null; then
  script -qec 'chainweb-backup make --backup-pact --database-directory node --sums none --log-level debug --limit-bytes-per-second 300kB' \
    typescript >/dev/null </dev/null
  esc=$(printf '\033')
  check 'a progress line was drawn' grep -q 'ETA' typescript
  check 'a line of the log came while it stood' grep -q "${esc}\[K[0-9-]*T[0-9:.]*Z " typescript
  is 'no progress runs into the log' "$(tr '\r' '\n' <typescript | grep -c 'ETA .*[0-9]Z \[')" 0
  # So do the other commands that take long. Slowed down, each step is seen, and has its rate and its end.
  on_terminal() {
    rm -f typescript && script -qec "chainweb-backup $* --limit-bytes-per-second 300kB" typescript >/dev/null </dev/null
    tr '\r' '\n' <typescript | sed "s/^$esc\[K//; /^Script /d" >lines
  }
  at='--backup-directory node/backups latest'
  on_terminal verify --deep "$at"
  check 'verify --deep has a progress line' grep -q '^verifying [1-9].* of [1-9].*/s, ETA [0-9]* [smh]' lines
  on_terminal sum "$at"
  check 'sum has one' grep -q '^writing checksums [1-9].* of [1-9].*/s, ETA [0-9]* [smh]' lines
  on_terminal restore --copy --deep --to "$DIR/restored.slow" "$at"
  check 'restore has one while it verifies' grep -q '^verifying [1-9].*ETA [0-9]' lines
  check 'and one while it copies' grep -q '^copying [1-9].* of [1-9].*/s, ETA [0-9]* [smh]' lines
  on_terminal drill --copy "$at"
  check 'drill has one' grep -q '^copying [1-9].* of [1-9].*/s, ETA [0-9]* [smh]' lines
  is 'no line is longer than a terminal' "$(awk 'length > 80' lines)" ''
  chainweb-backup verify --deep --backup-directory node/backups latest >quiet 2>&1
  is 'without a terminal there is none' "$(grep -c ETA quiet)" 0
else
  skip 'no progress runs into the log' 'there is no script(1)'
fi

# The Pact databases are gone, so --backup-pact is wrong usage.
mkdir bare bare/0
cp -a node/0/rocksDb bare/0
status 'no Pact databases is 2' 2 chainweb-backup make --backup-pact --database-directory bare
has 'it says where it looked' err bare/0/sqlite
status 'a missing database is 2' 2 chainweb-backup make --database-directory nothing
has 'it names the flag' err --database-directory
status 'list of a missing directory is 2' 2 chainweb-backup list --backup-directory nothing
status 'an unknown flag is 2' 2 chainweb-backup make --database-directory node --backup-pakt
has 'it suggests the right one' err --backup-pact

status 'no space is 12' 12 chainweb-backup make --database-directory node --reserve-bytes 1000TiB
failed=$(cat out)
has 'the reason has the figures' "node/backups/$failed/backup.json" 'must stay free'
is 'a failed backup is only a record' "$(ls -A "node/backups/$failed" | tr '\n' ' ')" '.use backup.json status '
status 'check tells why' 1 chainweb-backup check --backup-directory node/backups "$failed"
has 'the reason' err 'not enough space'

start node.log demo-node --database-directory node --disable-backup-api
status 'make beside a running node is 0' 0 chainweb-backup make --backup-pact --database-directory node
status 'that backup verifies' 0 demo-node verify "node/backups/$(cat out)"
stop TERM

start serve.log chainweb-backup serve --database-directory node --enable-backup-api
status 'a second service is 11' 11 chainweb-backup serve --database-directory node --service-port 0
has 'it says so in one line' err 'another service uses the backup directory'
is 'one line' "$(grep -c ^error err)" 1
status 'a port in use is 2' 2 chainweb-backup serve --database-directory bare --service-port "${address#*:}"
has 'it names the remedy' err --service-port
status 'make beside a service is 0' 0 chainweb-backup make --database-directory node
http GET "/check-backup/$(cat out)"
is 'the service knows that backup' "$(cat body)" backup-done
# One job at a time, also across processes: the one that holds the lock.
flock --no-fork node/backups/.lock sleep 1000 &
holder=$!
sleep 0.3
status 'busy is 11' 11 chainweb-backup make --database-directory node
http POST /make-backup
is 'busy is 503' "$code" 503
kill "$holder"
stop TERM

if [ "$(id -u)" -eq 0 ]; then
  chmod 755 . && chmod -R a+rX node
  mkdir locked && chmod 755 locked
  cp "$(command -v chainweb-backup)" program && chmod 755 program
  nobody='setpriv --reuid=65534 --regid=65534 --clear-groups'
  # shellcheck disable=SC2086 # a command of several words
  status 'a backup directory that cannot be written is 1' 1 $nobody "$DIR/program" make --database-directory "$DIR/node" \
    --backup-directory "$DIR/locked"
  has 'it names the remedy' err --backup-directory
else
  skip 'a backup directory that cannot be written is 1' 'only root can become another user'
fi
end
