"""``FanOut``: delivers what a room's broker hands over to all members, in slices.

Entries, presence and disconnects go through one queue, and each item reaches everybody before the
next one begins: this makes the order the same for all. Nothing switches inside a slice. Between two
slices, when a turn is over, other greenlets run, and members may join or leave. The members that an
item goes to are fixed when it begins. A member that is added while items wait gets only what the
broker delivers after that.

When many members join at once, as after a deploy, reporting each to all others one by one would
take the square of their number in system calls. So changes of presence wait for the next turn if
there are many watchers, and each watcher is sent consecutive changes together.

Prompt members are kept in groups, each a dictionary that the compiled ``offer_to_all`` walks. Only
the other members cost Python code each.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import gevent
from gevent import getcurrent
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event
from gevent.monkey import get_original

from ..hub import switching
from ..protocol.shared import SharedBatch, SharedMessage
from ..websocket import WebSocket, offer_to_all
from . import arguments, turns
from .broker import Entry
from .member import Member
from .presence import Change, Moment, Roster, Watch
from .stamp import Stamp
from .tail import Tail

__all__ = ["Disconnect", "FanOut", "Gap"]


_GROUP = 128  # members at most, which get a message before the clock is read again
_CHANGES = 64  # changes of presence at most that are sent together
_MANY = 16  # watchers from which on changes wait for the next turn
_TAKE_OVER_TIMEOUT = 0.1  # seconds for which a sender waits for the thread that delivers
_POLL_INTERVAL = 0.01  # seconds between two checks by a sender that is held up
_HUB_POLL_INTERVAL = 0.001  # the same, where it only waits for another thread's hub

_sleep = get_original("time", "sleep")
_logger = logging.getLogger("greenws.rooms")


class Gap:
    """Messages are missing in the log, between the last one delivered and the next one."""


class Disconnect(NamedTuple):
    """Close all members, or those whose id, or the one whose token, is ``member``."""

    code: int
    reason: str
    member: str | None


class _Newcomer(NamedTuple):
    after: int  # the number of the last item that it does not get
    position: str


class _Notice(NamedTuple):
    """The message about a change for watchers: as it is sent, and as it was made."""

    message: SharedMessage
    data: str | bytes


_Item = Entry | Change | Gap | Disconnect


class FanOut:
    """The fan-out of one room. All methods but ``wait`` and ``wait_for_room`` are called with the
    lock held, and do not block."""

    def __init__(
        self,
        name: str,
        lock: Any,
        stats: Any,
        stamp: Stamp | None,
        tail: Tail,
    ) -> None:
        self.name = name
        self.lock = lock
        self.stats = stats
        self.roster = Roster()
        self.tail = tail
        self._stamp = stamp
        # the members
        self._groups: list[dict[Member, WebSocket]] = []
        self._group_of: dict[Member, dict[Member, WebSocket]] = {}  # of prompt members
        self._others: dict[Member, None] = {}  # those with a queue or a cursor
        self._joining: dict[Member, _Newcomer] = {}
        self._becoming_prompt: dict[Member, None] = {}
        # For each member that joined while items waited: the number of the last of these. The
        # member knows of changes of presence up to that one already.
        self._informed: dict[Member, int] = {}
        self._full: dict[Member, None] = {}  # those that hold up senders
        # what is delivered
        self._items: deque[_Item] = deque()
        self._last = 0  # number of the last item that was put
        self._finished = 0  # of the last one that everybody has
        self._slices: Iterator[None] | None = None  # of the item that has begun
        self._begun = 0  # how many items those are; several if they are changes of presence
        self._position = ""  # after that one
        self._position_before = ""
        self._unvisited_groups: list[dict[Member, WebSocket]] = []
        self._unvisited: deque[Member] = deque()
        self._is_advancing = False
        self._pump = 0  # the thread whose greenlet delivers the rest
        self._waiting: deque[tuple[int, Any, Event]] = deque()

    # -- the members

    def open(self, position: str, others: dict[str, dict[str, Any]]) -> None:
        self._position = self._position_before = position
        self.roster.open(others)
        self.tail.begin(position)

    def add(self, member: Member, position: str) -> None:
        """``position``: that of the last item so far; the member gets those after it."""
        self._add(member, self._last, position)

    def add_after_tail(self, member: Member) -> None:
        """Adds a member that has received the tail, which ends with the last item that has begun.
        Changes and disconnects that still wait do not concern it."""
        begun = self._finished + (self._begun if self._slices is not None else 0)
        if begun < self._last:
            self._informed[member] = self._last
        self._add(member, begun, self._position)

    def _add(self, member: Member, after: int, position: str) -> None:
        if self._finished == self._last:
            self._place(member)
        else:
            self._joining[member] = _Newcomer(after, position)

    def remove(self, member: Member) -> None:
        self.roster.stop_watching(member)
        self._joining.pop(member, None)
        self._informed.pop(member, None)
        self._becoming_prompt.pop(member, None)
        self._others.pop(member, None)
        self._leave_group(member)

    def settle(self, member: Member) -> None:
        if member in self._group_of:
            if not member._is_prompt:
                self._leave_group(member)
                self._others[member] = None
        elif member._is_prompt and member in self._others:
            del self._others[member]
            if self._slices is None:
                self._place(member)
            else:  # the groups gain nobody while they are being visited
                self._becoming_prompt[member] = None

    def position_of(self, member: Member) -> str:
        joining = self._joining.get(member)
        if joining is not None:
            return joining.position
        group = self._group_of.get(member)
        is_unvisited = member in self._unvisited or any(
            each is group for each in self._unvisited_groups
        )
        return self._position_before if is_unvisited else self._position

    def lagging(self) -> list[Member]:
        return [member for member in [*self._others, *self._joining] if member.is_lagging]

    def _place(self, member: Member) -> None:
        if not member._is_prompt:
            self._others[member] = None
            return
        group = next((each for each in self._groups if len(each) < _GROUP), None)
        if group is None:
            group = {}
            self._groups.append(group)
        group[member] = member.socket
        self._group_of[member] = group

    def _leave_group(self, member: Member) -> None:
        group = self._group_of.pop(member, None)
        if group is not None:
            del group[member]

    def _place_new_members(self, number: int) -> None:
        """Called before the items up to that number begin."""
        if self._becoming_prompt:
            for member in self._becoming_prompt:
                self._place(member)
            self._becoming_prompt.clear()
        if self._joining:
            for member, joining in list(self._joining.items()):
                if joining.after < number:
                    del self._joining[member]
                    self._place(member)
                    if joining.after > self._finished:
                        self._informed.setdefault(member, joining.after)
        if len(self._groups) > 1:
            self._groups = [group for group in self._groups if group]

    def _is_placed(self, member: Member) -> bool:
        return member in self._group_of or member in self._others or member in self._becoming_prompt

    # -- delivery

    def put(self, item: _Item) -> None:
        """Delivers as much as fits into this turn; a greenlet does the rest in later turns.
        ``wait`` waits for that."""
        self._items.append(item)
        self._last += 1
        # If many greenlets send to a large room in one turn, not each must deliver a slice.
        is_late = len(self._groups) > 1 and turns.is_over()
        if isinstance(item, Change) and self.roster.watching > _MANY:
            # The hub of a session's thread may end with it.
            hub = get_hub_if_exists()
            is_late = is_late or (hub is not None and hub.main_hub)
        if is_late or self._advance():
            self._go_on_here()

    def _go_on_here(self) -> None:
        """Starts a greenlet of this thread that delivers the rest."""
        if self._finished < self._last and self._pump != switching.thread_id():
            self._pump = switching.thread_id()
            gevent.spawn(self._go_on, self._pump)

    def _go_on(self, thread: int) -> None:
        while True:
            turns.end()
            with self.lock:
                if self._pump != thread:
                    return
                if not self._advance():
                    self._pump = 0
                    return

    def _advance(self) -> bool:
        """Delivers slices, at least one; returns whether some are left when the turn is over."""
        if self._is_advancing:  # called again by a send in a function of the application
            return False
        self._is_advancing = True
        try:
            while self._slices is not None or self._items:
                if self._slices is None:
                    self._slices = self._begin(self._items.popleft())
                try:
                    for _ in self._slices:
                        if turns.is_over():
                            return True
                except Exception:
                    _logger.exception("a message of the room %r was skipped", self.name)
                self._finish()
                if self._items and turns.is_over():
                    return True
            return False
        finally:
            self._is_advancing = False

    def _begin(self, item: _Item) -> Iterator[None]:
        self._begun = 1
        if isinstance(item, Change):
            changes = [item]
            while len(changes) < _CHANGES and self._items and isinstance(self._items[0], Change):
                changes.append(self._items.popleft())  # type: ignore[arg-type]
            self._begun = len(changes)
            self._place_new_members(self._finished + self._begun)
            return self._report(changes)
        self._place_new_members(self._finished + 1)
        if isinstance(item, Gap):
            return self._send_gap()
        if isinstance(item, Disconnect):
            return self._disconnect(item)
        self._position_before, self._position = self._position, item.position
        if item.data is None:
            self.tail.append(item.position, None)
            return self._move_on(item)
        return self._spread(item, item.data)

    def _finish(self) -> None:
        self._slices = None
        self._unvisited_groups = []
        self._unvisited = deque()
        self._finished += self._begun
        while self._informed and next(iter(self._informed.values())) <= self._finished:
            del self._informed[next(iter(self._informed))]
        if not self._items:  # or the next one does it
            self._place_new_members(self._finished + 1)
        while self._waiting and self._waiting[0][0] <= self._finished:
            _, loop, event = self._waiting.popleft()
            loop.run_callback_threadsafe(event.set)

    def _spread(self, entry: Entry, data: str | bytes) -> Iterator[None]:
        self._unvisited_groups = self._groups[::-1]
        self._unvisited = deque(self._others)
        message = None
        try:
            message = SharedMessage(self.stamped(entry.position, data))
        finally:
            self.tail.append(entry.position, message)
        while self._unvisited_groups:
            group = self._unvisited_groups.pop()
            taken, refused = offer_to_all(group, message, entry.exclude, entry.is_read)
            self.stats.delivered += taken + len(refused)
            for member in refused:
                member._put(message, data)
            yield
        while self._unvisited:
            member = self._unvisited.popleft()
            if self._is_placed(member) and member._receive(entry, message, self.stamped):
                self.stats.delivered += 1
            if not len(self._unvisited) % 16:
                yield

    def _move_on(self, entry: Entry) -> Iterator[None]:
        if self._others:
            nothing = SharedMessage("")
            for member in list(self._others):
                member._receive(entry, nothing, self.stamped)
        yield

    def _disconnect(self, item: Disconnect) -> Iterator[None]:
        meant = self._joined_before_this([*self._group_of, *self._others])
        for number, member in enumerate(meant):
            if self._is_placed(member) and item.member in (None, member.id, member.token):
                member._disconnect(item.code, item.reason)
            if number % 16 == 15:
                yield

    def _send_gap(self) -> Iterator[None]:
        self.tail.begin(None)
        for number, member in enumerate([*self._group_of, *self._others]):
            if self._is_placed(member):
                member._send_gap()
            if number % 16 == 15:
                yield

    def _report(self, changes: list[Change]) -> Iterator[None]:
        """Sends each watcher the changes since it joined, without its own."""
        ids = {change.who.id for change in changes}
        groups = 0
        for watch, members in self.roster.watchers():
            alike: dict[tuple[int, str], list[Member]] = {}
            for number, member in enumerate(members):
                if number % _GROUP == _GROUP - 1:
                    yield
                start = max(0, self._informed.get(member, 0) - self._finished)
                if start < len(changes):
                    own = member.id if member.id in ids else ""
                    alike.setdefault((start, own), []).append(member)
            made: dict[int, _Notice | None] = {}
            for (start, own), some in alike.items():
                groups += 1
                if not groups % 16:
                    yield
                notices = []
                for number, change in enumerate(changes[start:], start):
                    if change.who.id != own:
                        if number not in made:
                            made[number] = self._notice_of(watch, change)
                        notices.append(made[number])
                yield from self._send_all(
                    some, changes[-1].after, [each for each in notices if each is not None]
                )

    def _notice_of(self, watch: Watch, change: Change) -> _Notice | None:
        try:
            data = watch(change)
            if isinstance(data, dict):
                data = arguments.message(data)
        except Exception:
            _logger.exception("presence= of a member of the room %r failed", self.name)
            return None
        if data is not None and not isinstance(data, (str, bytes)):
            _logger.error(
                "presence= of a member of the room %r returned no message: %r",
                self.name,
                data,
            )
            return None
        stamped = None if data is None else self.stamped_or_skipped(self._position, data)
        return None if data is None or stamped is None else _Notice(SharedMessage(stamped), data)

    def _joined_before_this(self, members: list[Member]) -> list[Member]:
        """The members that joined before the current item was put."""
        if not self._informed:
            return members
        return [each for each in members if self._informed.get(each, 0) <= self._finished]

    def _send_all(
        self, members: list[Member], now: Moment | None, notices: list[_Notice]
    ) -> Iterator[None]:
        if not notices:
            for member in members:
                if member in self._others:
                    member._learn(now)
            return
        messages = [each.message for each in notices]
        batch = messages[0] if len(messages) == 1 else SharedBatch(messages)
        rest = iter(members)
        while some := list(islice(rest, _GROUP)):
            prompt = {member: member.socket for member in some if member in self._group_of}
            for member in some:
                if member not in prompt:
                    self._take_all(member, now, notices)
            taken, refused = offer_to_all(prompt, batch, None)
            self.stats.delivered += taken * len(notices)
            for member in refused:
                self._put_all(member, notices)
            yield

    def _take_all(self, member: Member, now: Moment | None, notices: list[_Notice]) -> None:
        """The member may be ahead of the others; its position must not go back."""
        if self._is_placed(member):
            member._learn(now)
        for each in notices:
            if self._is_placed(member):
                member._take(SharedMessage(self.stamped(member.position, each.data)), each.data)
                self.stats.delivered += 1

    def _put_all(self, member: Member, notices: list[_Notice]) -> None:
        for each in notices:
            if self._is_placed(member):
                member._put(each.message, each.data)
                self.stats.delivered += 1

    def stamped(self, position: str, data: str | bytes) -> str | bytes:
        return data if self._stamp is None else self._stamp(position, data)

    def stamped_or_skipped(self, position: str, data: str | bytes) -> str | bytes | None:
        """None, and logged, if the stamp raises: other programs may have written to the log."""
        try:
            return self.stamped(position, data)
        except Exception:
            _logger.exception("a message of the room %r was skipped", self.name)
            return None

    def wait(self) -> None:
        """Blocks until all items so far are delivered, and, if the turn is over, until the next.

        Does nothing where that is impossible: in a hub, in a thread without one, and where the lock
        is held.
        """
        hub: Any = get_hub_if_exists()
        if hub is None or getcurrent() is hub or self.lock._is_owned():
            return
        if self._finished == self._last:
            turns.end_if_over()
            return
        with self.lock:
            if self._finished == self._last:
                return
            event = Event()
            self._waiting.append((self._last, hub.loop, event))
        # With a timeout, since the hub may have nothing else to wait for, and the hub of the thread
        # that was to go on may have ended.
        while not event.wait(_TAKE_OVER_TIMEOUT):
            with self.lock:
                self._go_on_here()

    # -- members whose queue is full

    def hold_up(self, member: Member) -> None:
        self._full[member] = None

    def let_go(self, member: Member) -> None:
        self._full.pop(member, None)

    @property
    def is_held_up(self) -> bool:
        return bool(self._full)

    def wait_for_room(self) -> None:
        """Blocks a sender, but not a hub, while the queue of a member is full: of one with the
        policy ``block``, or one whose hub, in another thread, had no turn since."""
        hub = get_hub_if_exists()
        sleep = _sleep if hub is None else gevent.sleep
        while self._full and (hub is None or getcurrent() is not hub):
            with self.lock:
                member = next(iter(self._full), None)
                if member is None:
                    return
                left = member._make_room()
                interval = _HUB_POLL_INTERVAL if member._waits_for_hub else _POLL_INTERVAL
            if left:
                sleep(min(left, interval))
