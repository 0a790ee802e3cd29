"""Every foreign exception becomes one of ours."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import httpx
import pydicom.errors
import pynetdicom
import pytest

from stream_processors import errors
from stream_processors.errors import FOREIGN, ClaimEnded, PacsUnavailable, ProcessorError, from_foreign


def _exceptions_of(module: object, package: str) -> set[type[BaseException]]:
    found = (member for _, member in inspect.getmembers(module, inspect.isclass))
    return {one for one in found if issubclass(one, BaseException) and one.__module__.partition(".")[0] == package}


def _pynetdicom_exceptions() -> set[type[BaseException]]:
    found: set[type[BaseException]] = set()
    for module in pkgutil.iter_modules(pynetdicom.__path__, "pynetdicom."):
        if module.name.rpartition(".")[2] not in {"tests", "apps", "benchmarks"}:
            found |= _exceptions_of(importlib.import_module(module.name), "pynetdicom")
    return found


FOREIGN_CLASSES = sorted(
    _exceptions_of(httpx, "httpx") | _exceptions_of(pydicom.errors, "pydicom") | _pynetdicom_exceptions(),
    key=lambda cls: f"{cls.__module__}.{cls.__qualname__}",
)


def _made(cls: type[BaseException]) -> BaseException:
    made = cls.__new__(cls)
    made.args = ("Doe^Jane",)
    return made


@pytest.mark.parametrize("cls", FOREIGN_CLASSES, ids=lambda cls: cls.__qualname__)
def test_every_exception_of_a_library_is_mapped(cls: type[BaseException]) -> None:
    """An exception class of httpx, pydicom or pynetdicom has a place in our tree."""
    assert isinstance(from_foreign(_made(cls), "testing"), ProcessorError)


def test_the_libraries_have_exceptions_at_all() -> None:
    """The walk over the libraries finds what is known to be there."""
    names = {cls.__qualname__ for cls in FOREIGN_CLASSES}
    assert {"ConnectTimeout", "HTTPStatusError", "InvalidDicomError", "InvalidEventError"} <= names


def test_a_message_that_may_quote_the_data_set_is_left_out() -> None:
    """Pydicom's message, which quotes values, does not get into ours."""
    ours = from_foreign(pydicom.errors.InvalidDicomError("Doe^Jane"), "reading")
    assert "Doe" not in str(ours)
    assert "pydicom.errors.InvalidDicomError" in str(ours)


def test_a_message_of_the_http_client_is_kept() -> None:
    """What httpx says of an address helps an operator and holds no patient data."""
    ours = from_foreign(httpx.ConnectError("[Errno 111] Connection refused"), "asking the PACS")
    assert isinstance(ours, PacsUnavailable)
    assert str(ours) == "asking the PACS: httpx.ConnectError: [Errno 111] Connection refused"


def test_an_exception_nobody_knows_is_not_mapped() -> None:
    """A bug stays a bug."""
    assert from_foreign(ZeroDivisionError(), "testing") is None


def test_the_table_names_classes_that_exist() -> None:
    """Every name on the left of the table can be imported."""
    for name in FOREIGN:
        module, _, cls = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), cls)), name


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Each class stands in the drawing, starred exactly when it is worth trying again."""
    drawing = {line.strip("│├└─ ").split()[0]: "* " in line for line in errors.__doc__.splitlines() if "──" in line}
    classes = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, ProcessorError)}
    assert {cls.__name__: cls.retriable for cls in classes - {ProcessorError}} == drawing


def test_the_end_of_a_claim_has_a_code_of_its_own() -> None:
    """Superseded and expired claims can be told apart by machines."""
    assert len({cls.code for cls in (ClaimEnded, *ClaimEnded.__subclasses__())}) == 3
