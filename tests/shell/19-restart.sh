#!/bin/sh
# restore --replace while the node of the target starts again and again, as under systemd's Restart=always, and while sqlite3
# opens its Pact databases and waits for their locks. A restore either reports that the node runs, and has changed nothing, or has
# exchanged the two databases while no process had the old one open: then the old one is whole, and so is the new one, on which the
# node has started by then. Once with a plain 0, which is exchanged in one step, and once with a 0 that has another directory, so that
# the files are exchanged one level below. RESTORES is the number that must succeed each time (5).
. "$(dirname -- "$0")/lib.sh"

command -v sqlite3 >/dev/null || { echo '1..0 # SKIP there is no sqlite3: install it' && exit 0; }
RESTORES=${RESTORES:-5}

# Both end when the file `stop` exists.
start_again_and_again() {
  while [ ! -e stop ]; do
    demo-node --database-directory target --blocks 1 --rate 0 --delay-ms 0 --exit-when-done --disable-backup-api \
      --service-port 0 >>starts.log 2>&1 </dev/null && echo >>started
    sleep 0.0$(($(od -An -N1 -tu1 </dev/urandom) % 10))
  done
}

write_again_and_again() {
  while [ ! -e stop ]; do
    sqlite3 -cmd '.timeout 3000' target/0/sqlite/pact-v1-chain-0.sqlite \
      'CREATE TABLE IF NOT EXISTS other (x); INSERT INTO other VALUES (randomblob(3000));' >>writes.log 2>&1 </dev/null &&
      echo >>written
    sleep 0.0$(($(od -An -N1 -tu1 </dev/urandom) % 10))
  done
}

# sound DIRECTORY: the result of SQLite's integrity check for every Pact database.
sound() {
  for database in "$1"/0/sqlite/*.sqlite; do sqlite3 "$database" 'PRAGMA integrity_check(1)' 2>&1; done | sort -u
}

node node --chains 2 --fill 3000000 --write-buffer-bytes 300000
status 'a backup' 0 chainweb-backup make --backup-pact --database-directory node
for shape in whole below; do
  echo "# $shape"
  rm -rf target stop && node target --chains 3
  [ "$shape" = whole ] || mkdir target/0/other
  : >started
  : >written
  start_again_and_again &
  again=$!
  write_again_and_again &
  pids="$again $!" done_count=0 refused_count=0 tries=0 problems=''
  while [ "$done_count" -lt "$RESTORES" ] && [ "$tries" -lt $((RESTORES * 100)) ]; do
    tries=$((tries + 1)) got=0
    chainweb-backup restore --backup-directory node/backups latest --to target --replace >out 2>err </dev/null || got=$?
    case $got in
      0) done_count=$((done_count + 1)) ;;
      14) refused_count=$((refused_count + 1)) ;;
      *) problems="$problems; restore is $got: $(cat err)" ;;
    esac
    ls -A target >beside
    grep -vx -e 0 -e '0\.bak-[0-9]*' beside >left && problems="$problems; restore that is $got left $(cat left)"
    [ "$got" -eq 0 ] || { sleep 0.0$((tries % 10)) && continue; }
    sed -n 's/^the previous database is in //p' out >olds
    rm -rf old && mkdir old
    while read -r directory; do
      case $directory in
        */0/*/*) mkdir -p old/0 && to=${directory%/*} && mv "$directory" "old/0/${to##*/}" ;;
        *) mv "$directory" old/0 ;;
      esac
    done <olds
    [ -d old/0/rocksDb ] && [ -d old/0/sqlite ] || problems="$problems; no old database: $(cat out)"
    demo-node verify old >verified 2>&1 || problems="$problems; the old one of restore $done_count: $(tail -n 1 verified)"
    [ "$(sound old)" = ok ] || problems="$problems; the old one of restore $done_count: $(sound old)"
    sleep 0.2
  done
  : >stop
  wait
  pids=''
  check "$done_count restores of $tries, the others say that the node runs" [ "$done_count" -eq "$RESTORES" ]
  check 'none was refused without a reason, none failed, no old database is damaged' [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}"
  echo "# $refused_count were refused; the node started $(wc -l <started) times, sqlite3 wrote $(wc -l <written) times"
  check 'the node started meanwhile' [ "$(wc -l <started)" -gt "$RESTORES" ]
  check 'sqlite3 wrote meanwhile' [ "$(wc -l <written)" -gt "$RESTORES" ]
  status 'the last one is whole' 0 demo-node verify target
  is 'SQLite says the same' "$(sound target)" ok
done
status 'the backup is as it was' 0 chainweb-backup verify --backup-directory node/backups latest --deep
status 'also for the node' 0 demo-node verify "node/backups/$(ls node/backups)"
end
