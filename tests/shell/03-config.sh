#!/bin/sh
# Where a value comes from: flag, environment, the node's own configuration file, default; and what is refused.
. "$(dirname -- "$0")/lib.sh"

node node --chains 2
# The file of a real node; only its directories are changed.
sed "s|/var/lib/chainweb-node/mainnet01|$DIR/node|" "$ROOT/tests/data/node-config.yaml" >plain.yaml
awk '/^  backup:/ { backup = 1 } backup && /enabled: false/ { sub(/false/, "true"); backup = 0 } { print }' plain.yaml |
  sed "s|directory: null|directory: $DIR/from-file|" >on.yaml
is 'two lines differ' "$(diff plain.yaml on.yaml | grep -c '^>')" 2

# serves NAME [FLAG...]: starts a service, leaves the code of a POST in $code, and stops the service when the job is done.
serves() {
  log=$1.log
  shift
  start "$log" chainweb-backup serve "$@"
  http POST /make-backup
  [ "$code" != 200 ] || await "$(cat body)"
  posted=$code
  http GET /chainweb/0.0/mainnet01/health-check
  stop TERM
  code=$posted
  # In some shells a variable before the call of a function keeps its value afterwards.
  unset BACKUP_DIR ENABLE_BACKUP_API
}

made_in() {
  ls "$1" 2>/dev/null | grep -c '^[0-9]*$'
}

serves plain --config-file plain.yaml
is 'the node'\''s own file leaves the API off' "$code" 404
serves flag --config-file plain.yaml --enable-backup-api
is 'the flag turns it on' "$code $(made_in node/backups)" '200 1'
serves file --config-file on.yaml
is 'the file turns it on and names the directory' "$code $(made_in from-file)" '200 1'
has 'the network comes from the file' body 'Health check OK.'
ENABLE_BACKUP_API=true serves env --config-file plain.yaml
is 'the environment turns it on' "$code $(made_in node/backups)" '200 2'
ENABLE_BACKUP_API=false serves env-off --config-file on.yaml
is 'the environment turns it off' "$code" 404
ENABLE_BACKUP_API=false serves flag-on --config-file on.yaml --enable-backup-api
is 'the flag wins over the environment' "$code $(made_in from-file)" '200 2'
ENABLE_BACKUP_API=true serves flag-off --config-file on.yaml --disable-backup-api
is 'the flag turns it off' "$code" 404
BACKUP_DIR=$DIR/from-env serves dir-env --config-file on.yaml
is 'BACKUP_DIR wins over the file' "$code $(made_in from-env)" '200 1'
BACKUP_DIR=$DIR/from-env serves dir-flag --config-file on.yaml --backup-directory from-flag
is 'the flag wins over BACKUP_DIR' "$code $(made_in from-flag) $(made_in from-env)" '200 1 1'
printf 'backup: {directory: %s}\n' "$DIR/from-later" >later.yaml
serves later --config-file on.yaml --config-file later.yaml
is 'the later file wins' "$code $(made_in from-later)" '200 1'
BACKUP_DIR='' ENABLE_BACKUP_API='' serves empty --config-file on.yaml
is 'an empty variable says nothing' "$code $(made_in from-file)" '200 3'
serves json --config-file "$ROOT/tests/data/node-config.json" --database-directory node --enable-backup-api \
  --backup-directory from-json
is 'JSON is read too' "$code $(made_in from-json)" '200 1'
status 'make takes the same file' 0 chainweb-backup make --config-file on.yaml
status 'list takes the same file' 0 chainweb-backup list --config-file on.yaml
is 'list shows them' "$(wc -l <out)" 5

# refused NAME TEXT WORDS...
refused() {
  what=$1
  printf '%b' "$2" >wrong.yaml
  shift 2
  status "$what is 2" 2 chainweb-backup serve --database-directory node --config-file wrong.yaml --service-port 0
  for word in "$@"; do has "$what: the message has $word" err "$word"; done
}
refused 'an unknown key' 'backup: {api: {enable: true}}' wrong.yaml backup.api.enable 'did you mean `enabled`?'
refused 'a key at the wrong place' 'backup: {enabled: true}' backup.api.enabled
refused 'a wrong type' 'backup: {api: {port: many}}' 'a port number from 0 to 65535'
refused 'no YAML' 'backup: [' 'not YAML' line
refused 'a key twice' 'databaseDirectory: a\ndatabaseDirectory: b\n' twice
status 'a missing file is 2' 2 chainweb-backup serve --config-file missing.yaml --service-port 0
has 'it is named' err missing.yaml
ENABLE_BACKUP_API=perhaps status 'a wrong variable is 2' 2 chainweb-backup serve --config-file on.yaml --service-port 0
unset ENABLE_BACKUP_API
has 'it is named' err ENABLE_BACKUP_API
XDG_DATA_HOME=$DIR status 'no database directory is 2' 2 chainweb-backup serve --enable-backup-api --service-port 0
unset XDG_DATA_HOME
has 'the flag is named' err --database-directory
status 'a backup directory in the database is 2' 2 chainweb-backup serve --database-directory node --backup-directory node/0/rocksDb/b \
  --service-port 0
status 'a flag of another command is 2' 2 chainweb-backup list --database-directory node --backup-pact
has 'its command is named' err make
status 'an unknown command is 2' 2 chainweb-backup mkae --database-directory node
has 'it is suggested' err make
status 'a home directory that no shell has seen is 2' 2 chainweb-backup make --database-directory=~/node
has 'it says what to write' err 'write the whole path'
refused 'the same in a file' 'backup: {directory: ~/backups}' '`~/backups` begins with ~'
refused 'a time with a unit' 'backup: {stallSeconds: 15m}' 'write 900'
refused 'a truth value in quotes' 'backup: {api: {enabled: "true"}}' 'remove the quotes'
refused 'a version with a blank' 'chainwebVersion: main net' 'without blanks'
status 'a negative number is 2' 2 chainweb-backup prune --backup-directory node/backups --keep-last -1
has 'it says what to write' err '`-1` is not a number of backups: write a whole number'

# A configuration file that cannot be read any more changes nothing: it is gone, is no file, is broken, or is being written.
limit() {
  http GET /metrics
  sed -n 's/^chainweb_backup_limit_bytes_per_second //p' body
}
printf 'backup: {limitBytesPerSecond: 5MB}\n' >limit.yaml
start limit.log chainweb-backup serve --database-directory node --config-file limit.yaml
is 'the limit is that of the file' "$(limit)" 5000000
errors=0
for what in gone directory broken empty; do
  rm -f limit.yaml
  case $what in directory) mkdir limit.yaml ;; broken) echo 'backup: {limitBytes' >limit.yaml ;; empty) : >limit.yaml ;; esac
  kill -HUP "$pid"
  errors=$((errors + 1)) tries=0
  until [ "$(grep -c 'not read again' limit.log)" -ge "$errors" ] || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
  is "the limit is kept where the file is $what" "$(limit)" 5000000
  [ ! -d limit.yaml ] || rmdir limit.yaml
done
has 'the log says so' limit.log 'everything is as before'
printf 'backup: {limitBytesPerSecond: 0}\n' >limit.yaml
kill -HUP "$pid"
tries=0
until [ "$(limit)" = 0 ] || [ "$tries" -ge 200 ]; do tries=$((tries + 1)) && sleep 0.05; done
is 'a file that says so lifts it' "$(limit)" 0
stop TERM
status 'help is 0' 0 chainweb-backup --help
status 'version is 0' 0 chainweb-backup --version

# An ENTRYPOINT has the flags before the command, the command line of the container those after it.
entrypoint() { chainweb-backup --database-directory node --log-level warn "$@"; }
status 'make after the flags of an ENTRYPOINT is 0' 0 entrypoint make --backup-directory entry
is 'and makes a backup' "$(made_in entry)" 1
status 'list too' 0 entrypoint list --backup-directory entry
is 'and lists it' "$(wc -l <out)" 2
printf 'databaseDirectory: %s\nbackup: {directory: %s}\n' "$DIR/node" "$DIR/first" >first.yaml
printf 'backup: {directory: %s}\n' "$DIR/second" >second.yaml
status 'files on both sides of the command add up' 0 chainweb-backup --config-file first.yaml make --config-file second.yaml
is 'and the later one wins' "$(made_in first) $(made_in second)" '0 1'
status 'in the other order too' 0 chainweb-backup --config-file second.yaml make --config-file first.yaml
is 'the later one wins' "$(made_in first) $(made_in second)" '1 1'
status 'one value on each side is 2' 2 entrypoint make --database-directory other
has 'it says so' err 'cannot be used multiple times'
serves bare --database-directory node --enable-backup-api --backup-directory bare
is 'serve works' "$code $(made_in bare)" '200 1'
start bare.log chainweb-backup --enable-backup-api --database-directory node
backup
is 'and without its word' "$word" backup-done
stop TERM

# Help of each command, completions and man pages, made from what the program accepts.
chainweb-backup --help >help
awk '/^Commands:/ { inside = 1; next } /^[^ ]/ { inside = 0 } inside && /^  [a-z]/ { print $1 }' help >words
check 'the help lists the commands' [ "$(wc -l <words)" -ge 15 ]
pages=''
for word in $(cat words); do
  status "$word --help is 0" 0 chainweb-backup "$word" --help
  has 'it is its own' out "Usage: chainweb-backup $word"
  status "help $word is 0" 0 entrypoint help "$word"
  status "man $word is 0" 0 chainweb-backup man "$word"
  cp out "chainweb-backup-$word.1"
  pages="$pages chainweb-backup-$word.1"
done
status 'man is 0' 0 entrypoint man
cp out chainweb-backup.1
for page in chainweb-backup.1 $pages; do
  if command -v groff >roff.found; then
    groff -man -Tutf8 -ww -rCHECKSTYLE=1 "$page" >page.out 2>page.err
    is "groff finds no fault in $page" "$(cat page.err)" ''
  else
    skip "$page" 'no groff'
  fi
done
for shell in bash zsh fish; do
  status "completions for $shell are 0" 0 entrypoint completions "$shell"
  cp out "completions.$shell"
  case $shell in fish) flag=--no-execute ;; *) flag=-n ;; esac
  if command -v "$shell" >shell.found; then
    status "$shell reads them" 0 "$shell" "$flag" "completions.$shell"
  else
    skip "$shell reads them" "no $shell"
  fi
done
# completed WORD...: the completions of bash for the last word.
completed() {
  bash -c '. ./completions.bash && COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) &&
    "$(complete -p chainweb-backup | sed "s/.*-F \([^ ]*\) .*/\1/")" chainweb-backup "${@:$#}" "${@:$#-1:1}" && echo "${COMPREPLY[@]}"' bash "$@" 2>&1
}
if command -v bash >shell.found; then
  is 'bash completes a command' "$(completed chainweb-backup rest)" restore
  is 'and a flag of it' "$(completed chainweb-backup restore --rep)" --replace
fi
end
