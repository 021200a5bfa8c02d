#!/bin/sh
# The README's commands, as they stand there, against a running node; and what it says of flags, routes and the library.
# A block of sh that is to be run has `<!-- test -->` on the line before it.
. "$(dirname -- "$0")/lib.sh"
readme=$ROOT/README.md

# block LANGUAGE N: the N-th block of that language; of sh, only those to be run.
block() {
  awk -v language="$1" -v wanted="$2" '
    /^```/ && inside { inside = 0; next }
    $0 == "```" language { n += language != "sh" || marked; inside = 1; shown = (language != "sh" || marked) && n == wanted; next }
    /^```/ { inside = 1; shown = 0; next }
    { marked = $0 == "<!-- test -->" }
    inside && shown { print }' "$readme"
}

start node.log demo-node --database-directory node --chains 3 --rate 10 --chainweb-version mainnet01
# Where things are on this machine; everything else is as it stands there.
n=1
while block sh "$n" >one && [ -s one ]; do
  sed -e "s|^API=.*|API=http://$address|" -e "s|^BACKUPS=[^ ]*|BACKUPS=$DIR/node/backups|" \
    -e "s|^RESTORED=.*|RESTORED=$DIR/restored|" one >>commands
  n=$((n + 1))
done
check 'there are blocks to run' [ "$n" -ge 6 ]
status 'all of them run' 0 sh -eu commands
sed 's/^/# /' err
has 'a backup was done' out backup-done
has 'a wrong parameter is answered as it says' out 'unknown parameter "backupPactState": did you mean backupPact?'
has 'an unknown backup too' out 'no such backup'
has 'health' out 'Health check OK.'
has 'metrics' out chainweb_backup_free_bytes
status 'what was restored is whole' 0 demo-node verify --expect-chains 3 restored

# The retention policy, with rules that delete something.
for _ in 1 2 3; do backup; done
mkdir node/backups/1600000000 && printf backup-done >node/backups/1600000000/status
block sh 1 | sed -e "s|BACKUPS=[^ ]*|BACKUPS=$DIR/node/backups|" -e 's|--keep-last 3 --keep-daily 7 --keep-weekly 4|--keep-last 2|' >retention
status 'the retention policy runs' 0 sh -eu retention
chainweb-backup list --backup-directory node/backups >list
is 'two good ones and the foreign one stay' "$(awk 'NR > 1 { print $2, $NF == "foreign" }' list | sort | tr '\n' ' ')" \
  'backup-done 0 backup-done 0 backup-done 1 '
http GET "/check-backup/$id"
is 'the newest is one of them' "$(cat body)" backup-done
rm -rf "node/backups/$id"
http GET "/check-backup/$id"
is 'rm -rf while the service runs is a 404' "$code" 404
stop TERM

block yaml 1 | sed -e "s|/var/lib/chainweb-node/mainnet01|$DIR/node|" -e "s|/backup |$DIR/elsewhere |; s|/backup\$|$DIR/elsewhere|" >config.yaml
start serve.log chainweb-backup serve --config-file config.yaml
backup '?backupPact'
is 'the configuration file of the README works' "$code $word $(ls elsewhere)" "200 backup-done $id"
stop TERM

block rust 1 >example
sed -n 's|^//! \{0,1\}||p' "$ROOT/src/lib.rs" | awk '/^```no_run/ { inside = 1; next } /^```/ { inside = 0 } inside' >compiled
check 'the example of embedding is the one that is compiled' diff example compiled
sed -n '/pub const ROUTES/,/];/p' "$ROOT/src/http/routes.rs" | grep -o '"[A-Z]* /[^"]*"' | tr -d '"' >routes
check 'there are routes' [ -s routes ]
while read -r route; do has "the README has the route $route" "$readme" "\`$route\`"; done <routes
chainweb-backup --help >help
for flag in $(grep -o -- '--[a-z][a-z-]*' help | sort -u | grep -v -e '^--help$' -e '^--version$'); do
  has "the README has the flag $flag" "$readme" "$flag"
done
sed -n 's|^[^(]*metric("\([a-z_]*\)".*|\1|p' "$ROOT/src/service/metrics.rs" >metrics
for metric in $(cat metrics); do has "the README has the metric $metric" "$readme" "$metric"; done
end
