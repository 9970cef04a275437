"""Models are inspected before the launcher forks, so that no engine has to."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import make_moe
from vllm.model_executor.models import registry

from rouse_vllm import preload


def test_vllm_need_not_import_itself_again_to_inspect_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a new container, but a process of its own would fail.
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_SUBPROCESS_COMMAND", ["false"])
    (model,) = preload.registered_models(str(make_moe(tmp_path / "model")))
    with pytest.raises(RuntimeError):
        model.inspect_model_cls()
    preload.inspect_model(model)
    assert model.inspect_model_cls().architecture == "Qwen3MoeForCausalLM"


def test_a_folder_without_a_model_of_vllms_names_none(tmp_path: Path) -> None:
    assert preload.registered_models(str(tmp_path)) == []
    (tmp_path / "config.json").write_text('{"architectures": ["Unknown"]}')
    assert preload.registered_models(str(tmp_path)) == []
