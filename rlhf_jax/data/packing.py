"""Which texts share a row: functions of their lengths and order alone.

So a row's number names the same texts in every epoch and every process.
"""

from collections.abc import Sequence

from rlhf_jax.data.records import DataError

# Only the newest are added to, so that the work stays linear.
_OPEN_ROWS = 64
_OPEN_BLOCKS = 16

Places = list[tuple[int, int]]  # (row, first token) of each text of a prompt


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Groups of indices whose lengths fit into `capacity`, by first fit."""
  groups, space = [], []
  for index, length in enumerate(lengths):
    for group in range(max(0, len(groups) - _OPEN_ROWS), len(groups)):
      if length <= space[group]:
        break
    else:
      group = len(groups)
      groups.append([])
      space.append(capacity)
    groups[group].append(index)
    space[group] -= length
  return groups


def pack_prompts(
    lengths: Sequence[Sequence[int]],
    *,
    num_rows: int,
    capacity: int,
    max_prompts: int,
) -> list[list[tuple[int, Places]]]:
  """Blocks of rows that prompts share, each with all its texts in one block.

  Args:
    lengths: of the texts of each prompt.
    num_rows: of a block.
    capacity: tokens of a row.
    max_prompts: most prompts of a block.

  Returns:
    Blocks; each a list of (index of a prompt, places of its texts).

  Raises:
    DataError: the texts of one prompt do not fit into a block.
  """
  blocks, used = [], []
  for prompt, texts in enumerate(lengths):
    for block in range(max(0, len(blocks) - _OPEN_BLOCKS), len(blocks)):
      if len(blocks[block]) < max_prompts:
        places = _place(texts, used[block], capacity)
        if places:
          break
    else:
      block = len(blocks)
      blocks.append([])
      used.append([0] * num_rows)
      places = _place(texts, used[block], capacity)
      if not places:
        raise DataError(
            f"{len(texts)} responses of {sum(texts)} tokens with their prompt"
            f" do not fit into {num_rows} rows of {capacity}; raise"
            " block_rows")
    for (row, _), length in zip(places, texts):
      used[block][row] += length
    blocks[block].append((prompt, places))
  return blocks


def _place(texts: Sequence[int], used: Sequence[int], capacity: int) -> Places:
  """Places for all texts behind what is `used` of each row; [] if they do not
  fit. The longest first, each into the fullest row that can take it."""
  used, places = list(used), [(0, 0)] * len(texts)
  for text in sorted(range(len(texts)), key=lambda i: -texts[i]):
    rows = [r for r in range(len(used)) if used[r] + texts[text] <= capacity]
    if not rows:
      return []
    row = max(rows, key=lambda r: used[r])
    places[text] = row, used[row]
    used[row] += texts[text]
  return places
