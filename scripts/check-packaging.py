#!/usr/bin/env python3
"""Checks what packages are made of, without building the program.

    scripts/check-packaging.py [PROGRAM]

Every file that Cargo.toml names for the package is there, and paths in units are where the package puts them; maintainer scripts do what they
have to and enable nothing; the example of a configuration has every setting, all of them commented out, and is TOML when they are not. With PROGRAM, a snapferry, it
has to accept that configuration. With dpkg-deb, a package with a stand-in for the program is made and looked into.
"""

import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

try:
    import tomllib
except ImportError:  # before Python 3.11, as on Ubuntu 22.04
    print("SKIPPED: check-packaging: needs Python 3.11", file=sys.stderr)
    sys.exit(1 if os.environ.get("CI") == "true" else 0)

HERE = pathlib.Path(__file__).resolve().parents[1]
BUILT = "target/release/snapferry"
EXAMPLE = HERE / "packaging" / "config.toml.example"
SETTINGS = HERE / "src" / "cli" / "settings" / "mod.rs"
# What dpkg calls each maintainer script with: installed anew, upgraded, removed, purged.
CALLS = {
    "postinst": (["configure", ""], ["configure", "0.0.9"]),
    "prerm": (["remove"], ["upgrade", "0.2.0"]),
    "postrm": (["remove"], ["upgrade", "0.2.0"], ["purge"]),
}
# Seconds for one run of a program.
LONGEST = 60

problems = []


def complain(text):
    problems.append(text)


def run(*words, **more):
    return subprocess.run(words, capture_output=True, text=True, timeout=LONGEST, check=False, **more)


def assets(package):
    """(source, path in the package, mode), the built program's source being None."""
    for source, target, mode in package["assets"]:
        if source == BUILT:
            yield None, target + "snapferry", mode
            continue
        if source.startswith("target/"):
            # `make deb` has the program write it.
            continue
        found = sorted(glob.glob(source, root_dir=HERE))
        if not found:
            complain(f"Cargo.toml: {source}: there is no such file")
        for path in found:
            yield HERE / path, target + pathlib.Path(path).name if target.endswith("/") else target, mode


def check_scripts(package):
    folder = HERE / package["maintainer-scripts"]
    for name in ("postinst", "prerm", "postrm"):
        script = folder / name
        text = script.read_text(encoding="utf-8")
        if (parsed := run("sh", "-n", str(script))).returncode != 0:
            complain(f"{script.name}: {parsed.stderr}")
        if not script.stat().st_mode & 0o111 or "\nset -e\n" not in text:
            complain(f"{script.name}: has to be executable, and to end at the first failure")
        if re.search(r"systemctl\s+(enable|start|restart)|deb-systemd-helper\s+enable", text):
            complain(f"{script.name}: enables or starts something")


def check_calls(package):
    """Runs the maintainer scripts as dpkg does, with stand-ins for every program, and looks at what they call."""
    with tempfile.TemporaryDirectory() as temporary:
        programs = pathlib.Path(temporary) / "bin"
        programs.mkdir()
        called = pathlib.Path(temporary) / "called"
        for name in ("systemd-sysusers", "systemd-tmpfiles", "systemctl", "rm"):
            (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{called}"\n', encoding="utf-8")
            (programs / name).chmod(0o755)
        for name, calls in CALLS.items():
            for words in calls:
                called.write_text("", encoding="utf-8")
                told = run("/bin/sh", str(HERE / package["maintainer-scripts"] / name), *words, env={"PATH": str(programs)})
                if told.returncode != 0:
                    complain(f"{name} {' '.join(words)}: ends with {told.returncode}: {told.stderr}")
                lines = called.read_text(encoding="utf-8").splitlines()
                made = ["systemd-sysusers snapferry.conf", "systemd-tmpfiles --create snapferry.conf"]
                wanted = {"postinst": made, "prerm": [], "postrm": ["rm -rf /var/lib/snapferry"] if words == ["purge"] else []}[name]
                if [line for line in lines if not line.startswith("systemctl ")] != wanted:
                    complain(f"{name} {' '.join(words)}: calls {lines}, not {wanted}")


def check_paths(installed):
    """What units start and read has to be where the package puts it."""
    programs = {"/" + target for _, target, _ in installed}
    for source, target, _ in installed:
        if source is None or not target.endswith(".service"):
            continue
        for started in re.findall(r"^ExecStart=(\S+)", source.read_text(encoding="utf-8"), re.MULTILINE):
            if started not in programs:
                complain(f"{source.name}: {started} is not in the package")
    in_package = {source for source, _, _ in installed}
    for path in [*HERE.glob("systemd/*.service"), *HERE.glob("systemd/*.timer"), *HERE.glob("systemd/*.d/*.conf")]:
        if path not in in_package:
            complain(f"{path.relative_to(HERE)}: is not in the package")


def check_example(program):
    text = EXAMPLE.read_text(encoding="utf-8")
    source = SETTINGS.read_text(encoding="utf-8")
    table = re.search(r"const SETTINGS: \[Setting; (\d+)\] = \[(.*?)\n\];", source, re.DOTALL)
    known = re.findall(r'(?:everywhere\(|Setting \{\s*name: )"(\w+)"', table[2]) if table else []
    if not table or len(known) != int(table[1]):
        complain("src/cli/settings/mod.rs: its table of settings has another form than this check reads")
        return
    if tomllib.loads(text):
        complain(f"{EXAMPLE.name}: a setting is not commented out")
    given = re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)
    shown = set(tomllib.loads(given))
    for name in sorted(set(known) - shown):
        complain(f"{EXAMPLE.name}: {name} is missing")
    for name in sorted(shown - set(known)):
        complain(f"{EXAMPLE.name}: {name}: there is no such setting")
    if program:
        with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
            # Of two identities only one may be given.
            file.write(re.sub(r"^api_key_file = .*\n", "", given, flags=re.MULTILINE))
            file.flush()
            told = run(program, "--config", file.name, "config", "show")
            if told.returncode != 0:
                complain(f"{EXAMPLE.name}: snapferry refuses it: {told.stderr}")


def check_package(package, installed):
    """A package of the same files, made by dpkg-deb itself."""
    if not shutil.which("dpkg-deb"):
        print("SKIPPED: a package to look into: there is no dpkg-deb", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary) / "snapferry"
        for source, target, mode in installed:
            path = root / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"#!/bin/sh\n" if source is None else source.read_bytes())
            path.chmod(int(mode, 8))
        control = root / "DEBIAN"
        control.mkdir()
        words = f"Package: snapferry\nVersion: 0\nArchitecture: amd64\nMaintainer: {package['maintainer']}\nDescription: stand-in\n"
        (control / "control").write_text(words, encoding="utf-8")
        for script in (HERE / package["maintainer-scripts"]).iterdir():
            shutil.copy2(script, control / script.name)
        made = run("dpkg-deb", "--build", "--root-owner-group", str(root), str(pathlib.Path(temporary) / "p.deb"))
        if made.returncode != 0:
            complain(f"dpkg-deb: {made.stderr}")
            return
        listed = run("dpkg-deb", "--contents", str(pathlib.Path(temporary) / "p.deb")).stdout
        if not re.search(r"^-rwxr-xr-x root/root .* \./usr/bin/snapferry$", listed, re.MULTILINE):
            complain(f"the package has no /usr/bin/snapferry of mode 755:\n{listed}")
        if re.search(r" \./etc/", listed):
            complain("the package has files in /etc: Terraform and people write those, and dpkg would ask about them")


def main():
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return 0 if len(sys.argv) == 2 else 2
    package = tomllib.loads((HERE / "Cargo.toml").read_text(encoding="utf-8"))["package"]["metadata"]["deb"]
    installed = list(assets(package))
    check_scripts(package)
    check_calls(package)
    check_paths(installed)
    check_example(sys.argv[1] if len(sys.argv) == 2 else None)
    check_package(package, installed)
    for problem in problems:
        print(f"check-packaging: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
