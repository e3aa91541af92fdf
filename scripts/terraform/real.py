"""Holds the schema that was written down by hand to the one that the real provider gives."""

import json
import pathlib
import sys

from schema import Schema


def find_block(types, name):
    return (types or {}).get(name, {}).get("block")


def written_type(kind):
    """A type as our schema writes it, from Terraform's JSON: ["set", "string"] is set(string)."""
    if isinstance(kind, str):
        return kind
    outer, inner = kind
    if outer == "object":
        return "object({" + ",".join(f"{name}={written_type(of)}" for name, of in sorted(inner.items())) + "})"
    return f"{outer}({written_type(inner)})"


def how(attribute):
    """In which of our schema's parts an attribute belongs."""
    if attribute.get("required"):
        return "required"
    if attribute.get("optional"):
        return "given" if attribute.get("computed") else "optional"
    return "read"


def compare_block(shape, block, where):
    """Yields what our shape of a block has otherwise than the provider. What we do not list is not looked at."""
    attributes, blocks = block.get("attributes", {}), block.get("block_types", {})
    for part in ("required", "optional", "given", "read"):
        for name, kind in getattr(shape, part).items():
            if name not in attributes:
                yield f"{where}.{name}: the provider has no such attribute"
                continue
            real = attributes[name]
            if how(real) != part:
                yield f"{where}.{name}: {part} here, {how(real)} by the provider"
            if written_type(real.get("type", "dynamic")) != kind:
                yield f"{where}.{name}: {kind} here, {written_type(real.get('type', 'dynamic'))} by the provider"
            if real.get("deprecated"):
                yield f"{where}.{name}: the provider has deprecated it"
    for name, real in attributes.items():
        if real.get("required") and name not in shape.required:
            yield f"{where}.{name}: the provider requires it"
    for name in shape.deprecated:
        real = attributes.get(name) or blocks.get(name, {}).get("block")
        if real and not real.get("deprecated"):
            yield f"{where}.{name}: deprecated here, and not by the provider"
    for name, inner in shape.blocks.items():
        if name not in blocks:
            yield f"{where}.{name}: the provider has no such block"
            continue
        real = blocks[name]
        ours = (inner.nesting, inner.least, inner.most)
        theirs = (real["nesting_mode"], real.get("min_items", 0), real.get("max_items", 0))
        if ours != theirs:
            yield f"{where}.{name}: {ours} here, {theirs} by the provider (nesting, least, most)"
        yield from compare_block(inner, real["block"], f"{where}.{name}")
    for name, real in blocks.items():
        if real.get("min_items", 0) and name not in shape.blocks:
            yield f"{where}.{name}: the provider requires this block"


def compare(schema, text):
    """Yields all that is otherwise in `terraform providers schema -json`, which is `text`."""
    providers = json.loads(text).get("provider_schemas", {})
    found = [one for source, one in providers.items() if source.lower() == schema.source.lower()]
    if not found:
        yield f"{schema.source}: is not among the providers: {', '.join(providers) or 'none'}"
        return
    real = found[0]
    yield from compare_block(schema.provider, real["provider"]["block"], "provider")
    for prefix, ours, theirs in (("", schema.resources, "resource_schemas"), ("data.", schema.data, "data_source_schemas")):
        for name, shape in ours.items():
            block = find_block(real.get(theirs), name)
            if block is None:
                yield f"{prefix}{name}: the provider has no such {'data source' if prefix else 'resource'}"
            else:
                yield from compare_block(shape, block, f"{prefix}{name}")


def main():
    """scripts/terraform/real.py FILE: holds terraform/schema to what `terraform providers schema -json` printed into FILE."""
    root = pathlib.Path(__file__).resolve().parents[2]
    schema = Schema.load(next((root / "terraform" / "schema").glob("ibm-*.json")))
    problems = list(compare(schema, pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")))
    for problem in problems:
        print(f"schema: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
