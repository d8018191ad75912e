"""The data of the training scripts: orders, texts, images, the hub, and the trigram model."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.training.toy import document
from training import hub
from training.config import ImageData, TextData
from training.errors import RunError
from training.images import Images, ImageTask, crop, digits, load_images
from training.order import Order, seed_of
from training.text import Text, TextTask, is_held_out, load_text, standard_library
from training.trigram import Trigram

# ---- orders ----------------------------------------------------------------------------------


def test_an_epoch_is_every_sample_once() -> None:
    order = Order(10, seed=3)
    epochs = [order.take(10 * i, 10)[0].tolist() for i in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert Order(10, seed=4).take(0, 10)[0].tolist() != epochs[0]


def test_an_order_has_no_memory() -> None:
    """Wherever it is begun, and in whatever parts it is taken: over the end of an epoch too."""
    indices, draws = Order(10, seed=3).take(0, 25)
    order = Order(10, seed=3)
    parts = [order.take(first, 5) for first in (20, 0, 10, 5, 15)]
    for part, first in zip(parts, (20, 0, 10, 5, 15), strict=True):
        assert torch.equal(part[0], indices[first : first + 5])
        assert torch.equal(part[1], draws[first : first + 5])
    assert draws.shape == (25, 3) and draws.min() >= 0 and draws.max() < 1
    assert len(draws.unique()) == 75  # in the second epoch others than in the first


def test_seeds_differ() -> None:
    seeds = {seed_of(*parts) for parts in ((0,), (1,), (0, 1), (0, "a"), ("0",), (0, 1, 2))}
    assert len(seeds) == 6


# ---- text ------------------------------------------------------------------------------------


def task(context: int = 4) -> TextTask:
    return TextTask(Text([document(30, 0), document(21, 1)], document(23, 2), 256, True), context)


def test_windows_to_train_on() -> None:
    """A token after each of a window's; the windows begin where draws say, and stay in the text."""
    data = task()
    last = torch.tensor([data.size - 1])
    for draw in (0.0, 0.5, 0.999):
        inputs, targets = data.training(last, torch.full((1, 3), draw))
        start = (data.size - 1) * 4 + int(4 * draw)
        assert torch.equal(inputs[0], data.tokens[start : start + 4].long())
        assert torch.equal(targets[0], data.tokens[start + 1 : start + 5].long())
    assert inputs.dtype == targets.dtype == torch.int64


def test_every_held_out_token_is_foretold_once() -> None:
    data = task()
    inputs, targets = data.evaluation(torch.arange(data.held_out))
    assert torch.equal(targets.flatten(), data.held_out_tokens[1:].long())
    assert torch.equal(inputs.flatten(), data.held_out_tokens[:-1].long())
    assert len(data.held_out_tokens) == 4 * ((23 - 1) // 4) + 1


def test_figures_of_text() -> None:
    found = task().figures(math.log(8), 0.0)
    assert found == pytest.approx({"perplexity": 8, "bits_per_byte": 3})
    words = TextTask(Text([document(30, 0)], document(23, 2), 256, byte_tokens=False), 4)
    assert words.figures(math.log(8), 0.0) == pytest.approx({"perplexity": 8})


def test_a_text_too_short_is_refused() -> None:
    with pytest.raises(RunError, match="context: expected a text of at least 80 tokens"):
        task(context=40)


def test_other_data_has_another_identity() -> None:
    other = TextTask(Text([document(30, 0), document(21, 5)], document(23, 2), 256, True), 4)
    assert task().identity == task().identity != other.identity


def test_the_standard_library_is_split_by_file(tmp_path: Path) -> None:
    names = [f"a{i}.py" for i in range(60)]
    for name in (*names, "test/b.py", "encodings/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.py").touch()
    (tmp_path / "d.txt").write_text("no source")
    text = standard_library(tmp_path)
    training = [bytes(tokens.tolist()).decode() for tokens in text.training]
    held_out = [name for name in sorted(names) if is_held_out(name)]
    assert bytes(text.held_out.tolist()).decode() == "".join(held_out)
    assert training == [name for name in sorted(names) if not is_held_out(name)]
    assert 0 < len(held_out) < 10
    (tmp_path / "a0.py").unlink()  # which files are held out does not hang on the others
    assert bytes(standard_library(tmp_path).held_out.tolist()).decode() == "".join(
        name for name in held_out if name != "a0.py"
    )


def test_the_standard_library_at_hand() -> None:
    text = load_text(TextData("stdlib"))
    assert sum(map(len, text.training)) > 5e6
    assert 0.01 < len(text.held_out) / sum(map(len, text.training)) < 0.15


def test_no_sources_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="data: expected the sources of the standard library in"):
        standard_library(tmp_path)


# ---- the trigram model -----------------------------------------------------------------------


def test_a_trigram_model_is_a_distribution() -> None:
    """After every context, seen or not, the probabilities of all bytes are one."""
    model = Trigram([document(300, seed) for seed in range(12)], held_out=3)
    for context in (b"ab", b"a\0", b"\0\0", b"zz"):
        total = 0.0
        for byte in range(256):
            text = torch.tensor([*context, byte], dtype=torch.uint8)
            total += 2 ** -model.bits_per_byte([text])
        assert total == pytest.approx(1, abs=1e-9)  # 256 roundings of float64, and logarithms


def test_a_trigram_model_counts() -> None:
    """Its parts are the ratios of counts that a plain loop finds."""
    files = [torch.tensor(list(b"abcabcabd")), torch.tensor(list(b"bcab"))]
    files = [file.to(torch.uint8) for file in files]
    model = Trigram(files, held_out=2)
    parts, _ = model._parts(torch.tensor(list(b"abc"), dtype=torch.uint8))
    # The nine triples: abc twice, abd, bca three times, cab three times.
    assert parts[0].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 9, 1 / 256])


def test_a_trigram_model_foretells() -> None:
    """Of four equally probable successors it comes close to two bits, a unigram to log2 20."""
    files = [document(2000, seed) for seed in range(10)]
    bits = Trigram(files).bits_per_byte([document(2000, 99)])
    assert 2.0 < bits < 2.1


def test_a_single_file_fits_no_trigram_model() -> None:
    with pytest.raises(RunError, match="expected at least 2"):
        Trigram([document(300, 0)])


# ---- images ----------------------------------------------------------------------------------


def test_crops_are_the_images_moved() -> None:
    images = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    draws = torch.tensor([[0.0, 0.99], [0.5, 0.5]])
    moved = crop(images, draws, 1)
    whole = F.pad(images, (1, 1, 1, 1))
    assert torch.equal(moved[0], whole[0, :, 0:4, 2:7])
    assert torch.equal(moved[1], images[1])


def test_mirror_images() -> None:
    pixels = torch.randint(255, (4, 3, 8, 8), dtype=torch.uint8)
    part = (pixels, torch.arange(4))
    data = ImageTask(Images(part, part, classes=4, shift=0, mirror=True), augment=True)
    draws = torch.tensor([[0, 0, 0.1], [0, 0, 0.9]])
    (one, other), classes = data.training(torch.tensor([1, 1]), draws)
    assert torch.equal(one, other.flip(2)) and not torch.equal(one, other)
    assert classes.tolist() == [1, 1]
    plain, _ = data.evaluation(torch.tensor([1]))
    assert torch.equal(plain[0], other)


def test_digits() -> None:
    images = load_images(ImageData("digits"))
    data = ImageTask(images, augment=False)
    assert (data.size, data.held_out) == (1437, 360)
    everything = torch.cat([images.training[0], images.held_out[0]]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797  # no image twice, so none in both parts
    inputs, classes = data.training(torch.arange(data.size), torch.zeros(data.size, 3))
    assert abs(inputs.mean()) < 1e-4 and abs(inputs.std() - 1) < 1e-3  # sums in float32
    assert classes.bincount().min() > 100
    assert torch.equal(digits().held_out[0], images.held_out[0])


# ---- the hub ---------------------------------------------------------------------------------


class Split(list[dict[str, Any]]):
    """As much of a datasets.Dataset as the loaders use."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def with_format(self, kind: str) -> Split:
        assert kind == "torch"
        return self

    def map(self, function: Any, batched: bool, batch_size: int, remove_columns: Any) -> Split:
        assert batched and remove_columns == ["text"]
        rows = Split()
        for first in range(0, len(self), batch_size):
            lines = {"text": [row["text"] for row in list(self)[first : first + batch_size]]}
            rows += [{"tokens": tokens} for tokens in function(lines)["tokens"]]
        return rows


def install(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


class Tokenizer:
    def __len__(self) -> int:
        return 100

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 100 for letter in text]}


def test_wikitext(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: str) -> dict[str, Split]:
        asked.append(args)
        lines = Split({"text": "ab"} for _ in range(1500))
        return {"train": lines, "test": Split([{"text": "c"}, {"text": "d"}])}

    tokenizer = types.SimpleNamespace(from_pretrained=lambda name: Tokenizer())
    install(monkeypatch, "datasets", load_dataset=load_dataset)
    install(monkeypatch, "transformers", AutoTokenizer=tokenizer)
    text = load_text(TextData("wikitext-103", tokenizer="a folder"))
    assert asked == [("Salesforce/wikitext", "wikitext-103-v1")]
    assert [len(part) for part in text.training] == [1024 * 4 - 2, 476 * 4 - 2]
    assert text.held_out.tolist() == [99, 10, 10, 0]  # c, two ends of lines, d
    assert (text.vocabulary, text.byte_tokens) == (100, False)
    assert load_text(TextData("wikitext-103")).vocabulary == 50304


def test_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(255, (5, 32, 32, 3), dtype=torch.uint8)
    rows = Split({"img": image, "label": i} for i, image in enumerate(pixels))
    install(monkeypatch, "datasets", load_dataset=lambda name: {"train": rows, "test": rows})
    images = load_images(ImageData("cifar10"))
    assert torch.equal(images.training[0], pixels.permute(0, 3, 1, 2))
    assert images.held_out[1].tolist() == [0, 1, 2, 3, 4]
    assert (images.shift, images.mirror) == (4, True)


def test_data_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: str) -> None:
        raise ConnectionError("Couldn't reach the hub\nand much more")

    install(monkeypatch, "datasets", load_dataset=load_dataset)
    install(monkeypatch, "transformers")
    for load in (hub.cifar10, lambda: hub.wikitext("gpt2")):
        with pytest.raises(RunError) as error:
            load()
        message = str(error.value)
        assert "could not be loaded (ConnectionError: Couldn't reach the hub)" in message
        assert "HF_HOME" in message and "needs no network" in message


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RunError, match="needs the package datasets, which is not installed; pip"):
        hub.cifar10()
