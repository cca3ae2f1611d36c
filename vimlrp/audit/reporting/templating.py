"""The templates of a report, filled: all text is escaped, pictures and script are in the page."""

import base64
import hashlib
import math
from collections.abc import Mapping
from typing import Any

from vimlrp.audit.reporting.views import Card, Gallery
from vimlrp.audit.reporting.words import percent
from vimlrp.optional import optional

__all__ = ["Templates"]


class Templates:
    """The templates in this package.

    Raises:
        MissingDependencyError: jinja2 is missing.
    """

    def __init__(self) -> None:
        jinja2 = optional("jinja2", "jinja2", "audit")
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("vimlrp.audit.reporting"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "percent": percent,
            "probability": _probability,
            "signed": _signed,
            "signed_points": _signed_points,
            "significant": _significant,
        }
        script = self._environment.get_template("script.js").render()
        # Of all scripts the page's policy lets only this one run, whatever a file may be called.
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        self._environment.globals["script_hash"] = f"sha256-{digest}"

    def render(self, name: str, context: Mapping[str, Any]) -> str:
        """Fill a template.

        Args:
            name: Of its file.
            context: What it shows.
        """
        text: str = self._environment.get_template(name).render(context)
        return text

    def gallery(self, card: Card, pictures: Gallery) -> str:
        """The pictures of a finding, as a part of a page."""
        return self.render("gallery.html.j2", {"card": card, "gallery": pictures})


def _significant(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if math.isfinite(value) else "-"


def _probability(value: float) -> str:
    return _significant(value, 2)


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "-"


def _signed_points(value: float) -> str:
    return f"{value:+.1f}" if math.isfinite(value) else "-"
