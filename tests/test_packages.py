"""The corpus of packages: its manifest, what is left out, what is refused, and the committed slice. No download."""

import hashlib
import json
import subprocess
import zipfile

import numpy as np
import pytest

from postx import packages, text


def test_a_package_is_in_one_split_and_its_wheel_serves_every_system():
    wheels = packages.manifest()["wheels"]
    names = [wheel["name"].lower() for wheel in wheels]
    assert len(set(names)) == len(names) >= 20
    assert {wheel["split"] for wheel in wheels} == set(text.SPLITS)
    for wheel in wheels:
        assert wheel["file"].endswith("py3-none-any.whl")
        assert f"-{wheel['version']}-" in wheel["file"]
        assert len(wheel["sha256"]) == 64
    sizes = packages.manifest()["text"]["sizes"]
    assert 60e6 < sum(sizes.values()) < 100e6
    assert min(sizes["validation"], sizes["test"]) > 2e6


def test_the_slice_is_a_quarter_megabyte_of_each_and_source():
    found = text.packages_slice()
    assert found.sizes == {"train": 0, "validation": 262144, "test": 262144}
    words = bytes(found.validation).decode(errors="replace")
    assert words.count("def ") > 300
    assert sum(x.shape[0] * x.shape[1] for x, _ in found.windows("test", 8, 512)) >= 262144
    assert packages.SLICE.stat().st_size < 200_000


def test_a_slice_is_cut_evenly():
    long = np.arange(100_000, dtype=np.uint32).astype(np.uint8)
    whole = text.Text(train=long, validation=long, test=long[:9000], source="")
    cut = text.cut_slice(whole, stretches=4, long=1000)
    even = [long[at : at + 1000] for at in (0, 33000, 66000, 99000)]
    assert cut["validation"].tolist() == np.concatenate(even).tolist()
    assert len(cut["test"]) == 4000


FILES = {
    "good/a.py": "# by hand\nx = 1\n", "good/b.py": "y = 2\r\n", "good/_vendor/c.py": "z = 3\n",
    "good/migrations/d.py": "z = 3\n", "good/made.py": "# This file is auto-generated. Do not edit.\nz = 3\n",
    "good/thing_pb2.py": "z = 3\n", "good/empty.py": "\n", "good/data.txt": "no", "good/table.py": "t = 1\n" * 40_000,
}  # fmt: skip


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel on this disk, and a manifest that names it."""
    monkeypatch.setenv("POSTX_PACKAGES", str(tmp_path))
    path = tmp_path / "good-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, words in FILES.items():
            archive.writestr(name, words)
    row = {"name": "good", "version": "1.0", "file": path.name, "split": "test",
           "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}  # fmt: skip
    monkeypatch.setattr(packages, "MANIFEST", tmp_path / "packages.json")
    packages.MANIFEST.write_text(json.dumps({"wheels": [row]}))
    return row


def test_generated_vendored_and_huge_files_are_left_out(wheel):
    assert packages.documents() == {
        "train": [], "validation": [], "test": [["# by hand\nx = 1\n"], ["y = 2\n"]],
    }  # fmt: skip


def test_other_bytes_are_refused(wheel, tmp_path):
    with pytest.raises(ValueError, match="SHA-256 is .*, the manifest says 00"):
        packages.fetch(wheel | {"sha256": "00"}, tmp_path)


def test_a_missing_wheel_is_asked_of_pip_by_its_exact_version(wheel, tmp_path, monkeypatch):
    asked = []

    def pip(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no such version")

    monkeypatch.setattr(packages.subprocess, "run", pip)
    (tmp_path / wheel["file"]).unlink()
    with pytest.raises(RuntimeError, match=r"pip could not download good 1\.0: no such version"):
        packages.fetch(wheel, tmp_path)
    assert asked[0][-1] == "good==1.0"
    assert {"--no-deps", "--only-binary=:all:", "--platform=any"} <= set(asked[0])


def test_the_text_is_held_to_its_manifest(wheel):
    text._packages.cache_clear()
    with pytest.raises(ValueError, match="too short to be split"):  # one package fills one split
        text.load("packages")
    text._packages.cache_clear()
