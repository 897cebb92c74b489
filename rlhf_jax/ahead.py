"""Work for the host that is done while the devices are busy."""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any


class Ahead:
  """`make(number)` of the numbers from `first` to `last` - 1, in order, each
  made in a thread while the one before it is in use; a context.

  An error of `make` is raised where its number is asked for. The thread ends
  with the context.
  """

  def __init__(self, make: Callable[[int], Any], first: int, last: int):
    self._make = make
    self._next = first
    self._last = last
    self._thread = futures.ThreadPoolExecutor(
        max_workers=1, thread_name_prefix="ahead")
    self._made: futures.Future | None = None

  def __enter__(self):
    self._start()
    return self

  def __exit__(self, *unused):
    self._thread.shutdown(cancel_futures=True)

  def take(self) -> Any:
    """The next one; starts on that after it."""
    made = self._made.result()
    self._start()
    return made

  def _start(self) -> None:
    if self._next < self._last:
      self._made = self._thread.submit(self._make, self._next)
      self._next += 1


def one_behind(items: Iterable[Any]) -> Iterator[Any]:
  """The same items, each after the next one was asked for: what the devices
  are given last runs while the host works with what they gave before."""
  waiting = []
  for item in items:
    waiting.append(item)
    if len(waiting) > 1:
      yield waiting.pop(0)
  yield from waiting
