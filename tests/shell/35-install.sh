#!/bin/sh
# scripts/install.sh: below a directory of its own it installs everything, says so, changes nothing the second time, keeps what the
# operator has changed, and undoes what it did: there, in another directory to which all was moved, and at the root of a mount namespace.
. "$(dirname -- "$0")/lib.sh"

install_to() {
  sh "$ROOT/scripts/install.sh" --root "$DIR/root" --binary "$BIN/chainweb-backup" --database-directory /data --backup-directory /mnt/b "$@"
}

# all DIRECTORY: every file and its content.
all() {
  (cd "$1" && find . -type f -exec b2sum {} + | sort -k 2)
}

status 'a dry run' 0 install_to --dry-run
has 'it says what it would do' out "would install $DIR/root/usr/local/bin/chainweb-backup"
check 'it does nothing' [ ! -e root ]

status 'an installation' 0 install_to
has 'it says how to go on' out 'doctor --config-file /etc/chainweb-backup/config.yaml'
status 'the program runs' 0 root/usr/local/bin/chainweb-backup --version
has 'the configuration names the databases' root/etc/chainweb-backup/config.yaml 'databaseDirectory: /data'
status 'the program reads it' 2 root/usr/local/bin/chainweb-backup make --config-file root/etc/chainweb-backup/config.yaml
has 'and looks for the node there' err '/data'
unit=root/etc/systemd/system/chainweb-backup.service
has 'the unit starts the program' "$unit" 'ExecStart=/usr/local/bin/chainweb-backup serve --config-file /etc/chainweb-backup/config.yaml'
has 'the unit waits for the disk' "$unit" 'RequiresMountsFor=/mnt/b'
has 'the socket belongs to the user' root/etc/systemd/system/chainweb-backup.socket 'SocketUser=chainweb'
check 'nothing is left to be replaced in them' sh -c "! grep -n '@[A-Z]*@' '$unit' root/etc/systemd/system/chainweb-backup.socket"
for word in make restore doctor; do
  has "there is a man page of $word" "root/usr/local/share/man/man1/chainweb-backup-$word.1" .TH
done
has 'there are completions' root/usr/local/share/bash-completion/completions/chainweb-backup chainweb-backup
if command -v systemd-analyze >/dev/null; then
  for one in "$unit" root/etc/systemd/system/chainweb-backup.socket; do
    sed "s|/usr/local/bin|$DIR/root/usr/local/bin|; s/=chainweb$/=daemon/; /^Documentation=/d" "$one" >"${one##*/}"
  done
  status 'systemd accepts the units' 0 systemd-analyze verify --man=no ./chainweb-backup.service ./chainweb-backup.socket
  is 'without a word' "$(cat out err)" ''
  status 'the unit is a sandbox: at most 2.0' 0 systemd-analyze security --offline=true --threshold=20 --no-pager ./chainweb-backup.service
  echo "# $(tail -n 1 out)"
else
  skip 'systemd accepts the units' 'there is no systemd-analyze'
fi

all root >before
status 'a second installation' 0 install_to
all root >after
check 'it changes nothing' cmp -s before after
check 'it says so' sh -c '! grep -q ^install\ / out'

echo '# mine' >>root/etc/chainweb-backup/config.yaml
all root/etc/chainweb-backup >before
status 'one after the operator has changed the configuration' 0 install_to --backup-directory /elsewhere
has 'the changed file is kept' out "leave $DIR/root/etc/chainweb-backup/config.yaml, which was changed"
has 'with its change' root/etc/chainweb-backup/config.yaml '# mine'
has 'the new one is beside it' root/etc/chainweb-backup/config.yaml.new '/elsewhere'
has 'the unit, which was not changed, is replaced' "$unit" 'RequiresMountsFor=/elsewhere'

echo mine >root/usr/local/bin/other
status 'undone' 0 install_to --undo
(cd root && find . -type f | sort) >left
is 'only what others have made is left' "$(tr '\n' ' ' <left)" './etc/chainweb-backup/config.yaml ./usr/local/bin/other '
status 'undone again' 0 install_to --undo
has 'there is nothing to undo' out 'nothing to undo'

# What was installed below a directory is a package or an image: at its place the directory is gone, and the list names the places.
status 'an installation for a package' 0 install_to
is 'no line of the list names the directory' "$(grep -c "$DIR" root/usr/local/share/chainweb-backup/installed)" 0
has 'it has the path of the program' root/usr/local/share/chainweb-backup/installed '  /usr/local/bin/chainweb-backup'
is 'each file of it is there' "$(cut -c 131- root/usr/local/share/chainweb-backup/installed | sed "s|^|$DIR/root|" | xargs ls 2>&1 >/dev/null)" ''
rm -f root/etc/chainweb-backup/config.yaml root/usr/local/bin/other
status 'and once more, with another configuration' 0 install_to --backup-directory /elsewhere
mv root moved
moved() { sh "$ROOT/scripts/install.sh" --root "$DIR/moved" --binary "$BIN/chainweb-backup" --database-directory /data "$@"; }
status 'after the move, nothing is new' 0 moved --backup-directory /elsewhere
check 'it says so' sh -c '! grep -q ^install\ / out'
cp -a moved second
status 'after the move it is undone' 0 moved --undo
is 'and nothing is left' "$(find moved -type f)" ''
# At the root, of which this is a copy on top: /etc and /usr/local below, what was installed above, and no systemd.
rm -r moved && mv second moved
cat >at-root.sh <<END
set -e
mount --make-rprivate /
mount -t tmpfs none /run
for place in etc usr/local; do
  mkdir -p "$DIR/work/\$place"
  mount -t overlay none -o "lowerdir=/\$place,upperdir=$DIR/moved/\$place,workdir=$DIR/work/\$place" "/\$place"
done
test -x /usr/local/bin/chainweb-backup
exec sh "$ROOT/scripts/install.sh" --undo
END
if [ "$(id -u)" -eq 0 ] && unshare -m sh -c 'mkdir w u && mount -t tmpfs none w && mkdir w/u w/w && mount -t overlay none -o lowerdir=u,upperdir=w/u,workdir=w/w u' 2>unshare.err; then
  status 'at the root it is undone' 0 unshare -m sh at-root.sh
  has 'it says so' out 'remove /usr/local/bin/chainweb-backup'
  is 'and nothing is left' "$(find moved -type f)" ''
  check 'this host has none of it' [ ! -e /usr/local/share/chainweb-backup ]
else
  skip 'undone at the root' "no overlay can be mounted here: $(cat unshare.err 2>/dev/null)"
fi

for wrong in '--nosuch' '--user' '--user a;b' '--prefix relative' '--backup-directory /a|b' '--binary /nosuch'; do
  # shellcheck disable=SC2086 # several words
  status "wrong usage: $wrong" 2 sh "$ROOT/scripts/install.sh" --root "$DIR/other" $wrong
done
check 'wrong usage installs nothing' [ ! -e other ]
end
