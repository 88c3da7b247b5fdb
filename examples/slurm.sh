#!/bin/sh
# A table of videos as an array job of Slurm, a task a row: slurm.sh CSV OUT [VARIABLE=VALUE]... [-- OPTION OF SBATCH]...
#
#   examples/slurm.sh rows.csv /share/videos -- --gres=gpu:1 --time=4:00:00
#
# The nodes see the same folders under the same names and have hv on their PATH. HV_LIMIT: tasks at a time. A task that meets its time
# limit or is preempted gets a signal a minute before: the state of its row goes to the disk, the task back into the queue, and the
# next time it goes on from there.
set -eu
csv=$1 out=$2
shift 2
mk=$(cd "$(dirname "$0")" && pwd)/batch.mk
q() { printf "%s" "$1" | sed "s/'/'\\\\''/g; s/^/'/; s/\$/'/"; }
words="CSV=$(q "$csv") OUT=$(q "$out")"
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    words="$words $(q "$1")"
    shift
done
[ $# = 0 ] || shift

rows=$(eval "make -s -f $(q "$mk") $words ids" | wc -l)
mkdir -p "$out/slurm"
sbatch --array="1-$rows${HV_LIMIT:+%$HV_LIMIT}" --job-name=hv --requeue --open-mode=append --signal=B:TERM@60 --output="$out/slurm/%a.log" "$@" <<SCRIPT
#!/bin/sh
cd $(q "$(pwd)")
make -s -f $(q "$mk") $words "row-\$SLURM_ARRAY_TASK_ID" &
child=\$!
trap 'kill -TERM \$child; wait \$child; scontrol requeue "\$SLURM_ARRAY_JOB_ID"_"\$SLURM_ARRAY_TASK_ID"; exit 143' TERM
wait \$child
SCRIPT
