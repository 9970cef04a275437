"""Load format "rouse": weights from the agent when it has them, else from storage and to the agent.

Loading never depends on the agent where there are weight files: whatever goes wrong between engine
and agent is logged, and the weights are loaded as vLLM would load them. From storage the agent reads
for us (stream.py); once a tensor of its stream is in the model, a failure is an error.
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
import vllm
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.logger import init_logger
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from rouse_vllm import (
    IMPORTED_AT_VARIABLE,
    cache_use,
    capture,
    capture_plan,
    guard,
    identity,
    kv_pool,
    manifest,
    phases,
    process_started_us,
    ranks,
    stand_in,
    tensors,
)
from rouse_vllm.errors import AgentRefused, ManifestError, RouseError, Unsupported
from rouse_vllm.link import Link, Settings, now_us
from rouse_vllm.reprocess import Unprocessed
from rouse_vllm.session import NOWHERE, PEER, STORAGE
from rouse_vllm.stream import CheckpointStream
from rouse_vllm.version import TESTED_VLLM, is_tested_vllm

# Below "vllm", whose logging is the one that vLLM sets up.
logger = init_logger("vllm.rouse")

#: How often weights are asked of peers before storage is taken instead.
_MAX_PEER_ATTEMPTS = 3

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")

#: Links live as long as the process: the agent takes the end of a connection for the engine's end.
_open_links: list[Link] = []


def _served_link() -> Link | None:
    """The served model's, while its draft model is loaded."""
    try:
        return guard.served().models[0].link
    except Unsupported:
        return None


def _restore(vllm_config: VllmConfig, layers: dict[str, Any], moe_layers: list[str]) -> None:
    """The layers that vLLM knew of before a model was built that is not to be."""
    vllm_config.compilation_config.static_forward_context.clear()
    vllm_config.compilation_config.static_forward_context.update(layers)
    vllm_config.compilation_config.static_all_moe_layers[:] = moe_layers


def _load_dummies(model: nn.Module, model_config: ModelConfig) -> None:
    DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(model, model_config)


class RouseModelLoader(DefaultModelLoader):
    """Takes the weights of the served model from the agent, or publishes them to it."""

    def __init__(self, load_config: LoadConfig) -> None:
        extra = dict(load_config.model_loader_extra_config or {})
        self._settings = Settings.take(extra)
        # A copy: the engine's own configuration stays as the user wrote it, and a reload finds us.
        storage_config = copy.copy(load_config)
        storage_config.load_format = self._settings.storage_format
        storage_config.model_loader_extra_config = extra
        super().__init__(storage_config)
        self._link: Link | None = None
        self._source = STORAGE
        self._reason = ""
        self._peer_attempts = 0
        self._scalars_before: dict[str, manifest.Scalar] = {}
        self._vllm_config: VllmConfig | None = None
        self._unprocessed: Unprocessed | None = None
        self._may_stand_in = False
        self._begin_again = False

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> nn.Module:
        draft = identity.is_draft(vllm_config, model_config)
        served = _served_link() if draft else None
        if draft and (served is None or model_config is not identity.draft_of(vllm_config)):
            logger.info("Rouse: the draft model %s is loaded from storage", model_config.model)
            return super().load_model(vllm_config, model_config, prefix)
        started_us = now_us()
        self._vllm_config = vllm_config
        if not draft and self._settings.graph_capture == capture_plan.LAZY:
            capture.install(vllm_config, self._settings.graph_capture_trigger)
        self._may_stand_in = stand_in.possible(model_config)
        self._open(vllm_config, served, started_us)
        if self._link is not None and not draft:
            cache_use.install(self._settings.socket, self._link.rank.rank)
            phases.install(self._phase)
        layers = dict(vllm_config.compilation_config.static_forward_context)
        moe_layers = list(vllm_config.compilation_config.static_all_moe_layers)
        while True:
            with self._memory():
                model = super().load_model(vllm_config, model_config, prefix)
            if self._finish(model):
                break
            # Before the next one takes its memory and its layers' names.
            del model
            _restore(vllm_config, layers, moe_layers)
        self._phase("ModelReady")
        if self._link is not None:
            _open_links.append(self._link)
        held = guard.Model(self._link, self._unprocessed)
        if draft:
            guard.add(held)
        else:
            guard.register(guard.Rank([held], vllm_config, self._prepare_kv(vllm_config)))
        return model

    def _memory(self) -> contextlib.AbstractContextManager[None]:
        """What the model is built in: on a GPU, weights that a peer sends need no memory beside."""
        peers = self._link is not None and self._link.rank.gpu and self._source == PEER
        return stand_in.memory() if peers and self._may_stand_in else contextlib.nullcontext()

    def _prepare_kv(self, vllm_config: VllmConfig) -> str:
        """Has the KV cache allocated so that it can be given back; or says why it is not."""
        if vllm_config.device_config.device_type != "cuda" or self._link is None:
            return ""
        try:
            kv_pool.install(vllm_config)
        except Unsupported as error:
            logger.warning("Rouse: this instance cannot sleep: %s", error)
            return str(error)
        return ""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Called by vLLM between building the model and post-processing its weights."""
        self._phase("ModelBuilt")
        self._fill(model, model_config)
        self._phase("WeightsLoaded")

    def _fill(self, model: nn.Module, model_config: ModelConfig) -> None:
        while self._link is not None and self._source == PEER:
            if self._link.rank.form == manifest.PROCESSED:
                # Their values do not matter: the tensors that post-processing makes of them are
                # overwritten when the model is finished.
                _load_dummies(model, model_config)
                return
            if self._take(model):
                self._remember(model, model_config)
                return
        if self._link is not None and self._source == NOWHERE:
            _load_dummies(model, model_config)
            if self._link.rank.form == manifest.PROCESSED:
                self._scalars_before = tensors.scalars(model)
                return
            if self._give_placeholders(model):
                self._remember(model, model_config)
            else:
                # Not into this model: dummy values are where a checkpoint has none, too.
                self._begin_again = True
            return
        self._load_from_storage(model, model_config)
        if self._link is None:
            return
        if self._link.rank.form == manifest.LOADED:
            self._give(model, {})
            self._remember(model, model_config)
        else:
            self._scalars_before = tensors.scalars(model)

    def _remember(self, model: nn.Module, model_config: ModelConfig) -> None:
        """How the model is before it is processed, which a wake with other bytes does again."""
        self._unprocessed = None
        if (
            self._link is not None
            and self._link.mapped is not None
            and self._vllm_config is not None
        ):
            named = tensors.collect(model, manifest.LOADED)
            self._unprocessed = Unprocessed(model, named, model_config, self._vllm_config)

    def _finish(self, model: nn.Module) -> bool:
        """Exchanges processed weights, now that post-processing is over. False: load again."""
        self._phase("WeightsProcessed")
        if self._begin_again:
            self._begin_again = False
            return False
        if self._link is None or self._link.rank.form == manifest.LOADED:
            return True
        if self._source == PEER:
            return self._take(model)
        if self._source == NOWHERE:
            return self._give_placeholders(model)
        self._give(model, tensors.changed(self._scalars_before, tensors.scalars(model)))
        return True

    def _open(self, vllm_config: VllmConfig, served: Link | None, started_us: int) -> None:
        version = vllm.__version__
        if not is_tested_vllm(version):
            logger.warning(
                "Rouse: this plugin was not tested with vLLM %s, only with %s",
                version,
                ", ".join(TESTED_VLLM),
            )
        moments = [("WorkerStarted", process_started_us()), ("LoadStarted", started_us)]
        imported_us = os.environ.get(IMPORTED_AT_VARIABLE, "")
        if imported_us.isdecimal():
            moments.insert(0, ("EngineImported", int(imported_us)))
        rank = ranks.served(vllm_config) if served is None else ranks.draft(served.rank)
        self._link = Link(self._settings, rank, moments)
        self._connect()

    def _connect(self, after: RouseError | None = None) -> None:
        """Asks the agent, on a new connection, where the weights come from."""
        assert self._link is not None
        try:
            welcome = self._link.open()
        except AgentRefused as error:
            if error.code == "FailedPrecondition":
                raise RuntimeError(f"the Rouse agent refuses this engine: {error}") from error
            self._give_up(error)
        except RouseError as error:
            self._give_up(error)
        else:
            self._source, self._reason = welcome.source, welcome.reason
            if self._source == PEER:
                self._peer_attempts += 1
                if self._peer_attempts > _MAX_PEER_ATTEMPTS:
                    self._source = STORAGE
                    self._reason = f"{_MAX_PEER_ATTEMPTS} attempts failed, the last one: {after}"
            logger.info("Rouse: weights come from %s (%s)", self._source, self._reason)

    def _give_up(self, error: RouseError) -> None:
        """Goes on without the agent."""
        logger.warning(
            "Rouse: no weights from the agent, and none to it: %s. Peers cannot take weights from "
            "this instance; look at the log of the agent container",
            error,
        )
        if self._link is not None:
            self._link.close()
        self._link = None
        self._source, self._reason = STORAGE, str(error)

    def _take(self, model: nn.Module) -> bool:
        assert self._link is not None
        started_us = now_us()
        try:
            described = self._link.take(model)
        except (ManifestError, Unsupported, RuntimeError) as error:
            # They would not fit the next time either. A RuntimeError is torch's, and not foreseen.
            logger.warning(
                "Rouse: the agent's weights are not for this model: %s",
                error,
                exc_info=isinstance(error, RuntimeError),
            )
            self._source, self._reason = STORAGE, str(error)
            return False
        except RouseError as error:
            logger.warning("Rouse: weights could not be taken from the agent: %s", error)
            self._connect(after=error)
            return False
        if self._may_stand_in and (left := stand_in.bytes_in_use()):
            error = Unsupported(f"{left} bytes of tensors that Rouse does not find in the model")
            logger.warning("Rouse: the model is built once more, with memory of its own: %s", error)
            self._may_stand_in = False
            self._connect(after=error)
            return False
        logger.info(
            "Rouse: took %d tensors, %.1f MiB, from the agent in %.3f s",
            len(described.tensors),
            described.arena_bytes / 2**20,
            (now_us() - started_us) / 1e6,
        )
        return True

    def _give(self, model: nn.Module, scalars: dict[str, manifest.Scalar]) -> None:
        assert self._link is not None
        started_us = now_us()
        try:
            described = self._link.give(model, scalars)
        except (AgentRefused, Unsupported, RuntimeError, TypeError, ValueError) as error:
            logger.warning(
                "Rouse: the weights were not published, peers cannot take them from this instance: %s",
                error,
                exc_info=isinstance(error, RuntimeError),
            )
        except RouseError as error:
            self._give_up(error)  # The conversation is in no known state any more.
        else:
            logger.info(
                "Rouse: published %d tensors, %.1f MiB, in %.3f s",
                len(described.tensors),
                described.arena_bytes / 2**20,
                (now_us() - started_us) / 1e6,
            )

    def _give_placeholders(self, model: nn.Module) -> bool:
        """Puts a model that has no weights into the agent's memory, which it will find them in when it is
        woken. False: it has to be loaded from storage. It must not serve as it is, whatever happens."""
        assert self._link is not None
        try:
            if self._link.rank.form == manifest.PROCESSED:
                # Compiled code and captured graphs have them in it, and these are of no weights.
                made = tensors.changed(self._scalars_before, tensors.scalars(model))
                if made:
                    names = ", ".join(sorted(made)[:3])
                    raise Unsupported(f"processing makes numbers of this model's weights: {names}")
            self._link.give(model, {}, placeholders=True)
            return True
        except (AgentRefused, Unsupported, TypeError, ValueError) as error:
            logger.warning("Rouse: this instance cannot begin without weights: %s", error)
            self._source, self._reason = STORAGE, str(error)
        except RouseError as error:
            self._give_up(error)  # The conversation is in no known state any more.
        return False

    def _get_weights_iterator(
        self, source: DefaultModelLoader.Source
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """Called by vLLM for each folder of weight files: through the agent where it can."""
        if self.counter_before_loading_weights == 0.0:
            self.counter_before_loading_weights = time.perf_counter()
        stream = self._stream(source)
        if stream is None:
            yield from super()._get_weights_iterator(source)
            return
        used = 0
        try:
            for name, tensor in stream.read():
                if not should_skip_weight(name, self.local_expert_ids):
                    used += 1
                    yield source.prefix + name, tensor
                del tensor  # A variable of ours would keep its slot in use.
        except RouseError as error:
            if used > 0:
                raise RuntimeError(
                    f"the checkpoint was read in part only, {used} tensors of it, before the agent "
                    f"failed: {error}. Start the engine again"
                ) from error
            self._load_alone(error, stream)
            yield from super()._get_weights_iterator(source)
        else:
            logger.info(
                "Rouse: the agent read %d tensors, %.1f MiB; %.1f MiB were copied for the model to keep",
                stream.tensors,
                stream.shape.bytes / 2**20,
                stream.bytes_kept / 2**20,
            )
        finally:
            self._close(stream)

    def _stream(self, source: DefaultModelLoader.Source) -> CheckpointStream | None:
        """The agent's stream of these files, or None when vLLM shall read them by itself."""
        if self._link is None:
            return None
        try:
            files = self._files_to_stream(source)
            return self._link.stream(source.model_or_path, files, self._device())
        except RouseError as error:
            self._load_alone(error)
        return None

    def _files_to_stream(self, source: DefaultModelLoader.Source) -> list[tuple[str, int]]:
        """Names and sizes of the files that vLLM would read. Unsupported where it reads them in a way
        of its own."""
        if self.load_config.load_format != "auto":
            raise Unsupported(f"storageFormat is {self.load_config.load_format}")
        if self.load_config.safetensors_load_strategy is not None:
            raise Unsupported(
                f"safetensors_load_strategy is {self.load_config.safetensors_load_strategy}"
            )
        if self.load_config.model_loader_extra_config.get("enable_multithread_load"):
            raise Unsupported("enable_multithread_load is set")
        if not os.path.isdir(source.model_or_path) or source.subfolder is not None:
            raise Unsupported(f"{source.model_or_path} is not the model's own folder")
        _, paths, use_safetensors = self._prepare_weights(
            source.model_or_path,
            source.subfolder,
            source.revision,
            source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )
        if not use_safetensors:
            raise Unsupported("the weight files are no safetensors files")
        return [(os.path.basename(path), os.path.getsize(path)) for path in paths]

    def _device(self) -> torch.device | None:
        """Where the tensors of a stream shall be, None: on the host. Not for a model of which a part
        stays on the host, for which that would be a detour."""
        assert self._vllm_config is not None
        if self._vllm_config.device_config.device_type != "cuda":
            return None
        offload = self._vllm_config.offload_config
        if offload.uva.cpu_offload_gb > 0 or offload.prefetch.offload_group_size > 0:
            return None
        return torch.device("cuda", torch.cuda.current_device())

    def _load_alone(self, error: RouseError, stream: CheckpointStream | None = None) -> None:
        """Says why vLLM reads the checkpoint by itself."""
        logger.warning("Rouse: vLLM reads the checkpoint, not the agent: %s", error)
        try:
            if stream is not None:
                stream.close(str(error))
            if isinstance(error, (AgentRefused, Unsupported)):
                return
        except RouseError as closing:
            error = closing
        self._give_up(error)  # The conversation is in no known state any more.

    def _close(self, stream: CheckpointStream) -> None:
        try:
            stream.close()
        except RouseError as error:
            self._give_up(error)

    def _phase(self, name: str, at_us: int | None = None) -> None:
        if self._link is None:
            return
        try:
            self._link.phase(name, now_us() if at_us is None else at_us)
        except RouseError as error:
            logger.warning("Rouse: the agent did not take the phase %s: %s", name, error)

    def _load_from_storage(self, model: nn.Module, model_config: ModelConfig) -> None:
        folder = Path(model_config.model)
        if folder.is_dir() and not any(any(folder.glob(p)) for p in _WEIGHT_FILES):
            raise RuntimeError(
                f"there are no weights for {folder}: the folder holds no weight files "
                f"({', '.join(_WEIGHT_FILES)}) and no peer's weights can be taken "
                f"({self._reason or 'no agent was asked'}). Give the pod the model's storage "
                "volume, or start it when an instance of the same model serves"
            )
        super().load_weights(model, model_config)
