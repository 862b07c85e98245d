#!/usr/bin/env bash
# Write the store of the cells that scxtrimo-immune is trained on.
# Usage: store.sh TRAINING_FILES_DIR JUDGED_FILES_DIR (see README.md for both).
set -euo pipefail
here=$(dirname "$0") data=$1 judged=$2
arguments=()
for name in pbmc_10x_5prime_1k lymphoid_ref_spacexr tnbc_wu_cid4465 bm_vangalen_accordion; do
    arguments+=(--validation-file "$data/$name.h5ad") # whole studies that are held out
done
for name in pbmc3k pbmc4k kang_ifnb; do
    arguments+=(--exclude "$judged/$name.h5ad") # what the weights are judged on
done
scxtrimo store "$data"/*.h5ad "${arguments[@]}" --out cells.zarr --obs-column sample \
    --vocabulary "$here/genes.tsv" --gene-aliases "$here/genes.tsv"
