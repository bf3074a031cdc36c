"""What decoding is asked for: guesses, lengths, positions, fixed pieces."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.eval import generation
from fedmedjax.model import batching
from fedmedjax.model.speculation import END
from fedmedjax.types import InputError


def part(prompt: int, instruction: int = 11, train: int = 1) -> TaskData:
  example = TokenExample(np.arange(prompt + 5, dtype=np.int32), prompt)
  return TaskData(
    SimpleNamespace(pieces=('</b>',)), np.arange(instruction, dtype=np.int32), (example,) * train,
    (), (), (example,))


def test_only_an_adapter_guesses(monkeypatch):
  monkeypatch.setattr(batching, 'decoder', lambda *given: given)
  generator = generation.Generator('model', None, 4, 2.0, 7, 'mesh')
  assert generation.decoder_of(generator, {'q': 1}) == ('model', 7, 'mesh')
  assert generation.decoder_of(generator, {}) == ('model', 0, 'mesh')


def test_a_question_is_the_prompt_and_may_be_answered_at_length():
  """1.5 times 9 tokens are 13, and 32 more."""
  assert generation.most_new_tokens(9, 1.5) == 45
  (question,) = generation.questions(generation.Generator(None, None, 4, 1.5, 0), part(9))
  tokens, most, source = question
  assert tokens.tolist() == list(range(9)) and most == 45 and source is None


@pytest.mark.parametrize('prompt, train, context', [
  # 11 tokens of instruction, and 9 + 45 of decoding, which are more than 20 of training.
  (9, 1, 65),
  # 11 and 100 of training would be more; without training examples that does not count.
  (2, 0, 11 + 2 + 35)])
def test_positions_that_are_needed_by_hand(prompt, train, context):
  longest = 20 if train else 100
  sites = [SiteData('ward', (), (part(prompt, train=train),), {})]
  base = lambda most: SimpleNamespace(  # noqa: E731
    config=SimpleNamespace(max_position_embeddings=most))
  generation.check_context(base(context), sites, longest, 1.5)
  with pytest.raises(InputError, match=f"site 'ward' needs up to {context} positions, the model "
                                       f'has {context - 1}: lower config.data.max_length'):
    generation.check_context(base(context - 1), sites, longest, 1.5)


def test_long_training_examples_need_positions_too():
  sites = [SiteData('ward', (), (part(9),), {})]
  config = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=110))
  with pytest.raises(InputError, match='needs up to 111 positions'):
    generation.check_context(config, sites, 100, 1.5)
  # What the prompt shows is a part of its 11.
  shown = sites[0]._replace(tasks=(part(9)._replace(shots=('one', 'other')),))
  with pytest.raises(InputError, match='lower config.data.shots=2, config.data.max_length=100 or '):
    generation.check_context(config, [shown], 100, 1.5)


def test_without_test_examples_room_for_a_first_answer_is_kept():
  """11 tokens of instruction and 32 of an answer are more than 20 of training."""
  alone = part(9)._replace(test_tokens=())
  config = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=42))
  with pytest.raises(InputError, match='needs up to 43 positions'):
    generation.check_context(config, [SiteData('ward', (), (alone,), {})], 20, 1.5)


def test_what_is_decoded_and_how_it_becomes_text(monkeypatch):
  """The instruction without its last token, every prompt, and the tokenizer's end of a text; blanks
  before commas stay."""
  asked = {}

  def decode(decoder, adapter, base, instruction, asked_about, **more):
    asked.update(more, instruction=instruction.tolist(), asked=asked_about, given=(adapter, base))
    return [SimpleNamespace(tokens=[1, 2])]

  def text(tokens, clean_up_tokenization_spaces):
    assert not clean_up_tokenization_spaces
    return f'text of {tokens}'

  class Letters(SimpleNamespace):
    def __call__(self, text, add_special_tokens):
      return {'input_ids': [*map(ord, text)]}

  monkeypatch.setattr(batching, 'decode', decode)
  monkeypatch.setattr(batching, 'decoder', lambda *given: given)
  generator = generation.Generator(
    'model', Letters(decode=text, eos_token_id=7), 4, 1.5, 3)
  advance = lambda count: None  # noqa: E731
  assert generation.generate(generator, {}, 'base', part(9), advance) == ['text of [1, 2]']
  assert asked['instruction'] == list(range(10)) and asked['given'] == ({}, 'base')
  assert (asked['eos'], asked['rows'], asked['advance']) == ([7], 4, advance)
  (question,) = asked['asked']
  assert len(question[0]) == 9 and asked['pieces'].tolist()[-1] == END


def test_the_largest_call_is_of_the_task_with_most_slots(monkeypatch):
  """Instruction and rows' slots together: 40 and 2 * 10 are more than 11 and 2 * 20, less than 11
  and 2 * 30."""
  monkeypatch.setattr(batching, 'decoder', lambda *given: SimpleNamespace(
    copies=1, guesses=0, original=0, generate='program'))
  monkeypatch.setattr(generation.jax, 'eval_shape', lambda function: {})
  monkeypatch.setattr(batching, 'largest', lambda compiled, questions, rows: SimpleNamespace(
    rows=2, slots=len(questions[0][0]), width=1, places=1, most=1, read=1))
  model = SimpleNamespace(
    config=SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=1), dtype=np.float32)
  letters = lambda text, add_special_tokens: {'input_ids': [*map(ord, text)]}  # noqa: E731
  for other, length in ((20, 40), (30, 10)):
    sites = [SiteData('ward', (), (part(10, instruction=41), part(other, instruction=11)), {})]
    program = generation.largest_call(
      generation.Generator(model, letters, 2, 1.5, 3), {}, {}, sites)
    assert program[1][0][2][0].shape[2] == length


def test_the_memory_of_the_largest_call_is_that_of_its_arrays():
  """Of two tasks the one with most slots. Its keys and values are of 2 layers, 1 head and 8 numbers
  of 4 bytes for 10 tokens of instruction, 640 bytes each. The rest is the state of decoding, which
  counts once more for when it is resized; each of two devices has half of it. Keys and values of a
  block of inputs wait beside it: of 3 rows a quarter is one, of 64 tokens, 4096 bytes each."""
  model = SimpleNamespace(
    config=SimpleNamespace(num_layers=2, num_kv_heads=1, head_dim=8), dtype=np.float32)
  compiled, asked = SimpleNamespace(copies=2, guesses=3, original=0, generate='program'), []
  state = {'slots': np.zeros((3, 7), np.float32)}
  long = part(20)._replace(test_tokens=part(20).test_tokens * 6)
  sites = [SiteData('ward', (), (part(2, instruction=1), long), {})]
  adapter = {'a': np.zeros(5, np.float32)}

  def begun(of, rows, width, most, slots):
    asked.append((rows, width, most, slots))
    return state

  letters = lambda text, add_special_tokens: {'input_ids': [*map(ord, text)]}  # noqa: E731
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(batching, 'decoder', lambda *given: compiled)
    patch.setattr(generation, 'begin', begun)
    patch.setattr(generation.jax, 'eval_shape', lambda function: function())
    program = generation.largest_call(
      generation.Generator(model, letters, 6, 1.5, 3), {}, adapter, sites)
  # 20 tokens and 62 new ones: 20 + 62 + 3 + 1 = 86 slots in steps of 96, new ones in 64.
  assert asked == [(6, 64, 64, 96)]
  prefix, first, pieces, kept, copies = program[1]
  assert program[0] == 'program' and kept is state and first.shape == (1,)
  assert copies.shape == (2,)
  assert [keys.shape for keys in prefix[2]] == [(2, 1, 10, 8)] * 2
  own = 3 * 7 * 4 // 2
  assert program[2:] == (20 + 2 * 640 + 2 * 4096 + own, own) and pieces.shape == (10,)
