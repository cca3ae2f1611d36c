"""Where patches and class tokens stand in a sequence."""

import pytest
import torch
from helpers import images, random, relative_error, small_vim

import vimlrp
from vimlrp.tokens import CLASS_TOKEN_PLACES, TokenLayout

SPECIAL = {"middle": (3,), "head": (0,), "tail": (6,), "double": (0, 7), "none": ()}


@pytest.mark.parametrize("place", CLASS_TOKEN_PLACES)
def test_insertion_and_picking_undo_each_other(place):
    layout = TokenLayout((2, 3), place)
    assert layout.special == SPECIAL[place]
    patches, special = random(2, 6, 4), random(2, len(layout.special), 4, seed=1)
    sequence = layout.insert(patches, special)
    assert sequence.shape == (2, layout.length, 4)
    assert torch.equal(layout.patches_of(sequence), patches)
    assert torch.equal(layout.special_of(sequence), special)


def test_middle_stands_before_the_second_half():
    sequence = TokenLayout((1, 5), "middle").insert(
        torch.arange(5.0).view(1, 5, 1), torch.full((1, 1, 1), -1.0)
    )
    assert sequence.flatten().tolist() == [0, 1, -1, 2, 3, 4]


@pytest.mark.parametrize("place", CLASS_TOKEN_PLACES)
@pytest.mark.parametrize("grid", [(1, 1), (3, 1), (2, 5)])
def test_every_place_is_filled_once(grid, place):
    layout = TokenLayout(grid, place)
    patches = layout.patches_of(torch.arange(layout.length).unsqueeze(0))[0].tolist()
    assert patches == sorted(patches)
    assert sorted([*patches, *layout.special]) == list(range(layout.length))


@pytest.mark.parametrize("place", CLASS_TOKEN_PLACES)
def test_patches_of_a_map_lie_where_their_tokens_are(place):
    pool = "avg" if place == "none" else "token"
    model = small_vim(class_token=place, global_pool=pool, img_size=(24, 40))
    with torch.no_grad():
        model.pos_embed.zero_()
        model.patch_embed.proj.bias.zero_()
    x = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)).double()
    relevance = vimlrp.explain(model, x)
    kept = [t for t in range(model.layout.length) if t not in model.layout.special]
    # Without position and bias a patch's token is its content alone.
    assert relative_error(relevance.patches.flatten(1), relevance.tokens[:, kept]) < 1e-12
    blocks = relevance.pixels.unflatten(2, (5, 8)).unflatten(1, (3, 8)).sum((2, 4))
    assert relative_error(relevance.patches, blocks) < 1e-11
    special = relevance.tokens[:, list(model.layout.special)].sum(1)
    given = relevance.account.parts.get("class token", torch.zeros(2).double())
    assert (special - given).abs().max() < 1e-12


def test_a_model_without_tokens_site_has_no_token_relevance():
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_vim()

        def forward(self, x):
            model = self.inner
            return model.head(model.patch_embed(x).mean(1))

    relevance = vimlrp.explain(Bare(), images())
    assert relevance.tokens is None
    assert relevance.account.residue.abs().max() < 1e-12
    joined = vimlrp.Relevance.cat([relevance, relevance])
    assert joined.tokens is None
    assert len(joined) == 4
