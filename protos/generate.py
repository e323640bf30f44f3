"""Generates the Python stubs under protos/python from the .proto sources.

python protos/generate.py           write them
python protos/generate.py --check   exit 1 if what is committed is not what would be written
"""

from __future__ import annotations

import argparse
import filecmp
import pathlib
import sys
import tempfile

from grpc_tools import protoc

ROOT = pathlib.Path(__file__).parent
OUTPUT = ROOT / "python"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")

# tritonclient declares `package inference` too, and the default descriptor pool takes a symbol
# only once: our files go to a pool of their own, so that both live in one process.
DEFAULT_POOL = "_descriptor_pool.Default()"
OWN_POOL = "_POOL"
POOL_IMPORT = "from headrace.inference.pool import POOL as _POOL"
OLD_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool"


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("headrace/**/*.proto"))


def generate(output: pathlib.Path) -> None:
    plugin = pathlib.Path(sys.executable).parent
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={output}", f"--grpc_python_out={output}"]
    for kind in ("mypy", "mypy_grpc"):
        arguments.append(f"--plugin=protoc-gen-{kind}={plugin / f'protoc-gen-{kind}'}")
        arguments.append(f"--{kind}_out=quiet:{output}")
    if protoc.main([*arguments, *sources()]) != 0:
        sys.exit("protoc failed")
    for path in output.rglob("*_pb2.py"):
        text = path.read_text()
        if DEFAULT_POOL not in text or OLD_IMPORT not in text:
            sys.exit(f"{path.name}: protoc's output changed, the descriptor pool was not replaced")
        text = text.replace(DEFAULT_POOL, OWN_POOL).replace(OLD_IMPORT, POOL_IMPORT)
        path.write_text(text)
    for source in sources():
        if "\nservice " not in (ROOT / source).read_text():
            for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi"):
                (output / source).with_suffix("").with_name(
                    pathlib.Path(source).stem + suffix
                ).unlink(missing_ok=True)


def stubs(folder: pathlib.Path) -> set[pathlib.Path]:
    return {p.relative_to(folder) for p in folder.rglob("*") if p.name.endswith(SUFFIXES)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    if not check:
        for old in stubs(OUTPUT):
            (OUTPUT / old).unlink()
        generate(OUTPUT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = pathlib.Path(folder)
        generate(fresh)
        stale = stubs(fresh) ^ stubs(OUTPUT)
        for name in stubs(fresh) & stubs(OUTPUT):
            if not filecmp.cmp(fresh / name, OUTPUT / name, shallow=False):
                stale.add(name)
    for name in sorted(stale):
        print(f"not current: {OUTPUT / name} (run `make protos`)", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
