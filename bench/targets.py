"""What a count costs: the search for the epsilon of a density, against one solve at the epsilon that it ends at.

python bench/targets.py     layers 1 to 3 of the MNIST network, all neurons, P = 5000, densities 20, 10 and 5 %

Both cold, in float32, to the default tolerances. Writes bench/results/targets.json.
"""

from __future__ import annotations

import argparse
import time

from common import environment, fix_threads, write
from mnist import layer
from solvers import compile_kernels, ours

import nettrim as nt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--samples", type=int, default=5000)
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    compile_kernels()
    record = {"environment": environment(threads), "samples": args.samples, "rows": []}
    for index in (2, 0, 1):
        X, Y, _ = layer(index, args.samples)
        for density in (0.2, 0.1, 0.05):
            began = time.perf_counter()
            found = nt.solve(X, Y, density=density)
            seconds = time.perf_counter() - began
            epsilon = found.settings["epsilon"]
            one = ours(nt.Problem(X, Y, epsilon), 1)
            row = {"layer": index + 1, "density": density, "kept": found.density, "epsilon": epsilon}
            row |= {"status": str(found.status), "search": seconds, "solve": one, "ratio": seconds / one["seconds"]}
            record["rows"].append(row | {"message": found.message})
            print(
                f"layer {index + 1}, {density:.0%}: {seconds:.1f} s ({found.message}), kept {found.density:.2%}; one "
                f"solve {one['seconds']:.1f} s; ratio {row['ratio']:.1f}",
                flush=True,
            )
            write("targets", record)


if __name__ == "__main__":
    main()
