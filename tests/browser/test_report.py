"""report.html in a real browser: quiet, drawn, usable, printable."""

import contextlib

import pypdfium2
import pytest

from rlhf_jax.report import page
from tests.browser import chromium
from tests.report import made

SHOWN = ("[...document.querySelectorAll('#list article')].map("
         "a => ({prompt: a.querySelector('.prompt').textContent, "
         "use: a.querySelector('.tag').textContent}))")


@pytest.fixture(name="reports", scope="module")
def _reports(tmp_path_factory):
  """Of a run, and of two."""
  root = tmp_path_factory.mktemp("reports")
  runs = [made.folder(root / name) for name in "ab"]
  page.write(runs[:1], root / "one.html")
  page.write(runs, root / "two.html")
  return root


@contextlib.contextmanager
def opened(path, **settings):
  tab = chromium.Tab(path, **settings)
  try:
    tab.wait_for("document.body.dataset.charts === 'drawn'")
    yield tab
  finally:
    tab.close()


@pytest.fixture(name="tab", scope="module")
def _tab(reports):
  with opened(reports / "one.html") as tab:
    yield tab


@pytest.mark.parametrize(("name", "runs"), [("one.html", 1), ("two.html", 2)])
def test_every_chart_has_points_and_the_console_is_quiet(reports, name, runs):
  with opened(reports / name) as tab:
    lines = tab.run("""[...document.querySelectorAll("figure")].map(
        figure => [...figure.querySelectorAll(".scatterlayer .trace")].map(
            trace => trace.querySelector("path.js-line").getAttribute("d")))
        """)
    wanted = tab.run("read('chart-data').charts.map(c => c.lines.length)")
    assert tab.console == []
    assert tab.fetched == [(reports / name).as_uri()]
  assert len(lines) > 10 and [len(traces) for traces in lines] == wanted
  assert all("L" in path for traces in lines for path in traces)  # line to
  assert all(count % runs == 0 for count in wanted)


def test_hostile_samples_are_shown_and_do_nothing(tab):
  tab.set("[name=text]", "question 1?")
  shown, = tab.run(SHOWN)
  assert shown["prompt"] == f"Question 1? {made.HOSTILE}"
  assert tab.run("document.images.length") == 0
  assert tab.run("window.hacked === undefined")
  tab.set("[name=text]", "")


def test_the_browser_filters_by_use_case_and_text(tab):
  assert len(tab.run(SHOWN)) == 10
  tab.set("[name=category]", "chat")
  assert {row["use"] for row in tab.run(SHOWN)} == {"chat"}
  assert tab.run("document.getElementById('count').textContent") == (
      "10 of 20 prompts")
  tab.set("[name=text]", "THE ANSWER 5")
  assert [row["prompt"].strip() for row in tab.run(SHOWN)] == [
      f"Question {i}?" for i in (5, 50, 53, 56, 59)]
  tab.set("[name=text]", "")
  tab.set("[name=category]", "")
  tab.run("document.getElementById('more').click()")
  assert len(tab.run(SHOWN)) == 20


@pytest.mark.parametrize("order", ["rise", "fall"])
def test_the_browser_sorts_by_change_between_two_policies(tab, order):
  def change(row):
    of = row["responses"]
    return of["sft"]["score"] - of["pretrain"]["score"]

  for name, value in (("order", order), ("measure", "score"),
                      ("from", "pretrain"), ("to", "sft")):
    tab.set(f"[name={name}]", value)
  wanted = sorted(made.samples(), key=change, reverse=order == "rise")[:10]
  assert [row["prompt"] for row in tab.run(SHOWN)] == [
      row["prompt"] for row in wanted]
  tab.set("[name=order]", "file")


def test_a_policy_can_be_left_out(tab):
  heads = ("[...document.querySelectorAll('article:first-child h4')].map("
           "head => head.textContent)")
  assert tab.run(heads) == ["pretrain", "sft", "ppo"]
  tab.run("document.querySelector('fieldset input').click()")
  assert tab.run(heads) == ["sft", "ppo"]
  tab.run("document.querySelector('fieldset input').click()")


@pytest.mark.parametrize("name", ["one.html", "two.html"])
def test_nothing_is_wider_than_a_phone(reports, name):
  with opened(reports / name, width=375, height=800) as tab:
    assert tab.run("innerWidth") == 375
    assert tab.run("document.documentElement.scrollWidth") <= 375
    assert tab.run("""[...document.querySelectorAll("body *")].filter(
        e => !e.closest(".scroll, pre, .plot")
             && e.getBoundingClientRect().right > 375.5)
        .map(e => e.outerHTML.slice(0, 80))""") == []


def test_print_has_the_figures_and_not_the_controls(tab, tmp_path):
  tab.print(tmp_path / "report.pdf")
  with pypdfium2.PdfDocument(tmp_path / "report.pdf") as pdf:
    text = "\n".join(sheet.get_textpage().get_text_bounded() for sheet in pdf)
  for shown in ("What to look at", "Policies on 60 held-out prompts",
                "Question 0?", "KL to the reference", "Rows dropped"):
    assert shown in text
  for hidden in ("Use case all", "Show 10 more", "as evaluated"):
    assert hidden not in text


def test_page_and_charts_are_dark_where_the_reader_is(reports):
  colours = ("[getComputedStyle(document.body).backgroundColor, "
             "getComputedStyle(document.querySelector('.plot text')).fill]")
  with opened(reports / "one.html") as tab:
    assert tab.run(colours) == ["rgb(255, 255, 255)", "rgb(28, 36, 48)"]
    tab.darken()
    assert tab.run(colours) == ["rgb(20, 24, 29)", "rgb(227, 232, 238)"]
