"""The merged settings as one Recipe, after the checks that need all of them."""

from __future__ import annotations

import re
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.recipe.document import Document
from capsulekit.recipe.flat import question_tables
from capsulekit.recipe.merge import Merged
from capsulekit.recipe.model import Group, Recipe, RootFile, Script, User
from capsulekit.recipe.settings import NAMED, SETTINGS

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def make(merged: Merged, where: str) -> Recipe:
    """The recipe that the merged settings describe, without its text; raises CapsulekitError."""
    _check_required(merged, where)
    get = merged.get
    return Recipe(
        source=where,
        text="",
        name=get("capsule", "name"),
        version=get("capsule", "version"),
        distro=get("distro", "name"),
        release=get("distro", "release"),
        arch=get("distro", "arch"),
        init=get("capsule", "init"),
        cmdline=get("capsule", "cmdline"),
        stages=tuple(tuple(stage) for stage in merged.stages),
        kernel_package=get("kernel", "package"),
        kernel_extra=tuple(get("kernel", "extra")),
        kernel_modules=tuple(get("kernel", "modules")),
        stage2_modules=tuple(get("kernel", "stage2")),
        base=get("rootfs", "base"),
        groups=tuple(Group(name, **keys) for name, keys in merged.named("groups")),
        users=tuple(_user(name, keys) for name, keys in merged.named("users")),
        enable=tuple(get("services", "enable")),
        disable=tuple(get("services", "disable")),
        mask=tuple(get("services", "mask")),
        scripts=tuple(get("scripts", "rootfs")),
        files=tuple(_file(merged, name, keys) for name, keys in merged.named("files")),
        hybridize=tuple(get("hybridize", "paths")),
        provision=_provision(merged),
        configure=question_tables(_questions(merged)),
        level=get("image", "level"),
        release_level=get("image", "release_level"),
        ram_max=_bytes(get("image", "ram_max")),
    )


def _check_required(merged: Merged, where: str) -> None:
    for section, settings in SETTINGS.items():
        for key, setting in settings.items():
            if setting.required and merged.get(section, key) is None:
                raise CapsulekitError(f"{where}: [{section}] {key} is missing", hint=f"it is the {setting.help}")


def _bytes(size: str | None) -> int | None:
    return int(size.rstrip("KMG")) * _UNITS[size.lstrip("0123456789")] if size else None


def _user(name: str, keys: dict[str, Any]) -> User:
    lists = {key: tuple(value) for key, value in keys.items() if isinstance(value, list)}
    return User(**{"name": name, **keys, **lists})


def _file(merged: Merged, path: str, keys: dict[str, Any]) -> RootFile:
    if "data" not in keys:
        raise merged.last["files", path].wrong(("files", path), "a file with content, source or base64")
    return RootFile(path, keys["data"], int(keys["mode"], 8), keys["owner"], keys["group"])


def _provision(merged: Merged) -> tuple[tuple[str, Script], ...]:
    """(state, script), in the order in which a state runs its scripts: by name."""
    states = {state: merged.get("provision", state) for state in SETTINGS["provision"]}
    return tuple((state, script) for state, found in states.items() for script in sorted(found, key=lambda s: s.name))


def _questions(merged: Merged) -> list[tuple[str, dict[str, Any]]]:
    """The questions in the order of their keys, each with what it needs and nothing that contradicts it."""
    questions = merged.named("configure")
    targets: dict[str, str] = {}
    for key, question in questions:
        document = merged.last["configure", key]
        places = [place for name, _ in questions for place in (f"{{{name}}}", f"{{{name}:crypt}}")]
        _check_question(document, key, question, places)
        target = question.get("target", key)
        if target in targets:
            expected = f"a file of its own: the question {targets[target]} has it"
            raise document.wrong(("configure", key, "target"), expected, target)
        targets[target] = key
    return questions


def _check_question(document: Document, key: str, question: dict[str, Any], places: list[str]) -> None:
    def wrong(name: str, expected: str, got: object = None) -> CapsulekitError:
        return document.wrong(("configure", key, name), expected, got)

    for name, setting in NAMED["configure"].settings.items():
        if setting.required and name not in question:
            raise wrong(name, "given")
    kind, default, choices = question["type"], question.get("default"), question["choices"]
    if (kind == "choice") != bool(choices):
        raise wrong("choices", 'given for a question of type "choice", and only for one')
    if default is not None and not _answers(kind, default, choices):
        raise wrong("default", f"an answer to a question of type {kind}", default)
    if ("target" in question) != ("template" in question):
        raise wrong("target", "given together with template")
    if "template" in question and not any(place in question["template"] for place in places):
        raise wrong("template", f"text with {{{key}}} in it", question["template"])


def _answers(kind: str, default: str, choices: list[str]) -> bool:
    if kind == "choice":
        return default in choices
    if kind == "yesno":
        return default in ("yes", "no")
    if kind == "number":
        return re.fullmatch(r"-?[0-9]+", default) is not None
    return kind != "password"
