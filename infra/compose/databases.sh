#!/usr/bin/env bash
# Runs once, when PostgreSQL's volume is empty: a database and a role each for Prefect and MLflow, and one for
# MLflow's users. No role reaches the other's database.
set -euo pipefail
secret() { cat "/run/secrets/$1"; }

psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    --set prefect="$(secret prefect_db_password)" --set mlflow="$(secret mlflow_db_password)" <<'SQL'
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE prefect OWNER prefect;
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
REVOKE CONNECT ON DATABASE prefect, mlflow, mlflow_auth FROM PUBLIC;
SQL
