import jax.numpy as jnp
import numpy as np
import optax

from semivl_jax.train import ema, optimizer
from semivl_jax.train.param_groups import Group

GROUPS = (Group("slow", "a/.*", 0.1), Group("fast", "b/.*", 10.0))


def params():
    return {"a": {"w": jnp.array([1.0, -2.0])}, "b": {"w": jnp.array([3.0])}}


def grads():
    return {"a": {"w": jnp.array([0.5, 0.25])}, "b": {"w": jnp.array([-2.0])}}


def test_schedule_is_applied_after_each_step_with_that_steps_index():
    schedule = optimizer.polynomial_schedule(lr=2.0, total_steps=10, power=0.9)
    factors = [float(schedule(i)) / 2.0 for i in range(11)]
    expected = [1.0] + [(1 - i / 10) ** 0.9 for i in range(10)]
    np.testing.assert_allclose(factors, expected, rtol=1e-6)


def test_schedule_never_goes_below_zero_after_the_end():
    schedule = optimizer.polynomial_schedule(lr=1.0, total_steps=4, power=0.9)
    assert float(schedule(9)) == 0.0


def test_warm_up_replaces_the_first_indices_by_a_line():
    schedule = optimizer.polynomial_schedule(
        lr=1.0, total_steps=10, power=1.0, warmup_steps=4, warmup_ratio=0.2
    )
    factors = [float(schedule(i)) for i in range(7)]
    np.testing.assert_allclose(factors, [1.0, 0.2, 0.4, 0.6, 0.8, 0.6, 0.5], rtol=1e-6)


def test_first_adamw_step_in_closed_form():
    tx = optimizer.build(params(), GROUPS, lambda _: 0.01, name="adamw", weight_decay=0.1)
    updates, _ = tx.update(grads(), tx.init(params()), params())
    # The bias-corrected first step is g/(|g| + eps); decay is times the group's learning rate.
    for name, lr in (("a", 0.001), ("b", 0.1)):
        g, p = np.asarray(grads()[name]["w"]), np.asarray(params()[name]["w"])
        # 1 − β₂ = 0.001 is known in float32 to 6e-5 of itself, its root to half of that.
        np.testing.assert_allclose(
            updates[name]["w"], -lr * (g / (np.abs(g) + 1e-8) + 0.1 * p), rtol=3e-5
        )


def test_two_sgd_steps_in_closed_form():
    tx = optimizer.build(params(), GROUPS, lambda _: 0.1, name="sgd", weight_decay=0.2)
    state, weights = tx.init(params()), params()
    momentum = {"a": 0.0, "b": 0.0}
    expected = {name: np.asarray(leaf["w"]) for name, leaf in params().items()}
    for _ in range(2):
        updates, state = tx.update(grads(), state, weights)
        weights = optax.apply_updates(weights, updates)
        for name, lr in (("a", 0.01), ("b", 1.0)):
            g = np.asarray(grads()[name]["w"]) + 0.2 * expected[name]
            momentum[name] = 0.9 * momentum[name] + g
            expected[name] = expected[name] - lr * momentum[name]
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name]["w"], value, rtol=1e-5)


def test_teacher_starts_at_the_student_and_ends_at_the_ceiling():
    decays = [float(ema.ema_decay(jnp.asarray(i), ceiling=0.996)) for i in (0, 1, 2, 249, 10**6)]
    np.testing.assert_allclose(decays, [0.0, 0.5, 2 / 3, 0.996, 0.996], rtol=1e-6)


def test_average_of_leaves():
    old, new = {"w": jnp.array([1.0, 3.0])}, {"w": jnp.array([2.0, 5.0])}
    mixed = ema.ema_update(old, new, jnp.asarray(0.75))
    np.testing.assert_allclose(mixed["w"], [1.25, 3.5])
