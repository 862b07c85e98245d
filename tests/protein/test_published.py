"""Checkpoints in the published format: what they give, what is refused, and writing them again."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_proteins
from safetensors.torch import load_file, save_file

import scxtrimo
from scxtrimo.model import XTrimoPGLM, XTrimoPGLMConfig
from scxtrimo.protein import SIZES, Tokenizer
from scxtrimo.protein.generation import Sampling, generate
from scxtrimo.protein.network import XTrimoPGLMNet
from scxtrimo.protein.published import read_published, unpack
from scxtrimo.protein.scores import log_probabilities
from scxtrimo.protein.sequences import boundaries_of
from scxtrimo.protein.tokenizer import PROMPT

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "pglm_tiny"
BOTH_WAYS = ["mlm", "unified2d", "unified2d_int4"]
CAUSAL = ["clm", "unified2d", "unified2d_int4"]
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.exists(), reason="outputs of the published code are not at hand"
)


def published(name: str) -> XTrimoPGLM:
    return XTrimoPGLM.from_published(FIXTURES / name, dtype="float32", device="cpu")


def expected(name: str, kind: str) -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / name / f"expected_{kind}.npz"))


def largest_difference(found: torch.Tensor, padded: np.ndarray, lengths: list[int]) -> float:
    parts = found.detach().split(lengths)
    return max(
        float(np.abs(part.numpy() - row[:n]).max())
        for part, row, n in zip(parts, padded, lengths, strict=True)
    )


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "kind"), [(name, "mlm") for name in BOTH_WAYS] + [(name, "clm") for name in CAUSAL]
)
@torch.no_grad()
def test_hidden_states_and_logits_are_those_of_the_published_code(name, kind):
    net, wanted = published(name).net, expected(name, kind)
    lengths = wanted["attention_mask"].sum(1).tolist()
    rows = [row[:n] for row, n in zip(wanted["input_ids"], lengths, strict=True)]
    ids = torch.from_numpy(np.concatenate(rows))
    n_prefix = None if kind == "mlm" else [0] * len(lengths)
    for layer, states in enumerate(wanted["hidden_states"]):
        found = net(ids, boundaries_of(lengths), n_prefix=n_prefix, layer=layer)
        assert largest_difference(found, states, lengths) < 1e-4
    logits = net.output_layer(net(ids, boundaries_of(lengths), n_prefix=n_prefix))
    assert largest_difference(logits, wanted["logits"], lengths) < 1e-4


@needs_fixtures
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_embeddings_and_scores_are_those_of_the_published_code(name):
    model, wanted = published(name), expected(name, "mlm")
    proteins = dict(zip(wanted["names"], wanted["sequences"], strict=True))
    np.testing.assert_allclose(
        model.get_latent_representation(proteins), wanted["mean_embedding"], atol=2e-5
    )
    wild_type, mutations = proteins[str(wanted["mutation_wt"])], wanted["mutations"].tolist()
    for strategy, key in (("masked", "masked_marginal"), ("wild-type", "wt_marginal")):
        found = model.score_mutations(wild_type, mutations, strategy=strategy)["score"]
        np.testing.assert_allclose(found, wanted[key], atol=1e-3)
    few = [list(proteins.values())[i] for i in wanted["pseudo_perplexity_index"]]
    found = model.perplexity(few, strategy="pseudo-likelihood")
    np.testing.assert_allclose(found, wanted["pseudo_perplexity"], rtol=1e-5)


@needs_fixtures
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_generation_is_that_of_the_published_code(name, monkeypatch):
    model, wanted = published(name), expected(name, "clm")
    proteins = dict(zip(wanted["names"], wanted["sequences"], strict=True))
    losses = np.log(model.perplexity(proteins, strategy="causal"))
    np.testing.assert_allclose(losses, wanted["nll_1_to_L"], atol=1e-5)
    prompts = [Tokenizer().encode(prompt) for prompt in wanted["prompts"]]
    rows = [np.concatenate([PROMPT, prompt]) for prompt in prompts]
    log_p = log_probabilities(model.net, rows, 1000, is_causal=True)
    found = torch.stack([of_row[-1] for of_row in log_p])
    np.testing.assert_allclose(found.exp(), wanted["first_token_probs"], atol=1e-6)
    nucleus = Sampling(top_p=0.8, temperature=0.9, constrained=False)
    np.testing.assert_allclose(
        nucleus.probabilities(found), wanted["first_token_probs_T0_9_p0_8"], atol=1e-5
    )
    # The expected tokens go on after an end, which generation does not.
    greedy = Sampling(temperature=0.0, constrained=False)
    made = generate(model.net, prompts, greedy, 48, seed=0)
    for ids, row in zip(made, wanted["greedy_ids"], strict=True):
        assert ids.tolist() == row[len(PROMPT) : len(PROMPT) + len(ids)].tolist()


@needs_fixtures
@pytest.mark.parametrize("quantized", ["dequantize", "packed"])
@pytest.mark.parametrize("name", ["mlm", "clm", "unified2d", "unified2d_int4"])
def test_what_is_written_again_is_byte_equal(name, quantized, tmp_path):
    model = XTrimoPGLM.from_published(FIXTURES / name, device="cpu", quantized=quantized)
    model.to_published(tmp_path / "again")
    before, after = (
        load_file(folder / "model.safetensors") for folder in (FIXTURES / name, tmp_path / "again")
    )
    is_unpacked = name == "unified2d_int4" and quantized == "dequantize"
    if not is_unpacked:
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert tensor.dtype == after[key].dtype
            assert tensor.numpy().tobytes() == after[key].numpy().tobytes()
    for file in ("tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"):
        content = [
            (folder / file).read_text().strip() for folder in (FIXTURES / name, tmp_path / "again")
        ]
        assert content[0] == content[1]
    again = XTrimoPGLM.from_published(tmp_path / "again", device="cpu")
    sequence = ["MKTAYIAKQR"]
    np.testing.assert_array_equal(
        model.get_latent_representation(sequence), again.get_latent_representation(sequence)
    )


@pytest.fixture
def folder(tmp_path):
    """A small checkpoint of our own in the published format."""
    config = XTrimoPGLMConfig(2, 32, 2, rotary_2d=False, objective="masked")
    XTrimoPGLM(config=config, seed=0).to_published(tmp_path / "small")
    return tmp_path / "small"


@pytest.mark.parametrize("kind", ["ProteinGLM", "ProteinPGLM", "xTrimoPGLM"])
def test_all_names_of_the_model_are_read(folder, kind):
    edit_config(folder, model_type=kind)
    assert XTrimoPGLM.from_published(folder).config.objective == "masked"


def edit_config(folder: Path, **fields) -> None:
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | fields))


def test_shards_and_pickles_give_the_same(folder, tmp_path):
    wanted = XTrimoPGLM.from_published(folder).get_latent_representation(["MKTAYIAKQR"])
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a-00001-of-00002": names[::2], "a-00002-of-00002": names[1::2]}
    for suffix, write in (("safetensors", save_file), ("bin", torch.save)):
        other = tmp_path / suffix
        other.mkdir()
        shutil.copy(folder / "config.json", other)
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        for part, of_part in parts.items():
            write({name: tensors[name] for name in of_part}, other / f"{part}.{suffix}")
        weight_map = {name: f"{part}.{suffix}" for part, some in parts.items() for name in some}
        index = other / f"{stem}.{suffix}.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        found = XTrimoPGLM.from_published(other).get_latent_representation(["MKTAYIAKQR"])
        np.testing.assert_array_equal(found, wanted)
        (other / f"a-00002-of-00002.{suffix}").unlink()
        with pytest.raises(FileNotFoundError, match="lacks 1 of 2 files .*a-00002-of-00002"):
            XTrimoPGLM.from_published(other)


def test_shards_without_an_index_must_all_be_there(folder):
    wanted = XTrimoPGLM.from_published(folder).get_latent_representation(["MKTAYIAKQR"])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for i in range(2):
        some = {name: tensors[name] for name in names[i::2]}
        save_file(some, folder / f"model-0000{i + 1}-of-00002.safetensors")
    found = XTrimoPGLM.from_published(folder).get_latent_representation(["MKTAYIAKQR"])
    np.testing.assert_array_equal(found, wanted)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has 1 of 2 files with weights"):
        XTrimoPGLM.from_published(folder)


def test_training_leaves_the_files_as_they_are(folder):
    proteins = make_proteins(10)
    XTrimoPGLM.setup_anndata(proteins)
    before = (folder / "model.safetensors").read_bytes()
    model = XTrimoPGLM.from_published(folder, proteins, device="cpu")
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    assert (folder / "model.safetensors").read_bytes() == before
    fresh = XTrimoPGLM.from_published(folder)
    assert fresh.perplexity(["MKTAYIAKQR"])[0] != model.perplexity(["MKTAYIAKQR"])[0]


def test_an_index_cannot_lead_out_of_the_folder(folder):
    index = {"weight_map": {"x": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names files outside of its folder"):
        XTrimoPGLM.from_published(folder)


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


def test_code_in_a_checkpoint_does_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Harmful()}))
    with pytest.raises(ValueError, match="could run code and is not loaded"):
        XTrimoPGLM.from_published(folder)
    assert not Path("was_run").exists()


def test_tensors_that_do_not_fit_are_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    lost = "transformer.encoder.layers.0.mlp.dense_4h_to_h.bias"
    wrong = "transformer.output_layer.weight"
    del tensors[lost]
    tensors |= {wrong: tensors[wrong][:5].clone(), "extra": torch.zeros(1)}
    save_file(tensors, path)
    with pytest.raises(ValueError, match="are not those its config") as error:
        XTrimoPGLM.from_published(folder)
    for part in (f"missing: '{lost}'", "unexpected: 'extra'", f"{wrong} [5, 32] instead of"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is no configuration"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (lambda f: truncate(f / "model.safetensors"), "truncated or damaged"),
        (lambda f: edit_config(f, model_type="bert"), "a model of type 'bert'"),
        (lambda f: edit_config(f, rmsnorm=True), "rmsnorm=True is not supported, False is"),
        (lambda f: edit_config(f, quantization_bit=8), "quantization_bit=8 is not supported"),
        (lambda f: edit_config(f, kv_channels=7), "kv_channels=7"),
    ],
)
def test_folders_that_are_no_checkpoints_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        XTrimoPGLM.from_published(folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_four_bits_are_unpacked_exactly():
    rng = np.random.default_rng(0)
    q = rng.integers(-7, 8, (5, 8))
    packed = ((q[:, 0::2] << 4) | (q[:, 1::2] & 15)).astype(np.int8)
    scale = torch.from_numpy(rng.random(5).astype(np.float16))
    found = unpack(torch.from_numpy(packed), scale, torch.float32)
    assert torch.equal(found, torch.from_numpy(q).float() * scale.float()[:, None])


@pytest.mark.parametrize(
    ("size", "n"),
    [
        ("1b", 1_208_881_136),
        ("3b", 2_834_283_904),
        ("7b", 7_250_108_368),
        ("10b", 10_686_012_564),
        ("100b", 100_424_175_616),
    ],
)
def test_published_sizes_have_their_parameters(size, n):
    with torch.device("meta"):
        net = XTrimoPGLMNet(SIZES[size])
    head = net.output_layer.weight.numel()  # counted once with the embedding, as published
    assert sum(p.numel() for p in net.parameters()) - head == n


def test_a_half_precision_checkpoint_stays_one(folder):
    net, _ = read_published(folder, torch.bfloat16)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    model = XTrimoPGLM.from_published(folder, dtype="bfloat16")
    whole = XTrimoPGLM.from_published(folder).get_latent_representation(["MKTAYIAKQR"])
    half = model.get_latent_representation(["MKTAYIAKQR"])
    assert half.dtype == np.float32
    assert np.abs(half - whole).max() < 0.1


def test_the_package_offers_the_model():
    assert scxtrimo.model.XTrimoPGLM is XTrimoPGLM
