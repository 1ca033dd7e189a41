import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectseg.predict.names import TakenNames, output_names


@pytest.mark.parametrize(
    "names",
    [
        {"a.jpg": "a", "b.png": "b"},
        {"a.jpg": "a.jpg", "a.png": "a.png", "b.png": "b"},
        {"A.jpg": "A.jpg", "a.jpg": "a.jpg"},
        {"a.JPG": "a.JPG", "a.jpg": "a.jpg"},
        {"night/a.jpg": "night/a", "day/a.jpg": "day/a", "a.jpg": "a"},
        {"Night/a.jpg": "Night/a.jpg", "night/a.png": "night/a.png"},
        {"roll.1.jpg": "roll.1", "roll.2.jpg": "roll.2"},
        # a.jpg keeps its suffix because of a.png, and so becomes what a.jpg.bmp would be called.
        {"a.jpg": "a.jpg", "a.png": "a.png", "a.jpg.bmp": "a.jpg.bmp"},
        {"v1.0/a.jpg": "v1.0/a", "v1.0.png": "v1.0"},
        # Its overlay would be overlays/a.jpg, which has to be a folder.
        {"a.png": "a.png", "a.jpg/b.png": "a.jpg/b"},
        {"ä.jpg": "ä", "日本.png": "日本"},
    ],
    ids=lambda names: " ".join(names),
)
def test_pictures_lose_the_suffix_of_their_image_unless_two_would_meet(names: dict[str, str]) -> None:
    assert output_names(names) == names
    assert output_names(reversed(list(names))) == names


image_ids = st.lists(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "a/", "a.jpg/", "A/", "a.png.jpg/"]),
        st.sampled_from(["a", "A", "b", "a.jpg", "a.png"]),
        st.sampled_from([".jpg", ".png", ".JPG", ".jpg.bmp"]),
    ),
    unique=True,
    max_size=12,
)


@given(image_ids)
@settings(max_examples=60)
def test_no_two_pictures_share_a_name(ids: list[str]) -> None:
    names = output_names(ids)

    assert sorted(names) == sorted(ids)
    assert len(set(names.values())) == len(ids)
    for one, name in names.items():
        twins = [other for other in ids if names[other].casefold() == name.casefold() and other != one]
        assert all(other.casefold() == one.casefold() for other in twins), "only ids equal but for case may"


@given(image_ids)
@settings(max_examples=300)
def test_one_more_image_clashes_where_names_change_or_it_keeps_its_suffix(ids: list[str]) -> None:
    assert not TakenNames({"x/a.png": "x/a", "b.png": "b"}).clash_with("a.png")
    taken = TakenNames({})
    for number, image_id in enumerate(ids):
        before, after = output_names(ids[:number]), output_names(ids[: number + 1])
        changes = any(before[one] != after[one] for one in before) or after[image_id] == image_id
        assert taken.clash_with(image_id) >= changes
        taken = TakenNames(after) if taken.clash_with(image_id) else taken
        taken.add(image_id, after[image_id])


@given(image_ids, image_ids)
@settings(max_examples=60)
def test_names_only_grow_as_images_are_added(ids: list[str], more: list[str]) -> None:
    before, after = output_names(ids), output_names({*ids, *more})

    assert all(after[one] in (before[one], one) for one in ids)


LONG = "x" * 250


@pytest.mark.parametrize(
    "ids",
    [
        (f"{LONG}.jpeg", f"{LONG}.webp"),
        (f"{LONG}a.jpg", f"{LONG}a.png", f"{LONG}b.jpg", f"{LONG}.jpeg"),
        tuple(f"{LONG[:-2]}.JPG.{suffix}" for suffix in ("jp", "pn")),
        ("ж" * 125 + ".jpeg", "ж" * 125 + ".tiff", "Ж" * 125 + ".jpeg"),
        (f"{'%80' * 100}/a.jpg", f"{'%80' * 99}/a.jpg"),
        tuple("/".join(["y" * 200] * 20 + [name]) for name in ("a.jpg", "a.png", "b.jpg")),
    ],
    ids=["longest", "251 and 255", "two suffixes", "two bytes a letter", "folders", "deep"],
)
def test_names_too_long_for_a_file_system_are_shortened_apart_and_each_time_alike(ids: tuple[str, ...]) -> None:
    names = output_names(ids)

    assert output_names(reversed(ids)) == names
    assert len({name.casefold() for name in names.values()}) == len(ids)
    for name in names.values():
        parts = f"{name}.jpg".split("/")
        assert max(len(part.encode()) for part in parts) <= 255
        assert len("/".join(parts).encode()) <= 2100
