#!/bin/sh
# The runner of these tests ends a test that hangs: the test fails, its output and its processes are shown, and its mounts are
# removed. A test that does not end at SIGTERM is killed. The other tests still run.
. "$(dirname -- "$0")/lib.sh"

mkdir fake
echo ". '$ROOT/tests/shell/lib.sh'" >fake/head
{ cat fake/head && echo "check 'it is quick' true; end"; } >fake/01-quick.sh
cat fake/head - >fake/02-hangs.sh <<'END'
check 'before it hangs' true
mkdir at && mounts=$DIR/at && mount -t tmpfs tmpfs at 2>/dev/null
echo "$DIR" >"$NOTE"
sleep 4321 &
pids=$!
status 'it hangs in this' 0 sleep 4322
END
# shellcheck disable=SC2016 # the variables of the test
{ cat fake/head && echo 'echo "$DIR" >"$NOTE.3"; trap "" TERM; sh -c "sleep 4323; :"; sleep 4324'; } >fake/03-ignores.sh
cp fake/01-quick.sh fake/04-after.sh

export NOTE="$DIR/note" ROOT
status 'the tests have failed' 1 env SHELL_TESTS="$DIR/fake" SHELL_TEST_SECONDS=5 KILL_SECONDS=2 \
  sh "$ROOT/scripts/shell-tests.sh"
has 'the quick one has passed' out '/01-quick.sh: 1 passed, 0 failed'
has 'what the one that hangs has printed is shown' out 'ok 1 - before it hangs'
has 'it has failed' out '/02-hangs.sh: 1 passed, 1 failed'
has 'the message names the limit' out '/02-hangs.sh did not end within 5 s'
for seconds in 4321 4322 4323; do has "its process $seconds is shown" out "sleep $seconds"; done
check 'no other process is' sh -c "! grep -qE '^# +1 +0 ' out"
has 'the one that ignores SIGTERM has failed' out '/03-ignores.sh: 0 passed, 1 failed'
has 'the one after them has passed' out '/04-after.sh: 1 passed, 0 failed'
is 'the last line is the total' "$(tail -n 1 out)" '3 passed, 2 failed, 0 skipped'
is 'nothing is mounted any more' "$(grep -c " $(cat note)" /proc/self/mounts)" 0
is 'no process is left' "$(ps -e -o args | grep -c '^sleep 432[1-4]$')" 0

# An interrupted run ends the test that runs.
rm -rf "$(cat note)" "$(cat note.3)" && rm note
SHELL_TESTS=$DIR/fake SHELL_TEST_SECONDS=60 sh "$ROOT/scripts/shell-tests.sh" 02 >out 2>&1 </dev/null &
pid=$! pids=$!
tries=0
until [ -s note ] || [ "$tries" -ge 1000 ]; do tries=$((tries + 1)) && sleep 0.01; done
stop TERM
is 'an interrupted run fails' "$got" 130
has 'what hung is shown, too' out 'sleep 4322'
has 'and what it had printed' out 'ok 1 - before it hangs'
is 'nothing is mounted after that' "$(grep -c " $(cat note)" /proc/self/mounts)" 0
is 'no process is left after that' "$(ps -e -o args | grep -c '^sleep 432[1-4]$')" 0
rm -rf "$(cat note)"
end
