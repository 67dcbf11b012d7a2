"""The interface of a method, with the defaults of one that needs nothing beside labelled images.

A method is a frozen dataclass whose fields are `config.method`. A training step calls it in this order
(b: images of the batch; gradients flow through `perturb` and `losses` only):

    views     its own changes of the views, such as other CutMix boxes
    noise     per-image randomness of its perturbations
    labels    forward passes of teachers, image by image          may run on parts of the batch
    update    its own state, from the labels of the whole batch
    targets   labels and weights of every view                    the whole batch
    passes    the images of every view, pass by pass              the whole batch
    perturb   features of a pass                                  may run on parts of the batch
    losses    anything that is no weighted cross entropy          may run on parts of the batch

Losses of parts add up to the loss of the batch, so divisors that depend on the whole batch must be part of
the weights that `targets` returns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int32

from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.train import losses, mask_losses
from semivl_jax.train.forward import DropoutPasses, Networks, Outputs
from semivl_jax.types import ClassText, Features, Key, PyTree, Stream, Views

Metrics = dict[str, Array]
Criterion = Callable[[Array, Array, Array], Array]


@struct.dataclass
class Target:
    """What the prediction of a view is compared with.

    name: of the metric.
    label: int32, 255 where there is none.
    weight: of every pixel [b, h, w], or what `criterion` takes.
    criterion: (logits, label, weight) -> scalar; None: Σ weight · cross entropy.
    """

    name: str = struct.field(pytree_node=False)
    label: Int32[Array, "b h w"]
    weight: Float[Array, "b *_"]
    criterion: Criterion | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class Targets:
    """The targets of every view, the factor of each in the total by name, and metrics of the labels.

    The student is asked for the views that are keys here; () asks for one without a target.
    """

    views: dict[str, tuple[Target, ...]]
    factors: dict[str, Any]
    metrics: Metrics = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """The model of a trained run: a network, its variables, and the text of its classes if it reads one."""

    model: SegmentationModel
    variables: PyTree
    text: ClassText | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What a method may know before training.

    load: the model of a trained run by its path, with the classes of this training; ValueError for others.
      None in `Method.init`.
    """

    model: SegmentationModel
    num_classes: int
    load: Callable[[str], Trained] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Labelled images with one criterion."""

    # Of labelled images; focal_dice also of pseudo-labels
    criterion: Literal["cross_entropy", "ohem", "focal_dice"] = "cross_entropy"
    ohem_threshold: float = 0.7
    ohem_min_kept: int = 100_000  # pixels of the whole batch
    # Passes of the student with prompt dropout and stochastic depth
    dropout_passes: DropoutPasses = "none"

    guided: ClassVar[bool] = False
    """Whether the frozen CLIP labels images (`Networks.guidance`)."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            hint, value = hints[field.name], getattr(self, field.name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                listed = ", ".join(str(choice) for choice in get_args(hint))
                raise ValueError(
                    f"method.{field.name} = {value!r} is unknown; choose one of {listed}"
                )
        self.check_shares("ohem_threshold")
        if self.ohem_min_kept < 0:
            raise ValueError(f"method.ohem_min_kept = {self.ohem_min_kept} must be 0 or more")

    def check_shares(self, *names: str) -> None:
        """ValueError for a field that does not lie between 0 and 1."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"method.{name} = {getattr(self, name)} must lie between 0 and 1")

    def check_accumulation(self, parts: int) -> None:
        """ValueError where the loss of a batch is not the sum over so many parts of it."""
        if self.criterion == "ohem":
            raise ValueError(
                f"accumulation = {parts} does not go with method.criterion = 'ohem', which chooses pixels of "
                "the whole batch by their predictions; set accumulation = 1 or another criterion"
            )
        if self.dropout_passes != "none":
            raise ValueError(
                f"accumulation = {parts} does not go with method.dropout_passes = {self.dropout_passes!r}, "
                "because parts would drop other units than the whole batch; set accumulation = 1 or "
                "method.dropout_passes = 'none'"
            )

    # Before training

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Images that the host must send beside the labelled crops."""
        return ()

    @property
    def reads_unlabelled(self) -> bool:
        """Whether a stream has the run's own unlabelled images."""
        return any(stream.source == "unlabelled" for stream in self.streams)

    @property
    def decay(self) -> float | None:
        """Maximum decay of the EMA of the student's weights; None: no EMA."""
        return None

    def networks(self, setup: Setup) -> tuple[Any, PyTree]:
        """Own networks: hashable modules and their frozen variables."""
        return (), {}

    def init(self, key: Key, setup: Setup) -> tuple[PyTree, PyTree]:
        """Own trained parameters and own state; both are checkpointed."""
        return {}, {}

    # The training step

    def views(self, key: Key, views: Views) -> Views:
        """The views of the whole batch, changed."""
        return views

    def noise(self, key: Key, count: int) -> PyTree:
        """Randomness of `perturb`: arrays whose first axis is the image."""
        return ()

    def labels(self, networks: Networks, views: Views, noise: PyTree) -> PyTree:
        """Labels of teachers: arrays whose first axis is the image."""
        return {}

    def update(self, state: PyTree, labels: PyTree, views: Views) -> PyTree:
        """The method's state, before it is used in `targets`."""
        return state

    def targets(
        self, labels: PyTree, views: Views, state: PyTree, progress: Float[Array, ""]
    ) -> Targets:
        """Labels and weights of the views; `progress` runs from 0 to 1 over the training."""
        return Targets(views={"x": (self.labelled_target(views),)}, factors={"loss_x": 1.0})

    def passes(self, views: Views) -> list[dict[str, Float[Array, "b h w 3"]]]:
        """Images by view, for every forward pass of the student in its order."""
        return [{"x": views.x}]

    def perturb(self, noise: PyTree, features: dict[str, Features]) -> dict[str, Features]:
        """Features by view of one pass, perturbed, or with perturbed copies under new names."""
        return features

    def forward_options(self, noise: PyTree) -> dict[str, Any]:
        """The options of `train.forward.forward` that the method decides."""
        perturb = functools.partial(self.perturb, noise)
        return {"perturb": perturb, "dropout_passes": self.dropout_passes}

    def losses(
        self, params: PyTree, outputs: Outputs, labels: PyTree, views: Views
    ) -> tuple[Float[Array, ""], Metrics]:
        """Further losses that need predictions, features or own parameters: their sum, and metrics."""
        return jnp.zeros(()), {}

    # Evaluation and figures

    def image_labels(
        self, networks: Networks, image: Float[Array, "b h w 3"], state: PyTree
    ) -> dict[str, Array]:
        """Labels that training would use for unlabelled images, by name; 255 where it would use none.

        `confidence` (float32) may accompany `pseudo` (int32).
        """
        return {}

    def labelled_target(self, views: Views) -> Target:
        """The target of the labelled images: stored labels and `criterion`."""
        label = views.y
        if self.criterion == "focal_dice":
            return mask_target("loss_x", label)
        if self.criterion == "ohem":
            ohem = functools.partial(
                _ohem, threshold=self.ohem_threshold, min_kept=self.ohem_min_kept
            )
            return Target("loss_x", label, jnp.ones(label.shape), ohem)
        return Target("loss_x", label, losses.supervised_weights(label))


def mask_target(name: str, label: Int32[Array, "b h w"], scale: Any = 1.0) -> Target:
    """A target of ZegCLIP's criterion."""
    weight = mask_losses.mask_weights(label, scale=scale)
    return Target(name, label, weight, _focal_dice)


def target_losses(
    logits: dict[str, Array], targets: dict[str, tuple[Target, ...]]
) -> dict[str, Float[Array, ""]]:
    """The loss of every target by name; the logits of a view are resized once."""
    values = {}
    for view, of_view in targets.items():
        plain = [target for target in of_view if target.criterion is None]
        if plain:
            sums = losses.weighted_cross_entropies(
                logits[view], [t.label for t in plain], [t.weight for t in plain]
            )
            values |= {target.name: value for target, value in zip(plain, sums, strict=True)}
        for target in of_view:
            if target.criterion is not None:
                values[target.name] = target.criterion(logits[view], target.label, target.weight)
    return values


def _ohem(logits: Array, label: Array, weight: Array, **options: Any) -> Array:
    del weight  # OHEM chooses the pixels by their predictions
    return losses.ohem(logits, label, **options)


def _focal_dice(logits: Array, label: Array, weight: Array) -> Array:
    return mask_losses.mask_loss(logits, label, weight).total
