#!/bin/sh
# Sends a mail about a backup with sendmail; for `afterFailure` of chainweb-backup, or any other event.
#
#   mail.sh ADDRESS...
#
# sendmail is the program of that name which postfix, exim, msmtp, nullmailer and others install. The mail names the host, the backup,
# what happened, why, and the commands that tell more; the whole record is in it as JSON.
set -eu

fail() {
  printf 'mail.sh: %s\n' "$*" >&2
  exit 1
}

[ $# -ge 1 ] || { echo 'usage: mail.sh ADDRESS...' >&2 && exit 2; }
for address in "$@"; do
  case $address in
    -* | *[!A-Za-z0-9@._+=%-]* | '') echo "mail.sh: '$address' is no address" >&2 && exit 2 ;;
  esac
done
event=${CHAINWEB_BACKUP_EVENT:-} id=${CHAINWEB_BACKUP_ID:-} directory=${CHAINWEB_BACKUP_DIRECTORY:-}
[ -n "${event:+$id}" ] || fail 'CHAINWEB_BACKUP_EVENT is missing: this is a hook of chainweb-backup'
PATH=$PATH:/usr/sbin:/usr/lib
command -v sendmail >/dev/null || fail 'there is no sendmail: install msmtp-mta, nullmailer or postfix'

case $event in
  after-failure) what=FAILED ;;
  after-success) what='done' ;;
  on-verified) if [ "${CHAINWEB_BACKUP_FAULTS:-0}" -eq 0 ]; then what=verified; else what=DAMAGED; fi ;;
  *) what=$event ;;
esac
host=$(uname -n)
# Of the record nothing gets into the headers.
to=$(printf '%s, ' "$@")
{
  printf 'To: %s\nSubject: [chainweb-backup] %s: backup %s %s\n' "${to%, }" "$host" "$id" "$what"
  printf 'Auto-Submitted: auto-generated\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n'
  printf 'Backup %s of %s: %s (%s, %s).\n' "$id" "$host" "$what" "${CHAINWEB_BACKUP_SCOPE:-}" "${CHAINWEB_BACKUP_STATUS:-}"
  [ -z "${CHAINWEB_BACKUP_REASON:-}" ] || printf 'Reason: %s\n' "$CHAINWEB_BACKUP_REASON"
  printf '\nOn that host:\n  chainweb-backup list --backup-directory %s\n  chainweb-backup check --backup-directory %s %s\n' \
    "$directory" "$directory" "$id"
  printf '\nThe record:\n'
  # A line of a mail has at most 998 bytes.
  fold -b -w 900
  printf '\n'
} | timeout --foreground 120 sendmail -i -- "$@" || fail 'sendmail did not take the mail'
echo "sendmail took a mail for $# addresses"
