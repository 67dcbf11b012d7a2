"""The training step on a mesh as two compiled programs: one finds the gradients, one updates with them.

The cut costs no time: no update can begin before all gradients are known, because a step that is not finite
changes nothing. The gradients lie in memory between the two, a tenth of a GiB for ViT-B/16. XLA's CPU runtime
reads a kept program in a time that grows faster than its length (docs/performance.md), and two are read side
by side.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.stages import Compiled, Traced

from semivl_jax import compilation
from semivl_jax.train import sharding
from semivl_jax.train.objective import Metrics
from semivl_jax.train.outcome import Outcome
from semivl_jax.train.recipe import Parts
from semivl_jax.train.state import Constants, TrainState
from semivl_jax.train.step import apply_outcome, find_outcome
from semivl_jax.types import Batch

_GIB = 2**30


class Memory(NamedTuple):
    """Bytes of a device while a step runs: all together, and those of intermediate results."""

    total: int
    temporary: int


class CompiledStep(NamedTuple):
    """`find(constants, state, batch) -> Outcome` and `update(state, outcome) -> (state, metrics)`.

    The state is donated to `update` and stays where it rests; metrics come to every device.
    """

    find: Compiled
    update: Compiled

    def __call__(
        self, constants: Constants, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """State after the update, and metrics."""
        return self.update(state, self.find(constants, state, batch))

    def described(self) -> str:
        """Operations and memory in words; what a backend does not tell is left out."""
        facts = []
        operations = self.operations()
        if operations > 0:
            facts.append(f"{operations / 1e9:,.4g} GFLOP")
        memory = self.memory()
        if memory is not None:
            total, temporary = (size / _GIB for size in memory)
            facts.append(f"{total:.2f} GiB per device, {temporary:.2f} of them temporary")
        return "; ".join(facts)

    def operations(self) -> float:
        """Floating-point operations of a device as the compiler counts them; 0 where it does not."""
        costs = [program.cost_analysis() or {} for program in self]
        return sum(max(0.0, cost.get("flops", 0.0)) for cost in costs)

    def memory(self) -> Memory | None:
        """Of constants, state, batch and both programs; None where the backend does not tell."""
        find, update = (program.memory_analysis() for program in self)
        if find is None or update is None:
            return None
        # The arguments of `find` are all that rests, and its outcome is an argument of `update`.
        resting = find.argument_size_in_bytes + find.output_size_in_bytes
        new = update.output_size_in_bytes - update.alias_size_in_bytes
        temporary = max(find.temp_size_in_bytes, update.temp_size_in_bytes + new)
        code = sum(each.generated_code_size_in_bytes for each in (find, update))
        return Memory(resting + temporary + code, temporary)


class Step:
    """Both programs, jitted for a mesh; `state` may be abstract."""

    def __init__(self, parts: Parts, mesh: Mesh, state: TrainState) -> None:
        def find(constants: Constants, state: TrainState, batch: Batch) -> Outcome:
            outcome = find_outcome(parts, constants, state, batch)
            return jax.lax.with_sharding_constraint(outcome, sharding.shardings(mesh, outcome))

        update = functools.partial(apply_outcome, parts)
        after = (sharding.shardings(mesh, state), sharding.replicated(mesh))
        self._mesh = mesh
        # The optimiser's state is not used by `find`, but counts to what a device holds while it runs.
        self._find = jax.jit(sharding.on_mesh(find, mesh), keep_unused=True)
        self._update = jax.jit(
            sharding.on_mesh(update, mesh), donate_argnums=0, out_shardings=after
        )

    def __call__(
        self, constants: Constants, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """State after the update, and metrics; compiles for the first arguments of their kind."""
        return self._update(state, self._find(constants, state, batch))

    def trace(self, constants: Constants, state: TrainState, batch: Batch) -> tuple[Traced, Traced]:
        """Both programs for arguments of these shapes, dtypes and places, `find` first."""
        find = self._find.trace(constants, state, batch)
        return find, self._update.trace(state, self._outcome(find))

    def compile(
        self,
        constants: Constants,
        state: TrainState,
        batch: Batch,
        *,
        kept: Mapping[str, compilation.ReadAhead] | None = None,
        built_from: Any = None,
    ) -> tuple[CompiledStep, str]:
        """The step for such arguments, and one line on how it was come by and what it takes.

        `kept` holds what is being read, by the names in `compilation.STEP`; `built_from` as for
        `compilation.ahead`.
        """
        kept = kept or {}
        ahead = functools.partial(compilation.ahead, built_from=built_from)
        gradients, update = compilation.STEP
        find, found = ahead(self._find, constants, state, batch, kept=kept.get(gradients))
        outcome = self._outcome(find)
        apply, applied = ahead(self._update, state, outcome, kept=kept.get(update))
        step = CompiledStep(find, apply)
        return step, f"{gradients} {found}, {update} {applied}; {step.described()}"

    def _outcome(self, find: Traced | Compiled) -> Outcome:
        return sharding.abstract(self._mesh, find.out_info)
