"""The figure that all pictures are drawn in. Imported only when one is drawn."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure without pyplot that notebooks show, once, as the value of a cell."""

    def _repr_png_(self) -> bytes:
        """Return the picture as notebooks take it."""
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=100, metadata={"Software": None})
        return content.getvalue()
