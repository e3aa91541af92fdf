"""Form, as far as it can be told without Terraform: what `terraform fmt` does most often.

Looked at: indents by two for each open line, aligned equals signs, blanks at line ends, empty lines, the last line's end. Not looked at:
blanks within an expression, the order of arguments, quotes that are superfluous; here documents are left alone. `terraform fmt -check` is
run besides where there is a terraform.
"""

import re

ASSIGNMENT = re.compile(r'^(?P<indent> *)(?P<name>[\w-]+|"[^"]*"|\([^)]*\))(?P<blanks> *)= (?P<value>\S.*)$')


def blanked(line):
    """A line without what is in strings and comments."""
    out, in_string, depth, at = [], False, 0, 0
    while at < len(line):
        letter = line[at]
        if in_string and letter == "\\":
            at += 2
            out.append("  ")
            continue
        if in_string and line[at : at + 2] == "${":
            # What is interpolated is closed on its own line.
            depth += 1
        elif in_string and letter == "}" and depth:
            depth -= 1
        elif letter == '"' and not depth:
            in_string = not in_string
        elif not in_string and (letter == "#" or line[at : at + 2] == "//"):
            break
        out.append(" " if in_string else letter)
        at += 1
    return "".join(out)


def check_layout(text):
    """Yields (line number, what is wrong)."""
    if text and not text.endswith("\n"):
        yield text.count("\n") + 1, "the last line has no end"
    open_lines, group, here = [], [], None
    lines = text.split("\n")[: text.count("\n")]
    for number, line in enumerate(lines, 1):
        if here is not None:
            here = None if line.strip() == here else here
            continue
        if "\t" in line:
            yield number, "a tab"
        if line != line.rstrip():
            yield number, "blanks at the line's end"
        if not line.strip():
            if number > 1 and not lines[number - 2].strip():
                yield number, "two empty lines"
            yield from check_group(group)
            group = []
            continue
        bare = blanked(line)
        net = sum(bare.count(letter) for letter in "{[(") - sum(bare.count(letter) for letter in "}])")
        closing = -net
        while closing > 0 and open_lines:
            taken = min(closing, open_lines[-1])
            closing -= taken
            open_lines[-1] -= taken
            if not open_lines[-1]:
                open_lines.pop()
        indent = len(line) - len(line.lstrip(" "))
        if indent != 2 * len(open_lines):
            yield number, f"indented by {indent}, not {2 * len(open_lines)}"
        if net > 0:
            open_lines.append(net)
        if started := re.search(r"<<-?(\w+)$", bare):
            here = started[1]
        assignment = ASSIGNMENT.match(line)
        if assignment and net == 0 and here is None:
            group.append((number, assignment))
        else:
            # A line that opens something has one blank before its sign, whatever is around it.
            yield from check_group(group)
            group = []
            if assignment and len(assignment["blanks"]) != 1:
                yield number, "more or less than one blank before the equals sign"
    yield from check_group(group)


def check_group(group):
    """Assignments on lines of their own, one below the other: their signs, too."""
    longest = max((len(one["name"]) for _, one in group), default=0)
    for number, one in group:
        if len(one["name"]) + len(one["blanks"]) != longest + 1:
            yield number, "the equals sign is not below the others"
