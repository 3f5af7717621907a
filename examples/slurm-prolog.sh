#!/bin/sh
# For Prolog= of slurm.conf, which runs it as root on each node before a job's first step. A job says what it needs:
#
#   sbatch --comment='artifactcache:models:/resnet@champion,runs:/0123456789abcdef0123456789abcdef/dataset' train.sh
#
# Each is fetched as the job's user, whose access rules count, and in the background: the job's own fetch joins a download
# that is under way. A prolog that fails drains the node, so this one never does.
set -u
case "${SLURM_JOB_COMMENT:-}" in
artifactcache:*) wanted="${SLURM_JOB_COMMENT#artifactcache:}" ;;
*) exit 0 ;;
esac
[ -n "${SLURM_JOB_USER:-}" ] || exit 0

old_ifs="$IFS"
IFS=,
for uri in $wanted; do
    # setsid: Slurm ends what is left of a prolog's process group when the prolog has ended.
    setsid setpriv --reuid="$SLURM_JOB_USER" --regid="$(id -g "$SLURM_JOB_USER")" --init-groups \
        artifactcache warm "$uri" </dev/null >/dev/null 2>&1 &
done
IFS="$old_ifs"
exit 0
