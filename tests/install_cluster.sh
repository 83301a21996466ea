#!/usr/bin/env bash
# Have SLURM, munge, Open MPI and shellcheck on this machine, from Debian's packages where they are missing.
# Ends with 3, and a line that says why, where nothing may be installed.
set -euo pipefail

PATH="$PATH:/usr/sbin"
missing=()
for pair in slurmctld:slurm-wlm munged:munge mpirun:openmpi-bin shellcheck:shellcheck; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
if [ "${#missing[@]}" -eq 0 ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "test-cluster does not run: ${missing[*]} missing, and only root on a Debian system may install them here."
    exit 3
fi
export DEBIAN_FRONTEND=noninteractive
# Where services are started upon installation, these are not: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
