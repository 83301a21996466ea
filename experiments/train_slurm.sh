#!/usr/bin/env bash
# Train on the GPUs of several nodes under SLURM, one process per GPU; what follows the script's name goes to `clipa train`:
#
#   sbatch --nodes=4 experiments/train_slurm.sh clipa-v2-h14-84 --run-dir /shared/runs/h14 \
#       --data.train /shared/shards --data.tokenizer /shared/vocab.txt --set shard=all
#
# The run directory lies where every node sees it; data may lie on each node, under other paths too. The processes find
# each other through SLURM's variables. Three minutes before the time limit, or when the nodes are taken back, SLURM
# sends SIGTERM: the run saves a checkpoint, ends with 143, and the job queues itself again, to continue from there, on
# another number of nodes too. SIGUSR1 does the same. `scancel JOB` saves and does not queue it again.
#
# On a cluster without GPUs, one process per node:
#
#   sbatch --nodes=4 --gpus-per-node=0 --ntasks-per-node=1 --cpus-per-task=64 experiments/train_slurm.sh ...

#SBATCH --job-name=clipa
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail

for command in srun scancel scontrol clipa; do
    if ! command -v "$command" >/dev/null; then
        echo "train_slurm.sh: $command is not found here; submit this script with sbatch, on a cluster with SLURM, from a" \
            "shell in which clipa is installed" >&2
        exit 1
    fi
done
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "train_slurm.sh: this is no SLURM job; submit it: sbatch $0 RECIPE --run-dir DIR ..." >&2
    exit 1
fi

# To all tasks, and not to this script. srun itself would kill them upon SIGTERM.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM USR1

# A task that fails takes the others along a minute after it: what they are saving is whole by then.
srun --kill-on-bad-exit=0 --wait=60 clipa train "$@" --processes.coordinator auto &
srun=$!
wait "$srun"
code=$?
# A signal ends the wait, not srun.
while kill -0 "$srun" 2>/dev/null; do
    wait "$srun"
    code=$?
done

state=$(scontrol --oneliner show job "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z]*')
if [ "$code" -eq 143 ] && [ "$state" = JobState=RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
