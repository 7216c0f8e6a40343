"""/metrics: what one process counts, and many together; with Redis in demo/test_workers.py."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import sys
import time

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client

from greenws import Rooms, Routes
from greenws.integrations.prometheus import Metrics
from greenws.stats import ServerStats

from ..support.limits import eventually, limit, wait_until
from ..support.processes import Process
from ..support.wire import TEXT, Peer, close_frame, frame


def scrape(metrics: Metrics) -> dict[str, float]:
    response = Client(metrics).get("/metrics")
    assert response.status_code == 200
    assert response.content_type.startswith("text/plain; version=")
    families = text_string_to_metric_families(response.get_data(as_text=True))
    return {
        " ".join([sample.name.removeprefix("greenws_"), *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_counters_of_the_rooms(pair):
    rooms = Rooms()
    metrics = Metrics(rooms, stats=[])
    assert set(scrape(metrics).values()) == {0.0}
    with rooms["a"].join(pair()[0]), rooms["b"].join(pair()[0]), rooms["b"].join(pair()[0]):
        rooms["a"].send("hello")
        rooms["b"].send("hello")
        rooms.stats.closed += 2
        for _ in range(2):  # asking changes nothing
            found = {key: value for key, value in scrape(metrics).items() if value}
            assert found == {
                "rooms_members": 3,
                "rooms_sent_total": 2,
                "rooms_delivered_total": 3,
                "rooms_closed_total": 2,
            }
    assert scrape(metrics)["rooms_members"] == 0


def test_the_counters_of_a_server(serve):
    routes = Routes()

    @routes.websocket("/echo")
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    server = serve(routes)
    metrics = Metrics(stats=[server.stats])
    with Peer.open(server.address, "/echo") as peer:
        peer.send(frame(TEXT, b"hello"))
        assert peer.read_frame() == (True, TEXT, b"hello")
        with Peer.connect(server.address) as other:
            assert other.shake("/echo", sec_websocket_version="7").status == 426
        found = scrape(metrics)
        assert found["connections_open"] == found["connections_total"] == 1
        assert found["messages_in_total"] == found["messages_out_total"] == 1
        assert (found["bytes_in_total"], found["bytes_out_total"]) == (11, 7)
        assert sum(value for key, value in found.items() if key.startswith("refused_total")) == 1
        peer.send(close_frame(4000))
        peer.read_close()
    wait_until(lambda: not server.stats.connections_open)
    found = scrape(metrics)
    assert (found["connections_open"], found["connections_total"]) == (0, 1)
    assert found["closes_total 4000"] == 1


def test_the_codes_that_alerts_use_begin_with_zero():
    """Prometheus takes the first value that it sees for where a counter begins, so a counter that
    appears with 1 has not increased."""
    found = scrape(Metrics(stats=[]))
    assert {found[f"closes_total {code}"] for code in (1006, 1011, 1013)} == {0}


@contextlib.contextmanager
def gunicorn(*options, **env):
    command = ["-m", "gunicorn", "-k", "greenws.gunicorn.Worker", "--bind", "127.0.0.1:0"]
    with Process(*command, "--workers", "3", *options, "metrics_app:app", **env) as process:
        yield process.wait_for_port()


def ask(connection):
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode().splitlines()


@pytest.mark.parametrize("options", [[], ["--preload"]])
def test_all_workers_are_counted_though_one_alone_is_asked(options, tmp_path):
    for name in ("counter_1.db", "gauge_livesum_1.db"):  # as those of a worker that has just begun
        (tmp_path / name).touch()
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(gunicorn(*options, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)))
        pids, count = set(), 0
        deadline = time.monotonic() + limit(20)
        while len(pids) < 3 and time.monotonic() < deadline:
            peer = stack.enter_context(Peer.open(process.address, "/chat"))
            pids.add(peer.read_frame()[2])
            count += 1
        assert len(pids) == 3
        connection = http.client.HTTPConnection(*process.address, timeout=limit(10))
        stack.callback(connection.close)
        expected = {f"greenws_connections_total {count}.0", f"greenws_rooms_members {count}.0"}
        eventually(lambda: expected - set(ask(connection)), set())
        assert "PROMETHEUS_MULTIPROC_DIR" not in process.output


ENDING = """
from greenws import Routes, WebSocketServer
from greenws.integrations.prometheus import Metrics

metrics = Metrics()
routes = Routes()

@routes.websocket("/")
def listen(request, socket):
    list(socket)

server = WebSocketServer(("127.0.0.1", 0), routes)
server.start()
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


def test_what_a_stop_closes_is_counted_though_the_process_ends_at_once(tmp_path):
    with contextlib.ExitStack() as stack:
        env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        process = stack.enter_context(Process("-c", ENDING, **env))
        process.wait_for_port()
        peers = [stack.enter_context(Peer.open(process.address)) for _ in range(3)]
        process.popen.terminate()
        for peer in peers:
            assert peer.read_close(answer=True) == (1001, b"")
            peer.close()
        assert process.popen.wait(limit(10)) == 0
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    assert registry.get_sample_value("greenws_closes_total", {"code": "1001"}) == 3


def test_counters_go_on_after_those_of_a_server_went():
    """As in a child that counts from zero again, or where a server was collected."""
    stats = ServerStats()
    metrics = Metrics(stats=[stats])
    stats.connections_total = 100
    assert scrape(metrics)["connections_total"] == 100
    stats.reset()
    assert scrape(metrics)["connections_total"] == 100
    stats.connections_total = 3
    assert scrape(metrics)["connections_total"] == 103


def test_a_label_goes_on_after_the_only_server_that_had_it():
    stats = [ServerStats()]
    metrics = Metrics(stats=stats)
    stats[0].refused["origin"] = 5
    assert scrape(metrics)["refused_total origin"] == 5
    metrics._stats = []
    assert scrape(metrics)["refused_total origin"] == 5
    metrics._stats = [ServerStats()]
    metrics._stats[0].refused["origin"] = 3
    assert scrape(metrics)["refused_total origin"] == 8


def test_a_worker_that_answers_for_itself_alone_says_so_once():
    with gunicorn() as process:
        with contextlib.closing(http.client.HTTPConnection(*process.address)) as connection:
            for _ in range(2):
                assert "greenws_connections_total 0.0" in ask(connection)
        process.wait_for("metrics are those of one worker: set PROMETHEUS_MULTIPROC_DIR")
    assert process.output.count("PROMETHEUS_MULTIPROC_DIR") == 1


def test_without_prometheus_client_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("greenws.integrations.prom")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(
        ImportError, match=r"pip install prometheus-client \(or 'greenws-wsgi\[metrics"
    ):
        importlib.import_module("greenws.integrations.prometheus")


def test_all_servers_of_the_process_are_counted_without_being_named(serve):
    server = serve(Routes())
    metrics = Metrics()
    before = scrape(metrics)["connections_total"]
    server.stats.connections_total += 1000
    assert scrape(metrics)["connections_total"] == before + 1000


def test_a_second_one_where_workers_share_a_folder_is_reported(monkeypatch, tmp_path, caplog):
    """It would add to the shared figures what the first has added already."""
    monkeypatch.setattr(Metrics, "_made_by", 0)
    for _ in range(2):
        Metrics().stop()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    Metrics().stop()
    assert caplog.records == []
    Metrics().stop()
    (record,) = caplog.records
    assert "make it once" in record.getMessage()
