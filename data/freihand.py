"""FreiHAND v2 on disk → HandSample: 224-px pictures of right hands with joints, vertices and MANO parameters.

    training/rgb/%08d.jpg  training/mask/%08d.jpg  training_{K,scale,xyz,verts,mano}.json      evaluation/… likewise

FreiHAND_pub_v2.zip holds all of it but evaluation_{xyz,verts,mano}.json; these are in FreiHAND_pub_v2_eval.zip, unpacked into the same
folder or into one beside it of the same name with _eval behind. Without them the evaluation set has no labels, and a box that is that of
the training hands, in the middle.

The pictures of the training set come in blocks, one per colour version of the same N annotations: image i carries annotation
i mod N (masks exist for the first block only and hold for all). The stored pose is relative to MANO's mean pose; its
translation is what moves the model's joint 9 (FreiHAND order) onto the stored one.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.hand_samples import NO_PICTURE, HandDataError, HandSet, box_of, check_parameters, numbers, read_json
from pose_tools.geometry import project
from pose_tools.image_io import read_image
from pose_tools.types import HandPose, HandSample

logger = logging.getLogger(__name__)
ROOT_JOINT = 9
SIZE = 224
"""Pixels of a picture's side."""
CHECKED = 16
"""How many annotations are posed to see whether the hand model is the one that the parameters were fitted with."""


class FreiHANDError(HandDataError):
    """A FreiHAND folder that cannot be used; the message names the file and the remedy."""


class FreiHAND(HandSet):
    """The samples of one set, by image number. An evaluation set whose `evaluation_xyz.json` is not there has no `joints_3d`.

    Args:
        folder: holds training/, evaluation/ and the json lists.
        part: "training" or "evaluation".
        mano: the hand model of the right hand (`load_mano(path)`); None leaves `pose` out of the samples. The parameters of the
            published set are MANO's, those of a synthetic folder the stand-in's.
        versions: which colour versions (blocks of N images) to use; None takes all that are there.
        vertices: read training_verts.json too (1 GB in the published set).
        tolerance: metres; how far the joints of the posed model may be from the stored ones, in the median (published set: 0.6 mm).

    Raises FreiHANDError when a list is missing, lists or pictures do not fit each other, or the model does not fit the parameters.
    """

    kind = "freihand"

    def __init__(
        self,
        folder: str | Path,
        part: Literal["training", "evaluation"] = "training",
        *,
        mano: Any = None,
        versions: tuple[int, ...] | None = None,
        vertices: bool = False,
        tolerance: float = HandSet.tolerance,
    ) -> None:
        self.folder, self.part, self.mano, self.tolerance = Path(folder), part, mano, tolerance
        self._intrinsics = self._array("K", (3, 3))
        self.annotations = len(self._intrinsics)
        self._scale = self._array("scale", ())
        self._blind_box = None if part == "training" or self._path("xyz").is_file() else self._usual_box()
        known = self._blind_box is None
        self._xyz = self._array("xyz", (21, 3)) if known else None
        self._verts = self._array("verts", (778, 3)) if vertices and known else None
        self._mano = self._array("mano", (1, 61))[:, 0] if mano is not None and known else None
        self.versions = self._versions(versions)
        if self._mano is not None:
            self._check_model()

    def __len__(self) -> int:
        return self.annotations * len(self.versions)

    def cluster(self, index: int) -> str:
        """The annotation, which all colour versions share."""
        return f"{self.part}-{self.place(index) % self.annotations}"

    def picture(self, index: int) -> Path:
        return self._picture(self._image(index))

    def label(self, index: int) -> HandSample:
        """Sample `index` of the chosen versions, block after block."""
        image = self._image(index)
        annotation = image % self.annotations
        joints = self._xyz[annotation] if self._xyz is not None else None
        intrinsics = self._intrinsics[annotation]
        vertices = self._verts[annotation] if self._verts is not None else None
        joints_2d = project(joints, intrinsics) if joints is not None else None
        # of the joints, whether the mesh was read or not: crops must not depend on that
        box = box_of(joints_2d) if joints_2d is not None else self._blind_box
        assert box is not None
        return HandSample(
            image=NO_PICTURE,
            side="right",
            bbox_xyxy=box,
            intrinsics=intrinsics,
            joints_2d=joints_2d,
            joints_3d=joints,
            joints_valid=np.full(21, joints is not None),
            vertices=vertices,
            pose=self.pose(annotation) if self._mano is not None else None,
            annotation=annotation,
            source={
                "dataset": "freihand", "part": self.part, "image": image, "version": image // self.annotations,
                "scale": float(self._scale[annotation]),
            },  # fmt: skip
        )

    def __getitem__(self, index: int) -> HandSample:
        sample = super().__getitem__(index)
        return replace(sample, mask=self._mask(sample.annotation))

    def pose(self, annotation: int) -> HandPose:
        """MANO parameters of an annotation, absolute pose, camera frame; FreiHANDError without a hand model."""
        import torch

        if self.mano is None or self._mano is None or self._xyz is None:
            raise FreiHANDError("the pose needs a hand model: FreiHAND(folder, mano=load_mano(path))")
        stored = self._mano[annotation]
        orient, relative, betas = stored[:3], stored[3:48], stored[48:58]
        mean = self.mano.hands_mean.detach().double().numpy()
        with torch.no_grad():
            still = self.mano(
                *(torch.tensor(v[None], dtype=self.mano.hands_mean.dtype) for v in (orient, relative + mean, betas, np.zeros(3)))
            )
        joints = still.joints[0].double().numpy()
        transl = self._xyz[annotation, ROOT_JOINT] - joints[ROOT_JOINT]
        return HandPose("right", orient, relative + mean, betas, transl, joints + transl)

    def root_from_camera(self, annotation: int) -> np.ndarray:
        """Joint 9 (3,) metres as the parameter list has it: pixel (u, v) and f / z, through the intrinsics."""
        if self._mano is None:
            raise FreiHANDError("the parameter list was not read: FreiHAND(folder, mano=load_mano(path))")
        (u, v, scale), k = self._mano[annotation, 58:61], self._intrinsics[annotation]
        return np.array([(u - k[0, 2]) / scale, (v - k[1, 2]) / scale, (k[0, 0] + k[1, 1]) / 2 / scale])

    def _usual_box(self) -> np.ndarray:
        """The middle of the training hands' boxes, which FreiHAND_pub_v2.zip tells, too; the whole picture where it is not there."""
        logger.warning("%s is not there: the evaluation set has no labels (they are in FreiHAND_pub_v2_eval.zip)", self._path("xyz"))
        lists = [self.folder / f"training_{name}.json" for name in ("xyz", "K")]
        if not all(path.is_file() for path in lists):
            return np.array([0.0, 0.0, SIZE, SIZE])
        found = [read_json(path, "") for path in lists]
        count = min(map(len, found))
        joints, intrinsics = (
            numbers(rows[:count], (count, *shape), str(path)) for rows, shape, path in zip(found, ((21, 3), (3, 3)), lists, strict=True)
        )
        points = project(joints, intrinsics)
        return np.median(np.concatenate([points.min(1), points.max(1)], axis=1), axis=0)

    def _path(self, name: str) -> Path:
        """A json list, in the folder or in the one beside it."""
        path = self.folder / f"{self.part}_{name}.json"
        beside = Path(f"{self.folder}_eval") / path.name
        return beside if not path.is_file() and beside.is_file() else path

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A json list as an array (N, *shape), checked against the others."""
        path = self._path(name)
        archive = "FreiHAND_pub_v2.zip" if self.part == "training" or name in ("K", "scale") else "FreiHAND_pub_v2_eval.zip"
        try:
            content = read_json(path, f"unpack {archive} there, or write a synthetic folder with make_synthetic.py freihand")
            array = np.asarray(content, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise FreiHANDError(str(error) if isinstance(error, HandDataError) else f"{path}: not a list of numbers ({error})") from None
        expected = (getattr(self, "annotations", len(array)), *shape)
        if array.shape != expected or not np.isfinite(array).all():
            raise FreiHANDError(
                f"{path}: finite numbers of shape {expected} expected, got {array.shape}; the lists must come from one release"
            )
        return array

    def _image(self, index: int) -> int:
        """The number of a sample's picture."""
        version, annotation = divmod(self.place(index), self.annotations)
        return self.versions[version] * self.annotations + annotation

    def _picture(self, image: int) -> Path:
        return self.folder / self.part / "rgb" / f"{image:08d}.jpg"

    def _versions(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """The colour versions whose first and last pictures are there."""
        n = self.annotations
        there = [v for v in range(4) if self._picture(v * n).is_file() and self._picture(v * n + n - 1).is_file()]
        if not there or (wanted is not None and not set(wanted) <= set(there)):
            raise FreiHANDError(
                f"{self.folder / self.part / 'rgb'}: whole blocks of {n} pictures are there for the versions {there}, asked for {wanted}; "
                "pictures and lists must come from one release"
            )
        return tuple(wanted if wanted is not None else there)

    def _mask(self, annotation: int) -> np.ndarray | None:
        path = self.folder / self.part / "mask" / f"{annotation:08d}.jpg"
        return read_image(path)[:, :, 0] > 127 if path.is_file() else None

    def _check_model(self) -> None:
        try:
            check_parameters(self, CHECKED)
        except HandDataError as error:
            raise FreiHANDError(f"{self.folder}: {error}") from None
