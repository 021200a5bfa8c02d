#!/bin/sh
# Installs the program for the whole host: the program itself, completions, man pages, a configuration file, two systemd units (the
# service, and a socket that is not enabled), and the user as whom it runs. It prints each step. A second run brings what is there up to date.
#
#   scripts/install.sh [OPTION...]
#     --binary FILE              the program [the one that the other scripts build]
#     --prefix DIR               where programs are [/usr/local]
#     --user NAME                the node's user; made if it does not exist [chainweb]
#     --database-directory DIR   of the node, for a new configuration file [/var/lib/chainweb-node/mainnet01]
#     --backup-directory DIR     the same [/backup]
#     --root DIR                 install below DIR, for a package or an image: no user is made, and systemd is not told
#     --dry-run                  print the steps, do nothing
#     --undo                     remove what a run with the same --prefix and --root has installed, but no file that was changed since
#
# What was installed stands in PREFIX/share/chainweb-backup/installed, a line of b2sum for each file, with its path without the DIR of
# --root: so what is below DIR can be moved to its place, and --undo works there. A file that is not in that list, or was changed since,
# is never replaced or removed, except the program: a new configuration or unit is then put beside it, as FILE.new.
# Backups, databases and users are never removed.
# Exit status: 0 done, 1 something failed, 2 wrong usage.

set -eu
ROOT_OF_SOURCE=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
NAME=chainweb-backup
binary='' prefix=/usr/local user=chainweb databases=/var/lib/chainweb-node/mainnet01 backups=/backup root='' dry='' undo=''

wrong() {
  printf '%s: %s\n' "$0" "$*" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    --undo) undo=yes ;;
    --binary | --prefix | --user | --database-directory | --backup-directory | --root)
      [ $# -ge 2 ] || wrong "$1 needs a value"
      case $2 in -*) wrong "$1 needs a value, not $2" ;; esac
      case $1 in
        --binary) binary=$2 ;;
        --prefix) prefix=$2 ;;
        --user) user=$2 ;;
        --database-directory) databases=$2 ;;
        --backup-directory) backups=$2 ;;
        --root) root=$2 ;;
      esac
      shift
      ;;
    -h | --help)
      sed -n 's/^# \{0,1\}//; 2,/^$/p' "$0"
      exit 0
      ;;
    *) wrong "unknown option $1 (--help lists them)" ;;
  esac
  shift
done
for path in "$prefix" "$databases" "$backups" ${root:+"$root"}; do
  case $path in
    /*) ;;
    *) wrong "$path is not an absolute path" ;;
  esac
  case $path in *[!-A-Za-z0-9_./+:@,=]*) wrong "$path has characters that a systemd unit or a configuration file would have to quote" ;; esac
done
prefix=${prefix%/} root=${root%/}
case $user in '' | *[!-a-z0-9_]*) wrong "$user is not the name of a user" ;; esac

list=$root$prefix/share/$NAME/installed
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT TERM

# step SENTENCE: prints what is done, or would be.
step() {
  printf '%s%s\n' "${dry:+would }" "$*"
}

# is_ours PATH: whether the file at this path, below the root, is as an earlier run has left it.
is_ours() {
  [ -f "$list" ] && [ -f "$root$1" ] && grep -qxF "$(b2sum <"$root$1" | cut -d ' ' -f 1)  $1" "$list"
}

# note PATH: puts the file into the list.
note() {
  [ -z "$dry" ] || return 0
  mkdir -p "$(dirname "$list")"
  { [ ! -f "$list" ] || awk -v path="$1" 'substr($0, 131) != path' "$list"; } >"$list.tmp"
  printf '%s  %s\n' "$(b2sum <"$root$1" | cut -d ' ' -f 1)" "$1" >>"$list.tmp"
  mv "$list.tmp" "$list"
}

# put FROM TO MODE [always]: installs a file in one step.
put() {
  path=$2 to=$root$2
  if [ -f "$to" ] && cmp -s "$1" "$to"; then
    step "leave $to, which is up to date"
    return 0
  fi
  if [ -e "$to" ] && [ "${4:-}" != always ] && ! is_ours "$path"; then
    if [ -f "$to.new" ] && cmp -s "$1" "$to.new"; then
      step "leave $to, which was changed; the new one is $to.new already"
      return 0
    fi
    step "leave $to, which was changed, and put the new one beside it: $to.new"
    path=$path.new to=$to.new
  else
    step "install $to"
  fi
  [ -n "$dry" ] && return 0
  mkdir -p "$(dirname "$to")"
  cp "$1" "$to.tmp"
  chmod "$3" "$to.tmp"
  mv "$to.tmp" "$to"
  note "$path"
}

tell_systemd() {
  [ -z "$root" ] && [ -d /run/systemd/system ] || return 0
  step "run systemctl $*"
  [ -n "$dry" ] || systemctl "$@"
}

remove_all() {
  [ -f "$list" ] || { echo "nothing to undo: there is no $list" && return 0; }
  for kind in socket service; do
    ! is_ours "/etc/systemd/system/$NAME.$kind" || tell_systemd disable --now "$NAME.$kind" || echo "systemctl failed: is the $kind still running?" >&2
  done
  # The path is what follows the sum and two blanks.
  cut -c 131- "$list" >"$new/files"
  while read -r path; do
    file=$root$path
    if [ ! -e "$file" ]; then
      step "leave $file, which is gone already"
    elif is_ours "$path"; then
      step "remove $file"
      [ -n "$dry" ] || rm -f "$file"
    else
      step "leave $file, which was changed"
    fi
  done <"$new/files"
  step "remove $list"
  [ -n "$dry" ] || { rm -f "$list" && rmdir "$(dirname "$list")" "$root/etc/$NAME" 2>/dev/null || :; }
  tell_systemd daemon-reload
  echo "backups, databases and the user $user are not touched"
}

install_all() {
  : "${binary:=${BIN:-${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/$NAME}/release}/$NAME}"
  [ -x "$binary" ] || wrong "there is no program $binary: build it (README, Install), or name it with --binary FILE"
  "$binary" --version >"$new/version" || wrong "$binary does not run here"
  step "install $(cat "$new/version")"
  if [ -z "$root" ] && ! id "$user" >/dev/null 2>&1; then
    step "make the system user $user"
    [ -n "$dry" ] || useradd --system --user-group --no-create-home --shell /usr/sbin/nologin "$user"
  fi
  put "$binary" "$prefix/bin/$NAME" 755 always
  for shell in bash zsh fish; do "$binary" completions "$shell" >"$new/$shell"; done
  put "$new/bash" "$prefix/share/bash-completion/completions/$NAME" 644
  put "$new/zsh" "$prefix/share/zsh/site-functions/_$NAME" 644
  put "$new/fish" "$prefix/share/fish/vendor_completions.d/$NAME.fish" 644
  "$binary" man >"$new/page"
  put "$new/page" "$prefix/share/man/man1/$NAME.1" 644
  "$binary" --help | awk '/^Commands:/ { inside = 1; next } /^[^ ]/ { inside = 0 } inside && /^  [a-z]/ { print $1 }' >"$new/commands"
  while read -r command; do
    "$binary" man "$command" >"$new/page"
    put "$new/page" "$prefix/share/man/man1/$NAME-$command.1" 644
  done <"$new/commands"
  cat >"$new/config.yaml" <<END
# What chainweb-backup does on this host: '$NAME help configuration' explains each key. The node's own file can be named beside it.
databaseDirectory: $databases
backup:
  directory: $backups
  api:
    enabled: true
END
  put "$new/config.yaml" "/etc/$NAME/config.yaml" 644
  for kind in service socket; do
    sed "s|@PROGRAM@|$prefix/bin/$NAME|; s|@USER@|$user|; s|@CONFIG@|/etc/$NAME/config.yaml|; s|@BACKUPS@|$backups|; 1d" \
      "$ROOT_OF_SOURCE/scripts/systemd/$NAME.$kind" >"$new/unit"
    put "$new/unit" "/etc/systemd/system/$NAME.$kind" 644
  done
  tell_systemd daemon-reload
  [ -z "$dry" ] || return 0
  cat <<END

Next: look at /etc/$NAME/config.yaml, then
  sudo -u $user $prefix/bin/$NAME doctor --config-file /etc/$NAME/config.yaml
  sudo systemctl enable --now $NAME.service
END
}

if [ -n "$undo" ]; then remove_all; else install_all; fi
