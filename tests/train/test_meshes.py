"""One device, eight in any arrangement, and parts one after another: the same training.

After some steps losses, weights and their average agree within 1e-5 while the weights moved by more than
fifty times that. Three choices make this robust: SGD, whose steps are as exact as the gradients (Adam turns
rounding of tiny gradients into full steps); `pixelavg`, which has no threshold near which rounding decides;
and a small rate, because in an untrained network rounding may decide between the two best classes of a pixel,
which changes the gradient by about one part in the 8192 pixels.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from semivl_jax.models import mesh_axes
from semivl_jax.models.vlg_decoder import VLGDecoder
from semivl_jax.train import sharding
from semivl_jax.train.augment.views import make_views
from semivl_jax.train.step import compute_gradients
from semivl_jax.types import ClassText, Features
from tests import served
from tests.train import tiny_experiment
from tests.train.tiny_experiment import batch_of, step_of

STEPS = 3
SETTINGS = {"optim__name": "sgd", "optim__lr": 0.002}
SMOOTH = {"method__threshold": "soft_match", "method__balance_classes": False,
          "method__boundary_weight": 0.0}  # fmt: skip
"""CW-BASS without a threshold."""
OTHERS = {
    "cw_bass": {**SMOOTH, "method": "cw_bass", "method__calibrate": True},
    "cw_bass_semivl": {**SMOOTH, "method": "cw_bass_semivl"},
    "semi_ovs_semivl": {"method": "semi_ovs_semivl"},
    "ripu_semivl": {
        "method": "ripu_semivl",
        "guidance__dense": "svc",
        "guidance__scores": "surgery",
    },
    "semivl_dino": {
        **tiny_experiment.DINO,
        "method": "semivl",
        "model__out_indices": (1, 3),
        "model__similarity": "clip",
    },
    "co2s": {**tiny_experiment.TWO_STUDENTS, "method": "co2s", "method__confidence_threshold": 0.0},
}
"""Further methods that must not depend on the arrangement of the devices."""
IN_PARTS = {
    **{name: OTHERS[name] for name in ("cw_bass", "semi_ovs_semivl", "ripu_semivl", "co2s")},
    "unimatch_v2": {"method": "unimatch_v2", "method__cutmix_partner": "same_image",
                    "method__teacher": "student"},
    "zegclip": {"method": "zegclip", "method__dropout_passes": "none"},
}  # fmt: skip
"""Those with labels, noise or losses of their own; SemiVL's: test_parts_one_after_another."""


def build(devices, *, method=None, **fields):
    smooth = method == "supervised" or SMOOTH["method__threshold"] in fields.values()
    pixelavg = {} if smooth else {"method__confidence_mode": "pixelavg"}
    return tiny_experiment.build(devices, method=method, **{**SETTINGS, **pixelavg, **fields})


def train(devices, **fields):
    return trained(build(devices, **fields))


def trained(built):
    """(state before, losses by name and step, state after); the first two on the host."""
    state, step = built.init_state(), step_of(built)
    before, lines = jax.device_get(state), []
    for seed in range(STEPS):
        state, metrics = step(state, batch_of(built, seed))
        lines.append(jax.device_get(metrics))
    losses = {name: [float(line[name]) for line in lines] for name in lines[0]}
    return before, losses, state


@pytest.fixture(scope="module")
def alone():
    return train(1)


def assert_same(found, expected, *, terms=1):
    """Starts equal, everything afterwards within 1e-5; the total of so many losses within 1e-5 for each."""
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name in (
        name for name in expected[1] if re.match("loss|guidance_s1|confident|calib", name)
    ):
        values = expected[1][name]
        atol = 1e-5 * (terms if name == "loss" else 1)
        np.testing.assert_allclose(found[1][name], values, atol=atol, rtol=0, err_msg=name)
    ours, theirs = (
        jax.tree_util.tree_leaves_with_path(one[2].replace(opt_state=None))
        for one in (found, expected)
    )
    for (path, leaf), (_, other) in zip(ours, theirs, strict=True):
        name = sharding.path_name(path)
        np.testing.assert_allclose(leaf, other, atol=1e-5, rtol=0, err_msg=name)


def moved(result):
    before, after = result[0].params, jax.device_get(result[2].params)
    return max(
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)
    )


@pytest.mark.slow
def test_batch_parameters_and_classes_split_over_devices(alone):
    found = train(8, mesh__data=2, mesh__fsdp=2, mesh__classes=2)
    assert_same(found, alone)
    assert moved(alone) > 5e-4
    state = found[2]
    for part in (state.params, state.ema_params, state.frozen_params, state.opt_state):
        leaves = jax.tree_util.tree_leaves_with_path(part)
        split = [leaf for _, leaf in leaves if leaf.sharding.spec != P()]
        # Only small leaves are whole on every device.
        assert sum(leaf.size for leaf in split) > 0.8 * sum(leaf.size for _, leaf in leaves)
        assert all(leaf.addressable_shards[0].data.size * 2 == leaf.size for leaf in split)


@pytest.mark.parametrize(("classes", "spec"), [(1, P(("data", "fsdp"))), (2, P(mesh_axes.AXES))])
def test_maps_of_images_and_classes_lie_on_all_axes(classes, spec):
    mesh = sharding.make_mesh(jax.devices(), fsdp=2, classes=classes)
    images = jax.device_put(jnp.ones((8, 3)), sharding.batch_sharding(mesh))

    def maps(images):
        return mesh_axes.over_classes(jnp.repeat(images, 4, axis=0))

    assert jax.jit(sharding.on_mesh(maps, mesh))(images).sharding.spec[0] == spec[0]


def test_the_decoder_splits_its_maps():
    decoder = VLGDecoder(
        channels=16, text_channels=16, up_channels=(), skip_channels=(), num_layers=0
    )
    text = ClassText(jnp.eye(4, 8), jnp.arange(4), 4)
    features = Features(maps=(jnp.ones((8, 4, 4, 8)),))

    def traced(classes):
        mesh = sharding.make_mesh(jax.devices(), classes=classes)
        init = sharding.on_mesh(lambda key: decoder.init(key, features, text), mesh)
        return str(jax.make_jaxpr(init)(jax.random.key(0)))

    assert "sharding_constraint" in traced(2)
    assert "sharding_constraint" not in traced(1)


@pytest.mark.slow
def test_parts_one_after_another(alone):
    """On four devices, two of which share parameters: each gives one of its two images to every part."""
    found = train(4, mesh__fsdp=2, accumulation=2)
    assert_same(found, alone)


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_other_methods_split_over_devices(case):
    found, alone = (train(count, **OTHERS[case]) for count in (8, 1))
    assert_same(found, alone)
    assert moved(alone) > 5e-4


@pytest.mark.slow
def test_distillation_splits_over_devices(tmp_path):
    teacher = str(served.make(tmp_path / "run", info=tiny_experiment.INFO))
    fields = {**SETTINGS, "method": "mgd", "method__teacher": f"{teacher},{teacher}"}
    # A loss near 100 has no digits for the tolerance, and five losses are added up that others halve.
    fields |= {"method__region_weight": 1.0, "optim__lr": SETTINGS["optim__lr"] / 8}
    found, alone = (trained(tiny_experiment.build(count, **fields)) for count in (8, 1))
    assert_same(found, alone, terms=5)
    assert moved(alone) > 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("case", IN_PARTS)
def test_gradients_of_parts_add_up(case):
    """The gradients agree but for ties of labels (above). `Toy` (test_methods) accumulates without labels."""
    fields, found = IN_PARTS[case], []
    for parts in (1, 4):
        built = build(1, accumulation=parts, **fields)
        # With key 0, labels of unimatch_v2 are ties.
        views = jax.jit(make_views)(jax.random.key(1), batch_of(built))
        compute = jax.jit(functools.partial(compute_gradients, built.modules))
        found.append(compute(built.frozen, built.init_state(), views, jax.random.key(1)))
    whole, summed = jax.device_get(found)
    assert summed.metrics.keys() == whole.metrics.keys()
    for name, value in whole.metrics.items():
        np.testing.assert_allclose(summed.metrics[name], value, rtol=1e-5, err_msg=name)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole.params))
    for one, other in zip(*map(jax.tree.leaves, (summed.params, whole.params)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3 * largest, rtol=0)


def test_parts_keep_what_devices_have_and_join_again():
    mesh = sharding.make_mesh(jax.devices()[:4], fsdp=2)
    images = np.arange(16)
    split, joined = jax.jit(
        sharding.on_mesh(
            lambda x: (sharding.split_batch(x, 2), sharding.join_batch(sharding.split_batch(x, 2))),
            mesh,
        )
    )(jax.device_put(images, sharding.batch_sharding(mesh)))
    np.testing.assert_array_equal(split, [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]])
    np.testing.assert_array_equal(joined, images)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("params/backbone/block/query/kernel", (768, 12, 64), P("fsdp", None, None)),
        ("opt_state/0/0/mu/decoder/up1/conv/kernel", (3, 3, 128, 64), P(None, None, None, "fsdp")),
        ("ema_params/decoder/head/kernel", (3, 3, 32, 1), P(None, None, "fsdp", None)),
        ("frozen_params/backbone/pos_embedding", (1, 1025, 768), P(None, None, "fsdp")),
        ("params/decoder/odd/kernel", (3, 5), P()),
        ("params/backbone/pre_norm/scale", (768,), P()),
        ("step", (), P()),
    ],
)
def test_rules_of_sharding(path, shape, expected):
    assert sharding.spec(path, shape, fsdp=8) == expected
    assert sharding.spec(path, shape, fsdp=1) == P()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, r"mesh.data = -1, mesh.fsdp = 3 and mesh.classes = 1 do not multiply to the 8 "
         r"devices of this run; choose mesh.fsdp and mesh.classes whose product divides 8"),
        ({"data": 2, "fsdp": 2}, r"do not multiply to the 8 devices .*; set mesh.data = -1 or 4"),
        ({"fsdp": 0}, r"mesh.fsdp = 0 must be 1 or more"),
        ({"data": 0}, r"mesh.data = 0 must be 1 or more or -1"),
    ],
)  # fmt: skip
def test_axes_that_do_not_fit_the_devices(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.mesh_shape(devices=8, **sizes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 12}, r"batch = 12 cannot be split over 8 devices; use 8 or 16, or fewer devices"),
        ({"accumulation": 2}, r"batch = 8 cannot be split over 8 devices in 2 parts \(accumulation\); use "
         r"16, or fewer parts"),
        ({"mesh__classes": 8, "mesh__data": 1, "text__decoder": "name"},
         r"mesh.classes = 8 does not divide the 4 texts .*; choose 2"),
        ({"model__decoder": "deeplab", "model__out_indices": (1, 2), "accumulation": 2, "batch": 16},
         r"accumulation = 2 would normalise every part .* in decoder, which has BatchNorm"),
    ],
)  # fmt: skip
def test_batches_and_models_that_the_devices_cannot_share(fields, message):
    with pytest.raises(ValueError, match=message):
        build(8, **fields)


def test_without_a_mesh_there_are_no_constraints():
    x = jnp.ones((4, 2))
    assert mesh_axes.over_classes(x) is x
    assert sharding.all_gather({"kernel": x})["kernel"] is x
    assert sharding.reshard({"kernel": x})["kernel"] is x
