#!/usr/bin/env bash
# Copy the project to the folder $1 as git sees it: without what is built in it or ignored.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
  if [ -e "$file" ]; then printf '%s\0' "$file"; fi  # one deleted, and not committed yet, is listed
done | tar -c --null -T - | tar -x -C "$1"
