#!/usr/bin/env bash
# Copy the project's files that git tracks or would add to the folder $1: no build outputs, no ignored files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
  if [ -e "$file" ]; then printf '%s\0' "$file"; fi  # git also lists deleted files that are not committed yet
done | tar -c --null -T - | tar -x -C "$1"
