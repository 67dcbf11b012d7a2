"""The argument after the colon of --config: values in order, then NAME=VALUE, separated by commas.

configs/voc.py:92,recipe=paper   configs/voc_ablation.py:clip_init,1464   configs/folder.py:/photos,split=1_4
"""

from semivl_jax import utils

RECIPES = {
    "default": "the published losses with an EMA teacher and the reversed batch as CutMix partner",
    "paper": "exactly the published training: the student teaches itself, the partner is the same image",
    "unimatch": "two strong views and a feature perturbation, no guidance, EMA teacher",
    "fixmatch": "one strong view with CutMix, no feature perturbation, no guidance, EMA teacher",
    "supervised": "labelled images only, as many steps as the default",
    "cw_bass": "the default with weights by confidence and the threshold that method.threshold names",
    "semi_ovs": "the default with further images that have stored labels (data.extra_sources = 'ood=FOLDER')",
}
"""Values of `recipe`, an option that every published configuration has."""


def parse(
    argument: str,
    *,
    file: str,
    path: str = "",
    **choices: tuple[str, ...] | dict[str, object] | None,
) -> dict[str, str]:
    """The argument of a configuration file as values by name.

    `choices` are the allowed values by name, in the order in which they are given; the first one of each
    is the default. None allows any text and defaults to "". `NAME=VALUE` may be anywhere, a bare value
    takes the next name. `path` names a value that is a path: it comes first and may hold commas and equals
    signs.

    Raises:
      ValueError: an unknown name or value, or one given twice; the sentence lists the right ones.
    """
    values: dict[str, str] = {}
    parts = argument.split(",")
    if path and parts[0].partition("=")[0] not in choices.keys() - {path}:
        values[path], parts = _take_path(argument.removeprefix(f"{path}="))
    for part in filter(None, parts):
        name, equals, value = part.partition("=")
        if not equals:
            name, value = next((n for n in choices if n not in values), ""), part
        if name not in choices:
            listed = ", ".join(f"{n}=…" for n in choices)
            remedy = f"; a {path} can also be given as --config.data.{path}=PATH" if path else ""
            raise ValueError(
                f"{part!r} in --config={file}:{argument} is unknown; it takes {listed}{remedy}"
            )
        if name in values:
            raise ValueError(f"--config={file}:{argument} gives {name} twice; give it once")
        allowed = choices[name]
        if allowed is not None and value not in allowed:
            listed = ", ".join(allowed)
            raise ValueError(
                f"{name} {value!r} in --config={file}:{argument} is unknown; choose one of {listed}"
            )
        values[name] = value
    return {
        name: values.get(name, next(iter(allowed or [""]))) for name, allowed in choices.items()
    }


def _take_path(argument: str) -> tuple[str, list[str]]:
    """The longest start that is a file or folder, else the first part; and the parts after it."""
    parts = argument.split(",")
    for count in range(len(parts), 0, -1):
        start = ",".join(parts[:count])
        if start and utils.user_path(start).exists():
            return start, parts[count:]
    return parts[0], parts[1:]
