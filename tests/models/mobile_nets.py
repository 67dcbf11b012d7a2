"""EfficientNet-Lite0 and MobileNetV2 in torch's operators, on state dicts under the published names.

Written from the tables of the papers, independent of the importer: names are those of the packages
efficientnet_lite_pytorch, timm and torchvision.
"""

import numpy as np

# (expansion, kernel, channels, blocks, stride) per stage
LITE0 = (
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2), (6, 3, 320, 1, 1),
)  # fmt: skip
MOBILENET_V2 = (
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 3, 32, 3, 2), (6, 3, 64, 4, 2), (6, 3, 96, 3, 1),
    (6, 3, 160, 3, 2), (6, 3, 320, 1, 1),
)  # fmt: skip


def _package(_, __, number, expanded):
    names = [("_expand_conv", "_bn0")] * expanded
    names += [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
    return [tuple(f"_blocks.{number}.{part}" for part in pair) for pair in names]


def _timm(stage, block, _, expanded):
    parts = ("conv_pw", "conv_dw", "conv_pwl") if expanded else ("conv_dw", "conv_pw")
    return [
        (f"blocks.{stage}.{block}.{part}", f"blocks.{stage}.{block}.bn{i + 1}")
        for i, part in enumerate(parts)
    ]


def _torchvision(_, __, number, expanded):
    head, last = f"features.{number + 1}.conv", 2 if expanded else 1
    names = [(f"{head}.{i}.0", f"{head}.{i}.1") for i in range(last)]
    return [*names, (f"{head}.{last}", f"{head}.{last + 1}")]


NAMES = {  # names of a block's layers, of stem and head, of the classifier
    "package": (_package, ("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), "_fc"),
    "timm": (_timm, ("conv_stem", "bn1"), ("conv_head", "bn2"), "classifier"),
    "torchvision": (
        _torchvision,
        ("features.0.0", "features.0.1"),
        ("features.18.0", "features.18.1"),
        "classifier.1",
    ),
}


def layers(stages, naming, output_stride=32):
    """(layers, whether the input is added) for stem, blocks, head. A layer: its names, shape of the kernel,
    stride, dilation, ReLU6."""
    of_block, stem, head, _ = NAMES[naming]
    yield "stem", [(stem, (32, 3, 3, 3), 2, 1, True)], False
    inputs, reached, dilation, number = 32, 2, 1, 0
    for i, (expansion, size, channels, blocks, stride) in enumerate(stages):
        first = dilation
        if stride * reached > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        for j in range(blocks):
            *expand, depthwise, project = of_block(i, j, number, expansion > 1)
            wide, number = expansion * inputs, number + 1
            steps, rate = (stride, first) if j == 0 else (1, dilation)
            block = [(name, (wide, inputs, 1, 1), 1, 1, True) for name in expand]
            block.append((depthwise, (wide, 1, size, size), steps, rate, True))
            block.append((project, (channels, wide, 1, 1), 1, 1, False))
            yield f"stage_{i}_block_{j}", block, steps == 1 and inputs == channels
            inputs = channels
    yield "head", [(head, (1280, 320, 1, 1), 1, 1, True)], False


def random_state(stages, naming, seed=0):
    """A whole state dict, with ImageNet classifier."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    state = {}
    for _, block, _ in layers(stages, naming):
        for (conv, norm), shape, *_ in block:
            fan_in = np.prod(shape[1:])
            state[f"{conv}.weight"] = normal(*shape, scale=(2 / fan_in) ** 0.5)
            state[f"{norm}.weight"] = 1 + normal(shape[0], scale=0.1)
            state[f"{norm}.bias"] = normal(shape[0], scale=0.1)
            state[f"{norm}.running_mean"] = normal(shape[0], scale=0.1)
            state[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, shape[0]).astype(np.float32)
            state[f"{norm}.num_batches_tracked"] = np.array(7)
    classifier = NAMES[naming][3]
    state[f"{classifier}.weight"] = normal(1000, 1280, scale=1280**-0.5)
    state[f"{classifier}.bias"] = normal(1000, scale=0.1)
    return state


def outputs(torch, state, image, stages, naming, *, tf, output_stride=32):
    """Results of stem, blocks and head by our names, and the logits. `image`: b×3×h×w, normalised."""
    found = {}
    state = {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}
    x = torch.from_numpy(image)
    for name, block, residual in layers(stages, naming, output_stride):
        before = x
        for (conv, norm), shape, stride, dilation, relu in block:
            reach = dilation * (shape[-1] - 1)
            margins = []
            for side in (x.shape[3], x.shape[2]):  # torch pads the last axis first
                total = max(0, (-(-side // stride) - 1) * stride + reach + 1 - side)
                margins += [total // 2, total - total // 2] if tf else [reach // 2, reach // 2]
            x = torch.conv2d(
                torch.nn.functional.pad(x, margins), state[f"{conv}.weight"], stride=stride,
                dilation=dilation, groups=x.shape[1] // shape[1],
            )  # fmt: skip
            parts = ("running_mean", "running_var", "weight", "bias")
            arrays = [state[f"{norm}.{part}"] for part in parts]
            x = torch.batch_norm(
                x, arrays[2], arrays[3], *arrays[:2], False, 0.0, 1e-3 if tf else 1e-5, False
            )
            x = x.clamp(0, 6) if relu else x
        x = found[name] = x + before if residual else x
    classifier = NAMES[naming][3]
    pooled = x.mean((2, 3))
    logits = pooled @ state[f"{classifier}.weight"].T + state[f"{classifier}.bias"]
    return {name: value.numpy() for name, value in found.items()}, logits.numpy()
