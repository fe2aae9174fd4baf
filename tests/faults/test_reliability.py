from tests.faults.reliability import PAGE, page


def test_the_page_is_rendered_from_the_tests():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.faults.reliability renders it"
