#!/bin/sh
# For a CI runner's image: run it at the start, as the user of the jobs, with the artifacts that pipelines ask for.
#
#   ci-warm-up.sh models:/resnet@champion runs:/0123456789abcdef0123456789abcdef/dataset
#
# What is held already costs a question to the tracking server. Where that does not answer, what was fetched before is what
# pipelines get (they are told: `stale`), and the runner starts all the same.
set -u
seconds="${WARM_UP_SECONDS:-600}" wait_seconds="${WARM_UP_WAIT_SECONDS:-30}"

# The daemon may be starting beside this.
tries=0
until artifactcache ping >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt "$wait_seconds" ] || { echo "ci-warm-up: no daemon answers; jobs download by themselves" >&2; exit 0; }
    sleep 1
done
for uri in "$@"; do
    artifactcache warm --timeout "$seconds" "$uri" || echo "ci-warm-up: $uri is not here, jobs ask for it" >&2
done
