#!/usr/bin/env bash
# A worker process of one pool that ends well: bash infra/worker.sh POOL [NAME]
#
# Prefect's worker, asked to end, leaves its flow runs behind: on a machine or container that goes away they would
# stand as running until the zombie automation finds them. Here SIGTERM goes to the flow runs first: each has its
# stage stop after a step with a checkpoint and says that it crashed, so that its place is free at once.
set -euo pipefail
pool=${1:?usage: bash infra/worker.sh POOL [NAME]}
. "$(dirname "$0")/python.sh"
need_server
if [ "$pool" = workspace ] && [ -z "${PREFLOOP_WORKSPACE:-}" ]; then
    export PREFLOOP_WORKSPACE=$PWD
    [ -e dvc.yaml ] || { echo "worker.sh: PREFLOOP_WORKSPACE names no clone, and $PWD is none" >&2; exit 2; }
fi
export PREFECT_WORKER_QUERY_SECONDS=${PREFECT_WORKER_QUERY_SECONDS:-2} # Prefect waits up to 10 before each stage
# What an attempt that was killed with this worker had told MLflow, and nobody delivered.
if compgen -G "${PREFLOOP_WORKER_FOLDER:-${HOME:-}/.prefloop/workers}/*/*/.prefloop/spool/*.jsonl" > /dev/null; then
    "$PYTHON" -m flows.workers.deliveries || true
fi
"$PYTHON" -m prefect worker start --pool "$pool" --type process --limit 1 ${2:+--name "$2"} &
worker=$!

leave() {
    trap '' TERM INT
    pkill -TERM -P "$worker" || true
    for _ in $(seq 90); do
        pgrep -P "$worker" >/dev/null || break
        sleep 1
    done
    kill -TERM "$worker" 2>/dev/null || true
    wait "$worker" || true
    exit 0
}
trap leave TERM INT
wait "$worker"
