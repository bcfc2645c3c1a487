"""Reading licences, on the ways packages really state them."""

from email import message_from_string

import pytest

from sounding.data.licenses import families, header_allows, metadata_license, text_license


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MIT", {"MIT"}),
        ("BSD-3-Clause", {"BSD"}),
        ("Apache Software License", {"Apache-2.0"}),
        ("Apache-2.0 AND MIT", {"Apache-2.0", "MIT"}),
        ("Python Software Foundation License", {"PSF-2.0"}),
        ("GPL-3.0-only", set()),
        ("MIT OR GPL-2.0", set()),
        ("Mozilla Public License 2.0 (MPL 2.0)", set()),
        ("Commercial", set()),
        ("COMMIT", set()),
    ],
)
def test_permissive_licences_are_recognised_by_name(text: str, expected: set[str]) -> None:
    assert families(text) == expected


def test_metadata_prefers_the_expression_and_distrusts_the_free_text() -> None:
    both = "License-Expression: MIT\nClassifier: License :: OSI Approved :: BSD License\n"
    assert metadata_license(message_from_string(both)) == "MIT"
    bundled = "License: BSD, with a GPL runtime library\n"
    classified = bundled + "Classifier: License :: OSI Approved :: BSD License\n"
    assert families(metadata_license(message_from_string(classified))) == {"BSD"}
    assert not families(metadata_license(message_from_string(bundled)))
    assert metadata_license(message_from_string("Name: x\n")) == "unknown"


def test_a_licence_is_recognised_by_its_text() -> None:
    assert text_license("MIT License\n\nPermission is hereby granted, free of charge") == "MIT"
    assert text_license("All rights reserved.") == "unknown"


def test_headers_decide_only_near_the_top() -> None:
    assert header_allows("x = 1\n" * 1000 + "# GNU General Public License")
    assert not header_allows("# SPDX-License-Identifier: MPL-2.0\n# or the MIT License\n")
