#!/bin/sh
# Runs the commands of the README and of the manual as they are, against a running node; and checks what these pages say about flags,
# routes, metrics, messages and the library.
# A block of sh that is to be run has `<!-- test -->` on the line before it. Each must run on its own, as it is pasted.
. "$(dirname -- "$0")/lib.sh"
readme=$ROOT/README.md
manual=$ROOT/src/manual

# here: a block from the standard input, with the directories of this test in place of those in the block.
here() {
  sed -e "s|^API=.*|API=http://$address|" -e "s|^BACKUPS=[^ ]*|BACKUPS=$DIR/node/backups|" -e "s|^RESTORED=.*|RESTORED=$DIR/restored|" \
    -e "s|^TEXTFILES=.*|TEXTFILES=$DIR|" \
    -e "s|/usr/local/bin/||; s|/etc/chainweb-node/config.yaml|$DIR/config.yaml|" \
    -e "s|/var/lib/chainweb-node/mainnet01|$DIR/node|; s|/backup |$DIR/elsewhere |; s|/backup\$|$DIR/elsewhere|"
}

# run_blocks NAME FILE WANTED: runs each of its blocks in a shell of its own; what all of them print is in the file said.
run_blocks() {
  : >said
  n=1
  while block "$2" sh "$n" | here >commands && [ -s commands ]; do
    rm -rf restored
    status "$1, block $n" 0 sh -eu commands
    sed 's/^/# /' err
    cat out >>said
    n=$((n + 1))
  done
  is "$1 has its blocks" "$((n - 1))" "$3"
  count_run=$((count_run + n - 1))
}

start node.log demo-node --database-directory node --chains 3 --rate 10 --chainweb-version mainnet01
count_run=0
run_blocks 'the README' "$readme" 3
has 'a backup was done' said backup-done
has 'restore says how to start the node' said "start the node with: --database-directory '$DIR/restored'"
has 'prune says what it would do' said 'kept (last good)'

run_blocks 'the page api' "$manual/api.md" 1
has 'a wrong parameter is answered as it says' said 'unknown parameter "backupPactState": did you mean backupPact?'
has 'an unknown backup too' said 'no such backup'
has 'health' said 'Health check OK.'
has 'metrics' said chainweb_backup_free_bytes

run_blocks 'the page commands' "$manual/commands.md" 6
has 'everything is good' said ': good ('
has 'there are checksums' said 'BLAKE2SUMS written'

run_blocks 'the page monitoring' "$manual/monitoring.md" 1
has 'the file for node-exporter is there' chainweb-backup.prom 'chainweb_backup_textfile_timestamp_seconds 1'

block "$readme" sh 2 | here >commands
rm -rf restored
status 'restoring as the README says' 0 sh -eu commands
status 'what was restored is whole' 0 demo-node verify --expect-chains 3 restored
chainweb-backup list --backup-directory node/backups >list
newest=$(awk 'NR == 2 { print $1 }' list)
mkdir byhand
sed -n 's|^.*By hand, `\(cp .*\)` does the same.*|\1|p' "$readme" | sed "s|<backup>|node/backups/$newest|; s|<target>|byhand|" >commands
status 'restoring by hand' 0 sh -eu commands
status 'what was restored by hand is whole' 0 demo-node verify --expect-chains 3 byhand
# 38-stories.sh runs all blocks of some pages, in their order.
marks=$(grep -c '^<!-- test -->$' "$readme")
for page in "$manual"/*.md; do
  name=${page##*/}
  grep -q "^ *story ${name%.md}\$" "$ROOT/tests/shell/38-stories.sh" || marks=$((marks + $(grep -c '^<!-- test -->$' "$page")))
done
is 'every block with the mark was run' "$count_run" "$marks"

# The retention policy, with rules that delete something.
for _ in 1 2 3; do backup '?backupPact'; done
mkdir node/backups/1600000000 && printf backup-done >node/backups/1600000000/status
block "$readme" sh 3 | here | sed 's|--keep-last 3 --keep-daily 7 --keep-weekly 4|--keep-last 2|' >retention
status 'the retention policy runs' 0 sh -eu retention
chainweb-backup list --backup-directory node/backups >list
is 'two good ones and the foreign one are kept' "$(awk 'NR > 1 { print $2, $NF == "foreign" }' list | sort | tr '\n' ' ')" \
  'backup-done 0 backup-done 0 backup-done 1 '
http GET "/check-backup/$id"
is 'the newest is one of them' "$(cat body)" backup-done
rm -rf "node/backups/$id"
http GET "/check-backup/$id"
is 'rm -rf while the service runs is a 404' "$code" 404
stop TERM

# Commands that are in no block to be run: those that start a service, and the units of systemd.
block "$manual/configuration.md" yaml 1 | here >config.yaml
{ grep -h '^chainweb-backup serve' "$readme" && sed -n 's/^ExecStart=\(.* serve .*\)/\1/p' "$manual/commands.md"; } | here >serves
is 'there are two ways to start a service' "$(wc -l <serves)" 2
while read -r serve; do
  # shellcheck disable=SC2086 # a command and its arguments
  start serve.log $serve
  backup '?backupPact'
  is "a backup by: $serve" "$code $word" '200 backup-done'
  check 'SIGHUP is harmless' kill -HUP "$pid"
  stop TERM
done <serves
check 'the configuration file of the manual names the directory' [ -d "elsewhere/$id" ]
sed -n 's/^ExecStart[A-Za-z]*=\(.*\)/\1/p' "$readme" | here >units
is 'the nightly unit has one command' "$(wc -l <units)" 1
while read -r command; do
  # shellcheck disable=SC2086 # a command and its arguments
  status "$command" 0 $command
done <units
for build in 'cargo build --release --locked --bins' 'cargo build --release --locked --no-default-features --bins'; do
  has "the README builds as the scripts do: $build" "$readme" "$build"
  has "the scripts build as the README does: $build" "$ROOT/scripts/lib.sh" "$build"
done

# The pages name all routes, flags, metrics, exit codes and messages, and no others.
find "$ROOT/src" -name '*.rs' >sources
routes=$(xargs grep -l 'pub const ROUTES' <sources)
sed -n '/pub const ROUTES/,/];/p' "$routes" | grep -o '"[A-Z]* /[^"]*"' | tr -d '"' >routes
check 'there are routes' [ -s routes ]
while read -r route; do has "the manual has the route $route" "$manual/api.md" "\`$route\`"; done <routes

chainweb-backup --help >help
awk '/^Commands:/ { inside = 1; next } /^[^ ]/ { inside = 0 } inside && /^  [a-z]/ { print $1 }' help >words
check 'there are commands' [ "$(wc -l <words)" -ge 12 ]
cp help helps
while read -r word; do
  has "the manual has the command $word" "$manual/commands.md" "$word"
  [ "$word" = help ] || chainweb-backup "$word" --help >>helps
done <words
cat "$manual/commands.md" "$manual/configuration.md" >flags.md
grep -oh -- '--[a-z][a-z-]*' helps | sort -u | grep -v -e '^--help$' -e '^--version$' >flags
check 'there are flags' [ "$(wc -l <flags)" -ge 25 ]
while read -r flag; do has "the manual has the flag $flag" flags.md "$flag"; done <flags
# Flags of b2sum, of rsync, of curl, and of the node in a drill or after a restore.
grep -oh -- '--[a-z][a-z-]*' flags.md | sort -u | grep -vxF -f flags | grep -vx -e '--quiet' -e '--unix-socket' -e '--exclude' -e '--only-sync-pact' -e '--prune-chain-database' \
  -e '--enable-ignore-bootstrap-nodes' -e '--bootstrap-reachability' -e '--no-full-historic-pact-state' >unknown
is 'every flag of the pages commands and configuration is one of ours' "$(cat unknown)" ''
for code in $(sed -n '/^Exit codes:/,$p' help | grep -o '[0-9][0-9]*'); do
  has "the manual has the exit code $code" "$manual/commands.md" "| $code |"
  has "the README has the exit code $code" "$readme" "$code "
done

metrics=$(grep '/metrics\.rs$' sources)
sed -n 's/^ *text\.[a-z]*("\([a-z_]*\)".*/\1/p' "$metrics" >metrics
check 'there are metrics' [ "$(wc -l <metrics)" -ge 45 ]
while read -r metric; do
  check "the manual has the metric $metric" grep -q "\`$metric[{\`]" "$manual/monitoring.md"
done <metrics
cat "$readme" "$manual"/*.md | grep -o 'chainweb_backup_[a-z_]*[a-z]' | sed 's/^chainweb_backup_//' | sort -u >named
check 'metrics are named' [ -s named ]
is 'every metric of the pages is one of ours' "$(grep -vxF -f metrics named)" ''

# A message of the README is in the source, except for its variable parts: after a colon, around `…`, numbers.
xargs cat <sources | tr -d '\\\n' | tr -s ' ' >source
sed -n '/^| message |/,/^$/p' "$readme" | sed -n 's/^| `\([^|]*\)` |.*/\1/p' | sed 's/…/\n/g; s/: Resource .*//; s/: the node was/:\nthe node was/; s/all [0-9]* attempts/attempts/' |
  sed 's/^ *//; s/ *$//; /^.\{0,5\}$/d' >messages
check 'there are messages' [ "$(wc -l <messages)" -ge 15 ]
while read -r message; do check "the program says: $message" grep -qF -- "$message" source; done <messages

while read -r topic; do
  chainweb-backup help "$topic" >printed
  grep -vxF '<!-- test -->' "$manual/$topic.md" >page
  check "help $topic prints its page" diff printed page
  has "the README names the page $topic" "$readme" "src/manual/$topic.md"
done <<END
$(cd "$manual" && ls | sed 's/\.md$//')
END
# A block without the mark `ignore` is compiled with the documentation of the crate.
is 'the example of embedding is compiled' "$(grep '^```rust' "$manual/embedding.md")" '```rust,no_run'
end
