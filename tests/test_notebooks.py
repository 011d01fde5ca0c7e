"""The committed notebooks: without outputs, with parameters, readable."""

import nbformat
import pytest

from tests.conftest import committed

NOTEBOOKS = sorted((committed() / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, 4)


def test_the_notebooks_are_there():
    assert {path.stem for path in NOTEBOOKS} >= {
        "teacher", "summarization", "eli5", "translation", "compare", "methods", "quantization", "deploy"
    }  # fmt: skip


def test_sources_carry_no_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_no_cell_needs_a_test_set_that_some_corpora_lack(notebook):
    assert not any('["test_unseen"]' in cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_one_cell_holds_the_parameters(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert 'params = "tutorial"' in tagged[0].source


def test_cells_are_short_and_define_no_functions(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 12
            assert "def " not in cell.source


def test_there_is_more_prose_than_code(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= 0.7 * kinds.count("code")
