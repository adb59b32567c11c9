"""MONAI Label's sessions, which here survive a server that is killed while it writes one."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from monailabel.utils.sessions import SessionInfo, Sessions

from ultrarefiner_monai.core.files import replacing

logger = logging.getLogger(__name__)

_YOUNG_SECONDS = 3600.0


class SessionStore(Sessions):
    """Uploaded images for a while. An expired session is gone at once, not when the next clearing comes around."""

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo | None:
        try:
            found = super().get_session(session_id, False, fetch_cache)
            if found is None:
                return None
            if found.last_access_ts + found.expiry < time.time():
                self.remove_session(session_id)
                return None
        except (ValueError, TypeError, AttributeError):  # half a meta file, or another program's
            logger.warning("session %s cannot be read", session_id)
            return None
        return super().get_session(session_id, True) if update_ts else found

    def remove_expired(self) -> int:
        """Remove expired sessions, and folders in which a session was begun and never completed. Returns how many."""
        folder, count = Path(self.store_path), 0
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            try:
                young = path.stat().st_mtime > time.time() - _YOUNG_SECONDS
            except OSError:
                continue
            if path.is_dir() and self.get_session(path.name, update_ts=False) is None:
                if path.exists() and young and not (path / "meta.info").exists():
                    continue  # its image is just being moved in
                self.remove_session(path.name)
                count += 1
        return count

    def _write_meta_info(self, session_id: str, session_info: Any) -> None:
        # Two requests of one session may write at the same time.
        with replacing(Path(self.store_path, session_id, "meta.info"), "w") as file:
            json.dump(vars(session_info), file)
