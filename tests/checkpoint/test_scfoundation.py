"""Parity with the published inference code, on a checkpoint in the published format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from scxtrimo.checkpoint import read_scfoundation

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "scfoundation_tiny"
N_GENES = 19_264
ORDERS = {"one by one": None, "batch": range(6), "shuffled batch": [3, 0, 5, 1, 4, 2]}


@pytest.fixture(scope="module")
def published():
    if not FIXTURE.is_dir():
        pytest.skip("the fixture scfoundation_tiny is not here")
    counts = sparse.load_npz(FIXTURE / "counts.npz").tocsr().astype(np.float64)
    return counts, np.load(FIXTURE / "expected.npz")


@pytest.fixture(scope="module")
def nets(published):
    return {v: read_scfoundation(FIXTURE / "models.ckpt", v) for v in ("cell", "gene", "rde")}


def tokens(counts, target: str, bulk_total: float | None = None):
    """Values and positions of one cell, T and S last."""
    total = counts.sum()
    values = np.log1p(counts.data / total * (bulk_total or 1e4))
    source = np.log10(values.sum() if bulk_total else total)
    number = float(target[1:])
    depth = {"t": number, "a": source + number, "f": np.log10(total * number)}[target[0]]
    values = np.concatenate([values, [source if bulk_total else depth, source]])
    positions = np.concatenate([counts.indices, [N_GENES, N_GENES + 1]])
    return torch.from_numpy(values).float(), torch.from_numpy(positions).long()


def encode(net, cells) -> list[torch.Tensor]:
    lengths = [len(values) for values, _ in cells]
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    values, positions = (torch.cat(parts) for parts in zip(*cells, strict=True))
    with torch.inference_mode():
        return list(net.encode(values, positions, cu).split(lengths))


def pool(h: torch.Tensor, how: str) -> torch.Tensor:
    if how == "max":
        return h.amax(0)
    return torch.cat([h[-1], h[-2], h[:-2].amax(0), h[:-2].mean(0)])


def encode_in_order(net, cells, order) -> list[torch.Tensor]:
    if order is None:
        return [encode(net, [cell])[0] for cell in cells]
    encoded = encode(net, [cells[i] for i in order])
    return [encoded[list(order).index(i)] for i in range(len(cells))]


def close(result, expected) -> None:
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_cell_embeddings(published, nets, order):
    counts, expected = published
    names = [name for name in expected if name.startswith("cell_")]
    assert len(names) == 8
    for name in names:
        _, version, target, how = name.split("_")
        cells = [tokens(counts[i], target) for i in range(6)]
        encoded = encode_in_order(nets[version], cells, ORDERS[order])
        close(torch.stack([pool(h, how) for h in encoded]), expected[name])


def test_bulk_embeddings(published, nets):
    counts, expected = published
    median = float(np.median(np.asarray(counts.sum(axis=1)).ravel()))
    cells = [tokens(counts[i], "t0", bulk_total=median) for i in range(6)]
    encoded = encode(nets["cell"], cells)
    close(torch.stack([pool(h, "all") for h in encoded]), expected["bulk_cell_F_all"])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", ["t4", "f1"])
def test_gene_embeddings_and_expression(published, nets, target, order):
    counts, expected = published
    net = nets["gene"]
    cells = [tokens(counts[i], target) for i in range(6)]
    encoded = encode_in_order(net, cells, ORDERS[order])
    with torch.inference_mode():
        genes = [net.decode(h, cell[1]) for h, cell in zip(encoded, cells, strict=True)]
        values = torch.stack([net.predict(g)[:N_GENES] for g in genes])
    subset = torch.from_numpy(expected["gene_subset"])
    close(torch.stack([g[subset] for g in genes]), expected[f"gene_{target}"])
    close(values, expected[f"gene_expression_{target}"])


def write_checkpoint(path: Path, change=lambda content: None) -> Path:
    """A checkpoint in the published format with other sizes and random weights."""
    torch.manual_seed(0)
    e, d, bins, genes = 12, 24, 7, 30
    shapes = {
        "token_emb.mlp": (bins, 1),
        "token_emb.mlp2": (bins, bins),
        "decoder_embed": (d, e),
        "norm": (d,),
        "to_final": (1, d),
        "encoder.norm": (e,),
        "decoder.norm": (d,),
    }
    for i in range(3):
        p = f"encoder.transformer_encoder.{i}"
        shapes |= {
            f"{p}.self_attn.out_proj": (e, e),
            f"{p}.linear1": (4 * e, e),
            f"{p}.linear2": (e, 4 * e),
            f"{p}.norm1": (e,),
            f"{p}.norm2": (e,),
        }
    for i in range(2):
        p = f"decoder.performer.net.layers.{i}"
        shapes |= {f"{p}.0.fn.to_{x}": (d, d) for x in ("q", "k", "v", "out")}
        shapes |= {f"{p}.0.norm": (d,), f"{p}.1.norm": (d,)}
        shapes |= {f"{p}.1.fn.fn.w1": (4 * d, d), f"{p}.1.fn.fn.w2": (d, 4 * d)}
    state = {}
    for name, shape in shapes.items():
        state |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
    state |= {
        "token_emb.emb.weight": torch.randn(bins, e),
        "token_emb.emb_mask.weight": torch.randn(1, e),
        "token_emb.emb_pad.weight": torch.randn(1, e),
        "pos_emb.weight": torch.randn(genes + 3, e),
    }
    for i in range(3):
        p = f"encoder.transformer_encoder.{i}.self_attn.in_proj_"
        state |= {f"{p}weight": torch.randn(3 * e, e), f"{p}bias": torch.randn(3 * e)}
    for i in range(2):
        p = f"decoder.performer.net.layers.{i}.0.fn.fast_attention.projection_matrix"
        state[p] = torch.randn(10, 6)  # int(6 * ln 6) features
    sizes = {
        "seq_len": genes + 2,
        "bin_num": bins,
        "bin_alpha": 0.5,
        "encoder": {"hidden_dim": e, "depth": 3, "heads": 3, "norm_first": False},
        "decoder": {"hidden_dim": d, "depth": 2, "heads": 4, "dim_head": 6},
    }
    content = {
        "cell": {
            "config": {"model_config": {"mae_autobin": sizes}},
            "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
        }
    }
    change(content)
    torch.save(content, path)
    return path


def test_other_sizes_are_read_and_equal_torchs_own_layers(tmp_path):
    path = write_checkpoint(tmp_path / "other.ckpt")
    net = read_scfoundation(path)
    state = torch.load(path, weights_only=True)["cell"]["state_dict"]
    layer = torch.nn.TransformerEncoderLayer(12, 3, 48, 0.0, "relu", batch_first=True)
    theirs = torch.nn.TransformerEncoder(
        layer, 3, torch.nn.LayerNorm(12), enable_nested_tensor=False
    )
    prefix = "model.encoder.transformer_encoder."
    theirs.layers.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    theirs.norm.load_state_dict(
        {kind: state[f"model.encoder.norm.{kind}"] for kind in ("weight", "bias")}
    )
    values, positions = torch.rand(9) * 4, torch.randperm(30)[:9]
    cu = torch.tensor([0, 9], dtype=torch.int32)
    with torch.inference_mode():
        embedded = net.embedding(values, positions)
        expected = theirs.train()(embedded[None])[0]  # train mode avoids torch's fast path
        torch.testing.assert_close(net.encode(values, positions, cu), expected)
        genes = net.decode(expected, positions)
        assert genes.shape == (32, 24)
        assert net.predict(genes).isfinite().all()


def drop(content):
    del content["cell"]["state_dict"]["model.norm.weight"]


def add(content):
    content["cell"]["state_dict"]["model.extra"] = torch.ones(1)


def reshape(content):
    content["cell"]["state_dict"]["model.to_final.weight"] = torch.ones(2, 24)


def strip(content):
    del content["cell"]["config"]["model_config"]["mae_autobin"]["bin_num"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"Missing tensors: \['norm\.weight'\]"),
        (add, r"unexpected: \['extra'\]"),
        (reshape, r"to_final\.weight \(2, 24\) \(expected \(1, 24\)\)"),
        (strip, "lacks 'bin_num'"),
        (dict.clear, r"no version 'cell'; it holds \[\]"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path, change, message):
    path = write_checkpoint(tmp_path / "bad.ckpt", change)
    with pytest.raises(ValueError, match=message):
        read_scfoundation(path)


def test_truncated_files_and_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = write_checkpoint(tmp_path / "good.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:2000])
    torch.save({"cell": Bomb()}, tmp_path / "bomb.ckpt")
    for name in ("cut", "bomb"):
        with pytest.raises(ValueError, match="truncated, or holds something else"):
            read_scfoundation(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "ran").exists()
