"""Exit statuses of the program, by which launch scripts know what to do next.

0 is a run that is finished, or that waits for people; anything else that is
not here is a failure that may pass by itself: start the same command again.
"""

import os
import signal

FAILED = 1
REFUSED = 2  # settings, data or storage to be corrected: no restart helps
STOPPED = 3  # a guard stopped the run: a person has to look at it
INTERRUPTED = 130  # Ctrl-C; saved, unless it came twice
PREEMPTED = 75  # SIGTERM; saved: start the same command again

# With several processes, all come to these at the same step.
TOGETHER = (STOPPED, INTERRUPTED, PREEMPTED)

AT_SIGNAL = {signal.SIGTERM: PREEMPTED, signal.SIGINT: INTERRUPTED}


def heed_early_signals() -> None:
  """SIGTERM and Ctrl-C end the process at once, with their statuses.

  Until there is anything to save: imports alone take seconds.
  """
  for number in AT_SIGNAL:
    signal.signal(number, _end)


def _end(number, unused_frame) -> None:
  # Not by print: the signal may have come in the middle of one.
  os.write(2, f"\n{signal.Signals(number).name}: ended before the start "
           "(nothing was changed)\n".encode())
  os._exit(AT_SIGNAL[number])
