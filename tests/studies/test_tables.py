"""What studies say of rows: made up here, so that the answer is known."""

import math

from matplotlib import figure as figure_lib
import pytest

from rlhf_jax.studies import (
    alignment_tax, behaviour, measuring, model_sizes, policies, reward_models,
)


def row(seed, who, task, name, mean):
  run, policy = who
  return {"seed": seed, "run": run, "policy": policy, "task": task,
          "name": name, "mean": mean, "low": mean, "high": mean, "n": 10}


def tax_rows():
  """PPO loses .4 of .9 in facts and .1 nats; PPO-ptx has back .3 and .15."""
  rows = []
  for seed in (0, 1):
    for who, facts, loss in (
        (("main", "pretrain"), 0.95, 1.0), (("main", "sft"), 0.9, 0.95),
        (("main", "rl_init"), 0.9, 0.95), (("plain", "ppo"), 0.5, 1.05),
        (("main", "ppo"), 0.8, 0.9), (("tax", "ppo@kl1"), 0.7, 1.0)):
      rows += [row(seed, who, "facts", "accuracy", facts),
               row(seed, who, "pretraining", "loss", loss),
               row(seed, who, "gold", "gold", 0.5 + 0.1 * seed)]
    for who, kl_coef, ptx_coef in (
        (("main", "ppo"), 0.1, 1.0), (("plain", "ppo"), 0.1, 0.0),
        (("tax", "ppo@kl1"), 1.0, 0.0)):
      rows += [row(seed, who, "setting", "kl_coef", kl_coef),
               row(seed, who, "setting", "ptx_coef", ptx_coef)]
  return rows


def cells(table):
  """First cell of a line -> its others."""
  return {line[0]: line[1:] for line in table.rows}


def test_the_tax_and_what_pays_it():
  rows = tax_rows()
  assert alignment_tax.recovered(rows, alignment_tax.FACTS) == (
      pytest.approx(0.75))
  assert alignment_tax.recovered(rows, alignment_tax.LOSS) == (
      pytest.approx(1.5))
  policies_, by_ptx, by_kl, shares = alignment_tax.tables(rows)
  assert cells(policies_)["PPO"][0] == "0.500 (0.500 to 0.500)"
  assert cells(policies_)["SFT"][3] == "0.550 (0.500 to 0.600)"
  assert list(cells(by_ptx)) == ["0", "1"]  # not that of another kl_coef
  assert list(cells(by_kl)) == ["0.1", "1"]
  assert cells(by_kl)["1"][0].startswith("0.700")
  assert cells(shares)[alignment_tax.FACTS.title] == (
      "0.75 (0.75 to 0.75)", "2 of 2")


def test_where_nothing_is_lost_nothing_is_recovered():
  rows = [row | {"mean": 0.9} if row["task"] == "facts" else row
          for row in tax_rows()]
  shares = alignment_tax.tables(rows)[-1]
  assert cells(shares)[alignment_tax.FACTS.title] == ("-", "0 of 2")


@pytest.mark.parametrize("figure, task, better", [
    (alignment_tax.FACTS, "facts", 0.95), (alignment_tax.LOSS, "pretraining",
                                           0.93)])
def test_a_seed_in_which_ppo_is_better_has_no_share(figure, task, better):
  """A loss is better where it is less, an accuracy where it is more."""
  rows = [of | {"mean": better} if (of["seed"], of["run"], of["task"]) == (
      1, "plain", task) else of for of in tax_rows()]
  of_seed = lambda seed: [of for of in rows if of["seed"] == seed]
  assert math.isnan(alignment_tax.recovered(of_seed(1), figure))
  shares = cells(alignment_tax.tables(rows)[-1])[figure.title]
  kept = alignment_tax.recovered(of_seed(0), figure)
  assert shares == (f"{kept:.2f}", "1 of 2")


def test_preference_is_one_half_for_the_baseline_itself():
  rows = [row(seed, who, *figure) for seed in (0, 2)
          for family in model_sizes.FAMILIES for who in family.members.values()
          for figure in (("setting", "parameters", 10.0 + len(family.size)),
                         ("gold", "gold", 0.3))]
  rows += [row(seed, who, "preferred", "win_rate_to_sft", 0.2 + 0.1 * seed)
           for seed in (0, 2)
           for family in model_sizes.FAMILIES
           for who in family.members.values() if who != model_sizes.BASELINE]
  preferred, gold = model_sizes.tables(rows)
  largest = preferred.rows[-1]
  kinds = dict(zip(policies.KINDS, largest[1:]))
  assert kinds["SFT"] == "0.500 (0.500 to 0.500)"
  assert kinds["PPO"] == "0.300 (0.200 to 0.400)"
  assert gold.rows[0][1] == "0.300 (0.300 to 0.300)"
  model_sizes.draw(rows, figure_lib.Figure())


def test_reward_models_by_count_and_by_fold():
  rows = []
  for who, count, accuracy in ((("counts", "rm@n250"), 240, 0.6),
                               (("main", "rm"), 4300, 0.7),
                               (("folds", "rm@kwise"), 720, 0.65),
                               (("folds", "rm@pairs"), 720, 0.62)):
    rows += [row(0, who, "setting", "comparisons", count),
             row(0, who, "accuracy", "train_labelers", accuracy),
             row(0, who, "accuracy", "heldout_labelers", accuracy - 0.01),
             row(0, who, "epoch", "accuracy/1", accuracy),
             row(0, who, "epoch", "loss/1", 1 - accuracy)]
  for fold, inside in enumerate((0.6, 0.7)):
    who = "folds", f"rm@fold{fold}"
    rows += [row(0, who, "fold", "inside", inside),
             row(0, who, "fold", "heldout", inside - 0.02)]
  growth, left_out, batching = reward_models.tables(rows)
  assert [line[0] for line in growth.rows] == ["240", "4,300"]
  assert growth.rows[1][1:] == ("70.0", "69.0")
  assert cells(left_out)["learnt from"] == ("65.0", "72.4")
  assert cells(left_out)["left out"] == ("63.0", "69.6")
  assert cells(batching)["pairs shuffled"] == ("62.0", "0.380")
  reward_models.draw(rows, figure_lib.Figure())


def test_a_count_is_the_mean_over_seeds():
  rows = [row(seed, ("main", "rm"), "setting", "comparisons", count)
          for seed, count in ((0, 4317), (2, 4321))]
  assert reward_models.by_count(rows) == [(4319, "main", "rm")]


def test_a_fold_weighs_by_its_prompts():
  """Two labelers of 100 prompts, and one of 20 that is known better."""
  rows = [row(0, ("folds", f"rm@fold{fold}"), "fold", "heldout", mean)
          | {"n": n} for fold, (mean, n) in enumerate(((0.6, 100), (0.9, 20)))]
  assert reward_models.folds(rows, "heldout") == {0: pytest.approx(0.65)}
  assert reward_models.folds(rows, "inside") == {}


def test_behaviour_shows_every_mark():
  rows = [row(0, who, task, name, 0.4)
          for who in behaviour.FAMILY.members.values()
          for task, name in (
              *(("metadata", name) for name in behaviour.FIGURE_4.values()),
              ("gold", "gold"), ("style", "tokens"))]
  marks, gold, style = behaviour.tables(rows)
  assert list(cells(marks)) == list(behaviour.FIGURE_4.values())
  assert cells(gold)["gold"] == ("0.400",) * 5
  assert cells(style)["tokens"] == ("0.400",) * 5
  behaviour.draw(rows, figure_lib.Figure())


def test_the_tax_is_drawn():
  drawing = figure_lib.Figure()
  alignment_tax.draw(tax_rows(), drawing)
  panels = drawing.get_axes()
  assert len(panels) == 6
  assert all(panel.lines for panel in panels)


def test_by_seed_leaves_out_seeds_without_a_figure():
  rows = [row(0, ("a", "b"), "t", "n", 1.0)]
  rows += [row(1, ("a", "b"), "t", "n", float("nan"))]
  assert measuring.by_seed(
      rows, lambda of: measuring.value(of, task="t")) == {0: 1.0}
