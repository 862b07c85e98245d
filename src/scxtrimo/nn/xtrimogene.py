"""xTrimoGene on one page: configuration, network, objective.

An asymmetric masked autoencoder over the genes of a cell (Gong et al. 2023, figure 1). The encoder
reads the expressed, unmasked genes and nothing else; the decoders predict any gene from what it
found. Tokens T and S of the target and source depth are those of Hao et al. 2024. The cell token,
the inducing tokens, the bottleneck decoder and the cross-attention decoder are ours.

    counts, genes -> TokenEmbedding -> (InducingAttention) -> Encoder
        -> CellPooling -> BottleneckDecoder -> all counts
        -> Cross-attention or Performer -> masked genes
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import (
    Activation,
    CrossAttentionLayer,
    Encoder,
    InducingAttention,
    TokenEmbedding,
    attention_among,
    normalize_counts,
)
from .performer import PerformerDecoder
from .ragged import (
    CellBoundaries,
    EncodedCells,
    HiddenGenes,
    RaggedBatch,
    cells_of,
    drop_first_tokens,
    lengths_of,
    max_per_cell,
    mean_per_cell,
    prepend_tokens,
    select_tokens,
    sum_per_cell,
    to_tokens,
)
from .ranges import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt

Pool = Literal["all", "max", "mean", "s", "t"]
POOLS: tuple[str, ...] = get_args(Pool)


@dataclass(frozen=True)
class NetConfig:
    """Hyper-parameters of the network and its objective."""

    n_hidden: PositiveInt = 64  #: width of the encoder and of the gene embeddings
    n_layers: PositiveInt = 2  #: depth of the encoder
    n_heads: PositiveInt = 4  #: heads of a layer of the encoder; divides ``n_hidden``
    #: Learned tokens per cell that read its genes and are encoded in their place, at a cost that
    #: is linear in the genes; ``None`` for attention from gene to gene, as published.
    n_inducing: PositiveInt | None = None
    n_bins: PositiveInt = 100  #: bins of the auto-discretisation of expression values
    bin_alpha: PositiveFloat = 1.0  #: weight of its residual path
    n_pool: PositiveInt = 128  #: inner width of the network that turns tokens into cell vectors
    n_latent: PositiveInt = 32  #: dimensions of the cell vector
    #: Decoder of masked genes; ``"performer"`` is the published one.
    imputation_decoder: Literal["cross_attention", "performer"] = "cross_attention"
    n_decoder_hidden: PositiveInt = 64  #: width of this decoder
    n_decoder_layers: PositiveInt = 1  #: depth of this decoder
    n_decoder_heads: PositiveInt = 4  #: heads of a layer of it; divides ``n_decoder_hidden``
    #: Width of a head of the Performer; by default ``n_decoder_hidden / n_decoder_heads``.
    decoder_head_width: PositiveInt | None = None
    redraw_features_every: PositiveInt = 1000  #: training steps with the same random features
    #: Add tokens of the target and the source depth, and train on cells of which counts were taken
    #: away :cite:p:`Hao2024`. Needed to ask for a ``target_depth``.
    read_depth_aware: bool = False
    #: Width of the embedding of batch and covariates, used by the bottleneck decoder only.
    n_covariate: PositiveInt = 8
    #: What is trained: the likelihood of all counts given the cell vector, the regression of
    #: masked genes, or both. A decoder that is not trained does not exist. With ``"masked"`` only,
    #: as published, there is no learned pooling: the latent representation is the published one.
    objective: Literal["counts+masked", "counts", "masked"] = "counts+masked"
    likelihood_weight: NonNegativeFloat = 1.0  #: weight of the count likelihood
    imputation_weight: NonNegativeFloat = 1.0  #: weight of the masked regression
    activation: Activation = "gelu"  #: activation of the feed-forward layers of the encoder
    norm_first: bool = True  #: pre-norm encoder; false for post-norm, as published
    dropout: Fraction = 0.0  #: dropout of the encoder

    @property
    def n_context(self) -> int:
        """Width of the embeddings of genes in the context of a cell."""
        return self.n_hidden if self.n_inducing is None else self.n_decoder_hidden

    @property
    def has_bottleneck(self) -> bool:
        """Whether there are a bottleneck decoder and a learned pooling."""
        return self.objective != "masked"

    @property
    def has_imputation(self) -> bool:
        """Whether there is a decoder of masked genes."""
        return self.objective != "counts"


class CellPooling(nn.Module):
    """Cell vector from the cell token, the mean and the maximum over all tokens of a cell.

    From ``n_inducing`` tokens, if there are any: all of them.
    """

    def __init__(
        self, n_hidden: int, n_pool: int, n_latent: int, n_inducing: int | None = None
    ) -> None:
        super().__init__()
        self.n_inducing = n_inducing
        self.mlp = nn.Sequential(
            nn.Linear((n_inducing or 3) * n_hidden, n_pool),
            nn.GELU(),
            nn.Linear(n_pool, n_latent),
        )

    def forward(self, tokens_td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return cell vectors, shape ``(n_cells, n_latent)``; the cell token comes first."""
        if self.n_inducing is not None:
            return self.mlp(tokens_td.unflatten(0, (-1, self.n_inducing)).flatten(1))
        cell_token_cd = tokens_td.index_select(0, cu_seqlens[:-1])
        pooled = mean_per_cell(tokens_td, cu_seqlens), max_per_cell(tokens_td, cu_seqlens)
        return self.mlp(torch.cat([cell_token_cd, *pooled], dim=-1))


def pool_tokens(cells: EncodedCells, pool: str, n_special: int) -> Tensor:
    """Summarise the tokens of every cell without parameters, as the published code does.

    ``pool``: the token of the source or target depth (``"s"``, ``"t"``), the maximum over all
    tokens, the mean over the genes; ``"all"`` is S, T, maximum and mean over the genes, shape
    ``(n_cells, 4 * n_hidden)``. ``n_special`` tokens precede the genes.
    """
    tokens_td, cu_seqlens = cells.tokens_td, cells.cu_seqlens
    if pool in ("s", "t"):
        return tokens_td[cu_seqlens[:-1].long() + n_special - (1 if pool == "s" else 2)]
    if pool == "max":
        return max_per_cell(tokens_td, cu_seqlens)
    genes = drop_first_tokens(tokens_td, cu_seqlens, n_special)
    if pool == "mean":
        return mean_per_cell(*genes)
    if pool != "all":
        raise ValueError(f"pool={pool!r} must be one of {list(POOLS)}.")
    s_and_t = [pool_tokens(cells, token, n_special) for token in ("s", "t")]
    return torch.cat([*s_and_t, max_per_cell(*genes), mean_per_cell(*genes)], dim=-1)


class BottleneckDecoder(nn.Module):
    r"""Score a cell vector against gene queries; the scores are log-rates of counts.

    .. math::
        \log \rho_{cg} = \log\mathrm{softmax}_g(q_g^\top [z_c, k_c] + b_g)

    with :math:`q_g` linear in the gene embedding. As the cell vector is all it sees, this decoder
    is what makes the cell vector describe the whole cell.
    """

    max_queries: int | None = None

    def __init__(self, n_genes: int, n_hidden: int, n_latent: int, n_covariate: int = 0) -> None:
        super().__init__()
        self.to_query = nn.Linear(n_hidden, n_latent, bias=False)
        self.covariate_loadings = nn.Parameter(torch.zeros(n_genes, n_covariate))
        self.log_baseline = nn.Parameter(torch.zeros(n_genes))

    def log_rates(self, cells: EncodedCells, genes_gd: Tensor) -> Tensor:
        """Return the log of each gene's fraction of a cell's counts, ``(n_cells, n_genes)``."""
        return F.log_softmax(self.scores(cells, genes_gd), dim=-1)

    def scores(
        self, cells: EncodedCells, genes_gd: Tensor, chosen: Tensor | None = None
    ) -> Tensor:
        """Return log-rates up to a constant of the cell, of all or of some genes."""
        # Scores in bfloat16 would be off by several per cent of a rate.
        with torch.autocast(genes_gd.device.type, enabled=False):
            loadings_gk: Tensor = self.covariate_loadings
            baseline_g: Tensor = self.log_baseline
            if chosen is None:
                genes_gd = genes_gd[: len(baseline_g)]  # no depth tokens
            else:
                genes_gd = F.embedding(chosen, genes_gd)
                loadings_gk = loadings_gk.index_select(0, chosen)
                baseline_g = baseline_g.index_select(0, chosen)
            query_gz = torch.cat([self.to_query(genes_gd), loadings_gk], dim=1)
            cell_cz = torch.cat([cells.latent_cz, cells.covariates_ck], dim=1).to(query_gz.dtype)
            return torch.addmm(baseline_g, cell_cz, query_gz.t())

    def forward(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Tensor:
        """Predict the queried genes; arguments as in :class:`CrossAttentionDecoder`."""
        cells_t = cells_of(cu_queries, gene_ids_t.shape[0])
        return torch.log1p(1e4 * self.log_rates(cells, genes_gd)[cells_t, gene_ids_t].exp())


class CrossAttentionDecoder(nn.Module):
    """Queries of masked genes attend to the encoded tokens of their cell."""

    max_queries: int | None = 2**15  # that are worth asking at a time, to bound the memory

    def __init__(self, n_hidden: int, n_context: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.to_query = nn.Linear(n_context, n_hidden)
        self.layers = nn.ModuleList(
            CrossAttentionLayer(n_hidden, n_context, n_heads) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(n_hidden)
        self.to_value = nn.Linear(n_hidden, 1)

    def forward(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Tensor:
        """Predict ``log1p(counts per 10,000)`` of genes ``gene_ids_t``, shape ``(n_queries,)``.

        ``genes_gd`` are the embeddings of all positions, ``cu_queries`` the boundaries of cells.
        """
        x_td = self.embed(cells, genes_gd, gene_ids_t, cu_queries)
        return self.to_value(x_td).squeeze(-1)

    def embed(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Tensor:
        """Return embeddings of genes in the context of their cell, ``(n_queries, n_hidden)``."""
        x_td = self._queries(genes_gd, gene_ids_t)
        queries, context = CellBoundaries.of(cu_queries), CellBoundaries.of(cells.cu_seqlens)
        for layer in self.layers:
            x_td = layer(x_td, cells.tokens_td, queries, context)
        return self.norm(x_td)

    def attention(
        self,
        cells: EncodedCells,
        genes_gd: Tensor,
        gene_ids_t: Tensor,
        cu_queries: Tensor,
        layer: int,
    ) -> Tensor:
        """Return the attention of genes to as many tokens of each cell, averaged over heads."""
        x_td = self._queries(genes_gd, gene_ids_t)
        queries, context = CellBoundaries.of(cu_queries), CellBoundaries.of(cells.cu_seqlens)
        asked = self.layers[layer]
        assert isinstance(asked, CrossAttentionLayer)
        for before in list(self.layers)[: layer % len(self.layers)]:
            x_td = before(x_td, cells.tokens_td, queries, context)
        return asked.weights(x_td, cells.tokens_td, queries, context)

    def _queries(self, genes_gd: Tensor, gene_ids_t: Tensor) -> Tensor:
        """Return the queries of genes before the first layer."""
        if len(gene_ids_t) > len(genes_gd):  # every gene is asked for in several cells
            return F.embedding(gene_ids_t, self.to_query(genes_gd))
        return self.to_query(F.embedding(gene_ids_t, genes_gd))


Decoder = BottleneckDecoder | CrossAttentionDecoder | PerformerDecoder


class Losses(NamedTuple):
    """The objective of a masked batch, and what it is made of."""

    loss: Tensor
    reconstruction_c: Tensor
    """Negative log-likelihood per count of every cell; without a bottleneck decoder the squared
    error, averaged over the targets of the cell."""
    metrics: dict[str, Tensor]


class XTrimoGeneNet(nn.Module):
    r"""The network, with the objective that makes its cell vector.

    .. math::
        \mathcal{L} = -\frac{w_l}{N}\sum_c \sum_g \frac{x_{cg}}{n_c} \log \rho_{cg}
            + w_i \, \mathrm{mean}_{(c, g) \in T} (\hat v_{cg} - v_{cg})^2

    The first term is the multinomial likelihood of all counts of a cell given its cell vector, per
    count; the second the masked regression through the imputation decoder, which published models
    have alone. ``n_categories`` has the number of categories of each covariate, ``seed`` is that
    of the random features of a Performer, ``**fields`` are fields of ``config`` to replace.
    """

    def __init__(
        self,
        n_genes: int,
        config: NetConfig | None = None,
        *,
        n_categories: tuple[int, ...] = (),
        seed: int = 0,
        **fields: Any,
    ) -> None:
        super().__init__()
        config = replace(config or NetConfig(), **fields)
        self.config = config
        self.n_genes = n_genes
        self.n_depth_tokens = 2 if config.read_depth_aware else 0
        has_cell_token = config.has_bottleneck and config.n_inducing is None
        self.n_special = self.n_depth_tokens + has_cell_token if config.n_inducing is None else 0
        width = config.n_hidden
        self.embedding = TokenEmbedding(
            n_genes + self.n_depth_tokens, width, config.n_bins, config.bin_alpha
        )
        self.cell_token: nn.Parameter | None = None
        if has_cell_token:
            self.cell_token = nn.Parameter(0.02 * torch.randn(width))
        self.inducing: InducingAttention | None = None
        if config.n_inducing is not None:
            self.inducing = InducingAttention(width, config.n_inducing, config.n_heads)
        self.encoder = Encoder(
            config.n_layers,
            width,
            config.n_heads,
            activation=config.activation,
            norm_first=config.norm_first,
            dropout=config.dropout,
        )
        self.bottleneck: BottleneckDecoder | None = None
        if config.has_bottleneck:
            n_covariate = config.n_covariate if n_categories else 0
            self.pooling = CellPooling(width, config.n_pool, config.n_latent, config.n_inducing)
            self.covariates = nn.ModuleList(nn.Embedding(n, n_covariate) for n in n_categories)
            self.bottleneck = BottleneckDecoder(n_genes, width, config.n_latent, n_covariate)
        n_hidden, n_heads = config.n_decoder_hidden, config.n_decoder_heads
        size = (n_hidden, width, config.n_decoder_layers, n_heads)
        self.imputation: PerformerDecoder | CrossAttentionDecoder | None = None
        if config.has_imputation and config.imputation_decoder == "performer":
            head_width = config.decoder_head_width or n_hidden // n_heads
            self.imputation = PerformerDecoder(*size, head_width, seed)
        elif config.has_imputation:
            self.imputation = CrossAttentionDecoder(*size)

    def forward(self, batch: RaggedBatch) -> Losses:
        """Return the objective of a masked batch, see :func:`~scxtrimo.nn.mask_batch`."""
        cells = self.encode_batch(batch)
        terms, metrics = [], {}
        weights_c = batch.get("cell_weights", torch.ones_like(batch["library_size"]))
        if self.imputation is not None:
            imputed_t = self.imputation(
                cells, self.positions, batch["target_gene_ids"], batch["target_cu_seqlens"]
            )
            error_t = (imputed_t.float() - target_values(batch)).square()
            cu_seqlens, n_targets = batch["target_cu_seqlens"], len(imputed_t)
            weights_t = batch["target_weights"] * to_tokens(weights_c, cu_seqlens, n_targets)
            error_t = error_t * (weights_t / weights_t.mean())
            mse = error_t.sum() / max(len(error_t), 1)  # a small batch may have no targets
            metrics["imputation_mse"] = mse.detach()
            terms.append(self.config.imputation_weight * mse)
            reconstruction_c = mean_per_cell(error_t[:, None], batch["target_cu_seqlens"])[:, 0]
        if self.bottleneck is not None:
            reconstruction_c = self._negative_log_likelihood(cells, batch)
            terms.append(self.config.likelihood_weight * (weights_c * reconstruction_c).mean())
        return Losses(torch.stack(terms).sum(), reconstruction_c, metrics)

    def _negative_log_likelihood(self, cells: EncodedCells, batch: RaggedBatch) -> Tensor:
        """Return that of all counts of a cell, or of those of the scored genes, per count.

        Multinomial, without the terms that only depend on the counts. A scored gene stands for
        ``scored_weights`` genes, so that a sample gives about the same as all genes.
        """
        assert self.bottleneck is not None
        counts_t, cu_seqlens, genes = batch["counts"], batch["cu_seqlens"], batch["gene_ids"]
        scored = batch.get("scored_gene_ids")
        scores_cg = self.bottleneck.scores(cells, self.positions, scored)
        cells_t = cells_of(cu_seqlens, len(counts_t))
        if scored is None:
            log_total_c = scores_cg.logsumexp(1)
        else:
            weights_g = batch["scored_weights"]
            log_total_c = (scores_cg + weights_g.log()).logsumexp(1)
            place_g = torch.full((self.n_genes,), -1, device=scored.device)
            place_g[scored] = torch.arange(len(scored), device=scored.device)
            genes = place_g[genes]
            is_scored_t = genes >= 0
            genes, cells_t = genes[is_scored_t], cells_t[is_scored_t]
            counts_t = counts_t[is_scored_t] * weights_g[genes]
            cu_seqlens = select_tokens(is_scored_t, cu_seqlens)
        # `index_select`, as the backward of plain indexing is not deterministic on CPU.
        scores_t = scores_cg.flatten().index_select(0, cells_t * scores_cg.shape[1] + genes)
        n_counts_c = sum_per_cell(counts_t, cu_seqlens)
        log_likelihood_c = sum_per_cell(counts_t * scores_t, cu_seqlens) - n_counts_c * log_total_c
        return -log_likelihood_c / batch["library_size"]

    def gene_attention(
        self, batch: RaggedBatch, is_asked_g: Tensor, layer: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, for every cell, the genes asked for that it has, and the attention among them.

        Queries are in rows, heads are averaged. With inducing tokens it is that of the imputation
        decoder to the tokens times that of these to the genes; ``layer`` is then of the decoder.
        """
        x_td, cu_seqlens, ids_t = self.embed(**self.inputs(batch))
        lengths = lengths_of(cu_seqlens).tolist()
        is_gene_t = (ids_t >= 0) & (ids_t < self.n_genes)
        chosen_t = is_gene_t & is_asked_g[torch.where(is_gene_t, ids_t, 0)]
        if self.inducing is None:
            q_the, k_the = self.encoder.queries_and_keys(x_td, cu_seqlens, layer)
            parts = (part.split(lengths) for part in (q_the, k_the, ids_t, chosen_t))
            for q, k, ids, chosen in zip(*parts, strict=True):
                yield ids[chosen], attention_among(q, k, torch.nonzero(chosen)[:, 0])
            return
        assert isinstance(self.imputation, CrossAttentionDecoder)
        cu_chosen = select_tokens(chosen_t, cu_seqlens)
        to_tokens_tn = self.imputation.attention(
            self.encode_batch(batch), self.positions, ids_t[chosen_t], cu_chosen, layer
        )
        to_tokens = to_tokens_tn.split(lengths_of(cu_chosen).tolist())
        parts = (part.split(lengths) for part in (x_td, ids_t, chosen_t))
        for x, ids, chosen, decoder in zip(*parts, to_tokens, strict=True):
            yield ids[chosen], decoder @ self.inducing.weights(x)[:, chosen]

    def encode_batch(self, batch: RaggedBatch) -> EncodedCells:
        """Encode what is visible of a batch."""
        cells = self.encode(**self.inputs(batch), categories_cv=batch.get("categories"))
        if "hidden_gene_ids" not in batch or not isinstance(self.imputation, PerformerDecoder):
            return cells
        # A Performer is told which genes are masked: by the mask, or by another value.
        values_t = batch["hidden_values"]
        known_td = self.embedding.value(values_t.nan_to_num(0.0))
        tokens_td = torch.where(values_t.isnan()[:, None], self.imputation.mask, known_td)
        hidden = HiddenGenes(tokens_td, batch["hidden_gene_ids"], batch["hidden_cu_seqlens"])
        return cells._replace(hidden=hidden)

    def inputs(self, batch: RaggedBatch) -> dict[str, Any]:
        """Return what ``embed`` takes of a batch: what is visible."""
        # Where counts were taken away, the encoder sees what is left.
        counts_t = batch.get("input_counts", batch["counts"])
        library_size_c = batch.get("input_library_size", batch["library_size"])
        keep_t = (counts_t > 0) & batch.get("visible", True)
        measured_cd = torch.stack([batch["library_size"], library_size_c], dim=1).log10()
        return {
            "counts_t": counts_t[keep_t],
            "gene_ids_t": batch["gene_ids"][keep_t],
            "cu_seqlens": select_tokens(keep_t, batch["cu_seqlens"]),
            "library_size_c": library_size_c,
            "depths_cd": batch.get("depths", measured_cd),
            "scale": batch.get("scale", 1e4),
        }

    def encode(
        self,
        counts_t: Tensor,
        gene_ids_t: Tensor,
        cu_seqlens: Tensor,
        library_size_c: Tensor,
        categories_cv: Tensor | None = None,
        depths_cd: Tensor | None = None,
        scale: float = 1e4,
    ) -> EncodedCells:
        """Encode genes that the encoder may see.

        ``library_size_c`` are total counts, masked genes included; ``categories_cv`` codes of the
        covariates, -1 if unknown; ``depths_cd`` log10 of target and source depth, where needed.
        """
        x_td, cu_seqlens, ids_t = self.embed(
            counts_t, gene_ids_t, cu_seqlens, library_size_c, depths_cd, scale
        )
        zero_d = self.embedding.value.embed_each(library_size_c.new_zeros(1))[0]
        n_cells = library_size_c.shape[0]
        if self.inducing is not None:
            x_td, n_each = self.inducing(x_td, cu_seqlens), self.inducing.n_inducing
            cu_seqlens = n_each * torch.arange(n_cells + 1, device=x_td.device, dtype=torch.int32)
            ids_t = ids_t.new_full((n_cells * n_each,), -1)
        x_td = self.encoder(x_td, cu_seqlens)
        nothing_c0 = x_td.new_zeros(n_cells, 0)
        cells = EncodedCells(x_td, cu_seqlens, ids_t, nothing_c0, nothing_c0, zero_d)
        if self.bottleneck is None:
            return cells._replace(latent_cz=pool_tokens(cells, "all", self.n_special))
        return cells._replace(
            latent_cz=self.pooling(x_td, cu_seqlens),
            covariates_ck=self._embed_covariates(categories_cv, nothing_c0),
        )

    def embed(
        self,
        counts_t: Tensor,
        gene_ids_t: Tensor,
        cu_seqlens: Tensor,
        library_size_c: Tensor,
        depths_cd: Tensor | None = None,
        scale: float = 1e4,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, special ones first, boundaries, and positions, -1 for the cell token."""
        n_cells = library_size_c.shape[0]
        library_size_t = to_tokens(library_size_c, cu_seqlens, counts_t.shape[0])
        values_t, ids_t = normalize_counts(counts_t, library_size_t, scale), gene_ids_t
        if self.n_depth_tokens:
            assert depths_cd is not None
            depth_ids_n = torch.arange(self.n_genes, self.n_genes + 2, device=ids_t.device)
            ids_t, _ = prepend_tokens(ids_t, depth_ids_n.expand(n_cells, -1), cu_seqlens)
            values_t, cu_seqlens = prepend_tokens(values_t, depths_cd, cu_seqlens)
        x_td = self.embedding(values_t, ids_t)
        if self.cell_token is not None:
            no_id_c1 = ids_t.new_full((n_cells, 1), -1)
            ids_t, _ = prepend_tokens(ids_t, no_id_c1, cu_seqlens)
            cell_c1d = self.cell_token.expand(n_cells, 1, -1)
            x_td, cu_seqlens = prepend_tokens(x_td, cell_c1d, cu_seqlens)
        return x_td, cu_seqlens, ids_t

    @property
    def positions(self) -> Tensor:
        """Embeddings of all genes and depth tokens, as decoders take them."""
        return self.embedding.gene.weight

    @property
    def gene_embeddings(self) -> Tensor:
        """Gene embeddings of the vocabulary, shape ``(n_genes, n_hidden)``."""
        return self.embedding.gene.weight[: self.n_genes]

    @property
    def decoders(self) -> dict[str, Decoder]:
        """The decoders by name."""
        decoders = {"bottleneck": self.bottleneck, self.config.imputation_decoder: self.imputation}
        return {name: decoder for name, decoder in decoders.items() if decoder is not None}

    def _embed_covariates(self, categories_cv: Tensor | None, nothing_c0: Tensor) -> Tensor:
        """Sum the embeddings of all covariates; a category that is not known is an average one."""
        assert self.bottleneck is not None
        n_cells, n_covariate = len(nothing_c0), self.bottleneck.covariate_loadings.shape[1]
        covariates_ck = nothing_c0.new_zeros(n_cells, n_covariate)
        if categories_cv is None:
            categories_cv = covariates_ck.new_full((n_cells, len(self.covariates)), -1).long()
        for i, table in enumerate(self.covariates):
            assert isinstance(table, nn.Embedding)
            category_c = categories_cv[:, i]
            covariates_ck = covariates_ck + torch.where(
                category_c[:, None] < 0, table.weight.mean(0), table(category_c.clamp(min=0))
            )
        return covariates_ck


def target_values(batch: RaggedBatch) -> Tensor:
    """Return the log-normalised expression of the target genes of a masked batch."""
    counts_t, cu_seqlens = batch["target_counts"], batch["target_cu_seqlens"]
    return normalize_counts(counts_t, to_tokens(batch["library_size"], cu_seqlens, len(counts_t)))


class XTrimoGeneModule(nn.Module):
    """The network with what it keeps of the training data, as models save it."""

    added_buffers: tuple[str, ...] = ("latent_space.measured_weight",)  # older files lack them
    is_read: Tensor  # genes the encoder reads, bool, shape (n_genes,)
    mean_expression: Tensor  # of the training cells, log-normalised
    typical_depth: Tensor  # median of the log10 total counts; 4 for published models

    def __init__(
        self,
        n_genes: int,
        n_categories: tuple[int, ...],
        config: Any,
        seed: int = 0,
        has_batches: bool = False,
    ) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.config = config
        self.seed = seed
        self.has_batches = has_batches  # as the first covariate
        self.net = XTrimoGeneNet(n_genes, config, n_categories=n_categories, seed=seed)
        self.latent_space: Any = None  # the model attaches it
        self.register_buffer("is_read", torch.ones(n_genes, dtype=torch.bool))
        self.register_buffer("mean_expression", torch.zeros(n_genes))
        self.register_buffer("typical_depth", torch.tensor(4.0))

    def forward(self, batch: RaggedBatch) -> Losses:
        """Return the objective of a masked batch."""
        return self.net(self.readable(batch))

    def encode(self, batch: RaggedBatch) -> EncodedCells:
        """Encode the genes of a batch that are read and visible."""
        return self.net.encode_batch(self.readable(batch))

    def predictors(self, cells: EncodedCells) -> Tensor:
        """Return what components are predicted from, float32, ``(n_cells, n_predictors)``."""
        if self.config.predict_from == "tokens":
            return cells.tokens_td.float().reshape(len(cells.latent_cz), -1)
        return cells.latent_cz.float()

    def gene_attention(
        self, batch: RaggedBatch, is_asked_g: Tensor, layer: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield attention among genes, see :meth:`XTrimoGeneNet.gene_attention`."""
        return self.net.gene_attention(self.readable(batch), is_asked_g, layer)

    def readable(self, batch: RaggedBatch) -> RaggedBatch:
        """Return a batch of which only the genes that the encoder reads are visible."""
        is_read_t = self.is_read[batch["gene_ids"]]
        return batch | RaggedBatch(visible=is_read_t & batch.get("visible", True))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def sees_all_genes(self) -> bool:
        """Whether the imputation decoder works on all genes and must know which are masked."""
        return isinstance(self.net.imputation, PerformerDecoder)

    def batch_codes(self, batch: RaggedBatch) -> Tensor | None:
        """Return the batches of the cells; ``None`` in a model without ``batch_key``."""
        return batch["categories"][:, 0] if self.has_batches else None

    def redraw_features(self, step: int) -> None:
        """Give a Performer other random features, every ``redraw_features_every`` steps."""
        every = self.config.redraw_features_every
        if step and step % every == 0 and isinstance(self.net.imputation, PerformerDecoder):
            self.net.imputation.performer.redraw(self.seed + 1000 * (step // every))
