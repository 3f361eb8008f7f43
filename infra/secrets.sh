#!/usr/bin/env bash
# Makes infra/secrets/: every password of the compose file, random, a file each. What is there already stays.
#
# The folder is closed to everybody else (0700); the files in it are readable, since containers that run as other
# users read them through their mounts.
set -euo pipefail
umask 022
folder=${1:-"$(dirname "$0")/secrets"}
mkdir -p "$folder"
chmod 700 "$folder"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
keep() {  # NAME TEXT: writes a file once
    [ -s "$folder/$1" ] || { printf '%s' "$2" >"$folder/.new" && chmod 444 "$folder/.new" && mv "$folder/.new" "$folder/$1"; }
}
read_secret() { cat "$folder/$1"; }

for name in postgres_password prefect_db_password mlflow_db_password mlflow_admin_password mlflow_worker_password \
    mlflow_flask_key s3_mlflow_key s3_mlflow_secret s3_data_key s3_data_secret s3_exchange_key s3_exchange_secret; do
    keep "$name" "$(random)"
done
keep prefect_auth "prefloop:$(random)"
keep prefect_database_url "postgresql+asyncpg://prefect:$(read_secret prefect_db_password)@postgres:5432/prefect"
keep mlflow_database_url "postgresql://mlflow:$(read_secret mlflow_db_password)@postgres:5432/mlflow"
keep mlflow_auth.ini "[mlflow]
default_permission = READ
database_uri = postgresql://mlflow:$(read_secret mlflow_db_password)@postgres:5432/mlflow_auth
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"
# MLflow's server reaches its bucket alone, people that with data, coordinator and workers the one between them.
keep s3.json "{\"identities\": [
  {\"name\": \"mlflow\", \"credentials\": [{\"accessKey\": \"$(read_secret s3_mlflow_key)\",
    \"secretKey\": \"$(read_secret s3_mlflow_secret)\"}],
   \"actions\": [\"Admin:mlflow\", \"Read:mlflow\", \"Write:mlflow\", \"List:mlflow\", \"Tagging:mlflow\"]},
  {\"name\": \"data\", \"credentials\": [{\"accessKey\": \"$(read_secret s3_data_key)\",
    \"secretKey\": \"$(read_secret s3_data_secret)\"}],
   \"actions\": [\"Admin:data\", \"Read:data\", \"Write:data\", \"List:data\", \"Tagging:data\"]},
  {\"name\": \"exchange\", \"credentials\": [{\"accessKey\": \"$(read_secret s3_exchange_key)\",
    \"secretKey\": \"$(read_secret s3_exchange_secret)\"}],
   \"actions\": [\"Admin:exchange\", \"Read:exchange\", \"Write:exchange\", \"List:exchange\"]}
]}"
echo "$folder has $(find "$folder" -type f | wc -l) secrets"
