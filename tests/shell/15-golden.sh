#!/bin/sh
# Golden backups: backups of every released version can be read, verified and restored for ever. A version that changes the format
# adds an archive to tests/data and removes none.
#
# The databases in the archives of 0.1.0 and 0.2.0 are of demo nodes with older formats, and those nodes found them whole when the
# archives were made. The checksums of all their files are known, and the restored files must have them: see golden-sums.
. "$(dirname -- "$0")/lib.sh"

# sums_of DIRECTORY: the checksums of the files of its databases.
sums_of() {
  (cd "$1" && find 0 -type f ! -name LOG ! -name LOCK ! -name BLAKE2SUMS -exec sha256sum {} + | sort -k 2)
}

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
    status "$version $id: restore" 0 chainweb-backup restore $at "$id" --to "restored-$version-$id"
    if grep -q "  $version/" "$ROOT/tests/data/golden-sums"; then
      sed -n "s,  $version/,  ,p" "$ROOT/tests/data/golden-sums" | sort -k 2 >sums.known
      sums_of "restored-$version-$id" >sums.restored
      check "$version $id: every file is as it was, and there is no other" diff sums.known sums.restored
      status "$version $id: today's node refuses it" 1 demo-node --database-directory "restored-$version-$id"
      has "$version $id: and says why" err 'written by an older demo node'
      sums_of "restored-$version-$id" >sums.restored
      check "$version $id: and leaves it as it was" diff sums.known sums.restored
    else
      status "$version $id: a node's history is whole in it" 0 demo-node verify "restored-$version-$id"
      # The node continues from there.
      node "restored-$version-$id"
      status "$version $id: and stays so" 0 demo-node verify "restored-$version-$id"
    fi
    chainweb-backup make --database-directory "restored-$version-$id" --backup-directory "$version" --backup-pact --log-level warn >new
    status "$version $id: new backups go beside it" 0 chainweb-backup verify $at "$(cat new)" --deep
    status "$version $id: prune keeps it when asked" 0 chainweb-backup prune $at --keep-last 9
    has "$version $id: and says so" out "$id: kept"
  done
  check "$version: there was a backup in it" [ -s new ]
  rm -f new
done
end
