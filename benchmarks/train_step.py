"""Time, memory and operations of a training step on this machine, with made-up data.

    python -m benchmarks.train_step --config=voc --set=data.crop=256 --set=batch=1
    python -m benchmarks.train_step --config=configs/demo.py --breakdown --out=step.json

`--config` is a published recipe by name (voc, coco, ade20k, cityscapes) or FILE[:ARGUMENT]. Printed are the
compile time, milliseconds per step (median of the steps after the first), images per second, operations by
formula (benchmarks.model_flops) and as XLA counts them, the share of a measured matrix product's rate that
the formula's operations reach (MFU), and the peak memory. Needs jax, flax, optax and what they bring; see
benchmarks.stand_ins.
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

from benchmarks import stand_ins

stand_ins.install()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmarks import model_flops, workload  # noqa: E402
from semivl_jax import host_memory, utils  # noqa: E402
from semivl_jax.train import param_groups as groups_lib  # noqa: E402
from semivl_jax.train import programs, sharding  # noqa: E402
from semivl_jax.train import step as step_lib  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("benchmarks.train_step", __doc__)
    option = made.add_argument
    option("--config", default="voc", help="published recipe, or FILE[:ARGUMENT]")
    option("--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field")
    option("--steps", type=int, default=5, help="steps that are timed, after one that is not")
    option("--breakdown", action="store_true", help="also time the parts of the step alone")
    option("--cache", default="", help="folder of the compilation cache; default: none")
    option("--out", help="the results as JSON")
    return made


def main() -> None:
    """Measures, prints, writes."""
    options = parser().parse_args()
    host_memory.give_back_after_compiling()
    if options.cache:
        jax.config.update("jax_compilation_cache_dir", options.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    try:
        work = workload.build(workload.load_config(options.config, options.set))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    settings = {"config": options.config, "changes": options.set}
    result = settings | measure(work, steps=options.steps)
    if options.breakdown:
        result["breakdown_ms"] = breakdown(work, steps=options.steps)
    print(format_result(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1))


def measure(work: workload.Workload, *, steps: int) -> dict[str, Any]:
    """Compiles the step and runs it 1 + `steps` times."""
    constants, state, batch = work.random_arguments()
    mesh = sharding.make_mesh(jax.devices()[:1])
    start = time.monotonic()
    compiled, _ = programs.Step(work.parts, mesh, state).compile(constants, state, batch)
    compile_s = time.monotonic() - start
    times = []
    for _ in range(1 + steps):
        start = time.monotonic()
        state, metrics = compiled(constants, state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.monotonic() - start)
    peak = _peak_bytes()  # before the ceiling's own arrays
    seconds = statistics.median(times[1:])
    images = work.config.batch * (2 if work.config.method.semi_supervised else 1)
    by_formula = model_flops.step_flops(work)
    ceiling = matmul_rate(work.config.dtype)
    mfu = sum(by_formula.values()) / seconds / ceiling if by_formula else None
    device = jax.devices()[0]
    memory = compiled.memory()
    return {
        "device": device.device_kind,
        "glibc_tunables": os.environ.get(host_memory.TUNABLES, ""),
        "jax": jax.__version__,
        "compile_s": compile_s,
        "first_step_s": times[0],
        "ms_per_step": 1e3 * seconds,
        "images_per_s": images / seconds,
        "model_tflop": by_formula and {name: f / 1e12 for name, f in by_formula.items()},
        "xla_tflop": compiled.operations() / 1e12,
        "matmul_tflop_per_s": ceiling / 1e12,
        "mfu": mfu,
        "peak_gib": peak / 2**30,
        "temporary_gib": memory and memory.temporary / 2**30,
        "loss": float(metrics["loss"]),
    }


def breakdown(work: workload.Workload, *, steps: int) -> dict[str, float]:
    """Milliseconds of parts of the step, each compiled and run alone."""
    constants, state, batch = work.random_arguments()
    parts, segmenter = work.parts, work.parts.segmenter
    views = jax.jit(functools.partial(step_lib.draw, parts))(state, batch)[0]
    supervised = views.unlabelled is None
    image = views.x if supervised else views.unlabelled.w
    crowd = jnp.concatenate([image] * (1 if supervised else model_flops.STUDENT_IMAGES))

    def apply(trained: Any, *arguments: Any, method: str) -> Any:
        tree = {"params": groups_lib.merge(trained, state.frozen), "batch_stats": state.batch_stats}
        return segmenter.apply(tree, *arguments, method=method)

    def encoded(trained: Any, image: Any) -> Any:
        return apply(trained, image, method="encode").replace(pooled=None)

    def decoded(trained: Any, features: Any) -> Any:
        return apply(trained, features, constants.text, method="decode")

    def summed(function: Callable) -> Callable:
        def total(*arguments: Any) -> Any:
            leaves = jax.tree.leaves(function(*arguments))
            return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves)

        return total

    features = jax.jit(encoded)(state.trained, crowd)
    wide = features
    if not supervised:
        wide = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[: len(image)]]), features)
    runs = {
        "views": (lambda s, b: step_lib.draw(parts, s, b), (state, batch)),
        "towers, with gradients": (jax.grad(summed(encoded)), (state.trained, crowd)),
        "decoder, with gradients": (jax.grad(summed(decoded), (0, 1)), (state.trained, wide)),
    }
    if not supervised:
        teach = functools.partial(step_lib.pseudo_label, parts)
        runs["teacher"] = (teach, (constants, state.teacher(), image))
    if parts.guidance_tower is not None:
        guide = functools.partial(step_lib.guidance_label, parts)
        runs["guidance"] = (guide, (constants, image, views.unlabelled.ignore))
    return {
        name: 1e3 * _seconds(jax.jit(f), *given, steps=steps) for name, (f, given) in runs.items()
    }


def matmul_rate(dtype: str) -> float:
    """Operations per second of a large square matrix product in this precision."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
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
    """Of the device where it counts, else of the process."""
    statistics_of_device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics_of_device:
        return statistics_of_device["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def format_result(result: dict[str, Any]) -> str:
    """The measurement for people."""
    formula = result["model_tflop"]
    parts = ", ".join(f"{name} {value:.3f}" for name, value in (formula or {}).items())
    temporary = result["temporary_gib"]
    lines = [
        f"{result['config']} {' '.join(result['changes'])} on {result['device']}",
        f"compiled in {result['compile_s']:.1f} s",
        f"{result['ms_per_step']:.0f} ms per step, {result['images_per_s']:.2f} images/s",
        f"model {sum(formula.values()):.3f} TFLOP ({parts})" if formula else "model: no formula",
        f"XLA counts {result['xla_tflop']:.3f} TFLOP",
        f"matrix product {result['matmul_tflop_per_s']:.3f} TFLOP/s",
        "MFU -" if result["mfu"] is None else f"MFU {100 * result['mfu']:.1f} %",
        f"peak {result['peak_gib']:.2f} GiB, of it temporary "
        + ("-" if temporary is None else f"{temporary:.2f} GiB"),
    ]
    for name, value in result.get("breakdown_ms", {}).items():
        lines.append(f"  {name:<26}{value:8.0f} ms")
    return "\n".join(lines)


if __name__ == "__main__":
    host_memory.restart_with_huge_pages()
    main()
