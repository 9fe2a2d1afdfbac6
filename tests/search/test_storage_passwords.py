"""The password of a storage stands in no message and in no file that a search leaves behind."""

import pytest
import yaml

from autoprune import passwords
from autoprune.cli.main import main
from autoprune.config import make_config
from autoprune.engines.table import ENGINES
from autoprune.passwords import VARIABLE
from autoprune.report.html import render
from autoprune.report.run_summary import read_run_summary
from autoprune.run.directory import RunDirectory
from autoprune.run.results import load_result
from autoprune.search.session import for_workers

SECRET = "s3cr3t-pw"
ENCODED = "s3cr3t%2Dpw"


@pytest.fixture
def autoprune(folder, monkeypatch, capfd):
    """Runs a command in the folder as in a new process; returns its exit code and what it printed."""
    monkeypatch.chdir(folder)

    def run(*arguments, **variables):
        passwords._known.clear()
        with monkeypatch.context() as context:
            for name, value in variables.items():
                context.setenv(name, value)
            code = main([str(argument) for argument in arguments])
        return code, "".join(capfd.readouterr())

    return run


def leaks(folder):
    """The files that hold the password, in whatever form, by their names or in their bytes."""
    forms = (SECRET.encode(), ENCODED.encode())
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(form in path.read_bytes() + str(path).encode() for form in forms)]


@pytest.fixture
def folder(demo_settings, tmp_path, monkeypatch):
    """An empty folder; a file of settings lies beside it."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(passwords, "_known", {})
    content = {**demo_settings, "data": str(demo_settings["data"]), "rungs": [0], "criterion": "l2"}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({**content, "trials": 1}))
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.slow
def test_a_finished_search_and_its_readers_hold_no_password(autoprune, folder):
    url = f"sqlite:///file:study.db?uri=true&password={ENCODED}"
    search = ("search", "--config", "../settings.yaml", "--out", "run")
    code, text = autoprune(*search, "--storage", url)
    assert code == 0, text
    code, resumed = autoprune(*search, "--trials", 2, **{VARIABLE: url})  # its own storage
    assert code == 0, resumed
    outputs = [text, resumed]
    for command in (("front", "run"), ("report", "run", "--csv"), ("front", "run", "--json", "--debug")):
        code, output = autoprune(*command)
        assert code == 0, output
        outputs.append(output)
    code, output = autoprune(*search, "--storage", f"{url}&timeout=3", "--debug")
    assert code == 2
    assert "storage was 'sqlite:///file:study.db?uri=true&password=***', now 'sqlite:///file" in output
    outputs.append(output)
    assert not leaks(folder)
    assert not [output for output in outputs if SECRET in output or ENCODED in output]
    assert yaml.safe_load((folder / "run" / "config.yaml").read_text())["storage"] == url.replace(
        ENCODED, "***"
    )


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg2://me:{ENCODED}@127.0.0.1:1/db",
        f"postgresql+psycopg2://127.0.0.1:1/db?user=me&password={SECRET}",
        f"postgresql+psycopg2://me:@{SECRET}/@127.0.0.1:1/db",  # not encoded
        f"postgresql+psycopg2://me:pw@127.0.0.1:1/db?nosuch_token={SECRET}",
        f"postgresql://me:{SECRET}@:port/db",
        f"postgres://me:{SECRET}@127.0.0.1:1/db",
        f"nosuch://me:{SECRET}@127.0.0.1/db",
        f"me:{SECRET}@127.0.0.1/db",
        f"sqlite:///missing/x.db?password={SECRET}",
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused_without_its_password(autoprune, folder, url):
    for debug in ((), ("--debug",)):
        search = ("search", "--config", "../settings.yaml", "--out", "run", "--storage", url, *debug)
        code, text = autoprune(*search)
        assert code == 2, text
        assert "--storage" in text
        assert not [form for form in (SECRET, ENCODED) if form in text], text
    assert not leaks(folder)


def test_a_run_is_the_same_whatever_gives_the_password(tmp_path):
    run = RunDirectory(tmp_path / "run")
    url = f"postgresql://me:{SECRET}@host/db"
    run.write_config(make_config(out=run.path, storage=url), {})
    assert run.config().storage == "postgresql://me:***@host/db"
    for same in (
        url,
        "postgresql://me:new@host/db",
        "postgresql://me:***@host/db",
        "postgresql://me@host/db",
    ):
        run.check(make_config(out=run.path, storage=same))
    for other in (f"postgresql://you:{SECRET}@host/db", f"postgresql://me:{SECRET}@other/db"):
        with pytest.raises(Exception, match=r"storage was 'postgresql://me:\*\*\*@host/db', now") as raised:
            run.check(make_config(out=run.path, storage=other))
        assert SECRET not in str(raised.value)


def test_a_run_of_an_earlier_version_shows_no_password_in_its_report(folder, checked_run):
    run = RunDirectory(folder / "run")
    run.write_config(make_config(out=run.path, storage="sqlite:///none.db"), {})
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("sqlite:///none.db", f"postgresql://me:{SECRET}@127.0.0.1:1/db"))
    with pytest.raises(Exception, match="cannot open the study") as raised:
        load_result(run.path)
    assert SECRET not in str(raised.value)
    summary = read_run_summary(checked_run)
    object.__setattr__(summary, "run", run.path)
    assert SECRET not in render(summary, images=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_get_no_storage_and_settings_show_none(engine):
    config = make_config(storage=f"postgresql://me:{SECRET}@host/db", engine=engine)
    assert for_workers(config).storage is None
    assert SECRET not in repr(config)
    assert SECRET not in config.model_dump_json()
