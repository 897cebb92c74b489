"""A stand-in for Google Cloud Storage on this machine, in memory.

  @pytest.fixture(name="machine")
  def _machine(tmp_path, monkeypatch):
    return bucket.machine(monkeypatch, tmp_path / "machine")
"""

import functools
import http.server
import logging
import os
import pathlib
import socket
import threading

from gcp_storage_emulator import server as emulator

NAME = "bucket"
# What finds the server: gcsfs and google-cloud-storage, and tensorstore.
_ADDRESSES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")


@functools.cache
def start() -> None:
  """Starts it for the rest of the process, with one bucket."""
  logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  for name in _ADDRESSES:
    os.environ[name] = f"http://127.0.0.1:{port}"
  os.environ["NO_GCE_CHECK"] = "true"  # this is none of Google's machines
  running = emulator.create_server(
      "127.0.0.1", port, in_memory=True, default_bucket=NAME)
  running._api.daemon = True  # else it would keep the process from ending
  running.start()
  # A client that hangs up early would print a traceback.
  running._api._httpd.handle_error = lambda *unused: None


def use_machine(monkeypatch, folder: pathlib.Path) -> None:
  """Goes on as a machine with nothing but what `folder` has."""
  start()
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


class Refusing:
  """A server that lets nobody do anything but the methods given; a context."""

  def __init__(self, monkeypatch, allowed: tuple[str, ...], status: int):
    def answer(handler):
      is_allowed = handler.command in allowed
      handler.send_response(200 if is_allowed else status)
      handler.send_header("Content-Type", "application/json")
      handler.end_headers()
      handler.wfile.write(
          b"{}" if is_allowed else b'{"error": {"message": "no access"}}')

    self._server = http.server.HTTPServer(
        ("127.0.0.1", 0),
        type("Handler", (http.server.BaseHTTPRequestHandler,), {
            "do_GET": answer, "do_POST": answer, "do_DELETE": answer,
            "log_message": lambda *unused: None}))
    monkeypatch.setenv(
        _ADDRESSES[0], f"http://127.0.0.1:{self._server.server_port}")

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever).start()

  def __exit__(self, *unused):
    self._server.shutdown()
    self._server.server_close()
