"""Late capture in vLLM's own dispatchers and with its own signatures. The captures are fakes: there is no GPU."""

from __future__ import annotations

import functools
import random
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_graphs import MAX_REQUESTS, MIB, SIZES, FakeDevice, FakeRanks, FakeRunner
from vllm.config import CUDAGraphMode
from vllm.distributed import parallel_state
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu import model_runner as gpu_model_runner_v2
from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager
from vllm.v1.worker.gpu_worker import Worker

from rouse_vllm import capture, capture_common, capture_v1, capture_v2
from rouse_vllm.capture_plan import FIRST_REQUEST, FULL, IDLE, PIECEWISE, Graph
from rouse_vllm.errors import Unsupported
from rouse_vllm.lazy_graphs import LazyGraphs

WRAPPED = [
    (Worker, "compile_or_warm_up_model"),
    (Worker, "execute_model"),
    (Worker, "sleep"),
    (CudagraphDispatcher, "dispatch"),
    (gpu_model_runner.GPUModelRunner, "_capture_cudagraphs"),
    (gpu_model_runner.GPUModelRunner, "capture_model"),
    (ModelCudaGraphManager, "capture"),
    (ModelCudaGraphManager, "dispatch"),
    (gpu_model_runner_v2.GPUModelRunner, "capture_model"),
]


@pytest.fixture(autouse=True)
def vllm_restored():
    before = [(owner, name, vars(owner).get(name)) for owner, name in WRAPPED]
    yield
    capture_common._engine = None
    for owner, name, original in before:
        if original is not None:
            setattr(owner, name, original)
        elif name in vars(owner):
            delattr(owner, name)


# --- vLLM's own dispatchers ---


def fake_config() -> Any:
    """As much of VllmConfig as dispatchers ask for."""
    compilation = SimpleNamespace(
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
        is_attention_compiled_piecewise=lambda: True,
        splitting_ops=[],
        mode=3,
        cudagraph_capture_sizes=SIZES,
        max_cudagraph_capture_size=SIZES[-1],
        compile_sizes=[],
        cudagraph_specialize_lora=False,
    )
    return SimpleNamespace(
        compilation_config=compilation,
        num_speculative_tokens=0,
        lora_config=None,
        speculative_config=None,
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_REQUESTS),
        observability_config=SimpleNamespace(jit_monitor_mode="warn"),
        parallel_config=SimpleNamespace(
            data_parallel_size=1,
            enable_expert_parallel=False,
            pipeline_parallel_size=1,
            distributed_executor_backend="uni",
            use_ubatching=False,
        ),
        model_config=SimpleNamespace(
            enforce_eager=False, is_hybrid=False, is_attention_free=False, is_encoder_decoder=False
        ),
        use_v2_model_runner=False,
    )


def cache_of(spec: type) -> Any:
    """As much of KVCacheConfig as is looked at."""
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec.__new__(spec))])


class V1:
    """vLLM's dispatcher, and a fake of the runner that captures for it."""

    def __init__(self, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the capture's stream")
        self.dispatcher = CudagraphDispatcher(config)
        self.captured: list[tuple[str, Any]] = []
        real = gpu_model_runner.GPUModelRunner._capture_cudagraphs

        @functools.wraps(real)
        def fake(runner, batch_descriptors, cudagraph_runtime_mode, profiler=None):
            for descriptor in batch_descriptors:
                # As _dummy_run asserts.
                assert self.dispatcher.dispatch(
                    descriptor.num_tokens,
                    uniform_decode=descriptor.uniform,
                ) == (cudagraph_runtime_mode, descriptor)
                self.captured.append((cudagraph_runtime_mode.name, descriptor))

        monkeypatch.setattr(gpu_model_runner.GPUModelRunner, "_capture_cudagraphs", fake)
        self.config = config
        self.kv_cache_config = cache_of(FullAttentionSpec)
        # The context of a late capture is the GPU's.
        monkeypatch.setattr(capture_v1.RunnerV1, "late", no_context)

    def start(self) -> None:
        runner = SimpleNamespace(vllm_config=self.config, kv_cache_config=self.kv_cache_config)
        self.dispatcher.initialize_cudagraph_keys(CUDAGraphMode.FULL_AND_PIECEWISE)
        for mode, descriptors in self.dispatcher.get_capture_descs():
            gpu_model_runner.GPUModelRunner._capture_cudagraphs(
                runner, batch_descriptors=descriptors, cudagraph_runtime_mode=mode
            )

    def dispatch(self, requests: int, tokens: int) -> tuple[str, int, Any]:
        mode, descriptor = self.dispatcher.dispatch(tokens, uniform_decode=tokens == requests)
        return mode.name, descriptor.num_tokens, descriptor

    wrap = staticmethod(capture_v1.wrap_runner)


def stream_of_a_capture() -> str:
    """As vLLM's graph_capture() makes it."""
    return parallel_state.GraphCaptureContext("a new stream").stream


class V2:
    """vLLM's manager, and a fake of its captures."""

    def __init__(self, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: "the capture's stream")
        self.captured: list[tuple[str, Any]] = []
        self.streams: list[Any] = []
        manager = ModelCudaGraphManager.__new__(ModelCudaGraphManager)
        vars(manager).update(
            vllm_config=config,
            device="cuda",
            max_num_reqs=MAX_REQUESTS,
            compilation_config=config.compilation_config,
            cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
            decode_query_len=1,
            lora_capture_cases=[0],
            graphs={},
            use_breakable_cg=False,
            _lora_dispatch_map={},
            _max_lora_case=0,
            _graphs_captured=False,
            _candidates={},
            _capture_descs={},
        )
        manager._init_candidates()
        self.manager = manager
        self.kv_cache_config = cache_of(FullAttentionSpec)

        @functools.wraps(ModelCudaGraphManager.capture)
        def fake(manager, *arguments, **named):
            assert arguments[0] == "model" and named == {"has_lora": False}
            self.streams.append(stream_of_a_capture())
            for mode in (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL):
                for descriptor in manager._capture_descs.get(mode, []):
                    assert descriptor not in manager.graphs
                    self.captured.append((mode.name, descriptor))
                    manager.graphs[descriptor] = "graph"
            manager._graphs_captured = True

        monkeypatch.setattr(ModelCudaGraphManager, "capture", fake)
        monkeypatch.setattr(capture_v2.RunnerV2, "late", no_context)

    def start(self) -> None:
        self.manager.capture("model", "", "", "", "", "", self.kv_cache_config, has_lora=False)
        assert set(self.manager._capture_descs) == {CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL}

    def dispatch(self, requests: int, tokens: int) -> tuple[str, int, Any]:
        uniform = tokens // requests if tokens % requests == 0 else None
        descriptor = self.manager.dispatch(requests, tokens, uniform, num_active_loras=0)
        return descriptor.cg_mode.name, descriptor.num_tokens, descriptor

    wrap = staticmethod(capture_v2.wrap_runner)


def as_real(real: Any, fake: Any) -> Any:
    """The fake as a function with the real one's signature, which wrapping checks."""

    @functools.wraps(real)
    def function(*arguments, **named):
        return fake(*arguments, **named)

    return function


@contextmanager
def no_context(self):
    yield


BATCHES = [(1, 1), (3, 3), (32, 32), (1, 5), (2, 9), (1, 64), (7, 65), (20, 20), (4, 40), (33, 33)]


@pytest.mark.parametrize("version", [V1, V2])
def test_no_batch_is_given_to_a_graph_that_is_not_captured(version, monkeypatch):
    config = fake_config()
    eager = version(config, monkeypatch)
    eager.start()
    expected = {batch: eager.dispatch(*batch) for batch in BATCHES}
    assert {mode for mode, _, _ in expected.values()} == {"FULL", "PIECEWISE", "NONE"}
    everything = set(eager.captured)

    config = fake_config()
    lazy = version(config, monkeypatch)
    lazy.wrap()
    graphs = LazyGraphs(IDLE, FakeDevice(), FakeRanks)
    capture_common.set_engine(config, graphs)
    lazy.start()
    assert [(mode, d.num_tokens) for mode, d in lazy.captured] == [("PIECEWISE", 64), ("FULL", 32)]
    graphs.serve(None)

    without, order = 0, random.Random(7)
    while True:
        for batch in order.sample(BATCHES, len(BATCHES)):
            mode, tokens, descriptor = lazy.dispatch(*batch)
            wanted_mode, wanted_tokens, wanted = expected[batch]
            if mode == "NONE":
                # Padded as it will be with a graph: the same shapes, and so the same kernels.
                assert tokens == wanted_tokens
                without += wanted_mode != "NONE"
            else:
                assert (mode, descriptor) in lazy.captured
                assert tokens == wanted_tokens
            if (wanted_mode, wanted) in lazy.captured:
                assert (mode, descriptor) == (wanted_mode, wanted)
        if graphs.pending.left == 0:
            break
        graphs.step(0.0)
    assert without > 20
    assert set(lazy.captured) == everything and len(lazy.captured) == len(everything)
    if isinstance(lazy, V2):
        # All on one stream: only there can the pool's memory be used again.
        assert set(lazy.streams) == {"the capture's stream"}
        assert stream_of_a_capture() == "a new stream"


@pytest.mark.parametrize("version", [V1, V2])
def test_other_engines_are_left_alone(version, monkeypatch):
    config = fake_config()
    engine = version(config, monkeypatch)
    engine.wrap()
    capture_common.set_engine(fake_config(), LazyGraphs(IDLE, FakeDevice(), FakeRanks))
    engine.start()
    assert len(engine.captured) == len(SIZES) + sum(size <= MAX_REQUESTS for size in SIZES)


def test_a_decode_batch_takes_a_piecewise_graph_of_its_size_meanwhile(monkeypatch):
    for version in (V1, V2):
        config = fake_config()
        lazy = version(config, monkeypatch)
        lazy.wrap()
        graphs = LazyGraphs(IDLE, FakeDevice(), FakeRanks)
        capture_common.set_engine(config, graphs)
        lazy.start()
        for graph in list(graphs.pending._left):
            if graph.mode == PIECEWISE:
                graphs.pending.begin(graph)
                graphs.pending.end(graph, True)
        assert lazy.dispatch(3, 3)[:2] == ("PIECEWISE", 4)


@pytest.mark.parametrize("version", [V1, V2])
def test_a_model_with_other_state_than_keys_and_values_captures_all_at_start(version, monkeypatch):
    config = fake_config()
    engine = version(config, monkeypatch)
    engine.wrap()
    capture_common.set_engine(config, LazyGraphs(IDLE, FakeDevice(), FakeRanks))
    engine.kv_cache_config = cache_of(MambaSpec)
    engine.start()
    assert len(engine.captured) == len(SIZES) + sum(size <= MAX_REQUESTS for size in SIZES)


# --- The worker ---


class FakeWorker:
    def __init__(self, config: Any) -> None:
        self.vllm_config = config
        self.model_runner = SimpleNamespace(execute_model_state=None)
        self.did: list[str] = []


def engine_with_worker(monkeypatch, trigger: str = IDLE):
    """A fake worker on which vLLM's own methods are called, whose work is a fake too."""
    config = fake_config()
    device = FakeDevice()
    graphs = LazyGraphs(trigger, device, FakeRanks)
    worker = FakeWorker(config)
    capture_common.set_engine(config, graphs)

    def warm_up(self):
        graphs.start(FakeRunner(device), [Graph(FULL, size, size) for size in (1, 2, 4)])
        Worker.execute_model(self, SimpleNamespace(total_num_scheduled_tokens=2))
        self.did.append("warmed up")

    for name, fake in (
        ("compile_or_warm_up_model", warm_up),
        ("execute_model", lambda self, output: self.did.append(f"step {graphs.pending.left}")),
        ("sleep", lambda self, level=1: self.did.append(f"slept {level}")),
    ):
        monkeypatch.setattr(Worker, name, as_real(getattr(Worker, name), fake))
    capture.wrap_worker()
    Worker.compile_or_warm_up_model(worker)
    return worker, graphs


def test_the_first_step_with_requests_captures_what_is_left(monkeypatch):
    worker, graphs = engine_with_worker(monkeypatch, FIRST_REQUEST)
    Worker.execute_model(worker, SimpleNamespace(total_num_scheduled_tokens=0))
    Worker.execute_model(worker, SimpleNamespace(total_num_scheduled_tokens=1))
    assert worker.did == ["step 2", "warmed up", "step 2", "step 0"]


def test_a_worker_captures_everything_before_it_sleeps(monkeypatch):
    worker, graphs = engine_with_worker(monkeypatch)
    Worker.sleep(worker, 2)
    assert graphs.pending.left == 0 and worker.did[-1] == "slept 2"


def test_the_agent_captures_between_steps_only(monkeypatch):
    worker, graphs = engine_with_worker(monkeypatch)
    wrapper = SimpleNamespace(worker=worker, vllm_config=None)  # What collective_rpc hands over.
    worker.model_runner.execute_model_state = "not sampled yet"
    assert capture.step(wrapper, 9.0) == (0, 2)
    worker.model_runner.execute_model_state = None
    assert capture.step(wrapper) == (1, 1)
    assert capture.status(wrapper)["captured"] == 2
    capture.finish(wrapper)
    assert capture.step(wrapper) == (0, 0)
    capture_common._engine = None
    assert capture.step(wrapper, 9.0) == (0, 0) and capture.status(wrapper) == {}


def test_the_memory_of_graphs_to_come_counts_as_graph_memory(monkeypatch):
    """vLLM saves start-up plans from it: a later start with one sizes its KV cache by it."""
    config = fake_config()
    device = FakeDevice()
    graphs = LazyGraphs(IDLE, device, FakeRanks)
    capture_common.set_engine(config, graphs)
    runner_class = gpu_model_runner.GPUModelRunner

    def fake(self):
        graphs.start(FakeRunner(device), [Graph(FULL, size, size) for size in (1, 2, 4)])
        return 60 * MIB

    monkeypatch.setattr(runner_class, "capture_model", as_real(runner_class.capture_model, fake))
    capture_v1.wrap_runner()
    assert runner_class.capture_model(SimpleNamespace(vllm_config=config)) == 80 * MIB


@pytest.mark.parametrize("v2", [False, True])
def test_installing_wraps_this_vllm(v2, monkeypatch):
    """Signatures of the real functions are checked: this fails when vLLM changes them."""
    config = fake_config()
    config.use_v2_model_runner = v2
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cuda=lambda: True))
    assert capture.install(config, IDLE)
    runner = gpu_model_runner_v2.GPUModelRunner if v2 else gpu_model_runner.GPUModelRunner
    assert hasattr(runner.capture_model, "_rouse_wraps")
    assert capture_common.graphs_of(SimpleNamespace(vllm_config=config)) is not None


def test_nothing_is_wrapped_where_nothing_can_be_captured_late(monkeypatch):
    said = []
    monkeypatch.setattr(capture, "say_why_not", said.append)
    assert not capture.install(fake_config(), IDLE)  # There is no GPU here.
    assert said == ["CUDA graphs are captured on NVIDIA GPUs only"]
    assert not hasattr(Worker.execute_model, "_rouse_wraps")
    assert not hasattr(CudagraphDispatcher.dispatch, "_rouse_wraps")


def test_an_unknown_vllm_captures_all_at_start(monkeypatch):
    said = []
    monkeypatch.setattr(capture, "say_why_not", said.append)
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cuda=lambda: True))
    monkeypatch.setattr(CudagraphDispatcher, "dispatch", lambda self, batch: None)
    config = fake_config()
    assert not capture.install(config, IDLE)
    assert "dispatch takes (self, batch) in this vLLM" in said[0]
    assert capture_common.graphs_of(SimpleNamespace(vllm_config=config)) is None
    with pytest.raises(Unsupported):
        capture_v1.wrap_runner()


def test_vllms_own_capture_context_takes_the_stream_it_is_given(monkeypatch):
    seen = []

    class Group:
        @contextmanager
        def graph_capture(self, context):
            seen.append(context.stream)
            yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "a new stream")
    for name in ("get_tp_group", "get_pp_group"):
        monkeypatch.setattr(parallel_state, name, Group)
    with capture_common.on_stream("the first one"), parallel_state.graph_capture("cuda") as context:
        assert context.stream == "the first one"
    with parallel_state.graph_capture("cuda"):
        pass
    assert seen == ["the first one"] * 2 + ["a new stream"] * 2


def test_late_capture_does_not_mind_other_threads():
    """vLLM asks for torch.cuda.graph without saying how it treats what other threads do."""
    module = SimpleNamespace(tqdm="a progress bar")
    before = torch.cuda.graph
    with capture_common.late_capture(module):
        assert torch.cuda.graph.keywords == {"capture_error_mode": "thread_local"}
        assert list(module.tqdm([1, 2], desc="Capturing")) == [1, 2]
    assert torch.cuda.graph is before and module.tqdm == "a progress bar"
