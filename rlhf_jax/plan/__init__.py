"""Will it fit, and how fast can it be: a run planned before it is paid for.

  __main__.py   the command
  chips.py      assumed figures of chips; topologies
  programs.py   the jitted functions of a run with abstract arguments
  compiling.py  ahead-of-time compilation by the real TPU compiler
  hlo.py        a compiled module's text as computations and instructions
  costs.py      FLOPs, HBM and collective bytes, loops counted by their trips
  analytic.py   the same from formulas, for GPUs
  roofline.py   seconds of a phase, what bounds it, the MFU that it allows
  report.py     the tables and the JSON object
  search.py     settings that may make it fit
"""
