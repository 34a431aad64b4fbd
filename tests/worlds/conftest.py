"""Worlds shared by the tests of this folder."""

import pytest

from relief3d.worlds import make_bank, make_worlds

from .support import FAMILIES, small_config


@pytest.fixture(scope="session")
def bank():
    return make_bank(small_config("room"))


@pytest.fixture(scope="session", params=FAMILIES)
def world(request, bank):
    return make_worlds([3], small_config(request.param, moving=2), bank=bank)


@pytest.fixture(scope="session")
def room(bank):
    return make_worlds([5], small_config("room"), bank=bank)
