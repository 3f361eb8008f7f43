#!/bin/sh
# Starts a command with secrets from files in its environment: NAME_FILE=/run/secrets/x becomes NAME.
# Secrets stand neither in the compose file, nor in an image, nor in `docker inspect`.
set -eu
for name in \
    PREFECT_API_AUTH_STRING PREFECT_SERVER_API_AUTH_STRING PREFECT_API_DATABASE_CONNECTION_URL \
    MLFLOW_BACKEND_STORE_URI MLFLOW_TRACKING_PASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY \
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        [ -s "$file" ] || { echo "${name}_FILE: $file is missing or empty; infra/secrets.sh makes it" >&2; exit 2; }
        export "$name=$(cat "$file")"
        unset "${name}_FILE"
    fi
done
exec "$@"
