"""Makes report.html of a run, or of several side by side.

  python -m rlhf_jax.report --workdir=DIR[,DIR...] [--out=FILE]

Of a run that has not ended it shows what is there. docs/report.md says how to
read it.
"""

from rlhf_jax import usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)

# pylint: disable=wrong-import-position
from absl import app
from absl import flags
from etils import epath

from rlhf_jax import storage
from rlhf_jax.report import page

_WORKDIRS = flags.DEFINE_list(
    "workdir", None, "The folder of a run; several, with commas between, are "
    "compared.", allow_override=True)
_OUT = flags.DEFINE_string(
    "out", None, "The file to write; by default report.html in the folder of "
    "the run, or in the present one if there are several.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  workdirs = _WORKDIRS.value
  default = epath.Path(workdirs[0] if len(workdirs) == 1 else ".") / page.NAME
  out = epath.Path(_OUT.value or default)
  try:
    for workdir in workdirs:
      storage.check(workdir, "--workdir", is_written=False)
    storage.check(out.parent, "--out", is_written=True)
    page.write(workdirs, out)
  except storage.StorageError as error:
    usage.refuse(str(error))
  print(f"written: {out}")


if __name__ == "__main__":
  usage.run(main, required=["workdir"])
