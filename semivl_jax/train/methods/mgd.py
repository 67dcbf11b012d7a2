"""MGD: one or two trained models teach a light one (arXiv 2208.10169).

The teachers are frozen. They label x and a CutMix image of two unlabelled ones pixel by pixel. The student
must also have the similarities between regions of the first teacher's deepest map (as published, of the map
before the classifier) and the mean logits of the last teacher. Views have no colour changes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Float32

from semivl_jax.models.resize import bilinear
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.train import distillation
from semivl_jax.train.augment import cutmix
from semivl_jax.train.forward import Networks, Outputs
from semivl_jax.train.methods.base import Method, Metrics, Setup, Target, Targets
from semivl_jax.train.pseudo_labels import consistency_weights, pseudo_labels
from semivl_jax.types import IGNORE_INDEX, Key, PseudoLabels, PyTree, Stream, StreamViews, Views


@struct.dataclass
class TeacherLabels:
    """Of one teacher: labels of x and of w; similarities of regions and mean logits of the mixed images."""

    x: PseudoLabels
    w: PseudoLabels
    regions: Float32[Array, "b r r"]
    mean: Float32[Array, "b n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MGD(Method):
    """Labelled images, and what trained runs say of pixels, regions and images."""

    teacher: str = ""  # one or two trained runs, separated by a comma
    confidence_threshold: float = 0.0  # pixels below it are not used; 0: all are, as published
    region_weight: float = 100.0
    image_weight: float = 0.1
    image_reduction: distillation.Reduction = "mean"  # of the image loss; sum: as published
    teacher_statistics: distillation.Statistics = "running"  # of batch norms; batch: as published

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("confidence_threshold")
        weights = {"region": self.region_weight, "image": self.image_weight}
        for name in (name for name, weight in weights.items() if weight < 0):
            raise ValueError(f"method.{name}_weight = {weights[name]} must be 0 or more")
        if (count := len(self.teachers)) not in (1, 2):
            raise ValueError(
                f"method.teacher = {self.teacher!r} names {count} trained runs; name one or two: "
                "method.teacher = 'runs/a,runs/b'"
            )

    def check_accumulation(self, parts: int) -> None:
        """Means of regions and images are over the whole batch."""
        raise ValueError(
            f"accumulation = {parts} does not go with method.name = 'mgd'; set accumulation = 1"
        )

    @property
    def teachers(self) -> list[str]:
        """Paths of the runs."""
        return [path.strip() for path in self.teacher.split(",") if path.strip()]

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Unlabelled images; the partner in CutMix is the reversed batch."""
        return (Stream("unlabelled"),)

    def networks(self, setup: Setup) -> tuple[tuple[SegmentationModel, ...], PyTree]:
        """The teachers."""
        found = [setup.load(path) for path in self.teachers]
        return tuple(each.model for each in found), [(each.variables, each.text) for each in found]

    def views(self, key: Key, views: Views) -> Views:
        """The stream `mixed` and its CutMix mask of three boxes."""
        count, size = views.x.shape[:2]
        box = cutmix.xor_masks(jax.random.fold_in(key, 1), count, size=size)
        own = views.streams["unlabelled"]
        image, ignore = (cutmix.mix(box, part, part[::-1]) for part in (own.w, own.ignore))
        mixed = StreamViews(w=image, s1=image, s2=image, ignore=ignore)
        return views.replace(streams=views.streams | {"mixed": mixed}, boxes={"mixed": box})

    def predict(self, networks: Networks, teacher: int, image: Array) -> tuple[Array, Array]:
        """Deepest map and logits of a teacher."""
        variables, text = networks.frozen.method_variables[teacher]
        return distillation.predict(
            networks.method_modules[teacher],
            variables,
            text,
            image,
            statistics=self.teacher_statistics,
        )

    def labels(self, networks: Networks, views: Views, noise: PyTree) -> list[TeacherLabels]:
        """Of every teacher."""
        images = (views.x, views.streams["unlabelled"].w, views.streams["mixed"].w)
        found = []
        for teacher in range(len(networks.method_modules)):
            (_, x), (_, w), (maps, logits) = (self.predict(networks, teacher, i) for i in images)
            regions, mean = distillation.region_similarity(maps), jnp.mean(logits, (1, 2))
            found.append(TeacherLabels(pseudo_labels(x), pseudo_labels(w), regions, mean))
        return found

    def targets(
        self, labels: list[TeacherLabels], views: Views, state: PyTree, progress: Float[Array, ""]
    ) -> Targets:
        """Labels of the mixed image are mixed like its pixels; every loss has factor 1."""
        box, ignore = views.boxes["mixed"], views.streams["mixed"].ignore
        options = {"mode": "pixelwise", "threshold": self.confidence_threshold}

        def target(name: str, pseudo: PseudoLabels, ignore: Array) -> Target:
            weight = consistency_weights(pseudo.confidence, ignore, **options)
            return Target(name, pseudo.label, weight)

        x, mixed = [self.labelled_target(views)], []
        for i, teacher in enumerate(labels):
            w = jax.tree.map(lambda here: cutmix.mix(box, here, here[::-1]), teacher.w)
            x.append(target(f"loss_x_teacher{i}", teacher.x, jnp.zeros_like(ignore)))
            mixed.append(target(f"loss_mixed_teacher{i}", w, ignore))
        factors = dict.fromkeys((target.name for target in (*x, *mixed)), 1.0)
        return Targets(views={"x": tuple(x), "mixed": tuple(mixed)}, factors=factors)

    def passes(self, views: Views) -> list[dict[str, Float[Array, "b h w 3"]]]:
        """The mixed image, then x."""
        return [{"mixed": views.streams["mixed"].w}, {"x": views.x}]

    def losses(
        self, params: PyTree, outputs: Outputs, labels: list[TeacherLabels], views: Views
    ) -> tuple[Float[Array, ""], Metrics]:
        """Regions as the first teacher, images as the last one."""
        logits = bilinear(outputs.logits["mixed"], views.x.shape[1:3], align_corners=False)
        image = distillation.image_loss(
            jnp.mean(logits, (1, 2)), labels[-1].mean, reduction=self.image_reduction
        )
        regions = distillation.region_similarity(outputs.features["mixed"].maps[-1])
        region = distillation.region_loss(regions, labels[0].regions)
        total = self.region_weight * region + self.image_weight * image
        return total, {"loss_region": region, "loss_image": image}

    def image_labels(
        self, networks: Networks, image: Float[Array, "b h w 3"], state: PyTree
    ) -> dict[str, Array]:
        """The first teacher's label where it is confident, and its confidence."""
        pseudo = pseudo_labels(self.predict(networks, 0, image)[1])
        sure = pseudo.confidence >= self.confidence_threshold
        label = jnp.where(sure, pseudo.label, IGNORE_INDEX)
        return {"pseudo": label, "confidence": pseudo.confidence}
