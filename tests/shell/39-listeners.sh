#!/bin/sh
# Where `serve` listens: Unix sockets, several places at once, sockets that a supervisor passes. The modes of sockets, dead ones, those of
# others, two services that want the same one, and what is left after each end.
. "$(dirname -- "$0")/lib.sh"

node node --chains 1
sock=$DIR/api.sock

# ask PATH [CURL ARGUMENT...]: over the Unix socket; leaves $code, and the files head and body.
ask() {
  asked=$1
  shift
  : >head
  : >body
  code=$(curl -sS --max-time 20 --unix-socket "$sock" -D head -o body -w '%{http_code}' "$@" "http://localhost$asked" 2>curl.err) ||
    code="curl failed: $(cat curl.err)"
}

serve_at() {
  start serve.log chainweb-backup serve --database-directory node --enable-backup-api "$@"
}

# no_port: the service has no TCP socket.
no_port() {
  for inode in $(awk 'NR > 1 { print $10 }' /proc/net/tcp /proc/net/tcp6); do
    ! ls -l "/proc/$pid/fd" | grep -qF "socket:[$inode]" || return 1
  done
}

# refused NAME TEXT FLAG...: serve ends with 2 and says so, and the socket of the other one still answers.
refused() {
  refused_name=$1 refused_text=$2
  shift 2
  status "$refused_name" 2 chainweb-backup serve --database-directory node --backup-directory other --service-port 0 "$@"
  has "$refused_name: the message" err "$refused_text"
}

serve_at --service-interface "unix:$sock"
is 'the address file has the socket' "$address" "unix:$sock"
is 'only its user can connect' "$(stat -c '%a %F' "$sock")" '600 socket'
ask /make-backup -X POST
is 'a backup by curl --unix-socket' "$code" 200
id=$(cat body)
tries=0
while ask "/check-backup/$id" && [ "$(cat body)" = backup-in-progress ] && [ "$tries" -lt 3000 ]; do tries=$((tries + 1)) && sleep 0.02; done
is 'it is done' "$code $(cat body)" '200 backup-done'
has 'the peer is the user' head "x-peer-addr: unix:$(id -u)"
ask '/check-backup/..%2f..'
is 'no way out' "$code $(cat body)" '404 no such backup'
check 'no port is open' no_port

refused 'a second service at the same socket' 'is in use' --service-interface "unix:$sock"
echo precious >file
refused 'a file in its place' 'is not a socket' --service-interface "unix:$DIR/file"
is 'the file is as it was' "$(cat file)" precious
ln -s "$sock" link
refused 'a link in its place' 'is not a socket' --service-interface "unix:$DIR/link"
refused 'a directory that does not exist' 'create it' --service-interface "unix:$DIR/none/api.sock"
refused 'a path that is too long' 'too long' --service-interface "unix:$DIR/$(printf '%0120d' 0)"
refused 'a relative path' 'write a whole path' --service-interface unix:api.sock
refused 'a mode without a socket' 'unix:PATH' --socket-mode 660
refused 'an unknown group' 'no group nosuchgroup' --service-interface "unix:$DIR/other.sock" --socket-group nosuchgroup
refused 'the same place twice' 'given twice' --service-interface ::1 --service-interface ::1
check 'nothing is left of these' [ ! -e other.sock ]
ask /health-check
is 'the first one still answers' "$code $(cat body)" '200 Health check OK.'
stop TERM
is 'it ends in order' "$got" 0
check 'the socket is gone' [ ! -e "$sock" ]

serve_at --service-interface "unix:$sock"
stop KILL
check 'a kill leaves the socket' [ -S "$sock" ]
serve_at --service-interface "unix:$sock" --socket-mode 660 --socket-group "$(id -g)"
is 'the next one takes its place' "$(stat -c '%a %g' "$sock")" "660 $(id -g)"
ask /health-check
is 'and answers' "$code" 200
rm "$sock"
: >"$sock"
stop TERM
check 'what has taken its name meanwhile is not removed' [ -f "$sock" ]
rm "$sock"

# Of many that start at the same time on a dead socket exactly one serves.
serve_at --service-interface "unix:$sock"
stop KILL
n=0 racers=''
while [ "$n" -lt 8 ]; do
  chainweb-backup serve --database-directory node --backup-directory "racer$n" --service-interface "unix:$sock" >"racer$n.log" 2>&1 </dev/null &
  racers="$racers $!" pids="$pids $!" n=$((n + 1))
done
tries=0 alive=8
while [ "$alive" -gt 1 ] && [ "$tries" -lt 1500 ]; do
  tries=$((tries + 1)) alive=0
  for racer in $racers; do ! kill -0 "$racer" 2>/dev/null || alive=$((alive + 1)); done
  sleep 0.02
done
is 'one of eight serves' "$alive" 1
ask /health-check
is 'it answers' "$code" 200
is 'the others say why not' "$(cat racer?.log | grep -c 'is in use')" 7
for racer in $racers; do kill "$racer" 2>/dev/null && wait "$racer" 2>/dev/null; done
pids=''

# Several at once, also from a file.
printf 'databaseDirectory: %s/node\nbackup: {api: {enabled: true, interface: [127.0.0.1, "unix:%s"], socketMode: 0666}}\n' "$DIR" "$sock" >config.yaml
start serve.log chainweb-backup serve --config-file config.yaml
is 'the address file has a line for each' "$(grep -c '' address) $(sed -n 2p address)" "2 unix:$sock"
is 'with the mode of the file' "$(stat -c %a "$sock")" 666
address=$(sed -n 1p address)
http GET /health-check
is 'the port answers' "$code" 200
has 'with its peer' head 'x-peer-addr: 127.0.0.1:'
ask /health-check
is 'the socket answers' "$code" 200
status 'doctor asks both' 0 chainweb-backup doctor --config-file config.yaml --service-port "${address##*:}" --node-version 1
is 'both answer it' "$(grep -c 'a service answers at' out)" 2
stop TERM
status 'doctor without a service' 0 chainweb-backup doctor --config-file config.yaml --service-port "${address##*:}" --node-version 1
is 'it says that none listens' "$(grep -c 'no service listens on' out)" 2

# SIGTERM under load: each request that was sent is answered, the running backup fails with the reason, and the end comes in time.
node large --chains 1 --fill 3000000
start serve.log chainweb-backup serve --database-directory large --enable-backup-api --limit-bytes-per-second 200kB \
  --service-interface 127.0.0.1 --service-interface "unix:$sock"
address=$(sed -n 1p address)
: >go
# load KIND CURL-ARGUMENT...: requests, one after the other, each on a connection of its own.
load() {
  kind=$1 n=0
  shift
  while [ -e go ] && [ "$n" -lt 3000 ]; do
    n=$((n + 1)) asked=0
    curl -sS --max-time 20 -o "body.$kind" "$@" 2>"err.$kind" || asked=$?
    echo "$asked" >>"codes.$kind"
  done
}
load unix --unix-socket "$sock" http://localhost/list-backups &
loads=$!
load tcp "http://$address/list-backups" &
loads="$loads $!"
sleep 0.5
http POST '/make-backup?backupPact'
id=$(cat body)
sleep 1
began=$(date +%s)
stop TERM
is 'under load SIGTERM ends it with 0' "$got" 0
check 'within ten seconds' [ "$(($(date +%s) - began))" -lt 10 ]
rm go
# shellcheck disable=SC2086 # two processes
wait $loads
# 7: nobody listens any more. 56: the kernel makes a TCP connection between our last accept and the close, and resets it.
is 'each request was answered, or found nobody' "$(grep -vxc -e 0 -e 7 codes.unix) $(grep -vxc -e 0 -e 7 -e 56 codes.tcp)" '0 0'
check 'there were many' [ "$(grep -xc 0 codes.unix)" -gt 20 ]
has 'the running backup failed with the reason' "large/backups/$id/backup.json" 'shut down'
is 'its status is failed' "$(cat "large/backups/$id/status")" backup-failed
check 'the socket is gone' [ ! -e "$sock" ]

# Sockets that a supervisor passes.
if ! cc -O1 -Wall -Wextra -o activate "$ROOT/tests/shell/activate.c" 2>cc.log; then
  skip 'sockets of a supervisor' 'there is no cc'
  end
fi
# activated LOG WHERE... -- FLAG...
activated() {
  log=$1
  shift
  places=''
  while [ "$1" != -- ]; do places="$places $1" && shift; done
  shift
  rm -f address
  # shellcheck disable=SC2086 # several words
  ./activate $places -- "$BIN/chainweb-backup" serve --database-directory node --enable-backup-api --address-file address "$@" >ports 2>"$log" </dev/null &
  pid=$! pids="$pids $!"
  tries=0
  until [ -s address ] || [ "$tries" -gt 1000 ] || ! kill -0 "$pid" 2>/dev/null; do tries=$((tries + 1)) && sleep 0.02; done
}

activated serve.log 0 "$sock" --
is 'only the passed sockets are used' "$(cat address)" "127.0.0.1:$(cat ports)
unix:$sock"
address=$(sed -n 1p address)
http GET /health-check
is 'the passed port answers' "$code" 200
ask /health-check
is 'the passed Unix socket answers' "$code" 200
backup
is 'a backup over a passed socket' "$word" backup-done
stop TERM
is 'it ends in order' "$got" 0
check 'a passed socket is not removed' [ -S "$sock" ]
rm "$sock"
activated serve.log "$sock" -- --service-interface "unix:$DIR/own.sock"
is 'a place that was named is used, too' "$(tr '\n' ' ' <address)" "unix:$sock unix:$DIR/own.sock"
stop TERM
check 'the passed one is left' [ -S "$sock" ]
check 'our own is removed' [ ! -e own.sock ]
rm "$sock"
DATAGRAM=1 activated wrong.log 0 --
got=0
wait "$pid" || got=$?
is 'a passed socket of another kind' "$got" 2
has 'it says what is wrong' wrong.log 'the inherited descriptor 3 accepts no connections'
for rubbish in x -1 999 ''; do
  status "LISTEN_FDS=$rubbish for this process" 2 sh -c "LISTEN_PID=\$\$ LISTEN_FDS='$rubbish' exec chainweb-backup serve --database-directory node"
  has 'it says so' err 'LISTEN_FDS is'
done
status 'a socket that was announced and not passed' 2 sh -c "exec 3<&-; LISTEN_PID=\$\$ LISTEN_FDS=1 exec chainweb-backup serve --database-directory node"
has 'it says which one' err '3 is not open'
status 'a file instead of a socket' 2 sh -c "exec 3</dev/null; LISTEN_PID=\$\$ LISTEN_FDS=1 exec chainweb-backup serve --database-directory node"
has 'it says what it is' err 'descriptor 3 is no socket'
status 'variables for another process are ignored' 0 env LISTEN_PID=1 LISTEN_FDS=x chainweb-backup list --database-directory node
status 'another command leaves passed sockets alone' 0 sh -c "exec 3</dev/null; LISTEN_PID=\$\$ LISTEN_FDS=1 exec chainweb-backup list --database-directory node"
end
