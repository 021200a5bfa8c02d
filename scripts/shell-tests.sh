#!/bin/sh
# Runs the shell tests (all, or those named, such as `02` or `tests/shell/02-make.sh`) against the built programs.
# Each prints TAP; the last line here is the total. A plan that was not kept, or a bad exit status, counts as a failure.
# A test that takes longer than SHELL_TEST_SECONDS (900) fails: its processes are listed, then they get SIGTERM, at which a test
# unmounts what it has mounted, and SIGKILL after KILL_SECONDS (60) more. SHELL_TESTS is the directory of the tests.

. "$(dirname -- "$0")/lib.sh"
exec </dev/null
export BIN
: "${SHELL_TESTS:=tests/shell}" "${SHELL_TEST_SECONDS:=900}" "${KILL_SECONDS:=60}"

output=$(mktemp)
hanging=$(mktemp)
running=''
trap 'rm -f "$output" "$hanging"' EXIT
trap 'interrupted' INT TERM

interrupted() {
  [ -z "$running" ] || {
    processes "$running"
    { kill -TERM "$running" && wait "$running"; } 2>/dev/null || true
    cat "$output"
  }
  exit 130
}

# processes GROUP: those of a process group and all that they have started, with the kernel function in which they wait.
processes() {
  ps -e --forest -o pid,ppid,pgid,stat,etimes,wchan:24,args | cut -c 1-240 |
    awk -v group="$1" 'NR == 1 || $3 == group || $2 in of_test { of_test[$1]; print "# " $0 }'
}

# watch_over GROUP: lists its processes in the file $hanging shortly before the time limit.
watch_over() {
  look_at=$(($(date +%s) + SHELL_TEST_SECONDS - 2))
  while kill -0 "$1" 2>/dev/null; do
    [ "$(date +%s)" -lt "$look_at" ] || { processes "$1" >"$hanging" && return; }
    sleep 1
  done
}

# run SCRIPT: leaves $status and the file $output.
run() {
  status=0
  : >"$hanging"
  # The shell lets background processes ignore these signals. timeout makes a process group.
  env --default-signal=INT,QUIT timeout --kill-after="$KILL_SECONDS" "$SHELL_TEST_SECONDS" sh "$1" >"$output" 2>&1 &
  running=$!
  watch_over "$running" >/dev/null 2>&1 &
  wait "$running" || status=$?
  running=''
  case $status in
    124 | 137) { echo "# $1 did not end within $SHELL_TEST_SECONDS s; its processes:" && cat "$hanging"; } >>"$output" ;;
  esac
}

passed=0 failed=0 skipped=0
for script in "$SHELL_TESTS"/[0-9]*.sh; do
  wanted=$([ $# -eq 0 ] && echo yes || echo no)
  for name in "$@"; do
    case "/$script" in *"/$name"*) wanted=yes ;; esac
  done
  [ "$wanted" = yes ] || continue
  printf '# %s\n' "$script"
  began=$(date +%s)
  run "$script"
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
