"""What was compiled once is kept, for this run's next start and for others."""

from etils import epath
import jax

from rlhf_jax import storage

FOLDER = ".jax_cache"
# In a bucket each entry costs some requests; what compiles faster is not kept.
_MIN_SECONDS_IN_A_BUCKET = 1.0


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
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  jax.config.update(
      "jax_persistent_cache_min_compile_time_secs",
      _MIN_SECONDS_IN_A_BUCKET if in_bucket else 0.0)
  return folder
