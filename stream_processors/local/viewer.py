"""OHIF in front of a local Orthanc, for ``make viewer`` and the browser tests.

The built files come from the npm package ``@ohif/app``, fetched by ``deploy/setup/viewer.sh``; nothing is built here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self
from urllib.parse import urlencode

from stream_processors.errors import ProcessorError
from stream_processors.local.proxy import ViewerProxy

VIEWER_FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy" / "viewer"
OHIF_FILES: Final = VIEWER_FOLDER / "node_modules" / "@ohif" / "app" / "dist"
APP_CONFIG: Final = VIEWER_FOLDER / "app-config.js"


class ViewerMissing(ProcessorError):
    """The viewer's files are not there; the message says how to fetch them."""


class LocalViewer:
    """OHIF on a port of its own.

    Args:
        pacs_url: base URL of an Orthanc with the DICOMweb plugin.

    Raises:
        ViewerMissing: the npm package was not fetched.
    """

    def __init__(self, pacs_url: str) -> None:
        if not (OHIF_FILES / "index.html").is_file():
            msg = (
                f"the viewer's files are not in {OHIF_FILES}. Run: deploy/setup/viewer.sh "
                "(it needs npm: sudo apt-get install npm)"
            )
            raise ViewerMissing(msg)
        self._proxy = ViewerProxy(OHIF_FILES, {"app-config.js": APP_CONFIG}, pacs_url)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address of the study list."""
        return self._proxy.url

    def study_url(self, study_instance_uid: str) -> str:
        """Address that opens one study."""
        return f"{self.url}/viewer?{urlencode({'StudyInstanceUIDs': study_instance_uid})}"

    def start(self) -> None:
        """Serve until ``stop``."""
        self._proxy.start()

    def stop(self) -> None:
        """End it."""
        self._proxy.stop()
