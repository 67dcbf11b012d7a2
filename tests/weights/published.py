"""Weights in published layouts, from explicit tables that are independent of our importers."""

import numpy as np

SEMIVL_TO_OPENAI = {
    "ln0.": "ln_pre.",
    "ln1.": "ln_post.",
    "patch_embed.projection.": "conv1.",
}
SEMIVL_TO_OPENAI_BLOCK = {
    "ln1.": "ln_1.",
    "ln2.": "ln_2.",
    "attn.attn.": "attn.",
    "ffn.layers.0.0.": "mlp.c_fc.",
    "ffn.layers.1.": "mlp.c_proj.",
}
OPENAI_TO_HF_BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}


def openai_image(semivl: dict) -> dict:
    """OpenAI's `visual.` from a tower named as SemiVL names its backbone."""
    state = {
        "class_embedding": semivl["cls_token"][0, 0],
        "positional_embedding": semivl["pos_embed"][0],
        "proj": semivl["proj.weight"].reshape(semivl["proj.weight"].shape[:2]).T.copy(),
    }
    for name, array in semivl.items():
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            state[f"transformer.resblocks.{index}.{renamed(rest, SEMIVL_TO_OPENAI_BLOCK)}"] = array
        elif name not in ("cls_token", "pos_embed", "proj.weight"):
            state[renamed(name, SEMIVL_TO_OPENAI)] = array
    return {f"visual.{name}": array for name, array in state.items()}


def huggingface(openai: dict) -> dict:
    """A CLIP state dict of Hugging Face's layout from OpenAI's."""
    state = {"logit_scale": openai["logit_scale"]}
    for name, array in openai.items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        name = name.removeprefix("visual.")
        if name.startswith("transformer.resblocks."):
            _, _, index, rest = name.split(".", 3)
            head = f"{tower}.encoder.layers.{index}."
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for part, third in zip("qkv", np.split(array, 3), strict=True):
                    state[f"{head}self_attn.{part}_proj.{kind}"] = third.copy()
            else:
                state[head + renamed(rest, OPENAI_TO_HF_BLOCK)] = array
    outside = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight": "vision_model.post_layernorm.weight",
        "visual.ln_post.bias": "vision_model.post_layernorm.bias",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
    }
    state |= {new: openai[old] for old, new in outside.items()}
    state["visual_projection.weight"] = openai["visual.proj"].T.copy()
    state["text_projection.weight"] = openai["text_projection"].T.copy()
    length, patches = (
        len(openai["positional_embedding"]),
        len(openai["visual.positional_embedding"]),
    )
    # Buffers of older files.
    state["text_model.embeddings.position_ids"] = np.arange(length)[None]
    state["vision_model.embeddings.position_ids"] = np.arange(patches)[None]
    return state


def renamed(name: str, table: dict) -> str:
    return next(
        (new + name.removeprefix(old) for old, new in table.items() if name.startswith(old))
    )


def random_like(shapes: dict, seed: int = 0, dtype=np.float32) -> dict:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(0.2 * rng.standard_normal(shape, np.float32), dtype)
        for name, shape in shapes.items()
    }


def block_shapes(width: int, depth: int, prefix: str) -> dict:
    """Shapes of OpenAI's transformer blocks."""
    shapes = {}
    for i in range(depth):
        block = f"{prefix}transformer.resblocks.{i}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.mlp.c_fc.weight": (4 * width, width),
            f"{block}.mlp.c_fc.bias": (4 * width,),
            f"{block}.mlp.c_proj.weight": (width, 4 * width),
            f"{block}.mlp.c_proj.bias": (width,),
            **{f"{block}.{n}.{p}": (width,) for n in ("ln_1", "ln_2") for p in ("weight", "bias")},
        }
    return shapes


def openai_text_shapes(
    width: int, depth: int, out_dim: int, *, vocabulary: int = 40, length: int = 9
) -> dict:
    return {
        "logit_scale": (),
        "token_embedding.weight": (vocabulary, width),
        "positional_embedding": (length, width),
        "text_projection": (width, out_dim),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        **block_shapes(width, depth, ""),
    }


def openai_image_shapes(
    width: int, depth: int, out_dim: int, *, patch: int = 4, grid: tuple[int, int] = (3, 3)
) -> dict:
    return {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (1 + grid[0] * grid[1], width),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.proj": (width, out_dim),
        **{f"visual.{n}.{p}": (width,) for n in ("ln_pre", "ln_post") for p in ("weight", "bias")},
        **block_shapes(width, depth, "visual."),
    }


def tiny_shapes() -> dict:
    """A whole CLIP with one head of 64 channels per tower."""
    return openai_image_shapes(64, 2, 8) | openai_text_shapes(64, 1, 8)


def tiny_openai(dtype=np.float32) -> dict:
    return random_like(tiny_shapes(), dtype=dtype)


OPENAI_FACTS = {
    "input_resolution": np.array(12), "context_length": np.array(9), "vocab_size": np.array(40)
}  # fmt: skip
"""Further entries of OpenAI's archives."""


TIMM_MARKS = {"patch_embed.proj.weight": (8, 3, 4, 4), "blocks.0.ls1.gamma": (8,)}
"""Names that DINOv2 is detected by."""


def semivl_backbone(width: int, out_dim: int) -> dict:
    """A random image tower of one block under SemiVL's names."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 17, width),
        "patch_embed.projection.weight": (width, 3, 4, 4),
        "proj.weight": (out_dim, width, 1, 1),
        "layers.0.attn.attn.in_proj_weight": (3 * width, width),
        "layers.0.attn.attn.in_proj_bias": (3 * width,),
        "layers.0.attn.attn.out_proj.weight": (width, width),
        "layers.0.attn.attn.out_proj.bias": (width,),
        "layers.0.ffn.layers.0.0.weight": (4 * width, width),
        "layers.0.ffn.layers.0.0.bias": (4 * width,),
        "layers.0.ffn.layers.1.weight": (width, 4 * width),
        "layers.0.ffn.layers.1.bias": (width,),
    }
    for norm in ("ln0", "ln1", "layers.0.ln1", "layers.0.ln2"):
        shapes |= {f"{norm}.{part}": (width,) for part in ("weight", "bias")}
    return {f"backbone.{name}": array for name, array in random_like(shapes).items()}
