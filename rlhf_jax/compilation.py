"""What was compiled once is kept, for this run's next start and for others."""

import contextlib
import os

from etils import epath
import jax
# Private, for JAX has no other way to look into its own files.
from jax._src import compilation_cache

from rlhf_jax import storage

FOLDER = ".jax_cache"
# In a bucket each entry costs some requests; what compiles faster is not kept.
_MIN_SECONDS_IN_A_BUCKET = 1.0
# A process writes one entry at a time; so many processes may share a folder.
_NEWEST = 16


def enable_compilation_cache(workdir: epath.PathLike) -> str:
  """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, else by `workdir`.

  Runs with other workdirs in the same folder share them. JAX's keys hold the
  programs, their options, the versions and the machine, so a folder can serve
  several kinds of machines. Nothing is evicted: the folder may be removed at
  any time.

  Returns:
    The folder.
  """
  folder = jax.config.jax_compilation_cache_dir or str(
      storage.absolute(workdir).parent / FOLDER)
  in_bucket = storage.is_bucket(folder)
  if not in_bucket:
    remove_torn(folder)
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  jax.config.update(
      "jax_persistent_cache_min_compile_time_secs",
      _MIN_SECONDS_IN_A_BUCKET if in_bucket else 0.0)
  return folder


def remove_torn(folder: str) -> list[str]:
  """Removes what a killed process wrote in part, of the newest entries.

  JAX writes them in place: it would warn of such a one at every start, compile
  the program, and never write it again.

  Returns:
    The names of the files removed.
  """
  entries = [entry for entry in os.scandir(folder)
             if entry.name.endswith("-cache")] if os.path.isdir(folder) else []
  entries.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
  removed = []
  for entry in entries[:_NEWEST]:
    try:
      with open(entry.path, "rb") as f:
        compilation_cache.decompress_executable(f.read())
    except Exception:  # zlib's or zstd's, whichever JAX uses
      with contextlib.suppress(FileNotFoundError):  # another did so
        os.unlink(entry.path)
      removed.append(entry.name)
  return removed
