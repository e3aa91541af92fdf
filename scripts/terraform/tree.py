"""A folder of Terraform files, parsed: its blocks by kind and name, and what its expressions refer to."""

import dataclasses
import re

import hcl2

# How python-hcl2 tells a block from a value that is an object.
MARK = "__is_block__"
# Notes of the parser, among a block's arguments.
NOTES = (MARK, "__comments__", "__inline_comments__")


def plain(text):
    """A label or a string without its quotes."""
    return text[1:-1] if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] == '"' else text


def members(body):
    """A block's arguments and nested blocks."""
    return {plain(name): value for name, value in body.items() if name not in NOTES}


def is_block(value):
    """Whether a value is nested blocks of one kind."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and MARK in one for one in value)


def nested(value):
    """Blocks with labels come as {label: body}; gives (label, body)."""
    return [(plain(label), body) for one in value for label, body in members(one).items()]


@dataclasses.dataclass
class Folder:
    """What a folder's *.tf declare."""

    path: object
    variables: dict = dataclasses.field(default_factory=dict)
    outputs: dict = dataclasses.field(default_factory=dict)
    locals: dict = dataclasses.field(default_factory=dict)
    modules: dict = dataclasses.field(default_factory=dict)
    resources: dict = dataclasses.field(default_factory=dict)
    data: dict = dataclasses.field(default_factory=dict)
    providers: dict = dataclasses.field(default_factory=dict)
    settings: list = dataclasses.field(default_factory=list)
    mistakes: list = dataclasses.field(default_factory=list)

    @classmethod
    def parse(cls, path):
        folder = cls(path)
        for file in sorted(path.glob("*.tf")):
            try:
                with file.open(encoding="utf-8") as text:
                    folder.add(file.name, hcl2.load(text))
            except Exception as err:  # the parser's own kinds, which change with its version
                folder.mistakes.append(f"{file.name}: cannot be read: {err}")
        return folder

    def add(self, file, tree):
        single = {"variable": self.variables, "output": self.outputs, "module": self.modules, "provider": self.providers}
        double = {"resource": self.resources, "data": self.data}
        for kind, blocks in members(tree).items():
            if kind in single:
                for name, body in nested(blocks):
                    # A region beside the first one has a provider by an alias.
                    if kind == "provider" and "alias" in members(body):
                        name += f".{plain(members(body)['alias'])}"
                    self.put(single[kind], name, body, f"{file}: {kind} {name}")
            elif kind in double:
                for one, named in nested(blocks):
                    for name, body in members(named).items():
                        self.put(double[kind], (one, name), body, f"{file}: {kind} {one}.{name}")
            elif kind == "locals":
                for block in blocks:
                    for name, value in members(block).items():
                        self.put(self.locals, name, value, f"{file}: local {name}")
            elif kind == "terraform":
                self.settings += blocks
            else:
                self.mistakes.append(f"{file}: {kind}: a kind of block that this check does not know")

    def put(self, where, name, body, called):
        if name in where:
            self.mistakes.append(f"{called}: is declared twice")
        where[name] = body

    def everything(self):
        """All bodies, each with what it is called."""
        for kind, blocks in (("variable", self.variables), ("output", self.outputs), ("module", self.modules), ("provider", self.providers)):
            yield from ((f"{kind} {name}", body) for name, body in blocks.items())
        for prefix, blocks in (("", self.resources), ("data.", self.data)):
            yield from ((f"{prefix}{kind}.{name}", body) for (kind, name), body in blocks.items())
        yield from ((f"local {name}", value) for name, value in self.locals.items())


def find_folders(root):
    """Every folder with Terraform files, but for those that only tests use."""
    return sorted({path.parent.resolve() for path in root.rglob("*.tf") if not {".terraform", "tests"} & set(path.parts)})


def expressions(value):
    """All strings within a value, keys included."""
    if isinstance(value, dict):
        for name, inner in members(value).items():
            yield name
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)
    elif isinstance(value, str):
        yield value


def code(text):
    """What of a string is code: an expression whole, of a literal what is between ${ and }. Literals become blanks."""
    out, stack, at = [], [], 0
    while at < len(text):
        in_string = bool(stack) and stack[-1] == '"'
        two = text[at : at + 2]
        if in_string and text[at] == "\\":
            out.append("  ")
            at += 2
        elif two in ("${", "%{") and (in_string or not stack):
            stack.append("{")
            out.append("  ")
            at += 2
        elif text[at] == '"':
            stack.pop() if in_string else stack.append('"')
            out.append(" ")
            at += 1
        elif not in_string and text[at] in "{}":
            if text[at] == "{":
                stack.append("{")
            elif stack:
                stack.pop()
            out.append(text[at])
            at += 1
        else:
            out.append(" " if in_string else text[at])
            at += 1
    return "".join(out)


REFERENCE = re.compile(
    r"(?<![\w.])(?P<root>var|local|module|data\.\w+|ibm_\w+)\.(?P<name>[\w-]+)(?:\[[^\[\]]*\])?(?:\.(?P<member>\w+))?"
)


def references(value):
    """(root, name, member or None) of all that is referred to: ("data.ibm_is_image", "latest", "id")."""
    for text in expressions(value):
        for found in REFERENCE.finditer(code(text)):
            yield found["root"], found["name"], found["member"]
