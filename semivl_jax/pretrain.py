"""Trains the demo's tiny CLIP on images and captions of `shapes`.

    python -m semivl_jax.pretrain --out=demo_clip.safetensors
    python -m semivl_jax.pretrain --out=small.safetensors --steps=200 --width=48

In: the generator's part "pretrain", which has captions, no label maps, and no image of the labelled parts.
Out: a safetensors file that `weights.towers.load` reads, and beside it a JSON log (command, losses, times).

The loss is the sum of three terms:

    whole    the contrast of CLIP between the pooled embedding of an image and one of its captions, drawn at
             random. Texts that are true of another image of the batch too are not its negatives.
    patches  every patch shows one of the concepts that the captions of its part of the image name: the
             softmax over all concepts must give them the whole probability together.
    found    every named concept is somewhere: the patch that is most like it must have it.

An image is a scene into which none, one or two close-ups are pasted, each with captions of its own. The
captions of a close-up name little, and a patch is compared with the captions of its own part, so the dense
embedding (the value path that SemiVL reads, docs/semivl.md 1.5) learns what is where from captions alone.
Plain names of classes are seldom mentioned and only in the first term, so the tower knows them vaguely.
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
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from semivl_jax import utils
from semivl_jax.models.clip_text import TextTransformer
from semivl_jax.models.image_normalization import normalize
from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.text import tokenizer
from semivl_jax.types import PyTree
from semivl_jax.weights import towers
from tfds_builders.shapes import generator, words

# What cosines are multiplied with, from the first steps to the last. CLIP learns this factor up to 100, which
# guidance uses too; learned in a run of this length it ended at 60, so it follows a schedule.
FIRST_SCALE, LAST_SCALE = 15.0, 100.0
SCENE, CLOSE_UP = generator.SIDE, 32  # sides of the images in pixels
PASTED = (0.3, 0.35, 0.35)  # share of the scenes into which 0, 1 and 2 close-ups are pasted
SHARPNESS = 4.0  # of the soft maximum over patches
# The lowest log-probability that counts in "found", so that something hidden cannot dominate
LEAST = -14.0
LOG_EVERY = 50
VOCABULARY = 49408


def _option(default: Any, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Length, data and sizes of a pretraining; every field is an option of the command."""

    steps: int = _option(2400, "updates of the weights")
    seed: int = _option(0, "of images, initial weights and order")
    images: int = _option(24000, "number of images, half scenes and half close-ups")
    batch: int = _option(48, "scenes per step, with close-ups pasted in")
    learning_rate: float = _option(1.5e-3, "the highest of the schedule")
    patch_size: int = _option(8, "side of the image tower's patches in pixels")
    width: int = _option(96, "channels of the image tower")
    depth: int = _option(4, "blocks of the image tower")
    num_heads: int = _option(3, "attention heads of the image tower")
    text_width: int = _option(64, "channels of the text tower")
    text_depth: int = _option(2, "blocks of the text tower")
    out_dim: int = _option(64, "channels that both towers end in")


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Images of one size, the captions of each, and which of `words.CONCEPTS` they name."""

    images: UInt8[np.ndarray, "n s s 3"]
    captions: list[tuple[str, ...]]
    named: Bool[np.ndarray, "n k"]


@struct.dataclass
class Batch:
    """Images of one step.

    part: of the patches; 0 the scene, 1 and 2 the close-ups.
    named: concepts that the captions of every part name.
    found: parts in which every named concept must be seen: those that no other one hides.
    ids: one caption of each image; `true` tells which is true of which image.
    """

    images: UInt8[Array, "b s s 3"]
    part: Int32[Array, "b p"]
    named: Bool[Array, "b 3 k"]
    found: Bool[Array, "b 3"]
    ids: Int32[Array, "b t"]
    true: Bool[Array, "b b"]


def generate(settings: Settings, *, size: int, first: int, count: int) -> Captioned:
    """Images `first` … of the part "pretrain"."""
    numbers = range(first, first + count)
    samples = [generator.pretrain_sample(i, size=size, seed=settings.seed) for i in numbers]
    return Captioned(
        images=np.stack([image for image, _ in samples]),
        captions=[captions for _, captions in samples],
        named=np.stack([words.named(captions) for _, captions in samples]),
    )


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
    scenes: Captioned, close_ups: Captioned, vocabulary: Vocabulary, settings: Settings
) -> Iterator[Batch]:
    """The images of every step."""
    for step in range(settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        made = [_paste(rng, scenes, close_ups, settings.patch_size) for _ in range(settings.batch)]
        options = [captions for _, captions in made]
        texts = [own[rng.integers(len(own))] for own in options]
        arrays = {name: np.stack([image[name] for image, _ in made]) for name in made[0][0]}
        true = np.array([[text in own for text in texts] for own in options])
        yield Batch(**arrays, ids=vocabulary(texts), true=true)


def _paste(
    rng: np.random.Generator, scenes: Captioned, close_ups: Captioned, patch: int
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """A scene with close-ups on whole patches: the fields of `Batch` for one image, and its captions."""
    chosen, count = rng.integers(len(scenes.images)), rng.choice(len(PASTED), p=PASTED)
    image, captions = scenes.images[chosen].copy(), scenes.captions[chosen]
    side, largest = SCENE // patch, CLOSE_UP // patch
    part = np.zeros((side, side), np.int32)
    named = np.zeros((len(PASTED), scenes.named.shape[1]), bool)
    named[0] = scenes.named[chosen]
    found = np.arange(len(PASTED)) == count  # the last one is in front of the others
    for number in range(1, count + 1):
        chosen = rng.integers(len(close_ups.images))
        size = int(rng.integers(largest // 2, largest + 1))
        row, column = rng.integers(0, side - size + 1, 2)
        y, x = rng.integers(0, CLOSE_UP - size * patch + 1, 2)
        piece = close_ups.images[chosen][y : y + size * patch, x : x + size * patch]
        rows = slice(row * patch, (row + size) * patch)
        image[rows, column * patch : (column + size) * patch] = piece
        part[row : row + size, column : column + size] = number
        named[number] = close_ups.named[chosen]
        found[number] &= size == largest
        captions = captions + close_ups.captions[chosen]
    if rng.random() < 0.5:
        image, part = image[:, ::-1], part[:, ::-1]
    return {"images": image, "part": part.ravel(), "named": named, "found": found}, captions


def contrast(logits: Float[Array, "b b"], true: Bool[Array, "b b"]) -> Float32[Array, ""]:
    """Cross-entropy of the pairs on the diagonal, over images and over texts.

    Entries off the diagonal that are true as well are left out of the sums.
    """
    kept = jnp.eye(len(logits), dtype=bool) | ~true
    logits = jnp.where(kept, logits, -jnp.inf)
    per_image = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
    per_text = jax.nn.logsumexp(logits, axis=0) - jnp.diagonal(logits)
    return (per_image.mean() + per_text.mean()) / 2


def part_losses(
    logits: Float[Array, "b p k"],
    part: Int32[Array, "b p"],
    named: Bool[Array, "b q k"],
    found: Bool[Array, "b q"],
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """The terms "patches" and "found"; parts whose captions name nothing do not count."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    allowed = jnp.take_along_axis(named, part[..., None], axis=1)
    counts = allowed.any(axis=-1)
    of_named = jax.nn.logsumexp(jnp.where(allowed, log_p, 10 * LEAST), axis=-1)
    patches = -jnp.sum(jnp.where(counts, of_named, 0.0)) / jnp.maximum(counts.sum(), 1)
    here = jax.nn.one_hot(part, named.shape[1], dtype=bool)[..., None]  # b p q 1
    inside = jnp.where(here, jnp.maximum(log_p, LEAST)[:, :, None], 10 * LEAST)
    most = jax.nn.logsumexp(SHARPNESS * inside, axis=1) / SHARPNESS  # b q k
    sought = named & found[..., None]
    missing = -jnp.sum(jnp.where(sought, jnp.minimum(most, 0.0), 0.0))
    return patches, missing / jnp.maximum(sought.sum(), 1)


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
        grid = (SCENE // s.patch_size,) * 2
        self.image = VisionTransformer(
            **CLIP, **self.image_sizes, grid=grid, out_indices=(s.depth,)
        )
        short = {"vocab_size": len(vocabulary.token_ids), "context_length": vocabulary.context}
        self.text = TextTransformer(**self.text_sizes | short)
        self.vocabulary = vocabulary
        self.concepts = vocabulary([words.caption([concept]) for concept in words.CONCEPTS])
        self.seed = s.seed

    def init(self, key: jax.Array) -> PyTree:
        """Parameters before training; token embeddings are rows of the table that a seed makes."""
        pixels = jnp.zeros((1, SCENE, SCENE, 3))
        ids = jnp.zeros((1, self.vocabulary.context), jnp.int32)
        image_key, text_key = jax.random.split(key)
        text = self.text.init(text_key, ids)["params"]
        table = towers.token_table(self.seed, VOCABULARY, self.text.width)
        text["token_embedding"] = {"embedding": jnp.asarray(table[self.vocabulary.token_ids])}
        return {"image": self.image.init(image_key, pixels)["params"], "text": text}

    def loss(
        self, params: PyTree, batch: Batch, scale: Float32[Array, ""]
    ) -> tuple[Float32[Array, ""], dict[str, Array]]:
        """Sum of the three terms, and the terms for the log."""
        features = self.image.apply({"params": params["image"]}, normalize(batch.images))
        ids = jnp.concatenate([batch.ids, self.concepts])
        texts = l2_normalize(self.text.apply({"params": params["text"]}, ids))
        captions, concepts = jnp.split(texts, [len(batch.ids)])
        logits = scale * jnp.einsum("byxd,kd->byxk", features.maps[-1], concepts)
        logits = logits.reshape(len(logits), -1, len(concepts))
        whole = contrast(scale * (features.pooled @ captions.T), batch.true)
        patches, found = part_losses(logits, batch.part, batch.named, batch.found)
        terms = {"whole": whole, "patches": patches, "found": found}
        return whole + patches + found, {**terms, "scale": scale}

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
    half = settings.images // 2
    scenes = generate(settings, size=SCENE, first=0, count=half)
    close_ups = generate(settings, size=CLOSE_UP, first=half, count=settings.images - half)
    texts = {text for own in scenes.captions + close_ups.captions for text in own}
    vocabulary = Vocabulary(texts | {words.caption([concept]) for concept in words.CONCEPTS})
    print(
        f"{settings.images} images, {len(vocabulary.token_ids)} different tokens, longest caption "
        f"{vocabulary.context} tokens, generated in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    model, optimizer = Model(settings, vocabulary), make_optimizer(settings)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(
        params: PyTree, state: PyTree, batch: Batch, scale: Float32[Array, ""]
    ) -> tuple[PyTree, PyTree, PyTree]:
        (_, parts), grads = jax.value_and_grad(model.loss, has_aux=True)(params, batch, scale)
        change, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, change), state, parts

    params = model.init(jax.random.key(settings.seed))
    state, log = optimizer.init(params), []
    for step, batch in enumerate(batches(scenes, close_ups, vocabulary, settings), start=1):
        params, state, parts = update(params, state, batch, logit_scale(step, settings.steps))
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
