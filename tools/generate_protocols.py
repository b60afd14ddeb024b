"""Generate the protobuf and gRPC modules beside each ``.proto`` file, or check that they are up to date.

The generated modules are committed, so that users need no compiler. ``--check`` generates into a scratch directory and
fails when a committed module differs. Proto paths equal package paths, which is what makes the generated imports work.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

SOURCE = Path(__file__).resolve().parent.parent / "src"


def generate(out: Path) -> list[Path]:
    """Write the modules of every ``.proto`` below `SOURCE` under `out`; returns them, relative to `out`."""
    protos = sorted(SOURCE.rglob("*.proto"))
    includes = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{SOURCE}", f"-I{includes}"]
    arguments += [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*arguments, *map(str, protos)]) != 0:
        raise SystemExit("protoc failed")
    suffixes = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    return [proto.relative_to(SOURCE).with_name(proto.stem + suffix) for proto in protos for suffix in suffixes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a module is out of date")
    if not parser.parse_args().check:
        generate(SOURCE)
        return
    with tempfile.TemporaryDirectory() as scratch:
        stale = [
            module
            for module in generate(Path(scratch))
            if not (SOURCE / module).exists() or (SOURCE / module).read_bytes() != (Path(scratch) / module).read_bytes()
        ]
    for module in stale:
        print(f"out of date: src/{module}; run `make proto`", file=sys.stderr)
    raise SystemExit(1 if stale else 0)


if __name__ == "__main__":
    main()
