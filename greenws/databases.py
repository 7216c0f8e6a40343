"""The statements after which a database connection may be given back, and the warning if it is
kept.

The integrations of SQLAlchemy and Django share this. It uses no database library, only SQL. A
statement counts as harmless if every word of it is known to be harmless; an unusual one does not.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
import sys

__all__ = ["is_plain_select", "leaves_nothing", "warn_kept"]

_logger = logging.getLogger("greenws.session")

_warned: set[tuple[str, int]] = set()

# No branch matches "$$", a semicolon, the beginning of a comment that some database executes, or a
# backslash, except in PostgreSQL's E'...' where no quote follows it: a statement with one of these
# is not analysed.
_TOKEN = re.compile(
    r"""
    (?P<space> \s+ | --(?=\s|\Z)[^\n]* | /\*(?!M?!|\+)(?:(?!/\*|\*/).)*\*/ )
  | (?P<escape> (?<=ESCAPE\ )'\\' )
  | (?P<string> (?:\b[enbxu]&?)?'(?:[^'\\]|'')*' | \be'(?:[^'\\]|''|\\[^'])*' )
  | (?P<quoted> "(?:[^"\\]|"")*" | `[^`\\]*` )
  | (?P<value> %\(\w+\)s | %s | (?<!:):[a-z_]\w* | \$\d+ | \?(?!\?) | \d[\w.]* )
  | (?P<cast> :: )
  | (?P<word> [^\W\d]\w* )
  | (?P<sign> /(?!\*) | -(?!-) | [+*<>=~!@\#%^&|,.()\[\]{}:?] )
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

# Django's QuerySet.explain(), which profilers such as django-silk use.
_EXPLAIN = re.compile(
    r"EXPLAIN(?: QUERY PLAN| ANALYZE| VERBOSE| FORMAT ?= ?\w+| \([\w ,]*\))*(?= )", re.IGNORECASE
)

_WRITING = {"insert", "update", "delete", "merge", "into", "nextval", "procedure"}

# Words of SQL that may precede a parenthesis and are not functions.
_KEYWORDS = set(
    """all and any array as between by case conflict distinct else end except exists filter from
    group having ilike in intersect is join lateral like limit not offset on or order over partition
    row rows select similar some then to union using values when where within""".split()
)

# Functions that only compute. Functions of the application are not here, and neither are those that
# lock, notify, advance a sequence or set something.
_FUNCTIONS = set(
    """abs acos age array_agg array_length array_to_string ascii asin atan atan2 avg bit_and
    bit_length bit_or bit_xor bool_and bool_or btrim cardinality cast cbrt ceil ceiling char
    char_length character_length chr coalesce collate concat concat_ws convert corr cos cot count
    covar_pop covar_samp cume_dist current_database current_date current_schema current_time
    current_timestamp current_user curdate curtime date date_add date_format date_part date_sub
    date_trunc datediff datetime day dayofmonth dayofweek dayofyear decimal decode degrees
    dense_rank every exp extract first_value floor format from_unixtime gen_random_uuid
    generate_series get_byte greatest group_concat grouping hex hour if ifnull iif initcap instr
    interval isnull json json_agg json_array json_array_length json_build_array json_build_object
    json_contains json_each json_extract json_extract_path json_extract_path_text json_group_array
    json_group_object json_keys json_length json_object json_object_agg json_quote json_type
    json_unquote json_valid jsonb_agg jsonb_array_elements jsonb_array_elements_text
    jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
    jsonb_extract_path jsonb_extract_path_text jsonb_object_agg jsonb_object_keys jsonb_path_exists
    jsonb_path_query jsonb_set jsonb_typeof julianday lag last_value lcase lead least left length ln
    localtime localtimestamp locate log log10 log2 lower lpad ltrim make_date make_interval
    make_timestamp make_timestamptz max md5 microsecond mid min minute mod month now nth_value ntile
    nullif num_nonnulls num_nulls numeric nvarchar octet_length overlay percent_rank percentile_cont
    percentile_disc plainto_tsquery phraseto_tsquery pi position pow power printf quarter radians
    rand random rank regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array
    regexp_split_to_table regexp_substr repeat replace reverse right round row_number row_to_json
    rpad rtrim second sha1 sha224 sha256 sha384 sha512 sign sin split_part sqrt statement_timestamp
    stddev stddev_pop stddev_samp str_to_date strftime strict_word_similarity string_agg
    string_to_array strpos substr substring substring_index sum tan time timediff timestamp
    timestampdiff timezone to_char to_date to_json to_jsonb to_number to_timestamp to_tsquery
    to_tsvector total translate trim trunc truncate ts_headline ts_rank ts_rank_cd typeof ucase
    unicode unix_timestamp unnest upper utc_timestamp uuid_generate_v4 var_pop var_samp varchar
    variance version week weekday websearch_to_tsquery width_bucket word_similarity similarity
    unaccent year""".split()
)
_FUNCTION_PREFIXES = ("django_", "st_")  # Django's own in SQLite; PostGIS


@functools.lru_cache(maxsize=1000)
def is_plain_select(statement: str) -> bool:
    """Whether ``statement`` only reads: one SELECT (or WITH), without locks (FOR UPDATE), without
    INTO, without a writing CTE, and with no functions except those known to only compute."""
    words = _words(statement)
    if not words:
        return False
    first = next((word for word in words if word != "("), "")
    return (
        first in ("select", "with")
        and _WRITING.isdisjoint(words)
        and _only_computes(words)
        and not _locks(words)
    )


@functools.lru_cache(maxsize=1000)
def leaves_nothing(statement: str) -> bool:
    """Whether ``statement`` leaves no state in its connection after its transaction: a SELECT (even
    with locks), INSERT, UPDATE or DELETE, with functions that only compute, or EXPLAIN of one."""
    explain = _EXPLAIN.match(statement)
    words = _words(statement if explain is None else statement[explain.end() :])
    first = next((word for word in words if word != "("), "")
    if first not in ("select", "with", "insert", "update", "delete"):
        return False
    makes_table = any(
        word == "into" and (index == 0 or words[index - 1] not in ("insert", "merge"))
        for index, word in enumerate(words)
    )
    return not makes_table and _only_computes(words)


def _words(statement: str) -> list[str]:
    """The words and signs of ``statement``, in lower case; empty if it cannot be analysed."""
    words = []
    position = 0
    text = statement.rstrip().rstrip(";")
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return []
        position = match.end()
        kind = match.lastgroup
        if kind in ("word", "sign", "cast"):
            words.append(match[0].lower())
        elif kind != "space":
            words.append(f"<{kind}>")
    return words


def _locks(words: list[str]) -> bool:
    """Whether rows are locked until the transaction ends."""
    pairs = set(itertools.pairwise(words))
    return ("lock", "in") in pairs or any(
        ("for", word) in pairs for word in ("update", "share", "no", "key")
    )


def _only_computes(words: list[str]) -> bool:
    """Whether no function in ``words`` is unknown, and no variable is set."""
    for index, word in enumerate(words):
        following = words[index + 1 : index + 2]
        if word == "value" and following == ["for"]:  # NEXT VALUE FOR a sequence
            return False
        if word in ("@", ":") and following == ["="] or word == "@" and _is_variable(words, index):
            return False  # variables of MySQL
        if word == "(" and index and not _may_open(words, index):
            return False
    return True


def _is_variable(words: list[str], index: int) -> bool:
    """Whether the ``@`` at ``index`` begins a name: ``@a`` or ``@@a``, not PostgreSQL's operator
    ``@@`` before ``to_tsquery(...)``."""
    is_second = words[index - 1 : index] == ["@"]
    return _is_name(words[index + 1 : index + 2]) and not (
        is_second and words[index + 2 : index + 3] == ["("]
    )


def _is_name(words: list[str]) -> bool:
    return bool(words) and (words[0][0].isalpha() or words[0][0] == "_")


def _may_open(words: list[str], index: int) -> bool:
    """Whether the parenthesis at ``index`` does not begin the arguments of an unknown function."""
    name = words[index - 1]
    before = words[index - 2] if index > 1 else ""
    if name == "<quoted>" or name == "]":
        return before == "as" or _names_columns(words, index)
    if not _is_name([name]) or name in _KEYWORDS:
        return True
    if before in ("as", "::") or _names_columns(words, index):
        return True
    if before == "." and words[index - 3] != "pg_catalog":
        return False
    return name in _FUNCTIONS or name.startswith(_FUNCTION_PREFIXES)


def _names_columns(words: list[str], index: int) -> bool:
    """Whether column names follow: ``WITH name (a, b) AS (``, ``INSERT INTO name (a, b)``."""
    before = words[max(0, index - 6) : index - 1]
    while before and (before[-1] == "." or before[-1] == "<quoted>" or before[-2:-1] == ["into"]):
        before.pop()
    return before[-1:] == ["into"] or before == ["with"] or before[-2:] == ["with", "recursive"]


def warn_kept(reason: str) -> None:
    """Logs why a connection is kept, once for each line of code that waits."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    line = (frame.f_code.co_filename, frame.f_lineno)
    if line in _warned:
        return
    _warned.add(line)
    _logger.warning(
        "%s, line %d, keeps its database connection while it waits: %s. Commit or roll back before "
        "the wait.",
        *line,
        reason,
    )


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("greenws", "gevent", "greenlet", "sqlalchemy")
