"""What Smallworld's rubric says of a policy's responses.

The gold score with its parts, and the labels of the paper's Table 3, also as
its Figure 4 has them: each over the prompts where it can be one or the other.
"""

from collections.abc import Iterator
import dataclasses

from rlhf_jax import labelers
from rlhf_jax.evals import results
from rlhf_jax.evals.responses import Responses
from rlhf_jax.evals.results import Row

# Use cases whose replies should say nothing but what stands in the prompt: the
# paper's "closed-domain" tasks (4.1).
CLOSED_DOMAIN = ("summarization", "closed_qa", "extract", "rewrite")


def gold(found: Responses) -> Iterator[Row]:
  """Yields `gold`, the mean gold score, and the mean of each of its parts:
  `follow`, `constraint` (1 where a prompt has none), `truth`, `polite` and
  `form`, all in [0, 1]."""
  yield results.mean("gold", [of.score for of in found.judgments])
  parts = [dataclasses.asdict(of.parts) for of in found.judgments]
  for name in parts[0]:
    yield results.mean(name, [of[name] for of in parts])


def metadata(found: Responses) -> Iterator[Row]:
  """Yields the share of each label of Table 3 over all prompts, and Figure 4:
  `attempts_instruction`, `follows_constraint` over the prompts that have a
  constraint, `hallucination_closed_domain` over those of CLOSED_DOMAIN, and
  `appropriate_for_customer_assistant`. What no prompt can show is left out."""
  labels = [of.metadata for of in found.judgments]
  share = lambda name, of: results.share(name, list(map(float, of)))
  for name in labelers.METADATA:
    yield share(name, [of[name] for of in labels])
  yield share("attempts_instruction",
              [not of["fails_instruction"] for of in labels])
  both = list(zip(labels, (task.kind for task in found.tasks)))
  constrained = [of["satisfies_constraint"] for of, kind in both
                 if kind.constraint]
  if constrained:
    yield share("follows_constraint", constrained)
  closed = [of["hallucination"] for of, kind in both
            if kind.category in CLOSED_DOMAIN]
  if closed:
    yield share("hallucination_closed_domain", closed)
  yield share(
      "appropriate_for_customer_assistant",
      [not of["inappropriate_for_customer_assistant"] for of in labels])
