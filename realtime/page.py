"""The page's files, as they lie in their folder."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_SUFFIXES = {
    ".html", ".js", ".css", ".svg", ".png", ".jpg", ".jpeg", ".webp", ".ico", ".json",
    ".webmanifest", ".woff2", ".txt",
}  # fmt: skip
_PRIVATE_FILES = {"tsconfig.json", "package.json", "package-lock.json"}


class PageFiles(StaticFiles):
    """The page as it lies in its folder; sources of types and tests stay inside."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, html=True, check_dir=False)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve a file of a known kind, always revalidated. Raises HTTPException 404, 405."""
        name = Path(path).name
        hidden = any(part.startswith((".", "_")) for part in Path(path).parts if part != ".")
        known = Path(path).suffix in _SUFFIXES or path in (".", "")
        if hidden or not known or name in _PRIVATE_FILES:
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
