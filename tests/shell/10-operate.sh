#!/bin/sh
# The operator's commands on finished backups: verify, restore, sum, delete, prune, pin, and their exit codes.
. "$(dirname -- "$0")/lib.sh"

node node --chains 3 --fill 12000000 --write-buffer-bytes 500000
for _ in 1 2 3 4; do
  chainweb-backup make --backup-pact --database-directory node --log-level warn >>ids 2>>make.log
done
# The exit code is that of the backup, even if its identifier could not be printed.
status 'make with a full standard output is 0' 0 sh -c 'chainweb-backup make --database-directory node >/dev/full'
has 'it says the identifier all the same' err 'could not be printed'
chainweb-backup delete --backup-directory node/backups "$(ls node/backups | tail -n 1)" >deleted
status 'make with a closed standard output is 0' 0 sh -c 'chainweb-backup make --database-directory node >&-'
chainweb-backup delete --backup-directory node/backups "$(ls node/backups | tail -n 1)" >deleted
first=$(sed -n 1p ids) second=$(sed -n 2p ids) last=$(sed -n 4p ids)
at='--backup-directory node/backups'
# shellcheck disable=SC2086 # $at is two words
{
  status 'verify is 0' 0 chainweb-backup verify $at "$first"
  has 'it says so' out "$first: good"
  status 'verify latest --deep is 0' 0 chainweb-backup verify $at latest --deep
  has 'latest is the last one' out "$last: good"
  status 'verify of none is 10' 10 chainweb-backup verify $at 1
  status 'sum is 0' 0 chainweb-backup sum $at "$last"
  for part in rocksDb sqlite; do
    check "b2sum agrees about $part" sh -c "cd 'node/backups/$last/0/$part' && b2sum --quiet -c BLAKE2SUMS"
  done
  status 'verify --deep uses the checksums' 0 chainweb-backup verify $at "$last" --deep

  status 'restore is 0' 0 chainweb-backup restore $at "$last" --to restored
  has 'it says how to start the node' out --database-directory
  status 'what was restored verifies' 0 demo-node verify restored
  status 'restore over something is 15' 15 chainweb-backup restore $at "$first" --to restored
  status 'restore --replace is 0' 0 chainweb-backup restore $at "$first" --to restored --replace
  is 'what was there is kept' "$(ls restored | grep -c '^0\.bak-')" 1
  node restored
  status 'a node goes on from there' 0 demo-node verify restored
  status 'the backup is as it was' 0 chainweb-backup verify $at "$first" --deep
  status 'also for the node' 0 demo-node verify "node/backups/$first"
  start run.log demo-node --database-directory restored --disable-backup-api
  status 'restore under a running node is 14' 14 chainweb-backup restore $at "$first" --to restored --replace
  stop TERM
  # A slow backup of the restored database, which no node has open: the backup has it open.
  chainweb-backup make --backup-pact --database-directory restored --backup-directory slow --limit-bytes-per-second 1000 \
    >slow.out 2>slow.err </dev/null &
  pids="$pids $!" tries=0
  until ls slow/*/0.partial/sqlite/*.sqlite >/dev/null 2>&1 || [ "$tries" -ge 1000 ]; do tries=$((tries + 1)) && sleep 0.01; done
  status 'restore into a directory that is being backed up is 11' 11 \
    chainweb-backup restore $at "$first" --to restored --replace
  has 'it says what uses it' err '(chainweb-backup) makes a backup of '
  status 'and cancel ends that' 0 chainweb-backup cancel --backup-directory slow
  is 'restore left nothing' "$(ls -A restored | grep -vc -e '^0$' -e '^0\.bak-')" 0

  mkdir -p mounted/0
  mounts=$DIR/mounted/0
  if mount -t tmpfs none mounted/0 2>mount.err; then
    for content in '' old; do
      [ -z "$content" ] || : >"mounted/0/$content"
      device=$(stat -c %d mounted/0)
      status "restore over a mount with ${content:-nothing} in it is 0" 0 \
        chainweb-backup restore $at "$first" --to mounted --replace
      is 'it is still that mount, and what else was in it is there' \
        "$(stat -c %d mounted/0) $(ls -A mounted mounted/0 | tr '\n' ' ')" \
        "$device mounted: 0  mounted/0: ${content:+$content }rocksDb sqlite "
      status 'what was restored verifies' 0 demo-node verify mounted
    done
    umount mounted/0
  else
    skip 'restore over a mount' "nothing can be mounted: $(cat mount.err)"
  fi

  for database in "node/backups/$last/0/sqlite"/*.sqlite; do
    sqlite3 "$database" 'PRAGMA journal_mode=DELETE; DELETE FROM BlockHistory WHERE blockheight < (SELECT max(blockheight) FROM BlockHistory)' >/dev/null
  done
  status 'restore of a compacted Pact is 0' 0 chainweb-backup restore $at "$last" --to compacted
  has 'it names the flag' out --no-full-historic-pact-state
  has 'it warns' err 'Pact is compacted'
  rm -rf compacted

  # The program does not know the version of the demo node's rings.
  node ring --chains 2
  status 'a backup of an unknown version is 0' 0 chainweb-backup make --backup-pact --database-directory ring --log-level warn
  status 'restore of whole Pact databases is 0' 0 chainweb-backup restore --backup-directory ring/backups latest --to ringed
  is 'it has nothing to say about them' "$(grep -c 'full history' err)" 0
  for database in ring/backups/*/0/sqlite/*.sqlite; do
    sqlite3 "$database" 'PRAGMA journal_mode=DELETE; DELETE FROM BlockHistory WHERE blockheight < 10' >/dev/null
  done
  status 'restore of Pact databases that begin above 0 is 0' 0 \
    chainweb-backup restore --backup-directory ring/backups latest --to ringed --replace
  has 'it does not know whether they are compacted' err 'it is unknown whether Pact has all blocks'
  is 'and guesses no flag' "$(grep -c no-full-historic-pact-state out)" 0
  rm -rf ring ringed

  status 'pin is 0' 0 chainweb-backup pin $at "$first"
  status 'prune without a rule deletes nothing' 2 chainweb-backup prune $at
  status 'prune --dry-run is 0' 0 chainweb-backup prune $at --keep-last 2 --dry-run
  is 'it would delete one' "$(grep -c 'would be deleted' out) $(grep -c kept out)" '1 3'
  is 'and did not' "$(ls node/backups | wc -l)" 4
  start serve.log chainweb-backup serve --database-directory node --enable-backup-api
  status 'prune beside a service is 0' 0 chainweb-backup prune $at --keep-last 2
  has 'it deleted the second' out "$second: deleted"
  http GET "/check-backup/$second"
  is 'which is a 404 from then on' "$code" 404
  check 'a pinned one is not deleted' sh -c "! chainweb-backup delete $at $first >out 2>err"
  status 'unpin is 0' 0 chainweb-backup unpin $at "$first"
  status 'delete is 0' 0 chainweb-backup delete $at "$first"
  http GET "/check-backup/$first"
  is 'a deleted one is a 404' "$code" 404
  status 'delete of none is 10' 10 chainweb-backup delete $at "$first"
  stop TERM

  # Known damage is remembered: RocksDB, and a quick verification, take a WAL that ends early for a whole one.
  third=$(sed -n 3p ids)
  mkdir copy && cp -a "node/backups/$third" "node/backups/$last" copy/
  printf XYZ | dd of="$(ls "copy/$last"/0/rocksDb/*.log | head -n 1)" bs=1 seek=8 conv=notrunc 2>dd
  status 'a damaged WAL is 13' 13 chainweb-backup verify --backup-directory copy latest --deep
  has 'of the last one' out "$last: DAMAGED"
  status 'a restore of that is 13 from then on' 13 chainweb-backup restore --backup-directory copy "$last" --to again
  has 'it says what to do' err 'restore another'
  status 'also with --deep' 13 chainweb-backup restore --backup-directory copy "$last" --to again --deep
  is 'nothing was restored' "$(ls -A again 2>/dev/null)" ''
  status 'a restore of the latest is 0' 0 chainweb-backup restore --backup-directory copy latest --to again
  has 'it takes the one before' out "restored $third"
  has 'it says so' err "passed over id=$last"
  for place in copy "copy/$third" "copy/$third/0/x" again/0 again/0/x again/0/rocksDb; do
    status "a restore to $place is 2" 2 chainweb-backup restore --backup-directory copy "$third" --to "$place" --replace
  done
  status 'what was restored is as it was' 0 demo-node verify again
  rm -rf again
  printf X | dd of="copy/$last/backup.json" bs=1 conv=notrunc 2>dd
  status 'a restore of the latest is 0 beside one whose record is lost' 0 \
    chainweb-backup restore --backup-directory copy latest --to again
  has 'it takes the one before, too' out "restored $third"
  # A whole backup, used as a database directory by hand.
  cp -a "copy/$third" byhand
  status 'what was copied by hand can be backed up' 0 chainweb-backup make --database-directory byhand
  rm -rf copy again byhand
  # A foreign backup is as old as its name says, or as its directory if that is older: a copy of an old one is not the latest.
  mkdir node/backups/1400000000000 && printf backup-done >node/backups/1400000000000/status
  status 'the latest is not the one that was copied last' 0 chainweb-backup verify $at latest
  has 'but that of the newest name' out "$last: good"

  # One damage of each kind is found.
  for damage in sst sqlite missing; do
    rm -rf copy && mkdir copy && cp -a "node/backups/$last" copy/
    case $damage in
      sst) target=$(ls copy/*/0/rocksDb/*.sst | head -n 1) && printf XYZ | dd of="$target" bs=1 seek=300 conv=notrunc 2>dd ;;
      sqlite) printf XYZ | dd of="copy/$last/0/sqlite/pact-v1-chain-1.sqlite" bs=1 seek=3000 conv=notrunc 2>dd ;;
      missing) rm "copy/$last/0/sqlite/pact-v1-chain-1.sqlite" ;;
    esac
    status "damage of $damage is 13" 13 chainweb-backup verify --backup-directory copy "$last" --deep
    status "a restore of it is 13" 13 chainweb-backup restore --backup-directory copy "$last" --to elsewhere --deep
    is 'and leaves nothing' "$(ls -A elsewhere 2>/dev/null)" ''
  done
}
end
