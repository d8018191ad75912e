"""Published data from the Hugging Face hub: Wikitext-103, CIFAR-10 and Sudoku-Extreme.

`datasets` or `huggingface_hub` load the data and `transformers` the tokenizer. They cache what they
load in the folder HF_HOME, and need no network afterwards.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from .errors import RunError
from .images import Images
from .text import Text

Loaded = TypeVar("Loaded")

GPT2_VOCABULARY = 50304
"""GPT-2's 50257 tokens, up to a multiple of 128; the paper's number."""

LINES = 1024
"""Lines of Wikitext that form one document, as in the paper."""


def wikitext(tokenizer: str) -> Text:
    """Wikitext-103 in tokens; its test split is held out."""
    datasets, transformers = _library("datasets"), _library("transformers")
    name = "Salesforce/wikitext"
    splits = _reached(name, lambda: datasets.load_dataset(name, "wikitext-103-v1"))
    encode = _reached(
        f"tokenizer {tokenizer!r}", lambda: transformers.AutoTokenizer.from_pretrained(tokenizer)
    )
    # Suppress the warning about long texts: they are cut into windows here.
    encode.model_max_length = int(1e30)
    training, held_out = (_documents(splits[part], encode) for part in ("train", "test"))
    vocabulary = max(len(encode), GPT2_VOCABULARY) if tokenizer == "gpt2" else len(encode)
    return Text(training, torch.cat(held_out), vocabulary, byte_tokens=False)


def cifar10() -> Images:
    """CIFAR-10; its test split is held out."""
    datasets = _library("datasets")
    name = "uoft-cs/cifar10"
    splits = _reached(name, lambda: datasets.load_dataset(name))
    training, held_out = (_pixels(splits[part]) for part in ("train", "test"))
    return Images(training, held_out, classes=10, shift=4, mirror=True)


def sudoku_extreme() -> Path:
    """The folder of Sudoku-Extreme's train.csv and test.csv.

    The files are read directly: table readers would convert a column of 81 digits to numbers.
    """
    hub = _library("huggingface_hub")
    name = "sapientinc/sudoku-extreme"

    def load(file: str) -> Path:
        return Path(hub.hf_hub_download(name, file, repo_type="dataset"))

    paths = [_reached(name, lambda file=file: load(file)) for file in ("train.csv", "test.csv")]
    return paths[0].parent


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RunError(
            f"data: this source needs the package {name}, which is not installed; pip install "
            "'.[hub]' in the clone, or choose a source that needs no network"
        ) from error


def _reached(name: str, load: Callable[[], Loaded]) -> Loaded:
    """The loaded data. If the network fails, the libraries raise many kinds of errors."""
    try:
        return load()
    except Exception as error:
        raise RunError(
            f"data: {name} could not be loaded ({type(error).__name__}: {_first_line(error)}). "
            "Without a network, load it on another machine and copy its HF_HOME folder, or choose "
            "a source that needs no network"
        ) from error


def _documents(split: Any, encode: Any) -> list[torch.Tensor]:
    """Tokens, int32, of each document of LINES lines."""

    def tokens(lines: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"tokens": [encode("\n\n".join(lines["text"]))["input_ids"]]}

    options = {"batched": True, "batch_size": LINES, "remove_columns": split.column_names}
    found = split.map(tokens, **options)
    return [torch.tensor(row["tokens"], dtype=torch.int32) for row in found]


def _pixels(split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, uint8 (count, 3, 32, 32), and classes, of a split with the columns img and label."""
    table = split.with_format("torch")
    images = torch.stack([_channels_first(image) for image in table["img"]])
    return images, torch.as_tensor(split["label"]).long()


def _channels_first(image: torch.Tensor) -> torch.Tensor:
    return image.permute(2, 0, 1) if image.shape[-1] == 3 else image


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
