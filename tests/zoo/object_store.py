"""An object store on this machine, and what runs leave in it or in a directory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest


@contextlib.contextmanager
def object_store() -> Iterator[Any]:
    """An S3 server in a thread with a bucket 'bucket', which this process and its children find; s3fs's view of it."""
    server_module = pytest.importorskip("moto.server", reason="moto[s3], flask and flask-cors are not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    ours = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    with mock.patch.dict(os.environ, ours):
        try:
            # All servers of a process have the same buckets.
            urllib.request.urlopen(
                urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
            ).close()
            files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
            files.mkdir("bucket")
            yield files
        finally:
            server.stop()


def left_in(place: Path, files: Any = None) -> dict[str, Any]:
    """What a run left in a directory, or under a key of a store: the records without times, and the bytes of files."""
    if files is None:
        found = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    else:
        prefix = str(place)
        found = {key.removeprefix(f"{prefix}/"): files.cat_file(key) for key in files.find(prefix)}
    found.pop(".lock", None)  # an empty lock stays in a directory
    found.pop(".begun", None)
    summary = json.loads(found.pop("summary.json"))["models"]
    assert found.pop("summary.csv").count(b"\n") == 1 + len(summary)
    journal = [json.loads(line)["record"] for line in found.pop("journal.jsonl").splitlines()]
    for record in summary + journal:
        record.pop("seconds")
    return {"summary": summary, "journal": sorted(journal, key=lambda record: record["model"]), "files": found}
