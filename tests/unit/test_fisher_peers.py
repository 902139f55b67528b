"""The same matrices from four independent libraries, on the same models, in double precision."""

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from reprolib.fisher import (
    batches,
    block_fisher,
    diagonal_fisher,
    empirical_diagonal_fisher,
    fisher_product,
    full_fisher,
)
from reprolib.kfac import Blocks, dense, ekfac, empirical_ekfac, empirical_kfac, kfac, multiply

CLOSE = {"rtol": 1e-6, "atol": 1e-10}
C, N = 4, 30  # N above the size of every A: eigenvectors of a multiple eigenvalue are no one's business


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """nngeometry makes tensors of the default type."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def make(kind: str) -> tuple[nn.Sequential, Tensor, Tensor]:
    y = torch.randint(0, C, (N,))
    if kind == "dense":
        return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, C)), torch.randn(N, 5), y
    conv = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.Sigmoid()
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(8, C)), torch.randn(N, 2, 6, 6), y


KINDS = ("dense", "convolutional")


def loader(x: Tensor, y: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=8)


def flat(tensors) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def product_matrix(blocks: Blocks, model: nn.Module) -> Tensor:
    """The blocks on the diagonal of a matrix in the order of the model's parameters."""
    sizes = {name: p.shape for name, p in model.named_parameters()}
    parts = torch.eye(sum(s.numel() for s in sizes.values())).split([s.numel() for s in sizes.values()], 1)
    v = {name: part.view(-1, *s) for (name, s), part in zip(sizes.items(), parts, strict=True)}
    return torch.cat([multiply(blocks, v)[name].flatten(1) for name in sizes], 1)


# BackPACK

HOOKS = "ignore:Full backward hook is firing when gradients are computed:UserWarning"


@pytest.mark.filterwarnings(HOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_backpack_has_the_same_diagonals(kind):
    backpack, extensions = pytest.importorskip("backpack"), pytest.importorskip("backpack.extensions")
    model, x, y = make(kind)
    model = backpack.extend(model)
    with backpack.backpack(extensions.DiagGGNExact(), extensions.SumGradSquared()):
        backpack.extend(nn.CrossEntropyLoss(reduction="sum"))(model(x), y).backward()
    for name, p in model.named_parameters():
        assert_close(diagonal_fisher(make_same(model), batches(x, batch_size=3))[name], p.diag_ggn_exact / N, **CLOSE)
        assert_close(empirical_diagonal_fisher(make_same(model), x, y)[name], p.sum_grad_squared / N, **CLOSE)


def make_same(model: nn.Sequential) -> nn.Sequential:
    """The model without what a peer hooked to it: fresh layers of the same parameters."""
    layers = []
    for layer in model:
        if isinstance(layer, nn.Linear):
            fresh: nn.Module = nn.Linear(layer.in_features, layer.out_features)
        elif isinstance(layer, nn.Conv2d):
            fresh = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding)
        else:
            fresh = nn.MaxPool2d(2) if isinstance(layer, nn.MaxPool2d) else type(layer)()
        fresh.load_state_dict(layer.state_dict())
        layers.append(fresh)
    return nn.Sequential(*layers)


@pytest.mark.filterwarnings(HOOKS)
def test_backpack_has_the_same_kronecker_factors_of_linear_layers():
    backpack, extensions = pytest.importorskip("backpack"), pytest.importorskip("backpack.extensions")
    model, x, y = make("dense")
    theirs = backpack.extend(make_same(model))
    with backpack.backpack(extensions.KFLR()):
        backpack.extend(nn.CrossEntropyLoss(reduction="mean"))(theirs(x), y).backward()
    for path, block in kfac(model, x).items():
        s, a = theirs.get_parameter(f"{path}.weight").kflr
        columns = a.shape[0]  # BackPACK keeps weight and bias apart
        assert_close(torch.kron(block.s, block.a[:columns, :columns]), torch.kron(s, a), **CLOSE)


# nngeometry


@pytest.mark.parametrize("kind", KINDS)
def test_nngeometry_has_the_same_full_matrix_diagonal_and_products(kind):
    metrics, forms = pytest.importorskip("nngeometry.metrics"), pytest.importorskip("nngeometry.object")
    model, x, y = make(kind)
    make_theirs = {"variant": "classif_logits", "device": "cpu"}
    theirs = metrics.FIM(model, loader(x, y), forms.PMatDense, **make_theirs)
    assert_close(full_fisher(model, x), theirs.to_torch(), **CLOSE)
    diagonal = metrics.FIM(model, loader(x, y), forms.PMatDiag, **make_theirs).get_diag()
    assert_close(flat(diagonal_fisher(model, x).values()), diagonal, **CLOSE)
    v = torch.randn(2, len(diagonal))
    for row, expected in zip(fisher_product(model, x)(v), v @ theirs.to_torch(), strict=True):
        assert_close(row, expected, **CLOSE)


def test_nngeometry_has_the_same_kfac_and_ekfac_of_linear_layers():
    metrics, forms = pytest.importorskip("nngeometry.metrics"), pytest.importorskip("nngeometry.object")
    model, x, y = make("dense")
    for ours, form in ((kfac(model, x), forms.PMatKFAC), (ekfac(model, x), forms.PMatEKFAC)):
        theirs = metrics.FIM(model, loader(x, y), form, variant="classif_logits", device="cpu")
        if form is forms.PMatEKFAC:
            theirs.update_diag(loader(x, y))
        assert_close(product_matrix(ours, model), theirs.to_torch(), **CLOSE)


# curvlinops


def curvlinops_matrix(operator, model: nn.Module) -> Tensor:
    return operator @ torch.eye(sum(p.numel() for p in model.parameters()))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_curvlinops_has_the_same_gauss_newton_matrix(kind):
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = make(kind)
    theirs = curvlinops.GGNLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), loader(x, y))
    matrix = curvlinops_matrix(theirs, model)
    assert_close(full_fisher(model, batches(x, batch_size=7)), matrix, **CLOSE)
    v = torch.randn(3, len(matrix))
    assert_close(fisher_product(model, x)(v), v @ matrix, **CLOSE)
    blocks = block_fisher(model, x)
    assert_close(blocks["0.weight"], matrix[: len(blocks["0.weight"]), : len(blocks["0.weight"])], **CLOSE)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", KINDS)
def test_curvlinops_has_the_same_kfac_and_ekfac(kind, sharing):
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = make(kind)
    data = batches(x, y, batch_size=8)
    options = {"kfac_approx": sharing, "separate_weight_and_bias": False}
    for corrected in (False, True):
        operator = curvlinops.EKFACLinearOperator if corrected else curvlinops.KFACLinearOperator
        exact, empirical = (ekfac, empirical_ekfac) if corrected else (kfac, empirical_kfac)
        for kind_of_fisher, ours in (("type-2", exact), ("empirical", empirical)):
            task = model, nn.CrossEntropyLoss(), list(model.parameters()), loader(x, y)
            theirs = operator(*task, fisher_type=kind_of_fisher, **options)
            found = product_matrix(ours(model, data, sharing=sharing), model)
            assert_close(found, curvlinops_matrix(theirs, model), **CLOSE)


# kronfluence


class Tokens(nn.Module):
    """Outputs for each token; the second layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(7, 3), nn.Linear(3, 5)
        self.again, self.out = nn.Linear(5, 5), nn.Linear(5, C)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.embed(x).cumsum(1))
        return self.out(torch.tanh(self.again(torch.tanh(self.again(torch.tanh(h))))))


@pytest.mark.filterwarnings("ignore:.torch.cuda.amp.GradScaler:FutureWarning")
@pytest.mark.parametrize("kind", ["dense", "tokens", "masked"])
def test_kronfluence_has_the_same_factors_and_corrected_eigenvalues(kind):
    pytest.importorskip("kronfluence")
    from kronfluence.analyzer import prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.factor import covariance, eigen
    from kronfluence.task import Task
    from kronfluence.utils.state import State

    if kind == "dense":
        model, x, y = make("dense")
        mask = None
    else:
        model, x, y = Tokens(), torch.randint(0, 7, (N, 3)), torch.randint(0, C, (N, 3))
        mask = torch.arange(3) < torch.randint(1, 4, (N, 1)) if kind == "masked" else None
    data = batches(x, y, mask, 8)
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "again"]
    ours = empirical_ekfac(model, data, layers=layers)

    class Likelihood(Task):
        def compute_train_loss(self, batch, model, sample=False):  # noqa: ARG002
            loss = F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten(), reduction="none")
            return (loss if mask is None else loss * batch[2].flatten()).sum()

        def compute_measurement(self, batch, model):
            raise NotImplementedError

        def get_influence_tracked_modules(self):
            return layers

        def get_attention_mask(self, batch):
            return None if mask is None else batch[2].long()

    wide = ("activation_covariance", "gradient_covariance", "eigendecomposition", "per_sample_gradient", "lambda")
    arguments = FactorArguments(use_empirical_fisher=True, **{f"{name}_dtype": torch.float64 for name in wide})
    theirs = prepare_model(model, Likelihood())
    parts = [t for t in (x, y, mask) if t is not None]
    common = {"task": Likelihood(), "loader": DataLoader(TensorDataset(*parts), 8), "factor_args": arguments}
    state = State(cpu=True)
    _, factors = covariance.fit_covariance_matrices_with_loader(theirs, state, disable_tqdm=True, **common)
    bases = eigen.perform_eigendecomposition(deepcopy(factors), theirs, state, arguments, disable_tqdm=True)
    _, squares = eigen.fit_lambda_matrices_with_loader(theirs, state, eigen_factors=bases, disable_tqdm=True, **common)
    for path, block in ours.items():
        count = factors["num_activation_covariance_processed"][path]
        assert_close(block.a, factors["activation_covariance"][path] / count, **CLOSE)
        assert_close(block.s, factors["gradient_covariance"][path] / len(x), **CLOSE)  # ours sums over positions
        basis = [bases[f"{side}_eigenvectors"][path] for side in ("gradient", "activation")]
        q, turned = torch.kron(*basis), torch.kron(block.q_s, block.q_a)
        expected = (q * (squares["lambda_matrix"][path] / len(x)).flatten()) @ q.T
        assert_close(dense(block), expected, **CLOSE)
        assert_close((turned.T @ q).abs(), torch.eye(len(q)), rtol=0, atol=1e-6)
