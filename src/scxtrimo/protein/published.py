"""Checkpoints in the published format: ``config.json`` and one or more files of tensors.

Tensors are mapped into memory and moved into the network one by one, so that reading takes little
more than the weights themselves. Nothing in the files is executed.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .._files import replacing
from ..data.columns import preview
from .network import ROTARY_BASE, Objective, XTrimoPGLMConfig, XTrimoPGLMNet
from .tokenizer import ID, TOKENS

Quantized = Literal["dequantize", "packed"]
MODEL_TYPES = ("ProteinGLM", "ProteinPGLM", "xTrimoPGLM")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
BODY, HEAD, ROTARY, SCALE = "transformer.", "output_layer.", "rotary_emb.inv_freq", "_scale"
QUANTIZED = ("query_key_value", "self_attention.dense", "dense_h_to_4h", "dense_4h_to_h")
TOKENIZER = "ProteinGLMTokenizer"
_SHARD = re.compile(r"-\d+-of-(\d+)$")
SHARD_BYTES = 5 * 10**9
# What the network is: a checkpoint of another kind would be read wrongly.
FIXED = {
    "add_bias_linear": True,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": True,
    "deepnorm": True,
    "glu_activation": "geglu",
    "moe": False,
    "multi_query_attention": False,
    "post_layer_norm": True,
    "rmsnorm": False,
}


class PackedLinear(nn.Module):
    """A linear layer whose weights are four-bit numbers, two in a byte, and unpacked when used."""

    weight: Tensor  # int8, shape (n_out, n_in / 2); even columns in the high bits
    weight_scale: Tensor  # one per row

    def __init__(self, n_in: int, n_out: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_out, n_in // 2, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.zeros(n_out, dtype=torch.float16))
        self.bias = nn.Parameter(torch.zeros(n_out, dtype=dtype), requires_grad=False)

    def forward(self, x_td: Tensor) -> Tensor:
        """Transform every token."""
        return F.linear(x_td, unpack(self.weight, self.weight_scale, x_td.dtype), self.bias)


def unpack(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weights that four-bit numbers stand for, each times the scale of its row."""
    # Shifting left and right again carries the sign of the lower half.
    pairs = torch.stack([packed >> 4, (packed << 4) >> 4], dim=-1).flatten(1)
    return pairs.to(dtype) * scale.to(dtype)[:, None]


def read_config(folder: Path) -> tuple[XTrimoPGLMConfig, dict[str, Any]]:
    """Return the configuration of a published folder, and what its file says."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no published checkpoint: it has no config.json. Give the folder that "
            "holds config.json and the weights."
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kind = stored["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no configuration of a model ({error!r}).") from error
    if kind not in MODEL_TYPES:
        known = f"xTrimoPGLM models have one of {list(MODEL_TYPES)}"
        raise ValueError(f"{path} is of a model of type {kind!r}; {known}.")
    for name, expected in FIXED.items():
        if stored.get(name, expected) != expected:
            raise ValueError(f"{path}: {name}={stored[name]!r} is not supported, {expected!r} is.")
    try:
        is_2d = bool(stored["rotary_embedding_2d"])
        objective: Objective = "unified" if is_2d else "masked"
        if stored["is_causal"]:
            objective = "causal"
        heads, width = stored["num_attention_heads"], stored["hidden_size"]
        if stored.get("kv_channels", width // heads) * heads != width:
            raise ValueError(f"kv_channels={stored['kv_channels']} times heads is not {width}")
        config = XTrimoPGLMConfig(
            n_layers=stored["num_layers"],
            n_hidden=width,
            n_heads=heads,
            n_feed_forward=stored["ffn_hidden_size"],
            rotary_2d=is_2d,
            objective=objective,
            n_tokens=stored["padded_vocab_size"],
            max_length=stored["seq_length"],
            epsilon=stored["layernorm_epsilon"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} does not describe a network: {error}.") from error
    return config, stored


def read_published(
    folder: str | os.PathLike,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    quantized: Quantized = "dequantize",
) -> tuple[XTrimoPGLMNet, dict[str, Any]]:
    """Read a checkpoint.

    Parameters
    ----------
    folder
        What was downloaded.
    dtype
        Type of the weights, by default that of the file.
    device
        Where they go.
    quantized
        Whether four-bit weights are unpacked once, or stay ``"packed"`` and are unpacked layer by
        layer whenever they are used.

    Returns
    -------
    The network, and the stored configuration.
    """
    folder = Path(folder).expanduser()
    config, stored = read_config(folder)
    bits = stored.get("quantization_bit", 0)
    if bits not in (0, 4):
        raise ValueError(f"{folder}: quantization_bit={bits} is not supported, 0 and 4 are.")
    with torch.device("meta"):
        net = XTrimoPGLMNet(config)
    with ExitStack() as stack:
        tensors = _Tensors(folder, stack)
        if dtype is None:
            dtype = tensors.get(f"{BODY}embedding.word_embeddings.weight").dtype
        if bits and quantized == "packed":
            pack(net, dtype)
        tensors.check(expected_shapes(net, is_packed=bool(bits)))
        for name in net.state_dict():
            tensor = tensors.get(full_name(name))
            if bits and quantized == "dequantize" and is_quantized(name):
                scale = tensors.get(full_name(name) + SCALE)
                tensor = unpack(tensor, scale.to(device), dtype).to(device)
            elif tensor.is_floating_point() and not name.endswith(SCALE):
                tensor = tensor.to(device, dtype)
            else:
                tensor = tensor.to(device)
            _put(net, name, tensor)
        net.stored_rotary = {name: tensors.get(name).clone() for name in tensors.rotary}
    return net.eval(), stored


def pack(net: XTrimoPGLMNet, dtype: torch.dtype) -> None:
    """Give a network layers with four-bit weights."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear) and is_quantized(f"{name}.weight"):
            parent, _, own = name.rpartition(".")
            with torch.device("meta"):
                packed = PackedLinear(layer.in_features, layer.out_features, dtype)
            setattr(net.get_submodule(parent), own, packed)


def is_quantized(name: str) -> bool:
    """Return whether a tensor has four bits per number in a quantized checkpoint."""
    return name.removesuffix(".weight").endswith(QUANTIZED) and name.endswith(".weight")


def full_name(name: str) -> str:
    """Return the name of a tensor of the network in a file."""
    return BODY + name


def expected_shapes(net: XTrimoPGLMNet, is_packed: bool) -> dict[str, list[int]]:
    """Return the shapes of the tensors that a file must have."""
    shapes = {}
    for name, tensor in net.state_dict().items():
        shape = list(tensor.shape)
        if is_packed and is_quantized(name):
            n_out, n_in = net.get_submodule(name.removesuffix(".weight")).weight.shape
            is_unpacked = tensor.dtype != torch.int8
            shape = [n_out, n_in // 2 if is_unpacked else n_in]
            shapes[full_name(name) + SCALE] = [n_out]
        shapes[full_name(name)] = shape
    return shapes


def _put(net: XTrimoPGLMNet, name: str, tensor: Tensor) -> None:
    """Replace a tensor on the meta device."""
    place, _, own = name.rpartition(".")
    module = net.get_submodule(place)
    if own in module._buffers:
        module._buffers[own] = tensor
    else:
        module._parameters[own] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


class _Tensors:
    """The tensors of one or more files, read when asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.readers, self.shapes = folder, {}, {}
        for path in _weight_files(folder):
            for name, reader, shape in _open(path, stack):
                self.readers[name], self.shapes[name] = reader, shape

    @property
    def rotary(self) -> list[str]:
        """Names of what rotates, which is computed and not read."""
        return [name for name in self.shapes if name.endswith(ROTARY)]

    def get(self, name: str) -> Tensor:
        """Return a tensor."""
        if name not in self.readers:
            raise ValueError(f"{self.folder} lacks the tensor {name!r}.")
        return self.readers[name](name)

    def check(self, expected: dict[str, list[int]]) -> None:
        """Raise an error that names all tensors that are missing, too many or of other shapes."""
        found = {n: s for n, s in self.shapes.items() if not n.endswith(ROTARY)}
        problems = {
            "missing": sorted(expected.keys() - found.keys()),
            "unexpected": sorted(found.keys() - expected.keys()),
            "of another shape": [
                f"{name} {found[name]} instead of {expected[name]}"
                for name in sorted(expected.keys() & found.keys())
                if found[name] != expected[name]
            ],
        }
        if any(problems.values()):
            said = "; ".join(
                f"{kind}: {preview(names)}" for kind, names in problems.items() if names
            )
            raise ValueError(
                f"The tensors in {self.folder} are not those its config.json describes. {said}."
            )


def _weight_files(folder: Path) -> list[Path]:
    """Return the files with tensors, all there and within the folder."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index} is damaged ({error!r}). Download it again.") from error
            if wrong := [shard for shard in shards if Path(str(shard)).name != shard]:
                raise ValueError(f"{index} names files outside of its folder: {preview(wrong)}.")
            if missing := [shard for shard in shards if not (folder / shard).is_file()]:
                raise FileNotFoundError(
                    f"{folder} lacks {len(missing)} of {len(shards)} files with weights: "
                    f"{preview(missing)}. Download them again."
                )
            return [folder / shard for shard in shards]
        if (folder / name).is_file():
            return [folder / name]
        found = sorted(folder.glob(f"{Path(name).stem}-*{Path(name).suffix}"))
        if shards := [path for path in found if _SHARD.search(path.stem)]:
            return _whole(shards)
    raise FileNotFoundError(f"{folder} has no weights: none of {list(WEIGHT_FILES)} is there.")


def _whole(shards: list[Path]) -> list[Path]:
    """Return shards without an index, if their names say that they are all there."""
    n_shards = {int(match[1]) for path in shards if (match := _SHARD.search(path.stem))}
    if n_shards != {len(shards)}:
        raise FileNotFoundError(
            f"{shards[0].parent} has {len(shards)} of {max(n_shards)} files with weights. "
            "Download the others."
        )
    return shards


def _open(path: Path, stack: ExitStack) -> Iterator[tuple[str, Any, list[int]]]:
    """Yield names, what reads a tensor by its name, and shapes."""
    again = "It is truncated or damaged: download it again."
    if path.suffix == ".safetensors":
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor, file.get_slice(name).get_shape()
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}). {again}") from error
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        shapes = {str(name): list(tensor.shape) for name, tensor in content.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is truncated, or holds something else than tensors, which could run code and "
            f"is not loaded ({type(error).__name__}). Download it again."
        ) from error
    for name, shape in shapes.items():
        yield name, content.__getitem__, shape


def write_published(
    net: XTrimoPGLMNet, folder: str | os.PathLike, stored: dict[str, Any] | None = None
) -> None:
    """Write a network in the published format.

    Parameters
    ----------
    net
        The network.
    folder
        New folder, or one without a config.json.
    stored
        Fields of a published configuration, for what the network does not say.
    """
    folder = Path(folder).expanduser()
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} has a config.json. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        full_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in net.state_dict().items()
    }
    config, dtype = net.config, net.embedding.word_embeddings.weight.dtype
    width = config.head_width // config.n_axes
    inv_freq = 1.0 / ROTARY_BASE ** (torch.arange(0, width, 2).float() / width)
    for i in range(config.n_layers):
        name = f"{BODY}encoder.layers.{i}.self_attention.{ROTARY}"
        tensors[name] = net.stored_rotary.get(name, inv_freq.clone())
    _write_shards(folder, dict(sorted(tensors.items())))
    is_packed = any(isinstance(module, PackedLinear) for module in net.modules())
    for name, content in _small_files(config, dtype, is_packed, stored or {}).items():
        with replacing(folder / name) as partial:
            partial.write_text(content, encoding="utf-8")


def _write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        weight_map = {t: name for name, shard in zip(names, shards, strict=True) for t in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for name, shard in zip(names, shards, strict=True):
        with replacing(folder / name) as partial:
            save_file(shard, partial, metadata={"format": "pt"})


def _small_files(
    config: XTrimoPGLMConfig, dtype: torch.dtype, is_packed: bool, stored: dict[str, Any]
) -> dict[str, str]:
    """Return configuration and tokenizer as texts."""
    ours = {
        "hidden_size": config.n_hidden,
        "num_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "kv_channels": config.head_width,
        "ffn_hidden_size": config.n_inner,
        "is_causal": config.objective == "causal",
        "rotary_embedding_2d": config.rotary_2d,
        "padded_vocab_size": config.n_tokens,
        "vocab_size": config.n_tokens,
        "seq_length": config.max_length,
        "layernorm_epsilon": config.epsilon,
        "quantization_bit": 4 if is_packed else 0,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    usual = {"model_type": MODEL_TYPES[0], "architectures": ["ProteinGLMModel"]} | FIXED
    special = [token for token in TOKENS if len(token) > 1]
    named = {f"{name}_token": f"<{name}>" for name in ("eos", "mask", "pad", "unk")}
    added = {
        str(ID[token]): {
            "content": token,
            **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False),
            "special": True,
        }
        for token in special
    }
    return {
        "config.json": json.dumps(usual | stored | ours, indent=2, sort_keys=True) + "\n",
        "tokenizer.model": "\n".join(TOKENS),
        "special_tokens_map.json": json.dumps(
            {"additional_special_tokens": special, **named}, indent=2
        ),
        "tokenizer_config.json": json.dumps(
            {
                "added_tokens_decoder": added,
                "additional_special_tokens": special,
                "auto_map": {
                    "AutoTokenizer": ["tokenization_proteinglm.ProteinGLMTokenizer", None]
                },
                "clean_up_tokenization_spaces": True,
                "model_max_length": 2048,
                "tokenizer_class": TOKENIZER,
                **named,
            },
            indent=2,
            sort_keys=True,
        ),
    }
