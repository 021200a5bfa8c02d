#!/bin/sh
# The page for people: well-formed, without anything from elsewhere, with the running backup, good, failed, damaged and unreadable ones;
# what another program has written in a record is text in it, never markup. A browser lays it out in several widths.
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
unreadable=$id
backup
truncate -s 100 "db/backups/$good/0/sqlite/pact-v1-chain-0.sqlite"
chainweb-backup verify --backup-directory db/backups "$good" >out 2>err
page
is 'with strange records' "$code $faults" '200 '
has 'a damaged one' text 'backup-done, damaged'
is 'each is in its place' "$(grep -o 'data-name="Backup"><code>[0-9]*' body | tr -dc '0-9\n' | tr '\n' ' ')" "$id $unreadable 1600000000 $strange $good "
has 'the foreign one' text 'made by another program'
has 'an unreadable one' text "$unreadable unreadable"
has 'a reason is text' text '<img src=x onerror=alert(1)>'
check 'the page is not large' [ "$(wc -c <body)" -lt 30000 ]

# laid_out: shows the page in `body` in frames of several widths. Of each that is not as it should be: its width, what is wrong.
laid_out() {
  python3 - <<'END'
import html
page = html.escape(open("body", encoding="utf-8").read())
script = """
addEventListener("load", () => {
  const wrong = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    const say = text => wrong.push(frame.width + ": " + text);
    if (page.documentElement.scrollWidth > frame.width) say("it is " + page.documentElement.scrollWidth + " wide");
    for (const id of page.querySelectorAll("td code")) {
      const text = page.createRange();
      text.selectNodeContents(id);
      if (text.getClientRects().length > 1) say("broken: " + id.textContent);
    }
    for (const cell of page.querySelectorAll("td"))
      if (frame.width < 1000 && cell.offsetHeight > 0 && !cell.textContent.trim()) say("a line without a value: " + cell.dataset.name);
    if (!page.querySelector("td code")) say("no backups");
  }
  document.body.textContent = "wrong=" + (wrong.join("; ") || "nothing") + "=";
});
"""
frames = "".join(f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{page}"></iframe>' for width in (320, 360, 700, 1100, 1400))
open("frames.html", "w", encoding="utf-8").write(f"<!doctype html><meta charset=utf-8><body>{frames}<script>{script}</script>")
END
  profile=$(mktemp -d "$DIR/profile.XXXXXX")
  timeout 120 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --user-data-dir="$profile" --dump-dom "file://$DIR/frames.html" >dom 2>chromium.log </dev/null
  sed -n 's/.*wrong=\(.*\)=.*/\1/p' dom
}
if command -v chromium >/dev/null; then
  is 'at no width does it scroll to the side, break an identifier or have empty lines' "$(laid_out)" nothing
else
  skip 'its layout' 'there is no chromium'
fi
stop TERM

start serve.log chainweb-backup serve --database-directory db --enable-backup-api --limit-bytes-per-second 100000 --backup-directory "${SHM:-slow}"
http POST '/make-backup?backupPact'
id=$(cat body)
sleep 0.5
page
is 'while a backup is made' "$code $faults" '200 '
has 'the running one' text "Running: $id"
check 'no backup is scheduled' sh -c '! grep "Next scheduled" text'
stop TERM
start serve.log chainweb-backup serve --database-directory db --enable-backup-api --backup-directory scheduled --every 3h --backup-pact
tries=0
until page && grep -q 'Next scheduled backup in' text || [ "$tries" -ge 300 ]; do tries=$((tries + 1)) && sleep 0.02; done
check 'the next scheduled backup' grep -q 'Next scheduled backup in [0-9]* [a-z]*, rocksdb,pact' text
stop TERM
start serve.log chainweb-backup serve --database-directory db
page
is 'with the API off there is no page' "$code" 404
stop TERM
end
