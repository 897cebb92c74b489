"""Best-of-n beside made-up policies of which all is known."""

import io

from matplotlib import figure as figure_lib
import numpy as np
import pytest

from rlhf_jax.evals import best_of_n as estimate
from rlhf_jax.evals import results
from rlhf_jax.evals.best_of_n import Samples
from rlhf_jax.evals.suite import Result
from rlhf_jax.sampler import Response
from rlhf_jax.studies import best_of_n, measuring
from rlhf_jax.studies.best_of_n import Scored

NUM_PROMPTS, NUM_SAMPLES, NUM_ANSWERS = 40, 32, 6
MORE = 0.25  # than best-of-n has the first policy
KLS = {"main/ppo": estimate.kl(4), "tax/ppo@kl03": estimate.kl(NUM_SAMPLES) + 1}


def made(gold, proxy) -> Scored:
  """The text of a sample is its place."""
  prompts, num = gold.shape
  return Scored(Samples(
      [{"prompt": str(p)} for p in range(prompts)],
      [[Response(f"{p}/{k}", np.arange(2), True) for k in range(num)]
       for p in range(prompts)]), gold, proxy)


@pytest.fixture(name="start", scope="module")
def _start():
  rng = np.random.default_rng(0)
  proxy = rng.normal(size=(NUM_PROMPTS, NUM_SAMPLES))
  return made(0.5 * proxy + rng.normal(size=proxy.shape), proxy)


def policy_of(start, kl) -> tuple[Scored, np.ndarray]:
  """One that has MORE gold than best-of-4, and its KLs."""
  level = estimate.expected_best(start.proxy, start.gold, 4)[:, None]
  noise = np.linspace(-1, 1, NUM_ANSWERS)  # of mean 0
  found = made(level + MORE + noise, level + noise)
  return found, kl + np.tile(noise, (NUM_PROMPTS, 1)) / 10


@pytest.fixture(name="rows", scope="module")
def _rows(start):
  """Of two seeds, which are the same."""
  found = [Result("main", policy, "best_of_n", row)
           for policy, row in best_of_n.curve(start)]
  found.append(Result("main", "best_of_4", "best_of_n",
                      results.mean("win_rate", [0.5, 1.0])))
  for number, (who, kl) in enumerate(KLS.items()):
    run, policy = who.split("/")
    found += [measuring.setting(run, policy, "kl_coef", 0.1 + number),
              measuring.setting(run, policy, "ptx_coef", 1.0)]
    found += [Result(run, policy, "ppo", row)
              for row in best_of_n.beside(start, *policy_of(start, kl))]
  return [{"seed": seed} | of.as_json() for seed in (0, 1) for of in found]


def figures_of(rows, policy):
  return {row["name"]: row for row in rows
          if (row["policy"], row["task"], row["seed"]) == (policy, "ppo", 0)}


def test_at_an_equal_kl(rows):
  found = figures_of(rows, "ppo")
  assert found["n_of_equal_kl"]["mean"] == pytest.approx(4.0)
  more = found["gold_over_best_of_n"]
  # paired: the same for every prompt, however much prompts differ
  assert (more["low"], more["high"]) == pytest.approx((MORE, MORE))
  assert more["n"] == NUM_PROMPTS
  assert found["gold"]["high"] - found["gold"]["low"] > 0.1
  assert found["gold"]["mean"] == pytest.approx(
      found["gold_of_best_of_n"]["mean"] + MORE)


def test_beyond_the_best_of_all_there_is_no_equal(rows):
  assert set(figures_of(rows, "ppo@kl03")) == {"kl", "gold", "proxy"}


def test_curve(rows, start):
  found = [row for row in rows if row["policy"] == "best_of_8"]
  assert measuring.value(found, name="gold") == pytest.approx(
      estimate.expected_best(start.proxy, start.gold, 8).mean())
  assert measuring.value(found, name="kl") == pytest.approx(
      np.log(8) - 7 / 8)
  assert "best_of_32" not in {row["policy"] for row in rows}  # of half of them


def test_the_best_of_some_samples(start):
  assert start.best_texts(1, 3) == start.texts(3)
  for text, proxy in zip(start.best_texts(8, 2), start.proxy):
    prompt, number = map(int, text.split("/"))
    assert 16 <= number < 24
    assert start.proxy[prompt, number] == proxy[16:24].max()


def test_tables(rows):
  equal, wins = best_of_n.tables(rows)
  for table in (equal, wins):
    assert {len(row) for row in table.rows} == {len(table.headers)}
  assert [row[0] for row in equal.rows] == [
      "PPO, kl_coef 0.1, ptx_coef 1", "PPO, kl_coef 1.1, ptx_coef 1"]
  assert equal.rows[0][5] == "0.25 (0.25 to 0.25)"
  assert equal.rows[0][6] == "± 0.00"  # over prompts
  assert [equal.rows[1][at] for at in (2, 4, 5, 6, 8, 9)] == ["-"] * 6
  assert [row[0] for row in wins.rows] == ["best of 4"]
  assert [row[-1] for row in equal.rows] == ["2 of 2", "0 of 2"]
  for table in (equal, wins):  # log n - (n - 1)/n is not best-of-n's KL
    assert "bound" in table.title


def test_a_line_compares_the_same_seeds(rows):
  """Of one seed the KL is beyond best-of-n's, and its other figures are high:
  none of them is beside the other seed's best-of-n."""
  beyond = ("n_of_equal_kl", *(f"{name}_{of}_best_of_n" for name in (
      "gold", "proxy") for of in ("of", "over")))
  is_first = lambda row: (row["seed"], row["policy"]) == (0, "ppo")
  mixed = [row | {"mean": row["mean"] + 1} if is_first(row) else row
           for row in rows
           if not (is_first(row) and row["name"] in beyond)]
  equal, _ = best_of_n.tables(mixed)
  alone, _ = best_of_n.tables([row for row in rows if row["seed"] == 1])
  line = next(row for row in equal.rows if row[-1] == "1 of 2")
  assert line[1:-1] == alone.rows[0][1:-1]


def test_draw(rows):
  figure = figure_lib.Figure(layout="constrained")
  best_of_n.draw(rows, figure)
  figure.savefig(io.BytesIO(), format="svg")
  gold, proxy = figure.axes
  for panel in (gold, proxy):
    assert "of best-of-n a bound" in panel.get_xlabel()
  assert len(gold.lines[0].get_xdata()) == 5  # n of 1, 2, 4, 8, 16
  assert len(gold.containers) == len(proxy.containers) == 2
