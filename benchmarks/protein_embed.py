"""Embedding proteins of very different lengths: packed, padded, and one by one as published.

    python benchmarks/protein_embed.py                        # made-up sequences of 40 to 5,000
    python benchmarks/protein_embed.py --data proteins.fasta

One network with random weights (`--size`), one thread, mean of the residues of the last layer. All
ways have the same weights and must give the same result. `padded` has batches of 8,192 tokens, in
the order of the file and sorted by length; `one by one` is what the cards of the published
checkpoints show. Times are medians over alternating passes; ratios are to `packed`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from _common import parser, report, row
from torch.nn import functional as F

import scxtrimo
from scxtrimo.protein.network import Rotation, XTrimoPGLMNet
from scxtrimo.protein.sequences import Proteins
from scxtrimo.protein.tokenizer import EOS, PAD, STANDARD

TOLERANCE = 2e-5
MAX_TOKENS = 8192  # of a padded batch


def simulated(n: int, seed: int = 0) -> dict[str, str]:
    """Return made-up sequences, half of them shorter than 400 residues."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(400), 0.8, n), 40, 5000).astype(int)
    letters = np.array(list(STANDARD))
    return {f"p{i}": "".join(rng.choice(letters, m)) for i, m in enumerate(lengths.tolist())}


def padded_states(net: XTrimoPGLMNet, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Return means over residues of a padded batch, whose padding is masked."""
    lengths = torch.tensor([len(row) for row in rows])
    n, longest = len(rows), int(lengths.max())
    ids = np.full((n, longest), PAD)
    for i, ids_of_one in enumerate(rows):
        ids[i, : len(ids_of_one)] = ids_of_one
    is_there = torch.arange(longest) < lengths[:, None]
    places = torch.zeros(n * longest, net.config.n_axes, dtype=torch.long)
    places[:, 0] = torch.arange(longest).repeat(n)
    rotation = Rotation(places, net.config.head_width)
    mask = None if bool(is_there.all()) else is_there[:, None, None]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, number: int) -> torch.Tensor:
        q, k, v = (x.unflatten(0, (n, longest)).transpose(1, 2) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, mask)
        return attended.transpose(1, 2).flatten(0, 1)

    x = net.embedding.word_embeddings(torch.from_numpy(ids).flatten())
    for block in net.encoder.layers:
        x = block(x, rotation, attend)
    states = net.encoder.final_layernorm(x).unflatten(0, (n, longest))
    return [one[: m - 1].mean(0).numpy() for one, m in zip(states, lengths.tolist(), strict=True)]


def padded(net: XTrimoPGLMNet, proteins: Proteins, order: np.ndarray) -> np.ndarray:
    """Embed in padded batches of at most as many tokens as ours."""
    rows = [np.append(ids, EOS) for ids in proteins.ids]
    found = np.empty((len(rows), net.config.n_hidden), np.float32)
    batch: list[int] = []

    def flush() -> None:
        for i, mean in zip(batch, padded_states(net, [rows[i] for i in batch]), strict=True):
            found[i] = mean
        batch.clear()

    for i in order.tolist():
        longest = max([len(rows[i]), *(len(rows[j]) for j in batch)])
        if batch and longest * (len(batch) + 1) > MAX_TOKENS:
            flush()
        batch.append(i)
    flush()
    return found


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--size", default="small", help="size of the network")
    arguments.add_argument("--n", type=int, default=200, help="proteins at most")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    name = "simulated" if args.data is None else args.data.stem
    n = 40 if args.quick else args.n
    given = simulated(n) if args.data is None else scxtrimo.read_fasta(args.data)[:n]
    proteins = Proteins.read(given)
    model = scxtrimo.model.XTrimoPGLM(size=args.size, seed=0)
    by_length = np.argsort(-proteins.lengths, kind="stable")
    in_order = np.arange(len(by_length))

    def one_by_one() -> np.ndarray:
        each = [padded_states(model.net, [np.append(ids, EOS)])[0] for ids in proteins.ids]
        return np.stack(each)

    ways: dict[str, Callable[[], np.ndarray]] = {
        "packed": lambda: model.get_latent_representation(given, long="full"),
        "padded, sorted by length": lambda: padded(model.net, proteins, by_length),
        "padded": lambda: padded(model.net, proteins, in_order),
        "one by one": one_by_one,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    first: np.ndarray | None = None
    with torch.inference_mode():
        for _ in range(2 if args.quick else 1 + max(3, args.seeds)):
            for way, embed in ways.items():
                start = time.perf_counter()
                found = embed()
                seconds[way].append(time.perf_counter() - start)
                first = found if first is None else first
                worst = float(np.abs(found - first).max())
                if worst > TOLERANCE:
                    raise SystemExit(f"{way} differs from packed by {worst:.2g}.")
    n_residues = int(proteins.lengths.sum())
    data = f"{name}, {len(proteins.ids)} proteins of {proteins.lengths.min()} to "
    data += f"{proteins.lengths.max():,} residues, {args.size}"
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    rows = []
    for way, median in medians.items():
        figures = {
            "residues/s": n_residues / median,
            "seconds": median,
            "ratio": median / medians["packed"],
        }
        rows += [row("embedding proteins", data, way, *item) for item in figures.items()]
    report(rows, args.json)


if __name__ == "__main__":
    main()
