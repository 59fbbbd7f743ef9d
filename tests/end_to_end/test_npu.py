"""Real networks from float to the vendor's simulator: quantized, checked, scored. The larger ones are slow."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from graphopt import optimize, targets
from graphopt.backend.environments import python_of
from graphopt.backend.report import CheckReport
from graphopt.checking import Numbers, check
from tests.helpers import shared

MODELS = Path(__file__).resolve().parents[2] / "models"

pytestmark = pytest.mark.npu
needs_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs the extra: pip install 'graphopt[qnn]'"
)
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the extra: pip install 'graphopt[openvino]'"
)
needs_rknn = pytest.mark.skipif(not python_of("rknn"), reason="needs `graphopt toolchains --install rknn`")


def images(folder: Path) -> Path:
    """Write calibration images of the project's own networks, and return the file."""
    with np.load(MODELS / "fashion_sample.npz") as data:
        np.savez(folder / "images.npz", images=data["calibration_images"][:64, None].astype(np.float32))
    return folder / "images.npz"


def checked(source: Path, data: Path, folder: Path, target: str, **options: object) -> CheckReport:
    """Quantize ``source`` for ``target`` and check the result against it."""
    where = targets.find(target)
    output = folder / "out.onnx"
    optimize(source, output=output, target=where, data=data, **{"preset": "int8", **options})
    return check(output, target=where, numbers=Numbers(reference=source, data=data))


def held(report: CheckReport) -> dict[str, bool | None]:
    return {gate.name: gate.passed for gate in report.gates}


@needs_qnn
def test_a_convolutional_network_passes_every_gate_of_the_htp(tmp_path):
    report = checked(MODELS / "fashion_cnn.onnx", images(tmp_path), tmp_path, "qnn-htp")

    assert held(report) == dict.fromkeys(("facts", "opens", "placement", "integers", "agreement"), True)
    assert len(report.partitions) == 1


@needs_qnn
def test_a_float_network_is_told_from_one_in_integers(tmp_path):
    report = check(MODELS / "fashion_cnn.onnx", target=targets.find("qnn-htp"), dims={"batch": 1}, numbers=None)

    assert (held(report)["placement"], held(report)["integers"]) == (True, None)


@pytest.mark.slow
@needs_qnn
def test_a_transformer_is_whole_and_in_integers_on_the_htp(tmp_path):
    report = checked(MODELS / "fashion_transformer.onnx", images(tmp_path), tmp_path, "qnn-htp")

    assert (held(report)["opens"], held(report)["placement"], held(report)["integers"]) == (True, True, True)


@pytest.mark.slow
@needs_qnn
def test_a_network_that_was_pruned_and_quantized_passes_every_gate(tmp_path):
    source = shared("models", "cifar10_resnet20.onnx")
    data = tmp_path / "noise.npz"
    np.savez(data, input=np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np.float32))
    pruned = tmp_path / "pruned.onnx"
    steps = "lift-constants,fold-constants,fuse-batchnorm,prune-channels{macs=0.7}"
    optimize(source, output=pruned, pipeline=steps, data=data)

    report = checked(pruned, data, tmp_path, "qnn-htp")

    assert report.passed, report.render()


@pytest.mark.slow
@needs_openvino
def test_openvino_has_an_integer_kernel_for_every_quantized_layer(tmp_path):
    report = checked(MODELS / "fashion_cnn.onnx", images(tmp_path), tmp_path, "openvino-cpu")

    assert held(report)["integers"] is True


@pytest.mark.slow
@needs_rknn
def test_a_convolutional_network_is_built_for_rockchips_npu(tmp_path):
    report = checked(shared("models", "cifar10_resnet20.onnx"), shared_noise(tmp_path), tmp_path, "rknn")

    assert held(report)["builds"] is True, report.render()
    assert report.cost["cycles"] > 0


def shared_noise(folder: Path) -> Path:
    path = folder / "noise.npz"
    np.savez(path, input=np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32))
    return path
