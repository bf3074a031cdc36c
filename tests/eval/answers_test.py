"""The cache of paid answers, byte by byte."""

from fedmedjax.eval.answers import Answer, append_answer, read_answers


def test_a_whole_line_is_followed_by_the_next_and_a_torn_one_is_closed_first(tmp_path):
  path = tmp_path / 'answers.jsonl'
  line = b'{"key": "a", "text": "x", "input_tokens": 1, "output_tokens": 2}\n'
  append_answer(path, 'a', Answer('x', 1, 2))
  append_answer(path, 'a', Answer('x', 1, 2))
  assert path.read_bytes() == 2 * line
  path.write_bytes(line + b'{"key": "b", "te')
  append_answer(path, 'c', Answer('y', None, 3))
  assert path.read_bytes().split(b'\n') == [
    line.strip(), b'{"key": "b", "te',
    b'{"key": "c", "text": "y", "input_tokens": null, "output_tokens": 3}', b'']
  assert read_answers(path) == {'a': Answer('x', 1, 2), 'c': Answer('y', None, 3)}
  assert read_answers(tmp_path / 'none') == {}
