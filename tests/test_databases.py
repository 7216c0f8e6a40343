"""Which SQL leaves no state in a connection, and the warning about a connection that is kept."""

from __future__ import annotations

import pytest

from greenws.databases import is_plain_select, leaves_nothing, warn_kept

pytestmark = pytest.mark.no_io


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1",
        "select users.id, users.name \nFROM users \nWHERE users.id = %(pk_1)s",
        "SELECT count(*) AS count_1 FROM (SELECT a FROM b WHERE x IN (?, ?)) AS anon_1",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM t) SELECT * FROM t",
        "WITH a AS (SELECT 1), b AS MATERIALIZED (SELECT 2) SELECT * FROM a, b",
        "SELECT x::numeric(10, 2), CAST(y AS VARCHAR(20)), 'it''s FOR UPDATE; delete'\n"
        'FROM "update" -- insert into',
        "SELECT a /* delete */ FROM b;",
        "(SELECT 1) UNION (SELECT 2)",
        "SELECT substring(a FROM 1 FOR 3), x->>'a', y @> %s FROM t WHERE t.b = ANY(%s)",
        "SELECT pg_catalog.lower(a) FROM t",
        "SELECT a FROM t WHERE a LIKE %s ESCAPE '\\' AND NOT (b LIKE 'x')",
        "SELECT EXTRACT(year FROM x), now(), row_number() OVER (PARTITION BY a) FROM c",
        'SELECT "u"."id" FROM "u" WHERE UPPER("u"."name"::text) = UPPER(%s) LIMIT 21',
        "SELECT a FROM (VALUES (1, 2)) AS t (a, b)",
        "SELECT a FROM b WHERE to_tsvector(a) @@ (plainto_tsquery(%s)) OR a @@ to_tsquery(%s)",
        # Django's icontains with an expression
        r"SELECT a FROM b WHERE a LIKE REPLACE(c, E'\\', E'\\\\') || REPLACE(c, E'_', E'\\_')",
        "SELECT ATAN2(a, b), COT(a), RAND(), GROUPING(a) FROM b",
        "SELECT django_date_trunc(%s, x, 'UTC', 'UTC') FROM t",
        "SELECT a[1], ARRAY[1, 2], array(SELECT 1) FROM t WHERE NOT (a) AND (a, b) IN ((1, 2))",
    ],
)
def test_plain_selects(statement):
    assert is_plain_select(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "",
        "INSERT INTO x VALUES (1)",
        "SET x = 1",
        "BEGIN",
        "EXPLAIN SELECT 1",
        "VALUES (1)",
        "SELECT 1; DELETE FROM x",
        # locks
        "SELECT 1 FOR UPDATE",
        "SELECT 1 FOR NO KEY UPDATE",
        "SELECT a FROM t for /* x */ share",
        "SELECT a FROM t LOCK IN SHARE MODE",
        "SELECT a FROM t WITH (UPDLOCK)",
        "SELECT pg_advisory_xact_lock(1)",
        # writes
        "WITH a AS (DELETE FROM b RETURNING *) SELECT * FROM a",
        "SELECT a INTO b FROM c",
        "SELECT nextval('x')",
        "SELECT NEXT VALUE FOR s",
        "SELECT s.nextval FROM dual",
        # functions that may do anything
        "SELECT my_function(1)",
        "SELECT my_function (1)",
        "SELECT (my_function(1))",
        'SELECT "MyFunction"(1)',
        "SELECT [f](1)",
        "SELECT app.count(1)",
        "SELECT pg_catalog.pg_notify('a', 'b')",
        "SELECT set_config('a', 'b', true)",
        "SELECT a FROM t, my_function(1) AS (x int)",
        "WITH x(a) AS (SELECT my_function(1)) SELECT 1",
        # what hides a function from who reads the text
        "SELECT 'a\\', my_function(1), '",
        "SELECT $$ ' $$, my_function(1), $$ ' $$",
        "SELECT /*! my_function(1) */ 1",
        "SELECT /*M! my_function(1) */ 1",
        "SELECT /* /* */ my_function(1) */ 1",
        "SELECT 5--my_function(1)",
        "SELECT 'unterminated",
        # variables
        "SELECT @x := 1",
        "SELECT @@x",
        "SELECT a @@ my_function(b)",
        r"SELECT E'\'', my_function(1), ''",
        r"SELECT E'\\\'', my_function(1), ''",
        r"SELECT E'\\', my_function(1), ''",
    ],
)
def test_whatever_else(statement):
    assert not is_plain_select(statement)


@pytest.mark.parametrize(
    "statement",
    [
        'INSERT INTO "a_b" ("x", "y") VALUES (%s, %s) RETURNING "a_b"."id"',
        "INSERT INTO a.b (x) SELECT y FROM c",
        "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 2",
        'UPDATE "a" SET "x" = COALESCE("x", %s) WHERE "id" IN (%s)',
        "DELETE FROM a WHERE id = %s",
        "SELECT a FROM b FOR UPDATE OF b",
        "SELECT a FROM b LOCK IN SHARE MODE",
        "EXPLAIN SELECT a FROM b",
        "EXPLAIN QUERY PLAN UPDATE a SET b = 1",
        "EXPLAIN (FORMAT JSON, ANALYZE true) SELECT a FROM b",
        "EXPLAIN FORMAT=TREE DELETE FROM a",
        "WITH gone AS (DELETE FROM b RETURNING *) INSERT INTO c SELECT * FROM gone",
    ],
)
def test_what_leaves_nothing_after_its_transaction(statement):
    assert leaves_nothing(statement)
    assert not is_plain_select(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO a (x) VALUES (my_function(1))",
        "UPDATE a SET x = pg_advisory_lock(1)",
        "CREATE TEMPORARY TABLE x (a int)",
        "LOCK TABLE x",
        "EXPLAIN ANALYZE SELECT my_function(1)",
        "EXPLAIN (ANALYZE) CREATE TEMPORARY TABLE x AS SELECT 1",
        "EXPLAIN ANALYZE EXECUTE x",
        "EXPLAIN SELECT 1; LISTEN x",
        "EXPLAIN",
        "LISTEN x",
        "SELECT pg_advisory_lock(1)",
        "SELECT a INTO TEMPORARY b FROM c",
        "",
    ],
)
def test_what_may_leave_something(statement):
    assert not leaves_nothing(statement)


def test_a_kept_connection_is_reported_once_for_each_line(caplog):
    for _ in range(3):
        warn_kept("the first line")
    warn_kept("the second line")
    first, second = caplog.records
    assert first.levelname == "WARNING"
    assert __file__ in first.getMessage() and "the first line" in first.getMessage()
    assert "the second line" in second.getMessage()
