#!/bin/sh
# The metrics as Prometheus wants them, of a service and of a directory without one; the alarms, each raised by its fault, by silence, and
# not by a healthy host; the dashboard. Every metric that the alarms and the dashboard name is one of a real service's or directory's.
# At last a real Prometheus watches a real service whose backups fail, and which then ends.
. "$(dirname -- "$0")/lib.sh"
# Where the scripts unpack Debian's package, because installing it would start its service.
PATH=$PATH:$BIN/../tools/prometheus/usr/bin
at=$ROOT/scripts/prometheus

node db --chains 3
status 'a backup with Pact' 0 chainweb-backup make --database-directory db --backup-directory b --backup-pact --log-level error
status 'the metrics of a directory' 0 chainweb-backup metrics --backup-directory b
cp out directory.prom
has 'they have the backup' directory.prom 'chainweb_backup_backups{status="backup-done"} 1'
has 'they have its scope' directory.prom "chainweb_backup_scope_last_success_id{scope=\"rocksdb,pact\"} $(ls b)"
status 'the configuration names the reserve' 0 sh -c 'echo "backup: {reserveBytes: 12345}" >f.yaml && chainweb-backup metrics --backup-directory b --config-file f.yaml'
has 'it is the one' out 'chainweb_backup_reserve_bytes 12345'
status 'the metrics of no directory' 2 chainweb-backup metrics --backup-directory none
has 'the message names the remedy' err '--backup-directory'
status 'a full disk is an error, so the old file is kept' 12 sh -c 'chainweb-backup metrics --backup-directory b >/dev/full'

echo 'backup: {hooks: {afterSuccess: ["true"]}, schedule: {every: 24h}}' >hooks.yaml
start serve.log chainweb-backup serve --database-directory db --backup-directory b --enable-backup-api --config-file hooks.yaml
backup '?backupPact'
is 'a backup by the service' "$word" backup-done
backup
http POST '/make-backup?backupPactState'
http GET /metrics
cp body service.prom
has 'the duration is in a bucket' service.prom 'chainweb_backup_job_duration_seconds_bucket{scope="rocksdb,pact",le="+Inf"} 1'
has 'the refused request is counted' service.prom 'chainweb_backup_requests_total{endpoint="make-backup",code="400"} 1'
http POST /make-backup -H 'Transfer-Encoding: chunked' -d '{}'
is 'the listener refuses another one' "$code" 411
http GET /metrics
has 'it is counted, too' body 'chainweb_backup_requests_total{endpoint="other",code="411"} 1'
stop TERM
start serve.log chainweb-backup serve --database-directory db --backup-directory b --enable-backup-api
http GET /metrics
grep '^chainweb_backup_scope_last_[a-z_]*_\(id\|timestamp_seconds\)' service.prom | sort >before
grep '^chainweb_backup_scope_last_[a-z_]*_\(id\|timestamp_seconds\)' body | sort >after
check 'there are times and identifiers of both scopes' [ "$(wc -l <before)" -eq 10 ]
check 'a restart changes none of them' diff before after
stop TERM

# Names.
cat service.prom directory.prom | sed -n 's/^# TYPE \([a-z_]*\) .*/\1/p' | sort -u >declared
sed -n 's/^# TYPE \([a-z_]*\) histogram$/\1/p' service.prom | sed 's/.*/&_bucket\n&_sum\n&_count/' >>declared
check 'metrics are declared' [ "$(wc -l <declared)" -ge 45 ]
for file in alerts.yml alerts-test.yml dashboard.json; do
  grep -o 'chainweb_backup_[a-z_]*' "$at/$file" | sort -u >named
  check "$file names metrics" [ "$(wc -l <named)" -ge 15 ]
  is "every metric of $file is one of the program's" "$(grep -vxF -f declared named)" ''
done
sed -n 's/^chainweb_backup_[a-z_]*{\(.*\)} .*/\1/p' service.prom directory.prom | grep -o '[a-z_]*="' | tr -d '="' | sort -u >labels
grep -o '[{,][a-z_]*[!=][=~]\{0,1\}\\\{0,1\}"' "$at/alerts.yml" "$at/dashboard.json" | sed 's/.*[{,]\([a-z_]*\)[=!].*/\1/' | sort -u | grep -vx -e job -e instance >asked
is 'every label that is asked for is one of the program' "$(grep -vxF -f labels asked)" ''

# Rules: each has what its reader needs, and a test.
sed -n 's/^ *- alert: //p' "$at/alerts.yml" >alarms
check 'there are alarms' [ "$(wc -l <alarms)" -ge 15 ]
while read -r alarm; do
  has "a test raises $alarm" "$at/alerts-test.yml" "alertname=\"$alarm\""
  awk -v alarm="$alarm" '$0 ~ /- alert: / { inside = $NF == alarm } inside' "$at/alerts.yml" >rule
  for part in 'severity: ' 'summary: ' 'runbook: '; do
    check "$alarm has its $part" grep -q "$part" rule
  done
  check "$alarm names a command" grep -q '`' rule
done <alarms

if ! command -v promtool >/dev/null; then
  skip 'the rules and their tests' "there is no promtool: it is in Debian's package prometheus, whose service then starts"
  end
fi
for text in directory service; do
  status "promtool finds nothing in the metrics of a $text" 0 sh -c "promtool check metrics <$text.prom"
  is 'it says nothing' "$(cat out err)" ''
done
status 'the rules are valid' 0 promtool check rules "$at/alerts.yml"
cp "$at/alerts.yml" "$at/alerts-test.yml" .
status 'the tests of the rules pass' 0 promtool test rules alerts-test.yml
# The tests notice a rule that never raises its alarm, and one that always does.
for change in 's/chainweb_backup_starts == 0/chainweb_backup_starts == 7/' 's/chainweb_backup_thread_hangs == 1/chainweb_backup_thread_hangs < 7/'; do
  sed "$change" "$at/alerts.yml" >alerts.yml
  check 'the rule is another one' [ "$(diff "$at/alerts.yml" alerts.yml | wc -l)" -eq 4 ]
  status 'then they do not pass' 1 promtool test rules alerts-test.yml
done

# The queries of the dashboard, as rules.
sed -n 's/^ *"expr": "\(.*\)",$/\1/p' "$at/dashboard.json" | sed 's/\\"/"/g; s/\$job/.*/g; s/\$instance/.*/g' >queries
check 'the dashboard has queries' [ "$(wc -l <queries)" -ge 30 ]
awk 'BEGIN { print "groups:\n- name: dashboard\n  rules:" } { printf "  - record: query:%d\n    expr: %s%s%s\n", NR, "\047", $0, "\047" }' queries >queries.yml
status 'each is valid' 0 promtool check rules queries.yml
has 'all were looked at' out "$(wc -l <queries) rules found"

if ! command -v prometheus >/dev/null || ! command -v python3 >/dev/null; then
  skip 'a real Prometheus' 'it or python3 is missing'
  end
fi

# scrape PORT: Prometheus on this port, which asks the service every half a second; its rules without their patience. Leaves $watcher.
scrape() {
  sed 's/^\( *for: \).*/\11s/' "$at/alerts.yml" >quick.yml
  cat >prometheus.yml <<END
global: {scrape_interval: 500ms, evaluation_interval: 500ms}
rule_files: [quick.yml]
scrape_configs:
  - {job_name: backup, authorization: {credentials_file: token}, static_configs: [{targets: ["$address"]}]}
END
  prometheus --config.file=prometheus.yml --storage.tsdb.path=tsdb --web.listen-address="127.0.0.1:$1" >prometheus.log 2>&1 </dev/null &
  watcher=$! pids="$pids $!"
}
# fires ALARM...: waits at most half a minute until these are among the alarms that are firing.
fires() {
  tries=0
  while [ "$tries" -lt 300 ]; do
    curl -sS --max-time 5 "http://127.0.0.1:$port/api/v1/alerts" >fired 2>curl.err
    missing=0
    for alarm in "$@"; do
      grep -q "\"alertname\":\"$alarm\"[^}]*}[^}]*}[^}]*\"state\":\"firing\"" fired || missing=1
    done
    [ "$missing" -eq 1 ] || return 0
    tries=$((tries + 1))
    sleep 0.1
  done
  return 1
}
rm -rf b
(umask 077 && head -c 32 /dev/urandom | base64 >token)
start serve.log chainweb-backup serve --database-directory db --backup-directory b --enable-backup-api --reserve-bytes 900TB --auth-token-file token \
  --open-endpoint check-backup
service=$pid
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
scrape "$port"
check 'there is no good backup, and no room for one' fires ChainwebBackupTooOld ChainwebBackupDiskFull
check 'no other alarm is raised yet' [ "$(grep -c 'ChainwebBackupFailed\|ChainwebBackupAbsent\|ChainwebBackupDoesNotStart' fired)" -eq 0 ]
http POST '/make-backup?backupPact' -H "Authorization: Bearer $(cat token)"
id=$(cat body)
await "$id"
is 'a backup fails' "$word" backup-failed
check 'its alarm is raised' fires ChainwebBackupFailed
check 'and names it' grep -q "check --backup-directory DIR $id" fired
kill "$service" && wait "$service" 2>/dev/null
check 'the silence of the service raises the others' fires ChainwebBackupAbsent ChainwebBackupVanished
kill "$watcher" && wait "$watcher" 2>/dev/null
pids=''
end
