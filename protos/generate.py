"""Generates what is made from the .proto sources: the Python stubs under protos/python, the
reference in docs/protocol.html and, where asked, the TypeScript stubs of clients/typescript.

python protos/generate.py                write them
python protos/generate.py --check        exit 1 if what is committed is not what would be written
python protos/generate.py --typescript   those for TypeScript too: needs the packages that `npm ci`
                                         installs in clients/typescript
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.util
import pathlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import reference
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).parent
REPOSITORY = ROOT.parent
NODE_PROGRAMS = REPOSITORY / "clients/typescript/node_modules/.bin"
# The details of errors, which the TypeScript client reads; Python has a package of them.
ERROR_DETAILS = "google/rpc/error_details.proto"

# tritonclient declares `package inference` too, and the default descriptor pool takes a symbol
# only once: our files go to a pool of their own, so that both live in one process.
DEFAULT_POOL = "_descriptor_pool.Default()"
OWN_POOL = "_POOL"
POOL_IMPORT = "from headrace.inference.pool import POOL as _POOL"
OLD_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool"


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("headrace/**/*.proto"))


def run_protoc(*arguments: str) -> None:
    if protoc.main(["protoc", f"-I{ROOT}", *arguments]) != 0:
        sys.exit("protoc failed")


def python_stubs(output: pathlib.Path) -> None:
    plugin = pathlib.Path(sys.executable).parent
    arguments = [f"--python_out={output}", f"--grpc_python_out={output}"]
    for kind in ("mypy", "mypy_grpc"):
        arguments.append(f"--plugin=protoc-gen-{kind}={plugin / f'protoc-gen-{kind}'}")
        arguments.append(f"--{kind}_out=quiet:{output}")
    run_protoc(*arguments, *sources())
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


def typescript_stubs(output: pathlib.Path) -> None:
    plugin = NODE_PROGRAMS / "protoc-gen-es"
    if not plugin.exists():
        sys.exit(f"{plugin} is missing: run `npm ci` in clients/typescript")
    found = importlib.util.find_spec("google.rpc")
    if found is None or not found.submodule_search_locations:
        sys.exit("google.rpc is missing: install googleapis-common-protos")
    common = pathlib.Path(next(iter(found.submodule_search_locations))).parents[1]
    run_protoc(
        f"-I{common}",
        f"-I{pathlib.Path(protoc.__file__).with_name('_proto')}",
        f"--plugin=protoc-gen-es={plugin}",
        f"--es_out={output}",
        "--es_opt=target=ts,import_extension=js",
        *sources(),
        ERROR_DETAILS,
    )


def html_reference(output: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        described = pathlib.Path(folder) / "descriptors"
        run_protoc("--include_source_info", f"--descriptor_set_out={described}", *sources())
        descriptors = FileDescriptorSet.FromString(described.read_bytes())
    (output / "protocol.html").write_text(reference.render(descriptors))


@dataclass(frozen=True)
class Target:
    """What `write` puts into an empty folder belongs into `folder`, where all files with these
    endings are its own."""

    folder: pathlib.Path
    endings: tuple[str, ...]
    write: Callable[[pathlib.Path], None]

    def files(self, folder: pathlib.Path) -> set[pathlib.Path]:
        return {p.relative_to(folder) for p in folder.rglob("*") if p.name.endswith(self.endings)}

    def renew(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for old in self.files(self.folder):
            (self.folder / old).unlink()
        self.write(self.folder)

    def stale(self) -> list[pathlib.Path]:
        with tempfile.TemporaryDirectory() as name:
            fresh = pathlib.Path(name)
            self.write(fresh)
            stale = self.files(fresh) ^ self.files(self.folder)
            for file in self.files(fresh) & self.files(self.folder):
                if not filecmp.cmp(fresh / file, self.folder / file, shallow=False):
                    stale.add(file)
        return sorted(self.folder / file for file in stale)


STUBS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
PYTHON = Target(ROOT / "python", STUBS, python_stubs)
REFERENCE = Target(REPOSITORY / "docs", ("protocol.html",), html_reference)
TYPESCRIPT = Target(REPOSITORY / "clients/typescript/src/gen", ("_pb.ts",), typescript_stubs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--typescript", action="store_true")
    asked = parser.parse_args()
    targets = [PYTHON, REFERENCE, *([TYPESCRIPT] if asked.typescript else [])]
    if not asked.check:
        for target in targets:
            target.renew()
        return 0
    stale = [path for target in targets for path in target.stale()]
    for path in stale:
        print(f"not current: {path} (run `make protos`)", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
