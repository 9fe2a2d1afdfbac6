"""Passwords in URLs: masked, dropped, put back; read by SQLAlchemy's own parser as the reference."""

import pytest
from sqlalchemy.engine import make_url

from autoprune import passwords
from autoprune.passwords import VARIABLE, has_password, hide, masked, place_of, with_password

SECRET = "s3cr3t-pw"
URLS = {
    f"postgresql+psycopg2://me:{SECRET}@host:5432/db": "postgresql+psycopg2://me:***@host:5432/db",
    f"mysql://me:{SECRET}@host/db?charset=utf8": "mysql://me:***@host/db?charset=utf8",
    f"redis://:{SECRET}@host:6379/0": "redis://:***@host:6379/0",
    f"postgresql://host/db?user=me&password={SECRET}&sslmode=x": "postgresql://host/db?user=me&password=***&sslmode=x",
    f"postgresql://me@host/db?sslpassword={SECRET}": "postgresql://me@host/db?sslpassword=***",
    f"postgresql://me@/db?host=/tmp&PassWD={SECRET}": "postgresql://me@/db?host=/tmp&PassWD=***",
    f"postgresql://h/db?pass%77ord={SECRET}": "postgresql://h/db?pass%77ord=***",
    f"sqlite:///file:a.db?uri=true&password={SECRET}": "sqlite:///file:a.db?uri=true&password=***",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}%3B": "mssql+pyodbc:///?odbc_connect=***",
    f"postgresql://me:{SECRET}%40%2F%3A@[::1]:5432/db": "postgresql://me:***@[::1]:5432/db",
    f"postgresql://me:{SECRET}?x@host/db": "postgresql://me:***@host/db",
    f"postgresql://me:a@{SECRET}/b@host/db?x=a@b": "postgresql://me:***@host/db?x=a@b",
    f"me:{SECRET}@host/db": "me:***@host/db",
}  # fmt: skip
WITHOUT = [
    "sqlite:///study.db",
    "sqlite:////data/a:b@c/study.db",
    "postgresql://me@host:5432/db?passfile=/home/me/.pgpass",
    "postgresql://host/db?application_name=a@b",
    "ok.db",
    "",
]


@pytest.fixture(autouse=True)
def no_passwords_are_known(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(passwords, "_known", {})


@pytest.mark.parametrize(("url", "expected"), URLS.items())
def test_a_password_is_masked_and_all_else_stays(url, expected):
    assert masked(url) == masked(expected) == expected
    assert has_password(url)
    assert not has_password(expected)
    assert place_of(url) == place_of(expected)
    assert "***" not in place_of(url)
    assert SECRET not in place_of(url)


@pytest.mark.parametrize("url", WITHOUT)
def test_what_has_no_password_is_left_as_it_is(url):
    assert masked(url) == place_of(url) == with_password(url) == url
    assert not has_password(url)


@pytest.mark.parametrize("url", [url for url in URLS if "://" in url and "a@" not in url])
def test_what_remains_is_what_sqlalchemy_reads(url):
    """Host, user, database and the other parameters are untouched."""
    whole, shown = make_url(url), make_url(masked(url))
    for name in ("drivername", "username", "host", "port", "database"):
        assert getattr(shown, name) == getattr(whole, name)
    assert shown.password in (None, "***")
    assert SECRET not in shown.render_as_string(hide_password=False)


@pytest.mark.parametrize("url", URLS)
def test_a_text_that_quotes_the_url_or_the_password_hides_it(url):
    texts = [f"cannot open {url}: refused", f"invalid dsn: password={SECRET} host=x"]
    if "%40" not in url:  # there it is a part of the password
        texts += [f"got {SECRET!r}", f'could not translate host name "{SECRET}/b@host"']
    for text in texts:
        assert SECRET not in hide(text, url)
    assert hide("refused at host:5432", url) == "refused at host:5432"


def test_an_encoded_password_is_hidden_in_both_forms():
    url = "postgresql://me:p%40ss%20w%C3%B6rd@host/db"
    assert hide("a p%40ss%20w%C3%B6rd b p@ss wörd c", url) == "a *** b *** c"


def test_urls_in_any_text_are_masked():
    text = "failed for url: http://me:pw@host/api, and 'postgresql://a:b@h/d'"
    assert hide(text) == "failed for url: http://me:***@host/api, and 'postgresql://a:***@h/d'"
    assert hide("see https://pytorch.org/docs: 3 of 4 @ 5") == "see https://pytorch.org/docs: 3 of 4 @ 5"


def test_the_password_comes_from_the_command_the_environment_or_what_was_given_before(monkeypatch):
    own, stored = "postgresql://me:one@host/db", "postgresql://me:***@host/db"
    assert with_password(stored) == "postgresql://me@host/db"  # the driver's password file has it
    assert with_password(own) == own
    assert with_password(stored) == with_password("postgresql://me@host/db") == own
    assert with_password("postgresql://me:***@other/db") == "postgresql://me@other/db"
    monkeypatch.setenv(VARIABLE, "postgresql://me:two@host/db")
    assert with_password(stored) == "postgresql://me:two@host/db"
    assert with_password(own) == own
    monkeypatch.setenv(VARIABLE, "postgresql://me:two@other/db")
    assert with_password(stored) == own


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(got {'url': 'x', 'password': 's3cr3t-pw'})", "(got {'url': 'x', 'password': '***'})"),
        ('{"db_password": "s3cr3t\\"-pw", "n": 1}', '{"db_password": \'***\', "n": 1}'),
        ("{'api_key': 123, 'b': 2}", "{'api_key': '***', 'b': 2}"),
        (
            "unexpected extra argument(s) (me:s3cr3t-pw@h/db); see",
            "unexpected extra argument(s) (me:***@h/db); see",
        ),
        ("me:a@s3cr3t-pw@host:5432/db", "me:***@host:5432/db"),
    ],
)
def test_passwords_in_mappings_and_in_urls_without_a_scheme(text, expected):
    assert hide(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "/data/a:b@c/study.db",
        "C:\\data\\x@2x.jpg",
        "labels/a.txt:3: its box lies outside",
        "{'passfile': 'x'}",
        "write me at a@b.c: it works",
    ],
)
def test_what_holds_no_password_is_shown_as_it_is(text):
    assert hide(text) == text
