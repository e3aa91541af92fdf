"""What the provider takes and gives: the reader of terraform/schema/*.json."""

import dataclasses
import json


@dataclasses.dataclass
class Block:
    """What one kind of block, a resource's or one nested in it, may hold."""

    nesting: str = "list"
    least: int = 0
    most: int = 0
    required: dict = dataclasses.field(default_factory=dict)
    optional: dict = dataclasses.field(default_factory=dict)
    given: dict = dataclasses.field(default_factory=dict)
    read: dict = dataclasses.field(default_factory=dict)
    deprecated: dict = dataclasses.field(default_factory=dict)
    sensitive: frozenset = frozenset()
    blocks: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, written, where):
        """From JSON; a key that is not known is a mistake in the file."""
        known = {"nesting", "min", "max", "required", "optional", "given", "read", "deprecated", "sensitive", "blocks"}
        if unknown := set(written) - known:
            raise ValueError(f"{where}: {', '.join(sorted(unknown))}: not a part of a schema")
        parts = {key: dict(written.get(key, {})) for key in ("required", "optional", "given", "read", "deprecated")}
        names = [name for part in parts.values() for name in part]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{where}: {', '.join(sorted(twice))}: in two places")
        return cls(
            nesting=written.get("nesting", "list"),
            least=written.get("min", 0),
            most=written.get("max", 0),
            sensitive=frozenset(written.get("sensitive", ())),
            blocks={name: cls.parse(block, f"{where}.{name}") for name, block in written.get("blocks", {}).items()},
            **parts,
        )

    def settable(self):
        """Arguments that may be set, the deprecated ones not among them."""
        return set(self.required) | set(self.optional) | set(self.given)

    def readable(self):
        """All that an expression may read."""
        return self.settable() | set(self.read) | set(self.blocks) | {"id"}


@dataclasses.dataclass
class Schema:
    """A provider's."""

    source: str
    version: str
    provider: Block
    resources: dict
    data: dict

    @classmethod
    def load(cls, path):
        written = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            source=written["source"],
            version=written["version"],
            provider=Block.parse(written["provider"], "provider"),
            resources={name: Block.parse(block, name) for name, block in written["resources"].items()},
            data={name: Block.parse(block, f"data.{name}") for name, block in written["data"].items()},
        )
