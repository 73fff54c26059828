"""Hostile PyTorch files: what they hold is refused or left out, and never runs.

Each payload would leave a folder behind; the first test shows that torch itself runs such payloads.
"""

from __future__ import annotations

import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graphopt.converters.importers._pytorch import expressions, operators, sources, torchscript
from graphopt.errors import GraphoptError, InputError
from graphopt.import_options import ImportOptions, InputSpec

SOURCES = Path(__file__).parents[3] / "fixtures" / "sources"
PROGRAM = "digits/models/model.json"
WEIGHTS = "digits/data/weights/model_weights_config.json"
CONSTANTS = "digits/data/constants/model_constants_config.json"
SAMPLES = "digits/data/sample_inputs/model.pt"
CODE = "digits/code/__torch__.py"
OPTIONS = {
    ".pt2": ImportOptions(),
    ".pt": ImportOptions(inputs=(InputSpec("image", "float32", ("batch", 1, 8, 8)),)),
}
Edit = Callable[[Any], Any]


class Maker:
    """Copies of the fixtures with something hostile in them, and a mark that their payloads would leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / "mark"
        self.python = f"__import__('os').mkdir({str(self.mark)!r})"
        self.pickle = f"cposix\nmkdir\n(V{self.mark}\ntR.".encode()

    def write(self, name: str, members: dict[str, bytes | None]) -> Path:
        """A copy with some members replaced, added, or left out."""
        path = self.folder / f"hostile{Path(name).suffix}"
        with zipfile.ZipFile(SOURCES / name) as old, zipfile.ZipFile(path, "w") as new:
            content = {item: old.read(item) for item in old.namelist()} | members
            for item, data in content.items():
                if data is not None:
                    new.writestr(item, data)
        return path

    def program(self, edit: Edit, member: str = PROGRAM) -> Path:
        """A copy of the exported program with its JSON edited."""
        with zipfile.ZipFile(SOURCES / "digits.pt2") as archive:
            data = json.loads(archive.read(member))
        return self.write("digits.pt2", {member: json.dumps(edit(data) or data).encode()})

    def saved(self) -> bytes:
        """An archive as ``torch.save`` writes it, with the payload for its pickle."""
        whole = io.BytesIO()
        torch.save(((torch.zeros(1),), {}), whole)
        buffer = io.BytesIO()
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(buffer, "w") as new:
            for item in old.namelist():
                new.writestr(item, self.pickle if item.endswith("data.pkl") else old.read(item))
        return buffer.getvalue()

    def load(self, path: Path) -> None:
        """What the child does with it."""
        folder = self.folder / "work"
        folder.mkdir(exist_ok=True)
        sources.load(str(path), OPTIONS[path.suffix], folder)

    def refused(self, path: Path, match: str) -> None:
        """It is refused with one line, and nothing has run."""
        with pytest.raises(GraphoptError, match=match) as caught:
            self.load(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
        assert not self.mark.exists()


@pytest.fixture
def make(tmp_path):
    return Maker(tmp_path)


def size(expression: str) -> Edit:
    """Put an expression where the size of the batch is."""

    def edit(data):
        values = data["graph_module"]["graph"]["tensor_values"]
        values["image"]["sizes"][0]["as_expr"]["expr_str"] = expression

    return edit


def renamed(old: str, new: str) -> Edit:
    return lambda data: json.loads(json.dumps(data).replace(json.dumps(old), json.dumps(new)))


def call(target: str, *arguments: dict[str, Any]) -> Edit:
    """Let the program call something first."""

    def edit(data):
        inputs = [{"name": "filename", "arg": argument, "kind": 1} for argument in arguments]
        first = data["graph_module"]["graph"]["nodes"][0]
        node = {"target": target, "inputs": inputs, "outputs": [], "metadata": {}, "name": "extra"}
        data["graph_module"]["graph"]["nodes"].insert(0, first | node)

    return edit


def spec(field: str, tree: dict[str, Any]) -> Edit:
    def edit(data):
        signature = data["graph_module"]["module_call_graph"][0]["signature"]
        given = json.loads(signature[field])
        signature[field] = json.dumps([given[0], tree])

    return edit


def test_the_payloads_are_real(make):
    """Without the checks torch runs them: in an expression, in a name, in a pickle."""
    for path in (
        make.program(size(make.python)),
        make.program(renamed("image", f"image={make.python}")),
        make.write("digits.pt2", {SAMPLES: make.saved()}),
    ):
        with pytest.raises(Exception):  # noqa: B017 - they fail after they have run
            torch.export.load(path)
        assert make.mark.exists()
        make.mark.rmdir()


@pytest.mark.parametrize(
    "expression",
    [
        "{python}",
        "Symbol('s77', positive=True) + {python}",
        "Symbol({python})",
        "Symbol('s77', positive={python})",
        "Float('1', precision={python})",
        "Integer(1).__class__",
        "(lambda: 1)()",
        "[s77 for s77 in (1,)]",
        "'s77'",
        "f'{{s77}}'",
        "eval('1')",
        "S('s77')",
        "Lambda(s77, s77)",
        "Pow(Pow(Integer(9), Integer(64)), Integer(64))",
        "PowByNatural(Integer(9), 9000000)",
        "-" * 5000 + "1",
        "(" * 5000,
        "s77\n",
        "__import__",
        "1" * 30000,
    ],
)
def test_expressions_are_of_sizes(make, expression):
    expression = expression.format(python=make.python)
    if expression == "s77\n":
        assert expressions.canonical(expression) == "s77"
        return
    make.refused(make.program(size(expression)), r"no expression of sizes|the limit")


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(-2), Symbol('u0', integer=True))",
        "TruncToInt(Mul(Float('1.5', precision=53), ToFloat(Symbol('s58', positive=True, integer=True))))",
        "Add(FloorDiv(Add(Symbol('s82'), Integer(-1)), Integer(2)), Integer(1))",
        "Pow(Symbol('s27'), Integer(-1))",
        "StrictGreaterThan(Symbol('zuf3'), Rational(1, 2))",
        "2 * s77 + 1 >= s3 // 4",
        "Max(1, s77)",
    ],
)
def test_expressions_that_torch_writes_pass(expression):
    assert expressions.canonical(expression) == expression


def test_guards_are_left_out(make):
    def edit(data):
        data["guards_code"] = [make.python]
        data["graph_module"]["metadata"] = {"custom": make.python}
        data["graph_module"]["graph"]["nodes"][0]["metadata"]["source_fn_stack"] = "a,torch.hub.load"
        data["unknown"] = make.python

    make.load(make.program(edit))
    assert not make.mark.exists()


def test_names_that_become_source(make):
    for old, new in (
        ("image", f"image={make.python}"),
        ("image", "image\n"),
        ("image", "__class__"),
        ("image", "torch"),
        ("conv2d", "conv2d = 1; import os"),
        ("linear", "x:y"),
    ):
        make.refused(make.program(renamed(old, new)), "is no name")
    name = "classifier.weight"
    for new in (f'a") or {make.python} or ("', "__class__.weight", "a\nb", "a'b"):
        make.refused(make.program(renamed(name, new)), "is no name of a parameter")
        make.refused(make.program(renamed(name, new), WEIGHTS), "is no name of a parameter")

    def argument(data):
        data["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [f"x={make.python}"]

    make.refused(make.program(argument), "is no name")


def test_specs_that_import(make):
    leaf = {"type": None, "context": None, "children_spec": []}
    arguments = {"type": "builtins.tuple", "context": "null", "children_spec": [leaf]}
    factory = {"default_factory_module": "os", "default_factory_name": "system", "dict_context": ["a"]}
    for tree, match in (
        (
            {"type": "collections.defaultdict", "context": factory},
            r"takes or returns a 'collections\.defaultdict'",
        ),
        ({"type": "collections.namedtuple", "context": "os.stat_result"}, "takes or returns a"),
        ({"type": "builtins.dict", "context": '[{"__enum__": true}]'}, "keys that are neither"),
        ({"type": "builtins.dict", "context": '["\'"]'}, "which holds quotes"),
        ({"type": "builtins.dict", "context": "[]"}, "damaged"),
        ({"type": [], "context": "[]"}, "takes or returns a"),
    ):
        make.refused(make.program(spec("out_spec", tree | {"children_spec": [leaf]})), match)
    keywords = {"type": "builtins.dict", "context": '["x=print()"]', "children_spec": [leaf]}
    inputs = {"type": "builtins.tuple", "context": "null", "children_spec": [arguments, keywords]}
    make.refused(make.program(spec("in_spec", inputs)), "no identifiers")


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.from_file.out",
        "torch.ops.aten.save.default",
        "torch.ops.aten.__class__.__init__",
        "torch.ops.aten.add.__class__",
        "torch.ops.aten.add",
        "torch.ops.aten.add.Nothing",
        "torch.ops.mine.payload.default",
        "torch.ops.c10d.send.default",
        "torch.ops.profiler._record_function_enter.default",
        "torch.ops.higher_order.call_torchbind",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "torch.ops.load_library",
        "torch.hub.load",
        "torch.load",
        "torch.os.system",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.__loader__.load_module",
        "#extension:op",
        "builtins.eval",
        "",
    ],
)
def test_targets_that_do_more_than_compute(make, target):
    with pytest.raises(ValueError, match="calls '"):
        operators.check_target(target)
    make.refused(make.program(call(target, {"as_string": str(make.mark)})), r"target: calls '")


def test_arguments_that_are_no_data(make):
    for argument in (
        {"as_operator": "torch.hub.load"},
        {"as_custom_obj": {"name": "a", "class_fqn": "b"}},
        {"as_string_to_argument": {"a": {"as_int": 1}}},
    ):
        make.refused(make.program(call("torch.ops.aten.relu.default", argument)), "may stand for code")
    for argument in (
        {"as_int": True},
        {"as_int": 1 << 70},
        {"as_ints": ["1"]},
        {"as_scalar_type": 99},
        {},
        [],
    ):
        make.refused(make.program(call("torch.ops.aten.relu.default", argument)), "model.json.* is no ")
    device = {"as_device": {"type": "cuda", "index": 0}}
    make.refused(make.program(call("torch.ops.aten.relu.default", device)), "export it on the CPU")


@pytest.mark.parametrize("content", ["pickle", "saved"])
def test_pickles_never_reach_torch(make, content):
    payload = make.pickle if content == "pickle" else make.saved()
    make.refused(make.write("digits.pt2", {SAMPLES: payload}), r"looks up posix\.mkdir, which is no tensor")
    for name in ("custom_obj_0", "opaque_obj_0", "model.pt", "other"):
        path = make.write("digits.pt2", {f"digits/data/constants/{name}": payload})
        make.refused(path, f"member 'digits/data/constants/{name}' (holds|is) ")
    make.refused(make.write("digits.pt2", {"digits/data/weights/model.pt": payload}), "older torch")
    with zipfile.ZipFile(SOURCES / "digits.pt2") as archive:
        config = json.loads(archive.read(WEIGHTS))
    for record in config["config"].values():
        record["use_pickle"] = True
    members = {WEIGHTS: json.dumps(config).encode(), "digits/data/weights/weight_0": payload}
    make.refused(make.write("digits.pt2", members), "is a pickle; only plain tensors are imported")
    constants = {"a": next(iter(config["config"].values())) | {"path_name": "opaque_obj_0"}}
    path = make.write("digits.pt2", {CONSTANTS: json.dumps({"config": constants}).encode()})
    make.refused(path, "is no member of a tensor")


def test_members_that_nobody_writes(make):
    for name, match in (
        ("digits/data/aotinductor/model/a.so", "holds compiled code"),
        ("digits/models/other.json", "is one of several programs"),
        ("digits/serialized_exported_program.json", "is nothing that torch.export.save writes"),
        ("other/models/model.json", "is in a second folder"),
        ("digits/data/weights/WEIGHT_0", "is nothing that"),
    ):
        make.refused(make.write("digits.pt2", {name: b"{}"}), match)
    make.refused(make.write("digits.pt2", {"digits/byteorder": b"big"}), "does not say 'little'")
    make.refused(make.write("digits.pt2", {PROGRAM: None}), "damaged member")
    make.refused(make.write("digits.pt2", {PROGRAM: b"[" * 200_000}), "nested too deeply")
    make.refused(make.write("digits.pt2", {PROGRAM: b'{"a": NaN}'}), "NaN is no JSON")
    path = make.write("digits.pt2", {"digits/extra/a.txt": make.pickle})
    make.load(path)  # it is not copied
    assert not make.mark.exists()


def test_older_programs_are_refused(make):
    path = make.folder / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.2")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", make.saved())
    make.refused(path, "is of a torch before 2.8")


def test_tensors_have_their_bytes(make):
    def huge(data):
        meta = next(iter(data["config"].values()))["tensor_meta"]
        meta["sizes"][0]["as_int"] = 1 << 40

    make.refused(make.program(huge, WEIGHTS), r"needs [\d,]+ bytes and has")
    path = make.write("digits.pt2", {"digits/data/weights/weight_0": b""})
    make.refused(path, r"needs [\d,]+ bytes and has 0")


@pytest.mark.parametrize(
    "line",
    [
        "torch.from_file('{mark}')",
        "torch.save(x, '{mark}')",
        "x.save('{mark}')",
        "x. # comment\n  save('{mark}')",
        "x.\\\n  save('{mark}')",
        "'#'; x.   # a\n  # b\n save('{mark}')",
        'getattr(torch, "save")(x, "{mark}")',
        'getattr(x, "save")("{mark}")',
        "getattr(x, name)",
        "getattr",
        "ops.aten.save(x, '{mark}')",
        "ops.c10d.send(x)",
        "ops.mine.payload(x)",
        "ops. prim.Print(x)",
        "o = ops\n  o.mine.payload(x)",
        "rpc_async('w', f)",
        "ops.prim.PythonOp(x)",
        "ops.prim.rpc_async(x)",
        "ops.prim.profile(x)",
        "o = ops.prim\n  o.rpc_sync(x)",
        "__torch__.torch.classes.c10d.Store()",
        "t = __torch__.torch\n  t.classes.c10d.Store()",
        "t = __torch__\n  t.torch.classes.c10d.Store()",
    ],
)
def test_torchscript_that_does_more_than_compute(make, line):
    text = f"def forward(self, x):\n  {line.format(mark=make.mark)}\n".encode()
    make.refused(
        make.write("digits.pt", {CODE: text}), r"(may run anything|not of PyTorch itself|writes files); it is"
    )


def test_torchscript_members(make):
    for name, match in (
        ("digits/CODE/other.PY", "is nothing that torch.jit.save writes"),
        ("digits/OTHER.PKL", "is nothing that torch.jit.save writes"),
        ("digits/model.json", "is nothing that torch.jit.save writes"),
        ("other/data.pkl", "is nothing that torch.jit.save writes"),
        ("digits/DATA.PKL", "differ by case only"),
    ):
        make.refused(make.write("digits.pt", {name: make.pickle}), match)
    make.refused(make.write("digits.pt", {"digits/data.pkl": make.pickle}), r"looks up posix\.mkdir")
    for name in ("torch.jit._pickle\nexec", "__torch__.torch.classes.c10d\nStore", "__torch__evil\nA"):
        pickle = f"c{name}\n.".encode()
        make.refused(make.write("digits.pt", {"digits/constants.pkl": pickle}), "looks up ")
    make.load(make.write("digits.pt", {"digits/extra/a.pkl": make.pickle, f"{CODE}.debug_pkl": make.pickle}))
    assert not make.mark.exists()


def test_names_that_torchscript_itself_writes(tmp_path):
    """Numbered children, dictionaries, messages, prints."""

    class Chatty(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.ReLU()))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            if x.dim() != 2:
                print("no matrix", x.shape)
                raise ValueError("Expected a matrix, not {}".format(len(x.shape)))  # noqa: UP032
            return {"y": self.layers(x), "z": torch.nn.functional.interpolate(x[None], scale_factor=2.0)}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Chatty())
        torch.jit.save(scripted, tmp_path / "a.pt")
        copy = torch.jit.load(str(torchscript.checked_copy(tmp_path / "a.pt", tmp_path)))
    torch.testing.assert_close(copy(torch.ones(1, 2)), scripted(torch.ones(1, 2)))


def _mutations(name: str, seed: int, count: int) -> list[dict[str, bytes | None]]:
    """Members of a file with some of their bytes changed, left out or doubled."""
    chance = random.Random(seed)
    with zipfile.ZipFile(SOURCES / name) as archive:
        content = {item: archive.read(item) for item in archive.namelist()}
    wanted = [n for n in content if n.endswith((".json", ".py", ".pkl", "version", "model.pt"))]
    found: list[dict[str, bytes | None]] = []
    for _ in range(count):
        member = chance.choice([*wanted, *[PROGRAM] * 6] if PROGRAM in content else wanted)
        data = bytearray(content[member])
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(data))
            kind = chance.randrange(4)
            if kind == 0:
                data[at] = chance.randrange(256)
            elif kind == 1:
                del data[at : at + chance.choice((1, 4, 30))]
            elif kind == 2:
                data[at:at] = data[at : at + chance.choice((1, 4, 30))]
            else:
                data[at : at + 1] = chance.choice((b'"', b"9", b"-", b"s", b"null", b"{}", b"true"))
            data = data or bytearray(b"x")
        found.append({member: bytes(data)})
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["digits.pt2", "digits.pt"])
def test_mutated_members(make, name, seed):
    """Whatever is changed, it is imported or refused in one line."""
    for members in _mutations(name, seed, 20):
        try:
            make.load(make.write(name, members))
        except GraphoptError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["digits.pt2", "digits.pt"])
def test_mutated_archives(make, name):
    """The same for the archive itself: its headers, its directory, its end."""
    chance = random.Random(0)
    whole = (SOURCES / name).read_bytes()
    path = make.folder / f"mutated{Path(name).suffix}"
    for number in range(30):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            tail = len(data) - chance.randrange(1, 3000)
            data[tail if number % 2 else chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.randrange(len(data))] if number % 5 == 0 else data)
        try:
            make.load(path)
        except GraphoptError as error:
            assert "\n" not in str(error)


def test_large_examples_are_not_made(make):
    def edit(data):
        batch = data["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][0]
        batch["as_expr"]["hint"] = {"as_int": 1 << 40}

    with pytest.raises(InputError, match=r"cannot load it|elements"):
        make.load(make.program(edit))
