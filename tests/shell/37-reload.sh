#!/bin/sh
# SIGHUP: schedules, rules, hooks, the API and the limit change while the service runs, a running backup goes on, and what is known of a
# schedule stays; a file with a mistake changes nothing; what needs a restart is named.
. "$(dirname -- "$0")/lib.sh"

node node --chains 2 --fill 3000000

# config LINE...: the configuration file, in one step.
config() {
  { printf 'databaseDirectory: node\nbackup:\n' && printf '  %s\n' "$@"; } >config.new && mv config.new config.yaml
}
# hup TEXT [N]: sends SIGHUP, and waits until N more lines of the log have the text.
hup() {
  before=$(grep -cF -- "$1" serve.log)
  kill -HUP "$pid"
  tries=0
  until [ "$(grep -cF -- "$1" serve.log)" -gt "$before" ] || [ "$tries" -ge 500 ]; do tries=$((tries + 1)) && sleep 0.02; done
  [ "$tries" -lt 500 ] || echo "# waited in vain for '$1'"
}
# eventually COMMAND...: waits until it succeeds.
eventually() {
  tries=0
  until "$@" >eventually.out 2>&1 || [ "$tries" -ge 1000 ]; do tries=$((tries + 1)) && sleep 0.02; done
  "$@" >eventually.out 2>&1
}
value() {
  http GET /metrics
  sed -n "s/^chainweb_backup_$1 //p" body
}
of_schedule() { value "schedule_$1{schedule=\"$2\",scope=\"$3\"}"; }
is_value() { [ "$(value "$1")" = "$2" ]; }
threads() { cat /proc/"$pid"/task/*/comm | grep -cx -e hooks -e schedules; }
done_count() { grep -lx backup-done node/backups/*/status 2>/dev/null | wc -l; }
has_done() { [ "$(done_count)" -ge "$1" ]; }

# Nothing is configured at first: no schedule, no hook, no API.
config 'limitBytesPerSecond: 0'
start serve.log chainweb-backup serve --config-file config.yaml
is 'there is no thread for what is not configured' "$(threads)" 0
http POST /make-backup
is 'the API is off' "$code" 404
printf '#!/bin/sh\necho "$CHAINWEB_BACKUP_EVENT $CHAINWEB_BACKUP_ID" >>"%s/told"\n' "$DIR" >hook.sh
chmod +x hook.sh

# What fails is known after the reload, for a schedule that stays.
config 'api: {enabled: true}' 'schedule: {every: 1h}' 'hooks: {before: [/bin/false]}'
hup 'configuration read again'
has 'the log names what has changed' serve.log 'changed="backup.api.enabled backup.schedule backup.hooks"'
has 'and tells of the schedule' serve.log 'scheduled backups: every 1h'
check 'the schedule makes an attempt' eventually is_value 'schedule_failed_attempts{schedule="every 1h",scope="rocksdb"}' 1
next=$(of_schedule next_timestamp_seconds 'every 1h' rocksdb)
config 'api: {enabled: true}' 'schedule: [{every: 1h, jitter: 1s}, {every: 2h, pact: true}]' 'hooks: {before: [/bin/false]}'
hup 'configuration read again'
check 'the new schedule makes an attempt' eventually is_value 'schedule_failed_attempts{schedule="every 2h",scope="rocksdb,pact"}' 1
is 'the failure of the old one is known' "$(of_schedule failed_attempts 'every 1h' rocksdb)" 1
is 'so is its next moment' "$(of_schedule next_timestamp_seconds 'every 1h' rocksdb)" "$next"
is 'there was one attempt of each' "$(grep -c 'backup failed' serve.log)" 2

# A mistake changes nothing.
for wrong in 'schedule: {every: 5}' 'hooks: {afterSucess: [x]}' 'keep: {last: many}' 'verify: deeper' 'schedule: {every'; do
  config 'api: {enabled: false}' "$wrong"
  lines=$(wc -l <serve.log)
  hup 'configuration not read again'
  is "'$wrong' is one line in the log" "$(($(wc -l <serve.log) - lines))" 1
done
rm config.yaml
hup 'configuration not read again'
has 'it has the reason' serve.log 'No such file or directory'
http GET /list-backups
is 'the API is still on' "$code" 200
is 'the schedules are the same' "$(of_schedule failed_attempts 'every 1h' rocksdb) $(of_schedule failed_attempts 'every 2h' rocksdb,pact)" '1 1'

# A running backup goes on, and ends sooner because the limit is lifted.
config 'api: {enabled: true}' 'limitBytesPerSecond: 100kB'
hup 'configuration read again'
is 'the schedules are gone' "$(of_schedule failed_attempts 'every 1h' rocksdb)" ''
http POST '/make-backup?backupPact'
id=$(cat body)
config 'api: {enabled: true}' 'limitBytesPerSecond: 100kB' 'verify: none' "hooks: {afterSuccess: [$DIR/hook.sh]}" 'schedule: {every: 2s}' 'keep: {last: 2}'
hup 'configuration read again'
http GET "/check-backup/$id"
is 'the backup goes on' "$(cat body)" backup-in-progress
config 'api: {enabled: true}' "hooks: {afterSuccess: [$DIR/hook.sh]}" 'schedule: {every: 2s}' 'keep: {last: 2}'
hup 'configuration read again'
await "$id"
is 'and is good' "$word" backup-done
check 'the schedule makes the next ones' eventually has_done 2
first=$(ls node/backups | sort -n | tail -n 1)
check 'with the new hook' eventually grep -q "after-success" told
check 'the rule deletes the others' eventually [ ! -e "node/backups/$first" ]
check 'each has a hook' eventually sh -c '[ "$(grep -c after-success told)" -ge 3 ]'
is 'the threads are there' "$(threads)" 2

# A schedule that is gone makes none.
config 'api: {enabled: true}'
hup 'configuration read again'
await "$(cat node/backups/.lock)"
made=$(grep -c 'backup done' serve.log)
sleep 3
is 'without a schedule none is made' "$(grep -c 'backup done' serve.log)" "$made"

# The log level.
check 'no debug lines at first' sh -c '! grep -qF "[DEBUG]" serve.log'
config 'api: {enabled: true}' 'logLevel: debug'
hup 'configuration read again'
backup
check 'the new log level applies' grep -qF '[DEBUG]' serve.log
config 'api: {enabled: true}' 'logLevel: loud'
hup 'is not a log level'

# What needs a restart is named, and the rest applies.
config 'api: {enabled: true, interface: 127.0.0.2}' "directory: $DIR/elsewhere" 'limitBytesPerSecond: 7MB'
hup 'only after a restart'
has 'the log names it' serve.log 'configuration applies only after a restart keys="backup.directory backup.api.interface"'
is 'the rest applies' "$(value limit_bytes_per_second)" 7000000
backup
is 'a backup is good' "$word" backup-done
check 'it is where the others are' [ -d "node/backups/$id" ]
check 'there is no other directory' [ ! -e elsewhere ]
stop TERM
is 'SIGTERM ends it with 0' "$got" 0
is 'the log has no panic' "$(grep -c panicked serve.log)" 0
status 'the node is whole' 0 demo-node verify node
end
