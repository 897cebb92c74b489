"""What a run left in its folder, as far as it came."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import json
from typing import Any

from etils import epath

from rlhf_jax import checkpoint, metrics, storage, summaries
from rlhf_jax.report import series


@dataclasses.dataclass(frozen=True)
class Folder:
  """A run, finished or not.

  Attributes:
    name: how the page calls it.
    workdir: its folder.
    config: config.json.
    summary: summary.json, {} of an unfinished run.
    done: finished stage -> done.json.
    compiled: stage -> compiled.json, where there is one.
    curves: of metrics.jsonl.
    samples: the rows of samples.jsonl.
    notes: the rows of guards.jsonl, and before them why it was stopped, of
      stages that did not go on since.
    account: kind of data, with its rounds where it has such -> account.
  """

  name: str
  workdir: str
  config: dict[str, Any]
  summary: dict[str, Any]
  done: dict[str, dict[str, Any]]
  compiled: dict[str, dict[str, Any]]
  curves: series.Curves
  samples: list[dict[str, Any]]
  notes: list[dict[str, Any]]
  account: dict[str, dict[str, Any]]

  @property
  def stages(self) -> list[str]:
    return list(self.config["stages"])

  @property
  def evaluation(self) -> dict[str, Any] | None:
    """The figures of the last evaluation, if there was one."""
    found = [content["figures"]["eval"] for content in self.done.values()
             if "eval" in content["figures"]]
    return found[-1] if found else None


def read(workdir: epath.PathLike, name: str | None = None) -> Folder:
  """Reads what is there.

  Args:
    workdir: the folder of a run, local or in a bucket.
    name: by default the folder's own.

  Raises:
    StorageError: it is not the folder of a run.
  """
  workdir = epath.Path(workdir)
  if not (workdir / "config.json").exists():
    raise storage.StorageError(
        f"{workdir / 'config.json'} does not exist: --workdir must be the "
        "folder of a run.")
  config = _json(workdir / "config.json")
  inputs = config.get("inputs", {})
  folders = {stage: epath.Path(inputs.get(stage) or workdir / stage)
             for stage in config["stages"]}
  done = {stage: content for stage, folder in folders.items()
          if (content := checkpoint.read_done(folder))}
  return Folder(
      name=name or workdir.name,
      workdir=str(workdir),
      config=config,
      summary=_json(workdir / "summary.json"),
      done=done,
      compiled={stage: content for stage in config["stages"]
                if (content := _json(workdir / stage / summaries.COMPILED))},
      curves=_if_there(workdir / "metrics.jsonl", series.read, {}),
      samples=_if_there(workdir / "samples.jsonl", storage.read_lines, []),
      notes=[*_stops(workdir, config["stages"], done),
             *metrics.read_notes(workdir)],
      account=_account(workdir / "data"))


def read_all(workdirs: Sequence[epath.PathLike]) -> list[Folder]:
  """Reads several, each by a name of its own.

  Raises:
    StorageError: one is not the folder of a run.
  """
  return [read(workdir, name)
          for workdir, name in zip(workdirs, names(map(str, workdirs)))]


def names(workdirs: Iterable[str]) -> list[str]:
  """The last parts of each path, as many as tell them from each other."""
  paths = [path.rstrip("/").split("/") for path in workdirs]
  for length in range(1, max(map(len, paths)) + 1):
    found = ["/".join(parts[-length:]) for parts in paths]
    if len(set(found)) == len(found):
      break
  return found


def _stops(workdir: epath.Path, stages, done) -> Iterator[dict[str, Any]]:
  for stage in stages:
    folder = workdir / stage / "stopped"
    if stage not in done and folder.exists():
      for path in sorted(folder.glob("*.json")):
        stop = _json(path)
        yield {"stage": stage, "step": stop["step"], "guard": "stopped the run",
               "message": stop["message"]}


def _account(data: epath.Path) -> dict[str, dict[str, Any]]:
  """Those of each kind, and of comparisons of several rounds."""
  if not data.exists():
    return {}
  paths = [*data.glob("*/report.json"), *data.glob("*/comparisons/report.json")]
  found = {str(path.parent.relative_to(data)): _json(path) for path in paths}
  return dict(sorted(found.items()))


def _json(path: epath.Path) -> dict[str, Any]:
  return json.loads(path.read_text()) if path.exists() else {}


def _if_there(path: epath.Path, read_file, default):
  return read_file(path) if path.exists() else default
