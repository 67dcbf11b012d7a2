"""A Google Cloud Storage on this machine, for the tests: the emulator of the package gcp-storage-emulator."""

import contextlib

from gcp_storage_emulator.server import create_server

BUCKET = "bucket"


@contextlib.contextmanager
def emulator(environment):
    """Serves an empty bucket; sets variables by which gcsfs, Google's client and TensorStore find it."""
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    url = "http://{}:{}".format(*server._api._httpd.server_address)
    environment.setenv("STORAGE_EMULATOR_HOST", url)
    environment.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    environment.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")  # of TensorStore
    environment.setenv("FSSPEC_GCS_TOKEN", "anon")
    environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # would ask by gRPC
    try:
        yield f"gs://{BUCKET}"
    finally:
        server.stop()
