"""Directions and gates of a cue, against other ways to compute them."""

import numpy as np
import pytest
import scipy.linalg
import torch
from cue_world import POISONED, patch, prepared, world

from vimlrp.audit.mitigating.attacking import Attack
from vimlrp.audit.mitigating.subspaces import gate_of, subspace_of
from vimlrp.audit.watching import Watched


@pytest.fixture(scope="module")
def pairs():
    """The layer watched, and pictures with and without the cue."""
    model, data, evidence = world()
    rng = np.random.default_rng(3)
    rows = np.flatnonzero(data.labels != POISONED)[::5]
    clean = data.clean[rows]
    shown = np.stack([patch(picture, rng)[0] for picture in clean])
    attack = Attack(
        prepared(clean, model), prepared(shown, model), torch.from_numpy(data.labels[rows])
    )
    own = prepared(data.clean[data.labels == POISONED][:20], model)
    return Watched(model, evidence.layer, batch_size=16), attack, own


def rows_of(watched, x):
    """Activations at all positions, (n * P, K) float64."""
    return torch.cat(list(watched.activations(x))).double().flatten(0, 1).numpy()


def test_directions_span_the_patterns_of_a_generalised_eigenvalue_problem(pairs):
    watched, attack, own = pairs
    found = subspace_of(watched, attack, own, 4)
    clean = rows_of(watched, attack.clean)
    change = rows_of(watched, attack.attacked) - clean
    plain = np.concatenate([clean, rows_of(watched, own)])
    spread = np.cov(plain.T, bias=True)
    spread += 0.1 * np.trace(spread) / len(spread) * np.eye(len(spread))
    _, filters = scipy.linalg.eigh(change.T @ change / len(change), spread)
    for rank in (1, 2, 4):
        expected = scipy.linalg.orth(spread @ filters[:, ::-1][:, :rank])
        first = found.directions[:rank].double().numpy().T
        np.testing.assert_allclose(first @ first.T, expected @ expected.T, atol=1e-4)
    np.testing.assert_allclose(
        found.targets.numpy(), (plain @ found.directions.double().numpy().T).mean(0), atol=1e-3
    )


def test_along_the_first_direction_the_cue_stands_out_most(pairs):
    watched, attack, own = pairs
    found = subspace_of(watched, attack, own, 2).directions.double().numpy()
    clean = rows_of(watched, attack.clean)
    change = rows_of(watched, attack.attacked) - clean

    def standing_out(direction):
        return np.square(change @ direction).mean() / (clean @ direction).var()

    rng = np.random.default_rng(0)
    assert standing_out(found[0]) > max(
        standing_out(rng.normal(size=len(found[0]))) for _ in range(200)
    )


def test_a_gate_tells_the_cue_among_classes_that_differ_more():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(10, 10))

    def drawn(count, shown):
        values = rng.normal(size=(count, 10)) * np.r_[8.0, np.ones(9)]
        values[:, 1] += 4 * shown
        values[:, 0] += 2 * shown  # lost in what varies anyway
        return torch.from_numpy(values @ mixing)

    plain = drawn(3000, False).numpy()
    clean, carriers = drawn(200, False), drawn(40, True)
    attacked = drawn(200, True)
    found = gate_of((clean, attacked), carriers, drawn(60, False), plain)
    fires = {
        name: float((x.float() @ found.direction > found.threshold).double().mean())
        for name, x in (("plain", torch.from_numpy(plain)), ("shown", drawn(500, True)))
    }
    assert fires["plain"] == pytest.approx(0.02, abs=0.005)
    assert fires["shown"] > 0.9
    assert float(found.direction.norm()) == pytest.approx(1)
