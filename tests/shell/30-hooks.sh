#!/bin/sh
# Hooks of `make`, `serve` and `verify`, from a configuration file: what they get, their exit codes, and how they are ended.
. "$(dirname -- "$0")/lib.sh"

node node --chains 2
at='--backup-directory node/backups'
# hook NAME: a script that notes what it gets in the directory of this test, and ends with the status in the file NAME.
hook() {
  cat >"$1.sh" <<END
#!/bin/sh
cat >"$DIR/$1.json"
env | sort >"$DIR/$1.env"
echo "$1 \$CHAINWEB_BACKUP_EVENT \$CHAINWEB_BACKUP_STATUS \$*" >>"$DIR/order"
[ ! -e "$DIR/$1.slow" ] || { echo \$\$ >"$DIR/$1.pid"; sleep 600; }
echo "the hook $1 says so"
exit "\$(cat "$DIR/$1.status" 2>/dev/null || echo 0)"
END
  chmod +x "$1.sh"
}
for name in before verified success failure; do hook "$name"; done
cat >config.yaml <<END
databaseDirectory: node
backup:
  hooks:
    before: [$DIR/before.sh, "two words", '\$HOME', "*"]
    onVerified: [$DIR/verified.sh]
    afterSuccess:
    - [$DIR/success.sh, first]
    - [$DIR/success.sh, second]
    afterFailure: [$DIR/failure.sh]
    limitSeconds: 2
END
make() { chainweb-backup make --config-file config.yaml --log-level error "$@"; }

SECRET=hidden status 'make is 0' 0 chainweb-backup make --config-file config.yaml --backup-pact --log-level error
unset SECRET
id=$(cat out)
# shellcheck disable=SC2016 # the words of the configuration, as they are
is 'the hooks ran in order, their words as they stand' "$(cat order)" 'before before backup-in-progress two words $HOME *
verified on-verified backup-done 
success after-success backup-done first
success after-success backup-done second'
has 'the hook knows the backup' success.env "CHAINWEB_BACKUP_ID=$id"
has 'and its path' success.env "CHAINWEB_BACKUP_PATH=$DIR/node/backups/$id"
has 'and what it covers' success.env 'CHAINWEB_BACKUP_SCOPE=rocksdb,pact'
is 'it has none of our other variables' "$(grep -c SECRET success.env)" 0
has 'its standard input is the record' success.json "\"id\":\"$id\",\"status\":\"backup-done\""
# shellcheck disable=SC2086 # $at is two words
{
  chainweb-backup list $at --columns all >list
  has 'list shows the hooks' list 'hook after-success passed'
  chainweb-backup list $at --json >list
  has 'so does the list as JSON' list '"event": "on-verified"'
  is 'without the arguments' "$(grep -c 'two words' list)" 0

  # A failure after a good backup is seen everywhere, and the backup is good.
  echo 7 >success.status
  status 'a hook that fails after a good backup is 16' 16 make
  id=$(cat out)
  has 'it is said' err "backup $id is good, but a hook failed"
  has 'and why is in the log' err 'exit status: 7: the hook success says so'
  status 'the backup is good' 0 chainweb-backup check $at "$id"
  status 'and verifies' 0 chainweb-backup verify $at "$id"
  chainweb-backup list $at --columns all >list
  has 'list says that the hook failed' list 'hook after-success FAILED'
  rm success.status

  echo 9 >verified.status
  status 'verify with a hook that fails is 16' 16 chainweb-backup verify --config-file config.yaml "$id"
  has 'it is said' err 'the hook on-verified failed: the command ended with exit status: 9'
  has 'the hook knows the number of faults' verified.env CHAINWEB_BACKUP_FAULTS=0
  status 'without the configuration there is no hook' 0 chainweb-backup verify $at "$id"
  rm verified.status

  # A failure before the backup.
  echo 5 >before.status
  : >order
  status 'a hook that fails before the backup is 1' 1 make
  id=$(cat out)
  is 'and no other runs but that of the failure' "$(cut -d ' ' -f 1 order | tr '\n' ' ')" 'before failure '
  has 'which knows why' failure.env 'CHAINWEB_BACKUP_REASON=the hook before the backup failed: the command ended with exit status: 5'
  status 'the backup has failed' 1 chainweb-backup check $at "$id"
  has 'and says why' err 'the hook before the backup failed'
  is 'it has its record only' "$(ls -A "node/backups/$id" | tr '\n' ' ')" '.use backup.json hooks.json status '
  rm before.status

  # Time limit, cancel, SIGTERM.
  : >success.slow
  status 'a hook that does not end is ended' 16 make
  has 'the log says so' err 'did not end within 2 s'
  check 'its process is gone' [ ! -d "/proc/$(cat success.pid)" ]
  rm success.slow
  : >before.slow
  timeout 60 chainweb-backup make --config-file config.yaml >made 2>make.log </dev/null &
  maker=$!
  until [ -s before.pid ]; do sleep 0.01; done
  status 'cancel while a hook runs' 0 timeout 10 chainweb-backup cancel $at
  made_is=0
  wait "$maker" || made_is=$?
  is 'make has failed' "$made_is" 1
  check 'the process of the hook is gone' [ ! -d "/proc/$(cat before.pid)" ]
  rm before.slow before.pid

  # The copies off the host are as old as the last backup of which all hooks passed.
  passed() { chainweb-backup metrics $at | grep '^chainweb_backup_last_hook_success_timestamp_seconds{hook="after-success"}'; }
  before=$(passed)
  sed "s|- \[$DIR/success.sh, first\]|- [/bin/false]|" config.yaml >half.yaml
  status 'one of two hooks fails' 16 chainweb-backup make --config-file half.yaml --log-level error
  is 'the metrics do not call that a success' "$(passed)" "$before"

  # A program that is killed leaves a hook that failed, not one that may still pass.
  : >success.slow
  rm -f success.pid
  chainweb-backup make --config-file config.yaml >made 2>make.log </dev/null &
  maker=$!
  until [ -s success.pid ]; do sleep 0.01; done
  kill -9 "$maker"
  wait "$maker" 2>/dev/null
  kill -9 "$(cat success.pid)"
  rm success.slow
  status 'the next make' 0 make
  chainweb-backup list $at --columns all >list
  has 'list says that the hook was interrupted' list 'hook after-success FAILED'
  has 'and why' list 'interrupted: the program that ran it ended before'
}

sed 's/limitSeconds: 2/limitSeconds: 300/; s/^backup:/&\n  api: {enabled: true}/' config.yaml >serve.yaml
# passes ID: whether its hooks pass soon.
passes() {
  tries=0
  until http GET "/check-backup/$1" -H 'Accept: application/json' && ! grep -q '"passed":false' body || [ "$tries" -ge 500 ]; do
    tries=$((tries + 1)) && sleep 0.02
  done
  grep -q '"event":"after-success","number":1,"program":"[^"]*","passed":true' body && ! grep -q '"passed":false' body
}
interrupted=$(chainweb-backup list --backup-directory node/backups --columns all | awk '/hook after-success FAILED.*interrupted/ { print $1 }')
start serve.log chainweb-backup serve --config-file serve.yaml
check 'a service runs the hooks of the backup whose make was killed' passes "$interrupted"
: >success.slow
rm -f success.pid
backup
first=$id
is 'a client sees the end of the backup before that of its hooks' "$word" backup-done
until [ -s success.pid ]; do sleep 0.01; done
backup
is 'the next backup does not wait for them' "$word" backup-done
http GET "/check-backup/$id" -H 'Accept: application/json'
has 'the JSON has the hooks' body '"hooks":['
began=$(date +%s)
stop TERM
is 'SIGTERM ends it with 0' "$got" 0
check 'within its time' [ "$(($(date +%s) - began))" -lt 10 ]
check 'the process of the hook is gone' [ ! -d "/proc/$(cat success.pid)" ]
has 'the log tells of the hook that was ended' serve.log 'hook failed'
has 'and of the one that was not begun' serve.log 'reason="not run: shut down"'
chainweb-backup list --backup-directory node/backups --json >list
has 'so does the list' list '"reason": "not run: shut down"'
rm success.slow
start serve.log chainweb-backup serve --config-file serve.yaml
check 'after the next start the hook that was ended passes' passes "$first"
check 'so does the one that was not begun' passes "$id"
stop TERM
: >success.slow

# A crash: one hook runs, one waits. Another process leaves both alone as long as the service lives; the next start tells of them.
rm -f success.pid
start serve.log chainweb-backup serve --config-file serve.yaml
backup
first=$id
until [ -s success.pid ]; do sleep 0.01; done
backup
status 'a backup whose hook waits cannot be deleted' 11 chainweb-backup delete --backup-directory node/backups "$id"
status 'nor can one whose hook runs' 11 chainweb-backup delete --backup-directory node/backups "$first"
chainweb-backup make --database-directory node --log-level error >made 2>&1
is 'make beside the service' "$?" 0
chainweb-backup list --backup-directory node/backups --columns all >list
check 'leaves the hooks alone' grep -q "^$id .*hook after-success waits since" list
check 'also the one that runs' grep -q "^$first .*hook after-success has not ended" list
stop KILL
kill -KILL "-$(cat success.pid)"
rm success.slow
start serve.log chainweb-backup serve --config-file serve.yaml
is 'the next start tells of them' "$(grep -c "hook interrupted id=$id .*not run: the program" serve.log) $(grep -c "hook interrupted id=$first" serve.log)" '3 2'
has 'it says that it runs them' serve.log "hooks resumed id=$first hooks=after-success"
check 'what was interrupted passes' passes "$first"
check 'so does what was not run' passes "$id"
http GET /metrics
has 'the metrics say so' body 'chainweb_backup_last_hook_passed{hook="after-success"} 1'
status 'then the backup can be deleted' 0 chainweb-backup delete --backup-directory node/backups "$id"

# A crash during a backup: the hook after the failure runs when the next start has noted it.
: >before.slow
rm -f before.pid failure.env
curl -fsS -X POST "http://$address/make-backup" >interrupted
until [ -s before.pid ]; do sleep 0.01; done
stop KILL
kill -KILL "-$(cat before.pid)"
rm before.slow
start serve.log chainweb-backup serve --config-file serve.yaml
passes_failure() {
  tries=0
  until http GET "/check-backup/$1" -H 'Accept: application/json' && grep -q '"event":"after-failure","number":0,"program":"[^"]*","passed":true' body ||
    [ "$tries" -ge 500 ]; do
    tries=$((tries + 1)) && sleep 0.02
  done
  [ "$tries" -lt 500 ]
}
check 'the hook after the failure of a backup that a crash interrupted passes' passes_failure "$(cat interrupted)"
has 'it knows the backup' failure.env "CHAINWEB_BACKUP_ID=$(cat interrupted)"
has 'and why it failed' failure.env 'CHAINWEB_BACKUP_REASON=interrupted'
stop TERM

# A hook that waited knows the damage that a verification has found meanwhile.
start serve.log chainweb-backup serve --config-file serve.yaml
: >success.slow
rm -f success.pid success.env
backup
until [ -s success.pid ]; do sleep 0.01; done
backup
rm "node/backups/$id/0/rocksDb/CURRENT"
status 'a verification finds damage' 13 chainweb-backup verify --backup-directory node/backups "$id"
rm success.slow
kill -KILL "-$(cat success.pid)"
tries=0
until grep -qx "CHAINWEB_BACKUP_ID=$id" success.env || [ "$tries" -ge 500 ]; do tries=$((tries + 1)) && sleep 0.02; done
check 'the hook after its verification knows it' grep -qx 'CHAINWEB_BACKUP_FAULTS=[1-9][0-9]*' verified.env
check 'so does the one after its success' grep -qx 'CHAINWEB_BACKUP_FAULTS=[1-9][0-9]*' success.env
stop TERM
rm -rf "node/backups/${id:?}"

# A hook that ends the program is not run again for ever.
printf '#!/bin/sh\necho attempt >>%s/attempts\nkill -KILL $PPID\n' "$DIR" >deadly.sh
chmod +x deadly.sh
printf 'databaseDirectory: node\nbackup: {hooks: {afterSuccess: [%s/deadly.sh]}}\n' "$DIR" >deadly.yaml
chainweb-backup make --config-file deadly.yaml >made 2>make.log
for _ in 1 2 3 4 5; do
  timeout 2 chainweb-backup serve --config-file deadly.yaml --service-port 0 >deadly.log 2>&1
done
is 'a hook that ends the program three times is not run again' "$(wc -l <attempts)" 3
chainweb-backup list --backup-directory node/backups --columns all >list
check 'and has failed' grep -q "^$(cat made) .*hook after-success FAILED .*interrupted" list

# What a client sends is no word of a hook, and a file with a mistake is refused.
start serve.log chainweb-backup serve --config-file serve.yaml
http POST '/make-backup?hook=/bin/true'
is 'a request cannot name a hook' "$code" 400
backup
http GET /metrics
tries=0
until http GET /metrics && grep -q 'hooks_total{hook="after-success",result="passed"} 2' body || [ "$tries" -ge 500 ]; do
  tries=$((tries + 1)) && sleep 0.02
done
has 'the metrics count the hooks' body 'chainweb_backup_hooks_total{hook="after-success",result="passed"} 2'
has 'and say that the last ones passed' body 'chainweb_backup_last_hook_passed{hook="after-success"} 1'
stop TERM
echo 'backup: {hooks: {afterSucess: [true]}}' >wrong.yaml
status 'a wrong name is 2' 2 chainweb-backup make --database-directory node --config-file wrong.yaml
has 'it is suggested' err 'did you mean `afterSuccess`?'
echo 'backup: {hooks: {before: "echo x"}}' >wrong.yaml
status 'a text for a shell is 2' 2 chainweb-backup make --database-directory node --config-file wrong.yaml
has 'it says what to write' err 'a command is a list of words'
status 'the node is whole' 0 demo-node verify node
end
