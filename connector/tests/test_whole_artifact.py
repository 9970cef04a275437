"""When vLLM is told to keep what it compiles as one artefact."""

from __future__ import annotations

import os

import pytest
from vllm import envs

from rouse_vllm import whole_artifact

WAYS = ("VLLM_USE_AOT_COMPILE", "VLLM_USE_STANDALONE_COMPILE", "VLLM_DISABLE_COMPILE_CACHE")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WAYS, whole_artifact.VARIABLE):
        monkeypatch.setenv(name, "")  # So that it is put back, whatever install() does.
        monkeypatch.delenv(name)


def test_it_is_told_where_nobody_says_anything() -> None:
    whole_artifact.install()
    assert envs.VLLM_USE_MEGA_AOT_ARTIFACT
    assert whole_artifact.VARIABLE in envs.compile_factors()


def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(whole_artifact.VARIABLE, "0")
    whole_artifact.install()
    assert not envs.VLLM_USE_MEGA_AOT_ARTIFACT


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("VLLM_USE_AOT_COMPILE", "0"),
        ("VLLM_USE_STANDALONE_COMPILE", "0"),
        ("VLLM_DISABLE_COMPILE_CACHE", "1"),
    ],
)
def test_not_beside_a_way_to_compile_that_has_no_such_artefact(
    monkeypatch: pytest.MonkeyPatch, way: str, value: str
) -> None:
    monkeypatch.setenv(way, value)
    whole_artifact.install()
    assert whole_artifact.VARIABLE not in os.environ


def test_a_vllm_that_does_not_know_it_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(envs.environment_variables, whole_artifact.VARIABLE)
    whole_artifact.install()
    assert whole_artifact.VARIABLE not in os.environ
