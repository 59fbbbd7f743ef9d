"""Real networks from float to the vendor's simulator: quantized, checked, scored. The larger ones are slow."""

import importlib.util
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from graphopt import io, optimize, targets
from graphopt.backend.environments import python_of
from graphopt.backend.report import CheckReport
from graphopt.checking import Numbers, check, compile_model
from tests.backend import planted
from tests.helpers import model_of, shared

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


def pictures(folder: Path, images: np.ndarray) -> Path:
    np.savez(folder / "pictures.npz", input=images.astype(np.float32))
    return folder / "pictures.npz"


def small_photos(folder: Path) -> Path:
    with np.load(shared("data", "cifar10_train4096.npz")) as packed:
        stream, ends = packed["jpeg"].tobytes(), packed["offset"]
    images = [np.asarray(Image.open(BytesIO(stream[ends[i] : ends[i + 1]])).convert("RGB")) for i in range(64)]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return pictures(folder, ((np.stack(images) / 255 - mean) / std).transpose(0, 3, 1, 2))


def large_photos(folder: Path) -> Path:
    files = [shared("data", "imagenet_1000", f"{i:04d}.jpg") for i in range(7, 327, 10)]
    opened = [Image.open(file).convert("RGB") for file in files]
    images = [np.asarray(ImageOps.fit(image, (224, 224), centering=(0.5, 0.5))) for image in opened]
    return pictures(folder, ((np.stack(images) - 127.0) / 128.0).transpose(0, 3, 1, 2))


def texts(folder: Path) -> Path:
    with np.load(shared("data", "wordnet.npz")) as data:
        ids, mask = (data[f"calib_{name}"][:32].astype(np.int64) for name in ("ids", "mask"))
    np.savez(folder / "texts.npz", input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))
    return folder / "texts.npz"


@pytest.mark.slow
@needs_qnn
@pytest.mark.parametrize(
    ("name", "data", "dims"),
    [
        ("cifar10_resnet20", small_photos, {}),
        ("efficientnet_lite0", large_photos, {}),
        ("minilm_l6_v2", texts, {"seq": 64}),
    ],
)
def test_a_larger_network_is_whole_and_in_integers_on_the_htp(tmp_path, name, data, dims):
    source = shared("models", f"{name}.onnx")

    report = checked(source, data(tmp_path), tmp_path, "qnn-htp", dims=dims)

    names = ("facts", "opens", "placement", "integers")
    assert [held(report)[gate] for gate in names] == [True] * 4, report.render()
    assert len(report.partitions) == 1


@needs_qnn
@pytest.mark.parametrize("soc", ["60", pytest.param("69", marks=pytest.mark.slow)])
def test_a_compiled_network_is_loaded_again_and_computes_the_same(tmp_path, soc):
    target = targets.find(f"qnn-htp:soc={soc}")
    optimize(
        MODELS / "fashion_cnn.onnx", output=tmp_path / "out.onnx", target=target, data=images(tmp_path), preset="int8"
    )

    compiled = compile_model(tmp_path / "out.onnx", target=target)

    assert [file.name for file in compiled.files] == ["out_ctx.onnx", "out_ctx_qnn.bin"]
    assert "identical" in compiled.detail


@pytest.mark.slow
@needs_rknn
def test_a_network_is_compiled_for_rockchips_npu_and_loaded_again(tmp_path):
    target = targets.find("rknn:platform=rk3576")
    source = planted.convolutions(tmp_path / "m.onnx")

    compiled = compile_model(source, target=target)

    assert [file.name for file in compiled.files] == ["m.rknn"]
    assert "loaded again" in compiled.detail


@needs_qnn
def test_a_network_quantized_in_another_form_is_named_and_fails(tmp_path):
    body = """g (float[1,8] x) => (float[1,4] y) {
        q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) f = Cast <to = 1> (i) y = Mul(f, s) }"""
    io.save(model_of(body, weights={"w": np.ones((8, 4), np.int8)}), tmp_path / "m.onnx")

    report = check(tmp_path / "m.onnx", target=targets.find("qnn-htp"))

    assert not report.passed
    assert "CHK008" in {finding.code for finding in report.findings}
    assert any("MatMulInteger" in node.op and "not supported by QNN EP" in node.why for node in report.nodes)


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
