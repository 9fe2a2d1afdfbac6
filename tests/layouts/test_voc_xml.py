"""One XML file of Pascal VOC."""

from xml.etree import ElementTree

import pytest

from autoprune.layouts.voc_xml import parse, parse_xml

from .conftest import voc_xml


def test_a_file_is_what_pythons_own_reader_finds(tmp_path):
    file = tmp_path / "a.XML"
    file.write_text(voc_xml("a.png", (4, 5, 20, 10), "dog", more="<difficult>1</difficult>"))
    root = ElementTree.parse(file).getroot()
    record = parse(file)
    assert record.file_name == root.findtext("filename")
    assert record.size == tuple(int(root.findtext(f"size/{side}")) for side in ("height", "width"))
    (thing,) = record.things
    assert thing.name == root.findtext("object/name")
    corners = ("xmin", "ymin", "xmax", "ymax")
    assert thing.box == tuple(float(root.findtext(f"object/bndbox/{corner}")) for corner in corners)
    assert thing.difficult


def test_entities_do_not_expand():
    bomb = '<!DOCTYPE a [<!ENTITY b "' + "x" * 100 + '"><!ENTITY c "' + "&b;" * 100 + '">]><a>&c;</a>'
    with pytest.raises(ValueError, match="it declares the entity b"):
        parse_xml(bomb.encode())
    root = parse_xml(b'<?xml version="1.0"?><!DOCTYPE annotation><a t="1">x &amp; <b>y</b></a>')
    assert (root.text, root.findtext("b")) == ("x & ", "y")
