"""Co2S: student with class queries, coupling and losses against the published code; both students train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.config import validate
from semivl_jax.models import build, vit
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.models.two_towers import STUDENTS
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.models.vlg_decoder import similarity
from semivl_jax.train.methods.base import target_losses
from semivl_jax.train.methods.co2s import Co2S, learns_from
from semivl_jax.train.methods.consistency import ImageLabels
from semivl_jax.train.pseudo_labels import pseudo_labels
from semivl_jax.types import ClassText, Features, Views
from semivl_jax.weights import files
from semivl_jax.weights.tree import flatten
from tests import golden_models
from tests.golden_files import Golden, assert_close, nhwc
from tests.train import tiny_experiment
from tests.weights import converted

TOLERANCE = 1e-5
LETTERS = dict(zip(STUDENTS, "GL", strict=True))


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("methods/co2s")


def cases(kind: str) -> list[str]:
    items = Golden("methods/co2s").meta["items"]
    return [name.removeprefix(kind) for name in items if name.startswith(kind)]


@pytest.mark.golden
def test_the_student_with_queries_is_the_published_one(golden):
    """The decoder on stored features, and on the tower of the public DINOv3."""
    item = golden.meta["items"]["co2s_student"]
    queries = golden["w/text_provider/emb.weight"]
    decoder = golden_models.vlg_decoder(item["cfg"]["decode_head"]).clone(num_queries=len(queries))
    weights = converted.encoder(golden.weights("dinov3/"))
    tower = VisionTransformer(
        **{**vit.DINOV3, "fit": "pad", "via_square": True, **weights.sizes},
        out_indices=tuple(item["taps"]),
    )
    side = item["cfg"]["decode_head"]["img_size"]
    model = SegmentationModel(backbone=tower, decoder=decoder, crop=side)
    state = {f"decode_head.{name}": array for name, array in golden.weights("decode_head/").items()}
    sizes = {"vlg_decoder": {"num_heads": decoder.num_heads}}
    head = converted.some(state, "semivl", sizes)["params"]["decoder"]
    params = {"backbone": weights.tree["params"], "decoder": {**head, "queries": queries}}
    expected = nhwc(golden["out/student/logits"])
    size = expected.shape[1:3]

    @jax.jit
    def decode(features):
        square = model.apply({"params": params}, features, None, method="decode")
        return jax.image.resize(
            square, (len(square), *size, len(queries)), "bilinear", antialias=False
        )

    maps = tuple(jnp.asarray(nhwc(golden[f"out/student/feat{tap}"])) for tap in item["taps"])
    sim = similarity(maps[-1], jnp.asarray(queries))
    assert_close(sim, golden["out/student/sim"], TOLERANCE, "sim")
    assert_close(decode(Features(maps=maps)), expected, TOLERANCE, "logits")
    kept = [golden[f"in/student/fp_mask_feat{tap}"] for tap in item["taps"]]
    perturbed = tuple(
        x * jnp.asarray(nhwc(mask)) / (1 - item["fp_rate"])
        for x, mask in zip(maps, kept, strict=True)
    )
    assert_close(
        decode(Features(maps=perturbed)), nhwc(golden["out/student/logits_fp"]), TOLERANCE, "fp"
    )
    inputs = [name for name, shape in golden.meta["items"]["dinov3"]["inputs"].items()
              if tuple(shape[2:]) == size]  # fmt: skip
    image = nhwc(golden[f"in/dinov3/{inputs[0]}/img"])
    whole = jax.jit(lambda image: model.apply({"params": params}, image, None))(image)
    assert_close(whole, nhwc(golden["out/student_fp32/logits"]), TOLERANCE, "tower")


@pytest.mark.golden
def test_who_learns_from_whom(golden):
    threshold = np.float32(golden.meta["items"]["table"]["conf_thresh"])
    clip, dino = (jnp.asarray(golden[f"in/table/c_{letter}"])[None] for letter in "GL")
    for name, own, peer in (("G_learns_from_L", clip, dino), ("L_learns_from_G", dino, clip)):
        learns = learns_from(own, peer, threshold=threshold)[0]
        np.testing.assert_array_equal(learns, golden[f"out/table/{name}"].astype(bool))
    both = learns_from(clip, dino, threshold=threshold) & learns_from(
        dino, clip, threshold=threshold
    )
    assert both.any()  # at ties


def progress_of(step: int, total: int, ramp: float) -> jnp.ndarray:
    """Our progress at the published weight: its rise ends at the step before round(ramp · total)."""
    last = round(ramp * total) - 1
    return jnp.float32(ramp * step / last if last > 0 else 1.0)


@pytest.mark.golden
def test_the_weight_of_the_coupling_rises_as_published(golden):
    item = golden.meta["items"]["omega"]
    method = Co2S(coupling_weight=item["peak"], coupling_ramp=item["up_ratio"])
    for total in item["totals"]:
        at = [progress_of(step, total, item["up_ratio"]) for step in range(total)]
        ours = jax.vmap(method.weight_of_coupling)(jnp.stack(at))
        np.testing.assert_allclose(ours, golden[f"out/omega/T{total}"], atol=1e-6)
    assert Co2S(coupling_ramp=0.0).weight_of_coupling(jnp.float32(0.0)) == 0.5


def both(golden, key: str) -> jnp.ndarray:
    """Logits of both students, G first; `key` has their letter as {}."""
    halves = [nhwc(golden[key.format(letter)]) for letter in LETTERS.values()]
    return jnp.asarray(np.concatenate(halves, axis=-1))


def labels_of(logits, ignore) -> dict[str, ImageLabels]:
    halves = jnp.split(logits, 2, axis=-1)
    return {
        name: ImageLabels(pseudo_labels(half), ignore)
        for name, half in zip(STUDENTS, halves, strict=True)
    }


def views_of(y, boxes=None) -> Views:
    return Views(x=jnp.zeros((*y.shape, 3)), y=y, boxes=boxes or {})


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("couple/"))
@pytest.mark.parametrize("coupling", ["intended", "published"])
def test_the_coupling_is_the_published_one(case, coupling, golden):
    meta = golden.meta["items"][f"couple/{case}"]
    head = f"couple/{case}"
    logits = both(golden, f"in/{head}/logits_{{}}")
    method = Co2S(coupling=coupling, confidence_threshold=meta["tau"])
    ignore = jnp.zeros(logits.shape[:3], bool)
    labels = labels_of(logits, ignore)
    progress = progress_of(meta["step"], meta["total"], method.coupling_ramp)
    boxes = dict.fromkeys(("s1", "s2"), ignore)
    made = method.targets([labels], views_of(ignore.astype(jnp.int32), boxes), {}, progress)
    np.testing.assert_allclose(
        made.factors["coupling_clip"], golden[f"out/{head}/omega"], rtol=1e-5
    )
    for i, (name, letter) in enumerate(LETTERS.items()):
        (target,) = [t for t in made.views["w"] if t.name == f"coupling_{name}"]
        assert_close(labels[name].pseudo.confidence, golden[f"out/{head}/conf_{letter}"], TOLERANCE)
        np.testing.assert_array_equal(target.weight > 0, golden[f"out/{head}/mask_{letter}"])

        @jax.jit
        @jax.value_and_grad
        def loss(logits, target=target, name=name):
            values = target_losses({"w": logits}, {"w": (target,)})
            return values[f"coupling_{name}"] * made.factors[f"coupling_{name}"]

        value, grad = loss(logits)
        assert_close(value, golden[f"out/{head}/L_sta_{letter}"], TOLERANCE)
        own, peer = (jnp.split(grad, 2, axis=-1)[index] for index in (i, 1 - i))
        assert not peer.any()
        if coupling == "published":
            assert not own.any()
        else:
            assert_close(own, nhwc(golden[f"out/{head}/grad_{letter}_intended"]), 1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("step/"))
def test_all_losses_of_a_step_are_the_published_ones(case, golden):
    meta, head = golden.meta["items"][f"step/{case}"], f"step/{case}"
    method = Co2S(confidence_threshold=meta["tau"], coupling="published")

    def given(name):
        return jnp.asarray(golden[f"in/{head}/{name}"])

    views = views_of(
        given("label_x").astype(jnp.int32), {f"s{i}": given(f"mix{i}").astype(bool) for i in (1, 2)}
    )
    names = ("x", "w", "s1", "s2", "fp")
    logits = {name: both(golden, f"in/{head}/{{}}/logits_{name}") for name in names}
    other = both(golden, f"in/{head}/{{}}/logits_w_other")
    labels = [labels_of(logits["w"], given("ignore_mask") == 255),
              labels_of(other, given("ignore_mask_other") == 255)]  # fmt: skip
    progress = progress_of(meta["step"], meta["total"], method.coupling_ramp)
    made = method.targets(labels, views, {}, progress)

    def total(logits):
        values = target_losses(logits, made.views)
        return sum(made.factors[name] * value for name, value in values.items()), values

    (everything, values), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    assert set(values) == set(made.factors)
    totals = 0.0
    for i, (name, letter) in enumerate(LETTERS.items()):
        for loss in ("x", "s1", "s2", "fp"):
            expected = golden[f"out/{head}/{letter}/L_{loss}"]
            assert_close(values[f"loss_{loss}_{name}"], expected, TOLERANCE, loss)
        coupled = made.factors[f"coupling_{name}"] * values[f"coupling_{name}"]
        assert_close(coupled, golden[f"out/{head}/{letter}/L_sta"], TOLERANCE)
        totals += golden[f"out/{head}/{letter}/total"]
        for view in ("s1", "fp"):
            ours = jnp.split(grads[view], 2, axis=-1)[i]
            assert_close(ours, nhwc(golden[f"out/{head}/{letter}/grad_{view}"]), 1e-4, view)
    assert_close(everything, totals, TOLERANCE)


def test_evaluation_takes_one_student_or_the_mean_of_both():
    config = tiny_experiment.config_of(method="co2s", **tiny_experiment.TWO_STUDENTS)
    sizes = {"patch_size": 8, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "out_dim": 12}
    text = ClassText(jnp.ones((3, 12)), jnp.arange(3), 3)
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    scores = {}
    for output in ("mean", "clip", "dino"):
        config.model.output = output
        model = build.segmenter(config, num_classes=3, clip_sizes=sizes)
        variables = jax.jit(model.init)(jax.random.key(0), image, text)
        scores[output] = jax.nn.softmax(jax.jit(model.apply)(variables, image, text), axis=-1)
    assert np.abs(scores["clip"] - scores["dino"]).max() > 1e-3
    np.testing.assert_allclose(scores["mean"], (scores["clip"] + scores["dino"]) / 2, atol=1e-5)


def test_attention_and_decoders_of_both_students_are_trained():
    fields = tiny_experiment.TWO_STUDENTS | {"model__finetune": "spatial"}
    built = tiny_experiment.build(method="co2s", **fields)
    state = built.init_state()
    before = flatten(jax.device_get(state.student()["params"]))
    state, metrics = tiny_experiment.step_of(built)(state, tiny_experiment.batch_of(built))
    after = flatten(jax.device_get(state.student()["params"]))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    parts = ("backbone/{}/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/kernel",
             "decoder/{}/head/kernel")  # fmt: skip
    assert {part.format(name) for part in parts for name in STUDENTS} <= changed
    assert "decoder/dino/queries" in changed and "decoder/clip/queries" not in before
    towers = [path for path in changed if path.startswith("backbone/")]
    assert all("/MultiHeadDotProductAttention_0/" in path for path in towers)
    rates = {name: float(value) for name, value in metrics.items() if name.startswith("lr_")}
    config = built.config.optim
    assert rates["lr_queries"] == pytest.approx(config.lr, rel=0.2)
    assert rates["lr_decoder"] == pytest.approx(10 * config.lr, rel=0.2)


@pytest.mark.parametrize("similarity", ["both", "clip"])
def test_both_towers_start_from_their_weights(tmp_path, similarity):
    method = "co2s" if similarity == "both" else "semivl"
    fields = tiny_experiment.TWO_STUDENTS | {"model__similarity": similarity, "method": method}
    fields |= {"model__out_indices": (0, 1, 3) if similarity == "both" else (1, 3)}
    plain = tiny_experiment.build(**fields)
    fresh = jax.device_get(plain.init_state().student()["params"]["backbone"])
    dino = jax.tree.map(lambda leaf: np.asarray(leaf + 1, np.float32), fresh["dino"])
    path, tree = tmp_path / "dino.safetensors", {"params": dino}
    files.save(path, files.Weights(format=files.BACKBONE, kind="dinov3", sizes={}, tree=tree))
    built = tiny_experiment.build(**fields, model__backbone_weights=str(path))
    state = built.init_state()
    found = jax.device_get(state.student()["params"]["backbone"])
    jax.tree.map(np.testing.assert_array_equal, found["dino"], dino)
    jax.tree.map(np.testing.assert_array_equal, found["clip"], plain.clip_start["clip"])
    trained = state.params["backbone"]
    assert set(trained) == ({"clip", "dino"} if similarity == "both" else {"dino"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "co2s"}, r"similarity = 'text' does not go with method\.name = 'co2s'"),
        ({"model__similarity": "both", "model__backbone": "dinov3_vits16", "model__init": "random"},
         r"similarity = 'both' does not go with method\.name = 'semivl'"),
        ({"model__similarity": "clip"}, r"similarity = 'clip' puts CLIP's tower beside a DINO"),
        ({"model__backbone": "dinov3_vits16", "model__init": "random"},
         r"'dinov3_vits16' has no embedding to compare with texts; set model\.similarity = 'clip'"),
        ({"model__similarity": "queries", "model__decoder": "deeplab"},
         r"similarity = 'queries' is for model\.decoder = 'vlg', not 'deeplab'"),
    ],
)  # fmt: skip
def test_parts_that_do_not_go_together(fields, message):
    with pytest.raises(ValueError, match=message):
        validate(tiny_experiment.config_of(**fields))
