"""Configurations: what YAML says is what is run, and what is wrong is named."""

import pytest

from scxtrimo.pretraining.config import DataConfig, EngineConfig, PretrainConfig, RecordConfig

COMPLETE = PretrainConfig(
    DataConfig("cells.zarr", tokens_per_batch=100_000, batches_per_step=8),
    out="run",
    size="3m",
    model={"dropout": 0.1},
    optimizer={"lr": 3e-4, "betas": [0.9, 0.95]},
    masking={"max_targets": 64},
    tokens=1e10,
    engine=EngineConfig(devices=[0, 1], strategy="ddp", recompute=True, on_non_finite="skip"),
    record=RecordConfig(log_every_n_steps=10, loggers=("csv", "tensorboard")),
    seed=3,
)


def test_yaml_round_trip(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(COMPLETE.to_yaml())
    assert PretrainConfig.from_yaml(path) == COMPLETE


def test_short_yaml_and_its_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: {store: cells.zarr}\nout: run\nepochs: 1\noptimizer: {lr: 1e-4, warmup_steps: 1000}"
    )
    config = PretrainConfig.from_yaml(path)
    assert (config.data.batch_size, config.record.keep, config.epochs) == (256, 3, 1.0)
    assert config.engine.devices == "auto"
    assert config.optimizer == {"lr": "1e-4", "warmup_steps": 1000}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {store: a, bach_size: 3}", "unknown field 'bach_size'. Did you mean 'batch_size'"),
        ("data: {store: a}\nsteps: 3\nnothing: 1", "unknown field 'nothing'. Choose from"),
        ("data: {batch_size: 3}", "missing 1 required positional argument: 'store'"),
        ("data: {store: a, batch_size: many}", "data: batch_size='many' must be a whole number"),
        ("data: {store: a, batch_size: 0}", "batch_size=0 must be positive"),
        ("data: {store: a, on_damage: ignore}", "on_damage='ignore' must be one of"),
        ("data: {store: a}\nsteps: 1\nepochs: 1", "Give one of steps, epochs and tokens"),
        ("data: {store: a}", "Give one of steps, epochs and tokens; got none"),
        ("data: {store: a}\nsteps: -1", "steps=-1 must be positive"),
        ("data: {store: a}\nsteps: 1\nsize: 5m", "size='5m' is unknown"),
        ("data: {store: a}\nsteps: 1\nsize: 3m\nmodel: {width: 1}", "unknown field 'width'"),
        (
            "data: {store: a}\nsteps: 1\nmodel: {n_hidden: many}",
            "n_hidden='many' must be a whole number",
        ),
        (
            "data: {store: a}\nsteps: 1\noptimizer: {betas: [0.9]}",
            "must be of type tuple of float, float",
        ),
        ("data: {store: a}\nsteps: 1\nengine: {precision: 16-mixed}", "precision='16-mixed'"),
        ("data: {store: a}\nsteps: 1\nengine: {strategy: ddp_spawn}", "must be one of"),
        ("data: {store: a}\nepochs: .nan", "must be finite"),
        ("data: {store: a}\nsteps: 1\noptimizer: {lr: -1}", "lr=-1 must be positive"),
        ("data: {store: a}\nsteps: 1\nrecord: {keep: 0}", "keep=0 must be positive"),
        ("data: {store: a}\nsteps: 1\nrecord: {loggers: csv}", "must be a list"),
        ("data: {store: a}\nsteps: 1\nrecord: {loggers: [mail]}", "are unknown"),
        (
            "data: {store: a}\nsteps: 1\nrecord: {log_every_n_steps: 3}",
            "checkpoint_every_n_steps=500 must be a multiple",
        ),
        ("data: {store: a}\nsteps: true", "steps=True must be a whole number"),
        ("- 1", "must be a mapping with the fields of PretrainConfig"),
        ("data: {", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text if text.startswith("-") else f"{text}\nout: run")
    if text == "data: {":
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        PretrainConfig.from_yaml(path)
    assert "run.yaml" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        PretrainConfig.from_yaml(tmp_path / "nothing.yaml")
