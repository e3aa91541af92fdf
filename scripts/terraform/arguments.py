"""Resources, data sources and providers, held to the schema."""

from tree import is_block, members, nested

# What Terraform itself takes in every resource.
META = {"count", "for_each", "depends_on", "provider", "lifecycle", "provisioner", "connection"}


def check_body(body, shape, where):
    """Yields what is wrong with one block."""
    settled = {name for name in members(body) if name != "dynamic"}
    blocks, attributes = {}, set()
    for name in settled:
        value = members(body)[name]
        if is_block(value):
            blocks[name] = value
        else:
            attributes.add(name)
    # How often a dynamic block turns up is not known before it does.
    dynamic = nested(members(body).get("dynamic", []))

    for name in sorted(settled | {name for name, _ in dynamic}):
        if name in shape.deprecated:
            yield f"{where}: {name} is deprecated"
        elif name in shape.read:
            yield f"{where}: {name} can only be read"
        elif name not in shape.settable() and name not in shape.blocks:
            yield f"{where}: {name}: the schema knows no such argument"
        elif name in blocks and name not in shape.blocks:
            yield f"{where}: {name} is a value, not a block"
        elif name in attributes and name in shape.blocks:
            yield f"{where}: {name} is a block, not a value"
    for name in sorted(set(shape.required) - attributes):
        yield f"{where}: {name} is required"
    for name, inner in sorted(shape.blocks.items()):
        count = len(blocks.get(name, ()))
        if inner.most and count > inner.most:
            yield f"{where}: {name}: {count} blocks, of which there may be {inner.most}"
        if count < inner.least and not any(name == one for one, _ in dynamic):
            yield f"{where}: {name}: {count} blocks, of which there have to be {inner.least}"
        for one in blocks.get(name, ()):
            yield from check_body(one, inner, f"{where}.{name}")
    for name, body_of in dynamic:
        if name in shape.blocks:
            for content in members(body_of).get("content", []):
                yield from check_body(content, shape.blocks[name], f"{where}.{name}")


def check_arguments(folder, schema):
    """Yields what is wrong in one folder."""
    for prefix, blocks, known in (("", folder.resources, schema.resources), ("data.", folder.data, schema.data)):
        for (kind, name), body in blocks.items():
            where = f"{prefix}{kind}.{name}"
            if kind not in known:
                yield f"{where}: the schema knows no {prefix}{kind}"
                continue
            yield from check_body({key: value for key, value in body.items() if key not in META}, known[kind], where)
    for name, body in folder.providers.items():
        if name.partition(".")[0] == "ibm":
            yield from check_body({key: value for key, value in body.items() if key != "alias"}, schema.provider, f"provider {name}")
        else:
            yield f"provider {name}: only ibm is used here"
