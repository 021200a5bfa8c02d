#!/bin/sh
# The places of a node's databases and of its backups: a volume at `0`, two volumes below it, bind mounts, symbolic links, any
# directories, the default directory. In each place a node writes while it is backed up, beside it and on another disk; the backup is
# listed and restored, and its history is verified. Needs root, for mounts.
. "$(dirname -- "$0")/lib.sh"
[ "$(id -u)" -eq 0 ] || { echo '1..0 # SKIP only root can mount' && exit 0; }
mkdir trial && mount -t tmpfs tmpfs trial 2>mount.log || { echo "1..0 # SKIP nothing can be mounted: $(cat mount.log)" && exit 0; }
umount trial
SHM=$(mktemp -d /dev/shm/chainweb-backup-test.XXXXXX) || exit 1
other=$SHM/backups

# mounted TYPE DIRECTORY: a new file system there.
mounted() {
  mkdir -p "$2"
  case $1 in
    tmpfs) mount -t tmpfs tmpfs "$2" ;;
    *) truncate -s 300M "$2.img" && "mkfs.$1" -q "$2.img" && mount -o loop "$2.img" "$2" ;;
  esac || { echo "Bail out! cannot mount $1" && exit 1; }
  mounts="$DIR/$2 $mounts"
}

# running DIRECTORY: a node that writes there until it is stopped.
running() {
  start "node.log" demo-node --database-directory "$1" --rate 50 --chains 2 --fill 3000000 --write-buffer-bytes 400000 \
    --disable-backup-api
}

# pins DIRECTORY...: the pins that are left below these.
pins() {
  find "$@" -path '*/.chainweb-backup-pin/*' ! -name .lock 2>/dev/null
}

# kept NAME DATABASE BACKUPS ARGUMENT...: makes a backup of the running node, lists, verifies and restores it.
kept() {
  label=$1 database=$2 backups=$3
  shift 3
  for nth in first second; do
    status "$label: the $nth backup" 0 chainweb-backup make --backup-pact --backup-directory "$backups" "$@"
    sed 's/^/# /' err | grep -E 'ERROR|WARN|error' || true
    id=$(cat out)
    status "$label: its history is whole" 0 demo-node verify --expect-chains 2 "$backups/${id:-none}"
  done
  status "$label: it is listed" 0 chainweb-backup list --backup-directory "$backups"
  is "$label: both are done" "$(grep -c ' backup-done ' out)" 2
  is "$label: no pins are left" "$(pins "$database/." "$database/0/.")" ''
  for copy in '' --copy; do
    status "$label: restored $copy" 0 chainweb-backup restore --backup-directory "$backups" latest --to "$SHM/restored" $copy
    status "$label: the restored history is whole" 0 demo-node verify --expect-chains 2 "$SHM/restored"
    rm -rf "$SHM/restored"
  done
  status "$label: deleted" 0 chainweb-backup delete --backup-directory "$backups" latest
}

# pin_directory DATABASE: the places that have a pin directory.
pin_directories() {
  find -L "$1" -maxdepth 3 -name .chainweb-backup-pin -printf '%P %m\n' 2>/dev/null | sort | tr '\n' ' '
}

# A volume at `0`, as in the Helm chart: the database directory is on another disk.
mounted ext4 volume/0
running volume
kept 'volume at 0, other disk' volume "$other/volume" --database-directory volume
is 'volume at 0: the pins were in 0' "$(pin_directories volume)" '0/.chainweb-backup-pin 700 '
kept 'volume at 0, backups on it' volume volume/0/backups --database-directory volume
kept 'volume at 0, backups beside it' volume volume/backups --database-directory volume
status 'volume at 0: named' 0 chainweb-backup make --backup-pact --database-directory volume --backup-directory "$other/volume" \
  --pin-directory volume/0
status 'volume at 0: the database directory is on another mount' 2 chainweb-backup make --database-directory volume \
  --backup-directory "$other/volume" --pin-directory volume
has 'volume at 0: the message names the option' err '--pin-directory volume cannot be used (it is on another mount)'
for place in volume/0 volume/0/rocksDb volume/0/sqlite/b volume/0/.chainweb-backup-pin/b; do
  status "volume at 0: backups in $place are refused" 2 chainweb-backup make --database-directory volume --backup-directory "$place"
done
# Pins that a crash has left are removed in every place, not only in the one that is used now.
for place in volume volume/0 volume/0/rocksDb; do
  mkdir -p "$place/.chainweb-backup-pin/rocksDb" && chmod 700 "$place/.chainweb-backup-pin"
  echo left >"$place/.chainweb-backup-pin/rocksDb/000001.sst"
done
kept 'volume at 0, pins were left' volume volume/0/more --database-directory volume
is 'volume at 0: pins that were left are removed' "$(pins volume)" ''
stop TERM
status 'volume at 0: the node is whole' 0 demo-node verify --expect-chains 2 volume
start embedded.log demo-node --database-directory volume --rate 50 --write-buffer-bytes 400000 --backup-directory "$other/embedded"
for nth in first second; do
  backup '?backupPact'
  is "volume at 0, embedded: the $nth backup" "$word" backup-done
  status "volume at 0, embedded: its history is whole" 0 demo-node verify --expect-chains 2 "$other/embedded/$id"
done
is 'volume at 0, embedded: no pins are left' "$(pins volume)" ''
stop TERM

# Two volumes below `0`, as publishers of databases have them.
mounted tmpfs two/0/rocksDb
mounted tmpfs two/0/sqlite
running two
status 'two volumes: no place for links' 1 chainweb-backup make --backup-pact --database-directory two --backup-directory "$other/two"
for text in '--pin-directory' "$DIR/two: it is on another mount" "$DIR/two/0: it is on another mount"; do
  has "two volumes: the message names $text" err "$text"
done
is 'two volumes: nothing was made' "$(pin_directories two)" ''
chainweb-backup delete --backup-directory "$other/two" "$(cat out)" >/dev/null 2>&1
kept 'two volumes, pins in rocksDb' two "$other/two" --database-directory two --pin-directory two/0/rocksDb
printf 'databaseDirectory: %s\nbackup: {pinDirectory: %s}\n' "$DIR/two" "$DIR/two/0/rocksDb" >two.yaml
status 'two volumes: from a configuration file' 0 chainweb-backup make --backup-pact --config-file two.yaml --backup-directory "$other/two"
stop TERM
running two
kept 'two volumes, the node was started again' two "$other/two2" --database-directory two --pin-directory two/0/rocksDb
stop TERM
status 'two volumes: the node is whole' 0 demo-node verify --expect-chains 2 two

# A bind mount: hard links fail although the device is the same.
mkdir -p real/0 bound/0
mount --bind real/0 bound/0 && mounts="$DIR/bound/0 $mounts"
running real
kept 'bind mount, other disk' bound "$other/bound" --database-directory bound
kept 'bind mount, same disk, another mount' bound bound/backups --database-directory bound
kept 'bind mount, backups on it' bound bound/0/backups --database-directory bound
status 'bind mount: backups among the files by their other name' 2 chainweb-backup make --database-directory bound \
  --backup-directory real/0/rocksDb/b
stop TERM

# Symbolic links, which are resolved once.
mounted tmpfs disk
mkdir -p disk/0 linked && ln -s "$DIR/disk/0" linked/0
running linked
kept 'linked 0, other disk' linked "$other/linked" --database-directory linked
is 'linked 0: the pins were on its disk' "$(find disk -name .chainweb-backup-pin -printf '%P ')" '0/.chainweb-backup-pin '
kept 'linked 0, backups on its disk' linked disk/backups --database-directory linked
status 'linked 0: the log' 0 chainweb-backup make --database-directory linked --backup-directory disk/backups
has 'linked 0: it says where the link leads' err "$DIR/disk/0/rocksDb"
# No pin directory is made in a directory of another user that was not named.
chown 12345:23456 linked disk/0/rocksDb
rm -rf disk/0/.chainweb-backup-pin
status 'linked 0 of another user' 1 chainweb-backup make --database-directory linked --backup-directory "$other/linked"
has 'linked 0 of another user: the message' err 'a link leads to it, and it belongs to another user'
is 'linked 0 of another user: nothing was made' "$(find disk -name .chainweb-backup-pin)" ''
chown -h 12345:23456 linked/0
status 'linked 0 to another user' 1 chainweb-backup make --database-directory linked --backup-directory "$other/linked"
has 'linked 0 to another user: the message' err 'belongs to another user than the directory to which it leads'
chown -h 0:0 linked linked/0 disk/0/rocksDb
stop TERM
mkdir -p parts/0 disk/rocks disk/pact && ln -s "$DIR/disk/rocks" parts/0/rocksDb && ln -s "$DIR/disk/pact" parts/0/sqlite
running parts
kept 'linked rocksDb and sqlite, other disk' parts "$other/parts" --database-directory parts --pin-directory disk
kept 'linked rocksDb and sqlite, backups on their disk' parts disk/parts --database-directory parts
# A link that changes under a service: its backups would be of a database that the node no longer uses.
start serve.log chainweb-backup serve --database-directory parts --backup-directory disk/parts --enable-backup-api
backup '?backupPact'
is 'a service on links' "$word" backup-done
ln -sfn "$DIR/disk/0/rocksDb" parts/0/rocksDb
backup '?backupPact'
is 'a link that changed under it' "$word" backup-failed
has 'a link that changed under it: the reason' serve.log 'restart this program'
ln -sfn "$DIR/disk/rocks" parts/0/rocksDb
backup '?backupPact'
is 'the link that was there before' "$word" backup-done
stop TERM
stop_node=${pids##* }
kill -TERM "$stop_node" && wait "$stop_node"
pids=${pids% "$stop_node"}

# Databases in any directories.
mkdir -p anywhere
kept 'directories anywhere' parts "$other/anywhere" --rocksdb-directory disk/rocks --sqlite-directory disk/pact
kept 'directories anywhere, same disk' parts disk/anywhere --rocksdb-directory disk/rocks --sqlite-directory disk/pact

# Run by a user who may not write to the database directory.
mkdir user && node user/db --chains 2 --fill 3000000 --write-buffer-bytes 400000
chown -R 12345:23456 user/db/0 && chmod 755 . user user/db "$SHM" && mkdir "$SHM/user" && chown 12345:23456 "$SHM/user"
cp "$(command -v chainweb-backup)" program && chmod 755 program
status 'a user who may not write to the database directory' 0 setpriv --reuid=12345 --regid=23456 --clear-groups "$DIR/program" \
  make --backup-pact --database-directory "$DIR/user/db" --backup-directory "$SHM/user/b"
is 'a user who may not: the pins were in 0' "$(pin_directories user/db)" '0/.chainweb-backup-pin 700 '

# The default database directory.
mkdir -p home/.local/share/chainweb-node
cp -a user/db home/.local/share/chainweb-node/mainnet01
mkdir home/.local/share/chainweb-node/empty
at=$DIR/home/.local/share/chainweb-node
status 'default directory' 0 env -u XDG_DATA_HOME HOME="$DIR/home" chainweb-backup make --backup-pact
has 'default directory: the log names it' err "using the default database directory $at/mainnet01"
status 'default directory: list' 0 env -u XDG_DATA_HOME HOME="$DIR/home" chainweb-backup list
is 'default directory: one backup' "$(grep -c ' backup-done ' out)" 1
status 'default directory: restored' 0 env -u XDG_DATA_HOME HOME="$DIR/home" chainweb-backup restore latest --to "$SHM/restored"
status 'default directory: its history is whole' 0 demo-node verify --expect-chains 2 "$SHM/restored"
status 'default directory: another home has none' 2 env -u XDG_DATA_HOME HOME="$DIR/user" chainweb-backup make
has 'default directory: the message says where it was looked' err "$DIR/user/.local/share/chainweb-node has none"
mkdir "$DIR/xdg" && cp -a home/.local/share/chainweb-node xdg/
status 'default directory: XDG_DATA_HOME' 0 env XDG_DATA_HOME="$DIR/xdg" HOME="$DIR/user" chainweb-backup make
cp -a user/db xdg/chainweb-node/testnet04
status 'default directory: several' 2 env XDG_DATA_HOME="$DIR/xdg" chainweb-backup make
has 'default directory: the message names them' err 'has several: mainnet01, testnet04'
status 'default directory: several, and a version' 0 env XDG_DATA_HOME="$DIR/xdg" chainweb-backup make --chainweb-version testnet04
end
