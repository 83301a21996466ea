#!/usr/bin/env bash
# Train on the GPUs of several nodes under SLURM, one process per GPU; what follows the script's name goes to `clipa train`:
#
#   sbatch --nodes=4 experiments/train_slurm.sh clipa-v2-h14-84 --run-dir /shared/runs/h14 \
#       --data.train /shared/shards --data.tokenizer /shared/vocab.txt --set shard=all
#
# The run directory and the data lie where every node sees them. The processes find each other through SLURM's
# variables. Three minutes before the time limit, or when the nodes are taken back, SLURM sends SIGTERM: the run saves a
# checkpoint, ends with 143, and the job queues itself again, to continue from there, on another number of nodes too.

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

srun clipa train "$@" --processes.coordinator auto
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
