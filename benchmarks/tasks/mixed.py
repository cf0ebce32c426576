"""Four tasks that have nothing in common, for one body of 2,048 inputs: newsgroups, clothes, small digits, digits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pyarrow.parquet
import torch
from sklearn.datasets import _twenty_newsgroups as clean
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from isopath.run import data as files

WORDS = 2048
CLASSES = {"newsgroups": 20, "clothes": 10, "small digits": 10, "digits": 10}
SIDES = {"clothes": 28, "small digits": 8, "digits": 28}  # pixels
FILLED = 45  # pixels of a side that fill the body's inputs
Pair = tuple[Tensor, Tensor]


def stem(name: str) -> nn.Module:
    """What makes 2,048 numbers of a task's rows, without a parameter: images are enlarged to 45 x 45 pixels."""
    if name not in SIDES:
        return nn.Identity()
    image, larger = nn.Unflatten(1, (1, SIDES[name], SIDES[name])), nn.Upsample(size=(FILLED, FILLED), mode="bilinear")
    return nn.Sequential(image, larger, nn.Flatten(), nn.ConstantPad1d((0, WORDS - FILLED**2), 0.0))


@cache
def mixed(root: Path, name: str) -> tuple[Pair, Pair]:
    """Training rows and test rows."""
    return {"digits": _images, "clothes": _images, "small digits": _small, "newsgroups": _news}[name](root, name)


def _images(root: Path, name: str) -> tuple[Pair, Pair]:
    pairs = []
    for train in (True, False):
        found = files.mnist(root, {"digits": "MNIST", "clothes": "FashionMNIST"}[name], train)
        assert found.labels is not None
        pairs.append((found.inputs.flatten(1), found.labels))
    return pairs[0], pairs[1]


def _small(root: Path, name: str) -> tuple[Pair, Pair]:
    """8 x 8 pixels of scikit-learn's bundled digits, three quarters to train with."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y, cut = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order], 3 * len(x) // 4
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def _news(root: Path, name: str) -> tuple[Pair, Pair]:
    """TF-IDF of the 2,048 most frequent words, without headers, quotes and footers; rows of length sqrt(784) / 3."""
    words, labels = [], []
    for part in ("train", "test"):
        table = pyarrow.parquet.read_table(root / "text" / "20newsgroups" / f"{part}.parquet")
        found = table["text"].to_pylist()
        for strip in (clean.strip_newsgroup_header, clean.strip_newsgroup_quoting, clean.strip_newsgroup_footer):
            found = [strip(text) for text in found]
        words.append(found)
        labels.append(torch.tensor(table["label"].to_pylist()))
    turned = TfidfVectorizer(max_features=WORDS, stop_words="english", sublinear_tf=True).fit(words[0])
    x = [torch.tensor(turned.transform(part).toarray(), dtype=torch.float32) * 784**0.5 / 3 for part in words]
    order = torch.randperm(len(x[0]), generator=torch.Generator().manual_seed(0))  # the file may be sorted
    return (x[0][order], labels[0][order]), (x[1], labels[1])
