"""What can be wrong with a folder in Pascal VOC's format, and how its files are read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from written_sets import SPLIT, UNSPLIT, records_of, voc_official, voc_side_by_side, write_text

from onenet.data import register_folder
from onenet.utils.errors import DataError

XML = "Annotations/a.xml"
TRAIN = "ImageSets/Main/train.txt"


@pytest.fixture
def root(tmp_path) -> Path:
    """As the VOC challenges had it."""
    voc_official(tmp_path, SPLIT)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            XML,
            "<size>",
            "<siz>",
            r"a.xml cannot be read \(mismatched tag: line 1, column .*: mend it",
        ),
        (XML, "<size><width>97</width>", "<size>", r"a.xml lacks the <size/width> of its <annotat"),
        (XML, ">61<", ">0<", r"a.xml has the <size> 97 x 0: write the image's size in pixels"),
        (XML, ">61<", ">tall<", r"a.xml has the <size/height> 'tall' in its <annotation>, which"),
        (XML, ">61<", ">62<", r"a.xml gives .*a.png a size of 97 x 62 .*has 97 x 61: annotate"),
        (XML, "<name>dog</name>", "", r"a.xml lacks the <name> of its <object> number 2: mend"),
        (XML, "<xmin>14</xmin>", "", r"a.xml lacks the <bndbox/xmin> of its <object> number 2"),
        (
            XML,
            ">14<",
            ">nan<",
            r"a.xml has the <bndbox/xmin> 'nan' in its <object> number 2, which",
        ),
        (XML, ">14<", ">1e20<", r"a.xml has the <bndbox/xmin> '1e20' in its <object> number 2"),
        (XML, ">14<", ">95<", r"object 2 \(dog\) in .*a.xml has the <bndbox> 95, .* is negative"),
        (TRAIN, "a\n", "a\nz\n", r"line 2 of .*train.txt names 'z', and there is no Annotations/z"),
        (TRAIN, "a\n", "a\na\n", r"has the image .*a.png twice: name it once"),
        (TRAIN, "a\nb\nd\n", "\n", r"train.txt is empty: name images in it"),
        (TRAIN, "d\n", "\n", r""),
    ],
)
def test_what_is_wrong_is_named(root, file, old, new, message):
    path = root / file
    text = "a\nb\nd\n" if file == TRAIN else path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if not message:
        assert len(records_of(register_folder(str(root)))["train"]) == 2
        return
    with pytest.raises(DataError, match=message) as error:
        register_folder(str(root))
    assert str(root) in str(error.value) and "\n" not in str(error.value)
    assert not any(name.startswith(str(root)) for name in DatasetCatalog)


def test_boxes_of_a_resized_image_are_scaled(root, caplog):
    """Here to a half, rounded, in both directions."""
    before = records_of(register_folder(str(root)))["train"][0]
    path = root / "JPEGImages" / "a.png"
    with Image.open(path) as image:
        image.resize((49, 31)).save(path)
    after = records_of(register_folder(str(root)))["train"][0]
    assert (after["width"], after["height"]) == (49, 31) and before["width"] == 97
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        x, y, width, height = old["bbox"]
        expected = [x * 49 / 97, y * 31 / 61, width * 49 / 97, height * 31 / 61]
        assert new["bbox"] == pytest.approx(expected, abs=0.011)
    assert "1 of 3 images" in caplog.text and "boxes are scaled" in caplog.text


@pytest.mark.parametrize("names_file", ["classes.txt", "labels.txt", "labelmap.txt"])
def test_files_of_names_give_the_order_of_the_classes(root, names_file):
    (root / names_file).write_text("owl\ncat\nbackground\ndog\n")
    classes = MetadataCatalog.get(register_folder(str(root))["train"]).thing_classes
    kept = ["background"] if names_file != "labelmap.txt" else []
    assert classes == ["owl", "cat", *kept, "dog"]
    (root / names_file).write_text("owl\ncat\n")
    with pytest.raises(
        DataError, match=r"\w.xml has an object of class 'dog', which is none of owl"
    ):
        register_folder(str(root))


def test_missing_and_doubtful_images(root):
    (root / "JPEGImages/d.png").rename(root / "JPEGImages/z.png")
    with pytest.raises(DataError, match=r"d.xml has no image: put d.jpg, or another image of this"):
        register_folder(str(root))
    (root / "JPEGImages/d.png").touch()
    (root / "JPEGImages/d.jpg").touch()
    with pytest.raises(DataError, match=r"JPEGImages/d.jpg and JPEGImages/d.png .* share the anno"):
        register_folder(str(root))
    (root / "JPEGImages/d.jpg").unlink()
    with pytest.raises(DataError, match=r"The image .*d.png cannot be read \(it has 0 bytes\)"):
        register_folder(str(root))


def test_images_without_an_xml_are_told(tmp_path, caplog):
    voc_side_by_side(tmp_path, UNSPLIT)
    (tmp_path / "b.xml").unlink()
    with caplog.at_level(logging.INFO):
        names = register_folder(str(tmp_path), val_share=0)
    assert len(records_of(names)["train"]) == 4
    assert "1 images in" in caplog.text and "they are not used" in caplog.text


def test_a_box_that_begins_outside_is_told(root, caplog):
    (root / XML).write_text((root / XML).read_text().replace("<xmin>14<", "<xmin>-234<"))
    register_folder(str(root))
    assert "leave their image by more than a pixel and are clipped to it" in caplog.text


def test_a_set_without_objects(tmp_path):
    write_text(tmp_path / "a.xml", "<annotation><size><width>9</width><height>9</height></size>"
               "</annotation>")  # fmt: skip
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="no xml in .* has an <object>: annotate some first"):
        register_folder(str(tmp_path))


@pytest.mark.parametrize("encoding", ["UTF-8", "iso-8859-1", "utf-16", "gb2312", "shift_jis"])
def test_encodings(root, encoding):
    name = "\u732b" if encoding in ("gb2312", "shift_jis", "utf-16") else "ch\u00eft"
    text = (root / XML).read_text().replace(">cat<", f">{name}<")
    declared = f"<?xml version='1.0' encoding='{encoding}'?>\n{text}"
    (root / XML).write_bytes(declared.encode(encoding))
    assert name in MetadataCatalog.get(register_folder(str(root))["train"]).thing_classes


def test_wrong_encodings(root):
    text = (root / XML).read_text().replace(">cat<", ">ch\u00eft<")
    declared = "<?xml version='1.0' encoding='{}'?>\n"
    (root / XML).write_bytes((declared.format("utf-8") + text).encode("latin-1"))
    with pytest.raises(
        DataError, match=r"a.xml cannot be read: it is not in the encoding that its"
    ):
        register_folder(str(root))
    (root / XML).write_bytes((declared.format("klingon") + text).encode())
    with pytest.raises(DataError, match=r"a.xml cannot be read \(unknown encoding: klingon"):
        register_folder(str(root))


def test_difficult_objects_are_crowd_regions(root, caplog):
    text = (root / XML).read_text()
    (root / XML).write_text(text.replace("<difficult>0", "<difficult>1", 1))
    names = register_folder(str(root))
    flags = [a["iscrowd"] for a in records_of(names)["train"][0]["annotations"]]
    assert flags == [1, 0, 0]
    assert f"1 of 5 annotations in {names['train']} are crowd regions" in caplog.text
    assert "set their <difficult> to 0" in caplog.text


def test_fractions_are_refused(tmp_path):
    voc_side_by_side(tmp_path, UNSPLIT)
    for path in tmp_path.glob("*.xml"):
        head, *objects = path.read_text().split("<bndbox>")
        box = "<bndbox><xmin>0.1</xmin><ymin>0.1</ymin><xmax>0.5</xmax><ymax>0.5</ymax></bndbox>"
        path.write_text(head + "".join(box + o.split("</bndbox>")[1] for o in objects))
    with pytest.raises(DataError, match=r"all boxes in .* lie between 0 and 1 \(object 1 \(cat\)"):
        register_folder(str(tmp_path))


def test_a_size_before_the_orientation_is_explained(root):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (97, 61)).save(root / "JPEGImages/a.png", exif=exif)
    with pytest.raises(DataError, match=r"has 61 x 97: if the image has an EXIF orientation"):
        register_folder(str(root))


def test_several_sets_in_a_folder(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        voc_official(tmp_path / year, SPLIT)
    with pytest.raises(DataError, match="has the two lists VOC2007/.*test.txt and VOC2012/.*test"):
        register_folder(str(tmp_path))
    assert len(register_folder(str(tmp_path / "VOC2012"))) == 3


def test_verified_annotations(tmp_path):
    """LabelImg notes it in the first tag."""
    voc_side_by_side(tmp_path, UNSPLIT)
    for path in tmp_path.glob("*.xml"):
        path.write_text(path.read_text().replace("<annotation>", '<annotation verified="yes">'))
    assert len(register_folder(str(tmp_path))) == 2


def test_only_a_list_of_training_and_validation_images(tmp_path):
    voc_official(tmp_path, SPLIT)
    lists = tmp_path / "ImageSets/Main"
    (lists / "trainval.txt").write_text("a\nb\nc\nd\n")
    names = register_folder(str(tmp_path))
    assert len(records_of(names)["train"]) == 3  # the finer lists are used
    (lists / "train.txt").unlink()
    (lists / "val.txt").unlink()
    names = register_folder(str(tmp_path))
    assert {s: len(r) for s, r in records_of(names).items()} == {"train": 3, "val": 1, "test": 1}
