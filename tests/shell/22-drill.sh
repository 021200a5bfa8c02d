#!/bin/sh
# A drill uses a backup in a scratch directory: it passes, fails with a reason, is ended, or is killed. The backup is never changed.

. "$(dirname -- "$0")/lib.sh"

demo-node run --database-directory db --chains 3 --blocks 200 --write-buffer-bytes 65536 --rate 0 --delay-ms 0 --exit-when-done --service-port 0 >node 2>&1
status 'a backup' 0 chainweb-backup make --database-directory db --backup-directory b --backup-pact --log-level error
id=$(cat out)
drill() { chainweb-backup drill --backup-directory b "$@"; }
# Sizes, times and names of the backup's own files, without their numbers of hard links.
state() { find "b/$id/0" -type f -printf '%p %s %T@ %i %m\n' | sort; }
scratch() { find b -maxdepth 1 -name '.drilling-*' | wc -l; }
# lives: whether a process of the command's group lives; a zombie does not.
lives() {
  for stat in /proc/[0-9]*/stat; do cat "$stat" 2>/dev/null; done |
    awk -v group="$(cat group)" '$5 == group && $3 != "Z" { found = 1 } END { exit !found }'
}
dead() { ! lives; }
state >before

if demo-node verify db >/dev/null 2>&1 && chainweb-backup heights "b/$id/0/rocksDb" >/dev/null 2>&1; then
  status 'the databases can be opened' 0 drill latest
  has 'it says so' out "$id: drill passed"
  chainweb-backup list --backup-directory b --columns all >list
  has 'list shows it' list 'drill passed'
else
  status 'without RocksDB only a command can use them' 2 drill latest
  has 'the message names the remedy' err '--exec'
fi

status 'a node runs on it' 0 drill latest --exec demo-node run --database-directory '{directory}' --blocks 5 --rate 0 \
  --exit-when-done --service-port 0
status 'and did run' 0 grep -q '"passed":true' "b/$id/drill.json"

status 'a command that fails' 13 drill latest --exec sh -c 'echo "the node says no {directory}"; exit 3'
has 'its output is printed' err 'the node says no'
has 'its status is printed' err 'exit status: 3'
chainweb-backup list --backup-directory b --columns all >list
has 'list shows the reason' list 'drill FAILED'
chainweb-backup list --backup-directory b --json >list
has 'list --json has the output' list 'the node says no'

status 'a command that does not end' 13 drill latest --exec-seconds 1 --exec sh -c 'echo $$ >../../../group; sleep 600 & sleep 601 # {directory}'
has 'the message names the limit' err 'did not end within 1 s'
check 'no process of it is left' dead

status 'a command that leaves a process' 0 drill latest --exec sh -c 'echo $$ >../../../group; sleep 600 & : {directory}'
check 'that process is ended' dead

status 'a command without {directory}' 2 drill latest --exec true
has 'the message shows how to name it' err '{directory}'
status 'a command that does not exist' 1 drill latest --exec no-such-command '{directory}'
status 'a limit of nothing' 2 drill latest --exec-seconds 0 --exec true '{directory}'
status 'a limit without a command' 2 drill latest --exec-seconds 5
status 'no such backup' 10 drill 1234567890123

is 'the backup is as before' "$(state)" "$(cat before)"
is 'no scratch directory is left' "$(scratch)" 0

# SIGTERM: the command is ended, the directory removed.
chainweb-backup drill --backup-directory b latest --exec sh -c 'echo $$ >../../../group; : >../../../up; sleep 600 # {directory}' >out 2>err &
pid=$! pids="$pids $pid"
until [ -e up ]; do sleep 0.01; done
status 'another drill of the same backup' 11 drill latest --exec true '{directory}'
status 'a delete during a drill' 11 chainweb-backup delete --backup-directory b "$id"
kill "$pid"
wait "$pid"
is 'a drill that is ended fails' "$?" 1
check 'its command is ended' dead
is 'its scratch directory is removed' "$(scratch)" 0
rm up

# SIGHUP, a lost terminal, ends it in the same way, unless it was started with nohup.
chainweb-backup drill --backup-directory b latest --exec sh -c 'echo $$ >../../../group; : >../../../up; sleep 600 # {directory}' >out 2>err &
pid=$! pids="$pids $pid"
until [ -e up ]; do sleep 0.01; done
kill -HUP "$pid"
wait "$pid"
is 'a drill without its terminal fails' "$?" 1
check 'its command is ended' dead
is 'its scratch directory is removed' "$(scratch)" 0
rm up
nohup chainweb-backup drill --backup-directory b latest --exec sh -c ': >../../../up; sleep 1 # {directory}' >out 2>err </dev/null &
pid=$! pids="$pids $pid"
until [ -e up ]; do sleep 0.01; done
kill -HUP "$pid"
wait "$pid"
is 'with nohup it goes on' "$?" 0
rm up

# SIGKILL: the command still works there, so the directory stays until the command has ended.
chainweb-backup drill --backup-directory b latest --exec sh -c 'echo $$ >../../../group; : >../../../up; sleep 600 # {directory}' >out 2>err &
pid=$! pids="$pids $pid"
until [ -e up ]; do sleep 0.01; done
kill -9 "$pid"
wait "$pid" 2>/dev/null
status 'a sweep' 0 chainweb-backup prune --backup-directory b --keep-last 5
is 'keeps the directory of a command that runs' "$(scratch)" 1
status 'and a drill waits for its end' 11 drill latest --exec true '{directory}'
has 'the message names the process' err "process $(cat group) (s"
kill -9 "-$(cat group)"
while lives; do sleep 0.01; done
status 'the next sweep' 0 chainweb-backup prune --backup-directory b --keep-last 5
is 'removes it' "$(scratch)" 0

# A command that gives a file that it shares with the backup another name, and removes its own: no change.
sst=$(cd "b/$id/0/rocksDb" && find . -name '*.sst' | head -n 1)
status 'a command that removes a linked file' 0 drill latest --exec sh -c "rm {directory}/0/rocksDb/$sst"
status 'a command that links one' 0 drill latest --exec sh -c "ln {directory}/0/rocksDb/$sst {directory}/0/rocksDb/other; sleep 0.1"

# A command that writes to such a file; it sets the time of the modification back.
cp -p "b/$id/0/rocksDb/$sst" sst
status 'a command that changes a linked file secretly' 13 drill latest --exec sh -c "cd {directory}/0/rocksDb; cp -p $sst /dev/shm/sst.$$;
  printf x | dd of=$sst bs=1 seek=100 conv=notrunc; touch -r /dev/shm/sst.$$ $sst; rm /dev/shm/sst.$$"
has 'is found out' err 'of the backup may have been changed'
cat sst >"b/$id/0/rocksDb/$sst" && touch -r sst "b/$id/0/rocksDb/$sst"
status 'checksums of all files' 0 chainweb-backup sum --backup-directory b "$id"
status 'a command that links a file and removes the name' 0 drill latest --exec sh -c "cd {directory}/0/rocksDb; ln $sst x; rm x; sleep 0.1"
status 'a command that changes a file with a checksum secretly' 13 drill latest --exec sh -c "cd {directory}/0/rocksDb; cp -p $sst /dev/shm/sst.$$;
  printf x | dd of=$sst bs=1 seek=100 conv=notrunc; touch -r /dev/shm/sst.$$ $sst; rm /dev/shm/sst.$$"
has 'is known to have changed' err 'of the backup was changed'
cat sst >"b/$id/0/rocksDb/$sst" && touch -r sst "b/$id/0/rocksDb/$sst"

# A command that writes to a file that it shares with the backup.
status 'a command that changes a linked file' 13 drill latest --exec sh -c "echo x >>{directory}/0/rocksDb/$sst"
has 'is found' err 'of the backup was changed'
status 'verify finds it, too' 13 chainweb-backup verify --backup-directory b "$id"

end
