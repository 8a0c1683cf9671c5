"""Tables of a folder job's speed and memory, in markdown.

python -m benchmarks.table            # from the repository's root; 40 minutes on two cores
python -m benchmarks.table --quick    # a small part of it, to see whether it runs
"""

import argparse

from benchmarks.folder import breakdown_table, memory_table
from benchmarks.timing import machine


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the tables of speed and memory.")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, images and repeats")
    quick = parser.parse_args().quick
    print(machine(), end="\n\n", flush=True)
    print(breakdown_table(quick), flush=True)
    print(memory_table(quick), flush=True)


if __name__ == "__main__":
    main()
