"""What is known of made-up reward models is found in their rows."""

import io

from matplotlib import figure as figure_lib
import numpy as np
import pytest

from rlhf_jax.evals import best_of_n, overoptimisation as forms
from rlhf_jax.evals.suite import Result
from rlhf_jax.studies import overoptimisation
from rlhf_jax.studies.overoptimisation import MODELS, Curve

ALPHA, BETA = 1.0, 0.5  # the peak is at d = e
NUM_PROMPTS, NUM_SAMPLES, NUM_ITERS = 40, 64, 100
START, GOLD_SD, PROXY_SD = 0.4, 0.2, 3.0


def made_curve(rng, last_kl: float = 25.0, start: float = START) -> Curve:
  """PPO whose KL grows evenly; at 25 it is past its peak, at 200 its gold score
  is long at 0, below which none can be."""
  kl = np.linspace(0, last_kl, NUM_ITERS)
  gain = forms.RL.terms(np.sqrt(kl)) @ [ALPHA, BETA]
  gold = start + GOLD_SD * (gain + rng.normal(0, 0.03, NUM_ITERS))
  return Curve(
      steps=np.arange(1, NUM_ITERS + 1), kl=kl, gold=np.maximum(gold, 0.0),
      proxy=7.0 + PROXY_SD * np.sqrt(kl), episodes=128)


def start_rows(seed) -> list[dict]:
  return [{"seed": seed, "run": "main", "policy": "rl_init", "task": "start",
           "name": name, "mean": value, "low": None, "high": None, "n": 1}
          for name, value in (("gold", START), ("gold_sd", GOLD_SD))]


def rl_rows(seed, curve: Curve, start: float = START) -> list[dict]:
  """Of a seed in which the first model's PPO alone was measured."""
  run, stage = MODELS[0].ppo
  return start_rows(seed) + [
      {"seed": seed} | Result(run, f"{stage}{policy}", task, row).as_json()
      for policy, task, row in overoptimisation.trained(
          curve.gains(start, GOLD_SD, PROXY_SD))]


def made_samples(rng) -> tuple[np.ndarray, np.ndarray]:
  """Proxy and gold scores; the best of many by the proxy is worse."""
  proxy = rng.normal(size=(NUM_PROMPTS, NUM_SAMPLES))
  gold = proxy - 0.7 * np.maximum(proxy, 0) ** 2
  return proxy, gold + rng.normal(0, 0.3, size=(NUM_PROMPTS, 1))


@pytest.fixture(name="rows", scope="module")
def _rows():
  """Of two seeds and two models, as the driver hands them on."""
  found = []
  for seed in (0, 1):
    found += start_rows(seed)
    for model in MODELS[:2]:
      rng = np.random.default_rng(seed)
      of_ppo = overoptimisation.trained(
          made_curve(rng).gains(START, GOLD_SD, PROXY_SD))
      for (run, stage), those in (
          (model.reward_model, overoptimisation.best_of(*made_samples(rng))),
          (model.ppo, of_ppo)):
        found += [{"seed": seed} | Result(
            run, f"{stage}{policy}", task, row).as_json()
                  for policy, task, row in those]
  return found


def figures_of(rows, policy, seed=0):
  return {row["name"]: row for row in rows
          if (row["policy"], row["seed"]) == (policy, seed)}


def test_the_form_of_rl_is_found(rows):
  found = figures_of(rows, "ppo@n250")
  for name, value in (("alpha", ALPHA), ("beta", BETA)):
    assert found[name]["low"] < value < found[name]["high"]
    assert found[name]["high"] - found[name]["low"] < 0.1
  assert found["peak_d"]["mean"] == pytest.approx(np.e, abs=0.1)
  assert found["peak_gain"]["mean"] == pytest.approx(np.e * BETA, abs=0.05)
  assert found["peak_is_inside"]["mean"] == 1
  assert 0.9 < found["r2"]["mean"] < found["r2_of_means"]["mean"] < 1


def test_gains_are_over_the_start_in_sds(rows):
  first, last = (figures_of(rows, f"ppo@n250/iteration_{step}")
                 for step in (1, NUM_ITERS))
  assert first["proxy_gain"]["mean"] == 0.0
  assert last["proxy_gain"]["mean"] == pytest.approx(5.0)
  assert last["gold_gain"]["mean"] == pytest.approx(
      5 * (ALPHA - BETA * np.log(5)), abs=0.2)
  assert last["kl"]["mean"] == 25 and last["kl"]["n"] == 128


def test_best_of_n_rises_and_falls(rows):
  gains = [figures_of(rows, f"rm@n250/best_of_{n}")
           for n in best_of_n.powers_of_two(NUM_SAMPLES // 2)]
  gold, proxy = ([of[name]["mean"] for of in gains]
                 for name in ("gold_gain", "proxy_gain"))
  assert (gold[0], proxy[0]) == pytest.approx((0.0, 0.0))
  assert 0.0 < max(gold) > gold[-1] + 0.1
  assert proxy == sorted(proxy)
  assert gains[3]["kl"]["mean"] == pytest.approx(np.log(8) - 7 / 8)
  found = figures_of(rows, "rm@n250")
  assert found["peak_is_inside"]["mean"] == 1
  assert found["alpha"]["low"] < found["alpha"]["mean"] < found["alpha"]["high"]


def test_few_iterations_give_no_fit():
  curve = made_curve(np.random.default_rng(0))
  few = Curve(curve.steps[:5], curve.kl[:5], curve.gold[:5], curve.proxy[:5], 8)
  assert {task for _, task, _ in overoptimisation.trained(few)} == {"rl"}


def test_tables(rows):
  fits, falls, above_floor = overoptimisation.tables(rows)
  assert [row[:2] for row in fits.rows] == [
      [model.label, method] for method in ("best-of-n", "RL")
      for model in MODELS[:2]]
  assert [row[0] for row in above_floor.rows] == [
      model.label for model in MODELS[:2]]
  for table in (fits, falls, above_floor):
    assert {len(row) for row in table.rows} == {len(table.headers)}
  assert {row[-1] for row in fits.rows + falls.rows} == {"2 of 2"}
  for table in (fits, falls):
    assert "of best-of-n the root of a bound" in table.title
  best, last = (float(falls.rows[2][at]) for at in (3, 6))
  assert best == pytest.approx(np.e * BETA, abs=0.1) and last < best


def test_one_seed_alone(rows):
  fits, falls, _ = overoptimisation.tables([r for r in rows if r["seed"] == 1])
  assert {row[-1] for row in fits.rows + falls.rows} == {"1 of 1"}


def test_a_peak_says_of_how_many_seeds_it_is(rows):
  """One seed's RL rises for ever, and has no row of a peak."""
  kept = [row | {"mean": 0.0} if row["name"] == "peak_is_inside"
          and is_of(row) else row for row in rows
          if not (is_of(row) and row["name"] in ("peak_d", "peak_gain"))]
  fits, _, _ = overoptimisation.tables(kept)
  at = fits.headers.index("seeds with a peak")
  assert [row[at:] for row in fits.rows[2:]] == [
      ["1 of 2", "1 of 2"], ["2 of 2", "2 of 2"]]
  assert "(" in fits.rows[2][2] and "(" not in fits.rows[2][at - 1]


def is_of(row) -> bool:
  return (row["seed"], row["policy"]) == (0, MODELS[0].ppo[1])


def test_a_peak_above_the_floor_says_so_too():
  """Nearly all of the second seed's iterations are before its peak."""
  rows = [row for seed, last_kl in ((0, 25.0), (1, 4.0))
          for row in rl_rows(
              seed, made_curve(np.random.default_rng(seed), last_kl))]
  *_, above_floor = overoptimisation.tables(rows)
  assert above_floor.headers[-1] == "seeds with that peak inside"
  assert [row[-1] for row in above_floor.rows] == ["1 of 2"]


def test_the_form_is_found_above_the_floor():
  curve = made_curve(np.random.default_rng(0), last_kl=200.0)
  rows = rl_rows(0, curve)
  line, = overoptimisation.lines(rows)
  found, = overoptimisation.above_floor(rows, line)
  assert (found.fit.alpha, found.fit.beta) == pytest.approx(
      (ALPHA, BETA), abs=0.05)
  assert curve.gold[found.number - 1] > 0.0 == curve.gold[found.number + 10]
  whole = figures_of(rows, MODELS[0].ppo[1])
  assert abs(whole["beta"]["mean"] - BETA) > 0.05
  assert whole["r2"]["mean"] < found.fit.r2


def test_the_cut_is_a_loss_though_the_start_scores_more_on_rls_prompts():
  """.2 more than on held-out ones, of which 90 % are lost at the cut."""
  start = START + 0.2
  curve = made_curve(np.random.default_rng(0), last_kl=200.0, start=start)
  rows = rl_rows(0, curve, start)
  line, = overoptimisation.lines(rows)
  found, = overoptimisation.above_floor(rows, line)
  means = overoptimisation.binned(curve.gold)
  cut = found.number // overoptimisation.WIDTH
  assert means[cut] < start - 0.9 * START < means[:cut].min()
  *_, table = overoptimisation.tables(rows)
  assert table.title.endswith(
      "5 iterations have lost more than 90% of what the start scores on "
      "held-out prompts")


def test_draw(rows):
  figure = figure_lib.Figure(layout="constrained")
  overoptimisation.draw(rows, figure)
  figure.savefig(io.BytesIO(), format="svg")
  assert [ax.get_title() for ax in figure.axes] == ["best-of-n", "RL"]
  assert ["bound" in ax.get_xlabel() for ax in figure.axes] == [True, False]
  gold = figure.axes[1].containers[0].lines[0].get_ydata()
  assert len(gold) == NUM_ITERS // overoptimisation.WIDTH
  assert gold.argmax() not in (0, len(gold) - 1)
