"""Text survives, ids are stable, the end is learnt and padding is not text."""

import json
import os
import subprocess
import sys

import pytest

from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.records import DataError

TEXTS = [
    "\n\nHuman: Hello world!\n\nAssistant:",
    "Zoë keeps bees — 40,000 of them — behind the café. 🐝",
    "\x00\t  spaces   and\r\nlines  ",
    "a <|endoftext|> inside",
]


def _gpt2_pairs():
  """(spec, text, ids) of GPT-2's own files, where they are at hand."""
  folder = os.path.join(os.environ.get("RLHF_JAX_DATA", ""), "gpt2_bpe")
  spec = f"{folder}/encoder.json,{folder}/vocab.bpe"
  ids = [15496, 995]
  return [(spec, "Hello world", ids, 50256)] if os.path.isdir(folder) else []


@pytest.fixture(name="own", scope="module")
def _own():
  return tokenizer_lib.train(TEXTS * 3, 300)


@pytest.fixture(name="pair", scope="module")
def _pair(tmp_path_factory):
  """Two hand-made files in GPT-2's form: 'ab' and 'abb' are tokens."""
  folder = tmp_path_factory.mktemp("pair")
  vocab = {"a": 0, "b": 1, "ab": 2, "abb": 3, "Ġ": 4, "<|endoftext|>": 5}
  (folder / "encoder.json").write_text(json.dumps(vocab))
  (folder / "vocab.bpe").write_text("#version: 0.2\na b\nab b\n")
  return f"{folder}/encoder.json,{folder}/vocab.bpe"


@pytest.mark.parametrize(
    "spec,text,ids,eos_id", [("", "abb ab", [3, 4, 2], 5)] + _gpt2_pairs()
)
def test_gpt2_files_give_their_ids(pair, spec, text, ids, eos_id):
  tokenizer = tokenizer_lib.load(spec or pair)
  assert tokenizer.encode(text) == ids
  assert tokenizer.decode(ids) == text
  assert tokenizer.eos_id == eos_id
  assert tokenizer.vocab_size == eos_id + 1
  assert tokenizer.pad_id == tokenizer.vocab_size


def test_any_text_survives(own):
  assert own.encode_batch(TEXTS) == [own.encode(text) for text in TEXTS]
  for text in TEXTS:
    assert own.decode(own.encode(text)) == text
  assert {i for t in TEXTS for i in own.encode(t)} < set(range(own.vocab_size))


def test_every_byte_has_an_id(own):
  every = bytes(range(256)).decode("latin-1") + "\U0010ffff"
  assert own.decode(own.encode(every)) == every


def test_text_never_yields_the_end_and_decoding_drops_it(own):
  assert own.eos_id not in own.encode("a<|endoftext|>")
  ids = own.encode("ab") + [own.eos_id, own.pad_id, -1]
  assert own.decode(ids) == "ab"
  assert own.pad_id != own.eos_id


def test_saving_and_loading_is_identity(own, tmp_path):
  path = tmp_path / "deep" / "tokenizer.json"
  own.save(str(path))
  for spec in (path, path.parent):
    again = tokenizer_lib.load(str(spec))
    assert again.digest == own.digest
    assert again.encode_batch(TEXTS) == own.encode_batch(TEXTS)
    assert own.eos_id not in again.encode("a<|endoftext|>")
  other = tokenizer_lib.train(TEXTS, 280)
  assert other.digest != own.digest and other.vocab_size == 280


def test_training_is_deterministic(own):
  program = (
      "from rlhf_jax.data import tokenizer as t;"
      f"print(t.train({TEXTS!r} * 3, 300).digest)"
  )
  result = subprocess.run(
      [sys.executable, "-c", program],
      capture_output=True, text=True, check=True,
      cwd=os.path.join(os.path.dirname(__file__), "..", ".."),
  )
  assert result.stdout.strip() == own.digest


def test_bad_files_are_named(tmp_path):
  (tmp_path / "bad.json").write_text("{}")
  (tmp_path / "v.json").write_text('{"a": 0}')
  (tmp_path / "m.txt").write_text("#version: 0.2\n")
  for spec, message in (
      (f"{tmp_path}/none.json", "none.json'.*no file"),
      (f"{tmp_path}", "no file '.*tokenizer.json'"),
      (f"{tmp_path}/bad.json", "bad.json': cannot be read"),
      (f"{tmp_path}/v.json,{tmp_path}/none.txt", "no file"),
      (f"{tmp_path}/bad.json,{tmp_path}/m.txt", "no <|endoftext|>"),
      (f"{tmp_path}/v.json,{tmp_path}/m.txt", "has no <|endoftext|>"),
  ):
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
      tokenizer_lib.load(spec)
  with pytest.raises(DataError, match="need 257"):
    tokenizer_lib.train(["a"], 256)


def _write(folder, **files):
  """JSON files by their names up to the dot."""
  for name, content in files.items():
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(name="opt")
def _opt(tmp_path):
  """A folder as OPT's: two files of BPE, and what its special tokens are."""
  vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5,
           "ab": 6, "Ġ": 7}
  _write(tmp_path, vocab=vocab, config={"eos_token_id": 2},
         tokenizer_config={
             "add_bos_token": True, "bos_token": {"content": "</s>"},
             "eos_token": {"content": "</s>"}, "pad_token": "<pad>"})
  (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
  return tmp_path


def test_an_imported_folder_says_what_its_end_and_its_start_are(opt, tmp_path):
  tokenizer = tokenizer_lib.load(str(opt))
  assert (tokenizer.end, tokenizer.eos_id) == ("</s>", 2)
  assert tokenizer.start_ids == [2]
  assert tokenizer.encode("ab") == [6]
  assert tokenizer.decode([2, 6, 1, 2]) == "ab"  # special ones are no text
  tokenizer.save(str(tmp_path / "stored" / "tokenizer.json"))
  again = tokenizer_lib.load(str(tmp_path / "stored"))
  assert (again.end, again.start, again.digest) == (
      "</s>", "</s>", tokenizer.digest)


def test_the_end_may_stand_in_the_models_config_only(own, tmp_path):
  (tmp_path / "tokenizer.json").write_text(own.bpe.to_str())
  _write(tmp_path, config={"eos_token_id": own.encode("!")[0]})
  with pytest.raises(DataError, match="would become the end token !"):
    tokenizer_lib.load(str(tmp_path))  # it is no special one
  _write(tmp_path, generation_config={"eos_token_id": [own.eos_id, 7]})
  assert tokenizer_lib.load(str(tmp_path)).end == "<|endoftext|>"
  _write(tmp_path, special_tokens_map={"eos_token": "<end>"})
  with pytest.raises(DataError, match="300 tokens has no <end>; add it"):
    tokenizer_lib.load(str(tmp_path))
  _write(tmp_path, special_tokens_map={}, generation_config={
      "eos_token_id": 4_000})
  with pytest.raises(DataError, match="eos_token_id is 4000, which its 300"):
    tokenizer_lib.load(str(tmp_path))


def test_a_template_says_what_stands_before_a_prompt(own, tmp_path):
  template = {"type": "TemplateProcessing",
              "single": [{"SpecialToken": {"id": "<|endoftext|>",
                                           "type_id": 0}},
                         {"Sequence": {"id": "A", "type_id": 0}}],
              "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                       {"Sequence": {"id": "B", "type_id": 1}}],
              "special_tokens": {"<|endoftext|>": {
                  "id": "<|endoftext|>", "ids": [own.eos_id],
                  "tokens": ["<|endoftext|>"]}}}
  content = json.loads(own.bpe.to_str()) | {"post_processor": template}
  _write(tmp_path, tokenizer=content)
  assert tokenizer_lib.load(str(tmp_path)).start_ids == [own.eos_id]
  assert own.start_ids == []


def test_files_beside_a_tokenizer_that_are_no_objects(own, tmp_path):
  own.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text("[")
  with pytest.raises(DataError, match="tokenizer_config.json' is no JSON"):
    tokenizer_lib.load(str(tmp_path))
