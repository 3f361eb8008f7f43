#!/usr/bin/env bash
# Brings the compose project to the versions of this checkout: backup, build, stop, migrate, start, setup.
#
#   git pull && bash infra/upgrade.sh BACKUP_FOLDER
#
# Runs that are live are asked to stop after a step when their workers stop; the next run goes on from there. If
# anything fails, the backup that was printed brings the old state back (docs/operations.md).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
backups=${1:?usage: bash infra/upgrade.sh BACKUP_FOLDER}
compose() { docker compose --file "$here/compose.yaml" "$@"; }

bash "$here/backup.sh" "$backups"
compose build --pull
compose stop front coordinator worker-cpu prefect mlflow
compose run --rm --no-deps prefect prefect server database upgrade --yes
compose run --rm --no-deps mlflow sh -euc 'mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"'
compose up --detach --wait --remove-orphans
