"""Your own networks by the name of the function that makes them, "package.module:function", as the command line takes it.

Only a name that the user gives is imported. Checkpoints record the name and the arguments, and reading one imports nothing:
a file must not choose which code runs (`nbsnn.checkpoint.rebuild`).
"""

import importlib
import importlib.machinery
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from nbsnn.errors import ConfigError, shown, unknown

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_folders: set[Path] = set()  # those that modules were looked for in so far


def own_network(name: str, args: Mapping[str, Any] | None = None, *, folder: str | Path = ".") -> nn.Module:
    """The network that a function of the user makes: `own_network("package.module:function", {"num_classes": 10})`.

    This imports the module and calls the function, so pass no name from a file whose source you do not trust.

    Args:
        name: of a function, or of a class such as an `nn.Module`; the module is looked for in `folder` first.
        args: keyword arguments.
        folder: the working directory unless given.
    Raises:
        ConfigError: the name is of another form, the module cannot be imported, it has no such function, or the function fails
            or returns something else than an `nn.Module`.
    """
    with _importable(Path(folder).resolve()):
        function = _function(name, folder)
        called = f"{name}({', '.join(f'{key}={value!r}' for key, value in (args or {}).items())})"
        try:
            network = function(**(args or {}))
        except Exception as error:  # user code can raise any exception
            raise ConfigError(f"{shown(called)} fails: {_reason(error)}{_wanted(function, args or {})}") from None
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{shown(called)} returns a {type(network).__name__}; return the network, a torch.nn.Module")
    return network


def parameters_of(name: str, *, folder: str | Path = ".") -> tuple[str, ...]:
    """The names of the arguments that a function takes, which is imported as by `own_network`."""
    with _importable(Path(folder).resolve()):
        try:
            return tuple(inspect.signature(_function(name, folder)).parameters)
        except ValueError:  # no signature, as some built-in types
            return ()


def check_own_name(name: str) -> None:
    """Raise a ConfigError for a name that is not of the form "package.module:function"."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{shown(name)}: name your network's function as package.module:function, such as model:net")


def is_in(folder: Path, name: str) -> bool:
    """Whether the module of "package.module:function" is a file or a package in a folder; it is not imported."""
    top = name.partition(":")[0].partition(".")[0]
    return importlib.machinery.PathFinder.find_spec(top, [str(folder.resolve())]) is not None


def _function(name: str, folder: str | Path) -> Any:
    """The function of "package.module:function", imported."""
    check_own_name(name)
    place, _, attribute = name.partition(":")
    module = _import(place, name)
    file = getattr(module, "__file__", None)
    if is_in(Path(folder), name) and (file is None or Path(folder).resolve() not in Path(file).resolve().parents):
        raise ConfigError(f"{name}: another module is called {place} and is loaded already ({file}); rename yours")
    function = _attribute(module, attribute, name)
    if not callable(function):
        raise ConfigError(f"{name} is a {type(function).__name__}; name a function that returns a network")
    return function


def _import(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{name}: there is no module {error.name} in this folder or among the installed packages; "
                "change to the folder that holds it, or name another"
            ) from None
        raise ConfigError(f"{name} cannot be imported: {_reason(error)}") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{name} cannot be imported: {_reason(error)}") from None


def _attribute(module: ModuleType, attribute: str, name: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [known for known in vars(found) if not known.startswith("_") and callable(vars(found)[known])]
            raise ConfigError(unknown(f"function of {name.partition(':')[0]}", part, public))
        found = getattr(found, part)
    return found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Look into a folder first while a module is imported and called, and last from then on, for imports in its functions."""
    _forget_namesakes(folder)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    _folders.add(folder)


def _forget_namesakes(folder: Path) -> None:
    """Forget modules from folders of earlier calls that this folder has too: its own `model.py` is another one."""
    earlier = _folders - {folder}
    for top in {name.partition(".")[0] for name in sys.modules} if earlier else ():
        file = Path(getattr(sys.modules.get(top), "__file__", None) or "/")
        home = file.parent.parent if file.name == "__init__.py" else file.parent
        if home in earlier and is_in(folder, top):
            for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
                del sys.modules[name]


def _reason(error: BaseException) -> str:
    """An error of the user's code in one line, with the place in that code."""
    trace, where = error.__traceback__, ""
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file != Path(__file__) and not str(file).startswith("<") and "importlib" not in file.parts:
            where = f" ({file.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({Path(error.filename).name}:{error.lineno})"
        return f"{type(error).__name__}: {error.msg}{where}"
    return shown(f"{type(error).__name__}: {' '.join(str(error).split())}") + where


def _wanted(function: Any, args: Mapping[str, Any]) -> str:
    """What to give instead, where the arguments do not fit the function's signature."""
    try:
        signature = inspect.signature(function)
        signature.bind(**args)
    except TypeError:
        return f"; it takes {signature}: give others with model_args"
    except ValueError:  # no signature, as some built-in types
        pass
    return ""
