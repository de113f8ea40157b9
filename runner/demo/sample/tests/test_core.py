import unittest

from wordbox import count_words


class TestCountWords(unittest.TestCase):
    def test_counts_without_regard_to_case(self) -> None:
        self.assertEqual(count_words("To be or not to be")["to"], 2)

    def test_an_empty_text_has_no_words(self) -> None:
        self.assertEqual(count_words(""), {})
