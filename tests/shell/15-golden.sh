#!/bin/sh
# Golden backups: what every released version has written stays readable, verifiable and restorable for ever. A version
# that changes the format adds an archive to tests/data and removes none.
. "$(dirname -- "$0")/lib.sh"

for archive in "$ROOT"/tests/data/golden-*.tar.gz; do
  version=$(basename "$archive" .tar.gz)
  mkdir "$version"
  tar -C "$version" --no-same-owner -xzf "$archive"
  at="--backup-directory $version"
  # shellcheck disable=SC2086 # $at is two words
  for id in $(chainweb-backup list $at | awk '$2 == "backup-done" { print $1 }'); do
    status "$version $id: check" 0 chainweb-backup check $at "$id"
    status "$version $id: verify --deep" 0 chainweb-backup verify $at "$id" --deep
    has "$version $id: its checksums are used" out 'checksums'
    for part in rocksDb sqlite; do
      check "$version $id: b2sum agrees about $part" sh -c "cd '$version/$id/0/$part' && b2sum --quiet -c BLAKE2SUMS"
    done
    status "$version $id: restore" 0 chainweb-backup restore $at "$id" --to "restored-$version"
    status "$version $id: a node's history is whole in it" 0 demo-node verify "restored-$version"
    # The node goes on from there.
    node "restored-$version"
    status "$version $id: and stays so" 0 demo-node verify "restored-$version"
    chainweb-backup make --database-directory "restored-$version" --backup-directory "$version" --backup-pact --log-level warn >new
    status "$version $id: new backups go beside it" 0 chainweb-backup verify $at "$(cat new)"
    status "$version $id: prune keeps it when asked" 0 chainweb-backup prune $at --keep-last 2
    has "$version $id: and says so" out "$id: kept"
  done
  check "$version: there was a backup in it" [ -s new ]
  rm -f new
done
end
