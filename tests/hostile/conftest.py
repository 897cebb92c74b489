"""Properties over arbitrary inputs, with an account of what was tried."""

import collections

import hypothesis
import pytest

# What a property says of an input: it was taken, or refused with a message.
ACCEPTED, ANSWERED = "accepted", "answered"
_SETTINGS = dict(derandomize=True, deadline=None, database=None,
                 suppress_health_check=list(hypothesis.HealthCheck))


@pytest.fixture(params=[
    pytest.param(1, id="short"),
    pytest.param(20, id="long", marks=pytest.mark.long)])
def attempt(request, account):
  """`attempt(strategy, law, number)` tries a law on so many inputs.

  The law takes an input and returns ACCEPTED or ANSWERED; anything raised is a
  failure. `-m long` tries twenty times as many.
  """
  counts = collections.Counter(tried=0, accepted=0, answered=0)

  def run(strategy, law, number):
    @hypothesis.settings(max_examples=number * request.param, **_SETTINGS)
    @hypothesis.given(strategy)
    def tried(value):
      counts["tried"] += 1
      outcome = law(value)
      assert outcome in (ACCEPTED, ANSWERED)
      counts[outcome] += 1

    tried()

  yield run
  assert counts["tried"]
  account(request.node.name, **counts)
