"""The public surface, the direction of imports and the rules of the house, pinned."""

import ast
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path

import pytest
import timm

import vimlrp
import vimlrp.kernels
import vimlrp.models

PACKAGES = {
    name: Path(package.__file__).parent
    for name, package in [
        ("vimlrp", vimlrp),
        ("vimlrp.kernels", vimlrp.kernels),
        ("vimlrp.models", vimlrp.models),
    ]
}


def source_files():
    """Every module of the three packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            name = ".".join([package, *parts])
            if package != "vimlrp" or not parts or parts[0] not in ("kernels", "models"):
                found[name] = path
    return found


SOURCES = source_files()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def test_public_names():
    assert vimlrp.__all__ == [
        "COMPOSITES",
        "Composite",
        "Conservation",
        "Explainer",
        "Relevance",
        "VimLRPError",
        "check_conservation",
        "explain",
        "load_checkpoint",
        "wrap",
    ]
    assert all(hasattr(vimlrp, name) for name in vimlrp.__all__)


SIGNATURES = {
    "explain": (
        ["model", "images"],
        {
            "target": None,
            "contrast": None,
            "composite": "mambalrp",
            "record": (),
            "start": None,
            "batch_size": None,
        },
    ),
    "Explainer": (["model", "composite"], {"batch_size": None, "graphs": None}),
    "Explainer.__call__": (
        ["self", "images"],
        {"target": None, "contrast": None, "record": (), "start": None},
    ),
    "Explainer.stream": (["self", "loader", "options"], {"target": None, "labels": False}),
    "check_conservation": (
        ["model", "images"],
        {"target": None, "contrast": None, "composite": "mambalrp", "tolerance": 1e-3},
    ),
    "load_checkpoint": (["model", "path"], {"weights": "auto", "strict": True}),
    "wrap": (["model"], {}),
    "Relevance.save": (["self", "folder"], {"overwrite": False}),
    "Relevance.load": (["folder"], {}),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_signatures(name):
    positional, keywords = SIGNATURES[name]
    value = vimlrp
    for part in name.split("."):
        value = getattr(value, part)
    parameters = inspect.signature(value).parameters
    only = {k: p for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert [k for k in parameters if k not in only] == positional
    assert {k: p.default for k, p in only.items()} == keywords
    assert all(p.annotation is not p.empty for k, p in parameters.items() if k != "self")


def test_fields_of_a_relevance():
    assert list(vimlrp.Relevance.__dataclass_fields__)[:7] == [
        "pixels",
        "patches",
        "tokens",
        "logits",
        "target",
        "account",
        "recorded",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "test_vim",
        "vim_nano_patch16_224",
        "vim_nano_patch16_224.imagenette",
        "vim_tiny_patch16_224",
        "vim_tiny_patch16_stride8_224",
        "vim_small_patch16_224",
        "vim_small_patch16_stride8_224",
        "vim_base_patch16_224",
    ],
)
def test_models_are_registered_with_timm(name):
    assert timm.is_model(name)


def test_importing_vimlrp_registers_its_models_and_takes_nothing_optional_along():
    optional = ["matplotlib", "mamba_ssm", "causal_conv1d", "sklearn", "skimage", "pytest"]
    code = "\n".join(
        [
            "import sys, timm",
            "print(timm.is_model('test_vim'))",
            "import vimlrp",
            "print(timm.is_model('test_vim'))",
            f"print([name for name in {optional} if name in sys.modules])",
        ]
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.stdout.split() == ["False", "True", "[]"], result.stderr


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(tree, *, at_start_only):
    """Modules of vimlrp that a module imports; at its start, or anywhere but for type checkers."""
    waiting, found = list(tree.body), set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, "relative import"
            names = {f"{base}.{alias.name}" for alias in node.names}
            modules = names & SOURCES.keys()
            found |= modules or {base}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif not is_type_checking(node) and not (
            at_start_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ):
            waiting += ast.iter_child_nodes(node)
    return {name for name in found if name.split(".")[0] == "vimlrp"}


def test_imports_have_no_cycle():
    graph = {name: imports_of(tree, at_start_only=True) for name, tree in TREES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(SOURCES)


def others_known_to(package):
    """Modules outside a package that its modules import anywhere."""
    trees = [tree for name, tree in TREES.items() if name.startswith(package)]
    assert trees
    known = set().union(*(imports_of(tree, at_start_only=False) for tree in trees))
    return {module for module in known if not module.startswith(package)}


def test_kernels_know_nobody_but_the_errors():
    assert others_known_to("vimlrp.kernels") == {"vimlrp.errors"}


def test_scan_and_fused_operations_know_each_other_only_by_what_they_share():
    shared = {"vimlrp.errors"} | {
        name for name in SOURCES if name.count(".") == 2 and name.startswith("vimlrp.kernels.")
    } - {"vimlrp.kernels.scan", "vimlrp.kernels.fused"}
    assert others_known_to("vimlrp.kernels.scan") <= shared
    assert others_known_to("vimlrp.kernels.fused") <= shared
    parts = ("vimlrp.kernels.scan", "vimlrp.kernels.fused")
    for name in shared:
        known = imports_of(TREES[name], at_start_only=False)
        assert not any(module.startswith(parts) for module in known), name


def test_models_know_the_sites_and_not_the_explanation():
    kernels = ("kernels", "kernels.fused.maps", "kernels.fused.sequences", "kernels.products")
    below = ("errors", *kernels, "rules", "sites", "tokens", "tracing")
    assert others_known_to("vimlrp.models") <= {f"vimlrp.{name}" for name in below}


@pytest.mark.parametrize(
    "name",
    ["sites", "rules", "input_rules", "propagation", "tracing", "tokens", "composites", "guard"],
)
def test_sites_and_rules_know_no_model(name):
    known = imports_of(TREES[f"vimlrp.{name}"], at_start_only=False)
    assert not any(module.startswith("vimlrp.models") for module in known)


def test_errors_import_nothing():
    imports = (ast.Import, ast.ImportFrom)
    assert not any(isinstance(node, imports) for node in ast.walk(TREES["vimlrp.errors"]))


@pytest.mark.parametrize("name", SOURCES)
def test_no_assert_no_print_no_bare_except(name):
    for node in ast.walk(TREES[name]):
        where = f"{SOURCES[name]}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), where
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, where
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "exec", "eval"), where


def public_definitions(tree, prefix=""):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize("name", SOURCES)
def test_everything_public_is_documented(name):
    assert ast.get_docstring(TREES[name]), f"{name} has no docstring"
    for definition, node in public_definitions(TREES[name]):
        overload = any("overload" in ast.unparse(d) for d in node.decorator_list)
        assert overload or ast.get_docstring(node), f"{name}.{definition} has no docstring"


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_module_lists_exists(name):
    listed = [
        ast.literal_eval(node.value)
        for node in TREES[name].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert len(listed) <= 1
    module = __import__(name, fromlist=["_"]) if listed and "triton" not in name else None
    if module is not None:
        assert [entry for entry in listed[0] if not hasattr(module, entry)] == []


def test_the_package_says_that_it_is_typed():
    assert (files("vimlrp") / "py.typed").is_file()


def test_every_error_is_a_vimlrp_error():
    from vimlrp import errors

    for name in errors.__all__:
        assert issubclass(getattr(errors, name), vimlrp.VimLRPError)


def test_no_error_is_one_that_pytorch_swallows():
    from vimlrp import errors

    for name in errors.__all__:
        assert not issubclass(getattr(errors, name), TypeError | NotImplementedError)
