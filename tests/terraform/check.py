"""Tests of scripts/check-terraform.py: what it must refuse, and with which words.

        target/terraform/bin/python tests/terraform/check.py

Each case is a folder that is in order with one thing broken. Run by `make check-terraform`.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = HERE / "scripts" / "check-terraform.py"
sys.dont_write_bytecode = True
specification = importlib.util.spec_from_file_location("check_terraform", SCRIPT)
check = importlib.util.module_from_spec(specification)
specification.loader.exec_module(check)

README = HERE / "scripts" / "terraform-readme.py"
import real  # noqa: E402 (check-terraform.py has added its folder to the path)

SCHEMA = check.Schema.load(HERE / "terraform" / "schema" / "ibm-2.5.0.json")

VERSIONS = """\
terraform {
  required_version = ">= 1.5.1"

  required_providers {
    ibm = {
      source  = "IBM-Cloud/ibm"
      version = ">= 2.5.0, < 3"
    }
  }
}
"""

MAIN = """\
provider "ibm" {
  region = var.region
}

module "net" {
  source = "../modules/net"

  name = "a-${var.region}"
}

data "ibm_is_image" "this" {
  name = "debian"
}

resource "ibm_is_instance" "this" {
  name    = local.name
  image   = data.ibm_is_image.this.id
  profile = "bx2-2x8"
  zone    = "${var.region}-1"
  vpc     = module.net.vpc_id

  primary_network_interface {
    subnet = "subnet"
  }
}

locals {
  name = "one"
}
"""

VARIABLES = """\
variable "region" {
  description = "Where."
  type        = string
}
"""

OUTPUTS = """\
output "crn" {
  description = "Which."
  value       = ibm_is_instance.this.crn
}
"""

NET = """\
resource "ibm_is_vpc" "this" {
  name = var.name
}
"""

NET_VARIABLES = """\
variable "name" {
  description = "What it is called."
  type        = string
}
"""

NET_OUTPUTS = """\
output "vpc_id" {
  description = "Which."
  value       = ibm_is_vpc.this.id
}
"""

TEST = """\
mock_provider "ibm" {}

variables {
  region = "us-south"
}

run "named" {
  command = plan

  assert {
    condition     = ibm_is_instance.this.name == "one"
    error_message = "It has another name."
  }
}
"""

LOCK = """\
provider "registry.terraform.io/ibm-cloud/ibm" {
  version     = "2.5.0"
  constraints = ">= 2.5.0, < 3.0.0"
  hashes = [
    "h1:abc=",
    "zh:0123",
  ]
}
"""

# A root that passes its module's variables on, and nothing else.
WRAPPER = """\
provider "ibm" {
  region = var.region
}

module "net" {
  source = "../modules/net"

  name = var.name
}
"""

WRAPPER_VARIABLES = """\
variable "region" {
  description = "Where."
  type        = string
}

variable "name" {
  description = "What it is called."
  type        = string
}
"""

WRAPPER_OUTPUTS = """\
output "vpc_id" {
  description = "Which."
  value       = module.net.vpc_id
}
"""

ROOT_README = """\
# root

What it is for.

<!-- BEGIN_TF_DOCS: written by scripts/terraform-readme.py, an edit here is lost -->

## Inputs

| name | | type | default |
|---|---|---|---|
| `region` | Where. | `string` | required |

## Outputs

| name | |
|---|---|
| `crn` | Which. |

<!-- END_TF_DOCS -->
"""

WRAPPER_README = """\
# wrapper

What it is for.

<!-- BEGIN_TF_DOCS: written by scripts/terraform-readme.py, an edit here is lost -->

## Inputs

| name | | type | default |
|---|---|---|---|
| `name` | What it is called. | `string` | required |
| `region` | Where. | `string` | required |

## Outputs

| name | |
|---|---|
| `vpc_id` | Which. |

<!-- END_TF_DOCS -->
"""

NET_README = """\
# net

What it is for.

<!-- BEGIN_TF_DOCS: written by scripts/terraform-readme.py, an edit here is lost -->

## Inputs

| name | | type | default |
|---|---|---|---|
| `name` | What it is called. | `string` | required |

## Outputs

| name | |
|---|---|
| `vpc_id` | Which. |

<!-- END_TF_DOCS -->
"""

IN_ORDER = {
    "root/versions.tf": VERSIONS,
    "root/main.tf": MAIN,
    "root/variables.tf": VARIABLES,
    "root/outputs.tf": OUTPUTS,
    "root/tests/main.tftest.hcl": TEST,
    "root/README.md": ROOT_README,
    "root/.terraform.lock.hcl": LOCK,
    "wrapper/versions.tf": VERSIONS,
    "wrapper/main.tf": WRAPPER,
    "wrapper/variables.tf": WRAPPER_VARIABLES,
    "wrapper/outputs.tf": WRAPPER_OUTPUTS,
    "wrapper/README.md": WRAPPER_README,
    "wrapper/.terraform.lock.hcl": LOCK,
    "modules/net/versions.tf": VERSIONS,
    "modules/net/main.tf": NET,
    "modules/net/variables.tf": NET_VARIABLES,
    "modules/net/outputs.tf": NET_OUTPUTS,
    "modules/net/README.md": NET_README,
}

VARIABLES_OF_MANY_KINDS = """
variable "map" {
  description = "One | \\"two\\"."
  type        = map(object({ ip = optional(string, "a") }))
  default = {
    a = { ip = "b" }
    b = {}
  }
}

variable "none" {
  description = "No value."
  type        = number
  default     = null
}

variable "set" {
  description = "Some."
  type        = set(string)
  default     = ["a", "b"]
}
"""

# (what is broken, file, what stands there, what stands there instead, a part of what has to be said)
BROKEN = [
    ("argument nobody knows", "root/main.tf", '  profile = "bx2-2x8"\n', '  profile = "bx2-2x8"\n  prowess = "much"\n', "prowess: the schema knows no such argument"),
    ("argument that is missing", "root/main.tf", '  profile = "bx2-2x8"\n', "", "profile is required"),
    ("argument that can only be read", "root/main.tf", '  profile = "bx2-2x8"\n', '  profile = "bx2-2x8"\n  status  = "on"\n', "status can only be read"),
    ("deprecated argument", "modules/net/main.tf", "  name = var.name\n", "  name           = var.name\n  classic_access = false\n", "classic_access is deprecated"),
    ("deprecated argument of a nested block", "root/main.tf", '    subnet = "subnet"\n', '    subnet               = "subnet"\n    primary_ipv4_address = "10.0.0.1"\n', "primary_network_interface: primary_ipv4_address is deprecated"),
    ("nested block nobody knows", "root/main.tf", "  primary_network_interface {", "  secondary_network_interface {", "secondary_network_interface: the schema knows no such argument"),
    ("nested block without what it needs", "root/main.tf", '    subnet = "subnet"\n', "", "primary_network_interface: subnet is required"),
    ("block in a value's place", "root/main.tf", '  primary_network_interface {\n    subnet = "subnet"\n  }\n', "  keys {}\n", "keys is a value, not a block"),
    ("value in a block's place", "root/main.tf", '  primary_network_interface {\n    subnet = "subnet"\n  }\n', "  metadata_service = true\n", "metadata_service is a block, not a value"),
    ("two blocks where one may be", "root/main.tf", '    subnet = "subnet"\n  }\n', '    subnet = "subnet"\n  }\n\n  primary_network_interface {\n    subnet = "other"\n  }\n', "2 blocks, of which there may be 1"),
    ("dynamic block nobody knows", "root/main.tf", '  primary_network_interface {\n    subnet = "subnet"\n  }\n', '  dynamic "nonsense" {\n    for_each = [1]\n\n    content {}\n  }\n', "nonsense: the schema knows no such argument"),
    ("argument within a dynamic block", "root/main.tf", '  primary_network_interface {\n    subnet = "subnet"\n  }\n', '  dynamic "primary_network_interface" {\n    for_each = [1]\n\n    content {\n      subnet = "subnet"\n      speed  = 1\n    }\n  }\n', "primary_network_interface: speed: the schema knows no such argument"),
    ("resource nobody knows", "modules/net/main.tf", 'resource "ibm_is_vpc" "this"', 'resource "ibm_is_cloud" "this"', "the schema knows no ibm_is_cloud"),
    ("data source nobody knows", "root/main.tf", 'data "ibm_is_image" "this"', 'data "ibm_is_picture" "this"', "the schema knows no data.ibm_is_picture"),
    ("deprecated argument of the provider", "root/main.tf", "  region = var.region\n}\n\nmodule", "  region     = var.region\n  generation = 2\n}\n\nmodule", "provider ibm: generation is deprecated"),
    ("variable without description", "root/variables.tf", '  description = "Where."\n  type        = string\n', "  type = string\n", "variable region: no description"),
    ("variable without type", "root/variables.tf", '  description = "Where."\n  type        = string\n', '  description = "Where."\n', "variable region: no type"),
    ("output without description", "root/outputs.tf", '  description = "Which."\n  value       = ', "  value = ", "output crn: no description"),
    ("variable that nothing uses", "root/variables.tf", VARIABLES, VARIABLES + '\nvariable "idle" {\n  description = "Nothing."\n  type        = string\n}\n', "variable idle: nothing uses it"),
    ("local value that nothing uses", "root/main.tf", '  name = "one"\n}\n', '  name = "one"\n  idle = "two"\n}\n', "local idle: nothing uses it"),
    ("variable that is not there", "root/main.tf", '"${var.region}-1"', '"${var.regoin}-1"', "var.regoin: there is no such variable"),
    ("local value that is not there", "root/main.tf", "local.name", "local.nam", "local.nam: there is no such local value"),
    ("resource that is not there", "root/outputs.tf", "ibm_is_instance.this.crn", "ibm_is_instance.that.crn", "ibm_is_instance.that: is not declared"),
    ("data source that is not there", "root/main.tf", "data.ibm_is_image.this.id", "data.ibm_is_image.that.id", "data.ibm_is_image.that: is not declared"),
    ("attribute that is not there", "root/outputs.tf", "ibm_is_instance.this.crn", "ibm_is_instance.this.corn", "corn: the schema knows no such attribute"),
    ("module that is not there", "root/main.tf", "module.net.vpc_id", "module.network.vpc_id", "module.network: there is no such module"),
    ("module's output that is not there", "root/main.tf", "module.net.vpc_id", "module.net.vpc", "module.net.vpc: the module has no such output"),
    ("module's folder that is not there", "root/main.tf", "../modules/net", "../modules/nets", "there is no such folder"),
    ("module from the registry", "root/main.tf", "../modules/net", "terraform-ibm-modules/cos/ibm", "modules are in this folder"),
    ("module without what it needs", "root/main.tf", '\n  name = "a-${var.region}"\n', "", "module net: name is required"),
    ("module with more than it takes", "root/main.tf", '  name = "a-${var.region}"\n', '  name = "a-${var.region}"\n  size = 1\n', "module net: size: the module has no such variable"),
    ("secret with a default", "modules/net/variables.tf", NET_VARIABLES, NET_VARIABLES + '\nvariable "password" {\n  description = "Hush."\n  type        = string\n  sensitive   = true\n  default     = "x"\n}\n', "variable password: a secret has no default"),
    ("secret that is shown", "modules/net/variables.tf", NET_VARIABLES, NET_VARIABLES + '\nvariable "api_key" {\n  description = "Hush."\n  type        = string\n}\n', "variable api_key: sounds like a secret and is not sensitive"),
    ("another version of the provider", "modules/net/versions.tf", "< 3", "< 4", "required_providers.ibm is to be"),
    ("any version of Terraform", "root/versions.tf", '  required_version = ">= 1.5.1"\n\n', "", "required_version is to be"),
    ("provider in a module", "modules/net/main.tf", NET, 'provider "ibm" {}\n\n' + NET, "a provider block in a module"),
    ("root without a provider", "root/main.tf", 'provider "ibm" {\n  region = var.region\n}\n\n', "", "no provider block"),
    ("same resource twice", "modules/net/main.tf", NET, NET + "\n" + NET, "is declared twice"),
    ("file that is no HCL", "root/outputs.tf", OUTPUTS, "output {{\n", "cannot be read"),
    ("equals signs that are not aligned", "root/main.tf", "  image   = data", "  image = data", "the equals sign is not below the others"),
    ("wrong indent", "root/main.tf", '    subnet = "subnet"', '   subnet = "subnet"', "indented by 3, not 4"),
    ("tab", "root/main.tf", "  name    = local.name", "\tname    = local.name", "a tab"),
    ("blanks at a line's end", "root/main.tf", '  name = "debian"\n', '  name = "debian" \n', "blanks at the line's end"),
    ("two empty lines", "root/main.tf", "\nlocals {", "\n\nlocals {", "two empty lines"),
    ("README of another folder", "root/README.md", "| `region` | Where. | `string` | required |", "| `region` | Where. | `string` | `null` |", "README.md: inputs and outputs are not those of the folder"),
    ("README without tables", "modules/net/README.md", "<!-- END_TF_DOCS -->", "", "README.md: inputs and outputs are not those of the folder"),
    ("README that says nothing", "root/README.md", "What it is for.\n", "", "README.md: says nothing of what the folder is for"),
    ("variable that a wrapper keeps back", "modules/net/variables.tf", NET_VARIABLES, NET_VARIABLES + '\nvariable "zone" {\n  description = "Zone."\n  type        = string\n  default     = null\n}\n', "wrapper: variable zone: module net has it, and this root does not pass it on"),
    ("variable that a wrapper has otherwise", "wrapper/variables.tf", '  description = "What it is called."\n  type        = string\n', '  description = "What it is called."\n  type        = string\n  default     = "n"\n', "wrapper: variable name: description, type or default is not that of module net"),
    ("output that a wrapper keeps back", "wrapper/outputs.tf", 'output "vpc_id"', 'output "vpc"', "wrapper: output vpc_id: module net has it"),
    ("lock of another version", "root/.terraform.lock.hcl", '"2.5.0"', '"2.6.0"', "has version 2.6.0, and the schema is that of 2.5.0"),
    ("lock of another provider", "root/.terraform.lock.hcl", "ibm-cloud/ibm", "hashicorp/aws", "is to lock registry.terraform.io/ibm-cloud/ibm alone"),
    ("lock with other bounds", "root/.terraform.lock.hcl", "< 3.0.0", "< 4.0.0", "constraints are to be"),
    ("lock with what is no checksum", "root/.terraform.lock.hcl", "zh:0123", "0123", "0123: is no checksum"),
    ("form of a test", "root/tests/main.tftest.hcl", "  command = plan", "   command = plan", "indented by 3, not 2"),
]

# What only Terraform tells, by way of the stand-in for the provider.
BROKEN_FOR_TERRAFORM = [
    ("type", "root/main.tf", '  name    = local.name\n', '  name    = ["a"]\n', "validate: main.tf"),
    ("function", "root/main.tf", '"${var.region}-1"', 'nonsense(var.region)', "Call to unknown function"),
    ("cycle", "root/main.tf", '  name = "one"\n}\n', '  name = local.more\n  more = local.name\n}\n', "Cycle"),
    ("argument nobody knows", "root/main.tf", '  profile = "bx2-2x8"\n', '  profile = "bx2-2x8"\n  prowess = "much"\n', "Unsupported argument"),
    ("form", "root/main.tf", "local.name", "(local.name )", "fmt: "),
    ("test", "root/main.tf", '  name = "one"\n', '  name = "two"\n', "It has another name."),
]


class Case(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = pathlib.Path(temporary.name).resolve()
        for name, text in IN_ORDER.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def put(self, file, old, new):
        path = self.root / file
        text = path.read_text(encoding="utf-8")
        self.assertEqual(text.count(old), 1, f"{file} has to have once: {old!r}")
        path.write_text(text.replace(old, new), encoding="utf-8")

    def restore(self, file):
        (self.root / file).write_text(IN_ORDER[file], encoding="utf-8")


class Files(Case):
    """Without any Terraform."""

    def test_what_is_in_order_passes(self):
        self.assertEqual(list(check.check_files(self.root, SCHEMA)), [])

    def test_what_is_broken_is_refused(self):
        for what, file, old, new, said in BROKEN:
            with self.subTest(what):
                self.put(file, old, new)
                problems = list(check.check_files(self.root, SCHEMA))
                self.restore(file)
                self.assertTrue(any(said in problem for problem in problems), f"{what}: {problems}")

    def test_a_root_without_a_lock_and_a_folder_without_a_readme_are_refused(self):
        (self.root / "root/.terraform.lock.hcl").unlink()
        (self.root / "modules/net/README.md").unlink()
        problems = list(check.check_files(self.root, SCHEMA))
        self.assertTrue(any(problem.startswith("root: .terraform.lock.hcl: is missing") for problem in problems), problems)
        self.assertTrue(any(problem.startswith("modules/net: no README.md") for problem in problems), problems)

    def test_the_script_writes_what_the_check_wants(self):
        for name in ("root", "wrapper", "modules/net"):
            path = self.root / name / "README.md"
            path.write_text(path.read_text(encoding="utf-8").replace("| `", "| `x"), encoding="utf-8")
        self.assertEqual(len(list(check.check_files(self.root, SCHEMA))), 3)
        subprocess.run([sys.executable, README, self.root], check=True)
        self.assertEqual(list(check.check_files(self.root, SCHEMA)), [])

    def test_a_table_has_a_default_of_any_kind_on_one_line(self):
        self.put("modules/net/variables.tf", NET_VARIABLES, NET_VARIABLES + VARIABLES_OF_MANY_KINDS)
        told = check.readme.tables(check.Folder.parse(self.root / "modules/net"))
        for line in (
            "| `map` | One \\| \"two\". | `map(object({ip = optional(string, \"a\")}))` | `{ a = { ip = \"b\" }, b = {} }` |",
            "| `none` | No value. | `number` | `null` |",
            "| `set` | Some. | `set(string)` | `[\"a\", \"b\"]` |",
        ):
            self.assertIn(line, told.splitlines())

    def test_another_reader_of_the_same_files_is_compared(self):
        folder = check.Folder.parse(self.root / "root")
        told = {
            "inputs": [{"name": "region", "type": "string", "description": "Where.", "default": None, "required": True}],
            "outputs": [{"name": "crn", "description": "Which."}],
        }
        self.assertEqual(list(check.readme.compare(folder, told)), [])
        told["inputs"][0]["required"] = False
        told["outputs"] = []
        problems = list(check.readme.compare(folder, told))
        self.assertTrue(problems[0].startswith("variable region: ") and problems[1].startswith("output crn: "), problems)

    def test_two_regions_have_a_provider_each(self):
        self.put("root/main.tf", 'provider "ibm" {\n', 'provider "ibm" {\n  alias  = "there"\n  region = var.region\n}\n\nprovider "ibm" {\n')
        self.assertEqual(list(check.check_files(self.root, SCHEMA)), [])
        self.put("root/main.tf", '  alias  = "there"\n', '  alias  = "there"\n  regoin = "x"\n')
        self.assertIn("root: provider ibm.there: regoin: the schema knows no such argument", list(check.check_files(self.root, SCHEMA)))

    def test_words_in_strings_are_no_references(self):
        self.put("root/main.tf", '"debian"', '"var.nothing module.nothing.x ibm_is_vpc.nothing"')
        self.assertEqual(list(check.check_files(self.root, SCHEMA)), [])

    def test_an_interpolation_within_a_string_within_an_expression_is_one(self):
        self.put("root/main.tf", '"debian"', 'coalesce("x-${var.nothing}", "y")')
        self.assertIn("root: data.ibm_is_image.this: var.nothing: there is no such variable", list(check.check_files(self.root, SCHEMA)))


@unittest.skipUnless(check.programs.find(), "there is neither a terraform nor a tofu")
class Terraform(Case):
    """What it says, with the stand-in."""

    def said(self):
        return "\n".join(check.programs.check_with(check.programs.find(), self.root, check.find_folders(self.root), SCHEMA))

    def test_what_is_in_order_passes(self):
        self.assertEqual(self.said(), "")

    def test_what_is_broken_is_refused(self):
        for what, file, old, new, wanted in BROKEN_FOR_TERRAFORM:
            with self.subTest(what):
                self.put(file, old, new)
                said = self.said()
                self.restore(file)
                self.assertIn(wanted, said)


def provider_of(schema):
    """What `terraform providers schema -json` prints of a schema: Terraform's own words, by way of the stand-in."""
    with check.programs.variables(schema) as environment, tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "versions.tf").write_text(VERSIONS, encoding="utf-8")
        program = check.programs.Program(check.programs.find(), environment)
        program.run(folder, "init", "-backend=false", "-input=false")
        return program.run(folder, "providers", "schema", "-json").stdout


@unittest.skipUnless(check.programs.find(), "there is neither a terraform nor a tofu")
class RealProvider(unittest.TestCase):
    """The comparison of the schema with a provider's."""

    def setUp(self):
        self.text = provider_of(SCHEMA)
        self.assertIn("ibm_is_vpc", self.text)

    def said(self, *changes):
        """What is said of the schema after changes of its text."""
        text = (HERE / "terraform" / "schema" / "ibm-2.5.0.json").read_text(encoding="utf-8")
        for old, new in changes:
            self.assertIn(old, text)
            text = text.replace(old, new, 1)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "schema.json")
            path.write_text(text, encoding="utf-8")
            return list(real.compare(check.Schema.load(path), self.text))

    def test_a_schema_agrees_with_itself(self):
        self.assertEqual(self.said(), [])

    def test_each_difference_is_reported(self):
        for change, wanted in [
            (('"storage_class": "string"', '"storage_clas": "string"'), "ibm_cos_bucket.storage_clas: the provider has no such attribute"),
            (('"hard_quota": "number"', '"hard_quota": "string"'), "ibm_cos_bucket.hard_quota: string here, number by the provider"),
            (('"required": { "bucket_name": "string", "resource', '"required": { "resource'), "ibm_cos_bucket.bucket_name: the provider requires it"),
            (('"required": { "group_id": "string" }', '"optional": { "group_id": "string" }'), "group_id: optional here, required by the provider"),
            (('"min": 1,\n          "required": { "rule_id"', '"required": { "rule_id"'), "lifecycle_rule: ('list', 0, 0) here, ('list', 1, 0) by the provider"),
            (('"expired_object_delete_marker": "bool"', '"expired": "bool"'), "expiration.expired: the provider has no such attribute"),
            (('"ibm_is_vpc": {', '"ibm_is_vcp": {'), "ibm_is_vcp: the provider has no such resource"),
            (('"ibm_is_ssh_key": {', '"ibm_is_key": {'), "data.ibm_is_key: the provider has no such data source"),
        ]:
            with self.subTest(wanted):
                said = self.said(change)
                self.assertTrue(any(wanted in one for one in said), said)

    def test_a_provider_that_is_not_there_is_no_agreement(self):
        said = list(real.compare(SCHEMA, json.dumps({"provider_schemas": {}})))
        self.assertTrue("is not among the providers: none" in said[0], said)


if __name__ == "__main__":
    unittest.main()
