"""Functions of the user's own, named on the command line as ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from graphopt.errors import UsageError

_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_callable_spec(text: str) -> bool:
    """Return whether ``text`` has the form ``package.module:function``."""
    return _SPEC.fullmatch(text) is not None


def load_callable(spec: str) -> Callable[..., Any]:
    """Import ``package.module:function`` and return the function; modules in the working folder are found first.

    Raises UsageError when the text has another form, the module is missing or fails while it is imported, or the name
    is missing or cannot be called.
    """
    if not is_callable_spec(spec):
        raise UsageError("expected package.module:function", where=spec, hint="for ./metrics.py write metrics:function")
    module_name, _, path = spec.partition(":")
    target: Any = _import(module_name, spec)
    for part in path.split("."):
        if not hasattr(target, part):
            names = [n for n in dir(target) if not n.startswith("_") and callable(getattr(target, n))]
            hint = f"it has {', '.join(names) or 'nothing'}"
            raise UsageError(f"{module_name} has no {path!r}", where=spec, hint=hint)
        target = getattr(target, part)
    if not callable(target):
        raise UsageError(f"{path!r} is a {type(target).__name__}, which cannot be called", where=spec)
    result: Callable[..., Any] = target
    return result


def _import(name: str, spec: str) -> Any:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"importing {name} failed: {error}", where=spec) from error
        hint = f"looked in {folder} and sys.path"
        raise UsageError(f"no module named {error.name!r}", where=spec, hint=hint) from error
    except Exception as error:  # the user's module may raise anything while it is imported
        raise UsageError(f"importing {name} failed: {type(error).__name__}: {error}", where=spec) from error
    finally:
        sys.path.remove(folder)
        # Last in line from now on: the module may import its neighbours when called, yet must not shadow libraries.
        if folder not in sys.path:
            sys.path.append(folder)
