#!/bin/sh
# Owners: if root runs the program, everything that it creates belongs to the owner of the database; linked files keep their owner.
. "$(dirname -- "$0")/lib.sh"
[ "$(id -u)" -eq 0 ] || { echo '1..0 # SKIP only root can give files away' && exit 0; }

node node --chains 2 --fill 20000000 --write-buffer-bytes 1000000
chown -R 12345:23456 node
sst=$(find node/0/rocksDb -name '*.sst' | head -n 1)
chown 777:888 "$sst" && chmod 600 "$sst"
everything() {
  find node/0 -printf '%p %y %i %s %m %U %G %T@\n' | sort
}
everything >before
SHM=$(mktemp -d /dev/shm/chainweb-backup-test.XXXXXX 2>/dev/null) || SHM=''
chmod 755 . $SHM

# foreign DIRECTORY: the files in it that do not belong to the owner of the database, except links to the node's own files.
foreign() {
  find "$1" \( ! -uid 12345 -o ! -gid 23456 \) ! -samefile "$sst"
}
for backups in node/backups $SHM/backups; do
  start serve.log chainweb-backup serve --database-directory node --enable-backup-api --backup-directory "$backups"
  backup '?backupPact'
  is "$backups: done" "$word" backup-done
  is "$backups: everything follows the owner" "$(foreign "$backups")" ''
  status "$backups: it verifies" 0 demo-node verify "$backups/$id"
  stop TERM
  status "$backups: make too" 0 chainweb-backup make --backup-pact --database-directory node --backup-directory "$backups"
  status "$backups: and one that fails" 12 chainweb-backup make --reserve-bytes 1000TiB --database-directory node \
    --backup-directory "$backups"
  is "$backups: still everything follows the owner" "$(foreign "$backups")" ''
done
is 'nor is anything else left beside the database' "$(foreign node)" ''
everything >after
check 'the node'\''s own files are as they were: owner, mode, time, inode' diff before after
check 'one of them is linked' [ "$(stat -c %h "$sst")" -gt 1 ]
start embedded.log demo-node --database-directory node --rate 50
backup '?backupPact'
is 'embedded: done' "$word" backup-done
is 'embedded: everything follows the owner, but what the node itself writes as root' \
  "$(foreign "node/backups/$id" | grep -v -e '\.sst$' -e '/OPTIONS-[0-9]*$')" ''
stop TERM

# The node's own user can do all of it, too.
chown -R 12345:23456 node
cp "$(command -v chainweb-backup)" program && chmod 755 program
user='setpriv --reuid=12345 --regid=23456 --clear-groups'
status 'the owner makes a backup itself' 0 $user "$DIR/program" make --backup-pact --database-directory "$DIR/node"
id=$(cat out)
status 'that one verifies' 0 demo-node verify "node/backups/$id"
status 'and removes it' 0 $user rm -rf "$DIR/node/backups/$id"
# Another user cannot, and the message says why.
status 'another user is refused' 1 setpriv --reuid=54321 --regid=54321 --clear-groups "$DIR/program" make \
  --database-directory "$DIR/node" --backup-directory "$DIR/theirs"
sed 's/^/# /' err
mkdir theirs && chmod 777 theirs && chmod -R a+rX node
status 'where it could read them, the links are refused' 1 setpriv --reuid=54321 --regid=54321 --clear-groups "$DIR/program" \
  make --database-directory "$DIR/node" --backup-directory "$DIR/theirs"
if [ "$(cat /proc/sys/fs/protected_hardlinks)" = 1 ]; then
  status 'and the reason says what to do' 1 chainweb-backup check --backup-directory theirs "$(cat out)"
  has 'the reason' err 'run as the node'\''s user or as root'
else
  skip 'the reason' 'fs.protected_hardlinks is off here'
fi
end
