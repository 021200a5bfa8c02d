#!/bin/sh
# The page for people: well-formed, without anything from elsewhere, with the running backup, good, failed, damaged and unreadable ones;
# what another program has written in a record is text in it, never markup.
. "$(dirname -- "$0")/lib.sh"

python3 -c '' 2>python.err || { echo "1..0 # SKIP python3 is missing: $(tail -n 1 python.err)" && exit 0; }

# page [PATH]: gets it into `body`, and its text into `text`; leaves in $faults what is wrong with it as a document.
page() {
  http GET "${1:-/}"
  faults=$(python3 - <<'END'
from html.parser import HTMLParser
VOID = {"meta", "br", "link"}
OPTIONAL = {"td", "th", "tr"}  # their ends may be left out
class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.faults, self.text, self.skip = [], [], [], False
    def handle_starttag(self, tag, attributes):
        if tag in ("script", "link", "img", "iframe", "form", "a"):
            self.faults.append("a tag " + tag)
        for name, value in attributes:
            if name in ("src", "href") or name.startswith("on"):
                self.faults.append("an attribute " + name)
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)
    def handle_endtag(self, tag):
        if tag in VOID | OPTIONAL:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append("an end of " + tag)
    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)
page = Page()
page.feed(open("body", encoding="utf-8").read())
page.close()
open("text", "w").write(" ".join(" ".join(page.text).split()))
print("; ".join(page.faults + ["not closed: " + tag for tag in page.open]))
END
)
}

node db
start serve.log chainweb-backup serve --database-directory db --enable-backup-api --node-version '<b>2'
page
is 'the page' "$code $faults" '200 '
has 'its type' head 'text/html;charset=utf-8'
has 'nothing from elsewhere may be loaded' head "default-src 'none'"
has 'there is no backup' text 'There is none yet'
page /status-page
is 'the same at /status-page' "$code $faults" '200 '
http POST /
is 'it takes no POST' "$code" 405
http GET '/?x=1'
is 'it has no parameters' "$code" 400

backup '?backupPact'
good=$id
page
is 'with a backup' "$code $faults" '200 '
has 'the backup' text "$good"
has 'that it is good' text backup-done
has 'how a node starts from it' text 'blocks to replay'
has 'that it was never restored' text 'never: drill latest'
backup
strange=$id
python3 - "db/backups/$strange" <<'END'
import json, sys
path = sys.argv[1] + "/backup.json"
record = json.load(open(path))
record["warnings"] = ["<script>alert('x')</script>", "\x1b[2J" + "&" * 5000]
record["reason"] = "<img src=x onerror=alert(1)>"
json.dump(record, open(path, "w"))
open(sys.argv[1] + "/status", "w").write("backup-failed")
END
mkdir db/backups/1600000000 && printf backup-done >db/backups/1600000000/status
backup
printf rubbish >"db/backups/$id/status"
page
is 'with strange records' "$code $faults" '200 '
has 'the foreign one' text 'made by another program'
has 'an unreadable one' text "$id unreadable"
has 'a reason is text' text '<img src=x onerror=alert(1)>'
check 'the page is not large' [ "$(wc -c <body)" -lt 30000 ]
stop TERM

start serve.log chainweb-backup serve --database-directory db --enable-backup-api --limit-bytes-per-second 100000 --backup-directory "${SHM:-slow}"
http POST '/make-backup?backupPact'
id=$(cat body)
sleep 0.5
page
is 'while a backup is made' "$code $faults" '200 '
has 'the running one' text "Running: $id"
stop TERM
start serve.log chainweb-backup serve --database-directory db
page
is 'with the API off there is no page' "$code" 404
stop TERM
end
