#!/bin/sh
# A backup that is being made is slowed down, accelerated by SIGHUP, cancelled from another process; and events in the system around it.
. "$(dirname -- "$0")/lib.sh"

node node --chains 2 --fill 6000000
at='--backup-directory node/backups'
config() {
  printf 'databaseDirectory: node\nbackup:\n  api: {enabled: true}\n  reserveBytes: 0\n  limitBytesPerSecond: %s\n' "$1" >config.yaml
}

# shellcheck disable=SC2086 # $at is two words
{
  config 1000
  start serve.log chainweb-backup serve --config-file config.yaml
  status 'nothing to cancel is 10' 10 chainweb-backup cancel $at
  http POST '/make-backup?backupPact'
  id=$(cat body)
  sleep 1
  status 'a slow backup is in progress' 11 chainweb-backup check $at "$id"
  thread=$(grep -lx backup /proc/"$pid"/task/*/comm | cut -d / -f 5)
  is 'its thread lets others use the disk first' "$(ionice -p "$thread")" idle
  is '... and the processor' "$(cut -d ' ' -f 19 "/proc/$thread/stat")" 10
  slice=$(sed -n 's/^se.slice *: *//p' "/proc/$thread/sched")
  case $slice,$(printf '6.12\n%s\n' "$(uname -r)" | sort -V | head -n 1) in
    ?*,6.12) is '... at once, when they wake up' "$slice" 5000000 ;;
    *) skip '... at once, when they wake up' 'the kernel is older than Linux 6.12, or does not tell' ;;
  esac
  config 0
  kill -HUP "$pid"
  tries=0
  until chainweb-backup check $at "$id" >word 2>&1 || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  is 'SIGHUP lifted its limit' "$(cat word)" backup-done
  has 'the log says so' serve.log 'configuration read again limit_bytes_per_second=0'

  config 1000x
  kill -HUP "$pid"
  tries=0
  until grep -q 'not read again' serve.log || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  has 'a wrong file is an error in the log' serve.log 'is not a size'
  config 1000
  kill -HUP "$pid"
  tries=0
  until grep -q 'limit_bytes_per_second=1000' serve.log || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  http POST '/make-backup?backupPact'
  id=$(cat body)
  status 'cancel is 0' 0 timeout 2 chainweb-backup cancel $at "$id"
  is 'it says how the backup ended' "$(cat out)" "$id: backup-failed"
  status 'the status agrees' 1 chainweb-backup check $at "$id"
  has 'and says why' err 'cancelled by the operator'
  stop TERM

  # With this limit, the checksums of the first backup would take hours.
  rm -f node/backups/*/0/*/BLAKE2SUMS
  timeout 60 chainweb-backup make --config-file config.yaml --backup-pact >made 2>make.log </dev/null &
  maker=$!
  tries=0
  until [ -s made ] || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  status 'cancel without an ID takes the one that runs' 0 timeout 2 chainweb-backup cancel $at
  is 'which is that of make' "$(cat out)" "$(cat made): backup-failed"
  made_is=0
  wait "$maker" || made_is=$?
  is 'make says so' "$made_is" 1
  is 'and leaves its record only' "$(ls -A "node/backups/$(cat made)" | tr '\n' ' ')" '.use backup.json status '
  is 'and no garbage' "$(ls -A node/backups | grep -c -e deleting -e creating)" 0
}
# No process reads its output, as after a lost connection; and a limit of the system for files.
status 'without a standard error it is as always' 10 sh -c "exec chainweb-backup check $at 1 2>/dev/full"
made_is=0
chainweb-backup make --backup-pact --database-directory node 2>/dev/full >/dev/full </dev/null || made_is=$?
is 'make that can say the identifier nowhere says how the backup went' "$made_is" 0
id=$(ls node/backups | tail -n 1)
# shellcheck disable=SC2086 # $at is two words
{
  status 'the backup is good' 0 chainweb-backup verify $at "$id" --deep
  (ulimit -f 20 && exec chainweb-backup make --backup-pact --database-directory node --log-level off) >made
  is 'a file that must not be so large is a failed backup' "$?" 1
  status 'it is known' 1 chainweb-backup check $at "$(cat made)"
  has 'and why' err 'File too large'

  # The data of an interrupted backup is removed if the next backup needs the room.
  mkdir node/backups/.deleting-1600000000000.0 && head -c 100000000 /dev/urandom >node/backups/.deleting-1600000000000.0/left
  sync -f node/backups
  free=$(df -B1 --output=avail node/backups | tail -n 1)
  status 'a backup that needs its room is 0' 0 \
    chainweb-backup make --database-directory node --reserve-bytes "$((free + 50000000))" --log-level warn
  is 'which was made' "$(ls -A node/backups | grep -c deleting)" 0
}
status 'the node is whole' 0 demo-node verify node
end
