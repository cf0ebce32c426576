"""A network whose outputs are the weights of another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isopath.generate.layout import Layout, Sheet

SLOPE = 0.1  # of the leaky ReLU
NEAR = 0.1  # spread around a trained network at first, as a share of its own weights


class Hypernetwork(nn.Module):
    """From a latent vector to a point of weight space, by way of one code per unit.

    An extractor E maps a latent z to a code for every unit of the module; for each layer one small generator W, shared
    by its units, maps a unit's code to the unit's weights (Deutsch, Nijkamp & Yang 2019, arXiv 1905.02898, section
    3.1). Its size grows with the number of units, not with P: trunk · code entries a unit and width · inputs a layer,
    where a linear map to all weights would take trunk · P. Units of few entries, as embeddings are, cost more than they
    have.

    Args:
        layout: of the points.
        latent: entries of z.
        code: entries of a unit's code.
        width: of the hidden layer of every shared generator.
        trunk: of the hidden layer of the extractor.
        generator: of the first weights.
        start: a point `(P,)` that the first networks lie around; from nothing by default.
        plain: the point whose scales and shifts of normalisations are the mean of those that are generated.
    """

    centre: Tensor
    scales: Tensor

    def __init__(
        self, layout: Layout, latent: int, code: int, width: int, trunk: int, generator: torch.Generator,
        start: Tensor | None = None, plain: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layout, self.latent, self.code = layout, latent, code
        self.extractor = _two_layers(latent, trunk, layout.units * code)
        self.codes = nn.Parameter(torch.empty(layout.units, code))
        self.shared = nn.ModuleList(
            _two_layers(code, width, sheet.width) for sheet in layout.sheets
        )
        self.register_buffer("centre", self._centre(start, plain))
        rows = layout.taken(self.centre.unsqueeze(0))
        scales = [self._scale(sheet, block, start is not None) for sheet, block in zip(layout.sheets, rows)]
        self.register_buffer("scales", torch.tensor(scales, dtype=torch.float64))
        self._begin(generator)

    def forward(self, z: Tensor) -> Tensor:
        """Points `(n, P)` from latents `(n, latent)`."""
        codes = self.extractor(z).unflatten(1, self.codes.shape) + self.codes
        blocks = codes.split([sheet.units for sheet in self.layout.sheets], 1)
        rows = [scale * shared(block) for scale, shared, block in zip(self.scales.to(z), self.shared, blocks)]
        return self.layout.joined(rows) + self.centre

    @property
    def size(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.parameters())

    @property
    def naive_size(self) -> int:
        """What it would be with one linear map from the extractor's hidden layer to all weights."""
        first: nn.Linear = self.extractor[0]  # type: ignore[assignment]
        return first.weight.numel() + first.bias.numel() + (first.out_features + 1) * self.layout.space.dimension

    def _centre(self, start: Tensor | None, plain: Tensor | None) -> Tensor:
        if start is not None:
            return start.detach().clone()
        space = self.layout.space
        centre = torch.zeros(space.dimension, dtype=space.dtype)
        lone = {name for sheet in self.layout.sheets if sheet.plain for name in sheet.names}
        if plain is not None and lone:
            mask = space.where(lambda name, shape: name in lone)
            centre[mask.cpu()] = plain.detach().cpu()[mask.cpu()]
        return centre

    @staticmethod
    def _scale(sheet: Sheet, rows: Tensor, around: bool) -> float:
        """Of what a generator puts out: that of a fresh layer, or a share of a trained one's."""
        size = float(rows.square().mean().sqrt())
        return NEAR * (size or sheet.scale) if around else sheet.scale

    def _begin(self, generator: torch.Generator) -> None:
        """Linear maps keep the variance of what they are given, so that all layers start alike."""
        with torch.no_grad():
            for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
                linear.weight.normal_(0, linear.in_features**-0.5, generator=generator)
                linear.bias.zero_()
            self.codes.normal_(0, 1, generator=generator)


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    # skip_init: a layer fills itself from the global generator, which is the caller's
    first, second = (nn.utils.skip_init(nn.Linear, a, b) for a, b in ((inputs, hidden), (hidden, outputs)))
    return nn.Sequential(first, nn.LeakyReLU(SLOPE), second)
