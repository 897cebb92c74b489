"""Screens candidate labelers against researchers (InstructGPT, appendix B.1).

  python -m rlhf_jax.screen --reference=REFERENCE.jsonl
      --answers=ANSWERS.jsonl[,MORE.jsonl] --roster=ROSTER.jsonl
      [--min_agreement=0.75] [--min_flag_agreement=0.75]
      [--min_demonstration_rating=6] [--group=train] [--report=REPORT.json]

REFERENCE has tasks that researchers ranked, a line each:
  {"task_id": "collect/12.0", "prompt": "...", "responses": ["...", ...],
   "ranks": [2, 1, ...], "metadata": [{"violent_content": true}, {}, ...]}
and ANSWERS the same tasks as the candidates ranked them, with "labeler_id" in
each line. "metadata" is optional: Table 3's fields, of which the sensitive ones
are compared. {"labeler_id": "ann", "demonstration_rating": 6} is a researcher's
rating, 1 to 7, of a demonstration that a candidate wrote.

Prints a line a candidate and writes the roster of those who pass, for
--config.collect.roster. Whoever left out a task does not pass. Bad input ends
with the file and line, and nothing is written.
"""

from rlhf_jax import usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)

# pylint: disable=wrong-import-position
import os

from absl import app
from absl import flags
from absl import logging

from rlhf_jax import labelers, screening, storage
from rlhf_jax.data.records import DataError
from rlhf_jax.evals import candidates

_REFERENCE = flags.DEFINE_string(
    "reference", None, "JSON lines: the tasks as researchers ranked them.")
_ANSWERS = flags.DEFINE_list(
    "answers", None, "JSON lines: the same tasks as candidates ranked them.")
_ROSTER = flags.DEFINE_string(
    "roster", None, "Where those who pass are written.")
_REPORT = flags.DEFINE_string(
    "report", None,
    "Where all figures are written; by default beside the roster: "
    "roster.report.json for roster.jsonl.")
_GROUP = flags.DEFINE_enum(
    "group", labelers.TRAIN, labelers.GROUPS,
    "The group of those who pass: they label training data, or only "
    "validation prompts.")
_MIN_AGREEMENT = flags.DEFINE_float(
    "min_agreement", 0.75,
    "Least share of the pairs ordered as the researchers did.",
    lower_bound=0.0, upper_bound=1.0)
_MIN_FLAG_AGREEMENT = flags.DEFINE_float(
    "min_flag_agreement", 0.75,
    "Least share of the responses marked sensitive, or not, as the "
    "researchers did.", lower_bound=0.0, upper_bound=1.0)
_MIN_DEMONSTRATION_RATING = flags.DEFINE_float(
    "min_demonstration_rating", 6.0,
    "Least mean rating of a candidate's demonstrations, where any candidate "
    "was rated.", lower_bound=1.0, upper_bound=7.0)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  roster = _ROSTER.value
  report = _REPORT.value or os.path.splitext(roster)[0] + ".report.json"
  try:
    found = screening.screen(
        _REFERENCE.value, _ANSWERS.value, roster, report, _GROUP.value,
        candidates.Cutoffs(
            agreement=_MIN_AGREEMENT.value,
            flag_agreement=_MIN_FLAG_AGREEMENT.value,
            demonstration_rating=_MIN_DEMONSTRATION_RATING.value))
  except (DataError, OSError, storage.StorageError) as error:
    usage.refuse(str(error))
  print(candidates.format_report(found), flush=True)
  num_passed = sum(x["passes"] for x in found["candidates"].values())
  if not num_passed:
    usage.refuse(f"no candidate passes, so {roster} is not written; the "
                 f"figures are in {report}")
  print(f"\n{num_passed} of {len(found['candidates'])} pass: {roster}\n"
        f"the figures: {report}", flush=True)


if __name__ == "__main__":
  usage.run(main, required=["reference", "answers", "roster"])
