"""A stand-in for Google Cloud Storage on this machine, in memory.

  @pytest.fixture(name="machine")
  def _machine(tmp_path, monkeypatch):
    return bucket.machine(monkeypatch, tmp_path / "machine")
"""

import contextlib
import functools
import http.server
import json
import logging
import os
import pathlib
import re
import socket
import threading
import time
import urllib.parse

from gcp_storage_emulator import server as emulator

NAME = "bucket"
# What finds the server: gcsfs and google-cloud-storage, and tensorstore.
_ADDRESSES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")


class _PreconditionFailed(Exception):
  """The object is not of the generation that the request names."""


class _Handler(emulator.RequestHandler):
  """The emulator's, with what it lacks: `ifGenerationMatch`, the generation
  of what is read, and outages. One request is answered at a time.

  Attributes:
    expected: the generation of the present request, 0 for no object.
    answer_outage: answers in the place of all else, while there is one.
    until: the time at which it ends.
    failed: how many requests an outage met.
  """

  expected: str | None = None
  answer_outage = None
  until = 0.0
  failed = 0

  def _answer(self):
    cls, query = type(self), urllib.parse.urlparse(self.path).query
    if cls.answer_outage is not None and time.monotonic() < cls.until:
      cls.failed += 1
      cls.answer_outage(self)
      return
    cls.expected = dict(urllib.parse.parse_qsl(query)).get("ifGenerationMatch")
    try:
      emulator.Router(self).handle(self.command)
    except _PreconditionFailed:
      _say(self, 412, "conditionNotMet")

  do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

  def end_headers(self):
    name = re.match(r".*/b/(.+?)/o/([^?]+)[?].*alt=media", self.path)
    if self.command == "GET" and name:
      found = self.storage.objects.get(name[1], {}).get(
          urllib.parse.unquote(name[2]))
      if found:
        self.send_header("x-goog-generation", found["generation"])
    super().end_headers()


def _say(handler, status: int, message: str) -> None:
  handler.send_response(status)
  handler.send_header("Content-Type", "application/json")
  handler.end_headers()
  handler.wfile.write(json.dumps(
      {"error": {"code": status, "message": message}}).encode())


def _drop(handler) -> None:
  handler.connection.shutdown(socket.SHUT_RDWR)


def _conditional(method, objects):
  """A method of the store that changes an object, only where the request's
  generation is the object's."""
  def change(bucket, name, *args, **kwargs):
    found = objects.get(bucket, {}).get(name, {}).get("generation", "0")
    if _Handler.expected not in (None, found):
      raise _PreconditionFailed
    return method(bucket, name, *args, **kwargs)
  return change


OUTAGES = {
    "503": lambda handler: _say(handler, 503, "backendError"),
    "dropped": _drop,
}


@contextlib.contextmanager
def outage(kind: str, seconds: float = float("inf")):
  """The server fails each request for so long, at most until the end of the
  `with`; yields a function that counts them."""
  start()
  before = _Handler.failed
  _Handler.until = time.monotonic() + seconds
  _Handler.answer_outage = staticmethod(OUTAGES[kind])
  try:
    yield lambda: _Handler.failed - before
  finally:
    _Handler.answer_outage = None


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
  emulator.RequestHandler = _Handler  # which its thread makes
  running = emulator.create_server(
      "127.0.0.1", port, in_memory=True, default_bucket=NAME)
  store = running._storage
  for name in ("create_file", "delete_file"):
    setattr(store, name, _conditional(getattr(store, name), store.objects))
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
