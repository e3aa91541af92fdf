"""The tables of inputs and outputs in the folders' READMEs, made from what the folders declare."""

import json
import re

from tree import members, plain

BEGIN = "<!-- BEGIN_TF_DOCS: written by scripts/terraform-readme.py, an edit here is lost -->"
END = "<!-- END_TF_DOCS -->"


def expression(text):
    """A type or another expression, without the marks in which the parser puts it."""
    found = re.fullmatch(r"\$\{(.*)\}", text, re.DOTALL)
    return found[1] if found else text


def plain_value(value):
    """A default as Python's own value."""
    if isinstance(value, dict):
        return {plain(name): plain_value(inner) for name, inner in members(value).items()}
    if isinstance(value, list):
        return [plain_value(inner) for inner in value]
    if isinstance(value, str):
        return plain(value)
    return value


def one_line(value):
    """A default in HCL, on one line."""
    if isinstance(value, dict):
        inner = ", ".join(f"{name} = {one_line(inner)}" for name, inner in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(one_line(inner) for inner in value)}]"
    return json.dumps(value, ensure_ascii=False)


def cell(text):
    """A text in a table: one line, and no end of the cell within it."""
    return " ".join(text.split()).replace("|", "\\|")


def inputs(folder):
    """(name, description, type, whether a default is there, default) of each variable, by name."""
    for name, body in sorted(folder.variables.items()):
        body = members(body)
        kind = expression(plain(body.get("type", "any")))
        yield name, plain(body.get("description", "")), kind, "default" in body, plain_value(body.get("default"))


def outputs(folder):
    """(name, description) of each output, by name."""
    for name, body in sorted(folder.outputs.items()):
        yield name, plain(members(body).get("description", ""))


def unescaped(text):
    """A description without the escapes of its string."""
    return text.replace('\\"', '"').replace("\\\\", "\\")


def tables(folder):
    """What stands between the marks, and the marks."""
    lines = [BEGIN]
    if folder.variables:
        lines += ["", "## Inputs", "", "| name | | type | default |", "|---|---|---|---|"]
        for name, about, kind, has_default, default in inputs(folder):
            shown = f"`{cell(one_line(default))}`" if has_default else "required"
            lines.append(f"| `{name}` | {cell(unescaped(about))} | `{cell(kind)}` | {shown} |")
    if folder.outputs:
        lines += ["", "## Outputs", "", "| name | |", "|---|---|"]
        lines += [f"| `{name}` | {cell(unescaped(about))} |" for name, about in outputs(folder)]
    return "\n".join([*lines, "", END])


def with_tables(text, folder):
    """A README's text with the tables of today, at its end if it has none."""
    if BEGIN in text and END in text:
        before, rest = text.split(BEGIN, 1)
        return before + tables(folder) + rest.split(END, 1)[1]
    return f"{text.rstrip()}\n\n{tables(folder)}\n"


def check_readme(folder):
    """What is wrong with a folder's README."""
    path = folder.path / "README.md"
    if not path.exists():
        yield "no README.md: run scripts/terraform-readme.py, and say at its top what the folder is for"
        return
    text = path.read_text(encoding="utf-8")
    if with_tables(text, folder) != text:
        yield "README.md: inputs and outputs are not those of the folder: run scripts/terraform-readme.py"
    if not text.split(BEGIN)[0].strip().count("\n"):
        yield "README.md: says nothing of what the folder is for"


def compare(folder, told):
    """What terraform-docs' JSON, an independent reading of the same files, has otherwise."""
    ours = {name: (unescaped(about), has_default, default) for name, about, _, has_default, default in inputs(folder)}
    theirs = {
        one["name"]: (one["description"] or "", not one["required"], one["default"]) for one in told.get("inputs") or []
    }
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            yield f"variable {name}: {ours.get(name)} here, {theirs.get(name)} says terraform-docs"
    ours = {name: unescaped(about) for name, about in outputs(folder)}
    theirs = {one["name"]: one["description"] or "" for one in told.get("outputs") or []}
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            yield f"output {name}: {ours.get(name)} here, {theirs.get(name)} says terraform-docs"
