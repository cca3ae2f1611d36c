import pytest
from timm.data import ImageNetInfo

from vimlrp.evaluation.labels import label_of
from vimlrp.models.labels import IMAGENETTE

INFO = ImageNetInfo("imagenet-1k")
IMAGENET = tuple(INFO.index_to_description(i) for i in range(1000))
BIRD, MACHINE = "n02012849", "n03126707"  # both are called "crane"


def index(text, names=IMAGENET):
    return label_of(text, "a.png", names, len(names))[0]


def problem(text, names=IMAGENET):
    label, found = label_of(text, "a.png", names, len(names))
    assert label is None
    assert found.sample == "a.png"
    return found


def test_every_synset_of_imagenet_is_its_own_class():
    assert [index(wnid) for wnid in INFO.label_names()] == list(range(1000))


@pytest.mark.parametrize("wnid", ["n00007846", "n99999999"])  # one of ImageNet-21k, and none
def test_a_synset_that_the_model_lacks_is_missing(wnid):
    assert problem(wnid).kind == "class missing from the model"
    assert problem(wnid, IMAGENETTE).kind == "class missing from the model"


@pytest.mark.parametrize(
    ("name", "classes"),
    [("crane", (134, 517)), ("Maillot", (638, 639)), ("horn", (513, 566)), ("missile", (657, 744))],
)
def test_a_name_of_several_classes_is_none_of_them(name, classes):
    found = problem(name)
    assert found.kind == "class of more than one meaning"
    assert all(f"{i} ({IMAGENET[i]})" in found.detail for i in classes)
    assert "WordNet id" in found.detail


def test_what_tells_them_apart_is_understood():
    assert (index(BIRD), index(MACHINE)) == (134, 517)
    assert (index("134"), index("517")) == (134, 517)
    assert index("maillot, tank suit") == 639
    assert index("sunglasses") == IMAGENET.index("sunglasses, dark glasses, shades")
    assert index("sunglass") == IMAGENET.index("sunglass")


def test_a_name_is_understood_before_an_index_and_a_synset_as_a_name():
    assert index("1", ("2", "1", "0")) == 1
    assert index("0", ("one", "two")) == 0
    assert index(MACHINE, (BIRD, MACHINE)) == 1


def test_a_synset_of_a_model_with_words_of_its_own():
    assert index("n01440764", ("dog", "Tench")) == 1
    assert index("n02979186", IMAGENETTE) == 2
    assert problem("n03394916", ("horn", "French horn")).kind == "class of more than one meaning"


@pytest.mark.parametrize("text", ["2", "-1", "1.5", "dog"])
def test_a_model_without_names_has_its_indices_alone(text):
    label, found = label_of(text, "a.png", None, 2)
    assert label is None
    assert found.kind == "class missing from the model"
    assert label_of("1", "a.png", None, 2) == (1, None)
