"""``python -m torch_revdeq`` prints what ``python -m revdeq_kernels.info`` prints."""

from __future__ import annotations

from revdeq_kernels import info

if __name__ == "__main__":
    print(info.report())
