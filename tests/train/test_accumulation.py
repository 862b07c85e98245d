"""The batches of an accumulated step have dropout of their own."""

import torch
from helpers import make_cells

from scxtrimo.model.xtrimogene import XTrimoGene


class Recorder(torch.nn.Module):
    """Notes what it is asked to drop."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = []

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.drawn.append(torch.rand(4))
        return x


def test_dropout_differs_within_a_step_and_is_repeatable():
    drawn = []
    for _ in range(2):
        cells = make_cells(60)
        XTrimoGene.setup_anndata(cells)
        model = XTrimoGene(cells, size="tiny", dropout=0.1)
        recorder = model.module.net.encoder.layers[0].dropout = Recorder()
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        model.train(1, batch_size=9, accumulate_grad_batches=3, **quiet)
        drawn.append(torch.stack(recorder.drawn[::2]))  # two parts of a layer
    assert torch.equal(*drawn)
    assert len(drawn[0]) == len(drawn[0].unique(dim=0)) == 6
