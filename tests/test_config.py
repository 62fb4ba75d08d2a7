"""`meshgate.yaml`: every mistake is one message that names the place and shows no secret."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshgate.config import FILE_NAME, LedgerConfig, MeshConfig, Secret, load, parse_duration, redact
from meshgate.errors import ConfigError, UnknownProjectError
from meshgate.graph import Window

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "s3cr3t-w0rd"
URL = f"postgresql://ann:{SECRET}@db.example/mesh"
LEDGER = f"ledger:\n  url: {URL}\n"
PROJECT = "project:\n  name: downstream\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def _write(text: str) -> Path:
        file = tmp_path / FILE_NAME
        file.write_text(text)
        return file

    return _write


def refused(file: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(file)
    error = caught.value
    assert error.exit_code == 2
    assert SECRET not in f"{error} {error.fields} {error!r}"
    assert "\n" not in error.message
    return error


# -- what is right


def test_a_full_file_becomes_values(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Every key arrives with its type, paths absolute, durations in their units."""
    mesh = load(
        write(
            f"""\
ledger:
  url: {URL}
  lease_ttl: 90s
  statement_timeout: 10m
  grace: 15m
projects:
  - name: upstream
  - name: downstream
    path: ../down
    gateway: warehouse
    environment: staging
    schedule: "5 * * * *"
    overlap: fail
    patience: 1h30m
    on_audit_warning: pass
    edges:
      - {{reader: silver.weekly, parent: bronze.orders, window: {{from: -6d}}}}
      - {{reader: silver.facts, parent: silver.stores, window: latest}}
      - {{reader: silver.facts, parent: silver.plans, window: ungated}}
      - {{reader: silver.totals, parent: bronze.orders, window: prefix}}
"""
        )
    )
    assert mesh.path == tmp_path / FILE_NAME
    assert mesh.ledger == LedgerConfig(URL, None, 90.0, 900.0, 600.0)
    upstream, downstream = mesh.projects
    assert (upstream.path, upstream.environment, upstream.overlap) == (tmp_path, "prod", "skip")
    assert (upstream.patience, upstream.on_audit_warning, upstream.edges) == (None, "pass", ())
    assert downstream.path == tmp_path.parent / "down"
    assert (downstream.gateway, downstream.environment, downstream.schedule) == (
        "warehouse",
        "staging",
        "5 * * * *",
    )
    assert (downstream.overlap, downstream.on_audit_warning) == ("fail", "pass")
    assert downstream.patience == timedelta(minutes=90)
    assert [edge.window for edge in downstream.edges] == [
        Window("interval", timedelta(days=-6)),
        Window("latest"),
        Window("ungated"),
        Window("prefix"),
    ]
    assert mesh.project("upstream") is upstream


def test_the_defaults_hold(write: Callable[[str], Path]) -> None:
    """A lease lasts a minute, a statement half an hour, and the grace is as long as the statement timeout."""
    ledger = load(write(LEDGER + PROJECT)).ledger
    assert (ledger.lease_ttl_s, ledger.statement_timeout_s, ledger.grace_s) == (60, 1800, 1800)
    longer = load(write(LEDGER + "  statement_timeout: 2h\n" + PROJECT)).ledger
    assert longer.grace_s == 7200


def test_the_local_ledger_lies_beside_the_file(write: Callable[[str], Path], tmp_path: Path) -> None:
    """`local` is `.meshgate` beside the file, `local:FOLDER` is relative to the file; both have no secret."""
    for url, folder in [("local", ".meshgate"), ("local:../db", "../db"), (f"local:{tmp_path}/x", "x")]:
        ledger = load(write(f"ledger: {{url: '{url}'}}\n{PROJECT}")).ledger
        assert ledger.local_folder == (tmp_path / folder).resolve()
        assert ledger.redacted_url


def test_the_file_is_found_by_path_folder_or_from_below(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, its folder, and any folder below the working folder's parents lead to the same file."""
    file = write(LEDGER + PROJECT)
    below = tmp_path / "models" / "silver"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert load(file) == load(tmp_path) == load()


def test_values_come_from_the_environment_unchanged(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What YAML would take for syntax reaches the configuration as it is, quoted in the file or not."""
    nasty = "postgresql://ann:a'b\"c: #{}[]\\n&*!|>%@h/db"
    monkeypatch.setenv("NASTY", nasty)
    monkeypatch.setenv("NAME", "007")
    for quoted in ("{{ env_var('NASTY') }}", "\"{{ env_var('NASTY') }}\"", "'{{ env_var(\"NASTY\") }}'"):
        mesh = load(write(f"ledger:\n  url: {quoted}\nproject:\n  name: {{{{ env_var('NAME') }}}}\n"))
        assert mesh.ledger.url == nasty
        assert mesh.project().name == "007"


def test_a_default_and_a_part_of_a_value_are_rendered(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`env_var` takes a default, stands inside longer text, and works under `{% if %}`."""
    monkeypatch.delenv("HOST_X", raising=False)
    monkeypatch.setenv("PW_X", SECRET)
    text = (
        "{% if env_var('HOST_X', 'h') == 'h' %}\n"
        "ledger:\n  url: postgresql://ann:{{ env_var('PW_X') }}@{{ env_var('HOST_X', 'h') }}/db\n"
        "  lease_ttl: {{ env_var('TTL_X', '90s') }}\n{% endif %}\n" + PROJECT
    )
    ledger = load(write(text)).ledger
    assert ledger.url == f"postgresql://ann:{SECRET}@h/db"
    assert ledger.lease_ttl_s == 90


# -- secrets


def test_the_password_is_in_no_rendering_of_the_configuration(write: Callable[[str], Path]) -> None:
    """`repr`, `str`, a dictionary and JSON show stars; the URL is there for who connects."""
    mesh = load(write(LEDGER + PROJECT))
    assert mesh.ledger.url == URL
    shown = [repr(mesh), str(mesh), repr(attrs.asdict(mesh)), json.dumps(attrs.asdict(mesh), default=str)]
    assert not [text for text in shown if SECRET in text]
    assert mesh.ledger.redacted_url == "postgresql://ann:***@db.example/mesh"
    assert repr(Secret(SECRET)) == str(Secret(SECRET)) == f"{Secret(SECRET)}" == "***"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "postgresql://ann:***@db.example/mesh"),
        ("postgresql://ann@h:5432/db?sslmode=require", "postgresql://ann@h:5432/db?sslmode=require"),
        (f"postgresql://ann:{SECRET}/?@{SECRET}@h/db", "postgresql://ann:***@h/db"),
        (
            f"postgresql://h/db?password={SECRET}&sslpassword={SECRET}",
            "postgresql://h/db?password=***&sslpassword=***",
        ),
        (f"postgresql://h/db?p%61ssword={SECRET}", "postgresql://h/db?p%61ssword=***"),
        (f"host=h password={SECRET} dbname=db", "host=h password=*** dbname=db"),
        (rf"user = ann password = 'it\'s {SECRET}' port=1", "user=ann password=*** port=1"),
        (rf"password=a\ {SECRET} host=h", "password=*** host=h"),
        (f"password='open {SECRET}", "password=***"),
        (f"host=h password=a://{SECRET}", "host=h password=***"),
        (SECRET, "***"),
        ("local", "***"),
    ],
)
def test_passwords_are_starred_in_every_form_of_connection_string(url: str, shown: str) -> None:
    """URLs, query parameters and keyword strings lose their passwords, and little else."""
    assert redact(url) == shown


@given(
    password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6).filter(
        lambda p: "=" not in p
    ),
    form=st.sampled_from(["postgresql://ann:{}@host/db", "host=host user=ann password='{}' dbname=db"]),
)
def test_no_password_survives_redaction(password: str, form: str) -> None:
    """Whatever a password is made of, redaction leaves none of it."""
    quoted = re.sub(r"(['\\])", r"\\\1", password) if "'" in form else password
    assert password not in redact(form.format(quoted))


# -- what is wrong

MISTAKES = {
    "unknown key": (
        LEDGER + PROJECT + "  enviroment: dev\n",
        5,
        "unknown key 'enviroment' in project",
        "environment?",
    ),
    "far key": (
        LEDGER + "zzz: 1\n" + PROJECT,
        3,
        "unknown key 'zzz'",
        "known are: ledger, project, projects",
    ),
    "key elsewhere": (LEDGER + PROJECT + "  grace: 1m\n", 5, "unknown key 'grace'", "belongs under ledger"),
    "top for project": (
        LEDGER + "overlap: skip\n" + PROJECT,
        3,
        "unknown key 'overlap'",
        "belongs under project",
    ),
    "twice": (LEDGER + PROJECT + "  name: other\n", 5, "project.name is given twice, first in line 4", None),
    "wrong type": (
        LEDGER + "project:\n  name: 7\n",
        4,
        "project.name is the number 7, expected the `project:` key",
        None,
    ),
    "list for text": (
        LEDGER + PROJECT + "  gateway: [a]\n",
        5,
        "project.gateway is a list, expected text",
        None,
    ),
    "empty": (LEDGER + PROJECT + "  gateway:\n", 5, "project.gateway is empty, expected text", None),
    "blank": (LEDGER + PROJECT + "  gateway: ' '\n", 5, "project.gateway is empty, expected text", None),
    "choice": (
        LEDGER + PROJECT + "  overlap: skp\n",
        5,
        "project.overlap is 'skp', expected one of skip, wait, share, fail",
        None,
    ),
    "not a choice": (
        LEDGER + PROJECT + "  on_audit_warning: true\n",
        5,
        "is 'true', expected",
        None,
    ),
    "duration": (
        LEDGER + PROJECT + "  patience: soon\n",
        5,
        "project.patience is 'soon', expected a duration",
        None,
    ),
    "no unit": (
        LEDGER + "  lease_ttl: 60\n" + PROJECT,
        3,
        "ledger.lease_ttl is the number 60, expected a duration",
        None,
    ),
    "negative": (LEDGER + PROJECT + "  patience: -5m\n", 5, "is '-5m', expected a duration", None),
    "zero lease": (LEDGER + "  lease_ttl: 0s\n" + PROJECT, 3, "ledger.lease_ttl is '0s', expected", None),
    "short grace": (
        LEDGER + "  grace: 1m\n" + PROJECT,
        3,
        "ledger.grace is 0:01:00, shorter than",
        "lost run",
    ),
    "cron": (LEDGER + PROJECT + "  schedule: hourly\n", 5, "is 'hourly', expected a cron expression", None),
    "no ledger": (PROJECT, 1, "ledger is missing", None),
    "no url": (
        "ledger: {lease_ttl: 1m}\n" + PROJECT,
        1,
        "ledger.url is missing, expected postgresql://",
        None,
    ),
    "no project": (LEDGER, 1, "project is missing", None),
    "no name": (LEDGER + "project:\n  path: .\n", 3, "project.name is missing", None),
    "both": (LEDGER + PROJECT + "projects: []\n", 5, "projects and project are both given", "keep one"),
    "no projects": (
        LEDGER + "projects: []\n",
        3,
        "projects is an empty list, expected a list of projects",
        None,
    ),
    "project is a name": (
        LEDGER + "project: down\n",
        3,
        "project is 'down', expected a mapping with name",
        None,
    ),
    "two names": (
        LEDGER + "projects:\n- {name: a, path: x}\n- {name: a, path: y}\n",
        5,
        "projects[1].name 'a' is the name of two projects",
        None,
    ),
    "two paths": (
        LEDGER + "projects:\n- {name: a, path: x}\n- {name: b, path: ./x}\n",
        5,
        "projects[1].path is also the path of project 'a'",
        None,
    ),
    "edges": (LEDGER + PROJECT + "  edges: {a: b}\n", 5, "project.edges is a mapping, expected a list", None),
    "edge key": (
        LEDGER + PROJECT + "  edges:\n  - {reader: a, parents: b}\n",
        6,
        "unknown key 'parents' in project.edges[0]",
        "did you mean parent?",
    ),
    "no window": (
        LEDGER + PROJECT + "  edges:\n  - {reader: a, parent: b}\n",
        6,
        "edges[0].window is missing",
        None,
    ),
    "window": (
        LEDGER + PROJECT + "  edges:\n  - {reader: a, parent: b, window: last}\n",
        6,
        "window is 'last', expected latest, prefix, ungated, or a mapping",
        None,
    ),
    "gaps": (
        LEDGER + PROJECT + "  edges:\n  - {reader: a, parent: b, window: {from: 1d}}\n",
        6,
        "project.edges[0].window is refused",
        "must not exceed",
    ),
    "edge twice": (
        LEDGER + PROJECT + "  edges:\n" + "  - {reader: a, parent: b, window: latest}\n" * 2,
        7,
        "project.edges[1] is given twice: a reads b",
        None,
    ),
    "empty file": ("", None, "the file is empty, expected a mapping with ledger", None),
    "a list": ("- a\n", 1, "the file is a list, expected a mapping", None),
    "not yaml": (LEDGER + PROJECT + "   path: .\n", 5, "not YAML", None),
    "contains itself": (LEDGER + "project: &p\n  name: x\n  edges: [*p]\n", None, "contains itself", None),
    "template": (LEDGER + "project:\n  name: {{ env_var('X' }}\n", 4, "the template is malformed", None),
    "unset": (
        LEDGER + "project:\n  name: {{ env_var('NO_SUCH_X') }}\n",
        4,
        "NO_SUCH_X is not set",
        "export NO_SUCH_X",
    ),
    "longer name": (
        "# NO_SUCH_LONG\n" + LEDGER + "project: {{ env_var('NO_SUCH') }}\n",
        4,
        "NO_SUCH is not set",
        None,
    ),
    "no such function": (
        LEDGER + "project:\n  name: {{ var('X') }}\n",
        None,
        "cannot be rendered: 'var' is",
        None,
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_its_remedy(write: Callable[[str], Path], mistake: str) -> None:
    """Each mistake is one ConfigError of exit code 2 with file, line, key, found and expected."""
    text, line, message, hint = MISTAKES[mistake]
    file = write(text)
    error = refused(file)
    assert error.message.startswith(f"{file}:{line}: " if line else str(file))
    assert message in error.message
    assert hint is None or hint in (error.hint or "")
    assert error.fields["line"] == line or line is None


@pytest.mark.parametrize(
    "text",
    [
        f"ledger: {URL}\n{PROJECT}",
        f"ledger: [{URL}]\n{PROJECT}",
        f"ledger: {{'{URL}'}}\n{PROJECT}",
        f"ledger:\n  {URL}:\n{PROJECT}",
        f"ledger:\n  url: mysql://ann:{SECRET}@h/db\n{PROJECT}",
        f"ledger:\n  url: [{SECRET}]\n{PROJECT}",
        f"ledger:\n  url: *{SECRET}\n{PROJECT}",
        f"ledger:\n  url: {SECRET}: {SECRET}: x\n{PROJECT}",
        f'ledger:\n  url: "\\q{SECRET}"\n{PROJECT}',
        f"ledger:\n  url: '{SECRET}\n{PROJECT}",
        f"ledger:\n  url: @{SECRET}\n{PROJECT}",
        f"ledger:\n  url: !{SECRET} x\n{PROJECT}",
        f"ledger:\n  url: postgresql://a:{{{{ {SECRET.replace('-', '.')} x@h\n{PROJECT}",
        f"ledger:\n  url: 'host=h password={SECRET}'\n  pasword: {SECRET}\n{PROJECT}",
        "ledger:\n  url: {{ env_var('PW_X') }}\n" + PROJECT,
        "ledger:\n  url: {{ {}[env_var('PW_X')] }}\n" + PROJECT,
        "ledger:\n  url: {{ env_var('PW_X') | int(base='a') }}\n" + PROJECT,
        "ledger:\n  {{ env_var('PW_X') }}: 1\n" + PROJECT,
        "ledger:\n  url: local\n  lease_ttl: {{ env_var('PW_X') }}\n" + PROJECT,
        LEDGER + PROJECT + "  overlap: {{ env_var('PW_X') }}\n",
        LEDGER + PROJECT + f"  overlap: {URL}\n",
        LEDGER + f"project: {URL}\n",
    ],
)
def test_no_mistake_shows_a_secret(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Wherever a password was put by mistake, the message names the place and not the password."""
    monkeypatch.setenv("PW_X", SECRET)
    error = refused(write(text))
    assert FILE_NAME in error.message


def test_lines_are_those_of_the_file_whatever_the_environment_holds(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value of several lines shifts no line number; a template statement that drops lines removes it."""
    monkeypatch.setenv("LONG", "a\nb\nc")
    text = LEDGER + "project:\n  name: {{ env_var('LONG') }}\n  overlap: no-such\n"
    assert refused(write(text)).fields["line"] == 5
    text = "{% if false %}\n# dropped\n{% endif %}\n" + text
    assert refused(write(text)).fields["line"] is None


KNOWN = ["environment", "on_audit_warning", "schedule", "patience", "gateway", "overlap"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    key=st.sampled_from(KNOWN),
    at=st.integers(0, 15),
    letter=st.sampled_from("aexz_"),
    change=st.sampled_from("idr"),
)
def test_a_typing_error_in_a_key_leads_to_the_key(
    write: Callable[[str], Path], key: str, at: int, letter: str, change: str
) -> None:
    """One letter inserted, dropped or replaced: the hint names the key that was meant."""
    at %= len(key)
    typed = key[:at] + (letter if change in "ir" else "") + key[at + (change != "i") :]
    if typed == key:
        return
    error = refused(write(f"{LEDGER}{PROJECT}  {typed}: x\n"))
    assert error.hint == f"did you mean {key}?"


def test_a_missing_file_tells_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file by path, by folder or from below is exit code 2, and a file of another name is pointed at."""
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "no.yaml", tmp_path, None):
        with pytest.raises(ConfigError, match="there is no ") as caught:
            load(path)
        assert "meshgate init" in str(caught.value.hint)
    (tmp_path / "meshgate.yml").touch()
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert "meshgate.yml is not read" in str(caught.value.hint)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are named as such."""
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(tmp_path).message


def test_a_project_is_found_by_its_name(write: Callable[[str], Path]) -> None:
    """An unknown name leads to the nearest; without a name there must be only one project."""
    mesh: MeshConfig = load(
        write(LEDGER + "projects: [{name: upstream, path: a}, {name: downstream, path: b}]\n")
    )
    with pytest.raises(UnknownProjectError, match="did you mean upstream") as caught:
        mesh.project("upsteam")
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownProjectError, match="upstream, downstream"):
        mesh.project()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("90s", 90), ("5m", 300), ("1h30m", 5400), ("-7d", -604800), ("2w", 1209600), ("0", 0), ("0h", 0)],
        *[("1.5h", 5400), ("250ms", 0.25), (" 1d ", 86400), ("+1h", 3600)],
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """Numbers with units from milliseconds to weeks, joined and signed; zero needs no unit."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "5 m", "m", "1y", "1h-5m", "--1h", "1.h", "1e3s", "9" * 20 + "w", "٣m"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Everything else is a ConfigError with an example."""
    with pytest.raises(ConfigError, match="duration") as caught:
        parse_duration(text)
    assert "1h30m" in str(caught.value.hint)
