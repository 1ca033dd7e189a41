import gzip
from pathlib import Path

import pytest

from defectseg.data.table import LabelRow, LabelTable, read_label_table, scan_label_rows
from defectseg.errors import LabelError

WANTED = {"a.jpg": {1: "1 3", 4: "10 2 20 5"}, "b.jpg": {3: "7 1"}}


def table(tmp_path: Path, text: str, name: str = "train.csv") -> LabelTable:
    (tmp_path / name).write_bytes(text.encode())
    return read_label_table(tmp_path / name)


LAYOUTS = {
    "defects only": "ImageId,ClassId,EncodedPixels\na.jpg,1,1 3\na.jpg,4,10 2 20 5\nb.jpg,3,7 1\n",
    "class and image in one": (
        "ImageId_ClassId,EncodedPixels\na.jpg_1,1 3\na.jpg_2,\na.jpg_3,\na.jpg_4,10 2 20 5\n"
        "b.jpg_1,\nb.jpg_2,\nb.jpg_3,7 1\nb.jpg_4,\n"
    ),
    "a column for each class": "img,1,2,3,4\na.jpg,1 3,,,10 2 20 5\nb.jpg,,,7 1,\n",
    "a column for each class, with row numbers": ",ImageId,1,2,3,4\n0,a.jpg,1 3,,,10 2 20 5\n1,b.jpg,,,7 1,\n",
    "columns with a word and a number": "ImageId,e1,e2,e3,e4,count\na.jpg,1 3,,,10 2 20 5,2\nb.jpg,,,7 1,,1\n",
    "numbers beside other columns": "image,1,2,3,4\na.jpg,1 3,,,10 2 20 5\nb.jpg,,,7 1,\n",
    "submission": "ImageId,EncodedPixels,ClassId\na.jpg,1 3,1\na.jpg,10 2 20 5,4\nb.jpg,7 1,3\n",
    "other case and blanks": "imageid, classid, encodedpixels\na.jpg,1,1 3\na.jpg,4,10 2 20 5\nb.jpg,3,7 1\n",
    "numbers from pandas": "ImageId,ClassId,EncodedPixels\na.jpg,1.0,1 3\na.jpg,4.0,10 2 20 5\nb.jpg,3.0,7 1\n",
    "more columns": ",ImageId,ClassId,EncodedPixels,note\n0,a.jpg,1,1 3,x\n1,a.jpg,4,10 2 20 5,\n2,b.jpg,3,7 1,y\n",
    "quoted": '"ImageId","ClassId","EncodedPixels"\n"a.jpg","1","1 3"\n"a.jpg","4","10 2 20 5"\n"b.jpg","3","7 1"\n',
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_layout_says_the_same(tmp_path: Path, layout: str, line_end: str, mark: str) -> None:
    read = table(tmp_path, mark + LAYOUTS[layout].replace("\n", line_end))
    assert read == LabelTable(WANTED, frozenset({"a.jpg", "b.jpg"}))


@pytest.mark.parametrize("name", ["train.csv.gz", "train.csv"])
def test_gzip_is_recognised_by_its_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(LAYOUTS["defects only"].encode()))
    assert read_label_table(tmp_path / name).rles == WANTED


@pytest.mark.parametrize("blank", ["", "nan", "NaN", "-1", "0 0", " ", "None", '""'])
@pytest.mark.parametrize(
    "layout",
    ["ImageId,ClassId,EncodedPixels\na.jpg,2,{}\n", "ImageId_ClassId,EncodedPixels\na.jpg_2,{}\n", "img,1\na.jpg,{}\n"],
)
def test_blank_in_every_spelling_lists_a_clean_image(tmp_path: Path, blank: str, layout: str) -> None:
    assert table(tmp_path, layout.format(blank)) == LabelTable({}, frozenset({"a.jpg"}))


@pytest.mark.parametrize("row", ["a.jpg,,", "a.jpg,nan,nan", "a.jpg,0,", "a.jpg,-1,-1", "a.jpg,0,1 409600"])
def test_row_without_a_class_lists_a_clean_image(tmp_path: Path, row: str) -> None:
    # the last one is how every row of Severstal's sample_submission.csv looks
    assert table(tmp_path, f"ImageId,ClassId,EncodedPixels\n{row}\n") == LabelTable({}, frozenset({"a.jpg"}))


def test_table_of_a_header_alone_lists_nothing(tmp_path: Path) -> None:
    assert table(tmp_path, "ImageId,ClassId,EncodedPixels\n") == LabelTable({}, frozenset())


def test_class_255_is_kept(tmp_path: Path) -> None:
    read = table(tmp_path, "ImageId,ClassId,EncodedPixels\na.jpg,255,1 3\na.jpg,2,5 1\n")
    assert read.rles == {"a.jpg": {255: "1 3", 2: "5 1"}}


def test_run_lengths_longer_than_the_csv_modules_limit_are_read(tmp_path: Path) -> None:
    encoded = " ".join(f"{start} 1" for start in range(1, 200_000, 2))
    assert table(tmp_path, f"ImageId,ClassId,EncodedPixels\na.jpg,1,{encoded}\n").rles["a.jpg"][1] == encoded


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.jpg,1,1 3\nb.jpg,5,1 2 3", "line 3: b.jpg, ClassId 5: pair 2 \\('3'\\) lacks its length"),
        ("\n\na.jpg,1,3 1 2 1", "line 4: a.jpg, ClassId 1: pair 2 \\('2 1'\\) starts before"),
        ("a.jpg,x,1 3", "line 2: ClassId 'x'; expected a whole number, 1 to 254"),
        ("a.jpg,256,1 3", "line 2: ClassId '256'"),
        ("a.jpg,-1,1 3", "line 2: ClassId '-1'"),
        ("a.jpg,,1 3", "line 2: ClassId ''"),
        ("a.jpg,1.5,1 3", "line 2: ClassId '1.5'"),
        ("a.jpg,0,5 3", "line 2: ClassId '0'"),
        ("a.jpg,1,1 3\nb.jpg,1,\na.jpg,1,7 1", "line 4: a.jpg, ClassId 1 stands in line 2 already"),
        ("a.jpg,1,\na.jpg,1,7 1", "line 3: a.jpg, ClassId 1 stands in line 2 already"),
        ("a.jpg,1", "line 2: has 2 fields, not 3"),
        ("a.jpg,1,1 3,7 2", "line 2: has 4 fields, not 3"),
        ("../a.jpg,1,1 3", "line 2: ImageId '../a.jpg' is not a path below train_images/"),
    ],
)
def test_faulty_rows_are_refused_with_file_and_line(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(LabelError, match=rf"train\.csv, {message}"):
        table(tmp_path, f"ImageId,ClassId,EncodedPixels\n{rows}\n")


def test_all_faults_are_collected_by_line_beside_the_sound_rows(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(
        "ImageId,ClassId,EncodedPixels\na.jpg,1,1 3\na.jpg,1,5 1\n/b.jpg,1,1 1\nc.jpg,9\nd.jpg,0,2 2\ne.jpg,2,4 0\n"
    )
    scan = scan_label_rows(path)
    assert scan.rows == [LabelRow(2, "a.jpg", 1, "1 3")]
    assert [(fault.kind, fault.row, fault.image) for fault in scan.faults] == [
        ("duplicate", 3, "a.jpg"),
        ("image-id", 4, "/b.jpg"),
        ("fields", 5, ""),
        ("class", 6, "d.jpg"),
        ("rle", 7, "e.jpg"),
    ]
    with pytest.raises(LabelError, match=r"line 3: .*\(4 more faulty rows\.\)"):
        read_label_table(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"a.jpg,1,1 3\n", "the header 'a.jpg,1,1 3' is not known; expected, separated by commas"),
        (b"ImageId;ClassId;EncodedPixels\na.jpg;1;1 3\n", "separated by commas"),
        (b"ImageId,EncodedPixels\na.jpg,1 3\n", "is not known"),
        (b"ImageId,Class\na.jpg,1\n", "is not known"),
        ("ImageId,ClassId,EncodedPixels\n".encode("utf-16"), "not UTF-8 text"),
        (b"PK\x03\x04\xff\xff", "ZIP archive: unpack it"),
        (gzip.compress(b"ImageId,ClassId,EncodedPixels\n" * 9, mtime=0)[:-9], "gzip file is damaged or cut short"),
        (b"\x1f\x8bnonsense", "gzip file is damaged or cut short"),
    ],
)
def test_files_that_are_no_label_table_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(LabelError, match=r"train\.csv: ") as caught:
        read_label_table(tmp_path / "train.csv")
    assert message in str(caught.value)


def test_missing_table_is_a_label_error(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="cannot be read"):
        read_label_table(tmp_path / "none.csv")


def test_columns_named_by_classes_are_numbered_as_these(tmp_path: Path) -> None:
    text = "ImageId,scratch,pit,note\na.jpg,1 3,,x\nb.jpg,,5 1,\n"
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(LabelError, match=r"is not known.*write all their names into classes\.txt"):
        read_label_table(path)
    (tmp_path / "classes.txt").write_text("pit\ncrack\nscratch\n")
    by_name = {"a.jpg": {3: "1 3"}, "b.jpg": {1: "5 1"}}
    assert read_label_table(path).rles == by_name
    assert read_label_table(path, class_names=["scratch", "pit"]).rles == {"a.jpg": {1: "1 3"}, "b.jpg": {2: "5 1"}}


def test_a_faulty_cell_in_a_column_of_a_class_is_a_fault_of_its_row(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"line 3: b\.jpg, ClassId 2: pair 1 \('7'\) lacks its length"):
        table(tmp_path, "ImageId,e1,e2\na.jpg,1 3,\nb.jpg,,7\n")


@pytest.mark.parametrize(
    "text",
    [
        "ImageId,pit,scratch\na.jpg,1 3,\n",  # a blank column may be a class
        "ImageId,pit,mixed\na.jpg,1 3,x\nb.jpg,,1 3\n",
        "ImageId,e1,e2,f1\na.jpg,1 3,,5 1\n",
        "ImageId,1,2,pit\na.jpg,1 3,,5 1\n",
        "name,station,1,2\na.jpg,x,1 3,\n",  # which of the two names the image?
        "ImageId,e1,e1\na.jpg,1 3,\n",
        "ImageId,e1,e2\na.jpg,,\n",
    ],
)
def test_columns_that_are_not_certain_are_refused_with_what_to_rename(tmp_path: Path, text: str) -> None:
    with pytest.raises(LabelError, match=r"is not known.*Rename the column of the images"):
        table(tmp_path, text)


INSTANCES = "ImageId,ClassId,EncodedPixels\na.jpg,1,1 3 10 2\na.jpg,1,3 4\nb.jpg,2,\nb.jpg,2,5 1\na.jpg,1,12 1\n"


def test_a_row_for_each_instance_is_a_fault_that_says_how_to_unite_them(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"line 3: .*stands in line 2 already.*import DIR --unite --out NEW"):
        table(tmp_path, INSTANCES)


def test_rows_of_instances_are_all_taken_on_request(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(INSTANCES)
    scan = scan_label_rows(tmp_path / "train.csv", unite=True)
    assert ([row.line for row in scan.rows], scan.faults) == ([2, 3, 4, 5, 6], [])
