#!/usr/bin/env bash
# Saves the databases of Prefect and MLflow, and MLflow's bucket, into a new folder below DESTINATION.
#
#   bash infra/backup.sh DESTINATION [DATABASE_URL... FOLDER...]
#
# A database is postgresql://... or sqlite:///FILE. Without one it asks the compose project's PostgreSQL. Nothing has to be stopped: each dump is a state of one
# moment, and MLflow's artifacts, saved after its database, hold at least what that names. With AWS_ENDPOINT_URL
# set, the bucket `mlflow` (or PREFLOOP_BUCKET) is copied, too. A backup that was cut off ends in .part.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
destination=${1:?usage: bash infra/backup.sh DESTINATION [DATABASE_URL...]}
shift
. "$here/python.sh"
umask 077
[ $# -gt 0 ] || docker compose version >/dev/null 2>&1 || {
    echo "backup.sh: docker compose is not here: name the databases, sqlite:///FILE or postgresql://..." >&2
    exit 2
}
folder=$destination/prefloop-$(date -u +%Y%m%dT%H%M%SZ)
[ ! -e "$folder" ] || { echo "backup.sh: $folder is there already" >&2; exit 1; }
draft=$folder.part
mkdir -p "$draft"

if [ $# -gt 0 ]; then
    for url in "$@"; do
        name=${url##*/}
        name=${name%%\?*}
        [ ! -e "$draft/$name" ] && [ ! -e "$draft/$name.dump" ] || { echo "backup.sh: two are called $name" >&2; exit 2; }
        case "$url" in
            sqlite:///*) "$PYTHON" "$here/sqlite.py" "${url#sqlite:///}" "$draft/$name" ;;
            *://*) pg_dump --format=custom --no-owner --no-privileges --file "$draft/$name.dump" --dbname "$url" ;;
            *) cp -a "$url" "$draft/$name" ;;
        esac
    done
else
    for name in prefect mlflow mlflow_auth; do
        docker compose --file "$here/compose.yaml" exec --no-TTY postgres \
            pg_dump --format=custom --no-owner --no-privileges --username postgres "$name" >"$draft/$name.dump"
    done
fi
if [ -n "${AWS_ENDPOINT_URL:-}" ]; then
    "$PYTHON" "$here/bucket.py" save "${PREFLOOP_BUCKET:-mlflow}" "$draft/bucket"
fi
(cd "$draft" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS)
mv "$draft" "$folder"
echo "$folder"
