"""`python infra/mlflow_user.py NAME PASSWORD_FILE`: a user of MLflow's who is no administrator.

The administrator's name and password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient


def main(name: str, password_file: str) -> None:
    """Makes the user, or says that it is there; a changed password is set."""
    client = AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])
    password = Path(password_file).read_text(encoding="utf-8").strip()
    try:
        client.create_user(name, password)
        print(f"MLflow user {name}: made")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.update_user_password(name, password)
        print(f"MLflow user {name}: there already, with this password")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
