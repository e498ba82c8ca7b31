"""google.protobuf's classes for our schema: the judge of every message's bytes."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import grpc_tools
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

SCHEMA = pathlib.Path(__file__).resolve().parents[2] / "schema" / "agent.proto"


def _load() -> dict[str, Any]:
    own_protos = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.NamedTemporaryFile(suffix=".pb") as out:
        arguments = [f"-I{SCHEMA.parent}", f"-I{own_protos}", f"--descriptor_set_out={out.name}"]
        assert protoc.main(["protoc", *arguments, "--include_imports", SCHEMA.name]) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read()).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{files[-1].package}.{message.name}"))
        for message in files[-1].message_type
    }


#: Message name -> google.protobuf's class.
GOOGLE = _load()


def to_google(message: Any) -> Any:
    """One of our messages as google.protobuf's."""
    theirs = GOOGLE[type(message).__name__]()
    for field in theirs.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, item in value.items():
                getattr(theirs, field.name)[key] = item
        elif field.message_type is not None and field.is_repeated:
            getattr(theirs, field.name).extend(to_google(item) for item in value)
        elif field.message_type is not None:
            if value is not None:
                getattr(theirs, field.name).CopyFrom(to_google(value))
        elif field.is_repeated:
            getattr(theirs, field.name).extend(value)
        else:
            setattr(theirs, field.name, value)
    return theirs


def to_plain(message: Any) -> Any:
    """A message of google.protobuf's, or of ours, as dicts and lists that can be compared.

    Doubles are compared by their bits: NaN equals itself, and -0.0 is not 0.0.
    """
    descriptor = GOOGLE[type(message).__name__].DESCRIPTOR
    plain: dict[str, Any] = {}
    for field in descriptor.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = dict(value)
        elif field.message_type is not None and field.is_repeated:
            value = [to_plain(item) for item in value]
        elif field.message_type is not None:
            if type(message) is GOOGLE[type(message).__name__]:
                value = to_plain(value) if message.HasField(field.name) else None
            else:
                value = None if value is None else to_plain(value)
        elif field.type == field.TYPE_DOUBLE:
            value = [item.hex() for item in value] if field.is_repeated else float(value).hex()
        elif field.is_repeated:
            value = list(value)
        plain[field.name] = value
    return plain
