#!/bin/sh
# kill -9 at random moments of a backup, embedded and as a service: no good backup is lost, and no status is false.
soak=$(dirname -- "$0")/../../scripts/soak.sh
exec sh "$soak" kills 12
