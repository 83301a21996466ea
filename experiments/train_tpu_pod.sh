#!/usr/bin/env bash
# Train on all hosts of a Cloud TPU slice; what follows goes to `clipa train`:
#
#   TPU=my-slice ZONE=us-central2-b experiments/train_tpu_pod.sh clipa-v2-h14-84 --run-dir /mnt/shared/runs/h14 \
#       --data.train /mnt/shared/shards --data.tokenizer /mnt/shared/vocab.txt
#
# Each host has this repository in ~/clipa_eqx with `pip install -e ".[tpu]"` done, and sees the run directory and the data
# under the same path (a mounted bucket or disk). The hosts find each other through the slice's metadata. Start it again
# after a host was taken back: the run continues from its last checkpoint.

set -euo pipefail

: "${TPU:?name of the slice}" "${ZONE:?its zone}"

gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
    --command="cd clipa_eqx && clipa train $(printf '%q ' "$@") --processes.coordinator auto"
