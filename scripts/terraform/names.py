"""What is declared and what is referred to: all there, all described, all used, and modules given what they ask for."""

import re

from tree import members, plain, references

# What a module's caller may set besides its variables.
META = {"source", "version", "providers", "count", "for_each", "depends_on"}
# Variables that sound like secrets. Their values end up in the state, so they are hidden at least, and never have a default.
SECRET = re.compile(r"password|passwd|secret|token|api_?key|credential")
REQUIRED_VERSION = ">= 1.5.1"
PROVIDER = {"source": "IBM-Cloud/ibm", "version": ">= 2.5.0, < 3"}


def check_declarations(folder):
    """Variables and outputs: what they are for, of what type, and no secret in the open."""
    for name, body in folder.variables.items():
        body = members(body)
        if not plain(body.get("description", "")).strip():
            yield f"variable {name}: no description"
        if "type" not in body:
            yield f"variable {name}: no type"
        if SECRET.search(name):
            if body.get("sensitive") is not True:
                yield f"variable {name}: sounds like a secret and is not sensitive"
            if "default" in body:
                yield f"variable {name}: a secret has no default"
    for name, body in folder.outputs.items():
        if not plain(members(body).get("description", "")).strip():
            yield f"output {name}: no description"
        if "value" not in members(body):
            yield f"output {name}: no value"


def check_versions(folder, is_root):
    """The same bounds everywhere; providers are configured in roots alone."""
    settings = [members(block) for block in folder.settings]
    if [plain(one["required_version"]) for one in settings if "required_version" in one] != [REQUIRED_VERSION]:
        yield f"terraform: required_version is to be {REQUIRED_VERSION!r}, once"
    providers = [members(block) for one in settings for block in one.get("required_providers", [])]
    pinned = [{key: plain(value) for key, value in members(one["ibm"]).items()} for one in providers if "ibm" in one]
    if pinned != [PROVIDER]:
        yield f"terraform: required_providers.ibm is to be {PROVIDER}, once"
    if is_root and "ibm" not in folder.providers:
        yield "no provider block: a root says in which region it is"
    if not is_root and folder.providers:
        yield "a provider block in a module: it could not be removed again"


def check_modules(folder, folders):
    """Modules are there, and get what they ask for."""
    for name, body in folder.modules.items():
        body = members(body)
        source = plain(body.get("source", ""))
        if not source.startswith("."):
            yield f"module {name}: {source or 'no source'}: modules are in this folder, and nowhere else"
            continue
        called = folders.get((folder.path / source).resolve())
        if called is None:
            yield f"module {name}: {source}: there is no such folder"
            continue
        given = set(body) - META
        for unknown in sorted(given - set(called.variables)):
            yield f"module {name}: {unknown}: the module has no such variable"
        needed = {variable for variable, inner in called.variables.items() if "default" not in members(inner)}
        for missing in sorted(needed - given):
            yield f"module {name}: {missing} is required"


def check_references(folder, folders, schema):
    """All that is referred to is there, and all that is declared is referred to."""
    used = set()
    for where, body in folder.everything():
        for root, name, member in references(body):
            if not (where == f"variable {name}" and root == "var"):
                used.add((root, name))
            problem = check_reference(folder, folders, schema, root, name, member)
            if problem:
                yield f"{where}: {problem}"
    for name in sorted(set(folder.variables) - {name for root, name in used if root == "var"}):
        yield f"variable {name}: nothing uses it"
    for name in sorted(set(folder.locals) - {name for root, name in used if root == "local"}):
        yield f"local {name}: nothing uses it"
    for kind, name in sorted(set(folder.data) - {(root[5:], name) for root, name in used if root.startswith("data.")}):
        yield f"data.{kind}.{name}: nothing uses it"


def check_reference(folder, folders, schema, root, name, member):
    """What is wrong with one, or None."""
    if root == "var":
        return None if name in folder.variables else f"var.{name}: there is no such variable"
    if root == "local":
        return None if name in folder.locals else f"local.{name}: there is no such local value"
    if root == "module":
        if name not in folder.modules:
            return f"module.{name}: there is no such module"
        called = folders.get((folder.path / plain(members(folder.modules[name]).get("source", ""))).resolve())
        if called is not None and member is not None and member not in called.outputs:
            return f"module.{name}.{member}: the module has no such output"
        return None
    kind = root.removeprefix("data.")
    declared, known = (folder.data, schema.data) if root.startswith("data.") else (folder.resources, schema.resources)
    if (kind, name) not in declared:
        return f"{root}.{name}: is not declared"
    if kind in known and member is not None and member not in known[kind].readable():
        return f"{root}.{name}.{member}: the schema knows no such attribute"
    return None
