"""Before a wait the session is saved, and then the connections are released."""

from __future__ import annotations

from greenws import testing, waiting


def test_it_is_installed_once(project):
    from greenws.integrations.django import waits

    before = list(waiting.functions)
    waits.install()
    assert waiting.functions == before


def test_saving_a_session_leaves_no_connection(project):
    from django.db import connection
    from django.test import Client

    client = Client()
    client.get("/login/")
    with testing.connect(project, "/session/", client=client) as socket:
        socket.send("color=green")
        assert socket.receive() == "green"
        socket.ping()
        assert connection.connection is None
    assert client.session["color"] == "green"
