"""One file per benchmark: `cases(plan, size_mb)` and the bytes that its op must move."""
