"""Roots around one module: they configure the provider, and pass the module's own variables on."""

from readme import expression, plain_value
from tree import members, plain


def is_wrapper(folder):
    """True for a root that does nothing but call one module."""
    return bool(folder.providers) and len(folder.modules) == 1 and not folder.resources and not folder.data


def declared(body):
    """What of a variable a caller sees."""
    body = members(body)
    return plain(body.get("description", "")), expression(plain(body.get("type", ""))), "default" in body, plain_value(body.get("default"))


def check_wrapper(folder, folders):
    """Yields where a wrapper and its module differ: a variable that is missing, another default, an output that is kept back."""
    if not is_wrapper(folder):
        return
    (name, body), = folder.modules.items()
    called = folders.get((folder.path / plain(members(body).get("source", ""))).resolve())
    if called is None:
        return
    for variable, inner in sorted(called.variables.items()):
        if variable not in folder.variables:
            yield f"variable {variable}: module {name} has it, and this root does not pass it on"
        elif declared(inner) != declared(folder.variables[variable]):
            yield f"variable {variable}: description, type or default is not that of module {name}"
    for output in sorted(set(called.outputs) - set(folder.outputs)):
        yield f"output {output}: module {name} has it, and this root keeps it back"
