"""Time, memory and operations of a training step on this machine, with random data.

    python -m benchmarks.train_step --config=voc --set=data.crop=256 --set=batch=1
    python -m benchmarks.train_step --config=configs/demo.py --breakdown --out=step.json

`--config` is a published recipe (voc, coco, ade20k, cityscapes) or FILE[:ARGUMENT]. Prints the time of
compilation, milliseconds per step (median of the steps after the first), images per second, operations of
matrix products and convolutions, the share of a measured matrix product's rate that they reach, and the
peak memory.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import workload
from semivl_jax import compiled_programs, utils
from semivl_jax.experiment import flops
from semivl_jax.train import sharding
from semivl_jax.train import step as step_lib
from semivl_jax.train.augment.views import make_views
from semivl_jax.train.state import variables


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.train_step", __doc__)
    option = command.add_argument
    option("--config", default="voc", help="published recipe, or FILE[:ARGUMENT]")
    option("--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field")
    option("--steps", type=int, default=5, help="steps that are timed, after one that is not")
    option("--breakdown", action="store_true", help="also time the parts of the step alone")
    option("--cache", default="", help="folder of the compilation cache; default: none")
    option("--out", help="the results as JSON")
    return command


def main() -> None:
    """Measures, prints, writes."""
    options = parser().parse_args()
    compiled_programs.use_cache(options.cache)
    try:
        work = workload.build(workload.load_config(options.config, options.set))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    result = {"config": options.config, "changes": options.set} | measure(work, options.steps)
    if options.breakdown:
        result["breakdown_ms"] = breakdown(work, steps=options.steps)
    print(format_result(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1))


def measure(work: workload.Workload, steps: int) -> dict[str, Any]:
    """Compiles the step and runs it 1 + `steps` times."""
    frozen, state, batch = work.random_arguments()
    step = step_lib.jit_train_step(work.modules, sharding.make_mesh(jax.devices()[:1]), state)
    operations = flops.of_traced(step.trace(frozen, state, batch))
    start = time.monotonic()
    compiled = step.lower(frozen, state, batch).compile()
    compile_s = time.monotonic() - start
    utils.trim_memory()
    times = []
    for _ in range(1 + steps):
        start = time.monotonic()
        state, metrics = compiled(frozen, state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.monotonic() - start)
    peak = _peak_bytes()  # before the arrays of matmul_rate
    seconds, rate = statistics.median(times[1:]), matmul_rate(work.config.dtype)
    images = sum(leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.ndim == 4)
    return {
        "device": jax.devices()[0].device_kind,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "jax": jax.__version__,
        "compile_s": compile_s,
        "first_step_s": times[0],
        "ms_per_step": 1e3 * seconds,
        "images_per_s": images / seconds,
        "tflop": operations / 1e12,
        "matmul_tflop_per_s": rate / 1e12,
        "utilization": operations / seconds / rate,
        "peak_gib": peak / 2**30,
        **_by_compiler(compiled),
        "loss": float(metrics["loss"]),
    }


def breakdown(work: workload.Workload, *, steps: int) -> dict[str, float]:
    """Milliseconds of parts of the step, each compiled and run alone; some contain others."""
    frozen, state, batch = work.random_arguments()
    modules, method, model = work.modules, work.modules.method, work.modules.model
    key = jax.random.key(0)
    views = jax.jit(make_views)(key, batch)
    noise = method.noise(key, views.x.shape[0])
    student = jnp.concatenate([image for each in method.passes(views) for image in each.values()])

    def apply(params: Any, *arguments: Any, method: str) -> Any:
        tree = variables(params, state.frozen_params, state.batch_stats)
        return model.apply(tree, *arguments, method=method)

    def encode(params: Any, image: Any) -> Any:
        return apply(params, image, method="encode").replace(pooled=None)

    def decode(params: Any, features: Any) -> Any:
        return apply(params, features, frozen.text, method="decode")

    def labels(frozen: Any, state: Any, views: Any) -> Any:
        return method.labels(modules.networks(frozen, state, key), views, noise)

    def guidance(frozen: Any, state: Any, crop: Any) -> Any:
        networks = modules.networks(frozen, state)
        return networks.guidance(crop.w, crop.ignore, threshold=method.guidance_threshold)

    def loss(frozen: Any, state: Any, views: Any) -> Any:
        student = step_lib.student_loss(modules, frozen, state, views, key)
        return student.of_part(state.params, student.part)[0]

    def predict(params: Any, image: Any) -> Any:
        return decode(params, encode(params, image))

    def summed(function: Callable) -> Callable:
        def total(*arguments: Any) -> Any:
            leaves = jax.tree.leaves(function(*arguments))
            return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves)

        return total

    features = jax.jit(encode)(state.params, student)
    runs = {
        "views": (make_views, (key, batch)),
        "labels of teachers": (labels, (frozen, state, views)),
        "forward of labelled": (predict, (state.params, views.x)),
        "labels, forward, losses": (loss, (frozen, state, views)),
        "encoder, with gradients": (jax.grad(summed(encode)), (state.params, student)),
        "decoder, with gradients": (jax.grad(summed(decode), (0, 1)), (state.params, features)),
    }
    if method.guided:
        crop = next(iter(views.streams.values()))
        runs["labels of CLIP, one crop"] = (guidance, (frozen, state, crop))
    return {
        name: 1e3 * _seconds(jax.jit(f), *given, steps=steps) for name, (f, given) in runs.items()
    }


def _by_compiler(compiled: jax.stages.Compiled) -> dict[str, float | None]:
    """What the compiler says of a program: memory, and bytes that its operations read and write."""
    memory = compiled.memory_analysis()
    whole = memory and (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    costs = compiled.cost_analysis() or {}
    return {
        "temporary_gib": memory and memory.temp_size_in_bytes / 2**30,
        "program_gib": memory and whole / 2**30,
        "gb_accessed": costs.get("bytes accessed", 0.0) / 1e9 or None,
    }


@functools.cache
def matmul_rate(dtype: str) -> float:
    """Operations per second of a large square matrix product in this precision.

    Of random numbers: with constants GPUs need less power and are faster.
    """
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    best = min(_seconds(jax.jit(jnp.matmul), a, a, steps=1) for _ in range(5))
    return 2.0 * side**3 / best


def _seconds(function: Callable, *arguments: Any, steps: int) -> float:
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(steps):
        start = time.monotonic()
        jax.block_until_ready(function(*arguments))
        times.append(time.monotonic() - start)
    return statistics.median(times)


def _peak_bytes() -> int:
    """Of the device where it counts them, else of the process."""
    of_device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in of_device:
        return of_device["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def format_result(result: dict[str, Any]) -> str:
    """The measurement as text."""
    temporary = result["temporary_gib"]
    lines = [
        f"{result['config']} {' '.join(result['changes'])} on {result['device']}",
        f"compiled in {result['compile_s']:.1f} s",
        f"{result['ms_per_step']:.0f} ms per step, {result['images_per_s']:.2f} images/s",
        f"{result['tflop']:.3f} TFLOP per step, {100 * result['utilization']:.1f} % of the rate of a matrix "
        f"product ({result['matmul_tflop_per_s']:.3f} TFLOP/s)",
        f"peak {result['peak_gib']:.2f} GiB, of it temporary "
        + ("-" if temporary is None else f"{temporary:.2f} GiB"),
    ]
    lines += [f"  {name:<26}{ms:8.0f} ms" for name, ms in result.get("breakdown_ms", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    utils.use_huge_pages()
    main()
