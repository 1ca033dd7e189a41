import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.image import rle

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def slow_encode(mask: NDArray[np.bool_]) -> str:
    """The rule read literally: walk the columns, one pixel at a time."""
    words: list[str] = []
    number = length = 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            number += 1
            if mask[row, column]:
                length += 1
            elif length:
                words += [str(number - length), str(length)]
                length = 0
    if length:
        words += [str(number - length + 1), str(length)]
    return " ".join(words)


def slow_decode(encoded: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size_hw, np.bool_)
    numbers = [int(word) for word in encoded.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for number in range(start, start + length):
            column, row = divmod(number - 1, size_hw[0])
            mask[row, column] = True
    return mask


def test_pixels_run_down_the_columns_and_count_from_one() -> None:
    # pixel numbers:   1 4 7 10
    #                  2 5 8 11
    #                  3 6 9 12
    mask = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1]], np.bool_)
    assert rle.encode(mask) == "2 2 6 1 12 1"
    np.testing.assert_array_equal(rle.decode("2 2 6 1 12 1", (3, 4)), mask)


@given(masks)
def test_codec_agrees_with_the_rule_read_literally(mask: NDArray[np.bool_]) -> None:
    encoded = slow_encode(mask)
    for laid_out in (mask, mask.T.copy().T, np.repeat(mask, 2, axis=1)[:, ::2], np.asfortranarray(mask)):
        assert rle.encode(laid_out) == encoded
    decoded = rle.decode(encoded, (mask.shape[0], mask.shape[1]))
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.dtype == np.bool_
    assert decoded.flags.c_contiguous


def test_runs_may_touch_and_blanks_do_not_matter() -> None:
    np.testing.assert_array_equal(rle.decode(" 1  2\t3 2\n", (4, 2)), slow_decode("1 4", (4, 2)))
    assert rle.decode("  ", (3, 5)).tolist() == [[False] * 5] * 3
    assert rle.encode(np.zeros((0, 7), np.bool_)) == ""


@pytest.mark.parametrize(
    ("encoded", "pair", "why"),
    [
        ("1 2 5", "pair 2 \\('5'\\)", "lacks its length"),
        ("1 2 5 0", "pair 2 \\('5 0'\\)", "length below 1"),
        ("1 -2", "pair 1 \\('1 -2'\\)", "length below 1"),
        ("0 3", "pair 1 \\('0 3'\\)", "starts below 1"),
        ("1 2 12 2", "pair 2 \\('12 2'\\)", "beyond the last pixel 12 of an image of 3 rows x 4 columns"),
        ("13 1", "pair 1 \\('13 1'\\)", "beyond the last pixel 12"),
        ("1 3 3 2", "pair 2 \\('3 2'\\)", "overlaps the pair ahead of it, which ends at 3"),
        ("1 3 1 3", "pair 2 \\('1 3'\\)", "overlaps"),
        ("7 2 1 2", "pair 2 \\('1 2'\\)", "sorted"),
        ("1 2 five 6", "pair 2 has 'five'", "whole number"),
        ("1 1_0", "pair 1 has '1_0'", "whole number"),
        ("1 ٣", "pair 1 has '٣'", "whole number"),
        ("1 99999999999999999999", "pair 1 has '99999999999999999999'", "whole number"),
        ("999999999999999 999999999999999", "pair 1", "beyond"),
    ],
)
def test_faulty_run_lengths_are_refused_with_image_and_pair(encoded: str, pair: str, why: str) -> None:
    with pytest.raises(LabelError, match=f"^a.jpg, ClassId 3: .*{pair}") as caught:
        rle.decode(encoded, (3, 4), where="a.jpg, ClassId 3")
    assert why in str(caught.value)


def test_end_of_the_image_is_not_checked_where_its_size_is_unknown() -> None:
    assert rle.parse_pairs("1 2 409601 5").tolist() == [[1, 2], [409601, 5]]


@given(st.text(alphabet="0123456789 -.a", max_size=30))
def test_any_text_is_either_decoded_as_the_rule_says_or_refused(encoded: str) -> None:
    try:
        mask = rle.decode(encoded, (5, 7))
    except LabelError:
        return
    np.testing.assert_array_equal(mask, slow_decode(encoded, (5, 7)))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_united_run_lengths_are_those_of_both_masks(pixels: list[tuple[bool, bool]]) -> None:
    one, other = np.array(pixels).T[:, None]
    assert rle.unite(rle.encode(one), rle.encode(other)) == rle.encode(one | other)
    runs = rle.encode(one).split()
    turned = [" ".join(runs[at : at + 2]) for at in range(0, len(runs), 2)][::-1]
    assert rle.unite(*turned, rle.encode(one)) == rle.encode(one)
