#!/bin/sh
# Scheduled backups of a running service, retention after them, a clock that is set, and `make --if-older-than` for cron.
. "$(dirname -- "$0")/lib.sh"

node node --chains 2
at='--backup-directory node/backups'

# done_count: the good backups.
done_count() { grep -lx backup-done node/backups/*/status 2>/dev/null | wc -l; }
# await_count N: waits until there were that many good backups since the start, as the log has them.
await_count() {
  tries=0
  until [ "$(grep -c 'backup done' "$log")" -ge "$1" ] || [ "$tries" -ge 2000 ]; do tries=$((tries + 1)) && sleep 0.01; done
}
value() {
  http GET /metrics
  sed -n "s/^chainweb_backup_$1 //p" body
}
switches() {
  awk '/^(non)?voluntary_ctxt_switches/ { sum += $2 } END { print sum }' "/proc/$pid"/task/*/status
}

# make --if-older-than: one backup, then none until it is older.
# shellcheck disable=SC2086 # $at is two words
{
  status 'make --if-older-than makes the first one' 0 \
    chainweb-backup make --database-directory node --if-older-than 20h --log-level error
  id=$(cat out)
  is 'and prints its identifier' "$(tr 0-9 d <out)" ddddddddddddd
  status 'the next time it makes none' 0 chainweb-backup make --database-directory node --if-older-than 20h --log-level error
  check 'it says which one is young enough' grep -qx "$id: made [0-9]*[smh] ago, which is less than 20h: no backup is made" out
  is 'there is one' "$(done_count)" 1
  status 'with Pact it makes one' 0 \
    chainweb-backup make --database-directory node --if-older-than 20h --backup-pact --log-level error
  is 'there are two' "$(done_count)" 2
  sleep 1.1
  status 'an older one is none' 0 chainweb-backup make --database-directory node --if-older-than 1s --log-level error
  is 'there are three' "$(done_count)" 3
  status 'a number without a unit is 2' 2 chainweb-backup make --database-directory node --if-older-than 20
  has 'it says what to write' err '`20` is not an interval: write a whole number with s, m, h or d, like 24h'
  status 'make prunes as it is told' 0 chainweb-backup make --database-directory node --keep-last 1 --backup-pact --log-level error
  is 'and one is left' "$(done_count)" 1
  status 'a backup without Pact is no reason to delete the last one with it' 0 \
    chainweb-backup make --database-directory node --keep-last 1 --log-level error
  is 'both are left' "$(done_count)" 2
  chainweb-backup prune $at --keep-last 1 --dry-run >out
  has 'prune says why' out 'kept (last good with Pact)'
  rm -rf node/backups
}

# A service makes backups although the API is off, and sleeps in between.
start serve.log chainweb-backup serve --database-directory node --every 4s --backup-pact --keep-last 2 --log-level info
await_count 1
is 'the first backup is made at once' "$(done_count)" 1
next=$(value 'schedule_next_timestamp_seconds{schedule="every 4s",scope="rocksdb,pact"}')
check 'the metrics have the moment of the next' [ "$(date +%s)" -le "${next%.*}" ]
sleep 1.5
before=$(switches)
sleep 1
is 'no thread wakes up in between' "$(switches)" "$before"
await_count 2
check 'the second one is not early' [ "$(date +%s)" -ge "${next%.*}" ]
await_count 4
sleep 0.5
is 'the old ones are deleted' "$(done_count)" 2
is 'an attempt succeeded' "$(value 'schedule_last_attempt_succeeded{schedule="every 4s",scope="rocksdb,pact"}')" 1
is 'the metrics count the deleted' "$(value pruned_total)" 2
made=$(grep -c 'backup done' serve.log)
stop TERM
is 'SIGTERM ends it with 0' "$got" 0

# A restart needs no memory: the newest backup decides.
start again.log chainweb-backup serve --database-directory node --every 1h --backup-pact
sleep 1
is 'a young backup is enough' "$(grep -c 'backup done' again.log)" 0
stop TERM
check 'there were some' [ "$made" -ge 4 ]

# Two schedules, from a file; the one with Pact is enough for both.
rm -rf node/backups
later=$(date -u -d '+6 hours' +%H:%M)
printf 'databaseDirectory: node\nbackup:\n  api: {enabled: true}\n  schedule:\n  - {every: 3s}\n  - {every: 24h, at: "%s", pact: true, jitter: 10m}\n' \
  "$later" >two.yaml
start two.log chainweb-backup serve --config-file two.yaml
await_count 1
has 'the first one has Pact' two.log 'scope=rocksdb,pact'
await_count 2
is 'the next ones have not' "$(grep -c 'backup started.*scope=rocksdb$' two.log)" 1
http POST /make-backup
is 'a client can make some beside them' "$code" 200
await "$(cat body)"
is 'which are as any other' "$word" backup-done
stop TERM

# A clock that is set: faketime, if it is there, sees another time than the system.
if command -v faketime >/dev/null; then
  for shift in +40d -40d +0d; do
    rm -f shifted.log
    start shifted.log faketime -f "$shift" chainweb-backup serve --database-directory node --every 24h --backup-pact
    sleep 1.5
    check "at most one backup more with the clock at $shift" [ "$(grep -c 'backup done' shifted.log)" -le 1 ]
    stop TERM
  done
else
  skip 'a clock that is set' 'there is no faketime; the simulated months have it'
fi

# What fails is tried again, later and later.
printf 'databaseDirectory: node\nbackup: {schedule: {every: 1h}, hooks: {before: [/bin/false]}}\n' >fails.yaml
rm -rf node/backups
start fails.log chainweb-backup serve --config-file fails.yaml
sleep 3
is 'a failure is not repeated at once' "$(grep -c 'backup failed' fails.log)" 1
is 'the metrics have it' "$(value 'schedule_failed_attempts{schedule="every 1h",scope="rocksdb"}')" 1
stop TERM

for wrong in '--every 24' '--every 5h --at 03:00' '--at 3:00' '--jitter 5m' '--every 1h --jitter 2h'; do
  # shellcheck disable=SC2086 # several words
  status "serve $wrong is 2" 2 chainweb-backup serve --database-directory node --service-port 0 $wrong
done
status 'the node is whole' 0 demo-node verify node
# A backup from which no node starts stays, and is no reason to delete another one.
node proved
status 'a good backup' 0 chainweb-backup make --backup-pact --database-directory proved --backup-directory kept --keep-last 1 --log-level error
good=$(cat out)
cp -a proved planted
status 'a fault is planted' 0 demo-node plant --fault missing-outputs --height 20 --chain 1 planted
rm planted/0/sqlite/pact-v1-chain-1.sqlite
status 'a backup of it' 0 chainweb-backup make --backup-pact --database-directory planted --backup-directory kept --keep-last 1
refuted=$(cat out)
chainweb-backup list --backup-directory kept --columns all >list
has 'no node starts from it' list 'DOES NOT START'
is 'both are there' "$(ls kept | tr '\n' ' ')" "$good $refuted "
status 'the next good one' 0 chainweb-backup make --backup-pact --database-directory proved --backup-directory kept --keep-last 1
is 'is kept alone' "$(ls kept | tr '\n' ' ')" "$(cat out) "
end
