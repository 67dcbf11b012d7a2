"""What all commands share: their help is the docstring of their module, their errors are one sentence."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Options of `python -m MODULE`, written out in full; mistakes end with exit code 2.

    Args:
      module: dotted name of the module.
      doc: its docstring: what the command does, examples, exit codes. `--help` shows it as it is written.
    """

    def __init__(self, module: str, doc: str | None) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=(doc or "").rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """One sentence instead of the whole usage."""
        print(f"error: {message} (--help explains all options)", file=sys.stderr)
        sys.exit(2)
