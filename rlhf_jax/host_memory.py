"""Host memory in large pages, where the C library is glibc on Linux.

On CPU every step allocates its buffers anew, and their pages of 4 kB are many
to be cleared, mapped and found again. Results do not depend on it. glibc (2.35
and up) asks the kernel for pages of 2 MB where a variable says so as the
program starts, and never later; a kernel that has none ignores it.
"""

import os
import platform
import sys

_VARIABLE = "GLIBC_TUNABLES"
_NAME = "glibc.malloc.hugetlb"


def restart_with_large_pages() -> None:
  """Begins the program again, as the same process, with the variable set.

  To be called first: what was done before is done twice. It returns in the
  program begun again, where the variable already says something of large
  pages, and where there is no glibc.
  """
  tunables = os.environ.get(_VARIABLE, "")
  if _NAME in tunables or platform.libc_ver()[0] != "glibc":
    return
  tunables = ":".join(filter(None, (tunables, f"{_NAME}=1")))
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, _VARIABLE: tunables})
