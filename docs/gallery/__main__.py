"""Draw the gallery's pictures: ``python docs/gallery``, or with names for some."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: in the order of the page
EXAMPLES = (
    "curve",
    "rounds",
    "methods",
    "inputs",
    "moments",
    "convolution",
    "network",
    "search",
)

if __name__ == "__main__":
    for name in sys.argv[1:] or EXAMPLES:
        runpy.run_path(str(HERE / f"{name}.py"))
        print(f"docs/_static/gallery_{name}.png")
