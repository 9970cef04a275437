"""What is wrapped is checked first: an unknown vLLM is refused, and left as it is."""

from __future__ import annotations

import contextlib
import inspect
from types import SimpleNamespace

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


# ---- In the vLLM that is installed -----------------------------------------------------------------


def wrapped(owner, name):
    return hasattr(inspect.getattr_static(owner, name), "_rouse_wraps")


@pytest.fixture
def unwrapped():
    """Whatever the test wraps is put back."""
    owners = []
    yield owners.append
    for owner, name in owners:
        found = inspect.getattr_static(owner, name)
        setattr(owner, name, getattr(found, "_rouse_wraps", found))


def test_an_engine_core_is_wrapped_to_take_commands(unwrapped):
    from vllm.v1.engine.core import DPEngineCoreProc, EngineCore, EngineCoreProc

    from rouse_vllm import commands

    places = [
        (EngineCoreProc, "run_busy_loop"),
        (DPEngineCoreProc, "run_busy_loop"),
        (EngineCoreProc, "_handle_client_request"),
        (EngineCore, "resume_scheduler"),
    ]
    for place in places:
        unwrapped(place)
    commands.install()
    assert all(wrapped(*place) for place in places)
    # What it does not wrap, but calls.
    assert list(inspect.signature(EngineCoreProc.pause_scheduler).parameters) == [
        "self", "mode", "clear_cache",
    ]  # fmt: skip
    assert "method" in inspect.signature(EngineCore.collective_rpc).parameters


@pytest.mark.parametrize("v2", [False, True])
def test_a_worker_is_wrapped_to_allocate_its_kv_cache_in_the_pool(unwrapped, v2):
    from vllm.v1.worker.gpu import attn_utils
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import Worker

    from rouse_vllm import kv_pool

    context = (Worker, "_maybe_get_memory_pool_context")
    first = (GPUModelRunner, "_allocate_kv_cache_tensors")
    second = (attn_utils, "_allocate_kv_cache")
    for place in (context, first, second):
        unwrapped(place)
    kv_pool.install(SimpleNamespace(use_v2_model_runner=v2))
    assert wrapped(*context)
    assert (wrapped(*first), wrapped(*second)) == (not v2, v2)


def test_only_a_kv_cache_that_stays_is_allocated_in_the_pool(monkeypatch):
    from rouse_vllm import kv_pool

    pooled = []

    @contextlib.contextmanager
    def pool():
        pooled.append(True)
        yield

    monkeypatch.setattr(kv_pool, "_pool", pool)
    allocate = kv_pool._pooled(lambda config: f"tensors of {config}")
    vllms = kv_pool._context_for(lambda self, tag: contextlib.nullcontext(tag))

    def worker(cumem, backend="cumem"):
        model_config = SimpleNamespace(enable_cumem_allocator=cumem, sleep_mode_backend=backend)
        return SimpleNamespace(vllm_config=SimpleNamespace(model_config=model_config))

    assert allocate("to measure") == "tensors of to measure"
    assert pooled == []
    for ours, tag in (
        (worker(False), "kv_cache"),
        (worker(True, "rouse"), "kv_cache"),
    ):
        with vllms(ours, tag):
            assert allocate("to stay") == "tensors of to stay"
    assert pooled == [True, True]
    for theirs, tag in ((worker(True), "kv_cache"), (worker(False), "weights")):
        with vllms(theirs, tag) as context:
            assert context == tag
            allocate("elsewhere")
    assert pooled == [True, True]


def test_vllm_knows_our_sleep_backend_and_no_level_1_of_it(monkeypatch):
    import vllm.plugins
    from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory

    import rouse_vllm
    from rouse_vllm import guard

    monkeypatch.setattr(guard, "_rank", None)  # Other tests load models in this process.
    rouse_vllm.register()
    assert wrapped(vllm.plugins, "load_general_plugins")
    backend = SleepModeBackendFactory.get_backend_class("rouse")()
    with pytest.raises(Unsupported, match="no level 1: use level 2"):
        backend.suspend(1)
    with pytest.raises(Unsupported, match="no model was loaded"):
        backend.suspend(2)
    assert backend.state() == "RUNNING"
