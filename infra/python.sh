#!/usr/bin/env bash
# Sourced by the scripts beside it: which Python they run, and that they know a Prefect server.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ]; then  # a new terminal has not activated the clone's environment
    PYTHON=python
    [ ! -x "$here/../.venv/bin/python" ] || PYTHON=$here/../.venv/bin/python
fi

need_server() {  # PREFECT_API_URL, or a profile of Prefect's that has one
    [ -n "${PREFECT_API_URL:-}" ] || grep -qs PREFECT_API_URL "${PREFECT_HOME:-${HOME:-}/.prefect}/profiles.toml" || {
        echo "$(basename "$0"): PREFECT_API_URL is not set: export PREFECT_API_URL=http://127.0.0.1:4200/api, or where your Prefect server is" >&2
        exit 2
    }
}
