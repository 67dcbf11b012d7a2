"""Masks, losses and head of MGD against the published code; teachers from trained runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import distill
from semivl_jax.config import validate
from semivl_jax.experiment import trained_run, workdir
from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.resize import bilinear
from semivl_jax.train import distillation, losses, methods
from semivl_jax.train.augment import cutmix
from semivl_jax.train.forward import Outputs
from semivl_jax.train.methods.base import target_losses
from semivl_jax.train.methods.mgd import MGD, TeacherLabels
from semivl_jax.train.pseudo_labels import pseudo_labels
from semivl_jax.types import Features, StreamViews, Views
from semivl_jax.weights.tree import flatten, unflatten
from tests import served
from tests.golden_files import Golden, assert_close, nhwc
from tests.train import tiny_experiment

TOLERANCE = 1e-5
NAME = "methods/mgd"


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(NAME)


def cases(prefix: str = "") -> list[str]:
    names = Golden(NAME).meta["items"]
    return [n for n in names if n != "head" and ("/" in n) == bool(prefix) and n.startswith(prefix)]


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("mask/"))
def test_masks(case, golden):
    meta = golden.meta["items"][case]
    draws = [jnp.asarray(golden[f"in/{case}/draw_{name}"], jnp.float32)
             for name in ("area", "aspect", "pos")]  # fmt: skip
    assert draws[0].shape[1] == meta["kwargs"]["n_boxes"]
    masks_of = jax.jit(cutmix.xor_masks_of, static_argnames="size")
    found = np.asarray(masks_of(*draws, size=tuple(meta["shape"])))
    expected = golden[f"out/{case}/mask"][:, 0].astype(bool)
    np.testing.assert_array_equal(found == meta["kwargs"]["invert"], expected)


def drawn_cases() -> list[str]:
    """Square masks that start empty: no others are drawn in training."""
    items = Golden(NAME).meta["items"]
    return [
        name for name in cases("mask/")
        if len(set(items[name]["shape"])) == 1 and items[name]["kwargs"]["invert"]
    ]  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize("case", drawn_cases())
def test_drawn_masks_have_the_published_statistics(case, golden):
    meta = golden.meta["items"][case]
    options, stats, (rows, cols) = meta["kwargs"], meta["stats"], meta["shape"]
    assert options["prop_range"] == list(cutmix.XOR_AREA)
    draw = jax.jit(lambda key: cutmix.xor_masks(key, 8000, size=rows, boxes=options["n_boxes"]))
    masks = np.asarray(draw(jax.random.key(0)))
    cover = masks.mean((1, 2))
    np.testing.assert_allclose(cover.mean(), stats["mean_cover"], atol=0.004)
    np.testing.assert_allclose(cover.std(), stats["std_cover"], atol=0.004)
    centre = masks[:, rows // 2, cols // 2].mean()
    np.testing.assert_allclose(centre, stats["cover_centre"], atol=0.03)
    assert abs(masks[:, 0, 0].mean() - stats["cover_corner"]) < 0.005


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs and results of the published losses."""

    golden: Golden
    name: str

    @property
    def meta(self):
        return self.golden.meta["items"][self.name]

    def has(self, name):
        kind, _, rest = name.partition("/")
        return f"{kind}/{self.name}/{rest}" in self.golden

    def given(self, name):
        array = self.golden[f"in/{self.name}/{name}"]
        return jnp.asarray(nhwc(array) if array.ndim == 4 and array.dtype != np.uint8 else array)

    def check(self, name, value):
        expected = self.golden[f"out/{self.name}/{name}"]
        if name.startswith(("grad", "pooled", "img")):
            expected = nhwc(expected)
        assert_close(np.asarray(value, expected.dtype), expected, TOLERANCE, f"{self.name} {name}")

    def labels(self):
        """Those of both teachers, mixed: the second half of the batch is the partner of the first."""
        box = self.given("mask")[:, 0].astype(bool)
        twice = jnp.concatenate([box, jnp.zeros_like(box)])
        regions = distillation.region_similarity(self.given("feat_W"))
        mean = self.given("logits_D_mix").mean((1, 2))
        labels = []
        for letter in "WD":
            first, second = (self.given(f"logits_{letter}_u{i}") for i in (0, 1))
            w = pseudo_labels(jnp.concatenate([first, second[::-1]]))
            mixed = jax.tree.map(lambda here: cutmix.mix(twice, here, here[::-1])[: len(box)], w)
            x = pseudo_labels(self.given(f"logits_{letter}_x"))
            labels.append(TeacherLabels(x, mixed, regions, mean))
        return labels


@pytest.fixture
def case(request, golden) -> Case:
    return Case(golden, request.param)


every_case = pytest.mark.parametrize("case", cases(), indirect=True)


@pytest.mark.golden
@every_case
def test_labels_of_the_teachers(case):
    if case.has("in/img_u0"):
        box = case.given("mask")[:, 0].astype(bool)
        case.check("img_mixed", cutmix.mix(box, case.given("img_u0"), case.given("img_u1")))
    labels = case.labels()
    for letter, of_teacher in zip("WD", labels, strict=True):
        case.check(f"pseudo_{letter}_mix", of_teacher.w.label)
        case.check(f"pseudo_{letter}_x", of_teacher.x.label)
    case.check("gap_D", labels[1].mean)
    case.check("selfsim_W", labels[0].regions)


@pytest.mark.golden
@every_case
def test_losses_and_gradients(case):
    meta, labels, y = case.meta, case.labels(), case.given("label_x").astype(jnp.int32)
    method = MGD(
        teacher="wide,deep",
        image_weight=meta["lambda1"],
        region_weight=meta["lambda2"],
        image_reduction="sum",
    )
    no, image = jnp.zeros(y.shape, bool), jnp.zeros((*y.shape, 3))
    still = StreamViews(w=image, s1=image, s2=image, ignore=no)
    views = Views(x=image, y=y, streams={"mixed": still}, boxes={"mixed": no})
    targets = method.targets(labels, views, {}, jnp.zeros(()))

    @jax.jit
    def terms(s_mix, s_x, feat):
        values = target_losses({"x": s_x, "mixed": s_mix}, targets.views)
        outputs = Outputs({"mixed": s_mix}, {"mixed": Features(maps=(feat,))})
        further, metrics = method.losses({}, outputs, labels, views)
        total = further + sum(targets.factors[name] * value for name, value in values.items())
        return total, values | metrics

    student = (case.given("logits_S_mix"), case.given("logits_S_x"), case.given("feat_S"))
    (total, values), grads = jax.value_and_grad(terms, argnums=(0, 1, 2), has_aux=True)(*student)
    weights = {"loss_image": meta["lambda1"], "loss_region": meta["lambda2"]}
    for name, ours in {
        "L_P_mix_W": "loss_mixed_teacher0",
        "L_P_mix_D": "loss_mixed_teacher1",
        "L_P_x_W": "loss_x_teacher0",
        "L_P_x_D": "loss_x_teacher1",
        "L_I": "loss_image",
        "L_R": "loss_region",
        "L_sup": "loss_x",
    }.items():
        case.check(name, weights.get(ours, 1) * values[ours])
    case.check("L_P", sum(value for name, value in values.items() if "teacher" in name))
    case.check("total_student", total)
    for name, grad in zip(("grad_S_mix", "grad_S_x", "grad_feat_S"), grads, strict=True):
        case.check(name, grad)
    if case.has("out/grad_S_mix_from_L_I"):
        of_image = jax.grad(lambda logits: terms(logits, *student[1:])[1]["loss_image"])
        case.check("grad_S_mix_from_L_I", meta["lambda1"] * of_image(student[0]))


@pytest.mark.golden
@every_case
def test_regions_and_ohem_of_the_student(case):
    maps = case.given("feat_S")
    case.check("gap_S", case.given("logits_S_mix").mean((1, 2)))
    case.check("pooled_S", distillation.pooled(maps))
    case.check("selfsim_S", distillation.region_similarity(maps))
    ohem, grad = jax.value_and_grad(losses.ohem)(
        case.given("logits_S_x"), case.given("label_x").astype(jnp.int32),
        threshold=MGD(teacher="any").ohem_threshold, min_kept=case.meta["min_kept"],
    )  # fmt: skip
    case.check("L_sup_ohem", ohem)
    if case.has("out/grad_S_x_from_ohem"):
        case.check("grad_S_x_from_ohem", grad)


HEAD = {  # published name → ours; convolutions first
    "aspp.map_convs.#": "aspp/branch_#",
    "aspp.global_pooling_conv": "aspp/pooled",
    "aspp.red_conv": "aspp/project",
    "aspp.pool_red_conv": "aspp/pooled_project",
    "reduce.0": "low_projection/conv",
    "last_conv.0": "fuse1/conv",
    "last_conv.3": "fuse2/conv",
    "aspp.map_bn": "aspp/branch_norm",
    "aspp.global_pooling_bn": "aspp/pooled_norm",
    "aspp.red_bn": "aspp/norm",
    "reduce.1": "low_projection/norm",
    "last_conv.1": "fuse1/norm",
    "last_conv.4": "fuse2/norm",
}


def head_variables(golden, sizes, state):
    """{"params", "batch_stats"} by path, and those of `state` (changed statistics)."""
    found = {"params": {}, "batch_stats": {}}
    leaves = {"weight": ("params", "scale"), "bias": ("params", "bias"),
              "running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}  # fmt: skip
    names = {
        old.replace("#", str(i)): new.replace("#", str(i))
        for old, new in HEAD.items()
        for i in range(4)
    }
    for old, new in names.items():
        if f"{old}.running_mean" in state:
            for leaf, (collection, name) in leaves.items():
                found[collection][f"{new}/{name}"] = state[f"{old}.{leaf}"]
        else:
            found["params"][f"{new}/kernel"] = state[f"{old}.weight"].transpose(2, 3, 1, 0)
    # Theirs reads (high, low), ours (low, high).
    fuse = found["params"]["fuse1/conv/kernel"]
    high = fuse.shape[2] - sizes["lowout"]
    found["params"]["fuse1/conv/kernel"] = np.concatenate(
        [fuse[:, :, high:], fuse[:, :, :high]], axis=2
    )
    classifier = golden.weights("classifier.")
    found["params"]["classifier/kernel"] = classifier["weight"].transpose(2, 3, 1, 0)
    found["params"]["classifier/bias"] = classifier["bias"]
    return {name: unflatten(tree) for name, tree in found.items()}


@pytest.mark.golden
def test_head(golden):
    sizes, state = golden.meta["items"]["head"], golden.weights("head.")
    model = DeepLabHead(
        sizes["K"],
        channels=sizes["out"],
        low_channels=sizes["lowout"],
        aspp_channels=sizes["hidden"],
        dilations=(1, *sizes["rates"]),
        joint_norm=True,
        align_corners=True,
    )
    variables = head_variables(golden, sizes, state)

    def run(train):
        def apply(*maps):
            return model.apply(
                variables,
                Features(maps=maps),
                train=train,
                capture_intermediates=True,
                mutable=["batch_stats", "intermediates"],
            )

        return jax.jit(apply)

    for case, sides in sizes["inputs"].items():
        low, high = (
            jnp.asarray(nhwc(golden[f"in/head/{case}/{name}"])) for name in ("low", "high")
        )
        for mode in ("eval", "train"):
            prefix = f"out/head/{case}/{mode}"
            logits, changed = run(mode == "train")(low, high)
            inside = changed["intermediates"]
            found = {
                "aspp": inside["aspp"]["__call__"][0],
                "feature": inside["fuse2"]["__call__"][0],
                "pred_low": logits,
                "pred": bilinear(logits, tuple(sides[-2:]), align_corners=True),
            }
            for name, value in found.items():
                if f"{prefix}/{name}" in golden:
                    expected = nhwc(golden[f"{prefix}/{name}"])
                    assert_close(value, expected, TOLERANCE, f"{prefix} {name}")
        after = {k.split("/head.")[1]: golden[k] for k in golden.keys(f"{prefix}/after/")}
        expected = flatten(head_variables(golden, sizes, state | after)["batch_stats"])
        for path, value in flatten(changed["batch_stats"]).items():
            assert_close(value, expected[path], TOLERANCE, f"{case} {path} after training")
        assert expected.keys() == flatten(changed["batch_stats"]).keys()


def test_regions_must_be_permuted_in_both_maps():
    maps = np.random.default_rng(0).normal(size=(2, 2, 7, 7, 3)).astype(np.float32)
    order = np.random.default_rng(1).permutation(49)
    moved = maps.reshape(2, 2, 49, 3)[:, :, order].reshape(maps.shape)
    similar = [[distillation.region_similarity(m) for m in pair] for pair in (maps, moved)]
    loss = distillation.region_loss(*similar[0])
    np.testing.assert_allclose(distillation.region_loss(*similar[1]), loss, rtol=1e-5)
    assert abs(distillation.region_loss(similar[0][0], similar[1][1]) - loss) > 1e-3 * loss
    zero = jnp.zeros((1, 7, 7, 3))  # lengths without a direction
    gradient = jax.grad(lambda m: distillation.region_similarity(m).sum())(zero)
    assert np.isfinite(gradient).all()


def test_a_loss_of_images_is_a_mean_of_the_published_sum():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 3, 5)).astype(np.float32)
    mean, total = (distillation.image_loss(one, other, reduction=r) for r in ("mean", "sum"))
    np.testing.assert_allclose(total, 15 * mean, rtol=1e-6)


def test_settings_are_checked():
    for teacher, count in (("", 0), ("a,b,c", 3)):
        with pytest.raises(ValueError, match=f"names {count} trained runs; name one or two"):
            MGD(teacher=teacher)
    with pytest.raises(ValueError, match=r"method\.image_weight = -1 must be 0 or more"):
        MGD(teacher="a", image_weight=-1)
    with pytest.raises(ValueError, match=r"accumulation = 2 does not go with method\.name = 'mgd'"):
        MGD(teacher="a").check_accumulation(2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the classes of `tiny_experiment`."""
    return served.make(tmp_path_factory.mktemp("runs") / "a", info=tiny_experiment.INFO)


def test_a_teacher_is_a_run_with_the_same_classes(run, tmp_path):
    with pytest.raises(ValueError, match="nowhere holds no model; name the working directory"):
        trained_run.load(str(tmp_path / "nowhere"), info=tiny_experiment.INFO)
    with pytest.raises(
        ValueError, match=r"\(number 3: 'tree', here 'none'\); name a run with the same 3"
    ):
        trained_run.load(str(run), info=served.INFO)
    mixed = dataclasses.replace(tiny_experiment.INFO, classes=("ground", "box", "disc", "tree"))
    with pytest.raises(ValueError, match=r"\(number 1: 'disc', here 'box'\)"):
        trained_run.load(str(run), info=mixed)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_a_teacher_predicts_as_in_its_own_run(run, statistics):
    teacher = trained_run.load(str(run), info=tiny_experiment.INFO)
    image = jax.random.normal(jax.random.key(0), (2, 40, 24, 3))
    arguments = (teacher.model, teacher.variables, teacher.text, image)
    maps, logits = distillation.predict(*arguments, statistics=statistics)
    own = jax.jit(teacher.model.apply)(teacher.variables, image, teacher.text)
    np.testing.assert_allclose(logits, own, atol=1e-5)
    features = teacher.model.apply(teacher.variables, image, method="encode")
    np.testing.assert_allclose(maps, features.maps[-1], atol=1e-5)


def test_a_student_takes_data_and_classes_from_its_teacher(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    taught = workdir.read(run)
    for argument in (f"{run},student=mobilenet_v2", f"student=mobilenet_v2,teacher={run}"):
        config = distill.get_config(argument)
        validate(config)
        assert config.method.to_dict() == methods.defaults("mgd") | {"teacher": str(run)}
        assert (config.model.backbone, config.model.decoder) == ("mobilenet_v2", "deeplab")
        for section in ("data", "evaluation"):
            assert config[section].to_dict() == taught[section].to_dict()
    assert distill.get_config(f"{run},{tmp_path}").method.teacher == f"{run},{tmp_path}"
    for argument, sentence in {
        "": "names 0 trained runs; name one or two",
        f"{run},student=vgg": "student 'vgg' in .* is unknown; choose one of efficientnet_lite0",
        str(tmp_path / "nowhere"): "nowhere holds no run",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            distill.get_config(argument)
