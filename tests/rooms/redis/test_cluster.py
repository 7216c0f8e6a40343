"""Rooms over a real Redis Cluster: three masters, each with a replica."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import gevent
import gevent.event
import gevent.socket
import pytest
import redis.connection
import redis.exceptions

from greenws import BrokerUnavailable, Sender
from greenws.brokers.redis import RedisBroker
from greenws.rooms.redis.url import WrongScheme

from ...support.limits import limit, wait_until
from ...support.play import Play, run, seeds
from ...support.redis_cluster import SLOTS, RedisCluster
from ...support.redis_workers import Worker
from ...support.require import require_program
from ...support.wire import CLOSE
from ..conformance import Brokers, SharedBrokerConformance


@pytest.fixture(scope="module")
def running() -> Iterator[RedisCluster]:
    require_program("redis-server")
    cluster = RedisCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(running: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> RedisCluster:
    running.revive()
    running.flush()
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    return running


@pytest.fixture
def worker(cluster: RedisCluster, pair: Any) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(**options: Any) -> Worker:
        workers.append(Worker(pair, **{"url": cluster.url, **options}))
        return workers[-1]

    yield make
    for each in workers:
        each.stop()


class TestCluster(SharedBrokerConformance):
    @pytest.fixture
    def brokers(self, cluster: RedisCluster) -> Iterator[Brokers]:
        made: list[RedisBroker] = []

        def make() -> RedisBroker:
            made.append(RedisBroker(cluster.url, timeout=limit(1.0)))
            return made[-1]

        yield make
        for each in made:
            each.stop()


def tell(kind: str, id: str, info: dict[str, Any]) -> str:
    return f"{kind} {info['name']}"


def test_each_room_is_in_the_node_that_has_its_slot(cluster, worker):
    a, b = worker(), worker()
    rooms = cluster.rooms()
    clients = [(a.join(room), b.join(room)) for room in rooms]
    for room, (ann, bob) in zip(rooms, clients, strict=True):
        a.send("one", room=room)
        b.send("two", room=room)
        assert ann.hear(2) == bob.hear(2)
        assert cluster.owner(room).call("XLEN", f"greenws:room:{{{room}}}") == 2
    assert len(a.nodes) == 3


@pytest.mark.parametrize("name", ["", "{", "}", "{}", "a{b}c", "100%", "%7B", "}{"])
def test_all_keys_of_a_room_are_in_one_slot_whatever_its_name(worker, name):
    a, b = worker(), worker()
    ann = a.join(name, presence=tell, name="ann")
    wait_until(lambda: a.is_idle)
    bob = b.join(name, since=ann.last, name="bob")
    assert bob.member.is_complete
    assert ann.hear(1) == ["join bob"]
    b.send("hello", room=name)
    assert ann.hear(1) == bob.hear(1) == ["hello"]
    assert b.rooms[name].history() == [f"{ann.last} hello"]


def test_one_node_that_is_listed_is_enough_and_others_may_be_down(cluster, worker):
    a = worker(url=f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.masters[1].port}")
    clients = [a.join(room) for room in cluster.rooms()]
    for client, room in zip(clients, cluster.rooms(), strict=True):
        a.send("hello", room=room)
        assert client.hear(1) == ["hello"]
    wait_until(lambda: len(a.nodes) == 3)


def test_members_of_a_process_that_died_are_gone_after_a_while(worker, cluster):
    a, b = worker(presence_timeout=1.0), worker(presence_timeout=1.0)
    anns = [a.join(room, name="ann", presence=tell) for room in cluster.rooms()]
    for room in cluster.rooms():
        b.join(room, name="bob")
    for ann in anns:
        assert ann.hear(1) == ["join bob"]
    b.die()
    for ann in anns:
        assert ann.hear(1) == ["leave bob"]


def test_a_program_starts_while_the_cluster_is_down(cluster, worker):
    for each in cluster.nodes:
        each.stop(signal.SIGKILL)
    a = worker(timeout=0.3)
    clients = [a.join(room) for room in cluster.rooms()]
    for client, room in zip(clients, cluster.rooms(), strict=True):
        a.send("unlogged", room=room)
        assert client.hear(1) == ["unlogged"]
    cluster.revive()
    wait_until(lambda: a.is_idle and len(a.nodes) == 3)
    for client, room in zip(clients, cluster.rooms(), strict=True):
        a.send("logged", room=room)
        assert client.hear(1) == ["logged"]
        history = [text.split(" ", 1)[1] for text in worker().rooms[room].history()]
        assert history == ["unlogged", "logged"]


def test_a_node_of_a_cluster_is_refused_without_the_scheme(cluster, worker, error_log):
    a = worker(url=f"redis://127.0.0.1:{cluster.masters[0].port}")
    with pytest.raises(WrongScheme, match=r"redis\+cluster://"):
        a.join()
    for call in (a.join, lambda: a.send("x"), lambda: a.rooms["r"].history()):
        with pytest.raises(ValueError, match=r"redis\+cluster://"):
            call()
    assert len(error_log.take()) == 1


def test_a_cluster_s_node_is_refused_when_nothing_but_a_send_has_connected(
    cluster, worker, error_log
):
    a = worker(url=f"redis://127.0.0.1:{cluster.masters[0].port}")
    with gevent.Timeout(limit()), pytest.raises(ValueError, match=r"redis\+cluster://"):
        a.rooms["r"].send("lost", wait=True)
    with pytest.raises(ValueError, match=r"redis\+cluster://"):
        a.send("x")
    assert not a.rooms.flush(0)
    messages = [record.getMessage() for record in error_log.take()]
    assert "redis+cluster://" in messages[0]
    a.rooms.close(0)
    error_log.take()


def test_a_sender_learns_that_its_redis_is_a_node_of_a_cluster(cluster):
    with Sender(f"redis://127.0.0.1:{cluster.masters[0].port}", timeout=limit(2)) as sender:
        for call in (lambda: sender["r"].send("x"), lambda: sender["r"].position):
            with pytest.raises(BrokerUnavailable, match=r"write redis\+cluster://"):
                call()


def test_a_user_who_may_not_ask_for_the_slots_gets_that_error(cluster):
    """redis-py says of any refusal that this is no cluster."""
    for node in cluster.masters:
        node.call("ACL", "SETUSER", "u", "on", ">secret", "~*", "&*", "+@all", "-cluster")
    url = f"redis+cluster://u:secret@127.0.0.1:{cluster.masters[0].port}"
    with Sender(url, timeout=limit(2)) as sender:
        with pytest.raises(BrokerUnavailable, match="Redis refuses: .*cluster"):
            sender["r"].send("x")


def test_a_sender_sends_to_all_nodes(cluster, worker):
    a = worker(presence_timeout=1.0)
    with Sender(cluster.url, timeout=2.0) as sender:
        for room in cluster.rooms():
            since = sender[room].position
            ann = a.join(room, since=since, name="ann")
            assert ann.member.is_complete
            sender[room].send("hello")
            assert ann.hear(1) == ["hello"]
            assert sender[room].history() == ["hello"]
            wait_until(lambda: a.is_idle)
            assert [each.info for each in sender[room].members] == [{"name": "ann"}]
        cluster.fail_over(1)
        sender[room].send("after")
        assert ann.hear(1) == ["after"]
        sender[room].disconnect(4000)
        assert ann.peer.read_frame()[1] == CLOSE
        a.die()
        wait_until(lambda: not sender[cluster.rooms()[0]].members)


def test_braces_in_the_prefix_are_refused(cluster):
    with pytest.raises(ValueError, match="braces"):
        RedisBroker(cluster.url, prefix="{x}:")


# -- slots that move


class Talk:
    """Sends numbers to a room, through one process after the other."""

    def __init__(self, room: str, *workers: Worker) -> None:
        self.said: list[str] = []
        self._room = room
        self._workers = workers
        self._is_over = False
        self._greenlet = gevent.spawn(self._talk)

    def _talk(self) -> None:
        while not self._is_over:
            number = len(self.said)
            self.said.append(str(number))
            self._workers[number % len(self._workers)].send(str(number), room=self._room)
            gevent.sleep(0.005)

    def goes_on(self) -> None:
        """Until it has said some more."""
        end = len(self.said) + 40
        wait_until(lambda: len(self.said) > end)

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *args: Any) -> None:
        self._is_over = True
        self._greenlet.join()


def test_a_slot_moves_while_its_room_talks(cluster, worker):
    a, b = worker(), worker()
    room = cluster.rooms()[0]
    source, target = cluster.owner(room), cluster.owner(cluster.rooms()[1])
    ann, bob = a.join(room, name="ann", presence=tell), b.join(room, name="bob")
    since = bob.last
    assert ann.hear(1) == ["join bob"]
    with Talk(room, a) as talk:
        talk.goes_on()
        cluster.move(cluster.slot(room), source, target)
        talk.goes_on()
        cluster.move(cluster.slot(room), target, source)
        talk.goes_on()
    assert ann.hear(len(talk.said)) == bob.hear(len(talk.said)) == talk.said
    assert ann.last == bob.last
    c = worker()
    assert c.names(room) == ["ann", "bob"]
    carl = c.join(room, since=since, name="carl")
    assert carl.member.is_complete
    assert carl.hear(len(talk.said)) == talk.said
    assert ann.hear(1) == ["join carl"]
    assert not (a.is_lost or b.is_lost)


def test_a_room_is_opened_and_talks_while_its_slot_is_between_two_nodes(cluster, worker):
    a, b = worker(), worker()
    room = cluster.rooms()[0]
    source, target = cluster.owner(room), cluster.owner(cluster.rooms()[1])
    slot = cluster.slot(room)
    ann = a.join(room)
    a.send("before", room=room)
    assert ann.hear(1) == ["before"]
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    a.send("between", room=room)
    joining = gevent.spawn(b.join, room, since=ann.last)
    gevent.sleep(0.05)
    cluster.move_keys(slot, source, target)
    a.send("between, too", room=room)
    gevent.sleep(0.05)
    cluster.finish_move(slot, source, target)
    bob = joining.get(timeout=limit(5))
    expected = ["between", "between, too"]
    assert ann.hear(2) == expected
    b.send("after", room=room)
    assert ann.hear(1) == ["after"]
    assert bob.hear(3) == [*expected, "after"]
    cluster.move(slot, target, source)


def test_a_slot_moves_while_two_members_open_its_room(cluster, worker):
    a, b = worker(), worker()
    room, other = cluster.rooms()[:2]
    source, target = cluster.owner(room), cluster.owner(other)
    a.join(other)
    broker = a.broker.parts[0]
    wait_until(lambda: len(broker._owners) == SLOTS)
    node = broker._owner(room)
    snapshot, may_go_on = node._leases.snapshot, gevent.event.Event()

    def wait(*args: Any, **options: Any) -> Any:
        found = snapshot(*args, **options)
        may_go_on.wait()
        return found

    node._leases.snapshot = wait
    joining = [gevent.spawn(a.join, room) for _ in range(2)]
    wait_until(lambda: broker._opening.get(room, (None, 0))[1] == 2)
    cluster.move(cluster.slot(room), source, target)
    wait_until(lambda: source.port not in cluster.owners(room) and cluster.is_agreed(room))
    wait_until(lambda: broker.read_map_soon() or broker._owner(room) is not node)
    assert broker._node(room) is node
    del node._leases.snapshot
    may_go_on.set()
    ann, amy = (each.get(timeout=limit()) for each in joining)
    assert room not in node._streams
    assert not broker._opening
    b.send("hello", room=room)
    assert ann.hear(1) == amy.hear(1) == ["hello"]
    cluster.move(cluster.slot(room), target, source)


def test_an_idle_room_moves_and_gets_messages_there(cluster, worker):
    a, b = worker(), worker()
    room = cluster.rooms()[0]
    source, target = cluster.owner(room), cluster.owner(cluster.rooms()[1])
    ann = a.join(room)
    wait_until(lambda: a.is_idle)
    cluster.move(cluster.slot(room), source, target)
    b.send("hello", room=room)
    assert ann.hear(1) == ["hello"]
    cluster.move(cluster.slot(room), target, source)


def test_a_replica_takes_over_as_it_was_planned(cluster, worker):
    a, b = worker(), worker()
    room = cluster.rooms()[0]
    ann, bob = a.join(room), b.join(room)
    with Talk(room, a) as talk:
        talk.goes_on()
        cluster.fail_over(0)
        talk.goes_on()
    assert ann.hear(len(talk.said)) == bob.hear(len(talk.said)) == talk.said
    wait_until(lambda: a.is_idle and b.is_idle)


def test_a_master_that_is_killed_is_lost_to_its_rooms_alone(cluster, worker):
    a = worker(timeout=0.5)
    lost, kept, _ = cluster.rooms()
    ann, bob = a.join(lost), a.join(kept)
    wait_until(lambda: a.is_idle)
    cluster.settle()
    node = a.broker.parts[0]._node(lost)
    cluster.owner(lost).stop(signal.SIGKILL)
    a.send("unlogged", room=lost)
    assert ann.hear(1) == ["unlogged"]
    assert "+" in ann.last
    assert node.process.outage.is_lost
    a.send("logged", room=kept)
    assert bob.hear(1) == ["logged"]
    assert "+" not in bob.last
    wait_until(lambda: a.is_idle, 20)  # the replica has taken over
    assert a.broker.parts[0]._node(lost) is not node
    a.send("again", room=lost)
    assert ann.hear(1) == ["again"]
    history = [text.split(" ", 1)[1] for text in a.rooms[lost].history()]
    assert history == ["unlogged", "again"]
    wait_until(lambda: node not in a.nodes)  # nothing is left of it


def test_a_cluster_that_stops_ends_all_that_runs(worker, cluster):
    a = worker()
    a.join(cluster.rooms()[0])
    a.stop()
    with pytest.raises(Exception, match="closed"):
        a.broker.open("r")


def test_a_cluster_ends_what_runs_before_it_closes_connections(cluster, worker):
    """A greenlet of one node may be waiting for an answer of another, or find one more node."""
    a = worker()
    for room in cluster.rooms():
        a.join(room)
    wait_until(lambda: len(a.nodes) == 3 and a.is_idle)
    (broker,) = a.broker.parts
    running = [each for node in a.nodes for each in node._greenlets]
    still_ran = []
    for node in a.nodes:
        commands = node.process.commands

        def close(close: Callable[[], None] = commands.close) -> None:
            still_ran.append([each for each in running if not each.dead])
            close()

        def find_another() -> None:
            broker._node_at(("127.0.0.1", 1))

        commands.close = close
        node._report_lost = find_another
    a.stop()
    assert still_ran == [[], [], []]
    assert not broker._node_at(("127.0.0.1", 1))._is_started


def test_rooms_stay_where_they_are_while_a_cluster_stops(cluster, worker):
    """A node may answer MOVED then: to one that was ended before, or that is not known yet."""
    a = worker()
    rooms = cluster.rooms()
    for room in rooms:
        a.join(room)
    wait_until(lambda: len(a.nodes) == 3 and a.is_idle)
    (broker,) = a.broker.parts
    port = 1
    for node in a.nodes:
        (room,) = (each for each in rooms if broker._owner(each) is node)
        error = redis.exceptions.MovedError(f"{cluster.slot(room)} 127.0.0.1:{port}")
        node._report_lost = partial(broker.redirect, error)
        (port,) = (port for (_, port), each in broker.nodes.items() if each is node)
    a.die()  # its members leave once it has stopped
    assert not broker._node_at(("127.0.0.1", 1))._is_started
    assert not any(node.rooms() for node in a.nodes)


def test_a_room_is_closed_that_was_opened_as_its_slot_moved_and_its_cluster_stopped(
    cluster, worker
):
    a = worker()
    room, other = cluster.rooms()[:2]
    (broker,) = a.broker.parts
    broker.open(other)
    wait_until(lambda: len(broker._owners) == SLOTS)
    node = broker._owner(room)
    snapshot = node._leases.snapshot

    def stop(*args: Any, **options: Any) -> Any:
        found = snapshot(*args, **options)
        broker._owners[cluster.slot(room)] = broker._owners[cluster.slot(other)]
        broker.stop()
        return found

    node._leases.snapshot = stop
    broker.open(room)
    assert broker.close(room) and broker.close(other)


@pytest.mark.parametrize("seed", seeds("1-2"))
def test_clients_that_move_while_slots_move_and_replicas_take_over(seed, cluster, worker, pair):
    workers = {name: worker(presence_timeout=1.0) for name in "abc"}
    plays = [Play(seed, workers, {}, pair, room, clients=5) for room in cluster.rooms()[:2]]

    def trouble(random: Random) -> None:
        what = random.choice(("move", "move", "take over", "stop"))
        for play in plays:
            play.note(what)
        if what == "move":
            room = random.choice(plays).room
            source = cluster.owner(room)
            masters = cluster.present_masters()
            target = random.choice([each for each in masters if each is not source])
            cluster.move(cluster.slot(room), source, target)
        elif what == "take over":
            cluster.settle()
            cluster.fail_over(random.randrange(3))
        else:
            node = random.choice(cluster.nodes)
            node.send_signal(signal.SIGSTOP)
            gevent.sleep(random.uniform(0, 0.3))  # less than a cluster waits before a failover
            node.send_signal(signal.SIGCONT)

    run(plays, trouble)
