#!/bin/sh
# The life of `serve` under a supervisor, which `supervise.c` stands for: ready, status, watchdog, reload, stop, the log of the journal; what
# its children know of it; and the units, as systemd reads them.
. "$(dirname -- "$0")/lib.sh"

cc -O1 -Wall -Wextra -o supervise "$ROOT/tests/shell/supervise.c" || exit 1
node node --chains 2 --fill 3000000
printf 'databaseDirectory: node\nbackup: {api: {enabled: true}}\n' >config.yaml

# life SOCKET FLAG...: starts a service under a supervisor; its messages are in the file messages.
life() {
  notify=$1
  shift
  rm -f messages
  start serve.log ./supervise "$notify" messages chainweb-backup serve --config-file config.yaml "$@"
}
# told TEXT [SECONDS]: waits until a message has the text.
told() {
  tries=0
  until grep -qF -- "$1" messages || [ "$tries" -ge $((${2:-10} * 50)) ]; do tries=$((tries + 1)) && sleep 0.02; done
  has "the supervisor is told: $1" messages "$1"
}
switches() { awk '/^(non)?voluntary_ctxt_switches/ { sum += $2 } END { print sum }' "/proc/$pid"/task/*/status; }

# From the start to the stop.
life "$DIR/notify"
told 'READY=1'
told 'STATUS=idle, no good backup'
is 'ready is the first word' "$(head -n 1 messages)" 'READY=1'
sleep 1
before="$(wc -l <messages) $(switches)"
sleep 4
is 'idle, nothing is told, and no thread wakes up' "$(wc -l <messages) $(switches)" "$before"
printf 'databaseDirectory: node\nbackup: {limitBytesPerSecond: 400kB, api: {enabled: true}}\n' >config.yaml
uptime=$(awk '{ printf "%d", $1 * 1000000 }' /proc/uptime)
kill -HUP "$pid"
told 'RELOADING=1|MONOTONIC_USEC='
sent=$(sed -n 's/^RELOADING=1|MONOTONIC_USEC=\([0-9]*\)$/\1/p' messages)
check 'with the time of the monotonic clock' [ "$((sent - uptime))" -ge -1000000 ] && [ "$((sent - uptime))" -le 5000000 ]
tries=0
until [ "$(grep -cx READY=1 messages)" -ge 2 ] || [ "$tries" -ge 500 ]; do tries=$((tries + 1)) && sleep 0.02; done
is 'then it is ready again' "$(grep -x -e 'RELOADING.*' -e READY=1 messages | cut -d = -f 1 | tr '\n' ' ')" 'READY RELOADING READY '
http POST '/make-backup?backupPact'
id=$(cat body)
told "STATUS=backup $id: "
sleep 3
grep "STATUS=backup $id: .*, [0-9]* %\$" messages | sed 's/.*, \([0-9]*\) %$/\1/' >percents
check 'percents are told' [ "$(wc -l <percents)" -ge 2 ]
is 'each once, and none above 100' "$(awk '$1 > 100 { bad = 1 } END { print bad + 0 }' percents) $(grep 'STATUS=' messages | uniq -d)" '0 '
: >config.new && printf 'databaseDirectory: node\nbackup: {api: {enabled: true}}\n' >config.yaml
kill -HUP "$pid"
await "$id"
is 'the backup is good' "$word" backup-done
told "STATUS=idle, last good backup $id of 20"
kill -0 "$pid"
children=$(pgrep -P "$pid" | wc -l)
stop TERM
is 'SIGTERM ends it with 0' "$got" 0
sleep 0.3
is 'the last word is that it stops' "$(tail -n 1 messages | cut -d '|' -f 1,2)" 'STOPPING=1|STATUS=stopping'
has 'and for how long' messages 'EXTEND_TIMEOUT_USEC=18000000'
is 'nobody is told of a watchdog that is not there' "$(grep -c WATCHDOG messages)" 0
is 'the only child was the supervisor' "$children" 1
is 'nothing runs any more' "$(pgrep -f "$DIR/notify" | wc -l)" 0

# An abstract socket, a watchdog, and a stop while a backup is made.
printf 'databaseDirectory: node\nbackup: {limitBytesPerSecond: 200kB, api: {enabled: true}}\n' >config.yaml
WATCHDOG=400000
export WATCHDOG
life "@chainweb-backup-test-$$"
unset WATCHDOG
told 'WATCHDOG=1'
sleep 2
pings=$(grep -cx WATCHDOG=1 messages) # of about 10
check 'the watchdog is served twice in its time' [ "$pings" -ge 5 ] && [ "$pings" -le 15 ]
http POST '/make-backup?backupPact'
id=$(cat body)
told "STATUS=backup $id: "
began=$(date +%s)
stop TERM
is 'SIGTERM ends it with 0' "$got" 0
check 'within 10 s' [ "$(($(date +%s) - began))" -lt 10 ]
sleep 0.3
has 'it has said that it stops' messages 'STOPPING=1'
has 'the backup failed with the reason' serve.log 'reason="shut down'

# A process that is stopped is not alive: the supervisor waits in vain.
WATCHDOG=400000
export WATCHDOG
life "$DIR/notify2"
unset WATCHDOG
told 'WATCHDOG=1'
kill -STOP "$pid"
sleep 0.5
before=$(grep -cx WATCHDOG=1 messages)
sleep 1
is 'stopped, it is not alive' "$(grep -cx WATCHDOG=1 messages)" "$before"
kill -CONT "$pid"
stop TERM
is 'it ends with 0' "$got" 0

# What makes no sense: it serves all the same, and says so.
for wrong in relative @ vsock:2:1 /nosuch/socket; do
  NOTIFY_SOCKET=$wrong start wrong.log chainweb-backup serve --config-file config.yaml
  http GET /health-check
  is "NOTIFY_SOCKET=$wrong: it serves" "$code" 200
  is 'it says so once' "$(grep -c 'supervisor not told' wrong.log)" 1
  stop TERM
done
WATCHDOG_USEC=rubbish
export WATCHDOG_USEC
life "$DIR/notify3"
unset WATCHDOG_USEC
told 'READY=1'
has 'a wrong time is named' serve.log 'watchdog not served WATCHDOG_USEC="rubbish"'
stop TERM

# The children do not speak for the service. (A hook has no variable of its environment, a drill has.)
chainweb-backup list --database-directory node >list
cat >tell.sh <<'END'
#!/bin/sh
env >"$2"
END
chmod +x tell.sh
NOTIFY_SOCKET=/nosuch WATCHDOG_USEC=1000000 WATCHDOG_PID=1 LISTEN_FDS=1 LISTEN_PID=1 LISTEN_FDNAMES=x KEPT=kept \
  chainweb-backup drill latest --database-directory node --exec "$DIR/tell.sh" '{directory}' "$DIR/of-drill" >out 2>err
has 'the command of a drill has the environment' of-drill KEPT=kept
is 'without what the supervisor has told' "$(grep -c -e '^NOTIFY_SOCKET=' -e '^WATCHDOG_' -e '^LISTEN_' of-drill)" 0

# The journal gets priorities, and writes the time itself.
JOURNAL=$DIR/journal
export JOURNAL
life "$DIR/notify4"
unset JOURNAL
told 'READY=1'
has 'information has its priority' journal '<6>serving address='
has 'a warning has its priority' journal "<4>the node's version is unknown"
is 'no line has a level or a time' "$(grep -cv '^<[0-9]>[a-z]' journal)" 0
stop TERM
JOURNAL=$DIR/journal2 ./supervise "$DIR/notify5" messages chainweb-backup list --database-directory nosuch >out
has 'so does the error at the end' journal2 '<3>error: '
is 'another standard error is not the journal' "$(JOURNAL_STREAM=1:2 chainweb-backup list --database-directory nosuch 2>&1 | grep -c '^error: ')" 1

# The unit permits every system call of a life with a backup, a hook, a reload and a Unix socket. (0x1c3 is cachestat, which the program
# does without if an older systemd does not know it.)
unit=$ROOT/scripts/systemd/chainweb-backup.service
# calls NAME: the system calls of a set of systemd.
calls() {
  systemd-analyze syscall-filter "$1" | sed '1d; s/^ *//; /^#/d; /^$/d' | while read -r one; do
    case $one in @*) calls "$one" ;; *) echo "$one" ;; esac
  done
}
has 'the unit tells that it is ready' "$unit" 'Type=notify'
if command -v systemd-analyze >/dev/null && strace -o /dev/null true 2>/dev/null; then
  calls @default >permitted
  sed -n 's/^SystemCallFilter=//p' "$unit" >filters
  while read -r filter; do
    for one in ${filter#\~}; do case $one in @*) calls "$one" ;; *) echo "$one" ;; esac; done | sort -u >set
    case $filter in '~'*) grep -vxF -f set permitted >next ;; *) sort -u permitted set >next ;; esac
    mv next permitted
  done <filters
  printf 'databaseDirectory: node\nbackup: {api: {enabled: true}, keep: {last: 1}, hooks: {afterSuccess: [/bin/true]}}\n' >config.yaml
  start traced.log strace -f -qq -o trace chainweb-backup serve --config-file config.yaml --service-interface 127.0.0.1 \
    --service-interface "unix:$DIR/socket" --socket-mode 0660 --socket-group "$(id -g)"
  address=$(head -n 1 address)
  backup '?backupPact'
  is 'a traced backup is good' "$word" backup-done
  traced=$(pgrep -P "$pid")
  kill -HUP "$traced"
  sleep 1
  kill -TERM "$traced"
  got=0
  wait "$pid" || got=$?
  is 'it ends with 0' "$got" 0
  sed -n 's/^[0-9]* *\([a-z_0-9]*\)(.*/\1/p' trace | sort -u | grep -vx -e syscall_0x1c3 -e cachestat >used
  check 'many calls were seen' [ "$(wc -l <used)" -ge 50 ]
  is 'all of them are permitted' "$(grep -vxF -f permitted used)" ''
  is 'a mount is not' "$(grep -cx -e mount -e ptrace -e setuid permitted)" 0
else
  skip 'the unit permits what the program does' 'there is no systemd-analyze, or no strace'
fi

sleep 0.3
is 'nothing is left' "$(pgrep -f "$DIR" | grep -vx $$ | wc -l)" 0
is 'no log has a panic' "$(cat ./*.log journal | grep -c panicked)" 0
end
