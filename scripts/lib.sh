# Sourced by the scripts beside it: where things are, what must be installed, how long each phase took. POSIX sh.
# A script that sources this has $ROOT (the checkout, also the current directory), $CARGO_TARGET_DIR and $BIN.

set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$ROOT"
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/chainweb-backup}"
export CARGO_TARGET_DIR
: "${BIN:=$CARGO_TARGET_DIR/release}"
RUST_MINOR_MIN=89 # rusqlite 0.41

# refuse SENTENCE: this machine lacks something that we do not install ourselves.
refuse() {
  printf '%s\n' "$*" >&2
  exit 2
}

# phase NAME COMMAND...: runs it and says how long it took, also in $SUMMARY; the status is the command's.
# The shell ignores `set -e` in COMMAND where the phase is part of a condition: it must be a single command then.
SUMMARY=''
phase() {
  phase_begin "$1"
  shift
  phase_status=0
  "$@" || phase_status=$?
  phase_end "$phase_status"
  return "$phase_status"
}

phase_begin() {
  phase_name=$1
  phase_began=$(date +%s)
  printf '\n== %s\n' "$phase_name"
}

phase_end() {
  verdict=ok
  [ "$1" -eq 0 ] || verdict="FAILED ($1)"
  line=$(printf 'phase %-11s %5d s  %s' "$phase_name" "$(($(date +%s) - phase_began))" "$verdict")
  printf '%s\n' "$line"
  SUMMARY="$SUMMARY$line
"
}

require_rust() {
  # A rustup that was installed a moment ago is not yet in the PATH of this shell.
  command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
  remedy="install the current one with rustup (https://rustup.rs), or run 'rustup update stable', then run this again"
  version=$(cargo --version 2>/dev/null && rustc --version 2>/dev/null) || version=''
  [ -n "$version" ] || refuse "this needs cargo with Rust 1.$RUST_MINOR_MIN or newer, and there is none: $remedy"
  for found in $(printf '%s\n' "$version" | awk '{ print $2 }'); do
    minor=${found#*.}
    minor=${minor%%.*}
    [ "${found%%.*}" -gt 1 ] || [ "$minor" -ge "$RUST_MINOR_MIN" ] ||
      refuse "this needs Rust 1.$RUST_MINOR_MIN or newer, and this is $found: $remedy"
  done
}

has() {
  command -v "$1" >/dev/null 2>&1
}

# The library and the compiler's own headers, which bindgen reads RocksDB's header with.
has_libclang() {
  [ -z "${LIBCLANG_PATH:-}" ] || return 0
  find /usr/lib* /usr/local/lib* -name 'libclang*.so*' 2>/dev/null | grep -q . &&
    find /usr/lib* /usr/local/lib* -path '*/clang/*/include/stddef.h' 2>/dev/null | grep -q .
}

# The system's RocksDB and what it needs, to compile a program that uses it.
has_librocksdb() {
  for header in rocksdb/db.h zlib.h; do
    find /usr/include /usr/local/include -path "*/$header" 2>/dev/null | grep -q . || return 1
  done
}

# require_packages demo|build|test: installs with apt what is missing, and nothing else.
require_packages() {
  missing=''
  { has cc && has c++; } || missing="$missing build-essential"
  has curl || missing="$missing curl"
  [ "$1" = demo ] || has_libclang || missing="$missing libclang-dev"
  if [ "$1" != build ]; then
    has sqlite3 || missing="$missing sqlite3"
    has_librocksdb || missing="$missing librocksdb-dev zlib1g-dev"
  fi
  if [ "$1" = test ]; then
    { has ldb && has sst_dump && has db_bench; } || missing="$missing rocksdb-tools"
    { has mkfs.xfs && has xfs_io; } || missing="$missing xfsprogs"
    has mkfs.ext4 || missing="$missing e2fsprogs"
    has mkfs.btrfs || missing="$missing btrfs-progs"
    has strace || missing="$missing strace"
    has rsync || missing="$missing rsync"
    has ps || missing="$missing procps"
    has restic || missing="$missing restic"
    has rclone || missing="$missing rclone"
    has openssl || missing="$missing openssl"
  fi
  # shellcheck disable=SC2086 # one word per package
  [ -z "$missing" ] || install_packages $missing
  [ "$1" = test ] || return 0
  unpack_service prometheus usr/bin/promtool
  unpack_service nginx usr/sbin/nginx
  unpack_service caddy usr/bin/caddy
}

# unpack_service PACKAGE PROGRAM: a program for a test, of a Debian package that is unpacked into $CARGO_TARGET_DIR/tools/PACKAGE, and not
# installed, because installing it starts a service. Without it that test leaves checks out, and says so.
unpack_service() {
  tool=$CARGO_TARGET_DIR/tools/$1
  { has "${2##*/}" || [ -x "$tool/$2" ]; } && return
  has apt-get && has dpkg-deb || return 0
  echo "unpacking Debian's package $1 into $tool"
  rm -rf "$tool.new"
  mkdir -p "$tool.new" && (cd "$tool.new" && apt-get -q download "$1" && dpkg-deb -x "$1"_*.deb . && rm "$1"_*.deb) &&
    rm -rf "$tool" && mv "$tool.new" "$tool" || echo "there is no package $1: what needs it is not tested"
}

# install_packages PACKAGE...: with apt, as root or by sudo.
install_packages() {
  missing="$*"
  has apt-get || refuse "please install what these Debian packages hold, then run this again (there is no apt-get here): $missing"
  as_root=''
  if [ "$(id -u)" -ne 0 ]; then
    has sudo || refuse "please run this as root once, then again (there is no sudo here): apt-get install $missing"
    as_root=sudo
  fi
  echo "installing, with ${as_root:+$as_root }apt-get: $missing"
  # shellcheck disable=SC2086 # one word per package
  { $as_root apt-get -q update && $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install $missing; } ||
    refuse "apt-get could not install $missing: install what these packages hold by hand, then run this again"
}

require_demo() {
  require_rust
  require_packages demo
}

require_build() {
  require_rust
  require_packages build
}

require_test() {
  require_rust
  require_packages test
}

# The program without RocksDB, beside the full one.
build_slim() {
  forget_other_checkout || return
  cargo build --release --locked --no-default-features --bins || return
  mkdir -p "$BIN/slim"
  cp -f "$BIN/chainweb-backup" "$BIN/slim/chainweb-backup"
}

# Cargo tells what is fresh by times alone: of another checkout's build, what is newer than these files passes for theirs.
forget_other_checkout() {
  of=$CARGO_TARGET_DIR/checkout
  [ "$(cat "$of" 2>/dev/null)" = "$ROOT" ] || cargo clean --quiet --release --locked -p chainweb-backup || return
  mkdir -p "$CARGO_TARGET_DIR"
  printf '%s\n' "$ROOT" >"$of"
}

build() {
  [ -d "$BIN" ] || echo "the first build compiles RocksDB: about 25 minutes on two idle cores; it is kept in $CARGO_TARGET_DIR"
  forget_other_checkout || return
  cargo build --release --locked --bins
}
