"""Every place where vLLM has no extension point: functions of its that we wrap.

A wrapper relies on what the function takes, so that is checked when it is wrapped: an unknown vLLM
gets a clear refusal there, not a wrong answer later. All of it goes through this file; which
functions, and why, is said where each one is wrapped.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rouse_vllm.errors import Unsupported


def parameters(function: Callable[..., Any]) -> str:
    """What a function takes, as its definition says it, without types: "self, level=1, *, tag"."""
    signature = inspect.signature(function)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(bare))[1:-1]


def wrap(
    owner: Any,
    name: str,
    expected: tuple[str, ...],
    make: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Puts make(original) in the place of owner.name, a function or a method. `expected` are the
    parameters (see above) of each vLLM version that the wrapper is written for.

    Unsupported when there is no such function, or it takes something else. Wrapping twice with the
    same `make` does nothing.
    """
    where = f"{getattr(owner, '__module__', '')}.{owner.__name__}.{name}".lstrip(".")
    original = inspect.getattr_static(owner, name, None)
    if not inspect.isfunction(original):
        raise Unsupported(f"this vLLM has no function {where}")
    maker = f"{make.__module__}.{make.__qualname__}"
    inner = original
    while inner is not None:
        if getattr(inner, "_rouse_maker", None) == maker:
            return
        inner = getattr(inner, "_rouse_wraps", None)
    found = parameters(original)
    if found not in expected:
        raise Unsupported(
            f"{where} takes ({found}) in this vLLM, this plugin knows ({') or ('.join(expected)})"
        )
    wrapper = functools.wraps(original)(make(original))
    wrapper._rouse_wraps = original  # type: ignore[attr-defined]
    wrapper._rouse_maker = maker  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """owner.name is `value` in the with block. Unsupported when there is no such thing."""
    if not hasattr(owner, name):
        raise Unsupported(f"this vLLM has no {owner.__name__}.{name}")
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
