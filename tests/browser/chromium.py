"""A headless browser: Qt's Chromium, of the extra "browser".

Its wheels need libraries of a desktop: on Debian libnss3, libasound2, libgl1,
libegl1, libxkbfile1, libxtst6, libxdamage1, libxcomposite1, libxrandr2,
libxcb-dri3-0, libfontconfig1 and libdbus-1-3.
"""

import atexit
import json
import os
import pathlib
import time

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QT_QUICK_BACKEND", "software")
os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")  # as root
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--disable-gpu")

# pylint: disable=wrong-import-position
from PySide6 import QtCore
from PySide6 import QtWebEngineCore
from PySide6 import QtWebEngineWidgets
from PySide6 import QtWidgets
import shiboken6

_SECONDS = 60.0  # to wait for anything
_APP = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
_PROFILE = QtWebEngineCore.QWebEngineProfile()  # keeps nothing on the disk
# Before Qt ends, after all pages: in any other order it crashes.
atexit.register(lambda: shiboken6.delete(_PROFILE))


class _Page(QtWebEngineCore.QWebEnginePage):
  """Keeps what is said on the console."""

  def __init__(self, parent):
    super().__init__(_PROFILE, parent)
    self.said = []

  def javaScriptConsoleMessage(self, level, message, line, source):
    self.said.append(f"{level.name}: {message} ({source}:{line})")


class _Requests(QtWebEngineCore.QWebEngineUrlRequestInterceptor):
  """Keeps what is fetched."""

  def __init__(self, parent):
    super().__init__(parent)
    self.urls = []

  def interceptRequest(self, info):
    self.urls.append(info.requestUrl().toString())


class Tab:
  """A page of a local file, in a window of some size."""

  def __init__(self, path: pathlib.Path, width=1200, height=900):
    self._view = QtWebEngineWidgets.QWebEngineView()
    self._page = _Page(self._view)
    self._requests = _Requests(self._view)
    self._page.setUrlRequestInterceptor(self._requests)
    self._view.setPage(self._page)
    self._view.resize(width, height)
    self._view.show()
    loaded = []
    self._page.loadFinished.connect(loaded.append)
    self._page.load(QtCore.QUrl.fromLocalFile(str(path)))
    _wait(lambda: loaded)
    assert loaded == [True]

  @property
  def console(self) -> list[str]:
    return self._page.said

  @property
  def fetched(self) -> list[str]:
    return self._requests.urls

  def run(self, script: str):
    """The value of an expression."""
    values = []
    self._page.runJavaScript(f"JSON.stringify({script})", 0, values.append)
    _wait(lambda: values)
    return json.loads(values[0]) if values[0] else None

  def wait_for(self, script: str) -> None:
    """Until an expression is true."""
    _wait(lambda: self.run(script))

  def set(self, selector: str, value: str) -> None:
    """Types into, or chooses of, a control."""
    self.run(f"""(() => {{
      const control = document.querySelector({json.dumps(selector)});
      control.value = {json.dumps(value)};
      control.dispatchEvent(new Event("input", {{bubbles: true}}));
    }})()""")

  def darken(self) -> None:
    """Rules for dark mode hold from now on: a headless Qt is always light."""
    self.run("""[...document.styleSheets].flatMap(
        sheet => [...sheet.cssRules]).filter(
            rule => rule.media?.mediaText.includes("dark")).map(
                rule => rule.media.mediaText = "all")""")

  def print(self, path: pathlib.Path) -> None:
    """As a PDF."""
    done = []
    self._page.pdfPrintingFinished.connect(lambda _, is_ok: done.append(is_ok))
    self._page.printToPdf(str(path))
    _wait(lambda: done)
    assert done == [True]

  def picture(self, path: pathlib.Path) -> None:
    """Of what the window shows."""
    self._view.grab().save(str(path))

  def close(self) -> None:
    shiboken6.delete(self._page)
    shiboken6.delete(self._view)


def _wait(is_done) -> None:
  end = time.monotonic() + _SECONDS
  while not is_done():
    assert time.monotonic() < end, "the browser does not answer"
    # Not processEvents: PySide6 6.12 loses a reference to None at each call.
    loop = QtCore.QEventLoop()
    QtCore.QTimer.singleShot(5, loop.quit)
    loop.exec()
