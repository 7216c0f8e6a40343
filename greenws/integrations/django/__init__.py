"""Django: views that are WebSockets, and what Django has to know about them.

``websocket()`` makes a view. With ``"greenws.integrations.django"`` in ``INSTALLED_APPS``,
``runserver`` serves such views, ``manage.py check`` looks for what stands in their way, and
sessions that wait hold no database connection.
"""

from typing import TYPE_CHECKING

from ...lazy import export as _export

if TYPE_CHECKING:
    from .views import websocket

__all__ = ["websocket"]

__getattr__, __dir__ = _export(__name__, {"websocket": ".views"})
