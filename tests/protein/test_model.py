"""The protein language model: what it returns, in any company, and what it refuses."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from helpers import make_proteins
from hypothesis import given, settings
from hypothesis import strategies as st

import scxtrimo
from scxtrimo.cli import main
from scxtrimo.model import XTrimoPGLM
from scxtrimo.protein import ProteinObjective, Tokenizer
from scxtrimo.protein.contacts import precision_at
from scxtrimo.protein.generation import Sampling, generate, infill
from scxtrimo.protein.objective import cut_spans, draw_spans, fill_spans, mask_residues
from scxtrimo.protein.tokenizer import EOP, EOS, MASK, PROMPT, SMASK, SOP, STANDARD

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
SEQUENCES = ["MKTAYIAKQR", "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQ", "ACDEF", "M" * 70]
residues = st.text(STANDARD, min_size=1, max_size=60)


@pytest.fixture(scope="module")
def model():
    return XTrimoPGLM(size="tiny", seed=0)


@pytest.fixture(scope="module")
def masked():
    return XTrimoPGLM(size="tiny", objective="masked", rotary_2d=False, seed=0)


@pytest.fixture(scope="module")
def trained():
    proteins = make_proteins(200)
    XTrimoPGLM.setup_anndata(proteins)
    model = XTrimoPGLM(proteins, size="tiny", seed=0)
    model.train(max_epochs=60, tokens_per_batch=1500, **QUIET)
    return model


# Tokens


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("ACDE", [2, 20, 10, 6]),
        ("A C\nD", [2, 20, 10]),
        ("acde", [2, 20, 10, 6]),
        ("XBUZO", [21, 22, 23, 24, 25]),
        ("AJJC", [2, 21, 21, 20]),
        ("A*C*", [2, 21, 20]),
        ("A.C-D", [2, 20, 10]),
    ],
)
def test_letters_are_read_one_by_one(text, ids):
    assert Tokenizer()(text).tolist() == ids


def test_gaps_are_kept_where_asked():
    assert Tokenizer(gaps="keep")("A.C-D").tolist() == [2, 26, 20, 27, 10]


@given(residues)
def test_residues_come_back(text):
    assert Tokenizer().decode(Tokenizer()(text)) == text


def test_changes_are_said_once(model, caplog):
    with caplog.at_level("INFO", "scxtrimo"):
        model.get_latent_representation({"a": "mkJt*", "b": "MKT", "c": "M-KT"})
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("Of 3 sequences were changed: ")
    for part in ("lower case 3 times in 1", "J as X 1 times in 1", "gap 1 times in 1"):
        assert part in line


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("XXJ", "has no known residue"),
        ("MK1T", r"has '1' \(first at position 3\), which is no residue"),
        ("MKé", "has 'É'"),
    ],
)
def test_sequences_that_are_none_are_refused(model, sequence, message):
    proteins = anndata.AnnData(obs=pd.DataFrame({"sequence": ["MKT", sequence]}, index=["a", "b"]))
    with pytest.raises(ValueError, match=f"The sequence of 'b' {message}"):
        XTrimoPGLM.setup_anndata(proteins)
    with pytest.raises(ValueError, match=message):
        model.get_latent_representation(["MKT", sequence])


# Files


def test_fasta_files_are_read_as_they_are_written(tmp_path):
    proteins = make_proteins(5)
    proteins.obs["description"] = "a protein"
    for name in ("a.fasta", "a.fasta.gz"):
        scxtrimo.write_fasta(proteins, tmp_path / name, width=7)
        again = scxtrimo.read_fasta(tmp_path / name)
        columns = ["sequence", "description"]
        pd.testing.assert_frame_equal(again.obs[columns], proteins.obs[columns])


def test_names_that_are_there_again_are_numbered(tmp_path):
    (tmp_path / "a.fasta").write_text(">a\nMK\nT\n>a-1\nMK\n>a\nAC\n")
    assert scxtrimo.read_fasta(tmp_path / "a.fasta").obs_names.tolist() == ["a", "a-1", "a-2"]
    (tmp_path / "b.fasta").write_text("MKT\n")
    with pytest.raises(ValueError, match="has no sequences"):
        scxtrimo.read_fasta(tmp_path / "b.fasta")


# Embeddings


@pytest.mark.parametrize("pooling", ["mean", "max", "eos"])
@pytest.mark.parametrize("layer", [0, 1, -1, "pre_norm"])
def test_results_do_not_depend_on_the_batch(model, pooling, layer):
    how = {"pooling": pooling, "layer": layer}
    together = model.get_latent_representation(SEQUENCES, **how)
    alone = [model.get_latent_representation(one, **how)[0] for one in SEQUENCES]
    in_parts = model.get_latent_representation(SEQUENCES, max_tokens=40, **how)
    np.testing.assert_allclose(together, alone, atol=2e-5)
    np.testing.assert_allclose(together, in_parts, atol=2e-5)


def test_residues_have_a_row_each_and_pool_to_the_protein(model):
    found = model.get_latent_representation(SEQUENCES, pooling="residue")
    assert [len(rows) for rows in found] == [len(one) for one in SEQUENCES]
    means = model.get_latent_representation(SEQUENCES)
    np.testing.assert_allclose([rows.mean(0) for rows in found], means, atol=1e-5)


def test_windows_are_the_whole_where_one_covers_it(model):
    sequence = make_proteins(1, 60).obs["sequence"].iloc[0]
    whole = model.get_latent_representation(sequence, pooling="residue", long="full")[0]
    one = model.get_latent_representation(sequence, pooling="residue", window=60)[0]
    np.testing.assert_array_equal(whole, one)
    several = model.get_latent_representation(sequence, pooling="residue", window=20)[0]
    assert several.shape == whole.shape
    assert np.isfinite(several).all()
    first = model.get_latent_representation(sequence[:20], pooling="residue")[0]
    np.testing.assert_allclose(several[:10], first[:10], atol=1e-5)  # no other window reaches
    cut = model.get_latent_representation(sequence, long="truncate", window=20, pooling="residue")
    np.testing.assert_allclose(cut[0], first, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"1 of 1 proteins have more than 20 residues \(0 has 60\)"
    ):
        model.get_latent_representation(sequence, long="error", window=20)


def test_long_proteins_take_bounded_batches(model):
    long = "MKTAYIAKQRQISFVKSHFS" * 1000
    found = model.get_latent_representation(long)
    assert found.shape == (1, 64)
    assert np.isfinite(found).all()


def test_results_can_be_streamed(model, tmp_path):
    proteins = dict(zip(["a", "b", "c/d", "e"], SEQUENCES, strict=True))
    pooled = model.get_latent_representation(proteins)
    rows = model.get_latent_representation(proteins, pooling="residue")
    for suffix, opened in (("h5", h5py.File), ("zarr", zarr.open_group)):
        path = model.get_latent_representation(proteins, out=tmp_path / f"mean.{suffix}")
        file = opened(str(path), mode="r")
        np.testing.assert_array_equal(file["embeddings"][:], pooled)
        assert list(file.attrs["names"]) == list(proteins)
        out = tmp_path / f"residue.{suffix}"
        file = opened(
            str(model.get_latent_representation(proteins, pooling="residue", out=out)), mode="r"
        )
        for name, expected in zip(["a", "b", "c_d", "e"], rows, strict=True):
            np.testing.assert_array_equal(file[name][:], expected)
    with pytest.raises(ValueError, match="must end in .h5 or .zarr"):
        model.get_latent_representation(proteins, out=tmp_path / "mean.csv")


@torch.no_grad()
def test_golden_values_stay():
    # Parity with the published code is tested where its outputs are at hand.
    for rotary_2d, golden in GOLDEN.items():
        model = XTrimoPGLM(size="tiny", rotary_2d=rotary_2d)
        for i, parameter in enumerate(model.net.parameters()):
            n = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
            parameter.copy_(0.4 * torch.sin(0.37 * n * n + i).view_as(parameter))
        states = model.get_latent_representation("MKTAYIAKQR", pooling="residue")[0]
        scores = model.score_mutations("MKTAYIAKQR", ["K2R"], strategy="causal")["score"]
        np.testing.assert_allclose([*states[3, :3], *scores], golden, atol=1e-3)


GOLDEN = {
    True: [0.36615, 0.47662, -0.34946, 0.51811],
    False: [0.37537, 0.47077, -0.34718, 0.5775],
}


# Scores


def test_wild_type_marginals_are_differences_of_log_probabilities(masked):
    single = masked.score_mutations("MKTAYIAKQR", ["K2R", "T3S"], strategy="wild-type")
    double = masked.score_mutations("MKTAYIAKQR", "K2R:T3S", strategy="wild-type")
    assert double["score"].iloc[0] == pytest.approx(single["score"].sum(), abs=1e-5)
    back = masked.mutation_matrix("MKTAYIAKQR", strategy="wild-type")
    assert back.loc["K2", "R"] == pytest.approx(single["score"].iloc[0], abs=1e-5)
    assert back.loc["K2", "K"] == 0
    assert not back.isna().any(axis=None)


@pytest.mark.parametrize("strategy", ["pseudo-likelihood", "causal"])
def test_likelihoods_of_variants_are_those_of_their_sequences(model, strategy):
    variants = {
        "K2R": "MRTAYIAKQR",
        "K2del": "MTAYIAKQR",
        "K2_A4del": "MYIAKQR",
        "K2_T3insGG": "MKGGTAYIAKQR",
        "K2R:T3S": "MRSAYIAKQR",
    }
    found = model.score_mutations("MKTAYIAKQR", list(variants), strategy=strategy)
    whole = ["MKTAYIAKQR", *variants.values()]
    lengths = np.array([len(one) for one in whole])
    log_p = -np.log(model.perplexity(whole, strategy=strategy).to_numpy()) * lengths
    np.testing.assert_allclose(found["score"], log_p[1:] - log_p[0], atol=1e-3)


def test_frames_of_proteingym_go_in_and_out(masked):
    frame = pd.DataFrame({"mutant": ["K52R", "T53S"], "DMS_score": [1.0, 2.0]}, index=[5, 9])
    found = masked.score_mutations("MKTAYIAKQR", frame, offset=51)
    assert found.columns.tolist() == ["mutant", "DMS_score", "score"]
    assert found.index.tolist() == [5, 9]
    plain = masked.score_mutations("MKTAYIAKQR", ["K2R", "T3S"])
    np.testing.assert_array_equal(found["score"], plain["score"])


@pytest.mark.parametrize(
    ("mutation", "message"),
    [
        ("A2C", "has A at 2, where the wild type has K"),
        ("K99R", "is outside of the sequence, whose residues have the numbers 1 to 10"),
        ("K2", "is no variant. Write substitutions as 'A24C'"),
        ("K2J", "J is none of the 20 amino acids"),
        ("K2R:K2S", "changes a residue twice"),
        ("M1_R10del", "deletes the whole sequence"),
        ("K2_A4insG", "an insertion lies between neighbours"),
    ],
)
def test_variants_that_are_none_are_refused(masked, mutation, message):
    with pytest.raises(ValueError, match=message):
        masked.score_mutations("MKTAYIAKQR", [mutation])


def test_a_network_is_asked_what_it_was_trained_for(masked):
    causal = XTrimoPGLM(size="tiny", objective="causal", rotary_2d=False)
    with pytest.raises(ValueError, match="needs a network that was trained on masked residues"):
        causal.score_mutations("MKT", ["K2R"], strategy="masked")
    with pytest.raises(ValueError, match="needs a network that was trained from left to right"):
        masked.generate("MKT")
    with pytest.raises(ValueError, match="cannot score 'K2del'"):
        masked.score_mutations("MKT", ["K2del"], strategy="masked")


# Generation


@torch.no_grad()
def test_cached_generation_is_that_without_a_cache(model):
    greedy = Sampling(temperature=0.0)
    prompts = [Tokenizer()(one) for one in ("MKT", "ACDEFGH", "M")]
    together = generate(model.net, prompts, greedy, 30, seed=0)
    for prompt, made in zip(prompts, together, strict=True):
        ids = np.concatenate([PROMPT, prompt])
        while len(ids) - len(PROMPT) < 30:
            states = model.net(torch.from_numpy(ids), bounds(len(ids)), n_prefix=[0])
            p = greedy.probabilities(model.net.output_layer(states[-1:]))
            if (token := int(p.argmax())) in (EOP, EOS):
                break
            ids = np.append(ids, token)
        assert ids[len(PROMPT) :].tolist() == made.tolist()


def bounds(length):
    return scxtrimo.nn.ragged.CellBoundaries.of(torch.tensor([0, length], dtype=torch.int32))


def test_samples_depend_on_the_seed_and_not_on_the_others(model):
    several = model.generate(["MKT", "AC"], n=3, max_length=20, seed=1)
    alone = model.generate("MKT", n=3, max_length=20, seed=1)
    assert several["sequence"][:3].tolist() == alone["sequence"].tolist()
    other = model.generate("MKT", n=3, max_length=20, seed=2)
    assert other["sequence"].tolist() != alone["sequence"].tolist()
    assert several["sequence"].str.fullmatch(f"[{STANDARD}]+").all()
    assert (several["sequence"].str.len() <= 20).all()
    with pytest.raises(ValueError, match="max_length=3 is no more than the 3 residues"):
        model.generate("MKT", max_length=3)


@given(st.floats(0.05, 1.0), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_nucleus_is_the_smallest_that_is_likely_enough(top_p, top_k, seed):
    logits = torch.randn(1, 36, generator=torch.Generator().manual_seed(seed))
    p = logits.softmax(-1)[0]
    kept = Sampling(top_p=top_p, constrained=False).probabilities(logits)[0] > 0
    assert float(p[kept].sum()) >= top_p - 1e-5
    assert float(p[kept].sum() - p[kept].min()) < top_p + 1e-5
    few = Sampling(top_k=top_k, constrained=False).probabilities(logits)[0] > 0
    assert int(few.sum()) == top_k


def test_sequences_that_end_at_once_have_no_perplexity(model):
    ended = XTrimoPGLM(size="tiny", seed=0)
    with torch.no_grad():
        ended.net.output_layer.weight.zero_()
        ended.net.encoder.final_layernorm.weight.zero_()
        ended.net.encoder.final_layernorm.bias.fill_(1)
        ended.net.output_layer.weight[EOS] = 1
    table = ended.generate(n=2, temperature=0.0)
    assert table["sequence"].tolist() == ["", ""]
    assert table["perplexity"].isna().all()


# Training


def test_families_are_learned(trained):
    family = trained.adata.obs["family"]
    first = trained.adata.obs["sequence"].iloc[0]
    others = make_proteins(20, seed=5).obs["sequence"]  # of other templates
    assert trained.perplexity([first]).iloc[0] < 5 < trained.perplexity(list(others)).mean()
    trained.adata.obsm["X"] = trained.get_latent_representation()
    found = scxtrimo.tl.neighbor_agreement(trained.adata, "family", "X")
    assert found["knn_accuracy"] == 1
    assert set(family) == {"0", "1"}
    assert trained.history["validation_loss"].iloc[-1, 0] < 2
    for task in ("masked", "spans", "generation"):
        assert trained.history[f"{task}_loss_validation"].iloc[-1, 0] < 2.5


def test_trained_proteins_are_generated(trained):
    templates = trained.adata.obs.groupby("family")["sequence"].first()
    made = trained.generate(n=10, top_p=0.8, max_length=60, seed=0)
    likeness = [
        max(np.mean([a == b for a, b in zip(one, t, strict=False)]) for t in templates)
        for one in made["sequence"]
    ]
    assert np.median(likeness) > 0.2  # 0.05 by chance
    assert made["ended"].mean() > 0.5


def test_a_loaded_model_is_the_same_and_goes_on(trained, tmp_path):
    trained.save(tmp_path / "model")
    again = XTrimoPGLM.load(tmp_path / "model", trained.adata)
    np.testing.assert_array_equal(
        again.get_latent_representation(SEQUENCES), trained.get_latent_representation(SEQUENCES)
    )
    assert repr(again) == repr(trained)
    n_before = len(again.history["train_loss"])
    again.train(max_epochs=1, tokens_per_batch=1500, **QUIET)
    assert len(again.history["train_loss"]) == n_before + 1


def test_equal_seeds_give_equal_models():
    found = []
    for _ in range(2):
        proteins = make_proteins(30)
        XTrimoPGLM.setup_anndata(proteins)
        model = XTrimoPGLM(proteins, size="tiny", seed=3)
        model.train(max_epochs=2, tokens_per_batch=400, **QUIET)
        found.append(model.get_latent_representation())
    np.testing.assert_array_equal(*found)


def test_a_failed_training_leaves_the_model_as_it_was():
    proteins = make_proteins(20)
    XTrimoPGLM.setup_anndata(proteins)
    model = XTrimoPGLM(proteins, size="tiny")
    before = model.get_latent_representation()
    with pytest.raises(FloatingPointError, match="lr=1e"):
        model.train(max_epochs=20, lr=1e30, **QUIET)
    np.testing.assert_array_equal(model.get_latent_representation(), before)
    assert not model.is_trained_


def test_masks_are_as_published():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 21, 20_000)
    example = mask_residues(ids, 0.15, rng)
    is_target = example.targets >= 0
    assert is_target.mean() == pytest.approx(0.15, abs=0.001)
    assert (example.targets[is_target] == ids[is_target[:-1]]).all()
    of_targets = example.ids[is_target]
    assert (of_targets == MASK).mean() == pytest.approx(0.8, abs=0.02)
    is_same = of_targets == ids[is_target[:-1]]
    assert is_same.mean() == pytest.approx(0.1 + 0.1 / 27, abs=0.02)
    assert (example.ids[~is_target] == np.append(ids, EOS)[~is_target]).all()


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_spans_are_apart_and_inside(length, seed):
    spans = draw_spans(length, 0.15, np.random.default_rng(seed))
    assert spans
    ends = 0
    for i, (start, stop) in enumerate(spans):
        assert start >= ends + (i > 0)
        assert start < stop <= length
        ends = stop


@given(residues, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_spans_filled_in_give_the_sequence(text, seed):
    ids = Tokenizer()(text)
    example = cut_spans(ids, 0.3, np.random.default_rng(seed))
    source, rest = example.ids[: example.n_prefix], example.ids[example.n_prefix :]
    starts = np.flatnonzero(rest == SOP)
    filled = {}
    for start, stop in zip(starts, [*starts[1:], len(rest)], strict=True):
        place = example.positions[example.n_prefix + start, 0]
        assert source[place] == SMASK
        filled[place] = rest[start + 1 : stop]
        targets = example.targets[example.n_prefix + start : example.n_prefix + stop]
        assert targets.tolist() == [*filled[place], EOP]
    parts = [filled[i] if token == SMASK else [token] for i, token in enumerate(source[:-1])]
    assert np.concatenate(parts).tolist() == ids.tolist()


def test_what_a_network_is_for_decides_what_it_is_trained_on(masked):
    proteins = make_proteins(10)
    XTrimoPGLM.setup_anndata(proteins)
    model = XTrimoPGLM(proteins, size="tiny", objective="masked")
    with pytest.raises(ValueError, match="does not go with a network whose objective is 'masked'"):
        model.train(objective=ProteinObjective())
    model.train(max_epochs=1, **QUIET)
    assert "masked_loss_train" in model.history
    assert "generation_loss_train" not in model.history
    with pytest.raises(ValueError, match="The model has no data"):
        masked.train()


# Command line


def test_commands_do_what_methods_do(tmp_path, model, capsys):
    model.save(tmp_path / "model")
    scxtrimo.write_fasta({"a": "MKTAYIAKQR"}, tmp_path / "a.fasta")
    shared = ["--model", str(tmp_path / "model"), "--out"]

    out = tmp_path / "a.h5ad"
    assert main(["protein", "embed", str(tmp_path / "a.fasta"), *shared, str(out)]) == 0
    found = anndata.read_h5ad(out).obsm["X_pglm"]
    np.testing.assert_array_equal(found, model.get_latent_representation("MKTAYIAKQR"))

    out = tmp_path / "scores.csv"
    options = ["--strategy", "wild-type", "--offset", "5"]
    assert main(["protein", "score", str(tmp_path / "a.fasta"), *options, *shared, str(out)]) == 0
    expected = model.score_mutations("MKTAYIAKQR", strategy="wild-type", offset=5)
    pd.testing.assert_frame_equal(pd.read_csv(out), expected, check_dtype=False)

    out = tmp_path / "new.fasta"
    assert main(["protein", "generate", "-n", "2", "--max-length", "9", *shared, str(out)]) == 0
    made = model.generate(n=2, max_length=9)["sequence"]
    assert scxtrimo.read_fasta(out).obs["sequence"].tolist() == [x for x in made if x]

    assert main(["protein", "embed", "no.fasta", *shared, str(tmp_path / "b.h5ad")]) == 2
    assert "no.fasta" in capsys.readouterr().err


# Contacts


def test_contacts_that_attention_shows_are_found(model, tmp_path):
    # Planted: what one head attends to is in contact.
    proteins = make_proteins(12, length=50).obs["sequence"]
    maps = {name: model.get_attention(one)[0, 1] for name, one in proteins.items()}
    planted = {}
    for name, one in maps.items():
        attended = one + one.T
        corrected = attended - attended.sum(0) * attended.sum(1)[:, None] / attended.sum()
        planted[name] = (corrected > np.quantile(corrected, 0.95)).astype(float)
    trained = XTrimoPGLM(size="tiny", seed=0)
    trained.fit_contact_head(proteins[:8], planted)
    for name, sequence in proteins[8:].items():
        found = trained.predict_contacts(sequence)
        np.testing.assert_array_equal(found, found.T)
        assert precision_at(found, planted[name]) >= 0.95
    trained.save(tmp_path / "model")
    again = XTrimoPGLM.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_contacts(sequence), found)


def test_attention_is_that_of_the_network(model):
    maps = model.get_attention("MKTAYIAKQR")
    assert maps.shape == (2, 4, 10, 10)
    assert (maps > 0).all()
    assert (maps.sum(-1) < 1).all()  # the rest goes to the end
    assert (maps.sum(-1) > 0.5).all()


def test_contacts_need_structures(model):
    with pytest.raises(ValueError, match="Call `fit_contact_head"):
        XTrimoPGLM(size="tiny").predict_contacts("MKT")
    with pytest.raises(ValueError, match=r"the shape \(3, 3, 3\): give coordinates, \(10, 3\)"):
        model.fit_contact_head(["MKTAYIAKQR"], [np.zeros((3, 3, 3))])
    with pytest.raises(ValueError, match="There are 0 structures of 1 proteins"):
        model.fit_contact_head(["MKTAYIAKQR"], [])
    with pytest.raises(ValueError, match="0 are in contact: both kinds"):
        model.fit_contact_head(["MKTAYIAKQR"], [np.zeros((10, 10))])


# Blanks


@torch.no_grad()
def test_blanks_are_filled_as_in_training(model):
    # Greedy, one residue at a time, must be what the training example predicts at every place.
    ids = Tokenizer()("MKTAYIAKQRQISFVK")
    source = np.concatenate([ids[:3], [SMASK], ids[6:10], [SMASK], ids[12:]])
    greedy = Sampling(temperature=0.0)
    (made,) = infill(model.net, source, 1, greedy, 5, seed=0)
    first = made[3 : len(made) - len(ids[6:])]
    n_first = next(n for n in range(6) if np.array_equal(made[3 + n :][:4], ids[6:10]))
    second = made[3 + n_first + 4 : len(made) - 4]
    spans = [(3, 3 + n_first), (7 + n_first, 7 + n_first + len(second))]
    example = fill_spans(made, spans, InOrder())
    logits = model.net.output_layer(
        model.net(
            torch.from_numpy(example.ids),
            bounds(len(example.ids)),
            torch.from_numpy(example.positions),
            [example.n_prefix],
        )
    )
    predicted = greedy.probabilities(logits).argmax(-1).numpy()
    for place in np.flatnonzero(example.targets >= 0):
        span_is_full = example.targets[place] == EOP and example.positions[place, 1] == 6
        is_end = example.targets[place] == EOP and predicted[place] in (EOP, EOS)
        assert span_is_full or is_end or predicted[place] == example.targets[place]
    assert len(first) >= n_first


class InOrder:
    def permutation(self, n):
        return np.arange(n)


def test_what_is_there_stays_when_blanks_are_filled(model):
    table = model.infill("MKT_YIAK_R_", n=4, max_span=6, seed=1)
    assert table["sequence"].str.fullmatch("MKT.{0,6}YIAK.{0,6}R.{0,6}").all()
    assert table["perplexity"].gt(1).all()
    again = model.infill("MKT_YIAK_R_", n=2, max_span=6, seed=1)
    assert again["sequence"].tolist() == table["sequence"].tolist()[:2]


def test_blanks_need_a_network_that_fills_them(model, masked):
    with pytest.raises(ValueError, match="not to fill in blanks"):
        masked.infill("MK_T")
    with pytest.raises(ValueError, match="has no blank: write '_'"):
        model.infill("MKT")
