"""Object storage on this machine: the server of moto, or of localbucket, a process of its own, with a bucket for each test."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3

from natcore.who.bucket import Bucket

KEY, SECRET = "test-key", "test-secret-never-shown"
_NUMBERS = itertools.count()
# Servers that say when they listen.
_PROGRAMS = {
    "moto": """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
server.serve_forever()
""",
    "localbucket": """
import pathlib, sys
from http.server import ThreadingHTTPServer
from localbucket import S3Handler
S3Handler.data_root = pathlib.Path(sys.argv[1])
server = ThreadingHTTPServer(("127.0.0.1", 0), S3Handler)
print(server.server_port, flush=True)
server.serve_forever()
""",
}


class ObjectStorage:
    """The server, until it is closed; `bucket` makes a bucket of its own. kind: "moto", or "localbucket"."""

    def __init__(self, kind: str = "moto") -> None:
        self.kind = kind
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-c", _PROGRAMS[kind], self._folder.name]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def close(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.cleanup()

    def bucket(self, prefix: str = "log", **more: Any) -> Bucket:
        """Return the files of an empty bucket."""
        name = f"bucket-{os.getpid()}-{next(_NUMBERS)}"
        self.client.create_bucket(Bucket=name)
        return self.again(f"s3://{name}/{prefix}", **more)

    def again(self, url: str, **more: Any) -> Bucket:
        """Return the files of a bucket, of which nothing is known yet."""
        where = {"endpoint": self.endpoint, "access_key_id": KEY, "access_key_secret": SECRET, "fresh": 0, **more}
        return Bucket(url, **where)

    def put(self, url: str, data: bytes) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, url: str) -> bytes:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return bytes(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def delete(self, url: str) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.client.delete_object(Bucket=bucket, Key=key)

    def copy(self, folder: Path, bucket: Bucket) -> None:
        """Put the folder's files there, as any program would."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{bucket.top}/{path.relative_to(folder)}", path.read_bytes())

    def urls(self, bucket: Bucket) -> list[str]:
        name, _, prefix = bucket.top.removeprefix("s3://").partition("/")
        found = self.client.list_objects_v2(Bucket=name, Prefix=prefix).get("Contents", ())
        return [f"s3://{name}/{each['Key']}" for each in found]
