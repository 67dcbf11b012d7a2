"""What the rows of `accelerator.py` measure.

Each function takes options and returns results by name, as JSON holds them. Weights and images are random,
except for those of the golden files.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import input_pipeline, photos, train_step, workload
from semivl_jax.data.examples import EvalExample
from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.evaluation.sliding_window import SlidingWindow
from semivl_jax.experiment import flops
from semivl_jax.models import attention as attention_lib
from semivl_jax.models import build
from semivl_jax.models.resize import bilinear
from semivl_jax.train import sharding, step
from semivl_jax.train.augment.channel_dropout import drop_channels
from semivl_jax.weights.tree import flatten
from tests import golden_models
from tests.golden_files import Golden, nhwc
from tests.golden_run import GoldenRun, is_free_of_gradient, with_dtype

Result = dict[str, Any]


class NotRunError(Exception):
    """A row that cannot be measured here; the message says why."""


def parity(dtype: str) -> Result:
    """Largest differences from the published implementation, relative to the largest value expected.

    `logits` of a whole model, and of the first training step `loss`, `gradients` and `weights` after it.
    """
    precision = "highest" if dtype == "float32" else None
    with jax.default_matmul_precision(precision):
        return {"logits": _logits_difference(dtype)} | _step_differences(dtype)


def _logits_difference(dtype: str) -> float:
    golden = Golden("vlm_forward")
    settings = golden.meta["build_cfg"]
    model = golden_models.segmenter(
        golden,
        crop=golden.meta["img_size"],
        renormalize=settings["model_args"]["renorm_clip_img"],
    )
    model, variables = with_dtype(model, dtype), golden_models.variables(golden)
    text = golden_models.class_text(golden["in/text_class"])
    name, facts = next(iter(golden.meta["inputs"].items()))
    masks = tuple(
        jnp.asarray(nhwc(golden[f"in/{name}/fp_mask{j}"]), bool) for j in range(facts["n_fp_masks"])
    )

    @jax.jit
    def forward(variables: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = model.apply(variables, image, method="encode")
        perturbed = drop_channels(features, masks, rate=settings["fp_rate"])
        return tuple(
            bilinear(
                model.apply(variables, each, text, method="decode"),
                image.shape[1:3],
                align_corners=False,
            )
            for each in (features, perturbed)
        )

    found = forward(variables, nhwc(golden[f"in/{name}/img"]))
    expected = (golden[f"out/{name}/{key}"] for key in ("logits", "logits_fp"))
    return max(_difference(a, nhwc(b)) for a, b in zip(found, expected, strict=True))


def _step_differences(dtype: str) -> Result:
    run = GoldenRun("train_steps_pixelwise", dtype)
    state, grads = jax.jit(run.iterate)(run.state, run.views(0), run.masks(0))
    result = {"loss": _difference(grads.metrics["loss"], run.golden["out/loss/loss_all"][0])}
    for name, ours, prefix in (
        ("gradients", grads.params, "out/grad0/"),
        ("weights", state.params, "out/w_after1/"),
    ):
        ours, theirs = flatten(ours), flatten(run.imported(prefix)["params"])
        result[name] = max(
            _difference(ours[path], value)
            for path, value in theirs.items()
            if not is_free_of_gradient(path)
        )
    return result


def _difference(found: Any, expected: np.ndarray) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


@contextlib.contextmanager
def _attention(kind: str) -> Iterator[None]:
    """Programs traced inside use this implementation: xla, cudnn, or with "" what the machine chooses."""
    if kind == "cudnn" and not attention_lib.fused_attention_runs():
        raise NotRunError("cuDNN's attention does not run on this device")
    with contextlib.ExitStack() as stack:
        if kind == "xla":
            never = mock.patch.object(attention_lib, "fused_attention_runs", lambda: False)
            stack.enter_context(never)
        yield


def train(config: str, changes: Sequence[str], steps: int, attention: str = "") -> Result:
    """A training step of a configuration (`train_step.measure`)."""
    with _attention(attention):
        work = workload.build(workload.load_config(config, changes))
        fused = attention_lib.fused_attention_runs() and work.config.dtype != "float32"
        return train_step.measure(work, steps) | {"attention": "cudnn" if fused else "xla"}


def breakdown(config: str, changes: Sequence[str], steps: int) -> Result:
    """Milliseconds of its parts (`train_step.breakdown`)."""
    work = workload.build(workload.load_config(config, changes))
    return {"breakdown_ms": train_step.breakdown(work, steps=steps)}


def operations(config: str, changes: Sequence[str]) -> float:
    """Operations of products and convolutions in a training step; nothing is compiled or run."""
    work = workload.build(workload.load_config(config, changes))
    mesh = sharding.make_mesh(jax.devices()[:1])
    frozen, state, batch = work.abstract_arguments(mesh)
    return flops.of_traced(
        step.jit_train_step(work.modules, mesh, state).trace(frozen, state, batch)
    )


def evaluate(config: str, changes: Sequence[str], shape: Sequence[int], images: int) -> Result:
    """Images per second of the evaluation during training."""
    work, variables = _trained(config, changes)
    window = SlidingWindow.from_config(work.config, work.modules.model)
    evaluator = _evaluator(work, window)
    variables = evaluator.place(variables)
    examples = [
        EvalExample(str(i), *each) for i, each in enumerate(_photos(shape, images, work.info))
    ]
    return _rate(lambda count: evaluator.evaluate(variables, examples[:count]), images)


def predict(config: str, changes: Sequence[str], shape: Sequence[int], images: int) -> Result:
    """Images per second of the prediction of photos."""
    work, variables = _trained(config, changes)
    window = SlidingWindow.from_config(work.config, work.modules.model).for_prediction()
    evaluator = _evaluator(work, window)
    variables = evaluator.place(variables)
    pictures = [image for image, _ in _photos(shape, images, work.info)]
    return _rate(lambda count: list(evaluator.predict(variables, pictures[:count])), images)


def _trained(config: str, changes: Sequence[str]) -> tuple[workload.Workload, Any]:
    work = workload.build(workload.load_config(config, changes))
    return work, work.random_arguments()[1].student()


def _evaluator(work: workload.Workload, window: SlidingWindow) -> Evaluator:
    network = build.window_network(work.modules.model, work.frozen.text)
    return Evaluator(network, window, num_classes=work.info.num_classes, devices=jax.devices()[:1])


def _photos(shape: Sequence[int], count: int, info: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [photos.draw(rng, tuple(shape), classes=info.num_classes) for _ in range(count)]


def _rate(run: Callable[[int], object], images: int) -> Result:
    """`run(count)` works on so many images; the first call compiles."""
    start = time.monotonic()
    run(1)
    compiled = time.monotonic()
    run(images)
    seconds = time.monotonic() - compiled
    device = jax.devices()[0].device_kind
    return {
        "device": device,
        "images_per_s": images / seconds,
        "compile_s": compiled - start,
        "images": images,
    }


def read(name: str, seconds: float) -> Result:
    """Crops per second of the input pipeline with a worker per core (`input_pipeline`)."""
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as place:
        input_pipeline.make(Path(place), name)
        task = {"pipeline": "ours", "name": name, "root": place, "workers": workers}
        task |= {"batch": 4, "seconds": seconds}
        return input_pipeline.measure_in_new_process(task)


def published(**_: object) -> Result:
    """The published PyTorch step: its code is not part of this repository."""
    raise NotRunError(
        "this repository has no PyTorch form of the model; time the published code beside it"
    )
