"""The command line of the builder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.images import build


def main() -> int:
    """0 when every image is there, 1 when one failed, 2 when this machine cannot build."""
    parser = argparse.ArgumentParser(
        prog="tools/images/build",
        description="Build five disk images of real Debian systems (2 GiB each, sparse).",
    )
    parser.add_argument("folder", type=Path, help="where they go; images that exist are kept")
    folder = parser.parse_args().folder
    if reasons := build.missing():
        print(f"images: cannot build here without: {', '.join(reasons)}", file=sys.stderr)
        return 2
    try:
        build.build(folder)
    except build.BuildFailed as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
