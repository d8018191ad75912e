"""Which keywords of a call are options, and which option another name probably means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..evaluation.keywords import named, no_option, takes_any
from .other_names import ELSEWHERE, NO_OPTION, WORDS
from .table import TABLE


def slips(name: str) -> set[str]:
    """Misspellings: the name with a letter left out, with two swapped, or in the plural."""
    parts = [(name[:i], name[i:]) for i in range(len(name))]
    missing = {a + b[1:] for a, b in parts}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in parts if len(b) > 1}
    return {slip for slip in missing | swapped | {f"{name}s"} if len(slip) > 4}


# A table, because a compiler traces the lookup; short words are left out, too many are similar.
_MEANT = {slip: name for name in TABLE for slip in slips(name)}
_MEANT |= ELSEWHERE


def meant(name: str) -> str | None:
    """The option that an unknown name probably means, or None."""
    if name in TABLE:
        return None
    small = name.lower()
    return small if small in TABLE else _MEANT.get(small)


def advice(name: str) -> str:
    """What the error for an unknown option suggests; "" if nothing is known."""
    option = meant(name)
    return f"did you mean {option}?" if option else NO_OPTION.get(name) or WORDS.get(name, "")


def unknown(name: str) -> TypeError:
    """The error for an unknown option."""
    return no_option(name, "an option of solve", advice(name), TABLE)


def parted(
    f: Callable[..., Any], given: int, keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the keywords of a layer's call into options and keywords of f.

    `given` is the number of positional arguments of f, including the state. TypeError for an option
    that f has a parameter of the same name for, and for a name that looks like an option and is not
    a parameter of f.
    """
    options: dict[str, Any] = {}
    for_f: dict[str, Any] = {}
    for name, value in keywords.items():
        if name not in TABLE:
            option, place = meant(name), NO_OPTION.get(name)
            if name in WORDS and not takes_any(f):
                place = WORDS[name]
            if (option or place) and name not in named(f, given):
                remedy = f"pass {option}=..." if option else place
                raise TypeError(
                    f"{name}: expected an option of solve or a parameter of f, got a name that is "
                    f"neither; {remedy}, or if f takes arbitrary keywords pass "
                    f"kwargs={{'{name}': ...}}"
                )
            for_f[name] = value
        elif name in named(f, given):
            raise TypeError(
                f"{name}: expected an option of solve or a parameter of f, got a name that is "
                f"both; pass it to f as kwargs={{'{name}': ...}}, and set the option by "
                f"layer.set_solver({name}=...)"
            )
        else:
            options[name] = value
    return options, for_f
