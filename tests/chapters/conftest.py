"""What the tests of all chapters share: the method they test, and a seeded generator."""

import pytest
import torch

from reprolib import project
from reprolib.notebook import load_methods


@pytest.fixture(scope="module")
def chapter(request):
    """The method cells of the chapter that the test module is named after."""
    slug = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    return load_methods(project.find(slug).path)


@pytest.fixture
def g() -> torch.Generator:
    return torch.Generator().manual_seed(0)
