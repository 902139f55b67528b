"""Fisher information against BackPACK, nngeometry, curvlinops and kronfluence: same work, results compared first.

Diagonals and products are exact; EK-FAC takes the true labels, so that all libraries have the same target. Peers work
in the cheapest form that they offer: kronfluence without files, curvlinops with sizes told and all vectors at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from backpack import backpack, extend
from backpack.extensions import DiagGGNExact
from backpack.hessianfree.ggnvp import ggn_vector_product
from curvlinops import EKFACLinearOperator, GGNLinearOperator
from kronfluence.analyzer import prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.factor import covariance, eigen
from kronfluence.task import Task
from kronfluence.utils.state import State
from nngeometry.layercollection import LayerCollection
from nngeometry.metrics import FIM
from nngeometry.object import PMatDiag, PMatImplicit, PVector
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.bench import agree, compete, save
from reprolib.fisher import batches, diagonal_fisher, fisher_product
from reprolib.kfac import Blocks, empirical_ekfac

SINGLE = 1e-5  # how far results in single precision may lie apart, of the largest entry


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def mlp() -> nn.Sequential:
    layers = nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    return nn.Sequential(*layers)


def convolutional() -> nn.Sequential:
    first = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(16 * 49, 10))


class Transformer(nn.Module):
    """Two blocks of width 64 over 200 tokens; the logits of all positions, or of the last."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last, self.embed, self.head = last, nn.Embedding(200, 64), nn.Linear(64, 200, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(32, 64))
        self.attend = nn.ModuleList(nn.Linear(64, 192) for _ in range(2))
        self.mix = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(64, 256) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(256, 64) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.position
        for attend, mix, up, down in zip(self.attend, self.mix, self.up, self.down, strict=True):
            q, k, v = attend(F.layer_norm(h, (64,))).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
            h = h + mix(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            h = h + down(F.gelu(up(F.layer_norm(h, (64,)))))
        return self.head(F.layer_norm(h[:, -1] if self.last else h, (64,)))


def diagonals(name: str, model: nn.Sequential, x: Tensor, size: int) -> dict[str, Any]:
    y = torch.zeros(len(x), dtype=torch.long)
    hooked, loss = extend(deepcopy(model)), extend(nn.CrossEntropyLoss(reduction="sum"))
    loader = DataLoader(TensorDataset(x, y), size)

    def theirs() -> list[Tensor]:
        total: list[Tensor] = []
        for xs, ys in zip(x.split(size), y.split(size), strict=True):
            with backpack(DiagGGNExact()):
                loss(hooked(xs), ys).backward()
            parts = [p.diag_ggn_exact for p in hooked.parameters()]
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
        return [t / len(x) for t in total]

    def nngeometry() -> Tensor:
        return FIM(model, loader, PMatDiag, variant="classif_logits", device="cpu").get_diag()

    def ours() -> dict[str, Tensor]:
        return diagonal_fisher(model, batches(x, batch_size=size))

    for other in (flat(theirs()), nngeometry()):
        agree(flat(ours().values()), other, SINGLE)
    title = f"Exact diagonal Fisher, {name}, N = {len(x)} in batches of {size}"
    return compete(title, ("reprolib", ours), {"BackPACK": theirs, "nngeometry": nngeometry})


class LanguageModelling(Task):
    """Next tokens, on the layers of the feed-forward parts."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:  # noqa: ARG002
        return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten(), reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        raise NotImplementedError

    def get_influence_tracked_modules(self) -> list[str]:
        return [f"{layer}.{i}" for layer in ("up", "down") for i in range(2)]


def ekfacs(last: bool) -> dict[str, Any]:
    model, x = Transformer(last), torch.randint(0, 200, (256, 32))
    y = torch.randint(0, 200, (256,) if last else (256, 32))
    task, size = LanguageModelling(), 64
    layers = task.get_influence_tracked_modules()
    tracked, loader = prepare_model(deepcopy(model), task), DataLoader(TensorDataset(x, y), size)
    arguments, state = FactorArguments(use_empirical_fisher=True), State(cpu=True)

    def kronfluence() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        common = {"task": task, "loader": loader, "factor_args": arguments, "disable_tqdm": True}
        _, factors = covariance.fit_covariance_matrices_with_loader(tracked, state, **common)
        bases = eigen.perform_eigendecomposition(factors, tracked, state, arguments, disable_tqdm=True)
        _, squares = eigen.fit_lambda_matrices_with_loader(tracked, state, eigen_factors=bases, **common)
        for path in layers:
            q_s, q_a = (bases[f"{side}_eigenvectors"][path] for side in ("gradient", "activation"))
            yield q_s, q_a, squares["lambda_matrix"][path] / len(x)

    def curvlinops() -> EKFACLinearOperator:
        params = [p for path in layers for p in model.get_submodule(path).parameters()]
        sizes = {"num_data": len(x), "num_per_example_loss_terms": 1, "check_deterministic": False}
        options = {"fisher_type": "empirical", "separate_weight_and_bias": False, **sizes}
        operator = EKFACLinearOperator(model, nn.CrossEntropyLoss(), params, loader, **options)
        operator.compute_kronecker_factors()
        operator.compute_eigenvalue_correction()
        return operator

    def ours() -> Blocks:
        return empirical_ekfac(model, batches(x, y, batch_size=size), layers=layers)

    found = ours()

    def check(path: str, q_s: Tensor, q_a: Tensor, values: Tensor) -> None:
        """Equal maps of a random gradient; eigenvectors themselves are free up to signs."""
        block, v = found[path], torch.randn(len(q_s), len(q_a))
        mine = block.q_s @ ((block.q_s.T @ v @ block.q_a) * block.eigenvalues) @ block.q_a.T
        agree(mine, q_s @ ((q_s.T @ v @ q_a) * values) @ q_a.T, 1e-4)  # single precision turns eigenvectors

    for path, parts in zip(layers, kronfluence(), strict=True):
        check(path, *parts)
    peers: dict[str, Any] = {"kronfluence": lambda: list(kronfluence())}
    if last:  # curvlinops' EK-FAC takes outputs (N, C) alone
        operator = curvlinops()
        for path in layers:
            q_s, q_a = operator._gradient_covariances_eigenvectors[path], operator._input_covariances_eigenvectors[path]
            check(path, q_s, q_a, operator._corrected_eigenvalues[path])
        peers["curvlinops"] = curvlinops
    title = f"EK-FAC of feed-forward layers, labels at {'the last position' if last else 'all positions'}, N = 256"
    return compete(title, ("reprolib", ours), peers)


def products() -> dict[str, Any]:
    model, x, y = mlp(), torch.randn(512, 784), torch.zeros(512, dtype=torch.long)
    params = list(model.parameters())
    v = torch.randn(100, sum(p.numel() for p in params))
    columns, loss = v.T.contiguous(), nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(x, y), 512)

    def curvlinops() -> Tensor:
        return GGNLinearOperator(model, loss, params, [(x, y)], check_deterministic=False) @ columns

    def hessian_free() -> Tensor:
        output = model(x)
        value = loss(output, y)
        parts = (torch.split(row, [p.numel() for p in params]) for row in v)
        rows = ([t.view_as(p) for t, p in zip(row, params, strict=True)] for row in parts)
        return torch.stack([flat(ggn_vector_product(value, output, model, row)) for row in rows])

    def nngeometry() -> list[PVector]:
        implicit = FIM(model, loader, PMatImplicit, variant="classif_logits", device="cpu")
        layers = LayerCollection.from_model(model)
        return [implicit.mv(PVector(layer_collection=layers, vector_repr=row)) for row in v]

    def ours() -> Tensor:
        return fisher_product(model, x)(v)

    found = ours()
    agree(found, curvlinops().T, SINGLE)
    agree(found, hessian_free(), SINGLE)
    agree(found, torch.stack([row.to_torch() for row in nngeometry()]), SINGLE)
    peers = {"curvlinops": curvlinops, "BackPACK": hessian_free, "nngeometry": nngeometry}
    return compete("100 exact Fisher-vector products, MLP 784-256-128-10, N = 512", ("reprolib", ours), peers, rounds=5)


def main() -> None:
    warnings.filterwarnings("ignore", category=UserWarning, module="backpack|torch")
    warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    contests = [
        diagonals("MLP 784-256-128-10", mlp(), torch.randn(1000, 784), 250),
        diagonals("two convolutions and a linear layer, 1x28x28", convolutional(), torch.randn(256, 1, 28, 28), 64),
        ekfacs(last=False),
        ekfacs(last=True),
        products(),
    ]
    save("fisher", contests, ("backpack-for-pytorch", "nngeometry", "curvlinops-for-pytorch", "kronfluence"))


if __name__ == "__main__":
    main()
