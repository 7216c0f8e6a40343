"""/metrics: what one process counts; what many count together stands in test_run_server.py."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client

from greenws import Rooms
from greenws.integrations.prometheus import Metrics


def scrape(metrics: Metrics) -> dict[str, float]:
    response = Client(metrics).get("/metrics")
    assert response.status_code == 200
    assert response.content_type.startswith("text/plain; version=")
    families = text_string_to_metric_families(response.get_data(as_text=True))
    return {
        sample.name.removeprefix("greenws_rooms_"): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_counters_of_the_rooms(pair):
    rooms = Rooms()
    metrics = Metrics(rooms)
    assert set(scrape(metrics).values()) == {0.0}
    with rooms["a"].join(pair()[0]), rooms["b"].join(pair()[0]), rooms["b"].join(pair()[0]):
        rooms["a"].send("hello")
        rooms["b"].send("hello")
        rooms.stats.closed += 2
        for _ in range(2):  # asking changes nothing
            assert scrape(metrics) == {
                "members": 3,
                "lagging": 0,
                "sent_total": 2,
                "delivered_total": 3,
                "dropped_total": 0,
                "closed_total": 2,
            }
    assert scrape(metrics)["members"] == 0
