"""Architectures are data: what would run code or call functions is refused."""

import copy
import io

import pytest
from rich.console import Console

from autoprune import progress
from autoprune.errors import ModelError
from tests.vendors.ultralytics_models import make_lively  # noqa: F401  skips where there is no Ultralytics

ultralytics = pytest.importorskip("ultralytics")
from autoprune.vendors import ultralytics as adapter  # noqa: E402
from autoprune.vendors import ultralytics_architectures as architectures  # noqa: E402
from autoprune.vendors.ultralytics_library import YAML  # noqa: E402


def test_a_name_and_a_file_give_what_ultralytics_reads(tmp_path, monkeypatch):
    from ultralytics.nn.tasks import yaml_model_load

    own = yaml_model_load("yolo11s.yaml")
    assert architectures.find("yolo11s.yaml") == own
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "nc: 2\nbackbone: [[-1, 1, Conv, [8, 3, 2]]]\nhead: [[[0], 1, Detect, [nc]]]\n"
    )
    selected = architectures.find("mine.yaml")
    assert architectures.task_of(selected, "mine.yaml") == "detect"
    assert architectures.build(selected, 2).stride.tolist() == [2]


@pytest.mark.parametrize(
    "source", ["yolo11q.yaml", "yolo99n.yaml", "../yolo11n.yaml", "https://x.org/yolo11n.yaml"]
)
def test_an_unknown_name_answers_with_the_nearest(source):
    with pytest.raises(ModelError, match=r"no architecture of Ultralytics .*; did you mean yolo.*\.yaml"):
        architectures.find(source)


@pytest.mark.parametrize("source", ["yoloe-11n.yaml", "yolov8-worldx.yaml", "yolo11-cls-n.yaml", "yolov3n"])
def test_the_nearest_names_are_taken(source):
    with pytest.raises(ModelError) as caught:
        architectures.find(source)
    _, _, nearest = str(caught.value).rstrip("?").partition("did you mean ")
    assert all(architectures.task_of(architectures.find(name), name) for name in nearest.split(", "))


@pytest.mark.parametrize("content", ["[1, 2]", "nc: 3", "nc: [", "nc: 3\nbackbone: 1\nhead: 2"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ModelError, match=r"x\.yaml"):
        architectures.task_of(architectures.find(str(path)), str(path))


@pytest.mark.parametrize(
    "activation",
    [
        "__import__('os').mkdir('made')",
        "nn.SiLU() if 1 else 2",
        "nn.Module.__init__",
        "nn.ReLU(open('made', 'w'))",
        "nn.SiLU(__import__('os').mkdir('made'))()",
        "nn.SiLU().forward.__globals__['__builtins__']['__import__']('os').mkdir('made')",
        "nn.SiLU().extra_repr()",
        "nn.SiLU()[0]",
        "nn.SiLU()()",
        3,
        "torch.hub.load('a', 'b')",
        "nn.functional.relu(1)",
    ],
)
def test_an_activation_that_is_no_layer_is_refused(activation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {**architectures.find("yolov8n.yaml"), "activation": activation}
    with pytest.raises(ModelError, match=r"is no layer such as nn\.SiLU"):
        architectures.task_of(content, "x.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "activation", ["nn.SiLU()", "torch.nn.LeakyReLU(0.1)", "nn.Hardtanh(-1, max_val=6.0)"]
)
def test_layers_of_torch_are_activations(activation):
    content = {**architectures.find("yolov8n.yaml"), "activation": activation}
    assert architectures.task_of(content, "x.yaml") == "detect"
    assert type(architectures.build(content, 2).model[0].act).__name__ in activation


@pytest.mark.parametrize(
    "module",
    [
        "torch_load",
        "DetectionModel",
        "nn.functional",
        "nn.init",
        "TorchVision",
        "os",
        "torchvision.ops.nms",
        "Conv.forward",
    ],
)
def test_what_is_no_layer_is_refused(module):
    content = copy.deepcopy(architectures.find("yolov8n.yaml"))
    content["backbone"][0][2] = module
    with pytest.raises(ModelError, match=f"names '{module}', which is no layer"):
        architectures.task_of(content, "x.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "yolo11n-cls.yaml",
        "yolov8s-world.yaml",
        "yoloe-11-seg.yaml",
        "yolo26n-depth.yaml",
        "yolo26n-sem.yaml",
    ],
)
def test_models_of_other_tasks_are_refused(name):
    with pytest.raises(
        ModelError, match=r"does not predict boxes of fixed classes; models that do end in Detect"
    ):
        architectures.task_of(architectures.find(name), name)


@pytest.mark.parametrize(
    ("key", "value"), [("nc", "3"), ("nc", 0), ("channels", 4), ("scales", {"n": [1e9, 1, 1]})]
)
def test_numbers_out_of_range_are_refused(key, value):
    with pytest.raises(ModelError, match=r"^x.yaml"):
        architectures.task_of({**architectures.find("yolov8n.yaml"), key: value}, "x.yaml")


@pytest.mark.parametrize(
    ("name", "scales", "said"),
    [
        ("custom.yaml", True, "custom.yaml names no scale: n is built, the first of n, s, m, l, x"),
        ("yolo11z.yaml", True, "names no scale: n is built"),
        ("yolo11s-custom.yaml", True, ""),
        ("custom.yaml", False, ""),
    ],
)
def test_a_file_that_names_no_scale_says_which_is_built(name, scales, said, tmp_path):
    content = {**YAML.load(architectures.ROOT / "cfg" / "models" / "11" / "yolo11.yaml")}
    if not scales:
        del content["scales"]
    YAML.save(tmp_path / name, content)
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=1000)):
        selected = architectures.find(str(tmp_path / name))
    assert len(lines.getvalue().splitlines()) == bool(said)
    assert said in lines.getvalue()
    if said:  # what Ultralytics itself builds of the file
        theirs = ultralytics.nn.tasks.DetectionModel(str(tmp_path / name), nc=3, verbose=False)
        named = ultralytics.nn.tasks.DetectionModel("yolo11n.yaml", nc=3, verbose=False)
        ours = architectures.build(selected, 3)
        shapes = [[each.shape for each in model.parameters()] for model in (theirs, named, ours)]
        assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": [], "head": []}, "has no layers in `backbone` and `head`"),
        ({"scales": [1]}, "scales must be rows by letter"),
        ({"scales": {"s": [1, 1, 512]}}, "scales has no 'n', which the file's name says; it has s"),
        ({"scales": {"n": [0.5]}}, "scale n must be depth, width and the most channels"),
        ({"scales": {"n": [0.5, 0.25, 0]}}, "scale n must be depth, width and the most channels"),
        ({"scales": {"n": [0.5, 0.25, 10**400]}}, "no layer takes 1000000000"),
    ],
)
def test_an_architecture_that_ultralytics_cannot_unpack_is_refused_in_one_line(changes, said):
    with pytest.raises(ModelError) as error:
        architectures.task_of({**architectures.find("yolo11n.yaml"), **changes}, "x.yaml")
    assert said in str(error.value)
    assert str(error.value).startswith("x.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ("Conv", "'Conv'"),
        (7, "'7'"),
        ([-1, 1, "Conv"], r"\[-1, 1, 'Conv'\]"),
        ([-1, 1, "Conv", 3], "'Conv', 3"),
    ],
)
def test_what_is_no_row_is_said_to_be_none(row, shown):
    content = copy.deepcopy(architectures.find("yolo11n.yaml"))
    content["backbone"][1] = row
    with pytest.raises(ModelError, match=rf"^x.yaml: .*{shown}.* is no row of \[from, repeats, module"):
        architectures.task_of(content, "x.yaml")


@pytest.mark.parametrize("row", [["x", 1], [[-1, "x"], 1], [-1, "one"], [-1, None], [-1, True]])
def test_a_text_where_a_row_has_whole_numbers_is_named(row):
    content = copy.deepcopy(architectures.find("yolo11n.yaml"))
    content["backbone"][1][:2] = row
    with pytest.raises(ModelError, match=r"^x.yaml: .*'Conv'.* must begin with whole numbers"):
        architectures.task_of(content, "x.yaml")


@pytest.mark.parametrize("arguments", [["many", 3, 2], [64, "three", 2]])
def test_a_text_where_a_layer_takes_a_number_says_where_to_look(arguments):
    content = copy.deepcopy(architectures.find("yolo11n.yaml"))
    content["backbone"][0][3] = arguments
    assert architectures.task_of(content, "x.yaml") == "detect"
    with pytest.raises(
        ModelError, match=r"^yolo11n.yaml can't be built by .*; check the rows of its `backbone`"
    ):
        adapter.build({"yaml": content}, 4)


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolo11n-seg.yaml", "yolo11n-obb.yaml", "rtdetr-l.yaml"])
def test_a_prediction_layer_has_the_classes_that_nc_says(name):
    content = {**copy.deepcopy(architectures.find(name)), "nc": 3}
    row = content["head"][-1]
    for wrong in ([7], ["7"], []):
        with pytest.raises(ModelError, match=r"^x.yaml: \w+ has .* for its number of classes, and nc is 3"):
            architectures.task_of({**content, "head": [*content["head"][:-1], [*row[:3], wrong]]}, "x.yaml")
    row[3][0] = 3
    assert architectures.task_of(content, "x.yaml")
    if name == "yolo11n.yaml":  # a number does not hold where other classes are trained
        assert architectures.build(content, 5).model[-1].nc == 5
        assert content["head"][-1][3][0] == 3
