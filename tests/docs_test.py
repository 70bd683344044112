"""README and docs: every command would run, every link leads somewhere, every config they show is valid.

`make` targets are run by .ci/run; here the commands' flags, files and fields are checked.
"""

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from aigc_tf.cli import flags as flag_parsing
from aigc_tf.cli import running
from aigc_tf.cli.known_flags import typed
from aigc_tf.config import ExperimentConfig
from aigc_tf.config.fields import check_field, flatten
from aigc_tf.config.files import load_config
from aigc_tf.serving.double.flags import parse_flags
from aigc_tf.tasks import check_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "saved_models" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
# Programs besides our scripts and make, and the reason why the tests cannot run what they do.
OTHER_PROGRAMS = {
    "curl": "needs a server",
    "docker": "needs Docker",
    "export": "of the shell",
    "gcloud": "needs a TPU",
    "kubectl": "needs a cluster",
    "python3.11": "makes a virtual environment, as `make install` does",
    "source": "of the shell",
    "tensorboard": "serves until it is stopped",
    "tensorflow_model_server": "is published as a Docker image only",
}


def _blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def _commands():
    for page in PAGES:
        for block in _blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    if command.strip():
                        yield pytest.param(command.strip(), id=f"{page.name}: {command.strip()}")


def _configs():
    for page in PAGES:
        for block in _blocks(page, "python"):
            if "def get_config" in block:
                yield pytest.param(block, id=page.name)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the commands of the pages name: the configs, and those the pages tell to write."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "configs").mkdir()
    for config in (ROOT / "configs").glob("*.py"):
        (folder / "configs" / config.name).write_text(config.read_text())
    for name in ("mine", "writer"):
        [block] = [block for block in _blocks(ROOT / "README.md", "python") if f'name="{name}"' in block]
        (folder / "configs" / f"{name}.py").write_text(block)
    return folder


@pytest.mark.parametrize("command", _commands())
def test_a_command_of_the_pages_would_run(command, workplace, monkeypatch):
    program, *arguments = shlex.split(command)
    if program == "make":
        target = arguments[0]
        assert target in TARGETS or re.fullmatch(r"[A-Z]+=.*", target)
        assert all(argument in TARGETS or re.fullmatch(r"[A-Z]+=.*", argument) for argument in arguments)
    elif program == ".venv/bin/python" and arguments[1].startswith("aigc_tf."):
        assert arguments[0] == "-m"
        assert importlib.util.find_spec(arguments[1])
    elif program == ".venv/bin/python":
        assert arguments[:3] == ["-m", "pip", "install"]
        if "--constraint" in arguments:
            assert (ROOT / arguments[arguments.index("--constraint") + 1]).exists()
    elif program == "python":
        _check_script(arguments, workplace, monkeypatch)
    else:
        assert program in OTHER_PROGRAMS


def _check_script(arguments, workplace, monkeypatch):
    """Reads the flags as the script would, and its config with them."""
    if arguments[:2] == ["-m", "aigc_tf.serving.double"]:
        parse_flags(arguments[2:], description="")
        return
    script, *flags = arguments
    asked = {}
    monkeypatch.setattr(running, "run", lambda command, **rest: asked.update(rest, command=command))
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert asked["command"].__name__ == Path(script).stem
    monkeypatch.chdir(workplace)
    config_flags = [flag for flag in flags if flag.startswith("--config.")]
    if "config" in asked["flags"] and config_flags and not any(flag.startswith("--config=") for flag in flags):
        flags = ["--config=configs/bert_sentiment.py", *flags]  # stands for the config.json of the run
    options = flag_parsing.parse([script, *flags], names=[*asked["flags"], "debug"], description="")
    if options.config is not None:
        check_config(options.config)
    if options.command:  # of the launcher
        assert options.command[0] == "python"
        monkeypatch.chdir(ROOT)
        _check_script(options.command[1:], workplace, monkeypatch)


@pytest.mark.parametrize("source", _configs())
def test_a_config_of_the_pages_is_valid(source, tmp_path):
    for config in (ROOT / "configs").glob("*.py"):
        (tmp_path / config.name).write_text(config.read_text())
    (tmp_path / "shown.py").write_text(source)
    check_config(load_config(str(tmp_path / "shown.py")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_pages_compiles(page):
    for block in _blocks(page, "python"):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_every_page_is_linked_from_the_readme_and_from_the_first_page():
    for first in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        linked = {(first.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)", first.read_text())}
        assert set((ROOT / "docs").glob("*.md")) - {first} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_that_the_pages_name_are_there(page):
    sections = "|".join(name for name, value in vars(ExperimentConfig()).items() if not isinstance(value, str))
    for field in re.findall(rf"`((?:{sections})\.[a-z_0-9]+)`", page.read_text(encoding="utf-8")):
        if not field.endswith(".py"):
            check_field(field)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_the_pages_name_are_there(page):
    for path in re.findall(r"`((?:tests|aigc_tf|scripts|configs|deploy)/[\w/.]*)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists() or path in ("configs/mine.py", "configs/writer.py"), path


def test_the_first_page_names_every_room_and_sub_room():
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `aigc_tf/([\w.]+)/?` \|(.*)", page, flags=re.M))
    rooms = [path for path in (ROOT / "aigc_tf").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    for room in rooms:
        if room.name != "__init__.py":
            assert room.name in rows, room.name
            for sub_room in room.glob("*/__init__.py"):
                assert f"`{sub_room.parent.name}/`" in rows[room.name], sub_room.parent


def test_every_term_of_the_glossary_says_where_it_lives():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = [row for row in re.findall(r"^\| (.+?) \| .+ \| (.+) \|$", page, flags=re.M) if row[0] != "term"]
    assert len(rows) > 40
    for term, place in rows:
        assert re.fullmatch(r"`[\w/.]+`", place), term
        assert (ROOT / place.strip("`")).exists(), term
    terms = [term for term, _ in rows]
    assert len(terms) == len(set(terms))


def test_the_page_of_laws_names_every_file_of_laws():
    page = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
    for path in (ROOT / "tests" / "laws").glob("*_test.py"):
        assert f"`tests/laws/{path.name}`" in page


def test_every_flag_of_a_script_stands_on_its_page(monkeypatch):
    for script in sorted((ROOT / "scripts").glob("*.py")):
        name = "distributed" if script.stem == "launch" else script.stem
        page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        asked = {}
        monkeypatch.setattr(running, "run", lambda command, asked=asked, **rest: asked.update(rest))
        runpy.run_path(str(script), run_name="__main__")
        for flag in asked["flags"]:
            shown = flag in ("dry_run", "command", "folder") or f"--{typed(flag)}" in page
            assert shown or (flag == "config" and "workdir" in asked["flags"]), f"{script.name} --{flag}"


def test_what_a_page_says_of_a_default_holds():
    defaults = flatten(ExperimentConfig())
    assert defaults["data.max_bad_share"] == 0.01  # prepare.md: 1 % by default
    assert defaults["data.prepared_dir"] == "prepared"
    assert defaults["export.directory"] == "saved_models"


def test_no_test_of_this_file_is_vacuous():
    assert len(list(_commands())) > 20
    assert len(list(_configs())) >= 2
    assert "aigc_tf" in sys.modules
