#!/bin/sh
# Runs the shell tests (all, or those named, such as `02` or `tests/shell/02-make.sh`) against the built programs.
# Each prints TAP; the last line here is the total. A plan that was not kept, or a bad exit status, counts as a failure.

. "$(dirname -- "$0")/lib.sh"
exec </dev/null
export BIN

output=$(mktemp)
trap 'rm -f "$output"' EXIT
passed=0 failed=0 skipped=0
for script in tests/shell/[0-9]*.sh; do
  wanted=$([ $# -eq 0 ] && echo yes || echo no)
  for name in "$@"; do
    case "/$script" in *"/$name"*) wanted=yes ;; esac
  done
  [ "$wanted" = yes ] || continue
  printf '# %s\n' "$script"
  began=$(date +%s)
  status=0
  sh "$script" >"$output" 2>&1 || status=$?
  cat "$output"
  counts=$(awk '
    /^1\.\.[0-9]+/ { split($1, plan, /\.\./); planned = plan[2]; all_skipped = /# [Ss][Kk][Ii][Pp]/ }
    /^ok .*# [Ss][Kk][Ii][Pp]/ { skipped++; next }
    /^ok / { passed++ }
    /^not ok / { failed++ }
    END {
      if (all_skipped) skipped++
      if (planned == "" || planned != passed + failed + skipped - all_skipped) failed++
      print passed + 0, failed + 0, skipped + 0
    }' "$output")
  read -r p f s <<END
$counts
END
  [ "$status" -eq 0 ] || [ "$f" -gt 0 ] || f=1
  printf '# %s: %d passed, %d failed, %d skipped, %d s\n' "$script" "$p" "$f" "$s" "$(($(date +%s) - began))"
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
