"""The parts of the network: embeddings, attention within cells, encoder and decoder layers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .ragged import CellBoundaries, cells_of

varlen_attn: Any = None
with suppress(ImportError):  # torch before 2.10
    varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}

# How many numbers an array may have. Large arrays come fresh from the system each time, and the
# zeroing of their pages takes about as long as the arithmetic; small ones stay in the caches.
MAX_ENTRIES = 2**21  # tokens encoded at a time without gradients, times their width
MAX_ENTRIES_ON_GPU = 2**26  # enough to fill the GPU, and not its memory
MAX_INNER = 2**22  # inner layer of a feed-forward part without gradients, on a processor
MAX_INNER_TRAINED = 2**19  # with gradients, where several such arrays are held at a time
HASH_FACTOR, HASH_SLOTS = 0x9E3779B1, 2**16
MAX_WEIGHTS = 2**24  # attention weights of single heads that are held to be averaged
RECOMPUTED_FROM = 128  # width of a layer from which memory is scarcer than time
WORTH_RECOMPUTING = 512  # with fewer rows there is little to store
FEW_KEYS = 32  # up to which every query gets a copy of the keys of its cell
VARLEN_TOLERANCE = 0.03  # for numbers of about one, in half precision


def normalize_counts(counts_t: Tensor, library_size_t: Tensor, scale: float = 1e4) -> Tensor:
    """Return ``log1p(counts / library_size * scale)``, one value per token."""
    return torch.log1p(counts_t * (scale / library_size_t))


class AutoDiscretization(nn.Module):
    r"""Embed a continuous expression value as a soft mixture of learned bins.

    .. math::
        h = \mathrm{LeakyReLU}_{0.1}(W_1 v + b_1), \quad
        p = \mathrm{softmax}(\alpha h + W_2 h + b_2), \quad
        e = p^\top T

    with ``n_bins`` rows of :math:`T`. Gong et al. 2023, section 3.2.
    """

    def __init__(self, n_hidden: int, n_bins: int = 100, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.to_bins = nn.Linear(1, n_bins)
        self.mix_bins = nn.Linear(n_bins, n_bins)
        self.bins = nn.Embedding(n_bins, n_hidden)

    def bin_weights(self, values_t: Tensor) -> Tensor:
        """Return the weight of every bin, shape ``(n_tokens, n_bins)``, rows adding up to 1."""
        h_tb = F.leaky_relu(self.to_bins(values_t[:, None]), 0.1)
        return torch.softmax(self.alpha * h_tb + self.mix_bins(h_tb), dim=-1)

    def forward(self, values_t: Tensor) -> Tensor:
        """Embed log-normalised values, float32; shape ``(n_tokens, n_hidden)``."""
        if values_t.requires_grad:  # to explain a prediction; distinct values have no gradient
            return self.embed_each(values_t)
        # Most counts are small, so a batch has about one distinct value in a hundred tokens.
        distinct_v, place_t = distinct_values(values_t)
        return self.embed_each(distinct_v).index_select(0, place_t)

    def embed_each(self, values_t: Tensor) -> Tensor:
        """Embed values one by one, which for few of them is faster; the result is the same."""
        # In bfloat16 values would lose their digits, and the gradients of many tokens their sum.
        with torch.autocast(values_t.device.type, enabled=False):
            return self.bin_weights(values_t) @ self.bins.weight


def distinct_values(values_t: Tensor) -> tuple[Tensor, Tensor]:
    """Return values without most of the repetitions, and where each of ``values_t`` is in them.

    On a CPU with a hash table, which takes a fifth of the time of sorting.
    """
    if values_t.device.type != "cpu" or values_t.dtype != torch.float32:
        return torch.unique(values_t, return_inverse=True)
    slot_t = (values_t.view(torch.int32).long() * HASH_FACTOR >> 16) & (HASH_SLOTS - 1)
    value_s = values_t.new_empty(HASH_SLOTS)
    value_s[slot_t] = values_t
    is_used_s = torch.zeros(HASH_SLOTS, dtype=torch.bool)
    is_used_s[slot_t] = True
    used = torch.nonzero(is_used_s)[:, 0]
    place_s = torch.empty(HASH_SLOTS, dtype=torch.int64)
    place_s[used] = torch.arange(len(used))
    distinct_v, place_t = value_s[used], place_s[slot_t]
    others = torch.nonzero(distinct_v[place_t] != values_t)[:, 0]  # another value has their slot
    place_t[others] = len(used) + torch.arange(len(others))
    return torch.cat([distinct_v, values_t[others]]), place_t


class TokenEmbedding(nn.Module):
    """Token of an expressed gene: value embedding plus gene embedding."""

    def __init__(
        self, n_positions: int, n_hidden: int, n_bins: int = 100, bin_alpha: float = 1.0
    ) -> None:
        super().__init__()
        self.value = AutoDiscretization(n_hidden, n_bins, bin_alpha)
        self.gene = nn.Embedding(n_positions, n_hidden)
        nn.init.normal_(self.gene.weight, std=n_hidden**-0.5)

    def forward(self, values_t: Tensor, gene_ids_t: Tensor) -> Tensor:
        """Embed log-normalised values of genes, shape ``(n_tokens, n_hidden)``."""
        return self.value(values_t) + self.gene(gene_ids_t)


@torch.compiler.disable  # a kernel of its own, or a loop over cells
def ragged_attention(
    q_the: Tensor,
    k_she: Tensor,
    v_she: Tensor,
    queries: CellBoundaries,
    keys: CellBoundaries,
    causal: bool = False,
) -> Tensor:
    """Let the queries of every cell attend to the keys of the same cell, without padding.

    Shape ``(n_tokens, n_heads, head_width)``; a cell with queries needs a key. If ``causal``, a
    query attends to no later token. On a GPU in half precision all cells go through one kernel;
    elsewhere one cell follows the other.
    """
    if can_use_varlen(q_the):
        return varlen_attention(q_the, k_she, v_she, queries, keys, causal)
    return plain_attention(q_the, k_she, v_she, queries, keys, causal)


def can_use_varlen(q_the: Tensor) -> bool:
    """Return whether the kernel works for such queries; tried once for each kind of them."""
    if not _has_kernel(q_the) or not len(q_the):
        return False
    if varlen_attn is None:
        _say_that_torch_is_old()
        return False
    return _passes_check(q_the.device, q_the.dtype, q_the.shape[1], q_the.shape[2])


def _has_kernel(q_the: Tensor) -> bool:
    """Whether there is a flash attention kernel for the device, type and width of a head."""
    return (
        q_the.is_cuda
        and q_the.dtype in (torch.float16, torch.bfloat16)
        and q_the.shape[-1] % 8 == 0
        and q_the.shape[-1] <= 256
        and torch.cuda.get_device_capability(q_the.device) >= (8, 0)
    )


def varlen_attention(
    q_the: Tensor,
    k_she: Tensor,
    v_she: Tensor,
    queries: CellBoundaries,
    keys: CellBoundaries,
    causal: bool = False,
) -> Tensor:
    """Attend within all cells at once, in torch's variable-length flash attention."""
    boundaries = queries.cu_seqlens.int(), keys.cu_seqlens.int()
    longest = queries.max_length, keys.max_length
    options = _batch_invariance() | ({"window_size": (-1, 0)} if causal else {})
    return varlen_attn(q_the, k_she, v_she, *boundaries, *longest, **options)


def plain_attention(
    q_the: Tensor,
    k_she: Tensor,
    v_she: Tensor,
    queries: CellBoundaries,
    keys: CellBoundaries,
    causal: bool = False,
) -> Tensor:
    """Attend in all cells at once if their lengths allow it, else in one after the other."""
    if keys.is_even and queries.is_even:
        n_cells = len(keys.lengths)
        q, k, v = (x.unflatten(0, (n_cells, -1)).transpose(1, 2) for x in (q_the, k_she, v_she))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return attended.transpose(1, 2).flatten(0, 1)
    if keys.is_even and keys.max_length <= FEW_KEYS and not causal:
        v_cnhe = v_she.unflatten(0, (len(keys.lengths), -1))
        v_tnhe = v_cnhe.index_select(0, cells_of(queries.cu_seqlens, len(q_the)))
        return (_few_weights(q_the, k_she, queries, keys)[..., None] * v_tnhe).sum(1)
    # `split` rather than slices: its backward is one concatenation, where every slice would
    # write a full-size gradient of its own.
    parts = q_the.split(queries.lengths), k_she.split(keys.lengths), v_she.split(keys.lengths)
    of_cells = []
    for cell in zip(*parts, strict=True):
        q, k, v = (x[None].transpose(1, 2) for x in cell)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        of_cells.append(attended.transpose(1, 2)[0])
    return torch.cat(of_cells)


def _few_weights(
    q_the: Tensor, k_she: Tensor, queries: CellBoundaries, keys: CellBoundaries
) -> Tensor:
    """Return weights of the equally many keys of all cells, ``(n_queries, n_keys, n_heads)``."""
    k_cnhe = k_she.unflatten(0, (len(keys.lengths), -1))
    k_tnhe = k_cnhe.index_select(0, cells_of(queries.cu_seqlens, len(q_the)))
    return ((q_the[:, None] * k_tnhe).sum(-1) * q_the.shape[-1] ** -0.5).softmax(1)


@cache
def _batch_invariance() -> dict[str, Any]:
    """Keep the kernel, where it lets us, from splitting keys by the longest cell of the batch."""
    return {"num_splits": 1} if "num_splits" in inspect.signature(varlen_attn).parameters else {}


@cache
def _passes_check(device: torch.device, dtype: torch.dtype, n_heads: int, width: int) -> bool:
    """Compare the kernel, forward and backward, with plain attention on a few small cells."""
    try:
        difference = _difference(device, dtype, n_heads, width)
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = f"it fails here ({error!r})"
    else:
        if difference < VARLEN_TOLERANCE:
            return True
        reason = f"it is off by {difference:.2g} from plain attention"
    warnings.warn(
        f"torch's variable-length attention is not used, as {reason}. Cells are attended to one "
        "after the other, which is slower; another release of torch may help.",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


@cache
def _say_that_torch_is_old() -> None:
    warnings.warn(
        f"torch {torch.__version__} has no variable-length attention: cells are attended to one "
        "after the other, which is slower. torch 2.10 or newer has it.",
        RuntimeWarning,
        stacklevel=2,
    )


@torch.inference_mode(False)
@torch.enable_grad()
def _difference(device: torch.device, dtype: torch.dtype, n_heads: int, width: int) -> float:
    """Return the largest difference between results and gradients."""
    queries, keys = (
        CellBoundaries.of(torch.tensor(cu, dtype=torch.int32, device=device))
        for cu in ([0, 3, 3, 20], [0, 5, 6, 40])
    )
    generator = torch.Generator().manual_seed(0)
    # Views with gaps, as the model has them
    qkv = torch.randn(40, 3, n_heads, width, generator=generator).to(device, dtype)
    qkv.requires_grad_()
    with torch.autocast(device.type, enabled=False):
        results = []
        for attend in (varlen_attention, plain_attention):
            q, k, v = qkv.unbind(1)
            out_the = attend(q[:20], k, v, queries, keys)
            (gradient,) = torch.autograd.grad(out_the.float().square().sum(), qkv)
            results.append([x.detach().float() for x in (out_the, gradient)])
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1))
        for a, b in zip(*results, strict=True)
    )


def attention_among(q_the: Tensor, k_the: Tensor, chosen_n: Tensor) -> Tensor:
    """Return attention among some tokens of one cell, averaged over heads, queries in rows."""
    n_tokens, n_heads, width = k_the.shape
    keys = k_the.float()
    rows = []
    for q_nhe in q_the[chosen_n].float().split(max(1, MAX_WEIGHTS // (n_heads * n_tokens))):
        scores_hns = torch.einsum("nhe,she->hns", q_nhe, keys) * width**-0.5
        rows.append(scores_hns.softmax(dim=-1)[..., chosen_n].mean(dim=0))
    return torch.cat(rows) if rows else keys.new_zeros(0, 0)


class InducingAttention(nn.Module):
    """A few learned tokens per cell that attend to all of its genes.

    The first half of an induced set attention block (Lee et al. 2019, section 3.2): the cost is
    linear in the expressed genes. As query and key, and value and output, are linear, one
    projection stands for each pair.
    """

    def __init__(self, n_hidden: int, n_inducing: int, n_heads: int) -> None:
        super().__init__()
        self.n_inducing, self.n_heads = n_inducing, n_heads
        self.tokens = nn.Parameter(0.02 * torch.randn(n_inducing, n_hidden))
        self.score = nn.Linear(n_hidden, n_inducing * n_heads)
        self.merge = nn.Linear(n_heads * n_hidden, n_hidden)
        nn.init.normal_(self.score.weight, std=0.2)

    def forward(self, x_td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return tokens of shape ``(n_cells * n_inducing, n_hidden)``."""
        cells = CellBoundaries.of(cu_seqlens)
        with torch.autocast(x_td.device.type, enabled=False):  # sums over thousands of genes
            x_td = x_td.float()
            scores_it = self.score(x_td).T.contiguous()  # softmax runs along the rows
            if x_td.device.type == "cpu":
                heads_cid = _SumPerCell.apply(scores_it, x_td, cells.lengths)
            else:
                heads_cid = padded_sum_per_cell(scores_it, x_td, cells.lengths)
            merged_cnd = self.merge(heads_cid.unflatten(1, (self.n_inducing, -1)).flatten(2))
            return (self.tokens + merged_cnd).flatten(0, 1)

    def weights(self, x_td: Tensor) -> Tensor:
        """Return the attention of each token to the genes of one cell, averaged over heads."""
        return self.score(x_td.float()).T.softmax(1).unflatten(0, (self.n_inducing, -1)).mean(1)


class _SumPerCell(torch.autograd.Function):
    """Sum the tokens of every cell with softmax weights, one cell after the other."""

    @staticmethod
    def forward(ctx: Any, scores_it: Tensor, x_td: Tensor, lengths: list[int]) -> Tensor:
        """Return ``softmax(scores) @ x`` of every cell; 0 for a cell without tokens."""
        weights_it = torch.empty_like(scores_it)
        out_cid = x_td.new_zeros(len(lengths), len(scores_it), x_td.shape[1])
        cells = scores_it.split(lengths, 1), weights_it.split(lengths, 1), x_td.split(lengths)
        for scores, weights, x, out in zip(*cells, out_cid, strict=True):
            if len(x):
                torch.softmax(scores, 1, out=weights)
                torch.mm(weights, x, out=out)
        ctx.save_for_backward(weights_it, x_td)
        ctx.lengths = lengths
        return out_cid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of scores and tokens."""
        weights_it, x_td = ctx.saved_tensors
        d_scores_it, d_x_td = torch.empty_like(weights_it), torch.empty_like(x_td)
        wide = (x.split(ctx.lengths, 1) for x in (weights_it, d_scores_it))
        tall = (x.split(ctx.lengths) for x in (x_td, d_x_td))
        for weights, d_scores, x, d_x, d_out in zip(*wide, *tall, gradients[0], strict=True):
            torch.mm(weights.T, d_out, out=d_x)
            d_weights = weights * (d_out @ x.T)
            torch.sub(d_weights, weights * d_weights.sum(1, keepdim=True), out=d_scores)
        return d_scores_it, d_x_td, None


def padded_sum_per_cell(scores_it: Tensor, x_td: Tensor, lengths: list[int]) -> Tensor:
    """Do what ``_SumPerCell`` does for all cells at once, padded to the longest."""
    padded = nn.utils.rnn.pad_sequence
    scores_cti = padded(scores_it.T.split(lengths), batch_first=True, padding_value=-torch.inf)
    weights_cti = scores_cti.softmax(1).nan_to_num(0.0)  # of a cell without tokens
    return weights_cti.transpose(1, 2) @ padded(x_td.split(lengths), batch_first=True)


class SelfAttention(nn.Module):
    """Projections of multi-head self-attention; ``ragged_attention`` lies between them."""

    def __init__(self, n_hidden: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(n_hidden, 3 * n_hidden)
        self.out = nn.Linear(n_hidden, n_hidden)

    def project(self, x_td: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each ``(n_tokens, n_heads, head_width)``."""
        return self.qkv(x_td).unflatten(-1, (3, self.n_heads, -1)).unbind(1)

    def merge(self, attended_the: Tensor) -> Tensor:
        """Return what the heads attended to as ``(n_tokens, n_hidden)``."""
        return self.out(attended_the.flatten(1))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to the encoded tokens of their own cell."""

    def __init__(self, n_hidden: int, n_context: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(n_hidden, n_hidden)
        self.kv = nn.Linear(n_context, 2 * n_hidden)
        self.out = nn.Linear(n_hidden, n_hidden)

    def forward(
        self, x_td: Tensor, context_sd: Tensor, queries: CellBoundaries, context: CellBoundaries
    ) -> Tensor:
        """Return the attended context, shape ``(n_queries, n_hidden)``."""
        q = self.q(x_td).unflatten(-1, (self.n_heads, -1))
        k, v = self.kv(context_sd).unflatten(-1, (2, self.n_heads, -1)).unbind(1)
        return self.out(ragged_attention(q, k, v, queries, context).flatten(1))

    def weights(
        self, x_td: Tensor, context_sd: Tensor, queries: CellBoundaries, context: CellBoundaries
    ) -> Tensor:
        """Return attention weights, averaged over heads, where all contexts are as long."""
        q_the = self.q(x_td).unflatten(-1, (self.n_heads, -1)).float()
        k_she = self.kv(context_sd).unflatten(-1, (2, self.n_heads, -1))[:, 0].float()
        return _few_weights(q_the, k_she, queries, context).mean(-1)


def in_chunks(function: Callable[..., Tensor], size: int, x_td: Tensor, *others: Tensor) -> Tensor:
    """Apply a function of single rows to some rows at a time; see :func:`recomputed`."""
    size = max(size, WORTH_RECOMPUTING)
    return torch.cat([recomputed(function, chunk, *others) for chunk in x_td.split(size)])


def recomputed(function: Callable, *inputs: Tensor) -> Any:
    """Call a function; where gradients are needed, compute it again then instead of storing."""
    if not torch.is_grad_enabled() or len(inputs[0]) < WORTH_RECOMPUTING:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, ``multiplier`` times as wide.

    With ``recompute``, on a processor, a training step takes half of the memory and up to a tenth
    more time: the inner layer is computed again for the backward pass.
    """

    def __init__(
        self,
        n_hidden: int,
        multiplier: int = 4,
        activation: Activation = "gelu",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.inner = nn.Linear(n_hidden, multiplier * n_hidden)
        self.outer = nn.Linear(multiplier * n_hidden, n_hidden)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_td: Tensor) -> Tensor:
        """Transform every token on its own; the shape stays."""
        is_trained = torch.is_grad_enabled()
        is_whole = x_td.device.type != "cpu" or torch.compiler.is_compiling()
        if is_whole or (is_trained and not self.recompute):
            return self._transform(x_td)
        n_at_a_time = (MAX_INNER_TRAINED if is_trained else MAX_INNER) // self.inner.out_features
        return in_chunks(self._transform, n_at_a_time, x_td)

    def _transform(self, x_td: Tensor) -> Tensor:
        return self.outer(self.activation(self.inner(x_td)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual path and a layer norm.

    The norm comes before each part (``norm_first``) or after it, as published. Attention weights
    are never dropped: that would force the slow attention kernels.
    """

    def __init__(
        self,
        n_hidden: int,
        n_heads: int,
        activation: Activation = "gelu",
        norm_first: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = SelfAttention(n_hidden, n_heads)
        self.feed_forward = FeedForward(
            n_hidden, activation=activation, recompute=n_hidden >= RECOMPUTED_FROM
        )
        self.attention_norm = nn.LayerNorm(n_hidden)
        self.feed_forward_norm = nn.LayerNorm(n_hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_td: Tensor, cells: CellBoundaries) -> Tensor:
        """Let the tokens of every cell attend to each other, shape ``(n_tokens, n_hidden)``."""
        q, k, v = self.project(x_td)
        return self.update(x_td, ragged_attention(q, k, v, cells, cells))

    def project(self, x_td: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values of all tokens."""
        return self.attention.project(self.attention_norm(x_td) if self.norm_first else x_td)

    def update(self, x_td: Tensor, attended_the: Tensor) -> Tensor:
        """Return the tokens after what the heads attended to and the feed-forward part."""
        x_td = x_td + self.dropout(self.attention.merge(attended_the))
        if self.norm_first:
            return x_td + self.dropout(self.feed_forward(self.feed_forward_norm(x_td)))
        x_td = self.attention_norm(x_td)
        return self.feed_forward_norm(x_td + self.dropout(self.feed_forward(x_td)))


class Encoder(nn.Module):
    """A stack of ``EncoderLayer`` and a final layer norm.

    With ``recompute``, only the input of every layer is kept for the backward pass: a third more
    time, a fraction of the memory. Further arguments are those of ``EncoderLayer``.
    """

    def __init__(
        self, n_layers: int, n_hidden: int, n_heads: int, *options: Any, **named: Any
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(n_hidden, n_heads, *options, **named) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(n_hidden)
        self.recompute = False

    def forward(self, x_td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Encode the tokens of all cells, shape ``(n_tokens, n_hidden)``."""
        cells = CellBoundaries.of(cu_seqlens)
        if torch.is_grad_enabled() and (
            x_td.requires_grad or any(p.requires_grad for p in self.parameters())
        ):
            return self._encode(x_td, cells)
        with torch.no_grad():  # a frozen encoder, too, needs no memory for gradients
            return self._encode_in_groups(x_td, cells)

    def queries_and_keys(self, x_td: Tensor, cu_seqlens: Tensor, layer: int) -> tuple[Tensor, ...]:
        """Return queries and keys of a layer, each ``(n_tokens, n_heads, head_width)``."""
        cells = CellBoundaries.of(cu_seqlens)
        for earlier in list(self.layers)[:layer]:
            x_td = earlier(x_td, cells)
        asked = self.layers[layer]
        assert isinstance(asked, EncoderLayer)
        return asked.project(x_td)[:2]

    def _encode_in_groups(self, x_td: Tensor, cells: CellBoundaries) -> Tensor:
        on_gpu = x_td.device.type != "cpu"
        max_tokens = (MAX_ENTRIES_ON_GPU if on_gpu else MAX_ENTRIES) // x_td.shape[1]
        groups = cells.groups(max_tokens)
        parts = x_td.split([sum(group.lengths) for group in groups])
        return torch.cat([self._encode(*part) for part in zip(parts, groups, strict=True)])

    def _encode(self, x_td: Tensor, cells: CellBoundaries) -> Tensor:
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x_td = checkpoint(layer, x_td, cells, use_reentrant=False)
            else:
                x_td = layer(x_td, cells)
        return self.norm(x_td)


class CrossAttentionLayer(nn.Module):
    """Cross-attention and feed-forward, pre-norm."""

    def __init__(self, n_hidden: int, n_context: int, n_heads: int) -> None:
        super().__init__()
        self.attention = CrossAttention(n_hidden, n_context, n_heads)
        self.feed_forward = FeedForward(n_hidden, recompute=n_hidden >= RECOMPUTED_FROM)
        self.attention_norm = nn.LayerNorm(n_hidden)
        self.feed_forward_norm = nn.LayerNorm(n_hidden)

    def forward(
        self, x_td: Tensor, context_sd: Tensor, queries: CellBoundaries, context: CellBoundaries
    ) -> Tensor:
        """Return the queries after one layer, shape ``(n_queries, n_hidden)``."""
        x_td = x_td + self.attention(self.attention_norm(x_td), context_sd, queries, context)
        return x_td + self.feed_forward(self.feed_forward_norm(x_td))

    def weights(
        self, x_td: Tensor, context_sd: Tensor, queries: CellBoundaries, context: CellBoundaries
    ) -> Tensor:
        """Return the attention weights of the layer, see :meth:`CrossAttention.weights`."""
        return self.attention.weights(self.attention_norm(x_td), context_sd, queries, context)
