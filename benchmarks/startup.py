"""Start-up: what `import scxtrimo`, `scxtrimo --help` and `scxtrimo --version` cost.

    python benchmarks/startup.py

Every way runs several times in a process of its own, alternating; seconds are medians. Ratios are
to `python -c "import numpy"`. The command line imports torch and scvi-tools only once a command
needs them, which is what `import scvi` beside it shows.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from _common import parser, ratio_rows, report

BASELINE = "import numpy"
WAYS = {
    BASELINE: ["-c", "import numpy"],
    "import scxtrimo": ["-c", "import scxtrimo"],
    "scxtrimo --version": ["-m", "scxtrimo.cli", "--version"],
    "scxtrimo --help": ["-m", "scxtrimo.cli", "--help"],
    "scxtrimo embed --help": ["-m", "scxtrimo.cli", "embed", "--help"],
    "import scvi": ["-c", "import scvi"],
}


def main() -> None:
    """Run the benchmark."""
    args = parser(__doc__).parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for i in range(3 if args.quick else 11):
        for way, arguments in WAYS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            if i:  # the first pass fills the caches of the file system
                seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    report(ratio_rows("start-up", "a new process", medians, "seconds"), args.json)


if __name__ == "__main__":
    main()
