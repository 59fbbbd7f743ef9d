"""Operators in forms that the HTP refuses, or gets wrong: what becomes of them passes every gate of the simulator."""

import importlib.util
import re

import numpy as np
import pytest

from graphopt import io, optimize, targets
from graphopt.checking import Numbers, check
from tests.helpers import Arrays, model_of, operators

pytestmark = [
    pytest.mark.npu,
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs the extra: pip install 'graphopt[qnn]'"
    ),
]

HTP = targets.find("qnn-htp")
IMAGE = "float[1,8,6,6]"
PADS = {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])}
CHANNELS = {"s": np.linspace(0.5, 2, 8, dtype=np.float32), "b": np.linspace(-1, 1, 8, dtype=np.float32)}
GROUPS = {"s": np.linspace(0.5, 2, 4, dtype=np.float32), "b": np.linspace(-1, 1, 4, dtype=np.float32)}
WINDOWS = {"split": np.array([1, 2, 2, 3, 2, 3, 8]), "all": np.array([8, 9, 8])}
PIXELS = {"split": np.array([1, 2, 2, 2, 6, 6]), "image": np.array([1, 2, 12, 12])}

# name: inputs, nodes, weights, opset
FORMS: dict[str, tuple[str, str, Arrays, int]] = {
    "Softsign": (f"{IMAGE} x", "y = Softsign(x)", {}, 17),
    "Celu": (f"{IMAGE} x", "y = Celu <alpha = 0.5> (x)", {}, 17),
    "sum of two": (f"{IMAGE} x, {IMAGE} z", "y = Sum(x, z)", {}, 17),
    "mean of three": (f"{IMAGE} x, {IMAGE} z", "n = Neg(z) y = Mean(x, z, n)", {}, 17),
    "largest of three": (f"{IMAGE} x, {IMAGE} z", "n = Neg(z) y = Max(x, z, n)", {}, 17),
    "length": (f"{IMAGE} x", "y = ReduceL2 <axes = [1]> (x)", {}, 17),
    "magnitudes": (f"{IMAGE} x", "y = ReduceL1 <axes = [1]> (x)", {}, 17),
    "wrapped": (f"{IMAGE} x", 'y = Pad <mode = "wrap"> (x, p)', PADS, 19),
    "edge": (f"{IMAGE} x", 'y = Pad <mode = "edge"> (x, p)', PADS, 17),
    "mirrored": (f"{IMAGE} x", 'y = Pad <mode = "reflect"> (x, p)', PADS, 17),
    "groups": (f"{IMAGE} x", "y = GroupNormalization <num_groups = 4> (x, s, b)", CHANNELS, 21),
    "older groups": (f"{IMAGE} x", "y = GroupNormalization <num_groups = 4> (x, s, b)", GROUPS, 18),
    "windows": ("float[1,2,6,6,8] x", "r = Reshape(x, split) t = Transpose <perm = [0, 1, 2, 4, 3, 5, 6]> (r) "
                "y = Reshape(t, all)", WINDOWS, 17),
    "pixels": (f"{IMAGE} x", "r = Reshape(x, split) t = Transpose <perm = [0, 1, 4, 2, 5, 3]> (r) "
               "y = Reshape(t, image)", PIXELS, 17),
    "product of matrices": ("float[1,4,6] x, float[1,6,5] z", 'y = Einsum <equation = "bij,bjk->bik"> (x, z)', {}, 17),
    "product with pixels": ("float[1,6,4,5] x, float[1,7,6] z", 'y = Einsum <equation = "bchw,bkc->bkhw"> (x, z)',
                            {}, 17),
    "outer product": ("float[1,4] x, float[1,5] z", 'y = Einsum <equation = "bi,bj->bij"> (x, z)', {}, 17),
}  # fmt: skip


def form(name: str):
    inputs, nodes, weights, opset = FORMS[name]
    return model_of(f"g ({inputs}) => (y) {{ {nodes} }}", opset=opset, weights=weights)


def data(inputs: str, folder):
    rng = np.random.default_rng(0)
    shapes = re.findall(r"float\[1,([0-9,]*)\] (\w)", inputs)
    arrays = {end: rng.standard_normal((8, *map(int, sizes.split(",")))).astype(np.float32) for sizes, end in shapes}
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("preset", ["int8", pytest.param("none", marks=pytest.mark.slow)])
def test_it_passes_every_gate(tmp_path, name, preset):
    model, images = form(name), data(FORMS[name][0], tmp_path)
    io.save(model, tmp_path / "float.onnx")

    result = optimize(model, output=tmp_path / "out.onnx", preset=preset, target=HTP, data=images)

    report = check(
        tmp_path / "out.onnx", target=HTP, numbers=Numbers(reference=tmp_path / "float.onnx", data=images, samples=2)
    )
    assert report.passed, report.render()
    assert report.findings == ()
    assert "LEGAL001" not in {said.code for said in result.diagnostics}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Softsign", "Celu", "wrapped", "edge", "windows", "product with pixels"])
def test_as_it_was_it_passes_not_and_the_facts_say_so(tmp_path, name):
    io.save(form(name), tmp_path / "float.onnx")

    report = check(tmp_path / "float.onnx", target=HTP, numbers=Numbers(samples=1))

    assert not report.passed
    assert {said.code for said in report.findings} & {"CHK003", "CHK004"}


REFUSED = {
    "Hardmax": ("y = Hardmax(x)", "Operators of type 'Hardmax' are not supported by QNN EP"),
    "ReduceProd": ("y = ReduceProd <axes = [1]> (x)", "ReduceProd operator not supported by HTP backend."),
    "Mod": ("y = Mod <fmod = 1> (x, half)", "QNN Mod Op only support fmod == 0 for now."),
    "LpNormalization": ("y = LpNormalization <p = 1> (x)", "QNN EP only supports LpNormalization with 'p' attribute"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_other_form_is_named_in_the_vendors_words(tmp_path, name):
    nodes, words = REFUSED[name]
    model = model_of(f"g ({IMAGE} x) => (y) {{ {nodes} }}", weights={"half": np.float32(0.5)})

    result = optimize(model, output=tmp_path / "out.onnx", preset="none", target=HTP)
    report = check(tmp_path / "out.onnx", target=HTP, numbers=None)

    said = next(said for said in result.diagnostics if said.code == "LEGAL001")
    assert words.replace("'", "") in said.message.replace("'", "")
    assert operators(model)[name] == 1
    assert any(words in node.why for node in report.nodes if node.op == name)
