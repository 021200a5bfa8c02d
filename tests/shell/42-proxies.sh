#!/bin/sh
# The configurations of the page `proxies` as they stand there, with other ports and directories, in a real nginx and a real Caddy: TLS, token,
# names, sites, long answers, pooled connections, a crowd.
. "$(dirname -- "$0")/lib.sh"
# Where the scripts unpack Debian's packages, because installing them would start their services.
PATH=$PATH:/usr/sbin:$BIN/../tools/nginx/usr/sbin:$BIN/../tools/caddy/usr/bin
page=$ROOT/src/manual/proxies.md
domain=backup.example.org

for program in nginx caddy openssl python3; do
  command -v "$program" >found || skip "all that needs $program" "there is no $program"
done
command -v openssl >found && command -v python3 >found || end

node db --chains 2
umask 077
head -c 32 /dev/urandom | base64 >token
sed 's/^/Authorization: Bearer /' token >token.header
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$domain" -addext "subjectAltName=DNS:$domain,DNS:other.example" \
  -keyout backup.key -out backup.crt >openssl.log 2>&1
check 'there is a certificate' [ -s backup.crt ]

block "$page" yaml 1 | sed "s|/etc/chainweb-backup/token|$DIR/token|" >config.yaml
start serve.log chainweb-backup serve --database-directory db --config-file config.yaml --service-interface 127.0.0.1 --service-interface "unix:$DIR/api.sock"
address=$(head -n 1 address)
service=$pid upstream=$address
http POST '/make-backup?backupPact' -H @token.header
is 'the service makes a backup' "$code" 200
# A list of some hundred kilobytes.
for number in $(seq 1000); do
  mkdir -p "db/backups/16000000$((10000 + number))"
  printf backup-done >"db/backups/16000000$((10000 + number))/status"
done

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
# ask PATH [CURL ARGUMENT...]: over TLS through the proxy; leaves $code and the files head and body.
ask() {
  path=$1
  shift
  code=$(curl -sS --max-time 60 --noproxy '*' --cacert backup.crt --resolve "$domain:$port:127.0.0.1" --resolve "other.example:$port:127.0.0.1" -D head -o body \
    -w '%{http_code}' "$@" "https://${host:-$domain}:$port$path" 2>curl.err) || code="curl failed: $(cat curl.err)"
}
header() {
  tr -d '\r' <head | awk -F ': ' -v name="$1" 'tolower($1) == name { print $2 }'
}
# by_socket TEXT: what the page says of a Unix socket, as a replacement by sed: the first text in backquotes that begins with TEXT.
by_socket() {
  grep -o "\`$1[^\`]*\`" "$page" | head -n 1 | tr -d '\`' | sed "s|/run/chainweb-backup.sock|$DIR/api.sock|"
}
# pooled: the number of connections to the service.
pooled() {
  awk -v port="$(printf ':%04X' "${upstream##*:}")" '$4 == "01" && substr($3, length($3) - 4) == port' /proc/net/tcp | wc -l
}

# proxied WHICH: checks that all goes through the proxy on $port.
proxied() {
  ask /list-backups
  is "$1: without a token" "$code" 401
  is "$1: the challenges come through" "$(header www-authenticate | grep -c realm=)" 2
  ask /health-check -H @token.header -H 'X-Forwarded-For: 6.6.6.6' -H 'Forwarded: for=6.6.6.6' -H 'X-Real-IP: 6.6.6.6'
  is "$1: with the token" "$code $(cat body)" '200 Health check OK.'
  is "$1: the peer is the proxy, whatever a client says" "$(header x-peer-addr | sed 's/:[0-9]*$//')" 127.0.0.1
  for version in --http1.1 --http2; do
    ask '/make-backup?backupPact' -X POST -H @token.header "$version"
    is "$1: $version, make-backup" "$code $(tr -d 0-9 <body)" '200 '
    ask /make-backup -X POST -H @token.header "$version" -d '{}'
    is "$1: $version, make-backup with a small body" "$code" 200
    ask /make-backup -X POST -H @token.header "$version" -H "Origin: https://$domain:$port" -H 'Sec-Fetch-Site: same-origin'
    is "$1: $version, from our own page" "$code" 200
    ask /make-backup -X POST -H @token.header "$version" -H 'Origin: https://evil.example' -d ''
    is "$1: $version, from another site" "$code" 403
  done
  host=other.example
  ask /health-check -H @token.header
  host=''
  case $1 in nginx) is "$1: under another name" "$code" 421 ;; *) check "$1: under another name no answer is ours" [ -z "$(header x-peer-addr)" ] ;; esac
  head -c 70000 /dev/zero | tr '\0' ' ' >large
  ask /make-backup -X POST -H @token.header --data-binary @large
  is "$1: a large body" "$code" 413

  # A long answer is whole, also for a client that takes longer than the service waits.
  ask '/list-backups?limit=1000' -H @token.header
  size=$(wc -c <body) listed=$(grep -o '"foreign":' body | wc -l)
  check "$1: a long answer ($size bytes) is whole" sh -c '[ "$1" -gt 150000 ] && python3 -c "import json; json.load(open(\"body\"))"' sh "$size"
  ask '/list-backups?limit=1000' -H @token.header --limit-rate "$((size / 8))"
  is "$1: so it is for a slow client" "$code $(grep -o '"foreign":' body | wc -l)" "200 $listed"

  # The proxy keeps connections, and closes them before the service does.
  check "$1: it keeps a connection" [ "$(pooled)" -ge 1 ]
  sleep 4.4
  is "$1: it closes it before the service would" "$(pooled)" 0
  bad_answers=''
  for pause in 3.9 4.0 4.1 4.9 5.0 5.1; do
    ask /make-backup -X POST -H @token.header
    sleep "$pause"
    ask /make-backup -X POST -H @token.header
    [ "$code" = 200 ] || bad_answers="$bad_answers $pause:$code"
  done
  is "$1: no request meets a connection that is being closed" "$bad_answers" ''

  # A crowd.
  curl -sS --max-time 60 --noproxy '*' --cacert backup.crt --resolve "$domain:$port:127.0.0.1" -H @token.header -Z --parallel-max 16 -o '#1.out' -w '%{http_code}\n' \
    "https://$domain:$port/check-backup/[1-600]" >crowd 2>curl.err
  is "$1: 600 requests of a crowd" "$(sort crowd | uniq -c | awk '{ print $1, $2 }')" '600 404'
  rm -f ./*.out
}

if command -v nginx >found; then
  port=$(free_port)
  {
    [ "$(id -u)" -ne 0 ] || echo 'user root;'
    echo "daemon off; pid $DIR/nginx.pid; error_log stderr; events {} http { access_log off;"
    for what in client_body proxy fastcgi uwsgi scgi; do echo "${what}_temp_path $DIR/nginx-$what;"; done
    block "$page" nginx 1 | sed "s|127.0.0.1:1849|$upstream|; s|listen 443|listen 127.0.0.1:$port|; s|/etc/nginx|$DIR|"
    echo '}'
  } >nginx.conf
  status 'nginx finds no fault in the configuration' 0 nginx -t -e stderr -c "$DIR/nginx.conf"
  is 'nor anything to warn about' "$(grep -e warn -e emerg err)" ''
  nginx -e stderr -c "$DIR/nginx.conf" >nginx.log 2>&1 </dev/null &
  proxy=$! pids="$! $pids"
  tries=0
  until ask /health-check && [ "$code" = 401 ] || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  proxied nginx
  is 'nginx has nothing to tell' "$(grep -v 'client request body is buffered\|intended to send too large body' nginx.log)" ''
  sed "s|^ *server 127.*|$(by_socket 'server unix')|" nginx.conf >socket.conf && cp nginx.conf tcp.conf && cp socket.conf nginx.conf && kill -HUP "$proxy"
  tries=0
  until ask /health-check -H @token.header && [ "$(header x-peer-addr)" = "unix:$(id -u)" ] || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  is 'nginx: by the Unix socket' "$code $(cat body) $(header x-peer-addr)" "200 Health check OK. unix:$(id -u)"
  cp tcp.conf nginx.conf
  # Without the line for Host, the service is asked under the name of the upstream.
  grep -v 'proxy_set_header Host' nginx.conf >bare.conf && cp bare.conf nginx.conf && kill -HUP "$proxy"
  tries=0
  until ask /health-check -H @token.header && [ "$code" = 421 ] || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  is 'without the line for Host it is 421' "$code" 421
  kill "$proxy" && wait "$proxy" 2>/dev/null
fi

if command -v caddy >found; then
  port=$(free_port)
  {
    printf '{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system %s\n}\n' "$DIR/caddy"
    block "$page" caddy 1 | sed "s|127.0.0.1:1849|$upstream|; s|^$domain|$domain:$port|; s|/etc/caddy|$DIR|g"
  } >Caddyfile
  HOME=$DIR
  export HOME
  status 'Caddy finds no fault in the configuration' 0 caddy adapt --config Caddyfile
  caddy run --config Caddyfile >caddy.log 2>&1 </dev/null &
  proxy=$! pids="$! $pids"
  tries=0
  until ask /health-check && [ "$code" = 401 ] || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  proxied Caddy
  kill "$proxy" && wait "$proxy" 2>/dev/null
  sed "s|^ *reverse_proxy .*|$(by_socket 'reverse_proxy unix')|" Caddyfile >socket.caddy
  caddy run --config socket.caddy --adapter caddyfile >caddy-socket.log 2>&1 </dev/null &
  proxy=$! pids="$! $pids"
  tries=0
  until ask /health-check -H @token.header && [ "$code" = 200 ] || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  is 'Caddy: by the Unix socket' "$code $(cat body) $(header x-peer-addr)" "200 Health check OK. unix:$(id -u)"
  kill "$proxy" && wait "$proxy" 2>/dev/null
fi

pid=$service
is 'the token is in no log' "$(cat ./*.log | grep -cF -f token)" 0
stop TERM
is 'SIGTERM ends the service with 0' "$got" 0
end
