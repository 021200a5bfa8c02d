#!/bin/sh
# The files in scripts/container: the program takes the flags that they give it, the script of the CronJob makes a backup and fails with one that
# fails, and each file is parsed by its own linter where there is one. `scripts/soak.sh container` builds the image and runs it.
. "$(dirname -- "$0")/lib.sh"
at=$ROOT/scripts/container

# flags FILE: those of the program, a line each.
flags() {
  sed -n 's/^ *- \(--.*\)$/\1/p' "$1"
}

node node --chains 1
(umask 077 && echo 0123456789abcdef0123456789abcdef >token)
for file in compose.yml kubernetes.yml; do
  # The host's directories in place of those of the container.
  flags "$at/$file" | grep -v -e '^--backup-directory' -e '^--service-interface' |
    sed -e "s|^--database-directory=.*|--database-directory=$DIR/node|" -e "s|^--auth-token-file=.*|--auth-token-file=$DIR/token|" >flags
  check "$file has flags" [ "$(wc -l <flags)" -gt 5 ]
  # shellcheck disable=SC2046 # a flag has no blank
  status "the program takes those of $file" 0 chainweb-backup doctor --node-version 1 --service-port 0 $(cat flags)
  has "$file listens on all addresses with a token" "$at/$file" '--auth-token-file='
done
# shellcheck disable=SC2046
status 'without the token they would be refused' 2 chainweb-backup serve --service-port 0 --backup-directory none \
  $(grep -v -e token -e open-endpoint flags) '--service-interface=*'
has 'with the remedy' err '--auth-token-file FILE'

# The script of the CronJob, with the address and the token of this test.
sed -n '/^ *args:$/,/^ *securityContext:/p' "$at/kubernetes.yml" | awk '/^ *- \|$/ { on = 1; next } /^ *securityContext:/ { on = 0 } on' >script
check 'the CronJob has a script' [ "$(wc -l <script)" -gt 5 ]
# shellcheck disable=SC2046
start serve.log chainweb-backup serve $(grep -v -e '^--keep' flags)
sed -i -e "s|http://chainweb-backup:1849|http://$address|; s|/secret/token|$DIR/token|; s|sleep 10|sleep 0.1|" script
status 'it makes a backup' 0 sh -euc "$(cat script)"
id=$(cut -d ' ' -f 1 out)
is 'and says how it ended' "$(cat out)" "$id backup-done"
status 'the backup is good' 0 chainweb-backup verify "$id" --database-directory node
mv node/0/sqlite node/0/elsewhere
status 'it fails if none can be made' 22 sh -euc "$(cat script)"
mv node/0/elsewhere node/0/sqlite
printf x | dd of="$(find node/0/sqlite -name '*.sqlite' | head -n 1)" bs=1 seek=16 conv=notrunc 2>dd.log
status 'it fails if the backup fails' 1 sh -euc "$(cat script)"
has 'and says so' out backup-failed
echo wrong >token
status 'it fails without the right token' 22 sh -euc "$(cat script)"
stop TERM

linted() {
  what=$1
  shift
  if command -v "$1" >/dev/null; then status "$what" 0 "$@"; else skip "$what" "there is no $1"; fi
}
cp "$at/compose.yml" compose.yml
linted 'compose.yml is one' docker-compose -f compose.yml config -q
linted 'kubernetes.yml has objects of Kubernetes' kubernetes-validate "$at/kubernetes.yml"
linted 'the Dockerfile has no faults' hadolint "$at/Dockerfile"
copied=$(sed -n 's/^COPY \([a-z][^ ]*\) .*/\1/p' "$at/Dockerfile")
is 'the image gets the ready hooks' "$copied" 'scripts/hooks/*.sh'
for path in $(sed -n 's/^!//p' "$at/Dockerfile.dockerignore"); do check "the build finds $path" [ -e "$ROOT/$path" ]; done
end
