"""What the floors of the package forbid: each check lists the breaches, most often none.

Everything is read from the source, so that an import counts wherever it stands: at the top, in a
function, or under TYPE_CHECKING.
"""

import ast
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "asympo_jax"

# A room is a module of the package, or a folder of modules. A new room gets its line here.
ROOMS_OF_FLOOR = {
    0: ("types", "import_path", "nearest", "printable"),
    1: ("objectives", "models", "tasks", "tokenizers", "hf_tokenizer"),
    2: ("sampling", "learning"),
    3: ("runtime",),
    4: (
        "config",
        "defaults",
        "sections",
        "devices",
        "outputs",
        "schedule",
        "settings",
        "states",
        "decoder",
        "experiment",
        "loops",
        "processes",
        "actors",
        "warmup_cache",
        "initial",
        "beginning",
        "following",
        "shared_directories",
        "cluster",
        "hosts",
        "workdirs",
        "run_names",
        "environment",
        "progress",
        "live",
        "interrupts",
        "endings",
        "training",
        "evaluation",
        "evaluation_report",
        "replaying",
        "recordings",
        "report",
        "laboratory",
        "sweep_config",
        "results",
        "tiny_models",
    ),
    5: (
        "train",
        "evaluate",
        "evaluate_snapshots",
        "sample",
        "inspect",
        "command",
        "help_text",
        "replay",
        "sweep",
        "export",
        "plan",
        "tiny",
        "__main__",
    ),
}
# The ways across a floor: a task names its tokenizer, and no tokenizer knows a task; a command that
# is a folder uses what all commands share.
PASSAGES = {("tasks", "tokenizers"), ("tasks", "hf_tokenizer"), ("plan", "command")}
FLOOR = {room: floor for floor, rooms in ROOMS_OF_FLOOR.items() for room in rooms}

# Floors 0 to 2 have no threads, processes, sockets, clocks, flags and ConfigDicts.
IMPURE = {"absl", "asyncio", "concurrent", "ml_collections", "multiprocessing", "socket"}
IMPURE |= {"subprocess", "threading", "time"}
TRANSPORTS = ("runtime.local", "runtime.ray", "runtime.ray_cluster")
STRANGERS = ("runtime.sampler", "runtime.learner")
# Data sets, vocabularies and checkpoints come from files; other pure modules open none.
FILE_READERS = ("tasks", "tokenizers", "hf_tokenizer", "models.hf")
FILE_CALLS = {"open", "read_bytes", "read_text", "write_bytes", "write_text"}

MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 60


@dataclasses.dataclass(frozen=True)
class Module:
    """One source file; names are relative to the package, such as runtime.sampler."""

    name: str
    is_package: bool
    source: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The first part of the name: what the floors are declared for."""
        return self.name.split(".")[0]

    @property
    def folder(self) -> str:
        """The package that holds the module, within which modules of one floor may meet."""
        return self.room if self.is_package or "." in self.name else ""


def read_modules(root: Path) -> dict[str, Module]:
    """The modules below `root` by name; the package's own __init__ has the empty name."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        source = path.read_text()
        modules[name] = Module(name, is_package, source, ast.parse(source, str(path)))
    return modules


def imported_names(module: Module, tree: ast.AST | None = None) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything imported, `from a import b` giving both a and a.b."""
    package = [PACKAGE, *module.name.split(".")] if module.name else [PACKAGE]
    if not module.is_package:
        package = package[:-1]
    for node in ast.walk(tree or module.tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *(node.module.split(".") if node.module else [])])
                yield node.lineno, base
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def inner_imports(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    """Line and relative name of the modules of this package that `module` imports."""
    for line, name in imported_names(module):
        inner = name.removeprefix(f"{PACKAGE}.")
        if inner != name and inner in modules:
            yield line, inner


def is_within(name: str, places: tuple[str, ...]) -> bool:
    """Whether a module is one of `places` or lies below one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def unplaced_modules(modules: dict[str, Module]) -> list[str]:
    """The modules that no floor is declared for."""
    return [
        f"{module.name} has no floor: put {module.room!r} into ROOMS_OF_FLOOR"
        for module in modules.values()
        if module.name and module.room not in FLOOR
    ]


def upward_imports(modules: dict[str, Module]) -> list[str]:
    """The imports that go up, or to another room of the same floor."""
    found = []
    for module in modules.values():
        if module.room not in FLOOR:
            continue
        for line, name in inner_imports(module, modules):
            target = modules[name]
            floor, below = FLOOR[module.room], FLOOR.get(target.room, -1)
            is_passage = (module.room, target.room) in PASSAGES
            is_stranger = below == floor and target.folder != module.folder and not is_passage
            if below > floor or is_stranger:
                found.append(f"{module.name}:{line} (floor {floor}) imports {name} (floor {below})")
    return found


def transport_imports(modules: dict[str, Module]) -> list[str]:
    """The imports of a transport from below floor 4."""
    return [
        f"{module.name}:{line} imports {name}: only floor 4 chooses how roles reach each other"
        for module in modules.values()
        for line, name in inner_imports(module, modules)
        if is_within(name, TRANSPORTS) and FLOOR.get(module.room, 0) < 4
    ]


def reachable(start: str, modules: dict[str, Module]) -> set[str]:
    """The modules that `start` imports, directly or through others."""
    seen, waiting = set(), [start]
    while waiting:
        for _, name in inner_imports(modules[waiting.pop()], modules):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


def meetings(modules: dict[str, Module]) -> list[str]:
    """The cases in which the sampler reaches the learner, or the learner the sampler."""
    return [
        f"{start} reaches {name}: both may see only the broker and the snapshots"
        for start, other in (STRANGERS, STRANGERS[::-1])
        for module in modules
        if is_within(module, (start,))
        for name in sorted(reachable(module, modules))
        if is_within(name, (other,))
    ]


def impurities(modules: dict[str, Module]) -> list[str]:
    """What floors 0 to 2 import, open or declare although they are pure."""
    found = []
    for module in modules.values():
        if FLOOR.get(module.room, 3) > 2:
            continue
        for line, name in imported_names(module):
            if name.split(".")[0] in IMPURE:
                found.append(f"{module.name}:{line} imports {name}")
        for node in ast.walk(module.tree):
            match node:
                case ast.Global():
                    found.append(f"{module.name}:{node.lineno} declares a global")
                case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call)):
                    if call in FILE_CALLS and not is_within(module.name, FILE_READERS):
                        found.append(f"{module.name}:{node.lineno} calls {call}")
    return found


def eager_imports(modules: dict[str, Module]) -> list[str]:
    """What importing the package alone would load besides the standard library."""
    root = modules[""]
    found = []
    for statement in root.tree.body:
        if isinstance(statement, ast.FunctionDef) or (
            isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
        ):
            continue
        for line, name in imported_names(root, statement):
            if name.split(".")[0] not in sys.stdlib_module_names:
                found.append(f"{PACKAGE}/__init__.py:{line} imports {name} eagerly")
    return found


def num_code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function less its docstring and those of the functions in it."""
    num_lines = (function.end_lineno or function.lineno) - function.lineno + 1
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            docstring = node.body[0]
            num_lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return num_lines


def too_long(modules: dict[str, Module]) -> list[str]:
    """The modules and functions that are over the limits on lines."""
    found = []
    for module in modules.values():
        num_lines = len(module.source.splitlines())
        if num_lines > MAX_MODULE_LINES:
            found.append(f"{module.name} has {num_lines} lines, {MAX_MODULE_LINES} at most")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = num_code_lines(node)
                if num_lines > MAX_FUNCTION_LINES:
                    found.append(
                        f"{module.name}:{node.lineno} {node.name} has {num_lines} lines, "
                        f"{MAX_FUNCTION_LINES} at most"
                    )
    return found
