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
. infra/python.sh
need_server
workspaces=${PREFLOOP_WORKSPACES:-1}
case "$workspaces" in
    *[!0-9]* | 0*) echo "PREFLOOP_WORKSPACES is a number from 1, not $workspaces" >&2; exit 2 ;;
esac

"$PYTHON" -c 'import sys; from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client: sys.exit(client.api_healthcheck() is not None)' || {
    echo "setup.sh: no Prefect server answers at ${PREFECT_API_URL:-the address in its profile}: start it, or mend the address" >&2
    exit 7
}

pool() {  # NAME: a pool of worker processes; one that is there stays as it is, a Kubernetes pool too
    "$PYTHON" -m prefect --no-prompt work-pool inspect "$1" >/dev/null 2>&1 ||
        "$PYTHON" -m prefect --no-prompt work-pool create "$1" --type process
}

pool workspace
"$PYTHON" -m prefect --no-prompt work-pool set-concurrency-limit workspace "$workspaces"
pool prefloop
deployments=$(mktemp)
trap 'rm -f "$deployments" "$deployments.said"' EXIT
sed "s/^\( *\)limit: 1$/\1limit: $workspaces/" infra/prefect.yaml >"$deployments"
# What Prefect says there leads to a bare worker, which does not end well.
"$PYTHON" -m prefect --no-prompt deploy --prefect-file "$deployments" --all >"$deployments.said" 2>&1 || {
    cat "$deployments.said" >&2
    exit 1
}
sed -n "s/^ *- name: /deployment /p" infra/prefect.yaml
read -ra gpus <<<"${PREFLOOP_POOL_GPUS:-}"
[ "${#gpus[@]}" -eq 0 ] || "$PYTHON" -m flows.workers.limits "${gpus[@]}"
"$PYTHON" -m flows.automations
echo "a worker that takes the deployments: PREFLOOP_WORKSPACE=/path/to/your/clone bash infra/worker.sh workspace"
