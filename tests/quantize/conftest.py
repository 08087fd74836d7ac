import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products are faster on one thread, most of all when others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
