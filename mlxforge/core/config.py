"""Settings from where a user gives them: defaults, then a YAML file, then flags and ``--set key=value``.

Every mistake is reported, all at once, with its line and a near miss. The fields themselves: :mod:`mlxforge.core.settings`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.core.files import embedded
from mlxforge.core.settings import Settings

T = TypeVar("T", bound=Settings)


def struct_types(settings: type[Settings]) -> dict[str, Any]:
    """Field name -> its full annotation, ``Annotated`` kept."""
    return get_type_hints(settings, include_extras=True)


def group_of(annotation: Any) -> type[Settings] | None:
    """The Settings class that an annotation names, if it names one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def walk(settings: type[Settings], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf setting as (dotted key, annotation, default)."""
    hints = struct_types(settings)
    for field in msgspec.structs.fields(settings):
        if group := group_of(hints[field.name]):
            yield from walk(group, f"{prefix}{field.name}.")
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            yield f"{prefix}{field.name}", hints[field.name], default


def description(annotation: Any) -> str:
    """The help text of a field."""
    return next((m.description or "" for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Meta)), "")


def type_name(annotation: Any) -> str:
    """A type as a user reads it: ``integer``, ``text or null``, ``one of a, b``."""
    base = annotation.__origin__ if get_origin(annotation) is Annotated else annotation
    origin = get_origin(base)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(base))
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in get_args(base))
    if origin is list:
        return f"list of {type_name(get_args(base)[0])}"
    if origin is dict:
        return "mapping"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(base, getattr(base, "__name__", str(base)))


class Layer(msgspec.Struct):
    """Values of one source (a file, the flags) as dotted keys; ``where`` gives each key's place for messages."""

    values: dict[str, Any]
    where: dict[str, str]


GROUPS = {"lora"}


def yaml_layer(path: Path, nested: Callable[[str], bool] = GROUPS.__contains__) -> Layer:
    """Reads a YAML file into dotted keys with their ``file:line``.

    ``nested`` tells of a dotted key whether settings lie below it: of a list of mappings they are ``key.0.name``.
    """
    import yaml

    # A bare name is one of the shipped presets: -c handbook-cpt.
    shipped = embedded("configs", f"{path}.yaml")
    if not path.exists() and path.name == str(path) and shipped.is_file():
        path = shipped
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot read the config: {getattr(error, 'strerror', None) or error}"
        bare = path.name == str(path) and not path.suffix  # may have meant a preset
        fix = did_you_mean(path.name, [one.stem for one in embedded("configs").glob("*.yaml")]) if bare else ""
        raise ConfigError(what, where=str(path), fix=fix) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from error
    if loaded is None:
        return Layer({}, {})
    if not isinstance(loaded, dict):
        raise ConfigError("a config is a mapping of settings", where=f"{path}:1", fix="write 'key: value' lines")
    layer = Layer({}, {})
    _flatten(root, loaded, "", str(path), layer, nested)
    return layer


def _flatten(node: Any, loaded: dict[Any, Any], prefix: str, path: str, layer: Layer, nested: Callable[[str], bool]) -> None:
    by_name = {str(key): value for key, value in loaded.items()}
    for key_node, value_node in node.value:
        dotted = f"{prefix}{key_node.value}"
        where = f"{path}:{key_node.start_mark.line + 1}"
        if dotted in layer.where:
            raise ConfigError(f"'{dotted}' is given twice", where=where, fix=f"first at {layer.where[dotted]}; keep one")
        layer.where[dotted] = where
        value = by_name.get(key_node.value)
        if isinstance(value, dict) and nested(dotted):
            _flatten(value_node, value, f"{dotted}.", path, layer, nested)
        elif isinstance(value, list) and nested(dotted) and value and all(isinstance(one, dict) for one in value):
            for number, (one_node, one) in enumerate(zip(value_node.value, value, strict=True)):
                layer.where[f"{dotted}.{number}"] = f"{path}:{one_node.start_mark.line + 1}"
                _flatten(one_node, one, f"{dotted}.{number}.", path, layer, nested)
        else:
            layer.values[dotted] = value


def assignments_layer(assignments: list[str]) -> Layer:
    """``--set key=value`` items; a value is read as YAML, so ``0.1``, ``true``, ``[a, b]`` and ``null`` have their types."""
    import yaml

    layer = Layer({}, {})
    for item in assignments:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"'{item}' is no assignment", where="--set", fix="write --set key=value")
        try:
            layer.values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            layer.values[key.strip()] = value
        layer.where[key.strip()] = "--set"
    return layer


def flags_layer(values: dict[str, Any]) -> Layer:
    """Flags given on the command line, keyed by dotted setting."""
    return Layer(dict(values), {key: "--" + key.replace("_", "-").replace(".", "-") for key in values})


def resolve(settings: type[T], *layers: Layer) -> T:
    """Defaults overlaid by each layer in turn.

    Raises:
        ConfigError: with one line for every unknown key, wrong type and broken bound, in all layers together.
    """
    leaves = {key: annotation for key, annotation, _ in walk(settings)}
    problems: list[str] = []
    chosen: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.values.items():
            where = layer.where.get(key, "")
            if key not in leaves:
                problems.append(f"{where}: unknown setting '{key}' ({did_you_mean(key, leaves)})")
                continue
            try:
                chosen[key] = _convert(value, leaves[key])
            except msgspec.ValidationError as error:
                problems.append(f"{where}: {key}: {_reason(error, value, leaves[key])}")
    if problems:
        raise ConfigError("\n".join(problems))
    return build(settings, chosen)


def _convert(value: Any, annotation: Any) -> Any:
    if isinstance(value, bool) and "true or false" not in type_name(annotation):
        raise msgspec.ValidationError("Expected another type, got `bool`")
    if isinstance(value, str) and type_name(annotation).startswith("list of"):
        value = [value]
    if type_name(annotation) == "mapping" and isinstance(value, (str, list)):
        value = _pairs([value] if isinstance(value, str) else value)
    # YAML 1.1 reads 1e-4 as text: let numbers in text be numbers, where a number is wanted.
    lax = isinstance(value, str) and "text" not in type_name(annotation)
    return msgspec.convert(value, annotation, strict=not lax)


def _pairs(items: list[Any]) -> dict[str, str]:
    """``["text=content"]`` as a flag gives it."""
    pairs = [str(item).partition("=") for item in items]
    if not all(equals for _, equals, _ in pairs):
        raise msgspec.ValidationError("Write key=key")
    return {key: value for key, _, value in pairs}


def _reason(error: Exception, value: Any, annotation: Any) -> str:
    message = str(error).replace("`", "")
    if ("Expected" in message and ("got" in message or "one of" in message)) or "Invalid enum" in message:
        return f"{value!r} is not {type_name(annotation)}"
    return f"{value!r}: {message[0].lower()}{message[1:]}"


def build(settings: type[T], chosen: dict[str, Any]) -> T:
    """An instance with the given dotted values over the defaults."""
    groups: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    for key, value in chosen.items():
        head, dot, tail = key.partition(".")
        if dot:
            groups.setdefault(head, {})[tail] = value
        else:
            values[head] = value
    hints = struct_types(settings)
    for head, tails in groups.items():
        group = group_of(hints[head])
        assert group is not None
        values[head] = build(group, tails)
    return settings(**values)


def to_dict(settings: Settings) -> dict[str, Any]:
    """Plain nested values, as they are written to ``config.yaml``."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    return plain


def from_dict(settings: type[T], values: dict[str, Any], where: str = "") -> T:
    """The inverse of :func:`to_dict`; mistakes are reported as in :func:`resolve`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in GROUPS and isinstance(value, dict):
            flat.update({f"{key}.{tail}": part for tail, part in value.items()})
        else:
            flat[key] = value
    return resolve(settings, Layer(flat, dict.fromkeys(flat, where)))


def checked(settings: T) -> T:
    """The same settings, every type and bound checked: a Struct made in Python checks nothing.

    Raises:
        ConfigError: as :func:`resolve`.
    """
    return from_dict(type(settings), to_dict(settings))


def to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML."""
    import yaml

    text: str = yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)
    return text
