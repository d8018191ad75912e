"""The README's example runs as it stands, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_example() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "assert torch.equal" in example
    exec(compile(example, "README.md", "exec"), {})


def test_links() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "bench/README.md", "docs/kernels.md"):
        text = (ROOT / name).read_text()
        links = re.findall(r"\]\((?!http|#)([^)#]+)", text)
        missing = [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]
        assert not missing, f"{name}: {missing}"
