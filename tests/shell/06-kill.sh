#!/bin/sh
# kill -9 at random moments of a backup, embedded and daemon: nothing is lost, nothing is false.
soak=$(dirname -- "$0")/../../scripts/soak.sh
exec sh "$soak" kills 12
