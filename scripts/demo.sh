#!/bin/sh
# Shows the whole life of a backup on this machine, in a temporary directory: a demo node that keeps writing, backups made
# with curl while it writes, a node started from the backup, its history verified. Changes nothing else.
# Exit status: 0 it went as it should, 1 it did not, 2 the machine lacks something (one sentence says what to do).

. "$(dirname -- "$0")/lib.sh"
exec </dev/null

clean_up() {
  status=$?
  trap - EXIT
  [ -z "$node_pid" ] || kill "$node_pid" 2>/dev/null || true
  [ -z "$node_pid" ] || wait "$node_pid" || true
  if [ "$status" -eq 0 ]; then
    rm -rf "$DEMO"
  else
    printf '\nthe demo failed (%s); everything is kept in %s\n' "$status" "$DEMO" >&2
  fi
  exit "$status"
}
say() {
  printf '\n%s\n' "$*"
}

# Shows a command as one would type it, runs it, shows what it says; its failure ends the demo.
run() {
  printf '  $ %s\n' "$*"
  run_status=0
  "$@" >"$DEMO/said" 2>&1 || run_status=$?
  sed 's/^/  /' "$DEMO/said"
  return "$run_status"
}

# The same for a command that answers one line without an end, which stays in $answer.
ask() {
  printf '  $ %s\n' "$*"
  answer=$("$@")
  printf '  %s\n' "$answer"
}

wait_for_file() {
  tries=0
  until [ -s "$1" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ] || ! kill -0 "$node_pid" 2>/dev/null; then
      echo "the demo node did not start; it said:" >&2
      cat "$DEMO/node.log" >&2
      exit 1
    fi
    sleep 0.1
  done
}

# poll URL: until the backup has ended.
poll() {
  printf '  $ curl -sSf %s   (again until it has ended)\n' "$1"
  while answer=$(curl -sSf "$1") && [ "$answer" = backup-in-progress ]; do
    sleep 0.1
  done
  printf '  %s\n' "$answer"
  [ "$answer" = backup-done ]
}

demo() {
  PATH=$BIN:$PATH
  cd "$DEMO"

  say 'A demo node: one RocksDB and 20 Pact databases, as a real node has them. It keeps writing all the time.'
  echo '  $ demo-node --database-directory node --fill 40000000 --rate 5 --service-port 0 --address-file address &'
  demo-node --database-directory node --fill 40000000 --rate 5 --service-port 0 --address-file address 2>node.log &
  node_pid=$!
  wait_for_file address
  api="http://$(cat address)"
  run du -sh node/0/rocksDb node/0/sqlite

  say 'A backup of RocksDB: one POST starts it and answers its identifier.'
  ask curl -sSf -X POST "$api/make-backup"
  poll "$api/check-backup/$answer"

  say 'A full backup: the Pact databases too.'
  ask curl -sSf -X POST "$api/make-backup?backupPact"
  id=$answer
  poll "$api/check-backup/$id"

  say 'What there is now. The SSTs are hard links, so a backup holds little of its own (EXCLUSIVE) as long as the node keeps them.'
  run chainweb-backup list --backup-directory node/backups
  run ls "node/backups/$id" "node/backups/$id/0"
  run du -sh "node/backups/$id/0/rocksDb" "node/backups/$id/0/sqlite"

  say 'The backup is a whole database directory: every block links to the last, Pact equals the replay of its blocks.'
  run demo-node verify "node/backups/$id"

  say 'The node stops.'
  printf '  $ kill %s\n' "$node_pid"
  kill "$node_pid"
  wait "$node_pid"
  node_pid=''
  run demo-node verify node

  say 'Restoring: a copy of the backup'\''s 0 in a new database directory, and a node that goes on from there.'
  run mkdir restored
  run cp -a --reflink=auto "node/backups/$id/0" restored/0
  run demo-node --database-directory restored --blocks 20 --rate 20 --exit-when-done --disable-backup-api --service-port 0
  run demo-node verify restored
  run demo-node verify "node/backups/$id"
}

phase setup require_build
phase build build
phase_begin demo
node_pid=''
DEMO=$(mktemp -d "${TMPDIR:-/tmp}/chainweb-backup-demo.XXXXXX")
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
demo
phase_end 0
printf '\n%s' "$SUMMARY"
echo "the demo's files are removed; the programs stay in $BIN"
