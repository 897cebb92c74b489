"""The records of a run as tables, in Markdown or plain text."""

from typing import Any

import tabulate

from benchmarks import work

OURS = "rlhf_jax"
_Records = list[dict[str, Any]]


def format_records(records: _Records, form: str) -> str:
  """A table a size, and what is to be known of it.

  Args:
    records: of a run, as in its results.jsonl.
    form: "github" or "simple", of tabulate.
  """
  parts = [_machine(r) for r in records if r["kind"] == "machine"]
  sizes = dict.fromkeys(r["size"] for r in records if "size" in r)
  for size in sizes:
    own = [r for r in records if r.get("size") == size]
    parts += [_title(f"Size {size}", form),
              tabulate.tabulate(rows(own), headers="keys", tablefmt=form,
                                disable_numparse=True),
              *_notes(own)]
  return "\n\n".join(parts) + "\n"


def rows(records: _Records) -> list[dict[str, str]]:
  """A row a timed phase; `theirs / ours` is above 1 where ours is faster."""
  timed = [r for r in records if "seconds" in r]
  ours = {r["phase"]: r["seconds"] for r in timed if r["system"] == OURS}
  return [_row(r, ours.get(r["phase"])) for r in timed]


def _row(r: dict[str, Any], ours: float | None) -> dict[str, str]:
  share = lambda name: f"{100 * r[name]:.0f} %" if name in r else ""
  faster = r["seconds"] / ours if ours and r["system"] != OURS else None
  return {
      "phase": r["phase"],
      "system": r["system"],
      "seconds": f"{r['seconds']:.3f}",
      "min": f"{r['min_seconds']:.3f}",
      "max": f"{r['max_seconds']:.3f}",
      "quiet": f"{r['num_quiet']}/{r['num_calls']}",
      "theirs / ours": f"{faster:.2f}" if faster else "",
      "tokens/s": f"{r['tokens_per_second']:.0f}",
      "GFLOP/s": f"{r['gflops']:.1f}",
      "of GEMM": share("gemm_share"),
      "of FMA": share("fma_share"),
      "of bandwidth": share("bandwidth_share"),
      "peak MB": f"{r['peak_mb']:.0f}",
      "first s": f"{r['setup_seconds'] + r['first_call_seconds']:.1f}",
  }


def _title(text: str, form: str) -> str:
  return f"## {text}" if form == "github" else text.upper()


def _machine(r: dict[str, Any]) -> str:
  known = f"{r['processor']}, {r['num_cpus']} CPUs"
  if "fma_flops" in r:
    known += (f"; FMA {r['fma_flops'] / 1e9:.0f} GFLOP/s, "
              f"triad {r['stream_bytes'] / 1e9:.1f} GB/s")
  return known + "; float32."


def _notes(records: _Records) -> list[str]:
  """Sentences on agreement, refusals and what is missing."""
  found = []
  for r in records:
    name = f"{r['system']} {r.get('phase', '')}".strip()
    last_words = (r.get("failed") or "").strip().splitlines()[-1:]
    if last_words:
      found.append(f"{name} failed: {last_words[0]}")
    elif r.get("refused"):
      found.append(f"{name} was not timed: {r['refused']}.")
    elif r["kind"] == "check" and r["system"] != OURS:
      found.append(f"{name} agrees with this code to {r['largest']:.1e}.")
    elif r.get("skipped"):
      found.append(f"{name}: {r['skipped']}.")
    elif r.get("num_quiet") == 0:
      found.append(f"{name}: others were busy during every call; its figure "
                   "means little.")
  return found + _refill_notes(records)


def _refill_notes(records: _Records) -> list[str]:
  by_phase = {r["phase"]: r for r in records
              if "lengths" in r and "seconds" in r}
  if len(by_phase) < 2:
    return []
  with_it, without = by_phase["refill"], by_phase["no_refill"]
  pairs = zip(with_it["response_sums"], without["response_sums"])
  equal = sum(a == b for a, b in pairs)
  count = len(with_it["lengths"])
  ratio = with_it["tokens_per_second"] / without["tokens_per_second"]
  return [f"Slot refill: {ratio:.2f} times the tokens a second; {equal} of "
          f"{count} responses are equal with and without, of "
          f"{sum(with_it['lengths']) / count:.1f} tokens on average (geometric "
          f"lengths of mean {work.REFILL_MEAN:g}, cut at "
          f"{work.REFILL_RESPONSE})."]
