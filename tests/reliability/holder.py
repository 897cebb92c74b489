"""A process that holds a workdir: python -m tests.reliability.holder WORKDIR

Prints "held" or the refusal; ends when its input does. With CHILD=1 in its
environment it forks a child that outlives it.
"""

import os
import sys
import time

from rlhf_jax import lock


def lost(message):
  print(f"lost: {message}", flush=True)
  os._exit(2)


def main():
  try:
    with lock.held(sys.argv[1], on_lost=lost,
                   period=float(os.environ.get("PERIOD", "0.2"))):
      if not os.environ.get("CHILD"):
        print("held", flush=True)
      elif os.fork() == 0:
        print("held", flush=True)  # once the child is there
        os.close(0)
        os.close(1)
        os.close(2)
        time.sleep(5)
        os._exit(0)
      sys.stdin.read()
  except lock.LockError as error:
    print(f"refused: {error}", flush=True)


if __name__ == "__main__":
  main()
