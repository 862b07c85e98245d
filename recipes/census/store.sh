#!/usr/bin/env bash
# Write the store of the cells that download.py wrote.
# Usage: store.sh DOWNLOADED_DIR
set -euo pipefail
genes=$(dirname "$0")/../scxtrimo-immune/genes.tsv
arguments=()
for file in "$1"/held_out/*.h5ad; do arguments+=(--validation-file "$file"); done
scxtrimo store "$1"/*.h5ad "$1"/held_out/*.h5ad "${arguments[@]}" --out cells.zarr \
    --obs-column dataset_id --vocabulary "$genes" --gene-aliases "$genes" \
    --skip-bad-files --memory 2e10
