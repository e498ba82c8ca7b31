"""How long the searching tests search: ARCBOX_LOGS_EXAMPLES examples each."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("logs", max_examples=int(os.environ.get("ARCBOX_LOGS_EXAMPLES", "100")), deadline=None)
settings.load_profile("logs")
