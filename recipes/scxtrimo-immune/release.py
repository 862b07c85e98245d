"""Write the weights of a run into the package.

python release.py run
"""

import sys
from pathlib import Path

import scxtrimo

HERE = Path(__file__).parent
NAME = HERE.name
OUT = HERE.parents[1] / "src" / "scxtrimo" / "weights" / NAME

if __name__ == "__main__":
    model = scxtrimo.pretraining.release(
        sys.argv[1], OUT, gene_aliases=HERE / "genes.tsv", overwrite=True
    )
    print(model)
    print("\n".join(f"{name}: {value}" for name, value in model.provenance.items()))
