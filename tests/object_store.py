"""A real S3-compatible server on this machine (SeaweedFS), for as long as a test session."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs

KEY, SECRET = "tester", "a-secret-of-the-tests"
BUCKET = "fo1"
_START_S = 60


@contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """Start the server with its files in `folder`; yield the environment that reaches it.

    It listens on loopback alone. Its gRPC ports are 10,000 above the others.
    """
    weed = Path(sys.executable).with_name("weed")
    ports = _free_ports(4)
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    command = [
        *(str(weed), "server", "-s3", "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1"),
        *("-dir", str(folder), "-s3.config", str(folder / "s3.json"), "-volume.max", "50"),
        *("-master.volumeSizeLimitMB", "64", "-master.volumePreallocate=false"),
        *(
            part
            for name, port in zip(names, ports, strict=True)
            for part in (f"-{name}", str(port))
        ),
    ]
    endpoint = f"http://127.0.0.1:{ports[-1]}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait(endpoint, server, folder / "log")
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        server.kill()
        server.wait()


def _wait(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Make the bucket, and write into it once the server has a volume to write to."""
    started = time.monotonic()
    while True:
        try:
            store = pafs.S3FileSystem(
                endpoint_override=endpoint,
                access_key=KEY,
                secret_key=SECRET,
                allow_bucket_creation=True,
                retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
            )
            store.create_dir(BUCKET)
            with store.open_output_stream(f"{BUCKET}/ready") as stream:
                stream.write(b"ready")
            store.delete_file(f"{BUCKET}/ready")
            return
        except OSError as error:
            if server.poll() is not None or time.monotonic() - started > _START_S:
                raise RuntimeError(f"no object store: {error}\n{log.read_text()[-2000:]}") from None
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and 10,000 above them too."""
    found: list[int] = []
    candidate = 20_000 + os.getpid() % 5_000
    while len(found) < count:
        candidate += 7
        if all(_is_free(port) for port in (candidate, candidate + 10_000)):
            found.append(candidate)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
