#!/usr/bin/env bash
# One visit to a machine with a GPU and no network; see `bench/campaign.sh --help` and README.md.
cd "$(dirname "${BASH_SOURCE[0]}")/.." && exec "${PYTHON:-python3}" -m bench.visit "$@"
