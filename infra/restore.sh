#!/usr/bin/env bash
# Brings one database back from a backup; stop the server that uses it first. It is all of the dump or nothing:
# one transaction, after the checksums were held against the files.
#
#   bash infra/restore.sh BACKUP/prefloop-... NAME [DATABASE_URL]     NAME: prefect, mlflow or mlflow_auth
#
# Without a URL it goes into the compose project's PostgreSQL. NAME mlflow.db goes into sqlite:///FILE.
# The bucket: python infra/bucket.py restore BACKUP/prefloop-.../bucket mlflow
set -euo pipefail
folder=${1:?usage: bash infra/restore.sh BACKUP NAME [DATABASE_URL]}
name=${2:?which database: prefect, mlflow or mlflow_auth}
url=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
dump=$folder/$name.dump
case "$url" in sqlite:///*) dump=$folder/$name ;; esac
[ -f "$dump" ] || { echo "restore.sh: $folder has no $(basename "$dump")" >&2; exit 2; }
(cd "$folder" && sha256sum --check --quiet SHA256SUMS) || {
    echo "restore.sh: $folder is damaged; nothing was changed" >&2
    exit 3
}
options=(--clean --if-exists --no-owner --no-privileges --single-transaction --exit-on-error)
if [ "$dump" != "$folder/$name.dump" ]; then
    . "$here/python.sh"
    "$PYTHON" "$here/sqlite.py" "$dump" "${url#sqlite:///}"
elif [ -n "$url" ]; then
    pg_restore "${options[@]}" --dbname "$url" "$folder/$name.dump"
else
    docker compose --file "$here/compose.yaml" exec --no-TTY postgres \
        pg_restore "${options[@]}" --username postgres --role "${name%_auth}" --dbname "$name" <"$folder/$name.dump"
fi
echo "$name restored from $folder"
