"""Dependency rules: what may not be in the build, who may use bincode, which licences are fine."""

import json
import re
import subprocess
import sys

BANNED = ["ring", "openssl", "openssl-sys", "native-tls", "reqwest", "serde_yaml"]
LICENCES = {
    "MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC",
    "Zlib", "Unicode-3.0", "MIT-0", "0BSD", "BSL-1.0", "CC0-1.0", "Unlicense",
    "CDLA-Permissive-2.0", "OpenSSL",
}


def tokens(expression):
    return re.findall(r"\(|\)|[^()\s]+(?: WITH [^()\s]+)?", expression.replace("/", " OR "))


def allowed(expression):
    """Whether an SPDX expression can be met with the licences above."""
    words = tokens(expression)

    def either():
        good = both()
        while words and words[0] == "OR":
            words.pop(0)
            good = both() or good
        return good

    def both():
        good = one()
        while words and words[0] == "AND":
            words.pop(0)
            good = one() and good
        return good

    def one():
        word = words.pop(0)
        if word == "(":
            good = either()
            words.pop(0)
            return good
        return word in LICENCES

    return either()


def main():
    problems = []
    metadata = json.loads(subprocess.check_output(
        ["cargo", "metadata", "--format-version", "1", "--locked"], text=True
    ))
    packages = {package["id"]: package for package in metadata["packages"]}
    tree = subprocess.check_output(
        ["cargo", "tree", "--workspace", "-e", "normal,build,dev", "--prefix", "none", "--locked",
         "--format", "{p}"], text=True,
    )
    built = {tuple(line.split()[:2]) for line in tree.splitlines() if line.strip()}
    for name, version in sorted(built):
        if name in BANNED:
            problems.append(f"{name} {version} is in the build and must not be")
    for package in packages.values():
        if (package["name"], "v" + package["version"]) not in built:
            continue
        licence = package["license"]
        if not licence or not allowed(licence):
            problems.append(f"{package['name']} {package['version']}: licence {licence!r}")
    for node in metadata["resolve"]["nodes"]:
        user = packages[node["id"]]["name"]
        for dependency in node["deps"]:
            if dependency["name"] == "bincode" and user != "proto":
                problems.append(f"{user} depends on bincode, which only proto may")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(built)} packages in the build, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
