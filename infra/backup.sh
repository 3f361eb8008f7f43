#!/usr/bin/env bash
# Saves the databases of Prefect and MLflow, and MLflow's bucket, into a new folder below DESTINATION.
#
#   bash infra/backup.sh DESTINATION [DATABASE_URL...]
#
# Without URLs it asks the compose project's PostgreSQL. Nothing has to be stopped: each dump is a state of one
# moment, and MLflow's artifacts, saved after its database, hold at least what that names. With AWS_ENDPOINT_URL
# set, the bucket `mlflow` (or PREFLOOP_BUCKET) is copied, too. A backup that was cut off ends in .part.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
destination=${1:?usage: bash infra/backup.sh DESTINATION [DATABASE_URL...]}
shift
umask 077
folder=$destination/prefloop-$(date -u +%Y%m%dT%H%M%SZ)
[ ! -e "$folder" ] || { echo "backup.sh: $folder is there already" >&2; exit 1; }
draft=$folder.part
mkdir -p "$draft"

if [ $# -gt 0 ]; then
    for url in "$@"; do
        name=${url##*/}
        name=${name%%\?*}
        pg_dump --format=custom --no-owner --no-privileges --file "$draft/$name.dump" --dbname "$url"
    done
else
    for name in prefect mlflow mlflow_auth; do
        docker compose --file "$here/compose.yaml" exec --no-TTY postgres \
            pg_dump --format=custom --no-owner --no-privileges --username postgres "$name" >"$draft/$name.dump"
    done
fi
if [ -n "${AWS_ENDPOINT_URL:-}" ]; then
    "${PYTHON:-python}" "$here/bucket.py" save "${PREFLOOP_BUCKET:-mlflow}" "$draft/bucket"
fi
(cd "$draft" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS)
mv "$draft" "$folder"
echo "$folder"
