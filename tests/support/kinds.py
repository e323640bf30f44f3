"""Strict schemas of kinds whose publishers offer lists of fields instead.

A list says of each type its fields, and of each field its type: a plain one, `list[T]`,
`dict(str, T)`, words to choose from (`this | that`), or another type's name. Names that begin with
V1, K8sIoApi or Resource are Kubernetes' own, and their schemas those of a release of it
(kubernetes-validate). What no list knows is refused, be it a field or a type.
"""

from __future__ import annotations

import ast
import functools
import importlib.resources
import json
import pathlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import referencing
import yaml
from referencing.jsonschema import DRAFT202012

Schema = dict[str, Any]
_PLAIN: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "object": {},
}
_REFUSED: Schema = {"not": {}}
# Our names of Kubernetes' packages, longest first.
_PACKAGES = (
    (r"K8sIoApi([A-Z][a-z]+)(V\d(?:beta\d|alpha\d)?)(\w+)", "io.k8s.api.{}.{}.{}"),
    (r"V1ObjectMeta()()()", "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
    (r"ResourceQuantity()()()", "io.k8s.apimachinery.pkg.api.resource.Quantity"),
    (r"(V1)()(\w+)", "io.k8s.api.core.{}{}.{}"),
)


@dataclass
class Type:
    """Fields as they are written in an object, and which of them must be there."""

    fields: dict[str, str] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)


Types = Mapping[str, Type]


def of_notation(file: pathlib.Path) -> Types:
    """From YAML: types, their fields (a star behind those that must be there), their types."""
    found = {}
    for name, fields in yaml.safe_load(file.read_text()).items():
        found[name] = Type(
            {key.rstrip("*"): text for key, text in fields.items()},
            [key[:-1] for key in fields if key.endswith("*")],
        )
    return found


def of_generated_client(wheel: pathlib.Path, package: str) -> Types:
    """From the models of a client that OpenAPI Generator made, in `package` of a wheel. They are
    read, not run: the client's own needs are many."""
    found: dict[str, Type] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(f"{package}/") and not name.endswith("__init__.py"):
                text = archive.read(name).decode()
                for statement in ast.parse(text).body:
                    if isinstance(statement, ast.ClassDef):
                        found[statement.name] = _generated(statement, text)
    return found


def _generated(model: ast.ClassDef, text: str) -> Type:
    said: dict[str, dict[str, str]] = {}
    for statement in model.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            said[statement.targets[0].id] = ast.literal_eval(statement.value)
    written = said["attribute_map"]
    # The setter of such a field raises with these words.
    needed = re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)
    return Type(
        {written[name]: kind for name, kind in said["openapi_types"].items()},
        sorted({written[name] for name in needed}),
    )


@functools.cache
def kubernetes(release: str) -> tuple[str, Schema]:
    """The strict definitions of a release such as "1.37": where they are, and they."""
    packaged = importlib.resources.files("kubernetes_validate")
    folder = packaged / "kubernetes-json-schema" / f"v{release}.0-local-strict"
    found: Schema = json.loads((folder / "_definitions.json").read_text())
    return found["$id"], found


def schema_of(kind: str, types: Types, release: str) -> Schema:
    """The JSON schema of the type `kind`. A status, which no user writes, is not taken."""
    definitions: dict[str, Schema] = {
        name: {
            "type": "object",
            "properties": {key: _schema(text, types, release) for key, text in each.fields.items()},
            "required": each.required,
            "additionalProperties": False,
        }
        for name, each in types.items()
    }
    definitions[kind]["properties"].pop("status", None)
    definitions[kind]["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return {"$defs": definitions, "$ref": f"#/$defs/{kind}"}


def _schema(text: str, types: Types, release: str) -> Schema:
    if text in _PLAIN:
        return _PLAIN[text]
    if found := re.fullmatch(r"list\[(.*)\]", text):
        return {"type": "array", "items": _schema(found[1], types, release)}
    if found := re.fullmatch(r"dict\(str, (.*)\)", text):
        return {"type": "object", "additionalProperties": _schema(found[1], types, release)}
    if " | " in text:
        return {"enum": text.split(" | ")}
    return {"$ref": f"#/$defs/{text}"} if text in types else _kubernetes(text, release)


def _kubernetes(name: str, release: str) -> Schema:
    address, definitions = kubernetes(release)
    for pattern, template in _PACKAGES:
        if found := re.fullmatch(pattern, name):
            known = template.format(*(part[:1].lower() + part[1:] for part in found.groups()[:2]),
                                    found[3])  # fmt: skip
            if known in definitions["$defs"]:
                return {"$ref": f"{address}#/$defs/{known}"}
    return _REFUSED


def problems(item: Mapping[str, Any], kind: str, types: Types, release: str) -> list[str]:
    """What is wrong with an object of the type `kind`, and where; empty for one that fits."""
    address, definitions = kubernetes(release)
    resource = DRAFT202012.create_resource(definitions)
    registry: Any = referencing.Registry().with_resource(address, resource)
    schema = schema_of(kind, types, release)
    validator = jsonschema.Draft202012Validator(schema, registry=registry)
    return [f"{each.json_path}: {each.message}" for each in validator.iter_errors(dict(item))]
