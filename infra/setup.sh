#!/usr/bin/env bash
# Makes what a Prefect server needs for prefloop: work pools, the deployments of prefect.yaml, the automations.
# Run it again at any time, after an upgrade for example: what is there already stays or is brought up to date.
#
#   PREFECT_API_URL=http://127.0.0.1:4200/api bash infra/setup.sh
#
# PREFLOOP_POOL_GPUS="gpu=4 big=8": how many GPUs the workers of these pools have (docs/resources.md).
# PREFLOOP_WEBHOOK_URL or PREFLOOP_WEBHOOK_URL_FILE: where failed runs are told (docs/operations.md).
# PREFLOOP_WORKSPACES: how many workers, each with a workspace of its own, share the pool `workspace`; 1 if unset.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PREFECT_API_URL:?set it to the API of the Prefect server, http://127.0.0.1:4200/api for example}"
python=${PYTHON:-python}
workspaces=${PREFLOOP_WORKSPACES:-1}
case "$workspaces" in
    *[!0-9]* | 0*) echo "PREFLOOP_WORKSPACES is a number from 1, not $workspaces" >&2; exit 2 ;;
esac

pool() {  # NAME: a pool of worker processes; one that is there stays as it is, a Kubernetes pool too
    "$python" -m prefect --no-prompt work-pool inspect "$1" >/dev/null 2>&1 ||
        "$python" -m prefect --no-prompt work-pool create "$1" --type process
}

pool workspace
"$python" -m prefect --no-prompt work-pool set-concurrency-limit workspace "$workspaces"
pool prefloop
deployments=$(mktemp)
trap 'rm -f "$deployments"' EXIT
sed "s/^\( *\)limit: 1$/\1limit: $workspaces/" infra/prefect.yaml >"$deployments"
"$python" -m prefect --no-prompt deploy --prefect-file "$deployments" --all
read -ra gpus <<<"${PREFLOOP_POOL_GPUS:-}"
[ "${#gpus[@]}" -eq 0 ] || "$python" -m flows.workers.limits "${gpus[@]}"
"$python" -m flows.automations
