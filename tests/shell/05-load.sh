#!/bin/sh
# Full backups of a node that keeps writing, with forks: each is good, and Pact is never ahead.
soak=$(dirname -- "$0")/../../scripts/soak.sh
exec sh "$soak" backups 5
