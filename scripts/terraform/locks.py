"""Lock files of roots: each has one, for the provider that the schema is of, at the schema's version."""

import re

from tree import members, plain

LOCK = ".terraform.lock.hcl"
# What Terraform makes of the bounds in required_providers.
CONSTRAINTS = ">= 2.5.0, < 3.0.0"


def check_lock(path, parse, schema, version):
    """Yields what is wrong with the lock file of the root at `path`."""
    file = path / LOCK
    if not file.exists():
        yield f"{LOCK}: is missing: `terraform providers lock` makes it"
        return
    locked = {plain(name): members(body) for one in parse(file).get("provider", []) for name, body in members(one).items()}
    if set(locked) != {schema.source}:
        yield f"{LOCK}: is to lock {schema.source} alone, not {', '.join(sorted(locked)) or 'nothing'}"
        return
    body = locked[schema.source]
    if plain(body.get("version", "")) != version:
        yield f"{LOCK}: has version {plain(body.get('version', ''))}, and the schema is that of {version}"
    if plain(body.get("constraints", "")) != CONSTRAINTS:
        yield f"{LOCK}: constraints are to be {CONSTRAINTS!r}"
    for wrong in [one for one in body.get("hashes", []) if not re.fullmatch(r"(h1|zh):.+", plain(one))]:
        yield f"{LOCK}: {plain(wrong)}: is no checksum"
