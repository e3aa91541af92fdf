"""What Terraform itself says, where there is one: form, validity with a stand-in for the provider, tests with mocks."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import standin

# Seconds for one run. Nothing is fetched and nothing is made.
LONGEST = 300
# From here on there is `mock_provider`.
TESTS_FROM = (1, 7)
# OpenTofu has its own registry, by whose name it looks for the same provider.
REGISTRIES = ("registry.terraform.io", "registry.opentofu.org")


def find():
    """Path of the program, or None."""
    return shutil.which("terraform") or shutil.which("tofu")


class Program:
    """A terraform or tofu, led to the stand-in."""

    def __init__(self, path, variables):
        self.path = path
        # An empty configuration instead of the user's; nothing of ours goes into their cache of plugins.
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
        self.environment |= {"TF_CLI_CONFIG_FILE": os.devnull, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", **variables}

    def run(self, folder, *words):
        return subprocess.run(
            [self.path, f"-chdir={folder}", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )

    def version(self, folder):
        told = json.loads(self.run(folder, "version", "-json").stdout)["terraform_version"]
        return tuple(int(part) for part in re.match(r"(\d+)\.(\d+)", told).groups())


def variables(schema):
    """Runs nothing: what standin.serving gives, for either registry."""
    return standin.serving(schema, [f"{registry}/{schema.source.split('/', 1)[1]}" for registry in REGISTRIES])


def check_with(path, root, folders, schema):
    """Yields what it says against the folders, each with its path below the root. Works on a copy: it leaves files behind."""
    with variables(schema) as environment, tempfile.TemporaryDirectory() as temporary:
        program = Program(path, environment)
        copy = pathlib.Path(temporary) / "terraform"
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
        form = program.run(copy, "fmt", "-check", "-recursive", "-diff", "-no-color")
        if form.returncode != 0:
            yield f"fmt: {form.stdout}{form.stderr}"
        tests = program.version(copy) >= TESTS_FROM
        for folder in folders:
            relative = folder.relative_to(root)
            at = copy / relative
            begun = program.run(at, "init", "-backend=false", "-input=false", "-no-color")
            if begun.returncode != 0:
                yield f"{relative}: init: {begun.stdout}{begun.stderr}"
                continue
            valid = json.loads(program.run(at, "validate", "-json").stdout)
            # Warnings too. None tells of deprecated arguments: only the real provider would.
            for told in valid["diagnostics"]:
                lines = told.get("range", {})
                line = f"{lines.get('filename', '')}:{lines.get('start', {}).get('line', '')}"
                yield f"{relative}: validate: {line}: {told['summary']}: {told.get('detail', '')}"
            if tests and not valid["diagnostics"] and list(at.glob("tests/*.tftest.hcl")):
                tested = program.run(at, "test", "-no-color")
                if tested.returncode != 0:
                    yield f"{relative}: test: {tested.stdout}{tested.stderr}"
