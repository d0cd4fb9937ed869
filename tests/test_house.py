"""The rules of the house that a machine can check: floors, free imports, public names, declared dependencies, sizes, no machine's paths."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pose_tools.doctor import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"pose_tools": 0, "data": 1, "vlm": 2, "scripts": 3, "demos": 3, "tests": 4}
SOURCES = [path for top in FLOORS for path in sorted((ROOT / top).rglob("*.py")) if "__pycache__" not in path.parts]
LONGEST_FILE, LONGEST_TEST_FILE, LONGEST_FUNCTION = 400, 600, 80

# Import name → distribution, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "google": "protobuf", "ai_edge_litert": "ai-edge-litert",
    "huggingface_hub": "transformers", "tokenizers": "transformers", "faiss": "faiss-cpu", "gradio_client": "gradio", "_pytest": "pytest",
}  # fmt: skip


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """The modules a file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno


def ours(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_a_floor_imports_only_from_the_floors_below_it() -> None:
    wrong = [
        f"{ours(path)}:{line} imports {module}"
        for path in SOURCES
        for module, line in imports(path)
        if FLOORS.get(module.split(".")[0], -1) > FLOORS[path.relative_to(ROOT).parts[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_library_does_not_import_the_commands() -> None:
    library = [path for path in SOURCES if path.is_relative_to(ROOT / "vlm") and "commands" not in path.parts and path.name != "cli.py"]
    wrong = [f"{ours(path)}:{line}" for path in library for module, line in imports(path) if module.startswith("vlm.commands")]
    assert not wrong, "\n".join(wrong)


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {re.split(r"[<>=;\s\[]", line)[0] for line in lines}
    wrong = []
    for path in SOURCES:
        for module, line in imports(path):
            top = module.split(".")[0]
            if top in FLOORS or top in sys.stdlib_module_names or top == "__future__":
                continue
            if DISTRIBUTIONS.get(top, top) not in declared:
                wrong.append(f"{ours(path)}:{line} imports {module}, which pyproject.toml does not declare")
    assert not wrong, "\n".join(wrong)


def test_torchvision_and_timm_are_never_imported() -> None:
    wrong = [
        f"{ours(path)}:{line}" for path in SOURCES for module, line in imports(path) if module.split(".")[0] in ("torchvision", "timm")
    ]
    assert not wrong, "a CPU environment cannot have them: " + ", ".join(wrong)


def test_importing_vlm_loads_nothing_heavy() -> None:
    heavy = (
        "deepspeed",
        "bitsandbytes",
        "flash_attn",
        "gradio",
        "matplotlib",
        "OpenGL",
        "numba",
        "peft",
        "smplx",
        "ai_edge_litert",
        "torchvision",
    )
    code = f"import sys, vlm, pose_tools.tool, pose_tools.detect\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The public names that others call; renaming one breaks them.
ENTRY_POINTS = """
pose_tools.body_models: load_mano load_smpl Mano Smpl read_body_pickle UnsafePickleError
pose_tools.joints: convert
pose_tools.metrics: mpjpe pa_mpjpe procrustes f_score auc box_iou trajectory_errors clustered_interval paired_difference
pose_tools.geometry: rotation_6d_to_matrix matrix_to_rotation_6d axis_angle_to_matrix matrix_to_axis_angle project
pose_tools.views: View letterbox center_crop squash crop
pose_tools.grounding: format_box parse_boxes
pose_tools.tool: TOOLS schemas call
pose_tools.detect: detect_hands HandDetection
pose_tools.track: track_hands HandTrack
pose_tools.types: Box Point Trajectory HandPose BodyPose Camera Media HandSample BodySample
data.sample: Sample Source
vlm: HandVLM HandVLMConfig HandVLMProcessor
vlm.templates: render encode
vlm.answers: parse write
vlm.agent: Agent
vlm.vision: merge_patches slow_fast
vlm.trajectory: CVAEHead MLPHead
vlm.checkpoints.vlm4hoi: convert
vlm.checkpoints.handsonvlm: convert expected_keys
vlm.evaluation.compat: hoi_qa
data.epic_kitchens: observed_frames trajectory_label
data.lita: format_time format_event format_dense_captions format_reasoning parse_time parse_event parse_dense_captions parse_reasoning
pose_tools.simhand.encoder: load_encoder load_contrastive load_25d load_detnet
pose_tools.simhand.losses: nt_xent weighted_nt_xent pose_weights undo_view
pose_tools.simhand.views: make_view
pose_tools.simhand.mining: mine
pose_tools.simhand.optim: LARS warmup_cosine
pose_tools.simhand.evaluate: root_scale_aligned lift_25d
pose_tools.egohmr: load_stage1 load_stage2
pose_tools.egohmr.diffusion: Schedule
pose_tools.egohmr.scene: crop_stage1 crop_stage2
pose_tools.egohmr.evaluate: metrics
pose_tools.mano: load_regressor
pose_tools.mano.losses: SimpleMANOLoss MANOLoss
pose_tools.mano.ik: fit
pose_tools.mano.evaluate: freihand ho3d
"""


@pytest.mark.parametrize("line", ENTRY_POINTS.split("\n")[1:-1])
def test_entry_points_import(line: str) -> None:
    module, names = line.split(": ")
    found = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(found, name)] == []


SCRIPTS = "answer evaluate finetune export make_synthetic bench doctor train_detector convert plan_memory"


@pytest.mark.parametrize("script", SCRIPTS.split())
def test_scripts_are_there(script: str) -> None:
    source = (ROOT / "scripts" / f"{script}.py").read_text(encoding="utf-8")
    assert '__name__ == "__main__"' in source


def test_files_and_functions_stay_small() -> None:
    wrong = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        longest = LONGEST_TEST_FILE if path.is_relative_to(ROOT / "tests") else LONGEST_FILE
        if text.count("\n") > longest:
            wrong.append(f"{ours(path)}: {text.count(chr(10))} lines, more than {longest}: two ideas?")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION:
                wrong.append(f"{ours(path)}:{node.lineno} {node.name}: {length} lines, more than {LONGEST_FUNCTION}")
    assert not wrong, "\n".join(wrong)


# Errors of the synthetic world, which nobody at the keyboard can mend.
OUR_ERRORS = {"data/synthetic/world.py: SceneError", "data/synthetic/ego_body_writer.py: RoomError"}


def test_an_error_with_a_name_is_a_user_error() -> None:
    bare = {"Exception", "ValueError", "RuntimeError", "TypeError", "KeyError"}
    found = {
        f"{ours(path)}: {node.name}"
        for path in SOURCES
        if not path.is_relative_to(ROOT / "tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.bases and {ast.unparse(base) for base in node.bases} <= bare
    }
    assert found == OUR_ERRORS | {"pose_tools/user_error.py: UserError"}, "commands print a UserError in one line, others with a traceback"


def test_no_path_of_a_machine_is_written_down() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    machine = re.compile(r"(?<![\w.])/(work|home|root|Users|opt|mnt|data\d*)/\w")
    wrong = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".toml", ".yaml", ".json", ".sh", ".txt", "")
            and path.is_file()
            and not name.startswith("tests/fixtures/")
        ):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            wrong += [f"{name}:{number}: {line.strip()[:80]}" for number, line in enumerate(lines, 1) if machine.search(line)]
    assert not wrong, "\n".join(wrong)


def test_the_doctor_knows_the_extras_and_the_constraints_pin_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: tuple(re.split(r"[<>=;\s]", line)[0] for line in lines) for name, lines in project["optional-dependencies"].items()}
    assert extras == {name: names for name, (names, _) in EXTRAS.items()}
    pins = (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    pinned = {line.split("==")[0] for line in pins.split() if "==" in line}
    tested = [re.split(r"[<>=;\s]", line)[0] for line in project["dependencies"]]
    tested += [name for extra in ("train", "quant", "demo", "hands", "render", "dev") for name in extras[extra]]
    assert [name for name in tested if name.replace("_", "-") not in pinned] == []
