"""A stand-in for the provider: it tells Terraform the schema, agrees to every configuration, and makes nothing.

With it Terraform itself does what can be done without the real provider, which is hundreds of megabytes and not to be had everywhere:
`validate` checks arguments, types and references, and `test` runs against `mock_provider`. It speaks the plugin protocol, version 5, on
loopback, and Terraform is led to it by TF_REATTACH_PROVIDERS, which was made for providers under a debugger.
"""

import concurrent.futures
import contextlib
import json
import os
import re

import grpc

# Messages that Terraform may send at once; it is the only client.
THREADS = 8
# Protocol buffers: a field is its number and the type of what follows, a varint or bytes of a length.
VARINT, BYTES = 0, 2
NESTING = {"single": 1, "list": 2, "set": 3}


def varint(number):
    out = bytearray()
    while True:
        out.append((number & 0x7F) | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)


def field(number, value):
    """One field of a message."""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(int(value)) if value else b""
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def cty(written):
    """A type as the schema writes it, as Terraform's JSON has it: list(object({a=string})) is ["list",["object",{"a":"string"}]]."""
    if written in ("string", "number", "bool", "dynamic"):
        return written
    outer, inner = re.fullmatch(r"(\w+)\((.*)\)", written, re.DOTALL).groups()
    if outer != "object":
        return [outer, cty(inner)]
    members, depth, start = {}, 0, 1
    for at, letter in enumerate(inner):
        depth += (letter in "({") - (letter in ")}")
        if (letter == "," and depth == 1) or at == len(inner) - 1:
            name, kind = inner[start:at].split("=", 1)
            members[name.strip()] = cty(kind.strip())
            start = at + 1
    return ["object", members]


def attribute(name, kind, *flags, sensitive=False):
    """Schema.Attribute: name 1, type 2, required 4, optional 5, computed 6, sensitive 7, deprecated 9."""
    flags = b"".join(field(flag, 1) for flag in sorted(flags))
    return field(2, field(1, name) + field(2, json.dumps(cty(kind))) + flags + field(7, int(sensitive)))


REQUIRED, OPTIONAL, COMPUTED, DEPRECATED = 4, 5, 6, 9


def block(shape, top=False):
    """Schema.Block: attributes 2, nested blocks 3."""
    out = b""
    parts = [(shape.required, (REQUIRED,)), (shape.optional, (OPTIONAL,)), (shape.given, (OPTIONAL, COMPUTED)), (shape.read, (COMPUTED,))]
    for names, flags in parts:
        out += b"".join(attribute(name, kind, *flags, sensitive=name in shape.sensitive) for name, kind in names.items())
    for name, kind in shape.deprecated.items():
        if kind == "block":
            out += field(3, field(1, name) + field(2, field(6, 1)) + field(3, NESTING["list"]))
        else:
            out += attribute(name, kind, OPTIONAL, DEPRECATED)
    if top:
        out += attribute("id", "string", OPTIONAL, COMPUTED)
    for name, inner in shape.blocks.items():
        nested = field(1, name) + field(2, block(inner)) + field(3, NESTING[inner.nesting])
        out += field(3, nested + field(4, inner.least) + field(5, inner.most))
    return out


def schema_answer(schema):
    """GetProviderSchema.Response: provider 1, resources 2, data sources 3."""
    out = field(1, field(2, block(schema.provider)))
    for number, kinds in ((2, schema.resources), (3, schema.data)):
        for name, shape in kinds.items():
            out += field(number, field(1, name) + field(2, field(2, block(shape, top=True))))
    return out


class Provider(grpc.GenericRpcHandler):
    """Answers what Terraform asks while it validates."""

    def __init__(self, schema):
        answer = schema_answer(schema)
        self.answers = {
            "GetSchema": lambda request, context: answer,
            # The request's config and the answer's prepared config are field 1 of the same kind.
            "PrepareProviderConfig": lambda request, context: request,
            # No diagnostics.
            "ValidateResourceTypeConfig": lambda request, context: b"",
            "ValidateDataSourceConfig": lambda request, context: b"",
            "Configure": lambda request, context: b"",
            "Stop": lambda request, context: b"",
        }

    def service(self, details):
        service, _, method = details.method.lstrip("/").partition("/")
        if service != "tfplugin5.Provider" or method not in self.answers:
            return None
        return grpc.unary_unary_rpc_method_handler(self.answers[method])


@contextlib.contextmanager
def serving(schema, sources):
    """Runs it; gives the variable that leads Terraform to it, under each of the names that it has there."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=THREADS), handlers=[Provider(schema)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    at = {
        "Protocol": "grpc",
        "ProtocolVersion": 5,
        "Pid": os.getpid(),
        "Test": True,
        "Addr": {"Network": "tcp", "String": f"127.0.0.1:{port}"},
    }
    try:
        yield {"TF_REATTACH_PROVIDERS": json.dumps({source: at for source in sources})}
    finally:
        server.stop(None)
