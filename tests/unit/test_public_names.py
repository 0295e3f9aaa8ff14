from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import fleetlm


def test_type_checkers_see_the_same_names() -> None:
    stub = Path(fleetlm.__file__).with_suffix(".pyi")
    for_types = {
        alias.asname: node.module
        for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fleetlm.")
        for alias in node.names
    }
    assert for_types == fleetlm._MODULE_OF
    assert sorted(fleetlm.__all__) == sorted(for_types)


@pytest.mark.parametrize("name", fleetlm.__all__)
def test_every_public_name_is_what_its_module_has(name: str) -> None:
    module = importlib.import_module(fleetlm._MODULE_OF[name])

    assert getattr(fleetlm, name) is getattr(module, name)
    assert name in dir(fleetlm)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nood'"):
        fleetlm.Nood  # noqa: B018 - the access is what is tested
