"""A compiled encoder gives the same, and is not compiled again for batches of other sizes."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from scxtrimo.nn.layers import Encoder


def boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()


@pytest.mark.parametrize("norm_first", [False, True])
def test_one_compilation_serves_all_layers_and_batches(norm_first):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    plain = Encoder(3, 16, 4, norm_first=norm_first)
    compiled = Encoder(3, 16, 4, norm_first=norm_first)
    compiled.load_state_dict(plain.state_dict())
    for layer in compiled.layers:
        layer.compile(backend=backend, dynamic=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    n_graphs = []
    for lengths in ([5, 3], [2, 9, 4], [40], [7, 7, 7, 1]):
        x = torch.randn(sum(lengths), 16)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                result = compiled(x, boundaries(lengths))
                assert_close(result, plain(x, boundaries(lengths)))
        result = compiled(x, boundaries(lengths))
        result.sum().backward()
        n_graphs.append(len(graphs))
    assert n_graphs[0] <= 8  # before and after the attention; first layer or not; gradients or not
    assert n_graphs[-1] == n_graphs[0]


def test_a_copy_of_a_compiled_layer_has_weights_of_its_own():
    torch.manual_seed(0)
    encoder = Encoder(1, 16, 4)
    for layer in encoder.layers:
        layer.compile(backend="eager")
    x, cells = torch.randn(8, 16), boundaries([5, 3])
    expected = encoder(x, cells)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(encoder)))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert_close(twin(x, cells), expected)
