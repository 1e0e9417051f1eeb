"""The float engine on a Vulkan device beside the CPU: logits (or vectors) and the gradients in every tensor of small models of
every family (families.py), in one process, so that each shader is compiled once. The executable compares.

usage: test_device_gradients.py GRADIENTS DEVICE [--all] [--only WORD]
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import families

LENGTHS = "44,19"  # more positions than a tile of attention has, and most windows
DEEP = 8


def chosen(options):
    """Those that a device trains, and that are not there for the number of their layers; of each family the first, and those that
    turn a part of their heads, or all."""
    found = [case for case in families.CASES
             if "X" not in case.size and case.size["L"] <= DEEP and case.first_type is None and options.only in str(case)]
    first = {case.family: case for case in reversed(found)}
    return [case for case in found if options.all or case is first[case.family] or "RoPE in part" in case.name]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("gradients")
    parser.add_argument("device")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--all", action="store_true", help="not only one or two of each family")
    options = parser.parse_args()
    cases = chosen(options)
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        families.tokens()[0].tofile(scratch / "tokens")
        for case in cases:
            families.write(scratch / str(case), case, families.weights(case))
        done = subprocess.run([options.gradients, "--device", options.device, scratch / "tokens", LENGTHS,
                               *(scratch / str(case) for case in cases)], stdout=subprocess.PIPE, text=True)
    print(done.stdout.replace(f"{folder}/", ""), end="")
    print(f"{len(cases)} models of {len({case.family for case in cases})} families")
    sys.exit(done.returncode or len(done.stdout.splitlines()) != len(cases))


if __name__ == "__main__":
    main()
