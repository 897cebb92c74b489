"""What looks like personal data in a text, found and made unreadable.

Regular expressions find what looks like one, no more: names pass, and a
product number with the shape of a phone number does not. Each takes time
linear in the length of the text.
"""

import re

_SOURCES = {
    # ann.lee@example.org; starts only where no part of it can stand before.
    "e-mail address": r"(?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+",
    # 4111 1111 1111 1111, 3782-822463-10005, 4111111111111111
    "card number": (
        r"(?<![\w.=-])[3-6](?:\d{3}(?:[ -]\d{4}){3}|\d{3}[ -]\d{6}[ -]\d{5}"
        r"|\d{12,15})(?![\w-])"
    ),
    # (555) 010-0199, +1 555.010.0199, 555-010-199, 555-0199, +44 20 7946 0958
    "phone number": (
        r"(?<![\w.,$-])(?:(?:\+?\d{1,3}[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])"
        r"\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{3}|\d{3}-(?!\d000)\d{4}"
        r"|\+\d{1,3}(?:[ .-]?\d{2,4}){2,4})(?![\w-]| ?=)"
    ),
    # 221 Baker Street, 7 Old Mill Rd
    "street address": (
        r"\b\d{1,5}[A-Za-z]? (?:[A-Z][\w'.]* ){1,3}(?:Street|St|Avenue|Ave"
        r"|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Square|Sq|Terrace"
        r"|Close|Way)\b"
    ),
}
_PATTERNS = {k: re.compile(v) for k, v in _SOURCES.items()}
_PART_OF_ALL = re.compile(r"[@\d]")  # Most texts have neither.


def find(text: str) -> str | None:
  """The first sort of personal data found in a text, or None."""
  if not _PART_OF_ALL.search(text):
    return None
  for name, pattern in _PATTERNS.items():
    if pattern.search(text):
      return name
  return None


def redact(text: str) -> str:
  """The text with "[e-mail address]" and the like for what `find` finds."""
  while find(text):  # What stood beside a match may look like one now.
    for name, pattern in _PATTERNS.items():
      text = pattern.sub(f"[{name}]", text)
  return text
