import inspect
import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import nbformat
import pytest
import typer

import mi_multilingual as mm
import reference
import tutorials
from mi_multilingual.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_of(page):
    """All Python of a page, as one script."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


def quick_harness(monkeypatch, folder):
    """The harness without the definitions of its own tasks, which take seconds to read, and caching nothing at home."""
    reason = "lm-eval is not installed; pip install mi_multilingual[harness]"
    manager = partial(pytest.importorskip("lm_eval.tasks", reason=reason).TaskManager, include_defaults=False)
    monkeypatch.setattr("mi_multilingual.evaluation.harness.TaskManager", manager)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")


@pytest.mark.slow
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_the_code_of_every_how_to_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MI_MULTILINGUAL_CACHE", str(tmp_path / "cache"))  # put back, whatever a page sets
    if page.stem == "harness":
        quick_harness(monkeypatch, tmp_path)
    code = code_of(page)
    assert code
    exec(compile(code, str(page), "exec"), {"__name__": page.stem})


@pytest.mark.slow
def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mm, "load_corpus", partial(mm.load_corpus, languages=["en", "fr"], max_documents=8))
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda figure: None)
    exec(compile(code_of(ROOT / "README.md"), "README.md", "exec"), {})
    assert mm.load(tmp_path / "neurons.safetensors").groups == ("en", "fr")


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_every_how_to_answers_a_question_of_the_readme(page):
    assert page.read_text(encoding="utf-8").splitlines()[0].endswith("?")
    link = f"how-to/{page.name})"
    assert README.count(link) == 1
    assert (ROOT / "docs" / "index.md").read_text(encoding="utf-8").count(link) == 1


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_calls_in_the_tables_of_the_readme_are_public():
    rows = [line.split("|") for line in README.splitlines() if line.startswith("| [")]
    assert len(rows) == len(HOW_TO)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row[2])}
    assert len(named) > 20
    assert named <= set(mm.HOMES)


def sources():
    """Name of a page or notebook -> its text."""
    pages = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PROSE}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        pages[path.name] = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    return pages


@pytest.mark.parametrize(("name", "text"), sources().items(), ids=list(sources()))
def test_all_names_that_a_page_uses_are_there(name, text):
    for first, second in re.findall(r"\bmm\.(\w+)(?:\.(\w+))?", text):
        found = getattr(mm, first)
        if second and inspect.ismodule(found):
            getattr(found, second)


@pytest.mark.parametrize(("name", "text"), sources().items(), ids=list(sources()))
def test_commands_have_the_options_that_a_page_gives_them(name, text):
    commands = typer.main.get_command(app).commands
    for line in re.findall(r"^ *mi-multilingual (.+)$", text.replace("\\\n", " "), re.MULTILINE):
        command, *words = shlex.split(line, comments=True)
        known = {option for parameter in commands[command].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_every_public_name_is_in_the_reference_exactly_once():
    entries = re.findall(r"^::: (.+)$", "\n".join(reference.pages().values()), re.MULTILINE)
    assert len(entries) == len(set(entries))
    defined = reference.public_names()
    assert sorted(entries) == sorted(defined.values())
    of_packages = {
        f"mi_multilingual.{package.__name__.rpartition('.')[2]}.{name}"
        for package in (mm.experiments, mm.plots)
        for name in package.__all__
    }
    assert set(defined) == {f"mi_multilingual.{name}" for name in mm.HOMES} | of_packages


def mapped():
    """The paths that the file map of the README names, those of folders with a slash behind."""
    block = README.partition("## File map")[2].partition("\n    notebooks/")[0]
    paths, folders = [], {}
    for line in block.strip("\n").splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        path = folders.get(depth - 1, "") + name
        paths.append(path)
        if name.endswith("/"):
            folders[depth] = path
    return paths


def test_the_file_map_names_every_file_once():
    package = ROOT / "mi_multilingual"
    files = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    # The line of a folder says what its __init__.py says.
    expected = {path.replace("__init__.py", "") if path.count("/") > 1 else path for path in files}
    paths = mapped()
    assert len(paths) == len(set(paths))
    assert expected - set(paths) == set(), "the file map lacks these"
    assert [path for path in paths if not (ROOT / path).exists()] == [], "the file map names what is not there"


def cells(*outputs):
    code = nbformat.v4.new_code_cell("1 + 1", outputs=list(outputs))
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n\nText."), code])


def displayed(data, kind="execute_result"):
    return nbformat.v4.new_output(kind, data, **({"execution_count": 1} if kind == "execute_result" else {}))


def figure(text):
    layout = {"title": {"text": text}, "height": 200}
    return displayed({tutorials.FIGURE: {"data": [{"type": "scatter", "y": [1, 3, 2]}], "layout": layout}})


def test_a_tutorial_shows_text_code_and_what_came_out():
    printed = nbformat.v4.new_output("stream", name="stdout", text="two\n")
    warned = nbformat.v4.new_output("stream", name="stderr", text="a warning\n")
    style, rows = "<style scoped>\n  .a {}\n</style>", "<tr><td>3</td></tr>"
    table = f'<div>\n{style}\n<table border="1" class="dataframe">\n\n{rows}</table></div>'
    frame = displayed({"text/html": table, "text/plain": "3"})
    bar = displayed({tutorials.WIDGET: {"model_id": "0"}, "text/plain": "loading"}, "display_data")
    widget = displayed({tutorials.WIDGET: {"model_id": "1"}, "text/plain": "VBox()"})
    noun = displayed({"text/html": "<table><tr><td>5</td></tr></table>", "text/plain": "5"})
    number = displayed({"text/plain": "4"})
    page = tutorials.page(cells(printed, warned, frame, bar, widget, noun, number), "toy.ipynb")
    assert page.startswith("# Title\n\nThis page is the notebook [toy.ipynb](toy.ipynb)")
    assert "```python\n1 + 1\n```\n\n```text\ntwo\n```" in page
    assert page.count("<div>\n<table>\n<tr><td>3</td></tr></table></div>") == 1
    assert page.count("<table><tr><td>5</td></tr></table>") == 1
    assert "```text\n4\n```" in page
    assert "needs the notebook" in page
    assert not re.search("a warning|loading|VBox|style", page)


def test_a_figure_is_data_in_the_page_and_no_script():
    page = tutorials.page(cells(figure("</script><b>")), "toy.ipynb")
    place = re.search(r'<div class="figure" style="height: 200px"><script type="application/json">(.*)</script>', page)
    assert json.loads(place[1])["layout"]["title"]["text"] == "</script><b>"
    assert re.findall('src="(.*?)"', page) == ["../assets/plotly.min.js", "../assets/figures.js"]


@pytest.mark.browser
def test_figures_of_a_tutorial_are_drawn_without_network(browser, tmp_path):
    from markdown import markdown
    from plotly.offline import get_plotlyjs

    text = tutorials.page(cells(figure("First </script> & <i>title</i>"), figure("Second")), "toy.ipynb")
    body = markdown(text, extensions=["tables", "pymdownx.superfences"])
    for folder in ("assets", "tutorials"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tutorials" / "toy.html").write_text(f"<meta charset=utf-8>{body}", encoding="utf-8")
    (tmp_path / "assets" / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    shutil.copy(ROOT / "docs" / "assets" / "figures.js", tmp_path / "assets")
    browser.get_log("browser")
    browser.get((tmp_path / "tutorials" / "toy.html").as_uri())
    titles = browser.execute_script("return [...document.querySelectorAll('.gtitle')].map(t => t.textContent)")
    assert titles == ["First </script> & title", "Second"]
    fetched = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('file:'))"
    assert browser.execute_script(fetched) == []
    assert browser.get_log("browser") == []
