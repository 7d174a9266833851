"""Write docs/licences.md: `python -m docs.licences`, in an environment with what constraints.txt pins."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import av
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).parent / "licences.md"

HEAD = """# Licences of what Onsight stands on

Onsight is under Apache-2.0. Its packages keep their own licences; this page lists those of the versions in
constraints.txt, as the packages' own metadata say, and is written by `python -m docs.licences`. Models have licences
of their own: `onsight models` shows them.

## FFmpeg in the PyAV wheel

The wheel of `av` {version}, which reads videos, carries FFmpeg {ffmpeg} as shared libraries. Asked, they say
"{licence}", but beside them lie {gpl}, which are under GPL-2.0-or-later: encoders that Onsight never calls, yet parts
of what is handed on. Whoever hands on an image or an environment with this wheel hands on these libraries too, and
owes their users what the GPL asks for (the licences' texts and the source of those libraries; PyAV's build scripts
are at https://github.com/PyAV-Org/pyav-ffmpeg). Who cannot do that builds PyAV against an FFmpeg without them (`pip
install --no-binary av av`). Nothing of FFmpeg is in Onsight's own package.

How FFmpeg was configured in this wheel:

    {configuration}
"""
_GPL = ("libx264", "libx265")


def closure(name: str) -> dict[str, Distribution]:
    """The installed packages that `name` needs, without extras that nothing asks for, by canonical name."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in distribution(name).requires or []]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        key = canonicalize_name(requirement.name)
        if key not in found:
            try:
                found[key] = distribution(key)
            except PackageNotFoundError:
                continue
            waiting += [Requirement(text) for text in found[key].requires or []]
    return found


def licence_of(package: Distribution) -> str:
    """The licence by the newest of the three places where metadata say it."""
    about = package.metadata
    named = about.get("License-Expression")
    classified = [line.rsplit(" :: ", 1)[-1] for line in about.get_all("Classifier", []) if line.startswith("License")]
    told = (about.get("License") or "").strip()
    short = told if told and len(told) < 60 and "\n" not in told else ""
    return named or short or ", ".join(classified) or "see the package"


def bundled_libraries() -> list[str]:
    """Names of the shared libraries in the wheel of PyAV."""
    folder = Path(av.__file__).parents[1] / "av.libs"
    return sorted({re.split(r"[-.]", path.name)[0] for path in folder.glob("*.so*")})


def page() -> str:
    facts = av._core.library_meta["libavcodec"]
    libraries = bundled_libraries()
    lines = [
        HEAD.format(
            version=av.__version__,
            ffmpeg=av.ffmpeg_version_info,
            licence=facts["license"],
            gpl=" and ".join(name for name in libraries if name in _GPL) or "no GPL libraries",
            configuration=facts["configuration"].replace(" --", "\n    --"),
        ),
        f"The other libraries in it: {', '.join(name for name in libraries if name not in _GPL)}.\n",
        "## Packages\n",
        "| package | version | licence |\n|---|---|---|",
    ]
    packages = closure("onsight")
    lines += [f"| {name} | {packages[name].version} | {licence_of(packages[name])} |" for name in sorted(packages)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
