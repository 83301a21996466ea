"""`tf.train.Example`, the record of TFDS and img2dataset, read and written without TensorFlow."""

import functools
from collections.abc import Mapping
from typing import Any


class ExampleError(ValueError):
    """The bytes are no Example; its message is the reason under which the record is counted."""


def read_example(record: bytes) -> dict[str, list[Any]]:
    """The features of an Example: a list of bytes, floats or integers for each name.

    Raises:
        ExampleError: it is none.
    """
    from google.protobuf.message import DecodeError

    try:
        example = _example_class().FromString(record)
    except DecodeError as error:
        raise ExampleError("record is no tf.train.Example") from error
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def write_example(features: Mapping[str, bytes | str | float | int | list[str]]) -> bytes:
    """An Example that holds these features."""
    example = _example_class()()
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        kind = next(iter(values))
        feature = example.features.feature[name]
        if isinstance(kind, int):
            feature.int64_list.value.extend(values)
        elif isinstance(kind, float):
            feature.float_list.value.extend(values)
        else:
            feature.bytes_list.value.extend(item.encode() if isinstance(item, str) else item for item in values)
    return example.SerializeToString()


def _values(feature: Any) -> list[Any]:
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


@functools.cache
def _example_class() -> Any:
    """The message type, by the field numbers that TensorFlow publishes in example.proto and feature.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="clipa_eqx/example.proto", package="clipa", syntax="proto3")
    lists = {"BytesList": kinds.TYPE_BYTES, "FloatList": kinds.TYPE_FLOAT, "Int64List": kinds.TYPE_INT64}
    for name, kind in lists.items():
        values = file.message_type.add(name=name).field
        values.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)

    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (field, name) in enumerate(
        zip(("bytes_list", "float_list", "int64_list"), lists, strict=True), start=1
    ):
        _add_message(feature, field, number, f".clipa.{name}").oneof_index = 0

    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    _add_message(entry, "value", 2, ".clipa.Feature")
    _add_message(features, "feature", 1, ".clipa.Features.FeatureEntry").label = kinds.LABEL_REPEATED

    _add_message(file.message_type.add(name="Example"), "features", 1, ".clipa.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("clipa.Example"))


def _add_message(owner: Any, name: str, number: int, of: str) -> Any:
    """Add a field that holds a message."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

    return owner.field.add(name=name, number=number, type=Field.TYPE_MESSAGE, label=Field.LABEL_OPTIONAL, type_name=of)
