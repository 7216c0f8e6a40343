"""A real Redis Cluster, or a master with sentinels, each on ports of their own."""

from __future__ import annotations

import contextlib
import signal

import redis
from redis.crc import key_slot

from .limits import wait_until
from .processes import free_port
from .redis_server import RedisServer

SLOTS = 16384


class ClusterNode(RedisServer):
    def __init__(self) -> None:
        self.bus_port = free_port()
        super().__init__(
            *["--cluster-enabled", "yes", "--cluster-node-timeout", "500"],
            *["--cluster-port", str(self.bus_port)],
            *["--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"],
        )

    @property
    def id(self) -> str:
        return str(self.call("CLUSTER", "MYID").decode())

    @property
    def host(self) -> tuple[str, int]:
        return "127.0.0.1", self.port


class RedisCluster:
    """Three masters, each with a replica if there are to be some."""

    def __init__(self, with_replicas: bool = True) -> None:
        self.masters = [ClusterNode() for _ in range(3)]
        self.replicas = [ClusterNode() for _ in range(3 if with_replicas else 0)]
        self.nodes = [*self.masters, *self.replicas]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{each.port}" for each in self.nodes)
        for number, each in enumerate(self.masters):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            each.call("CLUSTER", "ADDSLOTSRANGE", first, last)
            each.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        first = self.nodes[0]
        for each in self.nodes[1:]:
            each.call("CLUSTER", "MEET", "127.0.0.1", first.port, first.bus_port)
        wait_until(lambda: all(len(self.known(each)) == len(self.nodes) for each in self.nodes), 20)
        for master, replica in zip(self.masters, self.replicas, strict=bool(self.replicas)):
            replica.call("CLUSTER", "REPLICATE", master.id)
        self.settle()

    def known(self, node: ClusterNode) -> list[bytes]:
        lines = node.call("CLUSTER", "NODES").splitlines()
        return [line for line in lines if b"handshake" not in line]

    def settle(self) -> None:
        """Until all nodes agree, and the replicas have what their masters have."""

        def agrees(node: ClusterNode) -> bool:
            info = node.call("CLUSTER", "INFO").splitlines()
            if not {b"cluster_state:ok", b"cluster_slots_ok:%d" % SLOTS} <= set(info):
                return False
            role, *rest = node.call("ROLE")
            return role == b"master" or rest[2] == b"connected"

        wait_until(lambda: all(agrees(each) for each in self.nodes), 20)

    def flush(self) -> None:
        for each in self.nodes:
            if each.call("ROLE")[0] == b"master":
                each.call("FLUSHALL")

    def owner(self, room: str) -> ClusterNode:
        """The master that has a room whose name needs no escape."""
        slot = self.slot(room)
        for each in self.nodes:
            with contextlib.suppress(redis.RedisError):
                for first, last, (_, port, *_), *_ in each.call("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(node for node in self.nodes if node.port == port)
        raise AssertionError("nobody has it")

    def owners(self, room: str) -> list[int]:
        """The port of the master that has a room, as each node knows it."""
        slot = self.slot(room)
        return [
            port
            for each in self.nodes
            for first, last, (_, port, *_), *_ in each.call("CLUSTER", "SLOTS")
            if first <= slot <= last
        ]

    def is_agreed(self, room: str) -> bool:
        owners = self.owners(room)
        return len(owners) == len(self.nodes) and len(set(owners)) == 1

    def slot(self, room: str) -> int:
        return int(key_slot(room.encode()))

    def rooms(self, each: int = 1) -> list[str]:
        """So many in each of the masters; the first three are in three of them."""
        found: list[list[str]] = [[], [], []]
        number = 0
        while any(len(some) < each for some in found):
            name = f"room-{number}"
            some = found[self.slot(name) * 3 // SLOTS]
            if len(some) < each:
                some.append(name)
            number += 1
        return [name for names in zip(*found, strict=True) for name in names]

    def move(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        """As ``redis-cli --cluster reshard`` does."""
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        self.move_keys(slot, source, target)
        self.finish_move(slot, source, target)

    def move_keys(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        """Waits while the target sees too few of the others."""

        def is_done() -> bool:
            try:
                while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
                    source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            except redis.ResponseError as error:
                if "CLUSTERDOWN" not in str(error):
                    raise
                return False
            return True

        wait_until(is_done)

    def finish_move(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        for each in (target, source):
            each.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def fail_over(self, number: int) -> None:
        """A replica takes over, as it was planned; then that is the master."""
        replica = self.replicas[number]
        if replica.call("ROLE")[0] == b"master":  # it has done so by itself
            replica = self.masters[number]
            self.masters[number], self.replicas[number] = self.replicas[number], replica
        replica.call("CLUSTER", "FAILOVER")
        wait_until(lambda: replica.call("ROLE")[0] == b"master", 10)
        self.masters[number], self.replicas[number] = replica, self.masters[number]

    def present_masters(self) -> list[ClusterNode]:
        """Those of the moment: a replica may have taken over by itself."""
        return [each for each in self.nodes if each.call("ROLE")[0] == b"master"]

    def revive(self) -> None:
        for each in self.nodes:
            each.start()
        self.settle()

    def close(self) -> None:
        for each in self.nodes:
            each.close()


class Sentinels:
    """Three sentinels that watch a master with a replica."""

    def __init__(self) -> None:
        self.servers = [RedisServer("--repl-diskless-sync-delay", "0") for _ in range(2)]
        self.servers[1].call("REPLICAOF", "127.0.0.1", self.servers[0].port)
        self.sentinels = [Sentinel() for _ in range(3)]
        for each in self.sentinels:
            each.call("SENTINEL", "MONITOR", "mymaster", "127.0.0.1", self.servers[0].port, 2)
        self.set("down-after-milliseconds", 300)
        self.set("failover-timeout", 2000)
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/mymaster"
        self.settle()

    def set(self, option: str, value: int) -> None:
        for each in self.sentinels:
            each.call("SENTINEL", "SET", "mymaster", option, value)

    @property
    def master(self) -> RedisServer:
        _, port = self.sentinels[0].call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        return next(each for each in self.servers if each.port == int(port))

    def settle(self) -> None:
        """Until all know each other, and the replica has what its master has."""

        def is_settled() -> bool:
            for each in self.sentinels:
                (state,) = each.call("SENTINEL", "MASTERS")
                if (state[b"num-other-sentinels"], state[b"num-slaves"]) != (b"2", b"1"):
                    return False
                if state[b"flags"] != b"master":
                    return False
            roles = sorted(each.call("ROLE")[0] for each in self.servers)
            replica = next((each for each in self.servers if each is not self.master), None)
            return roles == [b"master", b"slave"] and (
                replica is not None and replica.call("ROLE")[3:4] == [b"connected"]
            )

        wait_until(is_settled, 40)

    def mend(self) -> None:
        """As the sentinels do after a while: the others are replicas of the master again."""
        for each in self.servers:
            each.start()
            if each is not self.master:
                each.call("REPLICAOF", "127.0.0.1", self.master.port)
        self.settle()

    def fail_over(self) -> None:
        before = self.master

        def begins() -> bool:
            with contextlib.suppress(redis.ResponseError):  # it has not seen the replica yet
                self.sentinels[0].call("SENTINEL", "FAILOVER", "mymaster")
                return True
            return False

        wait_until(begins, 20)
        wait_until(lambda: self.master is not before, 20)

    def hand_over(self, is_killed: bool) -> None:
        """A failover that loses nothing: the master takes no writes from when the other has all
        of them until that is the master."""
        self.settle()
        master = self.master
        replica = next(each for each in self.servers if each is not master)
        master.call("CONFIG", "SET", "min-replicas-to-write", 2)
        wait_until(lambda: replica.call("ROLE")[4] == master.call("ROLE")[1])
        if is_killed:
            master.stop(signal.SIGKILL)
        self.fail_over()
        # A sentinel would make it a replica after ten seconds.
        if is_killed:
            master.start("--replicaof", "127.0.0.1", str(replica.port))
        else:
            master.call("REPLICAOF", "127.0.0.1", replica.port)
            master.call("CONFIG", "SET", "min-replicas-to-write", 0)

    def close(self) -> None:
        for each in [*self.sentinels, *self.servers]:
            each.close()


class Sentinel(RedisServer):
    def _command(self) -> list[str]:
        path = f"{self._folder.name}/sentinel.conf"
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"port {self.port}\nbind 127.0.0.1\ndir {self._folder.name}\n")
        return ["redis-server", path, "--sentinel", "--loglevel", "warning"]
