"""`baton pull`: fetch a model ahead of time.

Invariant: stdout gets the path alone, so that `--model-path "$(baton pull NAME)"` works.
Elsewhere: what a name may be, and the fetching (checkpoint/source.py).
"""

import argparse
import os
from collections.abc import Sequence

from baton.checkpoint.source import default_cache_dir, resolve_model

_EXAMPLES = """\
examples:
  baton pull                         the default model
  baton pull ORG/NAME                a model of the Hugging Face hub
  baton serve "$(baton pull)"
"""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="baton pull",
        description="Fetch a model if it is not here yet; print where it is.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="path or name (default: the embedded model)"
    )
    name = parser.parse_args(argv).model
    print(resolve_model(name, cache_dir=default_cache_dir(os.environ)))
