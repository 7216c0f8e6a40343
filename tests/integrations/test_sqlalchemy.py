"""release(): sessions that wait hold no connection of the pool, and nothing is ever lost."""

from __future__ import annotations

import logging
import os
import urllib.request

import gevent
import pytest
import sqlalchemy
from sqlalchemy import ForeignKey, String, create_engine, event, func, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import QueuePool

from greenws import databases, waiting
from greenws.integrations.sqlalchemy import release

from ..support.idle import idle_sessions
from ..support.limits import eventually, limit, wait_until
from ..support.processes import PROGRAMS, Process, connect
from ..support.wire import TEXT, frame


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    posts: Mapped[list[Post]] = relationship(back_populates="user")


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(100))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    user: Mapped[User] = relationship(back_populates="posts")


Base.registry.configure()


@pytest.fixture(scope="module")
def urls(postgres, tmp_path_factory):
    return {
        "postgresql": postgres.url(),
        "psycopg2": postgres.url("psycopg2"),
        "sqlite": f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/database",
    }


only_postgresql = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)


@pytest.fixture(params=["postgresql", "sqlite"])
def engine(request, urls):
    made = create_engine(urls[request.param], poolclass=QueuePool, pool_size=5, max_overflow=0)
    Base.metadata.drop_all(made)
    Base.metadata.create_all(made)
    with Session(made) as session, session.begin():
        session.add(User(name="ada", posts=[Post(title="one"), Post(title="two")]))
    yield made
    made.dispose()


@pytest.fixture(autouse=True)
def unregister():
    before = list(waiting.functions)
    databases._warned.clear()
    yield
    waiting.functions[:] = before


@pytest.fixture
def factory(engine):
    return scoped_session(sessionmaker(engine))


@pytest.fixture
def session(factory):
    with factory() as made:
        yield made
    factory.remove()


@pytest.fixture
def wait(factory):
    """What a session does before it waits."""
    return release(factory)


def held(engine):
    return engine.pool.checkedout()


def ada(session):
    return session.scalars(select(User).where(User.name == "ada")).one()


# -- what is given back


@pytest.mark.parametrize("engine", ["postgresql", "psycopg2", "sqlite"], indirect=True)
def test_a_query_holds_no_connection_while_the_session_waits(engine, session, wait, caplog):
    user = ada(session)
    assert held(engine) == 1
    wait()
    assert held(engine) == 0
    assert user in session
    with Session(engine) as other, other.begin():
        ada(other).name = "Ada Lovelace"
    assert user.name == "Ada Lovelace"  # reloaded
    assert [post.title for post in user.posts] == ["one", "two"]
    wait()
    assert held(engine) == 0
    assert caplog.records == []


@pytest.mark.parametrize(
    "statement",
    [
        select(func.count()).select_from(User),
        select(User).join(Post).where(func.lower(User.name).in_(["ada", "bob"])).distinct(),
        select(select(User.id).cte("users_of", recursive=True).c.id),
        select(func.coalesce(User.name, ""), func.row_number().over(order_by=User.id)),
        text("SELECT name FROM users WHERE name = :name").bindparams(name="FOR UPDATE"),
        text("-- INSERT INTO\nSELECT 'it''s; DELETE' AS \"update\""),
    ],
    ids=range(6),
)
def test_plain_selects_of_many_kinds(engine, session, wait, statement):
    session.execute(statement).all()
    wait()
    assert held(engine) == 0


def test_after_a_commit_or_a_rollback_a_new_transaction_begins(engine, session, wait):
    for end in (session.commit, session.rollback):
        session.add(User(name="bob"))
        session.flush()
        end()
        ada(session)
        wait()
        assert held(engine) == 0


def test_a_lazy_load_and_a_refresh(engine, session, wait):
    user = ada(session)
    session.refresh(user)
    assert len(user.posts) == 2
    wait()
    assert held(engine) == 0


def test_a_result_that_was_read_or_dropped(engine, session, wait):
    result = session.execute(select(Post.title))
    assert len(result.all()) == 2
    wait()
    assert held(engine) == 0
    iter(session.scalars(select(Post))).__next__()  # and nobody has the rest
    wait()
    assert held(engine) == 0
    first = session.connection().exec_driver_sql("SELECT 1")
    assert first.scalar() == 1
    del first
    wait()
    assert held(engine) == 0


# -- what is kept


def do_flush(session):
    session.add(User(name="bob"))
    session.flush()


def do_change(session):
    ada(session).name = "bob"


def do_delete(session):
    session.delete(session.scalars(select(Post)).first())


def do_autoflush(session):
    session.add(User(name="bob"))
    ada(session)


def do_without_autoflush(session):
    with session.no_autoflush:
        session.add(User(name="bob"))
        ada(session)


def do_cascade(session):
    user = ada(session)
    user.posts.append(Post(title="three"))


def do_bulk(session):
    session.bulk_insert_mappings(User, [{"name": "bob"}])


def do_core(session):
    session.execute(sqlalchemy.update(User).values(name="bob"))


def do_text(session):
    session.execute(text("DELETE FROM posts"))


def do_driver_sql(session):
    session.connection().exec_driver_sql("INSERT INTO users (name) VALUES ('bob')")


def do_raw_driver(session):
    cursor = session.connection().connection.cursor()
    cursor.execute("INSERT INTO users (name) VALUES ('bob')")
    cursor.close()


def do_savepoint(session):
    with session.begin_nested():
        session.add(User(name="bob"))


def do_select_then_add(session):
    ada(session)
    session.add(User(name="bob"))


@pytest.mark.parametrize("do", [value for name, value in globals().items() if name[:3] == "do_"])
def test_uncommitted_work_is_kept(engine, factory, session, wait, caplog, do):
    counts = select(func.count(User.id), func.max(User.name), func.count(Post.id)).outerjoin(Post)
    do(session)
    wait()
    session.commit()
    after = session.execute(counts).one()
    session.commit()
    with Session(engine) as other:
        assert other.execute(counts).one() == after
    assert after != (2, "ada", 2)
    assert caplog.records and caplog.records[0].name == "greenws.session"
    assert "keeps its database connection while it waits" in caplog.text


def test_objects_that_wait_for_a_flush_without_a_connection(engine, session, wait, caplog):
    session.add(User(name="bob"))
    wait()
    assert held(engine) == 0
    session.commit()
    assert session.scalar(select(func.count(User.id))) == 2
    assert caplog.records == []


@only_postgresql
@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("SELECT * FROM users FOR UPDATE", "not a plain SELECT"),
        ("SELECT * FROM users FOR SHARE", "not a plain SELECT"),
        ("SELECT pg_advisory_xact_lock(1)", "not a plain SELECT"),
        ("SELECT pg_notify('a', 'b')", "not a plain SELECT"),
        ("SELECT set_config('a.b', 'c', true)", "not a plain SELECT"),
        ("SET LOCAL statement_timeout = 5000", "not a plain SELECT"),
        ("SELECT * INTO TEMPORARY copied FROM users", "not a plain SELECT"),
        ("WITH gone AS (DELETE FROM posts RETURNING *) SELECT * FROM gone", "not a plain SELECT"),
        ("SELECT * FROM a_view_that_writes", "wrote something"),
    ],
)
def test_what_looks_like_reading_but_is_not(engine, session, wait, caplog, statement, reason):
    with engine.begin() as connection:
        for line in (
            "DROP VIEW IF EXISTS a_view_that_writes",
            "CREATE OR REPLACE FUNCTION writes() RETURNS bigint LANGUAGE sql AS "
            "$$ INSERT INTO users (name) VALUES ('by a view') RETURNING id $$",
            "CREATE VIEW a_view_that_writes AS SELECT writes() AS id",
        ):
            connection.exec_driver_sql(line)
    session.execute(text(statement)).close()
    wait()
    assert held(engine) == 1
    assert reason in caplog.text
    session.rollback()
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP VIEW a_view_that_writes")


@only_postgresql
def test_for_update_of_the_orm(engine, session, wait, caplog):
    session.scalars(select(User).with_for_update()).all()
    wait()
    assert held(engine) == 1
    assert "FOR UPDATE" in caplog.text


def test_a_result_that_is_still_read(engine, session, wait, caplog):
    result = session.connection().execute(select(Post.title).order_by(Post.id))
    assert result.fetchone() == ("one",)
    wait()
    assert held(engine) == 1
    assert result.fetchone() == ("two",)
    result.close()
    wait()
    assert held(engine) == 0
    assert "a result was not read to its end" in caplog.text


def test_a_result_that_the_orm_has_read_ahead(engine, session, wait):
    result = session.scalars(select(Post).order_by(Post.id))
    assert result.first().title == "one"
    result = session.scalars(select(Post).order_by(Post.id))
    assert next(result).title == "one"
    wait()
    assert held(engine) == 0
    assert next(result).title == "two"


def test_a_server_side_cursor(engine, session, wait):
    titles = []
    for post in session.scalars(select(Post).order_by(Post.id).execution_options(yield_per=1)):
        wait()
        assert held(engine) == 1
        titles.append(post.title)
    wait()
    assert titles == ["one", "two"]
    assert held(engine) == 0


def test_an_unread_result_of_driver_sql(engine, session, wait):
    result = session.connection().exec_driver_sql("SELECT title FROM posts")
    wait()
    assert held(engine) == 1
    assert len(result.all()) == 2


def test_a_transaction_that_was_begun_explicitly(engine, session, wait, caplog):
    with session.begin():
        ada(session)
        wait()
        assert held(engine) == 1
    assert "begun explicitly" in caplog.text


def test_an_open_savepoint(engine, session, wait):
    ada(session)
    with session.begin_nested():
        ada(session)
        wait()
        assert held(engine) == 1
    wait()
    assert held(engine) == 0


def test_another_isolation_level(engine, factory, caplog):
    strict = scoped_session(sessionmaker(engine.execution_options(isolation_level="SERIALIZABLE")))
    wait = release(strict)
    ada(strict())
    wait()
    assert held(engine) == 1
    strict.remove()
    assert "isolation level" in caplog.text


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_an_isolation_level_of_the_engine(engine, caplog):
    strict = create_engine(engine.url, isolation_level="SERIALIZABLE", poolclass=QueuePool)
    session = Session(strict)
    wait = release(session)
    ada(session)
    wait()
    assert held(strict) == 1
    session.close()
    strict.dispose()
    assert "SERIALIZABLE" in caplog.text


@only_postgresql
def test_the_default_of_a_column_that_is_executed_beside(engine, session, wait):
    sequence = sqlalchemy.Sequence("numbers")
    with engine.begin() as connection:
        sequence.create(connection)
    assert session.scalar(sequence) == 1
    wait()
    assert held(engine) == 1  # nextval() is not a plain SELECT
    session.rollback()
    with engine.begin() as connection:
        sequence.drop(connection)


def test_an_external_transaction(engine, caplog):
    with engine.connect() as connection, connection.begin() as transaction:
        joined = Session(connection)
        wait = release(joined)
        ada(joined)
        wait()
        assert transaction.is_active
        joined.close()
    assert "not its own" in caplog.text


def test_a_session_whose_transactions_somebody_watches(engine, factory, session, wait, caplog):
    queue = []
    event.listen(session, "after_rollback", lambda session: queue.clear())
    ada(session)
    queue.append("what to do after the commit")
    wait()
    assert held(engine) == 1
    assert queue
    assert "after_rollback" in caplog.text


def test_a_session_that_another_greenlet_works_with(engine, session, wait, caplog):
    ada(session)
    gevent.spawn(ada, session).get(timeout=limit())
    wait()
    assert held(engine) == 1
    assert "another greenlet" in caplog.text


def test_a_failed_flush_waits_for_the_program_s_rollback(engine, session, wait):
    session.add(Post(title="of nobody", user_id=None))
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        session.flush()
    wait()
    with pytest.raises(sqlalchemy.exc.PendingRollbackError):
        ada(session)


@only_postgresql
def test_a_lost_connection_of_the_database(engine, session, wait, postgres, caplog):
    ada(session)
    postgres.call(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND state LIKE 'idle in transaction%'"
    )
    wait()
    assert "its state is unknown" in caplog.text
    session.invalidate()
    assert ada(session).name == "ada"


def test_the_warning_comes_once_for_each_line_of_code(session, wait, caplog):
    do_flush(session)
    for _ in range(3):
        wait()
    wait()
    first, second = caplog.records
    assert first.levelno == second.levelno == logging.WARNING
    assert "INSERT INTO users" in first.getMessage()
    assert __file__ in first.getMessage()


# -- whose sessions


def test_outside_an_application_context_nothing_happens():
    def scope():
        raise RuntimeError("Working outside of application context.")

    release(scoped_session(sessionmaker(), scopefunc=scope))()


def test_it_registers_itself_once(factory):
    hook = release(factory)
    assert release(factory) is hook
    assert waiting.functions.count(hook) == 1


def test_a_sessionmaker_means_all_its_sessions_of_this_greenlet(engine):
    factory, other = sessionmaker(engine), sessionmaker(engine)
    wait = release(factory)
    with factory() as one, factory() as two, other() as three:
        ada(one), ada(two), ada(three)
        gevent.spawn(wait).get(timeout=limit())
        assert held(engine) == 3
        wait()
        assert held(engine) == 1


def test_a_session_or_a_class_of_sessions(engine):
    class Ours(Session):
        pass

    for target in (Ours, made := Ours(engine)):
        with made:
            ada(made)
            release(target)()
            assert held(engine) == 0


@pytest.mark.parametrize(
    "wrong", [None, "session", async_sessionmaker(), create_engine("sqlite://")]
)
def test_anything_else_is_refused(wrong):
    with pytest.raises(TypeError, match=r"release\(\) takes a scoped_session"):
        release(wrong)


def test_two_databases_are_given_back_together_or_not_at_all(engine, urls):
    second = create_engine(urls["sqlite"] + "-2", poolclass=QueuePool)
    Base.metadata.create_all(second)
    factory = scoped_session(sessionmaker(binds={User: engine, Post: second}))
    wait = release(factory)
    for post in ([], [Post(title="x", user_id=1)]):
        factory.add_all(post)
        ada(factory())
        factory.scalars(select(Post)).all()
        wait()
        assert held(engine) == held(second) == len(post)
    factory.remove()
    second.dispose()


@only_postgresql
def test_a_kill_while_the_server_is_asked(engine, session, wait, monkeypatch):
    """The connection, in the middle of an answer, is not given to anybody else."""
    ada(session)
    monkeypatch.setattr(
        "greenws.integrations.sqlalchemy._POSTGRESQL",
        "SELECT {}() IS NULL, pg_sleep(60)::text = ''",
    )
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        _interruptible(session)
        wait()
    assert held(engine) == 0
    monkeypatch.undo()
    assert ada(session).name == "ada"


def _interruptible(session):
    """Has psycopg wait through gevent's socket, as it does in a patched process."""
    connection = session.connection().connection.dbapi_connection
    original = connection.wait

    def wait(generator, *args, **options):
        gevent.sleep(0.2)
        return original(generator, *args, **options)

    connection.wait = wait


def test_a_real_wait_calls_it(engine, factory, pair):
    release(factory)
    socket, peer = pair()

    def session():
        user = ada(factory())
        user_name = socket.receive()
        factory().add(User(name=user_name))
        socket.receive()
        factory.commit()
        factory.remove()
        return user

    running = gevent.spawn(session)
    wait_until(lambda: socket._transport.greenlet is running)
    assert held(engine) == 0
    peer.send(frame(TEXT, b"bob"))
    wait_until(lambda: not socket._has_unread_input())
    peer.send(frame(TEXT, b"go on"))
    running.get(timeout=limit())
    with Session(engine) as other:
        assert set(other.scalars(select(User.name))) == {"ada", "bob"}


# -- Flask-SQLAlchemy, on a server


@pytest.fixture(scope="module")
def program(postgres):
    with Process(PROGRAMS / "database_app.py", postgres.url()) as process:
        yield process.wait_for_port()


def get(process, path):
    with urllib.request.urlopen(process.url(path, "http"), timeout=limit(20)) as response:
        return response.read().decode()


def test_idle_sessions_of_flask_sqlalchemy_hold_no_connection(program):
    """GREENWS_IDLE_SESSIONS=2000 for the figure that the documentation gives."""
    count = int(os.environ.get("GREENWS_IDLE_SESSIONS", "100"))
    with idle_sessions(program.address, "/ws", count, b"count", b"0"):
        eventually(lambda: get(program, "/held"), "0")
        assert get(program, "/page") == "0"
    assert "keeps its database connection" not in program.output


def test_uncommitted_work_of_flask_sqlalchemy_is_kept(program):
    with connect(program.url("/ws")) as ws:

        def ask(message):
            ws.send(message)
            return ws.recv(timeout=limit())

        assert ask("add one") == "1"  # flushed by the query
        assert ask("count one") == "1"
        eventually(lambda: get(program, "/held"), "1")
        assert ask("commit one") == "1"
        eventually(lambda: get(program, "/held"), "0")
        assert get(program, "/page") == "1"
        assert ask("add two") == "1"
    eventually(lambda: get(program, "/held"), "0")
    assert get(program, "/page") == "1"  # what nobody committed
    program.wait_for("INSERT INTO note .* which is not a plain SELECT")


def test_sqlalchemy_1_is_refused_with_what_to_do(tmp_path):
    """Imitated by the names that it lacks."""
    (tmp_path / "old.py").write_text(
        "import sqlalchemy, sqlalchemy.orm.session as orm\n"
        "sqlalchemy.__version__ = '1.4.54'; del orm.SessionTransactionOrigin\n"
        "import greenws.integrations.sqlalchemy"
    )
    with Process(tmp_path / "old.py") as process:
        process.wait_for("ImportError: .* needs SQLAlchemy 2, and 1.4.54 is installed: pip install")
