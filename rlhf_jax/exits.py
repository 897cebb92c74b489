"""Exit statuses of the program, by which launch scripts know what to do next.

0 is a run that is finished, or that waits for people; anything else that is
not here is a failure that may pass by itself: start the same command again.
"""

FAILED = 1
REFUSED = 2  # settings, data or storage to be corrected: no restart helps
STOPPED = 3  # a guard stopped the run: a person has to look at it
INTERRUPTED = 130  # Ctrl-C; saved, unless it came twice
PREEMPTED = 75  # SIGTERM; saved: start the same command again

# With several processes, all come to these at the same step.
TOGETHER = (STOPPED, INTERRUPTED, PREEMPTED)
