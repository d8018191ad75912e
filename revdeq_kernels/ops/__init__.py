"""The ops, a file each: the definition, checks, the public function."""

from __future__ import annotations
