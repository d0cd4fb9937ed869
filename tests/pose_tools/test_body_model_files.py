"""Body model files: published pickles read as what was written, code in them never runs, wrong files and inputs are refused."""

from __future__ import annotations

import pickle
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from pose_tools.body_models import (
    Mano,
    UnsafePickleError,
    load_mano,
    load_smpl,
    mirror_arrays,
    read_body_pickle,
    standin_body_arrays,
    standin_hand_arrays,
)
from tests.pose_tools.test_body_models import random_pose, synthetic_mano


class _Chumpy:
    def __setstate__(self, state):
        self.__dict__.update(state)


@pytest.fixture
def chumpy(monkeypatch):
    """Modules named like chumpy's, so that pickles can be written as the published files are."""
    made = {}
    for module, name in (("chumpy.ch", "Ch"), ("chumpy.reordering", "Select")):
        made[name] = type(name, (_Chumpy,), {"__module__": module})
        fake = types.ModuleType(module)
        setattr(fake, name, made[name])
        monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    return made


def as_published(arrays: dict, made: dict) -> dict:
    """`arrays` with shapedirs the way MANO's file has it: a selection from a larger chumpy array."""
    base, chosen = made["Ch"](), made["Select"]()
    flat = np.concatenate([np.zeros(5), arrays["shapedirs"].ravel()])
    base.__dict__.update(x=flat, _dirty_vars=set(), _itr=None)
    chosen.__dict__.update(a=base, idxs=np.arange(5, len(flat)), preferred_shape=arrays["shapedirs"].shape, _cache={})
    return {**arrays, "shapedirs": chosen, "J_regressor": sparse.csc_matrix(arrays["J_regressor"])}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_published_file_reads_as_the_arrays_it_was_written_from(tmp_path, chumpy, protocol):
    arrays = standin_hand_arrays()
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps(as_published(arrays, chumpy), protocol=protocol))
    for module in ("chumpy", "chumpy.ch", "chumpy.reordering"):
        sys.modules.pop(module)
    got = read_body_pickle(path)
    for name in ("v_template", "shapedirs", "posedirs", "weights", "f", "hands_mean"):
        np.testing.assert_array_equal(got[name], arrays[name])
    np.testing.assert_array_equal(got["J_regressor"].toarray(), arrays["J_regressor"].toarray())
    inputs = random_pose(2, 15)
    for given_path in (path, tmp_path):
        torch.testing.assert_close(load_mano(given_path)(*inputs).vertices, load_mano()(*inputs).vertices, rtol=0, atol=0)


def test_npz_and_smpl_files_load(tmp_path):
    arrays = standin_body_arrays()
    dense = {**arrays, "J_regressor": arrays["J_regressor"].toarray()}
    np.savez(tmp_path / "SMPL_FEMALE.npz", **dense)
    inputs = random_pose(1, 23)
    torch.testing.assert_close(load_smpl(tmp_path, "female")(*inputs).vertices, load_smpl()(*inputs).vertices, rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match="SMPL_MALE.pkl"):
        load_smpl(tmp_path, "male")


class _Bomb:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [eval, exec, getattr, __import__, print, np.load, np.frombuffer, open])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, capsys, call, protocol):
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps({"v_template": _Bomb(call, str(tmp_path / "made"), "w")}, protocol=protocol))
    with pytest.raises(UnsafePickleError, match="MANO_RIGHT.pkl.*nothing was run"):
        load_mano(path)
    assert not (tmp_path / "made").exists() and capsys.readouterr().out == ""


def test_allowed_names_cannot_be_bent(tmp_path):
    path = tmp_path / "x.pkl"
    for attack in (
        b"cchumpy.os\nsystem\n(S'true'\ntR.",  # a chumpy name makes an empty record, never a module's function
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nset\nc__builtin__\nobject\nNtR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nset\n(I0\ntS'b'\ntR.",
        b"cnumpy\nndarray.tofile\n.",
        b"cchumpy\nch.os.system\n.",
        b"Pid\n.",
        b"",
        b"\x80\x02",
        b"(lp0\n.",
    ):
        path.write_bytes(attack)
        with pytest.raises(ValueError, match="x.pkl"):
            load_mano(path)


@pytest.fixture(scope="module")
def small_pickle() -> bytes:
    content = {"a": np.arange(6.0).reshape(2, 3), "m": sparse.csc_matrix(np.eye(3)), "s": "lbs", "n": np.float64(2.5)}
    return pickle.dumps(content, protocol=2)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_is_one_clear_error_or_still_numbers(tmp_path_factory, small_pickle, data):
    content = bytearray(small_pickle)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(bytes(content))
    try:
        assert isinstance(read_body_pickle(path), dict)
    except ValueError as error:
        assert "damaged.pkl" in str(error)


def test_wrong_files_are_refused_with_the_reason(tmp_path):
    right = standin_hand_arrays()
    left = mirror_arrays(right)
    for name, content in (
        ("hand", left),
        ("MANO_LEFT", synthetic_mano()),
        ("body", standin_body_arrays()),
        ("other", {"a": 1}),
        ("RIGHT", right),
    ):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="hand.pkl: this is a left hand, asked for the right one"):
        load_mano(tmp_path / "hand.pkl")
    with pytest.raises(ValueError, match="this is a right hand, asked for the left one.*mirror_arrays"):
        load_mano(tmp_path / "RIGHT.pkl", "left")
    with pytest.raises(ValueError, match="this is a left hand"):
        load_mano(tmp_path / "MANO_LEFT.pkl", "right")
    with pytest.raises(ValueError, match="this is a SMPL body.*load_smpl"):
        load_mano(tmp_path / "body.pkl")
    with pytest.raises(ValueError, match="this is a MANO hand.*load_mano"):
        load_smpl(tmp_path / "RIGHT.pkl")
    for name in ("SMPL_FEMALE", "basicModel_f_lbs_10_207_0_v1.0.0"):
        shutil.copy(tmp_path / "body.pkl", tmp_path / f"{name}.pkl")
        with pytest.raises(ValueError, match="this is the female body, asked for the male one"):
            load_smpl(tmp_path / f"{name}.pkl", "male")
        assert load_smpl(tmp_path / f"{name}.pkl", "female").faces.shape[1] == 3
    with pytest.raises(ValueError, match="not a MANO hand: .*v_template.* missing"):
        load_mano(tmp_path / "other.pkl")
    with pytest.raises(FileNotFoundError, match="none.pkl: no such file"):
        load_mano(tmp_path / "none.pkl")
    with pytest.raises(ValueError, match="side='both'"):
        load_mano(side="both")
    torch.testing.assert_close(
        load_mano(tmp_path / "hand.pkl", "left")(*random_pose(1, 15)).vertices, load_mano(side="left")(*random_pose(1, 15)).vertices
    )


@pytest.mark.parametrize(
    ("gender", "name"),
    [
        ("neutral", "SMPL_NEUTRAL"), ("neutral", "basicModel_neutral_lbs_10_207_0_v1.0.0"),
        ("neutral", "basicmodel_neutral_lbs_10_207_0_v1.1.0"), ("male", "basicmodel_m_lbs_10_207_0_v1.0.0"),
        ("male", "basicmodel_m_lbs_10_207_0_v1.1.0"), ("female", "basicModel_f_lbs_10_207_0_v1.0.0"),
    ],
)  # fmt: skip
def test_bodies_are_found_by_the_names_they_are_downloaded_under(gender, name, tmp_path):
    """smpl.is.tue.mpg.de's two versions, and SMPLify's neutral body."""
    (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(standin_body_arrays(), protocol=2))
    assert load_smpl(tmp_path, gender).faces.shape[1] == 3
    with pytest.raises(FileNotFoundError, match="no SMPL_"):
        load_smpl(tmp_path, "male" if gender == "female" else "female")


def test_wrong_arrays_are_refused_with_the_reason():
    good = standin_hand_arrays()
    for change, message in (
        ({"posedirs": good["posedirs"][:, :, :100]}, r"posedirs has shape \(778, 3, 100\)"),
        ({"shapedirs": good["shapedirs"][:, :, :5]}, "shapedirs has shape"),
        ({"kintree_table": np.roll(good["kintree_table"], 1, 1)}, "kintree_table has parents"),
        ({"f": good["f"] + 700}, "faces name vertices"),
        ({"weights": np.full((778, 16), np.nan)}, "weights holds values that are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            Mano.from_arrays({**good, **change}, "right")


def test_the_left_files_unmirrored_shape_directions_are_repaired():
    left = mirror_arrays(standin_hand_arrays())
    faulty = {**left, "shapedirs": left["shapedirs"] * np.array([-1.0, 1.0, 1.0])[:, None]}
    inputs = random_pose(2, 15)
    torch.testing.assert_close(
        Mano.from_arrays(faulty, "left")(*inputs).vertices, Mano.from_arrays(left, "left")(*inputs).vertices, rtol=0, atol=0
    )
    # A right hand with such directions is taken as it is.
    assert not torch.allclose(Mano.from_arrays(faulty, "right")(*inputs).vertices, Mano.from_arrays(left, "right")(*inputs).vertices)


def test_wrong_inputs_are_refused_with_the_reason():
    mano, smpl = load_mano(), load_smpl()
    orient, pose, betas, transl = random_pose(2, 15)
    for arguments, options, message in (
        ((orient, pose[:, :42]), {}, r"hand_pose has shape \(2, 42\): expected axis-angle \(B, 45\)"),
        (
            (orient, pose.view(2, 15, 3, 1).expand(2, 15, 3, 3)[:, :, :, :2]),
            {"pose_format": "rotation_matrix"},
            "expected rotation matrices",
        ),
        ((orient, torch.zeros(2, 46)), {"pose_format": "pca"}, "n from 1 to 45"),
        ((orient, pose), {"pose_format": "quaternion"}, "pose_format='quaternion'"),
        ((orient, pose), {"tips": "mine"}, "tips='mine'"),
        ((orient, pose, betas[:, :9]), {}, r"betas has shape \(2, 9\): expected \(B, 10\)"),
        ((orient, pose, betas, transl[:, :2]), {}, "transl has shape"),
        ((orient, pose.repeat(2, 1)[:3]), {}, "batch sizes differ: global_orient 2, pose 3"),
        ((orient[0], pose), {}, "global_orient has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            mano(*arguments, **options)
    with pytest.raises(ValueError, match="body_pose has shape"):
        smpl(orient, pose)
