"""Development only: folders that were not named lie under TG_HOME. The gateway gets no secret."""

from __future__ import annotations

import dataclasses

from tensorguard.crypto.files import private_folder
from tensorguard.settings import Settings, default_home


def complete(settings: Settings) -> Settings:
    """Return `settings` with development defaults filled in; production is returned untouched."""
    if settings.production or settings.malformed:
        return settings
    home = private_folder(settings.home or default_home())
    return dataclasses.replace(
        settings,
        home=home,
        pack_dir=settings.pack_dir or private_folder(home / "packs"),
        trust_store=settings.trust_store or private_folder(home / "trust"),
        grant_jwks=settings.grant_jwks or str(home / "jwks.json"),
    )
