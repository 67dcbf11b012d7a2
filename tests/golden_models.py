"""Our modules with the sizes that a golden file's `meta` states in the reference's vocabulary."""

import jax.numpy as jnp
import numpy as np

from semivl_jax.models.resnet import ResNetV1c
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.models.vlg_decoder import VLGDecoder
from semivl_jax.types import ClassText
from tests.golden_files import Golden
from tests.weights import converted

BOTTLENECKS = {50: 3, 101: 3}  # of the first stage, by depth


def class_text(embeddings: np.ndarray, concepts_of: dict | None = None) -> ClassText:
    """One row a class, or the rows that `concepts_of` (class → rows) says."""
    class_of = np.arange(len(embeddings))
    classes = len(embeddings)
    if concepts_of is not None:
        classes = len(concepts_of)
        for index, rows in concepts_of.items():
            class_of[rows] = int(index)
    return ClassText(jnp.asarray(embeddings), jnp.asarray(class_of, jnp.int32), classes)


def vision_tower(kwargs: dict, *, table_of: int | list[int], out_dim: int) -> VisionTransformer:
    """The image tower; its position table is for images of `table_of` pixels (side, or rows and columns)."""
    rows, cols = (int(side) // kwargs["patch_size"] for side in np.broadcast_to(table_of, 2))
    depth, indices = kwargs["num_layers"], kwargs["out_indices"]
    return VisionTransformer(
        **CLIP,
        patch_size=kwargs["patch_size"],
        width=kwargs["embed_dims"],
        depth=depth,
        num_heads=kwargs["num_heads"],
        mlp_dim=kwargs["mlp_ratio"] * kwargs["embed_dims"],
        out_dim=out_dim,
        grid=(rows, cols),
        out_indices=(depth,) if indices is None else tuple(sorted(indices)),
        eps=kwargs["norm_cfg"]["eps"],
    )


def vlg_decoder(kwargs: dict) -> VLGDecoder:
    """The language-guided decoder."""
    return VLGDecoder(
        channels=kwargs["channels"],
        text_channels=kwargs["text_channels"],
        up_channels=tuple(kwargs["up_channels"]),
        skip_channels=tuple(kwargs["skip_channels"]),
        num_layers=kwargs["num_layers"],
        num_heads=kwargs["num_heads"],
        mlp_dim=4 * kwargs["channels"],
        pool_size=tuple(kwargs["pool_size"]) if kwargs["pool_size"] else None,
        kernel_size=kwargs["conv1_ksize"],
        use_conv_features=kwargs["skip_from_conv_feat"],
    )


def decoder_params(golden: Golden) -> dict:
    """The language-guided decoder's parameters, from a file that holds nothing else."""
    state = {f"decode_head.{name}": array for name, array in golden.weights().items()}
    sizes = {"vlg_decoder": {"num_heads": golden.meta["kwargs"]["num_heads"]}}
    return converted.some(state, "semivl", sizes)["params"]["decoder"]


def segmenter(golden: Golden, *, crop: int, renormalize: bool) -> SegmentationModel:
    """The whole model of a file with `backbone`, `decode_head` and maybe `conv_encoder` in its meta."""
    conv = golden.meta.get("conv_encoder")
    conv_encoder = conv and ResNetV1c(
        stem_channels=conv["stem_channels"],
        base_channels=conv["base_channels"],
        num_blocks=BOTTLENECKS[conv["depth"]],
    )
    out_dim = golden["w/backbone.proj.weight"].shape[0]
    return SegmentationModel(
        backbone=vision_tower(
            golden.meta["backbone"],
            table_of=golden.meta.get("backbone_img_size") or crop,
            out_dim=out_dim,
        ),
        decoder=vlg_decoder(golden.meta["decode_head"]),
        conv_encoder=conv_encoder or None,
        crop=crop,
        renormalize=renormalize,
    )


def variables(golden: Golden) -> dict:
    """{"params", "batch_stats"} of the whole model of a file, converted as a user converts it."""
    kwargs = golden.meta["backbone"]
    weights = converted.segmenter(
        golden.weights(),
        image_heads=kwargs["num_heads"],
        decoder_heads=golden.meta["decode_head"]["num_heads"],
        grid=table_grid(golden.meta.get("backbone_img_size"), kwargs["patch_size"]),
    )
    return weights.tree


def table_grid(image_size: list[int] | None, patch_size: int) -> tuple[int, int] | None:
    """Rows and columns of the position table for images of this size; None: it is square."""
    return image_size and tuple(side // patch_size for side in image_size)


def imported(golden: Golden, state: dict[str, np.ndarray]) -> dict:
    """{"params", "batch_stats"} from some tensors of that model (gradients, say)."""
    sizes = {
        "backbone": {"num_heads": golden.meta["backbone"]["num_heads"]},
        "vlg_decoder": {"num_heads": golden.meta["decode_head"]["num_heads"]},
        "conv_encoder": {},
    }
    return converted.some(state, "semivl", sizes)


def guidance_params(golden: Golden) -> dict:
    """Parameters of the frozen CLIP tower of a file, converted as part of a CLIP."""
    state, kwargs = golden.weights("clip_encoder."), golden.meta["clip_encoder"]
    size = golden.meta.get("clip_encoder_img_size", kwargs["img_size"])
    grid = table_grid(size, kwargs["patch_size"])
    return converted.image_tower(state, num_heads=kwargs["num_heads"], grid=grid).image_params
