"""Settings: types as declared, errors that name the key, and back to YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.settings import SettingsError, from_mapping, load, save, to_mapping, to_yaml


@dataclass
class Optimiser:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["linear", "cosine"] = "linear"
    parts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"lr is {self.lr}, expected at least 0")


@dataclass
class Source:
    path: str
    weight: float = 1.0


@dataclass
class Run:
    output: str
    seed: int = 0
    clip: float | None = None
    deepspeed: str | dict[str, Any] | None = None
    amp: bool = False
    folder: Path = Path("here")
    optimiser: Optimiser = field(default_factory=Optimiser)
    sources: list[Source] = field(default_factory=list)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_numbers_have_their_declared_types(tmp_path: Path) -> None:
    path = write(tmp_path, "output: o\nseed: 1e3\nclip: 1\noptimiser:\n  lr: 1e-4\n  betas: [0.9, 1]\n  parts: {tower: 5e-5}\n")
    run = load(Run, path)
    assert (run.optimiser.lr, run.seed, run.clip) == (1e-4, 1000, 1.0)
    assert [type(v) for v in (run.optimiser.lr, run.seed, run.clip, run.optimiser.betas[1])] == [float, int, float, float]
    assert run.optimiser.betas == (0.9, 1.0) and run.optimiser.parts == {"tower": 5e-5}


def test_overrides_are_typed_by_their_field(tmp_path: Path) -> None:
    path = write(tmp_path, "output: o\nsources:\n- {path: a}\n- {path: b, weight: 3}\n")
    sets = ["optimiser.lr=5e-5", "output=007", "sources.1.weight=.5", "clip=null", "amp=true", "deepspeed={zero: {stage: 2}}", "folder=a/b"]
    run = load(Run, path, sets)
    assert run.optimiser.lr == 5e-5 and run.output == "007" and run.clip is None and run.amp is True
    assert run.sources == [Source("a"), Source("b", 0.5)]
    assert run.deepspeed == {"zero": {"stage": 2}} and run.folder == Path("a/b")
    assert load(Run, None, ["output=zero2: json, #1", "deepspeed=zero2.json"]).output == "zero2: json, #1"


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        ("outputs: o\n", [], r"run.yaml: unknown key 'outputs'; did you mean 'output'"),
        ("output: o\noptimiser: {learning: 1}\n", [], r"optimiser: unknown key 'learning'; known keys: lr, betas"),
        ("output: o\n", ["optimiser.lrr=1"], r"unknown key 'lrr'; did you mean 'lr'"),
        ("seed: 1\n", [], r"'output' is required"),
        ("output: o\nseed: 1.5\n", [], r"seed: got 1.5 \(float\), expected int"),
        ("output: o\nseed: true\n", [], r"seed: got True \(bool\), expected int"),
        ("output: 3\n", [], r"output: got 3 \(int\), expected str"),
        ("output: o\namp: 1\n", [], r"amp: got 1 \(int\), expected bool"),
        ("output: o\nsources: {path: a}\n", [], r"sources: got .* expected list\["),
        ("output: o\noptimiser: {betas: [1]}\n", [], r"expected 2 values"),
        ("output: o\noptimiser: {schedule: step}\n", [], r"expected one of linear, cosine"),
        ("output: o\noptimiser: {lr: -1}\n", [], r"optimiser: lr is -1.0, expected at least 0"),
        ("output: o\n", ["optimiser.lr=fast"], r"--set optimiser.lr=fast.*expected float"),
        ("output: o\n", ["optimiser.lr"], r"expected key=value"),
        ("output: o\nsources: [{path: a}]\n", ["sources.4.path=b"], r"list of 1"),
        ("output: o\n", ["output.deeper=1"], r"has no key 'deeper'"),
        ("output: o\nseed: 1\nseed: 2\n", [], r"line 3: the key 'seed' stands twice"),
        ("- a\n", [], r"holds a list"),
        ("output: [\n", [], r"cannot be read as YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, sets: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(Run, write(tmp_path, text), sets)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "output: o\n")
    with pytest.raises(SettingsError, match=r"runs.yaml: no such file; beside it there is run.yaml"):
        load(Run, tmp_path / "runs.yaml")


texts = st.text(st.characters(codec="utf-8"), max_size=20)
finite = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Run,
        output=texts,
        seed=st.integers(),
        clip=st.none() | finite,
        deepspeed=st.none() | texts | st.dictionaries(texts, texts | st.booleans() | st.integers(), max_size=2),
        amp=st.booleans(),
        folder=st.just(Path("a/b")),
        optimiser=st.builds(Optimiser, lr=finite, betas=st.tuples(finite, finite), parts=st.dictionaries(texts, finite, max_size=2)),
        sources=st.lists(st.builds(Source, path=texts, weight=finite), max_size=2),
    )
)
def test_saved_settings_load_equal(run: Run) -> None:
    import yaml

    assert from_mapping(Run, yaml.safe_load(to_yaml(run))) == run
    assert from_mapping(Run, to_mapping(run)) == run


def test_save_writes_the_file_and_nothing_else(tmp_path: Path) -> None:
    save(Run("o", optimiser=Optimiser(lr=1e-5)), tmp_path / "resolved.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["resolved.yaml"]
    assert load(Run, tmp_path / "resolved.yaml") == Run("o", optimiser=Optimiser(lr=1e-5))
