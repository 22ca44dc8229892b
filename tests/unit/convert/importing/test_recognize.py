import pytest

from mimkit.convert.importing.recognize import LICENCES, SIGNATURES, Format, recognize


@pytest.mark.parametrize("format", Format)
def test_every_format_is_told_by_its_names(format):
    signature = next(names for found, names in SIGNATURES if found is format)
    assert recognize(signature) is format
    assert LICENCES[format]


def test_unknown_names():
    with pytest.raises(ValueError, match=r"weights named conv1\.weight, fc\.bias are of no format"):
        recognize(["conv1.weight", "fc.bias"])
