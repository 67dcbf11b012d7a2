"""Trains the demo's tiny CLIP on images and captions of `shapes`.

    python -m semivl_jax.pretrain --out=demo_clip.safetensors
    python -m semivl_jax.pretrain --out=small.safetensors --steps=200 --width=48

In: the generator's part "pretrain", which has captions, no label maps, and no image of the labelled parts.
Out: a safetensors file that `weights.towers.load` reads, and beside it a JSON log (command, losses, times).

The loss is contrastive between images and texts, twice with equal weights: of the image's pooled embedding
with the text, as in CLIP; and of the patches with the text, where the cosines of all dense embeddings (the
value path that SemiVL reads, METHOD 1.5) with the text are averaged with softmax weights (patch-text contrast
as in PACL, Mukhoti et al. 2023). The second needs no more than captions and trains the embedding that labels
pixels directly.

An image has several captions (one names everything, one each object); every step draws one of them. Texts
that are true of another image of the batch too are not its negatives. Most images are small and show one
object from near, so that most patches show what the caption says; every fourth step has larger scenes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from semivl_jax import utils
from semivl_jax.models.clip_text import TextTransformer
from semivl_jax.models.image_normalization import normalize
from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.text import tokenizer
from semivl_jax.types import PyTree
from semivl_jax.weights import towers
from tfds_builders.shapes import generator

# What cosines are multiplied with, from the first steps to the last. CLIP learns this factor up to 100, which
# guidance uses too; learned in a run of this length it ended at 60, so it follows a schedule.
FIRST_SCALE, LAST_SCALE = 15.0, 100.0
SHARPNESS = 0.25  # of the softmax over patches, relative to the logit scale
SMALL, LARGE = 32, 96  # sides of the images in pixels
LARGE_EVERY = 4  # every such step has large images
LOG_EVERY = 50
VOCABULARY = 49408


def _option(default: Any, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Length, data and sizes of a pretraining; every field is an option of the command."""

    steps: int = _option(2400, "updates of the weights")
    seed: int = _option(0, "of images, initial weights and order")
    images: int = _option(24000, "number of images, every fifth a large one")
    batch: int = _option(160, "images per step; of large ones an eighth of it")
    learning_rate: float = _option(1.5e-3, "the highest of the schedule")
    patch_size: int = _option(8, "side of the image tower's patches in pixels")
    width: int = _option(96, "channels of the image tower")
    depth: int = _option(4, "blocks of the image tower")
    num_heads: int = _option(3, "attention heads of the image tower")
    text_width: int = _option(64, "channels of the text tower")
    text_depth: int = _option(2, "blocks of the text tower")
    out_dim: int = _option(64, "channels that both towers end in")


Captioned = tuple[UInt8[np.ndarray, "n s s 3"], list[tuple[str, ...]]]
"""Images of one size, and the captions of each."""


def generate(settings: Settings, *, size: int, first: int, count: int) -> Captioned:
    """Images `first` … of the part "pretrain"."""
    numbers = range(first, first + count)
    samples = [generator.pretrain_sample(i, size=size, seed=settings.seed) for i in numbers]
    return np.stack([image for image, _ in samples]), [captions for _, captions in samples]


class Vocabulary:
    """Token ids of all captions, numbered anew: only tokens that occur, in the same order."""

    def __init__(self, captions: set[str]) -> None:
        texts = sorted(captions)
        ids = tokenizer.tokenize(texts)
        self.context = int((ids != 0).sum(axis=1).max())
        self.token_ids = np.unique(ids)
        rows = np.searchsorted(self.token_ids, ids[:, : self.context]).astype(np.int32)
        self._row_of = dict(zip(texts, rows, strict=True))

    def __call__(self, texts: list[str]) -> Int32[np.ndarray, "k t"]:
        """Rows of the captions; the end-of-text token still has the largest number."""
        return np.stack([self._row_of[text] for text in texts])


def batches(
    small: Captioned, large: Captioned, vocabulary: Vocabulary, settings: Settings
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(images, token rows, which text is true of which image) for every step."""
    for step in range(settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        is_large = step % LARGE_EVERY == LARGE_EVERY - 1
        images, captions = large if is_large else small
        count = settings.batch // 8 if is_large else settings.batch
        chosen = rng.choice(len(images), min(count, len(images)), replace=False)
        flip = (rng.random(len(chosen)) < 0.5)[:, None, None, None]
        views = np.where(flip, images[chosen, :, ::-1], images[chosen])
        options = [captions[i] for i in chosen]
        texts = [own[rng.integers(len(own))] for own in options]
        true = np.array([[text in own for text in texts] for own in options])
        yield views, vocabulary(texts), true


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


class Model:
    """Both towers during pretraining: short texts and a small vocabulary, otherwise as they are used."""

    def __init__(self, settings: Settings, vocabulary: Vocabulary) -> None:
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
            "context_length": tokenizer.CONTEXT_LENGTH,
        }
        grid = (LARGE // s.patch_size,) * 2
        self.image = VisionTransformer(
            **CLIP, **self.image_sizes, grid=grid, out_indices=(s.depth,)
        )
        short = {"vocab_size": len(vocabulary.token_ids), "context_length": vocabulary.context}
        self.text = TextTransformer(**self.text_sizes | short)
        self.vocabulary = vocabulary
        self.seed = s.seed

    def init(self, key: jax.Array) -> PyTree:
        """Parameters before training; token embeddings are rows of the table that a seed makes."""
        pixels = jnp.zeros((1, LARGE, LARGE, 3))
        ids = jnp.zeros((1, self.vocabulary.context), jnp.int32)
        image_key, text_key = jax.random.split(key)
        text = self.text.init(text_key, ids)["params"]
        table = towers.token_table(self.seed, VOCABULARY, self.text.width)
        text["token_embedding"] = {"embedding": jnp.asarray(table[self.vocabulary.token_ids])}
        return {"image": self.image.init(image_key, pixels)["params"], "text": text}

    def loss(
        self,
        params: PyTree,
        images: UInt8[Array, "b s s 3"],
        ids: Int32[Array, "b t"],
        true: Bool[Array, "b b"],
        scale: Float32[Array, ""],
    ) -> tuple[Float32[Array, ""], dict[str, Array]]:
        """Sum of the two contrasts, and its parts for the log."""
        features = self.image.apply({"params": params["image"]}, normalize(images))
        text = l2_normalize(self.text.apply({"params": params["text"]}, ids))
        whole = contrast(scale * (features.pooled @ text.T), true)
        dense = patch_similarity(features.maps[-1], text, SHARPNESS * scale)
        patches = contrast(scale * dense, true)
        return whole + patches, {"whole": whole, "patches": patches, "scale": scale}

    def complete(self, params: PyTree) -> towers.Clip:
        """The towers for all tokens and lengths; untrained embeddings keep their initial values."""
        image, text = jax.tree.map(np.asarray, (params["image"], params["text"]))
        table = towers.token_table(self.seed, VOCABULARY, self.text.width)
        table[self.vocabulary.token_ids] = text["token_embedding"]["embedding"]
        rest = ((0, 0), (0, tokenizer.CONTEXT_LENGTH - self.vocabulary.context), (0, 0))
        text |= {
            "token_embedding": {"embedding": table},
            "pos_embedding": np.pad(text["pos_embedding"], rest),
        }
        return towers.Clip(
            image=self.image_sizes,
            image_params=image,
            text=self.text_sizes,
            text_params=text,
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


def logit_scale(step: int, steps: int) -> np.float32:
    """First value for 30 % of the steps, last value for 20 %, geometric in between."""
    way = np.clip((step / steps - 0.3) / 0.5, 0, 1)
    return np.float32(FIRST_SCALE * (LAST_SCALE / FIRST_SCALE) ** way)


def train(settings: Settings) -> tuple[towers.Clip, np.ndarray, list[dict[str, float]]]:
    """Generates the images and trains: (towers, token ids that occurred, log of losses)."""
    started = time.monotonic()
    larger = settings.images // 5
    small = generate(settings, size=SMALL, first=0, count=settings.images - larger)
    large = generate(settings, size=LARGE, first=settings.images - larger, count=larger)
    vocabulary = Vocabulary({text for captions in small[1] + large[1] for text in captions})
    print(
        f"{settings.images} images, {len(vocabulary.token_ids)} different tokens, longest caption "
        f"{vocabulary.context} tokens, generated in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    model, optimizer = Model(settings, vocabulary), make_optimizer(settings)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: PyTree, state: PyTree, *batch: Array) -> tuple[PyTree, PyTree, PyTree]:
        (_, parts), grads = jax.value_and_grad(model.loss, has_aux=True)(params, *batch)
        change, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, change), state, parts

    params = model.init(jax.random.key(settings.seed))
    state, log = optimizer.init(params), []
    for step, batch in enumerate(batches(small, large, vocabulary, settings), start=1):
        params, state, parts = update(params, state, *batch, logit_scale(step, settings.steps))
        if step % LOG_EVERY == 0 or step == settings.steps:
            row = {name: round(float(value), 4) for name, value in parts.items()}
            log.append({"step": step, **row, "seconds": round(time.monotonic() - started, 1)})
            print(json.dumps(log[-1]), flush=True)
    return model.complete(params), vocabulary.token_ids, log


def main(argv: Sequence[str]) -> int:
    """Train, write the file and the log beside it; returns the exit code."""
    options = vars(parser().parse_args(argv))
    out = Path(options.pop("out"))
    settings = Settings(**options)
    clip, token_ids, log = train(settings)
    written = {"out": out.name, **options}
    command = " ".join(
        ["python -m semivl_jax.pretrain", *(f"--{name}={value}" for name, value in written.items())]
    )
    notes = {"command": command}
    towers.save(out, towers=clip, token_ids=token_ids, token_seed=settings.seed, notes=notes)
    report = {"command": command, "jax": jax.__version__, "log": log}
    utils.write_text(out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    return 0


def parser() -> utils.Parser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.pretrain", __doc__)
    made.add_argument("--out", required=True, help="safetensors file to write")
    for field in dataclasses.fields(Settings):
        made.add_argument(
            f"--{field.name}",
            type=type(field.default),
            default=field.default,
            help=f"{field.metadata['help']}; default: %(default)s",
        )
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
