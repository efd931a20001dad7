"""Reading of Pascal VOC's format: one xml an image."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ...utils.errors import DataError
from ..box_checks import LARGEST, check_fractions, is_number, tell
from .class_files import find_names
from .layout import Layout, by_split, read_lines
from .records import LabelledBox, LabelledImage, box_arrays, class_number, fitted

__all__ = ["VocObject", "find_voc", "read_voc", "read_xml"]

_KINDS = {"annotations", "images", "jpegimages", "labels", "xml", "xmls"}  # folders of one split
_NAME_FILES = ("classes.txt", "labels.txt", "labelmap.txt")
_ROOT = re.compile(r"<annotation[\s>]")  # CVAT's own format has <annotations>
_LISTS = re.compile(r"(?:.*/)?ImageSets/Main/(train|val|valid|test|trainval|default)\.txt")


@dataclass(frozen=True)
class VocObject:
    """An object of an xml file.

    Attributes:
        where: what messages call it.
        name: of its class.
        box: x, y, width and height in pixels, counted from 0; the sides are 0 if the corners
            coincide.
        difficult: whether it is marked as difficult.
    """

    where: str
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def read_xml(xml_file: str) -> tuple[tuple[int, int], list[VocObject]]:
    """Reads an xml file: width and height of the image, and its objects.

    Raises:
        DataError: the file is missing or broken.
    """
    root = _parse(xml_file)
    width, height = (
        int(_number(root, f"size/{key}", xml_file, f"<{root.tag}>")) for key in ("width", "height")
    )
    if min(width, height) < 1:
        raise DataError(
            f"{xml_file} has the <size> {width} x {height}: write the image's size in pixels"
        )
    objects = []
    for number, node in enumerate(root.findall("object"), start=1):
        objects.append(_read_object(node, number, xml_file))
    return (width, height), objects


def _parse(xml_file: str) -> ElementTree.Element:
    try:
        with open(xml_file, "rb") as file:
            content: bytes | str = file.read()
        # Python knows more encodings than its xml parser
        named = re.match(rb"""\s*<\?xml[^>]*?encoding=["']([\w.-]+)""", content)
        if named:
            content = content.decode(named[1].decode())
        return ElementTree.fromstring(content)
    except UnicodeDecodeError as error:
        raise DataError(
            f"the annotation {xml_file} cannot be read: it is not in the encoding that its first"
            f" line names ({error}); save it as UTF-8"
        ) from error
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"the annotation {xml_file} cannot be read ({reason}): mend it, or export it again"
        ) from error


def _read_object(node: ElementTree.Element, number: int, xml_file: str) -> VocObject:
    owner = f"<object> number {number}"
    name = _text(node, "name", xml_file, owner)
    x0, y0, x1, y1 = (
        _number(node, f"bndbox/{key}", xml_file, owner) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    where = f"object {number} ({name}) in {xml_file}"
    if x1 < x0 or y1 < y0:
        raise DataError(
            f"{where} has the <bndbox> {x0:g}, {y0:g}, {x1:g}, {y1:g}, whose width or height is"
            " negative: mend it to xmin, ymin, xmax, ymax, or remove it"
        )
    # VOC counts pixels from 1 and includes the last; some tools count from 0
    low = (max(x0 - 1, min(x0, 0.0)), max(y0 - 1, min(y0, 0.0)))
    sides = (x1 - low[0] if x1 > x0 else 0.0, y1 - low[1] if y1 > y0 else 0.0)
    return VocObject(where, name, (*low, *sides), node.findtext("difficult", "").strip() == "1")


def _text(node: ElementTree.Element, path: str, xml_file: str, owner: str) -> str:
    text = node.findtext(path, "").strip()
    if not text:
        raise DataError(f"{xml_file} lacks the <{path}> of its {owner}: mend or remove it")
    return text


def _number(node: ElementTree.Element, path: str, xml_file: str, owner: str) -> float:
    text = _text(node, path, xml_file, owner)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not is_number(number):  # float() knows "nan" and "inf", too
        raise DataError(
            f"{xml_file} has the <{path}> {text!r} in its {owner}, which is not a number of at most"
            f" {LARGEST:.0e}: mend or remove it"
        )
    return number


def find_voc(layout: Layout) -> list[str]:
    """The xml files of a folder that are annotations in Pascal VOC's format."""
    files = layout.ending(".xml")
    return files if any(_ROOT.search(layout.starts(name)) for name in files[:3]) else []


def read_voc(layout: Layout) -> tuple[list[str], dict[str, list[LabelledImage]]]:
    """Reads a dataset: names of the classes, and images by split.

    Classes are those of classes.txt, labels.txt or labelmap.txt, if there is one, else all that
    objects have, in alphabetical order. Difficult objects are crowd regions. An image without an
    xml is not used.

    Raises:
        DataError: a file is missing or broken; names file, object and cure.
    """
    splits = _splits(layout)
    images = _images_by_key(layout)
    contents: dict[str, tuple[tuple[int, int], list[VocObject]]] = {}
    for xml in dict.fromkeys(xml for files in splits.values() for xml in files):
        if len(images.get(_key(xml), ())) != 1:
            raise _no_image(layout, xml, images.get(_key(xml), []))
        contents[xml] = read_xml(layout.path(xml))
    used = {o.name for _, objects in contents.values() for o in objects}
    class_names = _class_names(layout, used)
    labelled = {}
    for xml, (size, objects) in contents.items():
        path, source = layout.path(images[_key(xml)][0]), layout.path(xml)
        boxes = [_labelled(o, class_names, source) for o in objects]
        labelled[xml] = fitted(LabelledImage(path, size, boxes), source)
    result = {split: [labelled[xml] for xml in files] for split, files in splits.items()}
    _check_boxes(layout.folder, [image for of_split in result.values() for image in of_split])
    left = len(layout.images()) - len(contents)
    if left:
        tell(f"{left} images in {layout.folder} have no xml, or are on no list: they are not used.")
    return class_names, result


def _labelled(voc: VocObject, class_names: Sequence[str], xml_file: str) -> LabelledBox:
    number = class_number(voc.name, class_names, xml_file)
    return LabelledBox(voc.where, voc.box, number, voc.difficult)


def _check_boxes(folder: str, images: Sequence[LabelledImage]) -> None:
    boxes, limits, names = box_arrays(images)
    if len(boxes):
        check_fractions(folder, boxes, limits, names)


def _class_names(layout: Layout, used: set[str]) -> list[str]:
    names, files = find_names(layout, _NAME_FILES)
    if files and "labelmap.txt" in files[0]:  # CVAT's always begins with this class
        names = [name for name in names if name != "background" or name in used]
    names = names or sorted(used)
    if not names:
        raise DataError(f"no xml in {layout.folder} has an <object>: annotate some first")
    return names


def _key(name: str) -> str:
    """What an image and its xml have in common: the path without folders of one kind of file."""
    *folders, file = PurePosixPath(name).parts
    kept = [folder for folder in folders if folder.lower() not in _KINDS]
    return "/".join([*kept, os.path.splitext(file)[0]])


def _images_by_key(layout: Layout) -> dict[str, list[str]]:
    images: dict[str, list[str]] = {}
    for name in layout.images():
        images.setdefault(_key(name), []).append(name)
    return images


def _no_image(layout: Layout, xml: str, images: Sequence[str]) -> DataError:
    if images:
        return DataError(
            f"the images {' and '.join(images)} in {layout.folder} share the annotation {xml}:"
            " rename or remove one"
        )
    return DataError(
        f"{layout.path(xml)} has no image: put {PurePosixPath(xml).stem}.jpg, or another image of"
        " this name, beside it or into a folder images or JPEGImages, or remove the xml"
    )


def _splits(layout: Layout) -> dict[str, list[str]]:
    """Annotation files by split: by the lists of ImageSets/Main, or by folders."""
    xmls = find_voc(layout)
    lists: dict[str, str] = {}
    for name in layout.files:
        if match := _LISTS.fullmatch(name):
            if match[1] in lists:
                raise DataError(
                    f"{layout.folder} has the two lists {lists[match[1]]} and {name}: give the"
                    " folder of one dataset"
                )
            lists[match[1]] = name
    if not lists:
        return by_split(xmls, layout.folder)
    for name, instead in (("valid", "val"), ("trainval", "train"), ("default", "train")):
        if (path := lists.pop(name, None)) and instead not in lists:
            lists[instead] = path
    by_key = {_key(xml): xml for xml in xmls}
    return {split: _listed(layout, path, by_key) for split, path in lists.items()}


def _listed(layout: Layout, list_file: str, by_key: dict[str, str]) -> list[str]:
    folder = list_file[: list_file.index("ImageSets/")]
    path, xmls = layout.path(list_file), []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        name = line.strip()
        xml = by_key.get(_key(f"{folder}Annotations/{name}.xml"))
        if xml is None:
            raise DataError(
                f"line {number} of {path} names {name!r}, and there is no {folder}Annotations/"
                f"{name}.xml in {layout.folder}: add it, or remove the line"
            )
        xmls.append(xml)
    if not xmls:
        raise DataError(f"{path} is empty: name images in it, one a line, or delete it")
    return xmls
