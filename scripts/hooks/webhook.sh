#!/bin/sh
# Posts the record of a backup as JSON to an address; for every event of chainweb-backup.
#
#   webhook.sh URL|@FILE [OPTION OF CURL...]
#
# @FILE is a file whose first line is the URL: use it if the URL is a secret, because the command is kept in the record and the list of
# processes shows it. Options are for example `--config FILE` for a header with a token (header = "Authorization: Bearer …").
#
# The request is a POST with the JSON that the hook gets, and the headers X-Chainweb-Backup-Event, -Id and -Status. It is repeated
# if the server does not answer, or answers 408, 429 or 5xx: three times within three minutes. Any answer but 2xx is a failure.
set -eu

fail() {
  printf 'webhook.sh: %s\n' "$*" >&2
  exit 1
}

[ $# -ge 1 ] || { echo 'usage: webhook.sh URL|@FILE [OPTION OF CURL...]' >&2 && exit 2; }
url=$1
shift
case $url in
  @*)
    file=${url#@} url=''
    [ -r "$file" ] || fail "cannot read the URL from $file"
    read -r url <"$file" || [ -n "$url" ] || fail "there is no URL in $file"
    ;;
esac
case $url in
  *[\"\\[:space:]]*) fail 'the URL has a quote, a backslash or a space' ;;
  http://* | https://*) ;;
  *) fail 'the URL must begin with http:// or https://' ;;
esac
[ -n "${CHAINWEB_BACKUP_EVENT:-}" ] || fail 'CHAINWEB_BACKUP_EVENT is missing: this is a hook of chainweb-backup'
command -v curl >/dev/null || fail 'curl is not installed'

body=$(mktemp)
trap 'rm -f "$body"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$body"
printf 'url = "%s"\n' "$url" |
  curl --silent --show-error --fail --output /dev/null --max-time 60 --connect-timeout 20 \
    --retry 3 --retry-connrefused --retry-max-time 180 \
    --header 'Content-Type: application/json' --header "X-Chainweb-Backup-Event: $CHAINWEB_BACKUP_EVENT" \
    --header "X-Chainweb-Backup-Id: ${CHAINWEB_BACKUP_ID:-}" --header "X-Chainweb-Backup-Status: ${CHAINWEB_BACKUP_STATUS:-}" \
    --data-binary "@$body" "$@" --config - || fail 'the address did not take the message'
echo 'the address took the message'
