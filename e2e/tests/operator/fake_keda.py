"""KEDA's side of its external push scaler protocol, with a real gRPC client.

The messages are described here as KEDA's pkg/scalers/externalscaler/externalscaler.proto has them and
not taken from the operator's own file, so that a wrong number there would show.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from rouse_e2e.processes import wait_until

PACKAGE = "externalscaler"
Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "string": Field.TYPE_STRING,
    "bool": Field.TYPE_BOOL,
    "int64": Field.TYPE_INT64,
    "double": Field.TYPE_DOUBLE,
}
MESSAGES = {
    "ScaledObjectRef": ["string name", "string namespace", "map scalerMetadata"],
    "IsActiveResponse": ["bool result"],
    "GetMetricSpecResponse": ["repeated MetricSpec metricSpecs"],
    "MetricSpec": ["string metricName", "int64 targetSize", "double targetSizeFloat"],
    "GetMetricsRequest": ["ScaledObjectRef scaledObjectRef", "string metricName"],
    "GetMetricsResponse": ["repeated MetricValue metricValues"],
    "MetricValue": ["string metricName", "int64 metricValue", "double metricValueFloat"],
}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="keda/externalscaler.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, text in enumerate(fields, 1):
            *label, kind, field_name = text.split()
            field = message.field.add(
                name=field_name, number=number, label=Field.LABEL_OPTIONAL, json_name=field_name
            )
            if label:
                field.label = Field.LABEL_REPEATED
            if kind in SCALARS:
                field.type = SCALARS[kind]
                continue
            field.type = Field.TYPE_MESSAGE
            field.type_name = f".{PACKAGE}.{kind}"
            if kind == "map":
                entry = message.nested_type.add(name="ScalerMetadataEntry")
                entry.options.map_entry = True
                for at, part in enumerate(("key", "value"), 1):
                    entry.field.add(
                        name=part, number=at, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL
                    )
                field.label = Field.LABEL_REPEATED
                field.type_name = f".{PACKAGE}.{name}.ScalerMetadataEntry"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClassesForFiles([file.name], pool)
    return {name: found[f"{PACKAGE}.{name}"] for name in MESSAGES}


_CLASSES = _build()


class FakeKeda:
    """One ScaledObject's trigger. Errors are grpc.RpcError, as the client raises them."""

    def __init__(self, port: int, namespace: str, name: str, **metadata: str) -> None:
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            # KEDA has gRPC-Go's defaults: about a second until the first try after a failed one.
            options=[
                ("grpc.min_reconnect_backoff_ms", 1000),
                ("grpc.max_reconnect_backoff_ms", 3000),
            ],
        )
        self.ref = _CLASSES["ScaledObjectRef"](
            name=name,
            namespace=namespace,
            scalerMetadata={"scalerAddress": f"127.0.0.1:{port}", **metadata},
        )
        self.heard: list[tuple[float, bool]] = []  # when (monotonic), what
        self._streams: list[Any] = []

    def close(self) -> None:
        for stream in self._streams:
            stream.cancel()
        self.channel.close()

    def __enter__(self) -> FakeKeda:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _call(self, method: str, request: Any, answer: str, timeout: float = 5) -> Any:
        call = self.channel.unary_unary(
            f"/{PACKAGE}.ExternalScaler/{method}",
            request_serializer=lambda x: x.SerializeToString(),
            response_deserializer=_CLASSES[answer].FromString,
        )
        return call(request, timeout=timeout)

    def is_active(self) -> bool:
        return self._call("IsActive", self.ref, "IsActiveResponse").result

    def metric_spec(self) -> tuple[str, float]:
        answer = self._call("GetMetricSpec", self.ref, "GetMetricSpecResponse")
        (spec,) = answer.metricSpecs
        return spec.metricName, spec.targetSizeFloat or spec.targetSize

    def metric(self, name: str = "rouse-load") -> float:
        request = _CLASSES["GetMetricsRequest"](scaledObjectRef=self.ref, metricName=name)
        (value,) = self._call("GetMetrics", request, "GetMetricsResponse").metricValues
        assert value.metricName == name
        return value.metricValueFloat or value.metricValue

    def error(self, call: Any) -> tuple[grpc.StatusCode, str]:
        """What `call` fails with; AssertionError if it does not."""
        try:
            answer = call()
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError(f"no error but {answer}")

    def tried(self, call: Any) -> Any:
        """What `call` answers; None while that is UNAVAILABLE."""
        try:
            return call()
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            return None

    def stream_metric_spec(self) -> None:
        """As newer versions of KEDA try it; they go on without when it is UNIMPLEMENTED."""
        call = self.channel.unary_stream(
            f"/{PACKAGE}.ExternalScaler/StreamMetricSpec",
            request_serializer=lambda x: x.SerializeToString(),
            response_deserializer=_CLASSES["GetMetricSpecResponse"].FromString,
        )
        next(call(self.ref, timeout=5))

    def listen(self) -> None:
        call = self.channel.unary_stream(
            f"/{PACKAGE}.ExternalScaler/StreamIsActive",
            request_serializer=lambda x: x.SerializeToString(),
            response_deserializer=_CLASSES["IsActiveResponse"].FromString,
        )
        stream = call(self.ref)
        self._streams.append(stream)

        def read() -> None:
            try:
                for answer in stream:
                    self.heard.append((time.monotonic(), answer.result))
            except grpc.RpcError:
                pass

        threading.Thread(target=read, daemon=True).start()

    def wait_heard(self, wanted: bool, since: float = 0, seconds: float = 20) -> float:
        """When the last that was heard, after `since`, became what is wanted."""

        def heard() -> float | None:
            last = self.heard[-1] if self.heard else (0.0, not wanted)
            return last[0] if last[1] == wanted and last[0] >= since else None

        return wait_until(f"to hear {wanted}", seconds, heard, 0.005)
