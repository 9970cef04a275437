"""What is wrapped is checked first: an unknown vLLM is refused, and left as it is."""

from __future__ import annotations

import pytest

from rouse_vllm import patches
from rouse_vllm.errors import Unsupported


class Upstream:
    def step(self, count: int, *, late: bool = False) -> str:
        return f"{count} {late}"

    attribute = 1


def loud(original):
    return lambda self, *args, **kwargs: original(self, *args, **kwargs) + "!"


@pytest.fixture(autouse=True)
def restored():
    step = Upstream.step
    yield
    Upstream.step = step


def test_a_known_function_is_wrapped_once():
    for _ in range(2):
        patches.wrap(Upstream, "step", ("self, other", "self, count, *, late=False"), loud)
    assert Upstream().step(3, late=True) == "3 True!"
    assert Upstream.step.__name__ == "step"


def quiet(original):
    return lambda self, *args, **kwargs: original(self, *args, **kwargs).lower()


def test_two_features_may_wrap_the_same_function():
    for make in (loud, quiet, loud):
        patches.wrap(Upstream, "step", ("self, count, *, late=False",), make)
    assert Upstream().step(3, late=True) == "3 true!"


@pytest.mark.parametrize(
    ("name", "expected", "message"),
    [
        ("stop", ("self",), "no function .*Upstream.stop"),
        ("attribute", ("self",), "no function .*Upstream.attribute"),
        (
            "step",
            ("self, count", "self"),
            r"Upstream.step takes \(self, count, \*, late=False\) in this vLLM, "
            r"this plugin knows \(self, count\) or \(self\)",
        ),
    ],
)
def test_an_unknown_function_is_refused_by_name(name, expected, message):
    with pytest.raises(Unsupported, match=message):
        patches.wrap(Upstream, name, expected, loud)
    assert Upstream().step(3) == "3 False"


def test_something_is_replaced_for_a_while():
    with pytest.raises(RuntimeError):
        with patches.replaced(Upstream, "attribute", 2):
            assert Upstream.attribute == 2
            raise RuntimeError
    assert Upstream.attribute == 1
    with pytest.raises(Unsupported, match="no Upstream.other"):
        with patches.replaced(Upstream, "other", 2):
            pass
