"""`--mode=check` of several configurations in one process, without the type checks of the tests.

    python -m tests.checked_recipes voc:92 ade:1_128,recipe=paper

Prints a JSON object: configuration → its report.
"""

import importlib
import json
import sys

from semivl_jax.experiment import dry_run, run


def config_of(spec):
    """The configuration of `NAME` or `NAME:ARGUMENT`, NAME a file of configs/."""
    file, _, argument = spec.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config(argument)
    config.compilation_cache = ""
    return config


if __name__ == "__main__":
    print(
        json.dumps(
            {
                spec: dry_run.report(run.abstract_experiment(config_of(spec)))
                for spec in sys.argv[1:]
            }
        )
    )
