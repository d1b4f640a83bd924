"""What the package lets in: nothing that listens, and no bytes that become code."""

import ast
import pathlib

import pytest
from floors import read_modules

import asympo_jax

ROOT = pathlib.Path(asympo_jax.__file__).parent
MODULES = read_modules(ROOT)
EXECUTES = {"eval", "exec", "compile", "__import__"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LISTENS = {"listen", "bind", "create_server", "start_server", "serve_forever", "Listener"}
# Methods of connections that pickle what they send and unpickle what they get.
PICKLING_METHODS = {"recv", "send"}


def calls(tree: ast.AST):
    """Name of each call, whether it is a method, and the call."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                yield name, False, node
            case ast.Call(func=ast.Attribute(attr=name)):
                yield name, True, node


def breaches(source: str) -> list[str]:
    """What a module may not do."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found += [f"imports {name}" for name in names if name.split(".")[0] in PICKLES]
    for name, is_method, call in calls(tree):
        if name in EXECUTES and not is_method:
            found.append(f"{call.lineno} calls {name}")
        if name in LISTENS or (is_method and name in PICKLING_METHODS):
            found.append(f"{call.lineno} calls {name}")
        for keyword in call.keywords:
            is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if (keyword.arg == "allow_pickle" and is_true) or (keyword.arg == "shell" and is_true):
                found.append(f"{call.lineno} has {keyword.arg}=True")
        if name in ("load", "save") and "weights_only" in {k.arg for k in call.keywords}:
            found.append(f"{call.lineno} reads or writes a pickle of torch")
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_executes_text_unpickles_or_listens(name):
    assert breaches(MODULES[name].source) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "sock.listen()",
        "multiprocessing.connection.Listener(address)",
        "connection.recv()",
        "torch.load(path, weights_only=False)",
    ],
)
def test_each_of_these_would_be_found(line):
    assert breaches(line)
