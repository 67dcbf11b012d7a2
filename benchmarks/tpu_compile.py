"""Compiles the whole training step for TPUs, without one, and prints what it would take.

    python -m benchmarks.tpu_compile --recipes=voc,ade20k --targets=v5e-8,v6e-8 --out=tpu_compile.json

The TPU compiler is a Python package (extra `tpu_compile`) that runs on x86 Linux. For every recipe (voc,
coco, ade20k, cityscapes, or FILE[:ARGUMENT]) and target this compiles the sharded training step and one
window batch of the evaluation in bfloat16 at the global batch of the recipe. It prints per device: memory
(arguments + temporary + program), operations of matrix products and convolutions, bytes moved between HBM and
chip and the share of them that is padding (hbm_traffic.py), the least time that each of the two takes, and
the collectives. Compiling a training step takes 5 to 40 minutes of one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks import hbm_traffic, workload
from semivl_jax import utils
from semivl_jax.experiment import flops
from semivl_jax.train import sharding
from semivl_jax.train.step import jit_train_step

GIB = 2**30
PRECISION = "default"  # of matrix products on a TPU: one bfloat16 pass


@dataclasses.dataclass(frozen=True)
class Target:
    """A TPU slice: its name for the compiler; per chip GiB of memory, bfloat16 TFLOP/s and HBM GB/s."""

    topology: str
    options: dict[str, Any]
    memory: float
    peak: float
    bandwidth: float


# From the public system architecture pages of Cloud TPU (cloud.google.com/tpu/docs).
TARGETS = {
    "v4-8": Target("v4:2x2x1", {"chip_config_name": "megacore"}, 32, 275, 1200),
    "v5e-8": Target("v5e:2x4", {}, 16, 197, 819),
    "v5e-32": Target("v5e:4x8", {}, 16, 197, 819),
    "v6e-8": Target("v6e:2x4", {}, 32, 918, 1600),
}

_COLLECTIVES = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.tpu_compile", __doc__)
    option = command.add_argument
    option("--recipes", default=",".join(workload.RECIPES), help="recipes, or FILE[:ARGUMENT]")
    option("--targets", default="v5e-8,v6e-8,v4-8", help="machines to compile for")
    option("--parts", default="train,evaluate", help="functions to compile")
    option(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a field of every recipe"
    )
    option("--out", default="tpu_compile.json", help="the results as JSON")
    option("--dump", default="", help="folder for the optimised programs, to read")
    return command


def main() -> None:
    """Compiles everything, prints a line for each, and writes the file after every one."""
    options = parser().parse_args()
    rows = []
    print(HEADER, flush=True)
    for recipe in split_recipes(options.recipes):
        for name in options.targets.split(","):
            for part in options.parts.split(","):
                row = compile_one(recipe, name, part, options.set, dump=options.dump)
                rows.append(row)
                print(format_row(row), flush=True)
                Path(options.out).write_text(json.dumps(rows, indent=1))


def split_recipes(text: str) -> list[str]:
    """Recipes between commas. ARGUMENT may have commas too, but no name of a recipe alone after one."""
    starts = "|".join([*workload.RECIPES, r"[^,]*\.py"])
    return re.split(rf",(?=(?:{starts})(?:[:,]|$))", text)


def devices_of(target: Target) -> list[jax.Device]:
    """The devices of a slice, for compiling only. ValueError without the compiler's package."""
    # Nothing is run, so the compiler need not ask the metadata server or lock the TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=target.topology, **target.options
        )
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"no TPU compiler ({error}); install the extra `tpu_compile`") from error
    return list(description.devices)


def compile_one(
    recipe: str, target_name: str, part: str, changes: list[str], *, dump: str = ""
) -> dict[str, Any]:
    """Compiles "train" or "evaluate" of a recipe for a target; returns a row of the table.

    `dump` is a folder for the optimised program as text; empty: none.
    """
    target = TARGETS[target_name]
    config = workload.load_config(recipe, ["dtype=bfloat16", *changes])
    devices = devices_of(target)
    # A pod slice needs an image per device.
    shards = sharding.batch_shards(sharding.make_mesh(devices, **config.mesh))
    config.batch = max(config.batch, shards * config.accumulation)
    work = workload.build(config)
    traced = {"train": trace_train, "evaluate": trace_evaluate}[part](work, devices)
    row = {
        "recipe": recipe, "target": target_name, "part": part, "devices": len(devices),
        "batch": config.batch, "changes": changes, "limit_gib": target.memory,
    }  # fmt: skip
    start = time.monotonic()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needs = re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm", str(error))
        if needs is None:
            raise
        return row | {"fits": False, "needs_gib": float(needs[1]), "limit_gib": float(needs[2])}
    if dump:
        name = f"{Path(recipe).stem}-{target_name}-{part}.txt"
        utils.write_text(Path(dump) / name, compiled.as_text())
    row |= {"fits": True, "compile_s": time.monotonic() - start}
    operations = flops.of_traced(traced) / len(devices)
    return row | analysis(compiled, target, operations)


def trace_train(work: workload.Workload, devices: list[jax.Device]) -> jax.stages.Traced:
    """The training step, sharded as in training, with donated state."""
    config = work.config
    mesh = sharding.make_mesh(devices, **config.mesh)
    sharding.check_batch(config.batch, mesh, accumulation=config.accumulation)
    frozen, state, batch = work.abstract_arguments(mesh)
    with jax.default_matmul_precision(PRECISION):
        return jit_train_step(work.modules, mesh, state).trace(frozen, state, batch)


def trace_evaluate(work: workload.Workload, devices: list[jax.Device]) -> jax.stages.Traced:
    """The network of the evaluation on one batch of windows."""
    mesh = sharding.make_mesh(devices)
    arguments = work.frozen.text, work.abstract_state().student()
    text, variables = workload.placed(arguments, sharding.replicated(mesh))
    windows = -(-work.config.evaluation.window_batch // len(devices)) * len(devices)
    side = work.config.data.crop
    images = jax.ShapeDtypeStruct((windows, side, side, 3), jnp.float32)
    images = workload.placed(images, sharding.batch_sharding(mesh))

    def network(variables: Any, text: Any, images: jax.Array) -> jax.Array:
        return work.modules.model.apply(variables, images, text)

    with jax.default_matmul_precision(PRECISION):
        return jax.jit(network).trace(variables, text, images)


def analysis(compiled: jax.stages.Compiled, target: Target, operations: float) -> dict[str, Any]:
    """The compiler's numbers for a program, per device.

    `operations` are given, because the compiler counts those in loops only once.
    """
    memory, text = compiled.memory_analysis(), compiled.as_text()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes
    needed += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    needed += memory.generated_code_size_in_bytes
    moved = hbm_traffic.of_program(text)
    return {
        "temporary_gib": memory.temp_size_in_bytes / GIB,
        "needs_gib": needed / GIB,
        "tflop": operations / 1e12,
        "gb_accessed": compiled.cost_analysis()["bytes accessed"] / 1e9,
        "hbm_gb": moved.stored / 1e9,
        "padding": moved.padding,
        "compute_ms": operations / target.peak / 1e9,
        "memory_ms": moved.stored / target.bandwidth / 1e6,
        "collectives": dict(Counter(_COLLECTIVES.findall(text))),
    }


HEADER = (
    f"{'recipe':<12}{'target':<8}{'part':<10}{'batch':>6}{'GiB/device':>12}{'limit':>7}{'temp.':>8}"
    f"{'TFLOP':>8}{'HBM GB':>8}{'padding':>9}{'compute':>9}{'memory':>9}  collectives"
)


def format_row(row: dict[str, Any]) -> str:
    """A line of the table; of a program that does not fit only its memory."""
    head = (
        f"{Path(row['recipe']).stem:<12}{row['target']:<8}{row['part']:<10}{row['batch']:>6}"
        f"{row['needs_gib']:>12.2f}{row['limit_gib']:>7.1f}"
    )
    if not row["fits"]:
        return head + "  does not fit"
    collectives = ", ".join(f"{count} {name}" for name, count in row["collectives"].items())
    return head + (
        f"{row['temporary_gib']:>8.2f}{row['tflop']:>8.2f}{row['hbm_gb']:>8.1f}{row['padding']:>9.0%}"
        f"{row['compute_ms']:>6.1f} ms{row['memory_ms']:>6.1f} ms  {collectives}"
    )


if __name__ == "__main__":
    main()
