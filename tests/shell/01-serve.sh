#!/bin/sh
# The HTTP interface of `serve` on a stopped node, byte by byte as curl sees it.
. "$(dirname -- "$0")/lib.sh"

node node --chains 3
start serve.log chainweb-backup serve --database-directory node --enable-backup-api --node-version 2.31.1

bytes() {
  od -An -c body | tr -d ' \n'
}

header() {
  tr -d '\r' <head | awk -F ': ' -v name="$1" 'tolower($1) == name { print $2 }'
}

three_headers() {
  header x-peer-addr | grep -Eq '^127\.0\.0\.1:[0-9]+$' && header x-server-timestamp | grep -Eq '^[0-9]{10}$' &&
    [ "$(header x-chainweb-node-version)" = 2.31.1 ]
}

# answers METHOD PATH CODE BODY [CURL ARGUMENT...]
answers() {
  case_method=$1 case_path=$2 case_code=$3 case_body=$4
  shift 4
  http "$case_method" "$case_path" "$@"
  is "$case_method $case_path is $case_code" "$code $(cat body)" "$case_code $case_body"
  check "$case_method $case_path has the three headers" three_headers
}

http POST /make-backup
id=$(cat body)
is 'make-backup is 200' "$code" 200
is 'the id is 13 digits without a newline' "$(bytes | tr 0-9 d)" ddddddddddddd
is 'the id is text' "$(header content-type)" 'text/plain;charset=utf-8'
is 'the length is that of the id' "$(header content-length)" 13
is 'the scope is in a header' "$(header x-backup-scope)" rocksdb
check 'the three headers' three_headers
is 'the time is now' "$((($(date +%s) - $(header x-server-timestamp)) / 3))" 0
await "$id"
is 'the backup is done' "$word" backup-done
is 'the word has no newline' "$(bytes)" backup-done
is 'it has no Pact' "$(ls "node/backups/$id/0")" rocksDb

backup '?backupPact'
is 'a full backup is done' "$word" backup-done
is 'its scope is in a header' "$(header x-backup-scope)" rocksdb,pact
is 'it has three Pact databases' "$(ls "node/backups/$id/0/sqlite/"*.sqlite | wc -l)" 3
is 'nothing but their checksums beside them' \
  "$(ls "node/backups/$id/0/sqlite" | grep -vc -e '^pact-v1-chain-[0-2]\.sqlite$' -e '^\.*BLAKE2SUMS')" 0
is 'the status file has no newline' "$(od -An -c "node/backups/$id/status" | tr -d ' \n')" backup-done
status 'it verifies' 0 demo-node verify "node/backups/$id"

answers GET "/chainweb/0.0/mainnet01/check-backup/$id" 200 backup-done
answers HEAD "/check-backup/$id" 200 ''
is 'HEAD has the length' "$(header content-length)" 11
answers GET /health-check 200 'Health check OK.'
answers HEAD /health-check 200 ''
answers GET /check-backup/1 404 'no such backup'
answers GET "/check-backup/..%2f..%2fnode" 404 'no such backup'
answers GET "/check-backup/%2e%2e" 404 'no such backup'
answers GET "/check-backup/" 404 'no such backup'
answers GET "/check-backup/$id/status" 404 'no such endpoint'
answers GET /nosuch 404 'no such endpoint'
answers GET /make-backup 405 'use POST'
is 'Allow of make-backup' "$(header allow)" POST
answers POST "/check-backup/$id" 405 'use GET'
is 'Allow of check-backup' "$(header allow)" 'GET, HEAD'
answers DELETE /list-backups 405 'use GET'
answers POST '/make-backup?backupPactState=true' 400 'unknown parameter "backupPactState": did you mean backupPact?'
answers POST '/make-backup?backupPact=perhaps' 400 \
  'parameter backupPact cannot be "perhaps": use true or false, or no value for true'
answers POST '/make-backup?backupPact&backupPact' 400 'parameter backupPact is given twice: give it once'
answers POST /make-backup 403 'requests from other web sites are refused' -H 'Origin: https://elsewhere.example'
is 'a refused request made nothing' "$(ls node/backups | wc -l)" 2

for query in '' '?backupPact=false' '?backupPact=0' '?backupPact=' '?backupPact=TRUE' '?backupPact=1'; do
  backup "$query"
  case $query in '' | *false | *0) wanted=rocksdb ;; *) wanted=rocksdb,pact ;; esac
  is "make-backup$query covers $wanted" "$word $(header x-backup-scope)" "backup-done $wanted"
done
http POST /make-backup -H 'Content-Type: application/json' -d '{}'
is 'a small body is accepted' "$code" 200
await "$(cat body)"

for body in backupPact=true '{"backupPact": true}'; do
  answers POST /make-backup 400 'parameters go into the query: ?backupPact' -d "$body"
done
is 'a body with parameters made nothing' "$(ls node/backups | wc -l)" 9

answers GET "/check-backup/$id" 200 backup-done -H 'Accept: application/json, text/plain, */*'
answers GET "/check-backup/$id" 200 backup-done -H 'Accept: application/json;q=0.4, text/*;q=0.5'
http GET "/check-backup/$id" -H 'Accept: application/json'
is 'JSON by Accept' "$code $(header content-type)" '200 application/json'
has 'JSON has the status' body '"status":"backup-done"'
has 'JSON has the height of the cut' body '"cut_height":60'
has 'and those of its blocks' body '"block_heights":{"lowest":20,"highest":20}'
http GET /list-backups
is 'the list is JSON' "$code $(header content-type)" '200 application/json'
is 'the list has all nine' "$(grep -o '"foreign":false' body | wc -l)" 9
check 'the newest comes first' [ "$(grep -o '"id":"[0-9]*"' body | head -n 1)" \> "\"id\":\"$id\"" ]
is 'it has no more pages' "$(header link)" ''
http GET '/list-backups?limit=4'
is 'a page of the list' "$(grep -o '"foreign":false' body | wc -l)" 4
next=$(header link | sed -n 's/^<\(.*\)>; rel="next"$/\1/p')
http GET "/list-backups$next"
http GET "/list-backups$(header link | sed 's/^<\(.*\)>.*/\1/')"
is 'the last page' "$(grep -o '"foreign":false' body | wc -l) $(header link)" '1 '
answers GET '/list-backups?limit=0' 400 'parameter limit cannot be "0": use a number from 1 to 1000'
answers GET '/list-backups?page=2' 400 'unknown parameter "page": the parameters are limit and before'
http GET /metrics
has 'metrics count the jobs' body 'chainweb_backup_jobs_total{result="done"} 9'

rm -rf "node/backups/$id"
answers GET "/check-backup/$id" 404 'no such backup'
mkdir -p node/backups/1600000000/0/sqlite node/backups/1600000000/0/rocksDb
printf backup-in-progress >node/backups/1600000000/status
: >node/backups/1600000000/0/sqlite/pact-v1-chain-0.sqlite
answers GET /check-backup/1600000000 200 backup-in-progress
is 'the scope of a foreign backup' "$(header x-backup-scope)" rocksdb,pact

sleep 1
switches() {
  awk '/^(non)?voluntary_ctxt_switches/ { sum += $2 } END { print sum }' "/proc/$pid"/task/*/status
}
before=$(switches)
sleep 6
is 'idle, no thread ever wakes up' "$(switches)" "$before"
stop TERM
is 'SIGTERM ends it with 0' "$got" 0
has 'the log is on the standard error' serve.log 'backup done'
is 'an address has no newline' "$(wc -l <address)" 0

start off.log chainweb-backup --database-directory node --node-version 2.31.1
answers POST /make-backup 404 'the backup API is off; enable it with --enable-backup-api'
answers GET /list-backups 404 'the backup API is off; enable it with --enable-backup-api'
answers GET "/chainweb/0.0/mainnet01/check-backup/$id" 404 'the backup API is off; enable it with --enable-backup-api'
answers GET /health-check 200 'Health check OK.'
http GET /metrics
is 'metrics answer while the API is off' "$code" 200
stop INT
is 'SIGINT ends it with 0' "$got" 0

start named.log chainweb-backup --database-directory node --enable-backup-api --chainweb-version testnet06 --node-version 2.31.1
answers GET /chainweb/0.0/testnet06/health-check 200 'Health check OK.'
answers GET /chainweb/0.0/mainnet01/health-check 404 'no such endpoint'
answers GET /health-check 200 'Health check OK.'
stop TERM
end
