"""Checkpoints that the agent reads: into real vLLM models, and tensor by tensor beside safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import Answer, Die, FakeAgent
from loading import Load, same
from safetensors import safe_open
from safetensors.torch import save_file

from rouse_vllm import stream
from rouse_vllm.errors import ProtocolError, Unsupported
from rouse_vllm.session import Session
from rouse_vllm.stream import CheckpointStream

pytest_plugins = ["loading"]

SMALL = 64 * 1024  # a slot that is smaller than the largest tensors of the tiny models


def files_of(folder: Path) -> list[tuple[str, int]]:
    return [(file.name, file.stat().st_size) for file in folder.glob("*.safetensors")]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with FakeAgent(tmp_path / "engine.sock", slot_bytes=8192) as agent:
        yield agent
    assert agent.errors == []


def open_stream(
    agent: FakeAgent, folder: Path, device: torch.device | None = None
) -> CheckpointStream:
    session = Session(str(agent.path), 0, 5)
    return CheckpointStream(session, str(folder), files_of(folder), device)


#: Views into the slots, and views into a copy on a device, for which the host stands in.
both_ways = pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["views", "copies"])


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def numbered(count: int, size: int) -> dict[str, torch.Tensor]:
    return {f"t{i}": torch.full((size,), i, dtype=torch.int32) for i in range(count)}


# ---- Tensors ---------------------------------------------------------------------------------------


@both_ways
def test_every_type_of_tensor_comes_as_safetensors_gives_it(
    agent: FakeAgent, tmp_path: Path, device: torch.device | None
) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for kind, dtype in stream.DTYPES.items():
        raw = torch.randint(0, 2, (24, 16), generator=generator, dtype=torch.uint8)
        if dtype is not torch.bool:
            raw = torch.randint(0, 256, (24, 16), generator=generator, dtype=torch.uint8)
        tensors[kind] = raw.view(dtype)
        tensors[kind + ".odd"] = raw[:, :8].contiguous().view(dtype)[:3].contiguous()
        tensors[kind + ".empty"] = torch.empty((0, 5), dtype=dtype)
        tensors[kind + ".scalar"] = raw.view(dtype)[0, 0].clone()
    tensors["shift"] = torch.zeros(1, dtype=torch.uint8)  # what follows lies at no multiple of 2
    write(tmp_path / "model", tensors)
    came = {}
    for name, tensor in open_stream(agent, tmp_path / "model", device).read():
        assert tensor.is_contiguous() and tensor.device.type == "cpu"
        assert tensor.data_ptr() % max(tensor.element_size(), 1) == 0
        came[name] = tensor.clone()
    with safe_open(tmp_path / "model/model.safetensors", "pt") as file:
        assert came.keys() == set(file.keys()) == tensors.keys()
        for name in file.keys():  # noqa: SIM118
            expected = file.get_tensor(name)
            assert (came[name].dtype, came[name].shape) == (expected.dtype, expected.shape), name
            assert bytes(came[name].flatten().view(torch.uint8)) == bytes(
                expected.flatten().view(torch.uint8)
            ), name


@both_ways
def test_tensors_at_odd_places_are_aligned(
    agent: FakeAgent, tmp_path: Path, device: torch.device | None
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "wide": {"dtype": "F64", "shape": [2], "data_offsets": [1, 17]},
    }
    text = json.dumps(header).encode()
    data = b"\x07" + torch.tensor([1.5, -2.5], dtype=torch.float64).numpy().tobytes()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    came = {name: tensor.clone() for name, tensor in open_stream(agent, folder, device).read()}
    assert came["wide"].tolist() == [1.5, -2.5] and came["byte"].tolist() == [7]


@both_ways
def test_a_tensor_that_is_larger_than_a_slot_is_put_together(
    agent: FakeAgent, tmp_path: Path, device: torch.device | None
) -> None:
    tensors = write(
        tmp_path / "model",
        {"a": torch.arange(5), "b": torch.arange(100_000), "c": torch.arange(7)},
    )
    reading = open_stream(agent, tmp_path / "model", device)
    came = {name: tensor.clone() for name, tensor in reading.read()}
    assert all(torch.equal(came[name], tensors[name]) for name in tensors)
    assert reading.shape.batches > 90 and reading.tensors == 3


def mapped_slots() -> int:
    """How much of the slots' memory this process has mapped, in bytes."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/memfd:stream" in line and " rw-p " in line:  # The fake agent's own are shared.
            low, high = (int(x, 16) for x in line.split()[0].split("-"))
            total += high - low
    return total


REFERENCES: list[Callable[[torch.Tensor], Any]] = [
    lambda tensor: tensor,
    lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    lambda tensor: tensor[10:900:7],
    lambda tensor: tensor.numpy(),
    lambda tensor: None,
]


def test_what_is_kept_stays_what_it_was_however_it_is_referred_to(
    agent: FakeAgent, tmp_path: Path
) -> None:
    tensors = write(tmp_path / "model", numbered(60, 1000))  # two in a slot
    before = mapped_slots()
    kept: dict[str, Any] = {}
    reading = open_stream(agent, tmp_path / "model")
    for i, (name, tensor) in enumerate(reading.read()):
        kept[name] = REFERENCES[i % len(REFERENCES)](tensor)
        del tensor
    reading.close()
    for name, value in kept.items():
        if value is not None:
            assert set(value.tolist()) == {int(tensors[name][0])}, name
    # Of the slots nothing is left but the pages that are referred to.
    assert 0 < reading.bytes_kept < 60 * 8192
    assert mapped_slots() - before <= reading.bytes_kept
    kept.clear()
    del value
    assert mapped_slots() == before


def test_what_is_not_kept_is_not_copied(agent: FakeAgent, tmp_path: Path) -> None:
    write(tmp_path / "model", numbered(60, 1000))
    reading = open_stream(agent, tmp_path / "model")
    total = 0
    for _, tensor in reading.read():
        total += int(tensor.sum())
    assert total == 1000 * sum(range(60))
    assert reading.bytes_kept <= 2 * 8192  # what the loop's variable referred to at the end


@both_ways
def test_writing_to_a_tensor_changes_no_later_one(
    agent: FakeAgent, tmp_path: Path, device: torch.device | None
) -> None:
    tensors = write(tmp_path / "model", numbered(60, 1000))
    for name, tensor in open_stream(agent, tmp_path / "model", device).read():
        assert torch.equal(tensor, tensors[name]), name
        tensor.fill_(-1)
    assert agent.stream is not None
    for memory in agent.stream._writable:
        assert b"\xff" * 64 not in bytes(memory)  # nor what other ranks see


@both_ways
def test_a_stream_that_is_not_read_to_its_end_leaves_good_tensors(
    agent: FakeAgent, tmp_path: Path, device: torch.device | None
) -> None:
    tensors = write(tmp_path / "model", numbered(60, 1000))
    reading = open_stream(agent, tmp_path / "model", device)
    iterator = reading.read()
    kept = dict(next(iterator) for _ in range(9))
    reading.close("that was enough")
    assert agent.requests[-1]["reason"] == "that was enough"
    assert agent.stream is not None
    for memory in agent.stream._writable:
        memory[:] = b"\xee" * len(memory)
    assert all(torch.equal(kept[name], tensors[name]) for name in kept) and len(kept) == 9


def test_copies_live_as_long_as_their_tensors_and_slots_do_not(
    agent: FakeAgent, tmp_path: Path
) -> None:
    tensors = write(tmp_path / "model", numbered(60, 1000))  # two in a slot
    kept: dict[str, Any] = {}
    reading = open_stream(agent, tmp_path / "model", torch.device("cpu"))
    for i, (name, tensor) in enumerate(reading.read()):
        assert agent.stream is not None
        # A slot is free as soon as it is copied: the next batch is asked for with all others given back.
        assert agent.stream.released == agent.stream.next - 1
        kept[name] = REFERENCES[i % len(REFERENCES)](tensor)
        del tensor
    reading.close()
    assert reading.bytes_kept == 0
    assert "/memfd:stream" not in "".join(
        line for line in Path("/proc/self/maps").read_text().splitlines() if " r--s " in line
    )
    for name, value in kept.items():
        if value is not None:
            assert set(value.tolist()) == {int(tensors[name][0])}, name


def test_types_that_we_cannot_take_are_refused_at_once(agent: FakeAgent, tmp_path: Path) -> None:
    write(tmp_path / "model", numbered(1, 4))
    agent.overrides["OpenStream"] = lambda request, answer: (
        answer[0] | {"dtypes": ["I32", "F6_E2M3"]},
        answer[1],
    )
    with pytest.raises(Unsupported, match="the type F6_E2M3"):
        open_stream(agent, tmp_path / "model")
    assert agent.types()[-1] == "CloseStream"


def change(number: int, edit: Callable[[dict[str, Any]], Any]) -> Callable[..., Answer]:
    """Edits the first piece of a batch."""

    def override(request: dict[str, Any], answer: Answer) -> Answer:
        body = json.loads(json.dumps(answer[0]))
        if request["batch"] == number:
            edit(body["pieces"][0])
        return body, answer[1]

    return override


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda piece: piece.update(at=8192), "is not in its slot"),
        (lambda piece: piece.update(at=-1), "at: missing, or no count"),
        (lambda piece: piece.update(dtype="F64"), "of an unknown type"),
        (lambda piece: piece.update(shape=[1 << 60]), "its parts do not fit|goes on"),
        (lambda piece: piece.update(shape=[-1]), "expected counts"),
        (lambda piece: piece.update(shape="x"), "expected counts"),
        (lambda piece: piece.update(begin=4), "its parts do not fit together"),
        (lambda piece: piece.update(bytes=8), "its parts do not fit|goes on, or lacks"),
        (lambda piece: piece.pop("name"), "name: missing"),
    ],
)
def test_pieces_that_lie_are_an_error(
    agent: FakeAgent, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    write(tmp_path / "model", numbered(9, 1000))
    agent.overrides["NextBatch"] = change(2, edit)
    reading = open_stream(agent, tmp_path / "model")
    with pytest.raises((ProtocolError, RuntimeError), match=message + "|can't allocate memory"):
        for _ in reading.read():
            pass


def test_slots_that_cannot_be_mapped_are_said_and_left(agent: FakeAgent, tmp_path: Path) -> None:
    write(tmp_path / "model", numbered(9, 1000))
    agent.overrides["OpenStream"] = lambda request, answer: (
        answer[0] | {"slotBytes": 1 << 20},  # more than they are
        answer[1],
    )
    with pytest.raises(ProtocolError, match="8192 bytes, 1048576 were announced"):
        open_stream(agent, tmp_path / "model", torch.device("cpu"))
    assert agent.requests[-1]["type"] == "CloseStream"
    assert "1048576 were announced" in agent.requests[-1]["reason"]


# ---- Models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot_bytes", [SMALL, 1 << 20])
@pytest.mark.parametrize("kind", ["moe", "tied"])
def test_a_model_has_the_same_weights_as_by_vllms_own_loader(
    load: Load,
    kind: str,
    slot_bytes: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    checkpoint = request.getfixturevalue(kind)
    with FakeAgent(tmp_path / "s", slot_bytes=slot_bytes) as agent:
        loaded = load(checkpoint, agent.path)
    assert agent.errors == []
    assert same(loaded, load(checkpoint, None))
    assert agent.stream is not None and agent.stream.next == len(agent.stream.batches)
    if slot_bytes == SMALL:
        assert any(p["begin"] > 0 for _, _, pieces in agent.stream.batches for p in pieces)
    ends = [r for r in agent.requests if r["type"] == "CloseStream"]
    assert [r["reason"] for r in ends] == [""]
    for line in loaded.places.values():
        assert "memfd:stream" not in line  # what the model computes with is not the stream's


def test_a_model_that_gathers_all_tensors_first_gets_the_right_ones(
    load: Load,
    moe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

    stock = load(moe, None)
    load_weights = Qwen3MoeForCausalLM.load_weights

    def gather(self: Any, weights: Any) -> Any:
        return load_weights(self, reversed(list(weights)))

    monkeypatch.setattr(Qwen3MoeForCausalLM, "load_weights", gather)
    with FakeAgent(tmp_path / "s", slot_bytes=SMALL) as agent:
        assert same(load(moe, agent.path), stock)
    assert agent.errors == [] and agent.stream is not None
    assert agent.stream.next > 8  # each slot was used again


def fail_at(number: int, fault: Callable[..., Answer]) -> Callable[..., Answer]:
    def override(request: dict[str, Any], answer: Answer) -> Answer:
        return fault(request, answer) if request["batch"] == number else answer

    return override


def die(request: dict[str, Any], answer: Answer) -> Answer:
    raise Die


def refuse(request: dict[str, Any], answer: Answer) -> Answer:
    return {"type": "Error", "code": "DataLoss", "message": "model.safetensors: is cut off"}, []


def nonsense(request: dict[str, Any], answer: Answer) -> Answer:
    return b"\x00", []


def with_fds(request: dict[str, Any], answer: Answer) -> Answer:
    return answer[0], [0]


FAULTS = [die, refuse, nonsense, with_fds]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("asked", ["OpenStream", "NextBatch"])
def test_before_the_first_tensor_vllms_own_loader_takes_over(
    load: Load,
    moe: Path,
    tmp_path: Path,
    asked: str,
    fault: Callable[..., Answer],
) -> None:
    override = fault if asked == "OpenStream" else fail_at(0, fault)
    with FakeAgent(tmp_path / "s", overrides={asked: override}) as agent:
        loaded = load(moe, agent.path)
    assert same(loaded, load(moe, None))
    assert agent.errors == []
    if fault is refuse:  # The conversation goes on: the weights are published all the same.
        assert agent.published is not None
        reasons = [r["reason"] for r in agent.requests if r["type"] == "CloseStream"]
        assert reasons == (
            [] if asked == "OpenStream" else ["DataLoss: model.safetensors: is cut off"]
        )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("when", ["in the middle", "at the end"])
def test_after_the_first_tensor_a_failure_is_a_clear_error(
    load: Load,
    moe: Path,
    tmp_path: Path,
    when: str,
    fault: Callable[..., Answer],
) -> None:
    with FakeAgent(tmp_path / "s") as agent:
        load(moe, agent.path)
        assert agent.stream is not None
        number = len(agent.stream.batches) if when == "at the end" else 3
    with FakeAgent(tmp_path / "s", overrides={"NextBatch": fail_at(number, fault)}) as agent:
        with pytest.raises(RuntimeError, match="read in part only, .*Start the engine again"):
            load(moe, agent.path)
    assert "Publish" not in agent.types()
    assert agent.errors == []


def test_the_agent_is_waited_for(load: Load, moe: Path, tmp_path: Path) -> None:
    waits = [2, 3]
    agent = FakeAgent(tmp_path / "s")
    answer = agent._answer

    def slow(request: dict[str, Any], fds: list[int]) -> Answer:
        which = {"OpenStream": 0, "NextBatch": 1}.get(request["type"])
        if which is not None and waits[which] > 0:
            waits[which] -= 1
            return {"type": "Pending"}, []
        return answer(request, fds)

    agent._answer = slow  # type: ignore[method-assign]
    with agent:
        assert same(load(moe, agent.path), load(moe, None))
    assert agent.types().count("OpenStream") == 3
    assert waits == [0, 0]


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ({"storageFormat": "safetensors"}, {}),
        ({"enable_multithread_load": True}, {}),
        ({}, {"safetensors_load_strategy": "eager"}),
    ],
)
def test_another_way_to_load_that_the_user_chose_is_taken(
    load: Load,
    moe: Path,
    tmp_path: Path,
    extra: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    with FakeAgent(tmp_path / "s") as agent:
        assert same(load(moe, agent.path, extra=extra, **arguments), load(moe, None))
    assert "OpenStream" not in agent.types()
    assert agent.published is not None


def test_only_what_vllm_would_read_is_asked_for(
    load: Load,
    moe: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in moe.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "extra.safetensors").write_bytes(b"not named by the index")
    with FakeAgent(tmp_path / "s") as agent:
        assert same(load(folder, agent.path), load(moe, None))
    (asked,) = [r for r in agent.requests if r["type"] == "OpenStream"]
    assert asked["folder"] == str(folder)
    assert asked["files"] == [
        {"name": file.name, "bytes": file.stat().st_size}
        for file in sorted(folder.glob("model-*.safetensors"))
    ]
