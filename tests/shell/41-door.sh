#!/bin/sh
# Who is let in, as curl sees it: names, sites, tokens; new tokens under load by SIGHUP; a service for other hosts that does not start without
# a token. No token is in a log, a message or the list of processes.
. "$(dirname -- "$0")/lib.sh"

node db --chains 2
umask 077
for name in first second third; do
  head -c 32 /dev/urandom | base64 >"$name"
  sed 's/^/Authorization: Bearer /' "$name" >"$name.header"
  sed 's/.*/user = "anybody:&"/' "$name" >"$name.basic"
done
echo 'Authorization: Bearer of-nobody-0123456789' >wrong.header
{ echo '# tokens' && cat first; } >tokens
umask 022

header() {
  tr -d '\r' <head | awk -F ': ' -v name="$1" 'tolower($1) == name { print $2 }'
}
three_headers() {
  header x-peer-addr | grep -Eq '^127\.0\.0\.[0-9]+:[0-9]+$' && header x-server-timestamp | grep -Eq '^[0-9]{10}$' && [ -n "$(header x-chainweb-node-version)" ]
}
# answers METHOD PATH CODE [CURL ARGUMENT...]
answers() {
  case_method=$1 case_path=$2 case_code=$3
  shift 3
  http "$case_method" "$case_path" "$@"
  is "$case_method $case_path $* is $case_code" "$code" "$case_code"
  check 'with the three headers' three_headers
}
counted() {
  http GET /metrics -H @first.header
  sed -n "s/^chainweb_backup_requests_total{endpoint=\"$1\",code=\"$2\"} //p" body
}
# hup TEXT: sends SIGHUP, and waits until one more line of the log has the text.
hup() {
  before=$(grep -cF -- "$1" serve.log)
  kill -HUP "$pid"
  tries=0
  until [ "$(grep -cF -- "$1" serve.log)" -gt "$before" ] || [ "$tries" -ge 500 ]; do tries=$((tries + 1)) && sleep 0.02; done
  check "after SIGHUP the log says: $1" [ "$tries" -lt 500 ]
}

# Other hosts are not served without a token.
for interface in '*' '*6' 0.0.0.0 192.0.2.1; do
  status "without a token, serve on $interface is 2" 2 chainweb-backup serve --database-directory db --enable-backup-api \
    --service-interface "$interface" --service-port 0
  has 'it says what to do' err 'require a token with --auth-token-file FILE (`backup.api.authTokenFile`), or listen on 127.0.0.1'
done
check 'it did not begin' [ ! -e db/backups ]
start off.log chainweb-backup serve --database-directory db --service-interface '*'
address=127.0.0.1:${address##*:}
answers GET /health-check 200
answers POST /make-backup 404
stop TERM
echo 'backup: {api: {enabled: false}}' >reload.yaml
start serve.log chainweb-backup serve --database-directory db --service-interface '*' --config-file reload.yaml
address=127.0.0.1:${address##*:}
echo 'backup: {api: {enabled: true}}' >reload.yaml
hup 'configuration not read again'
has 'the API is not turned on without a token' serve.log 'require a token with --auth-token-file FILE'
answers GET /list-backups 404
stop TERM
start open.log chainweb-backup serve --database-directory db --service-interface '*' --enable-backup-api --allow-unauthenticated
has 'a warning says that it is open' open.log 'without a token: every host that reaches this port can start backups'
address=127.0.0.1:${address##*:}
answers GET /list-backups 200
stop TERM

# Names: a page whose name was made to lead here sends its own.
start serve.log chainweb-backup serve --database-directory db --enable-backup-api --allowed-host backup.example.org
port=${address##*:}
# named DOMAIN PATH [CURL ARGUMENT...]: asks under this name, which is made to lead here; leaves $code.
named() {
  domain=$1 path=$2
  shift 2
  code=$(curl -sS --max-time 20 --noproxy '*' -D head -o body -w '%{http_code}' --resolve "$domain:$port:127.0.0.1" "$@" "http://$domain:$port$path" 2>curl.err) ||
    code="curl failed: $(cat curl.err)"
}
for evil in evil.example localhost.evil.example 127.0.0.1.evil.example; do
  named "$evil" /list-backups
  is "by the name $evil" "$code" 421
  has 'the answer names the flag' body "--allowed-host $evil"
  check 'it has the three headers' three_headers
  named "$evil" /make-backup -X POST -H "Origin: http://$evil:$port" -H 'Sec-Fetch-Site: same-origin'
  is 'its page cannot start a backup' "$code" 421
done
for good in backup.example.org BACKUP.example.org localhost a.localhost; do
  named "$good" /list-backups
  is "by the name $good" "$code" 200
done
answers GET /list-backups 200
answers GET /list-backups 421 --request-target http://evil.example/list-backups
answers GET /list-backups 200 --request-target "http://localhost/list-backups" -H 'Host: evil.example'
answers GET /list-backups 421 --request-target HTTP://evil.example/list-backups -H 'Host: localhost'
answers GET /list-backups 200 --request-target HTTP://localhost/list-backups -H 'Host: evil.example'
answers GET /list-backups 400 -H 'Host: user@localhost'
answers GET /list-backups 200 --http1.0 -H 'Host:'

# Sites: what another one makes a browser send.
answers POST /make-backup 403 -H 'Origin: http://evil.example' -H 'Content-Type: text/plain' -d '{}'
answers POST /make-backup 403 -H 'Origin: null' -H 'Content-Type: application/x-www-form-urlencoded' -d ''
answers GET /list-backups 403 -H 'Sec-Fetch-Site: cross-site' -H 'Sec-Fetch-Mode: no-cors' -H 'Sec-Fetch-Dest: script'
answers GET / 403 -H 'Sec-Fetch-Site: cross-site' -H 'Sec-Fetch-Mode: navigate' -H 'Sec-Fetch-Dest: iframe'
answers GET / 200 -H 'Sec-Fetch-Site: cross-site' -H 'Sec-Fetch-Mode: navigate' -H 'Sec-Fetch-Dest: document'
has 'no other site may have it in a frame' head "frame-ancestors 'none'"
is 'nor as anything else' "$(header cross-origin-resource-policy) $(header x-content-type-options) $(header referrer-policy)" 'same-origin nosniff no-referrer'
is 'nothing was made' "$(ls db/backups)" ''
is 'the names are counted' "$(counted list-backups 421) $(counted make-backup 421)" '5 3'
is 'so are the sites' "$(counted make-backup 403) $(counted other 403)" '2 1'
stop TERM

# Tokens.
start serve.log chainweb-backup serve --database-directory db --enable-backup-api --auth-token-file tokens --open-endpoint health-check
answers GET /health-check 200
for path in /list-backups /metrics /check-backup/1 /status-page / /nosuch; do
  answers GET "$path" 401
  is 'it says how to send one' "$(header www-authenticate | tr '\n' ' ')" 'Bearer realm="chainweb-backup" Basic realm="chainweb-backup", charset="UTF-8" '
  answers GET "$path" 401 -H @wrong.header
  has 'it says that it is wrong' head 'error="invalid_token"'
  for way in '-H @first.header' '-K first.basic'; do
    # shellcheck disable=SC2086 # two words
    http GET "$path" $way
    case $path in /check-backup/1 | /nosuch) wanted=404 ;; *) wanted=200 ;; esac
    is "GET $path $way" "$code" "$wanted"
  done
done
answers POST /make-backup 401
answers POST /make-backup 401 -H @wrong.header
answers POST /make-backup 401 -H @second.header
is 'nothing was made' "$(ls db/backups)" ''
answers POST /make-backup 403 -K first.basic -H 'Origin: http://evil.example' -d ''
answers POST /make-backup 400 -H @first.header -H @first.header
http POST '/make-backup?backupPact' -H @first.header
id=$(cat body)
is 'with the token a backup is made' "$code" 200
until http GET "/check-backup/$id" -H @first.header && [ "$(cat body)" != backup-in-progress ]; do sleep 0.05; done
is 'it is done' "$(cat body)" backup-done
is 'the refused ones are counted' "$(counted make-backup 401) $(counted make-backup 403) $(counted make-backup 400)" '3 1 1'

# Commands of the manual, with the files of this test.
awk '/^## /{ inside = $0 == "## Access" } inside' "$ROOT/src/manual/api.md" >page
awk '/^```sh/ { inside = 1; next } /^```/ { inside = 0 } inside' page >commands
is 'the page has its commands' "$(grep -c -e '^curl' -e '^printf' -e '^(umask' commands)" 4
sed -e "s|/etc/chainweb-backup/token|$DIR/made|; s|^API=.*|API=http://$address|; s|~/|$DIR/|" commands | sed '1!s|/made|/first|' >there
status 'they run' 0 sh -eu there
is 'they show the list' "$(grep -o '"foreign":false' out | wc -l)" 2
is 'what they make is a token' "$(wc -c <made) $(stat -c %a made)" '45 600'

# A new token under load: the file has both, the clients change, the file has only the new one.
cp first.header load.header
for client in 1 2 3 4; do
  while [ ! -e over ]; do
    curl -sS --max-time 20 -o /dev/null -w '%{http_code}\n' -H @load.header "http://$address/list-backups"
  done >"codes.$client" 2>&1 &
  pids="$! $pids"
done
watched() { cat codes.? | wc -l; }
more() {
  wanted=$(($(watched) + 40)) tries=0
  until [ "$(watched)" -ge "$wanted" ] || [ "$tries" -ge 1000 ]; do tries=$((tries + 1)) && sleep 0.02; done
}
more
for token in second third second; do
  old=$(cat tokens | tail -n 1)
  cat "$token" >>tokens
  hup 'configuration read again'
  cp "$token.header" new.header && mv new.header load.header
  more
  cat "$token" >tokens
  hup 'changed="backup.api.authTokenFile"'
  more
done
for name in first second; do
  is "the list of processes does not have the $name token" "$(cat /proc/[0-9]*/cmdline "/proc/$pid/environ" 2>cat.err | grep -cF -f "$name")" 0
done
: >over
sleep 0.3
is 'no request was lost' "$(cat codes.? | sort -u)" 200
check 'there were some' [ "$(watched)" -ge 200 ]
answers GET /list-backups 401 -H @first.header
answers GET /list-backups 200 -H @second.header

# A file that is wrong changes nothing.
for what in readable short empty none; do
  cp third tokens && chmod 600 tokens
  case $what in readable) chmod 644 tokens ;; short) echo short-secret >tokens ;; empty) : >tokens ;; none) rm tokens ;; esac
  hup 'configuration not read again'
  answers GET /list-backups 401 -H @third.header
  answers GET /list-backups 200 -H @second.header
  doctor=0
  chainweb-backup doctor --database-directory db --enable-backup-api --auth-token-file tokens --service-port "${address##*:}" >doctor.out 2>&1 || doctor=$?
  is "doctor finds a file that is $what" "$doctor $(grep -c '^fault *access .*token file' doctor.out)" '1 1'
  cat doctor.out >>doctors
done
has 'the log has the mode' serve.log 'its mode is 644: set its mode to 600'
cp third tokens && chmod 600 tokens
hup 'configuration read again'
answers GET /list-backups 200 -H @third.header
chainweb-backup doctor --database-directory db --enable-backup-api --auth-token-file tokens --open-endpoint metrics --service-port "${address##*:}" >doctor.out 2>&1
has 'doctor knows the door' doctor.out 'only this host reaches it, on 127.0.0.1; a request needs one of 1 tokens, except for metrics'
has 'it knows its own service by the refusal' doctor.out "a service answers at $address"
cat doctor.out >>doctors
chmod 644 tokens
status 'serve with a file that others can read is 2' 2 chainweb-backup serve --database-directory db --auth-token-file tokens --service-port 0
has 'it says what to do' err 'set its mode to 600, or to 640 if a group may read it (chmod)'
stop TERM
is 'SIGTERM ends it with 0' "$got" 0
cat first second third >secrets
is 'no token is in a log, a message or a finding' "$(cat serve.log doctors err | grep -cF -f secrets)" 0
is 'nor a short one' "$(cat serve.log doctors | grep -c short-secret)" 0

# What is open by configuration; JSON tells paths, and is not.
chmod 600 tokens
echo 'backup: {api: {enabled: true, authTokenFile: tokens, open: [check-backup, health-check, metrics]}}' >open.yaml
start serve.log chainweb-backup serve --database-directory db --config-file open.yaml --service-interface '*'
address=127.0.0.1:${address##*:}
for path in "/check-backup/$id" /health-check /metrics; do answers GET "$path" 200; done
answers GET "/check-backup/$id" 401 -H 'Accept: application/json'
answers GET "/check-backup/$id" 200 -H 'Accept: application/json' -H @third.header
answers GET /list-backups 401
answers POST /make-backup 401
is 'there is no warning' "$(grep -c 'without a token' serve.log)" 0
stop TERM

# Doctor on the other ways.
# doctor HEALTH TEXT FLAG...
doctor() {
  health=$1 text=$2
  shift 2
  chainweb-backup doctor --database-directory db --service-port 1 "$@" >doctor.out 2>&1
  check "doctor $*: $health" grep -qE "^$health +access +.*$text" doctor.out
}
doctor ok 'every user and every program of this host can start backups' --enable-backup-api
doctor fault 'serve does not start: .*--auth-token-file FILE' --enable-backup-api --service-interface '*'
doctor warning 'every host that reaches this port can start backups' --enable-backup-api --service-interface '*' --allow-unauthenticated
doctor ok 'the backup API is off' --service-interface '*'
doctor ok 'other hosts can reach it on 0.0.0.0; a request needs one of 1 tokens$' --service-interface '*' --enable-backup-api --auth-token-file tokens

# A browser: a page of another site sends what it can, and a name was made to lead here.
if ! command -v chromium >/dev/null; then
  skip 'a page of another site in a browser' 'there is no chromium'
  end
fi
# browse URL: leaves what the page shows in the file dom.
browse() {
  timeout 120 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --user-data-dir="$DIR/profile" --virtual-time-budget=5000 \
    --host-resolver-rules='MAP evil.example 127.0.0.1' --dump-dom "$1" >dom 2>chromium.log </dev/null
}
node other --chains 1
start browsed.log chainweb-backup serve --database-directory other --enable-backup-api
cat >page.html <<END
<iframe name="t"></iframe><iframe src="http://$address/"></iframe><img src="http://$address/list-backups">
<form id="f" method="post" target="t" action="http://$address/make-backup"></form><pre id="o"></pre>
<script>
(async () => {
  for (const [path, method, mode] of [["make-backup", "POST", "no-cors"], ["make-backup?backupPact", "POST", "cors"],
                                      ["list-backups", "GET", "cors"], ["list-backups", "GET", "no-cors"]]) {
    try {
      const answer = await fetch("http://$address/" + path, {method, mode});
      o.textContent += path + " read: " + answer.type + " " + answer.status + ";";
    } catch { o.textContent += path + " refused;" }
  }
  o.textContent += "end";
  f.submit();
})();
</script>
END
browse "file://$DIR/page.html"
has 'the page did all that it can' dom 'list-backups refused;end'
check 'it read nothing' sh -c '! grep -q "read: [a-z]* [1-9]" dom'
check 'its requests came' [ "$(http GET /metrics && sed -n 's/^chainweb_backup_requests_total{endpoint="make-backup",code="403"} //p' body)" -ge 2 ]
is 'no backup was begun' "$(grep -c 'backup started' browsed.log)" 0
browse "http://evil.example:${address##*:}/list-backups"
has 'a name that was made to lead here is refused' dom 'does not answer under the name evil.example'
browse "http://$address/"
has 'our own page is there' dom '<h1>Backups'
end
