"""Trains the tiny CLIP of the demo on pictures and captions of `shapes`.

    python -m semivl_jax.pretrain --out=demo_clip.safetensors [--steps=2400 --seed=0 …]

In: nothing but the generator's part "pretrain", which has captions and no label maps and shares no
picture with the labelled parts. Out: a safetensors file that `weights.towers.load` reads, and beside it
a JSON log (flags, losses, times).

The loss is contrastive between images and texts, twice (equal weights):

- of the image's pooled embedding with the text, as in CLIP;
- of the patches with the text: cosines of all dense embeddings (the value path that SemiVL reads,
  METHOD 1.5) with the text are averaged with softmax weights, so that patches which match count more.
  It needs no more than the caption, and trains the embedding that labels pixels directly, where CLIP
  gets it as a by-product of very many pairs (patch-text contrast as in PACL, Mukhoti et al. 2023).
  How far the first term alone would get here has not been measured.

A picture has several captions (one names everything, one each thing); every step draws one of them. Texts
that are true of another picture too (they are among its captions) are not its negatives. Most
pictures are small, sixteen patches of one thing from near, so that most patches show what the caption
says and parts of a thing are learned as well as the whole; every fourth step has larger scenes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from semivl_jax.models.clip_text import TextTransformer
from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.normalization import normalize
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.text import tokenizer
from semivl_jax.types import PyTree
from semivl_jax.weights import towers as towers_lib
from tfds_builders.shapes import generator

FIRST_SCALE, LAST_SCALE = 15.0, 100.0
"""What cosines are multiplied with. CLIP learns this factor, from 14 up to its cap of 100, which is also
what guidance uses. Learned from 100 on in a run of this length it fell to 60, which leaves guidance too
sure of itself; so it follows a schedule that ends at 100.
"""
SHARPNESS = 0.25
"""Of the softmax over patches, relative to the logit scale."""
SMALL, LARGE = 32, 96
"""Sides of the pictures in pixels."""
LARGE_EVERY = 4
COMMAND = "python -m semivl_jax.pretrain"
VOCABULARY = 49408
CONTEXT = 77


def _setting(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What one pretraining is: length, data and sizes."""

    steps: int = _setting(2400, "updates of the weights")
    seed: int = _setting(0, "of pictures, initial weights and order")
    images: int = _setting(24000, "pictures that are drawn, every fifth a large one")
    batch: int = _setting(160, "pictures per step; of large ones an eighth of it")
    learning_rate: float = _setting(1.5e-3, "the highest of the schedule")
    patch_size: int = _setting(8, "side of the image tower's patches in pixels")
    width: int = _setting(96, "channels of the image tower")
    depth: int = _setting(4, "blocks of the image tower")
    num_heads: int = _setting(3, "attention heads of the image tower")
    text_width: int = _setting(64, "channels of the text tower")
    text_depth: int = _setting(2, "blocks of the text tower")
    out_dim: int = _setting(64, "channels that both towers end in")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of one size: uint8[n,s,s,3], and the captions of each."""

    images: UInt8[np.ndarray, "n s s 3"]
    captions: list[tuple[str, ...]]


def draw(settings: Settings, *, size: int, first: int, count: int) -> Pictures:
    """Pictures `first` … of the pretraining part."""
    drawn = [
        generator.pretrain_sample(index, size=size, seed=settings.seed)
        for index in range(first, first + count)
    ]
    return Pictures(np.stack([image for image, _ in drawn]), [texts for _, texts in drawn])


class Words:
    """Token ids of all captions, numbered anew: only tokens that occur, in the same order."""

    def __init__(self, captions: set[str]) -> None:
        texts = sorted(captions)
        ids = tokenizer.tokenize(texts, context_length=CONTEXT)
        self.context = int((ids != 0).sum(axis=1).max())
        self.token_ids = np.unique(ids)
        rows = np.searchsorted(self.token_ids, ids[:, : self.context]).astype(np.int32)
        self._row_of = dict(zip(texts, rows, strict=True))

    def __call__(self, texts: list[str]) -> Int32[np.ndarray, "k t"]:
        """Rows of the captions; the end-of-text token still has the largest number."""
        return np.stack([self._row_of[text] for text in texts])


def batches(
    small: Pictures, large: Pictures, words: Words, settings: Settings
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(images, token rows, which text is true of which image) for every step."""
    for step in range(settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        is_large = step % LARGE_EVERY == LARGE_EVERY - 1
        pictures = large if is_large else small
        count = settings.batch // 8 if is_large else settings.batch
        chosen = rng.choice(len(pictures.images), min(count, len(pictures.images)), replace=False)
        images = pictures.images[chosen]
        flip = rng.random(len(chosen)) < 0.5
        images = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
        captions = [pictures.captions[i] for i in chosen]
        texts = [options[rng.integers(len(options))] for options in captions]
        true = np.array([[text in options for text in texts] for options in captions])
        yield images, words(texts), true


def contrast(logits: Float[Array, "b b"], true: Bool[Array, "b b"]) -> Float32[Array, ""]:
    """Cross-entropy of the pairs on the diagonal, over images and over texts.

    Entries off the diagonal that are true as well are left out of the sums.
    """
    kept = jnp.eye(len(logits), dtype=bool) | ~true
    logits = jnp.where(kept, logits, -jnp.inf)
    per_image = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
    per_text = jax.nn.logsumexp(logits, axis=0) - jnp.diagonal(logits)
    return (per_image.mean() + per_text.mean()) / 2


def patch_similarity(
    dense: Float[Array, "b y x d"], text: Float[Array, "k d"], sharpness: Float[Array, ""]
) -> Float[Array, "b k"]:
    """Cosines of every image's patches with every text, averaged with weights softmax(sharpness cos)."""
    cosine = jnp.einsum("byxd,kd->bkyx", dense, text)
    cosine = cosine.reshape(*cosine.shape[:2], -1)
    return (jax.nn.softmax(sharpness * cosine, axis=-1) * cosine).sum(axis=-1)


class Towers:
    """Both towers during pretraining: short texts and a small vocabulary, otherwise as they are used."""

    def __init__(self, settings: Settings, words: Words) -> None:
        s = settings
        self.image_sizes = {
            "patch_size": s.patch_size,
            "width": s.width,
            "depth": s.depth,
            "num_heads": s.num_heads,
            "mlp_dim": 4 * s.width,
            "out_dim": s.out_dim,
        }
        self.text_sizes = {
            "vocab_size": VOCABULARY,
            "width": s.text_width,
            "depth": s.text_depth,
            "num_heads": max(1, s.text_width // 32),
            "out_dim": s.out_dim,
            "context_length": CONTEXT,
        }
        grid = (LARGE // s.patch_size,) * 2
        self.image = VisionTransformer(
            **CLIP, **self.image_sizes, grid=grid, out_indices=(s.depth,)
        )
        short = {"vocab_size": len(words.token_ids), "context_length": words.context}
        self.text = TextTransformer(**self.text_sizes | short)
        self.words = words
        self.seed = s.seed

    def init(self, key: jax.Array) -> PyTree:
        """Parameters before training; token embeddings are rows of the table that a seed makes."""
        pixels = jnp.zeros((1, LARGE, LARGE, 3))
        ids = jnp.zeros((1, self.words.context), jnp.int32)
        image_key, text_key = jax.random.split(key)
        text = self.text.init(text_key, ids)["params"]
        table = towers_lib.token_table(self.seed, VOCABULARY, self.text.width)
        text["token_embedding"] = {"embedding": jnp.asarray(table[self.words.token_ids])}
        return {"image": self.image.init(image_key, pixels)["params"], "text": text}

    def loss(
        self,
        params: PyTree,
        images: UInt8[Array, "b s s 3"],
        ids: Int32[Array, "b t"],
        true: Bool[Array, "b b"],
        scale: Float32[Array, ""],
    ) -> tuple[Float32[Array, ""], dict[str, Array]]:
        """Sum of the two contrasts, and the parts for the log."""
        features = self.image.apply({"params": params["image"]}, normalize(images))
        text = l2_normalize(self.text.apply({"params": params["text"]}, ids))
        whole = contrast(scale * (features.pooled @ text.T), true)
        dense = patch_similarity(features.maps[-1], text, SHARPNESS * scale)
        patches = contrast(scale * dense, true)
        return whole + patches, {"whole": whole, "patches": patches, "scale": scale}

    def complete(self, params: PyTree) -> towers_lib.Clip:
        """The towers for all words and lengths: what training did not touch is as it was drawn."""
        text = jax.tree.map(np.asarray, params["text"])
        table = towers_lib.token_table(self.seed, VOCABULARY, self.text.width)
        table[self.words.token_ids] = text["token_embedding"]["embedding"]
        rest = ((0, 0), (0, CONTEXT - self.words.context), (0, 0))
        return towers_lib.Clip(
            image=self.image_sizes,
            image_params=jax.tree.map(np.asarray, params["image"]),
            text=self.text_sizes,
            text_params=text
            | {
                "token_embedding": {"embedding": table},
                "pos_embedding": np.pad(text["pos_embedding"], rest),
            },
            logit_scale=LAST_SCALE,
        )


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW, warm-up over a twentieth of the steps, cosine decay, clipped gradients."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        max(1, settings.steps // 20),
        max(2, settings.steps),
        settings.learning_rate / 50,
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.02)
    )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def update(
    towers: Towers,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    state: PyTree,
    batch: tuple[Array, Array, Array],
    scale: Float32[Array, ""],
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    """One step: new parameters, new optimiser state, parts of the loss."""
    (_, parts), grads = jax.value_and_grad(towers.loss, has_aux=True)(params, *batch, scale)
    change, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, change), state, parts


def logit_scale(step: int, steps: int) -> np.float32:
    """First value for 30 % of the steps, last value for 20 %, geometric in between."""
    way = np.clip((step / steps - 0.3) / 0.5, 0, 1)
    return np.float32(FIRST_SCALE * (LAST_SCALE / FIRST_SCALE) ** way)


def train(
    settings: Settings, *, log_every: int = 50
) -> tuple[towers_lib.Clip, np.ndarray, list[dict[str, float]]]:
    """Draw the pictures and train: (towers, token ids that occurred, log of losses)."""
    started = time.monotonic()
    larger = settings.images // 5
    small = draw(settings, size=SMALL, first=0, count=settings.images - larger)
    large = draw(settings, size=LARGE, first=settings.images - larger, count=larger)
    words = Words({text for texts in small.captions + large.captions for text in texts})
    print(
        f"{settings.images} pictures, {len(words.token_ids)} different tokens, longest caption "
        f"{words.context} tokens, drawn in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    towers, optimizer = Towers(settings, words), make_optimizer(settings)
    params = towers.init(jax.random.key(settings.seed))
    state, log = optimizer.init(params), []
    for step, batch in enumerate(batches(small, large, words, settings), start=1):
        scale = logit_scale(step, settings.steps)
        params, state, parts = update(towers, optimizer, params, state, batch, scale)
        if step % log_every == 0 or step == settings.steps:
            row = {name: round(float(value), 4) for name, value in parts.items()}
            log.append({"step": step, **row, "seconds": round(time.monotonic() - started, 1)})
            print(json.dumps(log[-1]), flush=True)
    return towers.complete(params), words.token_ids, log


def run(settings: Settings, out: Path) -> None:
    """Train and write `out` and the log beside it."""
    towers, token_ids, log = train(settings)
    options = {"out": out.name, **dataclasses.asdict(settings)}
    command = " ".join([COMMAND, *(f"--{name}={value}" for name, value in options.items())])
    towers_lib.save(
        out,
        towers=towers,
        token_ids=token_ids,
        token_seed=settings.seed,
        notes={"command": command},
    )
    report = {"command": command, "jax": jax.__version__, "log": log}
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf8")
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


def _define_flags() -> None:
    flags.DEFINE_string("out", None, "safetensors file to write", required=True)
    for field in dataclasses.fields(Settings):
        define = flags.DEFINE_float if field.type == "float" else flags.DEFINE_integer
        define(field.name, field.default, field.metadata["help"])


def main(argv: list[str]) -> None:
    """The command."""
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}; settings are written --name=value")
    values = flags.FLAGS
    names = [field.name for field in dataclasses.fields(Settings)]
    run(Settings(**{name: values[name].value for name in names}), Path(values.out))


if __name__ == "__main__":
    _define_flags()
    app.run(main)
