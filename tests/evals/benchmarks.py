"""A data folder with a few rows of every benchmark, in their own fields."""

import gzip
import json
import pathlib

_GENDERS = (("male", "he"), ("female", "she"), ("neutral", "they"))
ROWS = {
    "hellaswag": [
        {"ctx": f"Person {n} takes a cup and", "label": n % 4,
         "endings": ["drinks.", "runs away.", "sings a song.", "sits."]}
        for n in range(8)],
    "sst2": [{"sentence": "a fine film", "label": 1},
             {"sentence": "dull", "label": 0}],
    "rte": [{"text": "It rained.", "hypothesis": "It was wet.",
             "label": "entailment"},
            {"text": "It rained.", "hypothesis": "It was dry.",
             "label": "not_entailment"}],
    "truthfulqa": [
        {"Question": f"What do {n} cats eat?", "Best Answer": "Fish",
         "Correct Answers": "Fish; Mice", "Incorrect Answers": "Sand; Glass"}
        for n in range(4)],
    "winogender": [
        {"sentid": f"cook.guest.{n}.{gender}.txt", "gender": gender,
         "sentence": f"The cook told the guest that {word} was late."}
        for n in range(2) for gender, word in _GENDERS],
    "crows_pairs": [{"sent_more": "Old people are slow.",
                     "sent_less": "Young people are slow."}],
    "gsm8k_test": [{"question": "What is 1 + 1?",
                    "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}],
    **{f"instructgpt_samples_{name}": [
        {"context": f"{name} {n % 2}: say yes\nAnswer:", "model_type": "m",
         "ref_text": "yes we can do it", "sample": "yes we can do it"}
        for n in range(4)]
       for name in ("drop", "squadv2", "fr_to_en", "tldr")},
}


def write(folder: pathlib.Path) -> pathlib.Path:
  """Writes evals/NAME.jsonl.gz below a folder; returns it."""
  (folder / "evals").mkdir(parents=True)
  for name, rows in ROWS.items():
    with gzip.open(folder / "evals" / f"{name}.jsonl.gz", "wt") as file:
      file.writelines(json.dumps(row) + "\n" for row in rows)
  return folder
