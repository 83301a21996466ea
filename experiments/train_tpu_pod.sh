#!/usr/bin/env bash
# Train on all hosts of a Cloud TPU slice; what follows goes to `clipa train`:
#
#   TPU=my-slice ZONE=us-central2-b experiments/train_tpu_pod.sh clipa-v2-h14-84 --run-dir /mnt/shared/runs/h14 \
#       --data.train /mnt/shared/shards --data.tokenizer /mnt/shared/vocab.txt
#
# Each host has this repository in ~/clipa_eqx with `pip install -e ".[tpu]"` done, and sees the run directory under the
# same path (a mounted bucket or disk). The hosts find each other through the slice's metadata. Start it again after a
# host was taken back: the run continues from its last checkpoint.

set -euo pipefail

if [ "$#" -eq 0 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
    echo "usage: TPU=NAME_OF_SLICE ZONE=ITS_ZONE $0 RECIPE --run-dir DIR --data.train SHARDS --data.tokenizer FILE ..." >&2
    exit 2
fi
if ! command -v gcloud >/dev/null; then
    echo "$0: gcloud is not found here; install the Google Cloud CLI" >&2
    exit 1
fi

arguments=$(printf '%q ' "$@")
gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
    --command="cd clipa_eqx && clipa train $arguments --processes.coordinator auto"
