"""Links torch and what it needs into a directory, for an environment that borrows it.

``torch_links.py DIRECTORY SITE_PACKAGES``, run by the Python that has torch: a distribution that
the borrower has in its site-packages is left out, so that it keeps its own. torch is 5 GB.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def normalised(name: str) -> str:
    """A distribution's name as requirements may spell it, in one spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, found: dict[str, metadata.Distribution]) -> dict[str, metadata.Distribution]:
    """The distributions that one needs, itself among them, by normalised name."""
    key = normalised(name)
    if key in found:
        return found
    try:
        found[key] = metadata.distribution(key)
    except metadata.PackageNotFoundError:
        # For another platform.
        return found
    for requirement in found[key].requires or ():
        match = _NAME.match(requirement)
        if match is not None and "extra ==" not in requirement:
            needed(match.group(), found)
    return found


def main(directory: Path, site_packages: Path) -> None:
    borrower = metadata.distributions(path=[str(site_packages)])
    own = {normalised(distribution.name) for distribution in borrower}
    directory.mkdir()
    for name, distribution in needed("torch", {}).items():
        if name in own:
            continue
        tops = {file.parts[0] for file in distribution.files or ()}
        for top in tops - {"..", "__pycache__"}:
            link = directory / top
            # Several distributions share a folder, as those of nvidia do.
            if not link.is_symlink():
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    (site_packages / "torch.pth").write_text(f"{directory}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
