#!/bin/sh
# Everything that must hold before a change is done: format, lints, docs, unit, integration and shell tests.
# Installs what is missing (with apt), compiles RocksDB at most once, says how long each phase took.
# Exit status: 0 all passed, 1 something failed, 2 the machine lacks something (one sentence says what to do).

. "$(dirname -- "$0")/lib.sh"
exec </dev/null

failed=0
phase setup require_test
phase format cargo fmt --check || failed=1
phase build build || exit 1
phase clippy cargo clippy --release --locked --all-targets --features gate -- -D warnings || failed=1
phase clippy-slim cargo clippy --release --locked --no-default-features -- -D warnings || failed=1
phase doc env RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --no-deps || failed=1
# The gate is a feature of this crate alone, so the dependencies are the same for both.
skips=$(mktemp)
trap 'rm -f "$skips"' EXIT
phase test env CHAINWEB_BACKUP_SKIPS="$skips" cargo test --release --locked --features gate --no-fail-fast || failed=1
phase build-slim build_slim || exit 1
phase demo sh scripts/demo.sh || failed=1
# The tests have left programs with the gate in them.
phase build-again cargo build --release --locked --bins || exit 1
phase demo-full sh scripts/demo.sh --full || failed=1
phase shell sh scripts/shell-tests.sh || failed=1
phase bench sh scripts/bench.sh --short || failed=1

printf '\n%s' "$SUMMARY"
[ ! -s "$skips" ] || { echo "$(wc -l <"$skips") left out by the phase test:" && sort "$skips"; }
[ "$failed" -eq 0 ] && echo 'all passed' || echo 'FAILED: see the phases above'
exit "$failed"
