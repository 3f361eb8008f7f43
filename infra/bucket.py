"""An S3 bucket: `python infra/bucket.py make BUCKET`, `... save BUCKET FOLDER`, `... restore FOLDER BUCKET`.

Endpoint and keys come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. What has the same
size on both sides is not copied again, and nothing is ever removed from either.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError


def make(client: Any, bucket: str) -> str:
    """Makes the bucket, unless it is there."""
    try:
        client.head_bucket(Bucket=bucket)
        return f"{bucket}: there already"
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
    client.create_bucket(Bucket=bucket)
    return f"{bucket}: made"


def sizes(client: Any, bucket: str) -> dict[str, int]:
    """Key -> size (bytes) of every object."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}


def save(client: Any, bucket: str, folder: Path) -> str:
    """Copies every object that the folder lacks, each appearing whole or not at all."""
    copied = 0
    for key, size in sizes(client, bucket).items():
        target = inside(folder, key)
        if target.is_file() and target.stat().st_size == size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"{target.name}.part")
        client.download_file(bucket, key, str(draft))
        draft.replace(target)
        copied += 1
    return f"{bucket}: {copied} objects copied to {folder}"


def restore(client: Any, folder: Path, bucket: str) -> str:
    """Copies every file that the bucket lacks."""
    make(client, bucket)
    there, copied = sizes(client, bucket), 0
    for path in sorted(folder.rglob("*")):
        key = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix != ".part" and there.get(key) != path.stat().st_size:
            client.upload_file(str(path), bucket, key)
            copied += 1
    return f"{bucket}: {copied} files copied from {folder}"


def inside(folder: Path, key: str) -> Path:
    """Where an object goes; a key that leads out of the folder is refused."""
    target = (folder / key).resolve()
    if key.startswith("/") or not target.is_relative_to(folder.resolve()):
        sys.exit(f"bucket.py: the key {key!r} leads out of {folder}: nothing more was copied")
    return target


def main(arguments: list[str]) -> None:
    """Does what the command line asks for."""
    client = boto3.client("s3")
    match arguments:
        case ["make", bucket]:
            print(make(client, bucket))
        case ["save", bucket, folder]:
            print(save(client, bucket, Path(folder)))
        case ["restore", folder, bucket]:
            print(restore(client, Path(folder), bucket))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
